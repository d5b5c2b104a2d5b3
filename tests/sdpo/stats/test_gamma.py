import math
import statistics as stdlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.errors import Fault
from sdpo.stats.bootstrap import bootstrap_means
from sdpo.stats.contamination import contamination
from sdpo.stats.gamma import (
    gamma_view,
    paired_difference,
    reference_entry,
    split_probes,
    statistics,
)
from sdpo.stats.gamma_rows import GammaRow

OPTIONS: dict[str, Any] = {"resamples": 400, "seed": 7}


def table(
    probe: str,
    gamma: Sequence[float],
    *,
    prompts: Sequence[str] | None = None,
    tokens: Sequence[tuple[int, int]] | None = None,
    sampled: Sequence[bool] | None = None,
    complete: Sequence[bool] | None = None,
    source: str = "web",
) -> pa.Table:
    """Rows of ``probes/M_t.parquet`` with these gammas; every rejected side has -50 nats."""
    n = len(gamma)
    sides = tokens or [(10, 10)] * n
    return pa.table(
        {
            "pair_id": pa.array([f"{probe}-{i:05d}" for i in range(n)], pa.string()),
            "prompt_key": pa.array(prompts or [f"{probe}-p{i}" for i in range(n)], pa.string()),
            "source": pa.array([source] * n, pa.string()),
            "probe": pa.array([probe] * n, pa.string()),
            "sampled": pa.array(sampled if sampled is not None else [True] * n, pa.bool_()),
            "chosen_logps": pa.array([g - 50.0 for g in gamma], pa.float64()),
            "rejected_logps": pa.array([-50.0] * n, pa.float64()),
            "chosen_tokens": pa.array([side[0] for side in sides], pa.int32()),
            "rejected_tokens": pa.array([side[1] for side in sides], pa.int32()),
            "complete": pa.array(complete if complete is not None else [True] * n, pa.bool_()),
        }
    )


def rows(gamma: Sequence[float], **options: Any) -> Any:
    return split_probes(table("D_1", gamma, **options)).get("D_1")


def entry(view: list[GammaRow], model: str, probe: str) -> GammaRow:
    (found,) = [e for e in view if (e.model, e.probe) == (model, probe)]
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The textbook's linear interpolation between order statistics, in plain Python."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_statistics_by_hand() -> None:
    found = statistics(rows([-2.0, 0.0, 5.0], tokens=[(10, 20), (10, 10), (25, 5)]))
    assert found.pairs == 3
    assert found.mean == 1.0
    assert found.sd == pytest.approx(math.sqrt(13.0))
    assert found.se == pytest.approx(math.sqrt(13.0 / 3))
    assert found.ranking_accuracy == pytest.approx(1 / 3), "gamma = 0 is not above 0"
    per_token = [-52 / 10 + 50 / 20, 0.0, -45 / 25 + 50 / 5]
    assert found.per_token_mean == pytest.approx(sum(per_token) / 3)
    # gamma - 1 = (-3, -1, 4) against n_w - n_l - 10/3 = (-40, -10, 50) / 3
    expected = (3 * 40 + 1 * 10 + 4 * 50) / 3 / math.sqrt(26 * 4200 / 9)
    assert found.length_correlation == pytest.approx(expected)


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=60))
def test_statistics_agree_with_plain_loops(gamma: list[float]) -> None:
    measured = rows(gamma)
    exact = measured.gamma.tolist()
    found = statistics(measured)
    assert found.mean == pytest.approx(stdlib.fmean(exact), abs=1e-9)
    assert found.sd == pytest.approx(stdlib.stdev(exact), rel=1e-9, abs=1e-9)
    for name, value in found.quantiles.items():
        assert value == pytest.approx(quantile(exact, int(name) / 100), abs=1e-9)


def test_a_single_pair_has_a_mean_but_no_spread_and_no_interval() -> None:
    (only,) = gamma_view({"M_0": table("D_1", [3.0])}, step=0, beta=0.1, **OPTIONS)
    assert (only.pairs, only.mean, only.ranking_accuracy) == (1, 3.0, 1.0)
    assert only.sd is only.se is only.length_correlation is None
    assert only.mean_low is only.mean_high is None
    assert only.quantiles["1"] == only.quantiles["99"] == 3.0


