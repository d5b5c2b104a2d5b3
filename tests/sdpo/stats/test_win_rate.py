"""Win rates: by hand, and length control against a fit of another kind."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sdpo.stats.win_rate import PRIOR_SD, WinRate, fit, scaled, win_rate

Floats = NDArray[np.float64]


def rate(
    forward: Floats, backward: Floats, lengths: Floats, prompts: list[str] | None = None
) -> WinRate:
    names = np.array(prompts or [f"p{n}" for n in range(len(forward))])
    found = win_rate(forward, backward, lengths.astype(np.int64), names, resamples=400, seed=1)
    assert found is not None
    return found


def judged(
    seed: int, *, edge: float, by_length: float, longer: float = 0.0, n: int = 600
) -> tuple[Floats, Floats]:
    """Verdicts of a judge with a known taste, on answers that are ``longer`` on the whole."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(20, 400, size=(n, 2)).astype(np.float64)
    lengths[:, 0] += longer
    x = np.tanh((lengths[:, 0] - lengths[:, 1]) / (lengths[:, 0] - lengths[:, 1]).std())
    p = 1 / (1 + np.exp(-(edge + by_length * x)))
    return (generator.random(n) < p).astype(np.float64), lengths


def by_lbfgs(values: Floats, x: Floats) -> Floats:
    """The same fit by torch: cross-entropy with soft labels, its own gradient and optimizer."""
    at = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    labels, apart = torch.tensor(values), torch.tensor(x)
    optimizer = torch.optim.LBFGS(
        [at], max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = at[0] + at[1] * apart
        cross = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, labels, reduction="sum"
        )
        loss = cross + 0.5 * (at[1] / PRIOR_SD) ** 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(at.detach().numpy())


@pytest.mark.parametrize(("edge", "by_length"), [(0.5, 0.0), (0.0, 2.0), (-0.7, 1.0)])
def test_the_fit_is_that_of_another_optimizer_on_the_likelihood(
    edge: float, by_length: float
) -> None:
    values, lengths = judged(3, edge=edge, by_length=by_length)
    values[::7] = 0.5  # ties are soft labels
    x = scaled(lengths[:, 0] - lengths[:, 1])
    apart = lengths[:, 0] - lengths[:, 1]
    assert x == pytest.approx(np.tanh(apart / np.sqrt(((apart - apart.mean()) ** 2).mean())))
    expected = by_lbfgs(values, x)
    assert fit(values, x)[0] == pytest.approx(expected, abs=1e-6)
    controlled = rate(values, values, lengths).controlled
    assert controlled == pytest.approx(1 / (1 + np.exp(-expected[0])), abs=1e-6)


def test_fits_by_weights_are_those_of_the_rows_that_they_repeat() -> None:
    values, lengths = judged(4, edge=0.3, by_length=1.0, n=40)
    x = scaled(lengths[:, 0] - lengths[:, 1])
    times = np.random.default_rng(0).integers(0, 3, size=(5, 40))
    together = fit(values, x, times.astype(np.float64))
    for row, each in zip(together, times, strict=True):
        assert row == pytest.approx(fit(np.repeat(values, each), np.repeat(x, each))[0], abs=1e-6)


def test_a_judge_that_prefers_length_loses_its_edge_and_one_that_does_not_keeps_it() -> None:
    values, lengths = judged(5, edge=0.0, by_length=4.0, longer=150)
    of_length = rate(values, values, lengths)
    assert of_length.rate > 0.65
    assert of_length.bounds[0] is not None
    assert of_length.bounds[0] > 0.6
    assert of_length.controlled_bounds[0] is not None
    assert of_length.controlled_bounds[1] is not None
    assert of_length.controlled_bounds[0] < 0.5 < of_length.controlled_bounds[1]
    values, lengths = judged(5, edge=1.0, by_length=0.0, longer=150)
    of_merit = rate(values, values, lengths)
    assert of_merit.controlled == pytest.approx(of_merit.rate, abs=0.05)


def test_a_judge_that_goes_by_length_alone_has_a_finite_fit_and_no_edge() -> None:
    lengths = judged(6, edge=0, by_length=0, longer=150, n=120)[1]
    values = (lengths[:, 0] > lengths[:, 1]).astype(np.float64)
    found = rate(values, values, lengths)
    assert found.rate > 0.7
    assert found.controlled is not None
    assert 0 < found.controlled < 1
    low, high = found.controlled_bounds
    assert low is not None
    assert high is not None
    assert low < 0.5 < high, "no edge is left that could be told"


def test_where_all_verdicts_are_alike_length_cannot_be_told_apart() -> None:
    ones, lengths = np.ones(30), judged(7, edge=0, by_length=0, n=30)[1]
    found = rate(ones, ones, lengths)
    assert (found.rate, found.controlled, found.controlled_bounds) == (1.0, None, (None, None))
    ties = rate(ones / 2, ones / 2, lengths)
    assert (ties.rate, ties.ties) == (0.5, 1.0)
    assert ties.controlled == pytest.approx(0.5)


def test_both_orders_count_and_what_has_no_verdict_does_not() -> None:
    nan = np.nan
    forward = np.array([1.0, 1.0, 0.0, 0.5, nan, 1.0])
    backward = np.array([1.0, 0.0, 0.0, 0.5, 1.0, nan])
    found = rate(forward, backward, np.full((6, 2), 9.0))
    assert (found.comparisons, found.missing, found.prompts) == (4, 2, 4)
    assert found.rate == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert found.agreement == pytest.approx(3 / 4)
    assert found.ties == pytest.approx(2 / 4)
    none = np.full(3, nan)
    assert (
        win_rate(
            none, none, np.ones((3, 2), np.int64), np.array(["a", "b", "c"]), resamples=9, seed=1
        )
        is None
    )


def test_intervals_resample_prompts_and_not_answers() -> None:
    values, lengths = judged(8, edge=0.2, by_length=0.5, n=60)
    one_each = rate(values, values, lengths)
    four = rate(
        *(np.repeat(values, 4),) * 2, np.repeat(lengths, 4, axis=0),
        [f"p{n}" for n in range(60) for _ in range(4)],
    )  # fmt: skip
    assert four.bounds == pytest.approx(one_each.bounds)
    assert four.controlled_bounds == pytest.approx(one_each.controlled_bounds, abs=0.02)
    assert four.prompts == 60


def test_the_interval_covers_what_is_true() -> None:
    covered = 0
    for seed in range(40):
        values, lengths = judged(100 + seed, edge=0.4, by_length=1.5, longer=80, n=150)
        low, high = rate(values, values, lengths).controlled_bounds
        assert low is not None
        assert high is not None
        covered += low <= 1 / (1 + np.exp(-0.4)) <= high
    assert covered >= 34