def test_no_complete_pair_gives_nulls() -> None:
    (only,) = gamma_view(
        {"M_0": table("D_1", [1.0, 2.0], complete=[False, False])}, step=0, beta=0.1, **OPTIONS
    )
    assert only.truncated_share == 1.0
    nulls = {name: value for name, value in only.complete if name != "pairs"}
    assert only.complete.pairs == 0
    assert set(nulls.pop("quantiles").values()) == {None}
    assert set(nulls.values()) == {None}


def test_complete_pairs_have_statistics_of_their_own() -> None:
    (only,) = gamma_view(
        {"M_0": table("D_1", [1.0, 5.0, 100.0], complete=[True, True, False])},
        step=0, beta=0.1, **OPTIONS,
    )  # fmt: skip
    assert only.complete == statistics(rows([1.0, 5.0]))
    assert only.truncated_share == pytest.approx(1 / 3)


def test_an_empty_table_has_no_probes() -> None:
    assert gamma_view({"M_0": table("D_1", [])}, step=0, beta=0.1, **OPTIONS) == []


def test_equal_lengths_have_no_length_correlation() -> None:
    assert statistics(rows([1.0, 2.0, 3.0])).length_correlation is None


def test_ties_count_one_half_in_accuracy_and_nothing_in_share_above() -> None:
    now, before = rows([1.0, 2.0, 3.0, 4.0]), rows([0.0, 2.0, 3.0, 9.0])
    found = paired_difference(now, before, beta=0.5, **OPTIONS)
    assert found.accuracy == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert found.share_above == pytest.approx(1 / 4)
    assert found.mean == pytest.approx((1 + 0 + 0 - 5) / 4)
    assert found.margin == pytest.approx(0.5 * found.mean)
    assert found.ranking_accuracy_change == pytest.approx(1 / 4), "one gamma went from 0 above it"


def test_differences_are_over_the_pairs_that_both_models_have() -> None:
    before = split_probes(table("D_1", [0.0, 10.0, 20.0]).take([2, 0]))["D_1"]
    found = paired_difference(rows([1.0, 1.0, 25.0]), before, **OPTIONS)
    assert found.pairs == 2
    assert found.mean == pytest.approx((1 + 5) / 2)
    assert found.margin is None


def test_the_order_of_rows_changes_nothing() -> None:
    gamma = np.random.default_rng(0).normal(0, 10, 40)
    straight = table("D_1", gamma.tolist(), prompts=[f"p{i // 3}" for i in range(40)])
    shuffled = straight.take(np.random.default_rng(1).permutation(40))
    views = [gamma_view({"M_0": t}, step=0, beta=0.1, **OPTIONS) for t in (straight, shuffled)]
    assert views[0] == views[1]


def test_bootstrap_of_single_prompts_is_the_standard_error() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    means = bootstrap_means(
        values[:, None], np.array([f"p{i}" for i in range(400)]), resamples=4000, seed=0
    )
    assert means is not None
    assert means.std() == pytest.approx(values.std() / 20, rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)


def test_bootstrap_agrees_with_a_plain_loop_over_the_same_draws() -> None:
    values, clusters = [1.0, 3.0, -4.0, 8.0, 0.5], ["a", "b", "a", "c", "b"]
    means = bootstrap_means(np.array(values)[:, None], np.array(clusters), resamples=50, seed=11)
    drawn = np.random.default_rng(11).integers(0, 3, size=(50, 3))
    for mean, prompts in zip(means, drawn, strict=True):
        taken = [v for p in prompts for v, c in zip(values, clusters, strict=True) if c == "abc"[p]]
        assert mean[0] == pytest.approx(sum(taken) / len(taken))


def test_pairs_that_agree_within_a_prompt_widen_the_interval() -> None:
    per_prompt = np.random.default_rng(5).normal(0, 1, 50)
    values = np.repeat(per_prompt, 8)[:, None]
    clustered = bootstrap_means(
        values, np.array([f"p{i // 8}" for i in range(400)]), resamples=2000, seed=0
    )
    naive = bootstrap_means(values, np.array([f"p{i}" for i in range(400)]), resamples=2000, seed=0)
    assert clustered.std() / naive.std() == pytest.approx(math.sqrt(8), rel=0.1)


def test_the_clustered_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator, covered, naively = np.random.default_rng(8), 0, 0
    prompts = np.array([f"p{i // 4}" for i in range(240)])
    alone = np.array([f"p{i}" for i in range(240)])
    for _ in range(150):
        values = (np.repeat(generator.normal(0, 3, 60), 4) + generator.normal(0, 1, 240))[:, None]
        for clusters in (prompts, alone):
            means = bootstrap_means(values, clusters, resamples=300, seed=1)
            low, high = np.percentile(means, [2.5, 97.5])
            covered += clusters is prompts and low <= 0 <= high
            naively += clusters is alone and low <= 0 <= high
    assert 0.89 <= covered / 150 <= 0.99
    assert naively / 150 < 0.8


def three_models(*, sampled: Sequence[bool]) -> dict[str, pa.Table]:
    """Two steps; of D_2 only the sampled pairs are in M_0 and M_2, all of them in M_1."""
    sizes = {"D_1": 4, "D_2": len(sampled), "reserve:web": 3}
    probes = {}
    for model in range(3):
        parts = []
        for probe, size in sizes.items():
            mask = list(sampled) if probe == "D_2" else [True] * size
            gamma = [10.0 * model + i for i in range(size)]
            part = table(probe, gamma, sampled=mask)
            keep = [True] * size if probe == f"D_{model + 1}" else mask
            parts.append(part.filter(pa.array(keep)))
        probes[f"M_{model}"] = pa.concat_tables(parts)
    return probes


def test_the_view_has_every_model_on_every_probe_and_the_reference_whole() -> None:
    probes = three_models(sampled=[True, False, True, False, False])
    view = gamma_view(probes, step=2, beta=0.1, **OPTIONS)
    reference, *others = view
    assert (reference.model, reference.probe, reference.whole) == ("M_1", "D_2", True)
    assert reference.pairs == 5
    assert reference.vs_S.pairs == 2, "S was measured on the sample alone"
    assert [(e.model, e.probe) for e in others] == [
        (model, probe) for model in ("M_0", "M_1", "M_2") for probe in ("reserve:web", "D_1", "D_2")
    ]
    assert {e.probe: e.pairs for e in others} == {"reserve:web": 3, "D_1": 4, "D_2": 2}
    assert {e.probe: e.whole for e in others} == {
        "reserve:web": True, "D_1": True, "D_2": False,
    }  # fmt: skip
    assert reference == reference_entry(probes, step=2, **OPTIONS)


def test_a_reference_that_was_measured_on_a_sample_is_not_called_whole() -> None:
    probes = three_models(sampled=[True] * 2)
    sizes = {1: 4, 2: 5}
    view = gamma_view(probes, step=2, beta=None, sizes=sizes, **OPTIONS)
    reference = reference_entry(probes, step=2, sizes=sizes, **OPTIONS)
    assert reference == entry(view, "M_1", "D_2")
    assert (reference.pairs, reference.whole) == (2, False)
    assert entry(view, "M_1", "D_1").whole
    margin = entry(view, "M_2", "D_1").vs_previous.margin
    assert margin is None, "its rewards are not beta times log-ratios"


def test_a_sample_of_all_of_a_partition_is_one_entry() -> None:
    view = gamma_view(three_models(sampled=[True] * 5), step=2, beta=0.1, **OPTIONS)
    reference = entry(view, "M_1", "D_2")
    assert reference.whole
    assert len(view) == 9


def test_differences_are_to_the_previous_model_and_to_the_first() -> None:
    view = gamma_view(three_models(sampled=[True] * 5), step=2, beta=0.3, **OPTIONS)
    first, last = entry(view, "M_0", "D_1"), entry(view, "M_2", "D_1")
    assert first.vs_previous is first.vs_S is first.accuracy_vs_S is None
    assert (last.vs_previous.mean, last.vs_S.mean) == (10.0, 20.0)
    assert last.vs_S.low == last.vs_S.high == pytest.approx(20.0)
    assert last.accuracy_vs_previous == last.accuracy_vs_S == 1.0
    assert last.vs_previous.margin == pytest.approx(3.0)
    middle = entry(view, "M_1", "D_1")
    assert middle.vs_previous.margin is None, "step 1 may have had another beta"


def test_a_missing_model_is_named() -> None:
    probes = three_models(sampled=[True] * 5)
    del probes["M_1"]
    with pytest.raises(Fault, match="M_1"):
        gamma_view(probes, step=2, beta=0.1, **OPTIONS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_log_prob_that_is_no_number_is_refused_with_its_pair(value: float) -> None:
    with pytest.raises(Fault, match="D_1-00001"):
        split_probes(table("D_1", [0.0, value]))


def test_a_pair_that_stands_twice_is_refused() -> None:
    once = table("D_1", [0.0, 1.0])
    with pytest.raises(Fault, match="more than once"):
        split_probes(pa.concat_tables([once, once]))


def moved(
    on_trained: float,
    on_reserve: float,
    *,
    partition: str = "D_2",
    pairs: int = 300,
    noise: float = 4.0,
) -> dict[str, pa.Table]:
    """S, and M_1 that moved by so many nats on a partition and on the reserve."""
    generator = np.random.default_rng(2)
    start = {name: generator.normal(-5, 30, pairs) for name in (partition, "reserve:web")}
    shift = {partition: on_trained, "reserve:web": on_reserve}
    change = {name: generator.normal(mean, noise, pairs) for name, mean in shift.items()}
    parts = {
        "M_0": [table(name, gamma.tolist()) for name, gamma in start.items()],
        "M_1": [table(name, (gamma + change[name]).tolist()) for name, gamma in start.items()],
    }
    return {model: pa.concat_tables(tables) for model, tables in parts.items()}


def test_a_reference_that_has_seen_the_partition_is_warned_of() -> None:
    found = contamination(moved(20.0, 3.0), step=2, model=1, **OPTIONS)
    assert found is not None
    assert found.warning
    assert found.gap == pytest.approx(17.0, abs=1.5)
    assert found.low < found.gap < found.high
    assert found.low > 15


@pytest.mark.parametrize(
    ("on_trained", "on_reserve", "why"),
    [
        (3.0, 3.0, "no gap"),
        (7.0, 3.0, "a clear gap, but under 5 nats"),
        (18.0, 12.0, "a clear gap, but the reserve moved more than it"),
        (-20.0, 3.0, "moved the other way"),
    ],
)
def test_a_healthy_reference_is_not(on_trained: float, on_reserve: float, why: str) -> None:
    found = contamination(moved(on_trained, on_reserve), step=2, model=1, **OPTIONS)
    assert found is not None
    assert not found.warning, why


def test_a_gap_that_noise_explains_is_no_warning() -> None:
    found = contamination(moved(40.0, 0.0, pairs=6, noise=60.0), step=2, model=1, **OPTIONS)
    assert found is not None
    assert found.gap > max(5, found.reserve_mean), "large, were it not for its interval"
    assert not found.warning


def test_the_fit_gap_after_training_is_never_a_warning() -> None:
    found = contamination(moved(20.0, 2.8, partition="D_1"), step=1, model=1, **OPTIONS)
    assert found is not None
    assert found.gap == pytest.approx(17.2, abs=1.5)
    assert not found.before_training
    assert not found.warning


def test_a_partition_that_was_not_measured_says_nothing() -> None:
    assert contamination(moved(20.0, 2.8), step=1, model=1, **OPTIONS) is None


def test_the_first_model_has_nothing_to_compare_with() -> None:
    assert contamination(moved(20.0, 3.0), step=1, model=0, **OPTIONS) is None


def test_another_mixture_of_sources_is_no_contamination() -> None:
    """M_1 moves 30 nats on one source and 0 on the other, on seen and unseen prompts alike."""
    sizes = {"code": (270, 30), "web": (30, 270)}
    parts: dict[str, list[pa.Table]] = {"M_0": [], "M_1": []}
    generator = np.random.default_rng(4)
    for source, (trained, reserve) in sizes.items():
        for probe, count in (("D_2", trained), (f"reserve:{source}", reserve)):
            start = generator.normal(0, 10, count)
            change = generator.normal(30.0 if source == "code" else 0.0, 3, count)
            for model, gamma in (("M_0", start), ("M_1", start + change)):
                part = table(probe, gamma.tolist(), source=source)
                ids = pa.array([f"{source}-{i}" for i in part["pair_id"].to_pylist()])
                parts[model].append(part.set_column(0, "pair_id", ids))
    probes = {model: pa.concat_tables(tables) for model, tables in parts.items()}
    found = contamination(probes, step=2, model=1, **OPTIONS)
    assert found is not None
    assert found.reserve_mean == pytest.approx(27.0, abs=1.5)
    assert abs(found.gap) < 2
    assert not found.warning


def test_one_reserved_prompt_is_too_few_to_tell() -> None:
    probes = {
        model: pa.concat_tables([table("D_2", [base, base + 1]), table("reserve:web", [base])])
        for model, base in (("M_0", 0.0), ("M_1", 40.0))
    }
    found = contamination(probes, step=2, model=1, **OPTIONS)
    assert found is not None
    assert found.low is found.high is None
    assert not found.warning
