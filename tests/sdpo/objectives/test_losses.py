"""The formulas against numbers worked out by hand, their derivatives, and what holds of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo.objectives import OBJECTIVES
from sdpo.objectives.losses import (
    LARGEST_PER_TOKEN_LOGP,
    LOSSES,
    PairLogps,
    log1mexp,
    log_odds,
    loss_at_reference,
    own_metrics,
    rewards,
)

PAIR_A = (-20.0, -30.0, -22.0, -28.0, 10, 20)
PAIR_B = (-45.0, -36.0, -40.0, -38.0, 30, 12)
"""Policy chosen, policy rejected, reference chosen, reference rejected; chosen, rejected tokens."""

WORKED = [
    ("dpo", {"beta": 0.1}, 0.513015, 1.103186),
    ("cdpo", {"beta": 0.1, "label_smoothing": 0.1}, 0.553015, 1.033186),
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}, 0.463015, 1.190686),
    ("hinge", {"beta": 0.1}, 0.600000, 1.700000),
    ("ipo_sum", {"beta": 0.1}, 1.000000, 144.000000),
    ("ipo", {"beta": 0.1}, 22.090000, 28.444444),
    ("sppo", {"beta": 0.1}, 18.000000, 149.000000),
    ("exo", {"beta": 0.1, "exo_epsilon": 1e-3}, 2.099226, 3.980555),
    ("nca", {"beta": 0.1}, 1.296278, 1.610185),
    ("cal_dpo", {"beta": 0.1, "cal_dpo_c": 1.0}, 18.018150, 156.000911),
    ("cal_dpo", {"beta": 0.1, "cal_dpo_c": 0.5}, 9.018150, 81.500911),
    ("apo_zero", {"beta": 0.1}, 0.900332, 1.172293),
    ("apo_down", {"beta": 0.1}, 0.951146, 1.045728),
    ("hypo", {"beta": 0.1}, 0.513015, 1.241154),
    # Delta per token is 0.3 and -1/3: ln(1 + exp(-0.03)) and ln(1 + exp(1/30)) by hand.
    ("dpo_norm", {"beta": 0.1}, 0.678260, 0.709953),
    ("simpo", {"beta": 2.0, "simpo_gamma_beta_ratio": 0.5}, 2.126928, 0.126928),
    ("orpo", {"beta": 1.0}, 1.042058, 0.167568),
    ("orpo", {"beta": 0.5}, 0.856387, 0.355654),
    ("orpo_one_stage", {"preference_weight": 0.1}, 2.104206, 1.516757),
    ("asft", {"beta": 1.0}, 2.252482, 1.551069),
    ("asft", {"beta": 0.1}, 1.422885, 1.313999),
    ("asft_one_stage", {"preference_weight": 1.0}, 4.252482, 3.051069),
    ("sft", {}, 2.0, 1.5),
]

DEFAULTS = {name: settings for name, settings, *_ in reversed(WORKED)}
"""Settings of every objective at which it is worked."""

PAIRWISE = sorted(name for name, facts in OBJECTIVES.items() if facts.form == "pairwise")
CONSTANT = sorted(name for name, facts in OBJECTIVES.items() if facts.constant_at_reference)

LARGEST_FP16 = 65504.0

NATS = st.floats(-200, -1e-2)
TOKENS = st.integers(1, 60)
PAIR = st.tuples(NATS, NATS, NATS, NATS, TOKENS, TOKENS)
BETAS = st.sampled_from([0.01, 0.1, 0.5])


def pairs(*rows: tuple[float, ...], dtype: torch.dtype = torch.float64) -> PairLogps:
    columns = torch.tensor(rows, dtype=dtype).T
    return PairLogps(
        policy_chosen_logps=columns[0].clone().requires_grad_(),
        policy_rejected_logps=columns[1].clone().requires_grad_(),
        reference_chosen_logps=columns[2],
        reference_rejected_logps=columns[3],
        chosen_tokens=columns[4],
        rejected_tokens=columns[5],
    )


def losses(name: str, *rows: tuple[float, ...], **settings: float) -> list[float]:
    return LOSSES[name](pairs(*rows), **(settings or DEFAULTS[name])).tolist()


def gradients(name: str, row: tuple[float, ...], **settings: float) -> tuple[float, float]:
    """Of the loss by the policy's chosen and rejected log-prob."""
    logps = pairs(row)
    LOSSES[name](logps, **(settings or DEFAULTS[name])).sum().backward()
    sides = (logps.policy_chosen_logps.grad, logps.policy_rejected_logps.grad)
    chosen, rejected = (0.0 if side is None else side.item() for side in sides)
    return chosen, rejected


def agreeing(chosen: float, rejected: float, n_w: int, n_l: int) -> tuple[float, ...]:
    return (chosen, rejected, chosen, rejected, n_w, n_l)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "settings", "a", "b"), WORKED, ids=[f"{w[0]}-{i}" for i, w in enumerate(WORKED)]
)
def test_the_worked_pairs(name, settings, a, b, dtype):
    loss = LOSSES[name](pairs(PAIR_A, PAIR_B, dtype=dtype), **settings)
    assert loss.dtype == dtype
    near = {"abs": 1e-6} if dtype == torch.float64 else {"abs": 1e-6, "rel": 1e-6}
    assert loss.tolist() == pytest.approx([a, b], **near)


def test_every_objective_is_worked():
    assert {name for name, *_ in WORKED} == set(OBJECTIVES) == set(LOSSES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_formula_reads_the_settings_that_are_registered(name):
    code = LOSSES[name].__code__
    names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    assert names == OBJECTIVES[name].settings


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_formula_needs_a_reference_where_it_is_registered_so(name):
    nan = math.nan
    blind = pairs((-20.0, -30.0, nan, nan, 10, 20))
    finite = math.isfinite(LOSSES[name](blind, **DEFAULTS[name]).item())
    assert finite != OBJECTIVES[name].needs_reference
    rewarded = rewards(blind, name, DEFAULTS[name])
    assert all(math.isfinite(side.item()) for side in rewarded) == finite


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_formula_reads_token_counts_where_it_is_registered_so(name):
    once, twice = losses(name, PAIR_A, (*PAIR_A[:4], 20, 40))
    assert (once != twice) == OBJECTIVES[name].length_normalised


LN_2 = math.log(2)
EXPECTED_AT_REFERENCE = {
    "dpo": (LN_2, -0.05, 0.05),
    "cdpo": (LN_2, -0.1 * 0.8 / 2, 0.1 * 0.8 / 2),
    "robust": (LN_2, -0.1 / (2 * 0.8), 0.1 / (2 * 0.8)),
    "hinge": (1.0, -0.1, 0.1),
    "ipo_sum": (25.0, -10.0, 10.0),
    "ipo": (25.0, -1 / (0.1 * 10), 1 / (0.1 * 20)),
    "sppo": (50.0, -10.0, 10.0),
    "exo": (
        -LN_2 - 0.5 * math.log(1e-3 * 0.999),
        -0.025 * math.log(999),
        0.025 * math.log(999),
    ),
    "nca": (2 * LN_2, -0.025, 0.025),
    "cal_dpo": (LN_2 + 50.0, -10.5, 10.5),
    "apo_zero": (1.0, -0.025, 0.025),
    "apo_down": (1.0, 0.0, 0.025),
    "dpo_norm": (LN_2, -0.05 / 10, 0.05 / 20),
}
"""Loss and gradients where policy and reference agree, at the worked settings; n = (10, 20)."""


def test_the_table_at_the_reference_has_every_constant_objective():
    assert sorted(EXPECTED_AT_REFERENCE) == CONSTANT


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("logps", [(-20.0, -30.0), (-9.0, -3.0)])
def test_loss_and_gradient_where_policy_is_reference(name, logps):
    settings = DEFAULTS[name] if name != "cal_dpo" else {"beta": 0.1, "cal_dpo_c": 1.0}
    loss, chosen, rejected = EXPECTED_AT_REFERENCE[name]
    row = agreeing(*logps, 10, 20)
    assert losses(name, row, **settings) == pytest.approx([loss])
    assert loss_at_reference(name, settings) == pytest.approx(loss)
    assert gradients(name, row, **settings) == pytest.approx((chosen, rejected))


@given(NATS, NATS, BETAS)
def test_hypo_at_the_reference_has_the_weight_of_a_reference_clipped_at_zero(
    chosen, rejected, beta
):
    weight = beta / (1 + math.exp(beta * min(chosen - rejected, 0.0)))
    found = gradients("hypo", agreeing(chosen, rejected, 1, 1), beta=beta)
    assert found == pytest.approx((-weight, weight))


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - set(CONSTANT)))
def test_other_objectives_have_no_one_loss_at_the_reference(name):
    assert loss_at_reference(name, DEFAULTS[name]) is None
    first, second = losses(name, agreeing(-20, -30, 10, 20), agreeing(-40, -35, 10, 20))
    assert first != pytest.approx(second)


def odds(a: float) -> float:
    return a - math.log(-math.expm1(a))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@given(PAIR, BETAS)
def test_gradients_of_the_objectives_without_reference_are_those_of_the_papers(row, beta):
    _, _, _, _, n_w, n_l = row
    a_w, a_l = row[0] / n_w, row[1] / n_l
    p_w, p_l = math.exp(a_w), math.exp(a_l)
    u = beta * (a_w - a_l) - beta * 0.5
    found = gradients("simpo", row, beta=beta, simpo_gamma_beta_ratio=0.5)
    assert found == pytest.approx((-beta / n_w * sigmoid(-u), beta / n_l * sigmoid(-u)))
    weight = sigmoid(-beta * (odds(a_w) - odds(a_l)))
    expected = (-beta / n_w * weight / (1 - p_w), beta / n_l * weight / (1 - p_l))
    assert gradients("orpo", row, beta=beta) == pytest.approx(expected)
    expected = (
        -beta / n_w * sigmoid(-beta * odds(a_w)) / (1 - p_w),
        beta / n_l * sigmoid(beta * odds(a_l)) / (1 - p_l),
    )
    assert gradients("asft", row, beta=beta) == pytest.approx(expected)
    expected = (-1 / n_w, p_l / (1 - p_l) / n_l)
    assert gradients("asft", row, beta=1.0) == pytest.approx(expected)
    for align, one_stage in (("orpo", "orpo_one_stage"), ("asft", "asft_one_stage")):
        chosen, rejected = gradients(align, row, beta=1.0)
        expected = (beta * chosen - 1 / n_w, beta * rejected)
        assert gradients(one_stage, row, preference_weight=beta) == pytest.approx(expected)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(row=PAIR)
def test_gradients_are_finite_differences(name, row):
    step = 1e-5
    if name == "hinge" and abs(1 - 0.1 * pairs(row).margins().item()) < 1e-3:
        return  # the kink
    for side, gradient in enumerate(gradients(name, row)):
        up, down = list(row), list(row)
        up[side] += step
        down[side] -= step
        above, below = losses(name, tuple(up), tuple(down))
        assert gradient == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", PAIRWISE)
@given(row=PAIR, shift=st.floats(-100, 100))
def test_a_pairwise_loss_reads_the_difference_of_its_scores_alone(name, row, shift):
    """Scores are what the loss subtracts: log-ratios, log-probs per token, log-odds."""
    chosen, rejected, r_w, r_l, n_w, n_l = row
    slope_w, slope_l = gradients(name, row)
    if OBJECTIVES[name].has_odds:
        slope_w *= n_w * -math.expm1(chosen / n_w)
        slope_l *= n_l * -math.expm1(rejected / n_l)
    elif OBJECTIVES[name].length_normalised:
        slope_w, slope_l = slope_w * n_w, slope_l * n_l
        moved = (chosen + shift * n_w, rejected + shift * n_l, r_w, r_l, n_w, n_l)
        assert losses(name, moved) == pytest.approx(losses(name, row), abs=1e-6)
    else:
        moved = (chosen + shift, rejected + shift, r_w, r_l, n_w, n_l)
        assert losses(name, moved) == pytest.approx(losses(name, row), abs=1e-6)
    assert slope_w + slope_l == pytest.approx(0, abs=1e-9 + 1e-6 * abs(slope_w))


@given(PAIR)
def test_asft_is_the_log_likelihood_of_the_chosen_and_of_not_the_rejected(row):
    a_w, a_l = row[0] / row[4], row[1] / row[5]
    expected = -a_w - math.log(-math.expm1(a_l))
    assert losses("asft", row, beta=1.0) == pytest.approx([expected])


@given(PAIR)
def test_orpo_is_asft_plus_the_log_of_an_exclusive_or_so_never_above_it(row):
    p_w, p_l = math.exp(row[0] / row[4]), math.exp(row[1] / row[5])
    (orpo,), (asft,) = losses("orpo", row, beta=1.0), losses("asft", row, beta=1.0)
    assert orpo <= asft + 1e-9
    exclusive = p_w * (1 - p_l) + p_l * (1 - p_w)
    if exclusive > 1e-300:
        assert orpo == pytest.approx(asft + math.log(exclusive), abs=1e-6)


@given(PAIR, BETAS)
def test_cal_dpo_is_sppo_and_dpo_without_beta(row, beta):
    (cal,) = losses("cal_dpo", row, beta=beta, cal_dpo_c=1.0)
    (sppo,), (dpo,) = losses("sppo", row, beta=beta), losses("dpo", row, beta=1.0)
    assert cal == pytest.approx(sppo + dpo)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_stationary_points(beta):
    half = 0.5 / beta
    assert gradients("ipo_sum", (half, 0.0, 0.0, 0.0, 1, 1), beta=beta) == (0.0, 0.0)
    assert gradients("ipo", (10 * half, 0.0, 0.0, 0.0, 10, 3), beta=beta) == (0.0, 0.0)
    assert gradients("sppo", (half, -half, 0.0, 0.0, 1, 1), beta=beta) == (0.0, 0.0)
    chosen, _ = gradients("nca", (LN_2 / beta, -1.0, 0.0, 0.0, 1, 1), beta=beta)
    assert chosen == pytest.approx(0)


@given(PAIR, BETAS)
def test_objectives_that_become_dpo(row, beta):
    dpo = losses("dpo", row, beta=beta)
    assert losses("cdpo", row, beta=beta, label_smoothing=0.0) == pytest.approx(dpo)
    assert losses("robust", row, beta=beta, label_smoothing=0.0) == pytest.approx(dpo)
    one_token = (*row[:4], 1, 1)
    assert losses("dpo_norm", one_token, beta=beta) == pytest.approx(dpo)
    assert losses("ipo", one_token, beta=beta) == pytest.approx(losses("ipo_sum", row, beta=beta))
    if row[2] >= row[3]:
        assert losses("hypo", row, beta=beta) == pytest.approx(dpo)


@given(PAIR, BETAS)
def test_robust_undoes_flipped_labels_on_average(row, beta):
    """(1 - eps) loss(pair) + eps loss(swapped pair) is the loss of the true labels."""
    swapped = (row[1], row[0], row[3], row[2], row[5], row[4])
    true, noisy = losses("robust", row, swapped, beta=beta, label_smoothing=0.2)
    assert 0.8 * true + 0.2 * noisy == pytest.approx(losses("dpo", row, beta=beta)[0])


@given(PAIR)
def test_swapping_the_sides_of_dpo_turns_the_margin_around(row):
    swapped = (row[1], row[0], row[3], row[2], row[5], row[4])
    loss, other = losses("dpo", row, swapped, beta=0.1)
    assert loss - other == pytest.approx(-0.1 * pairs(row).margins().item(), abs=1e-9)


def test_margins_are_differences_of_gammas():
    assert pairs(PAIR_A, PAIR_B).margins().tolist() == [4.0, -7.0]
    assert pairs(PAIR_A, PAIR_B).per_token_margins().tolist() == pytest.approx([0.3, -1 / 3])


SATURATING = sorted(set(OBJECTIVES) - {"ipo", "ipo_sum", "sppo", "cal_dpo"})
"""Without the squared ones, whose loss may well be 1e12 there."""


@pytest.mark.parametrize("name", SATURATING)
def test_extreme_log_probs_stay_finite_in_fp32(name):
    far = (0.0, -1e5, -1e5, 0.0, 7, 900)
    logps = pairs(far, (far[1], far[0], far[3], far[2], 900, 7), dtype=torch.float32)
    loss = LOSSES[name](logps, **DEFAULTS[name])
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    for side in (logps.policy_chosen_logps, logps.policy_rejected_logps):
        assert side.grad is None or torch.isfinite(side.grad).all()


def test_far_margins_of_dpo_in_fp32():
    far = (0.0, -1e5, -1e5, 0.0, 1, 1)
    logps = pairs(far, (far[1], far[0], far[3], far[2], 1, 1), dtype=torch.float32)
    assert LOSSES["dpo"](logps, beta=10.0).tolist() == pytest.approx([0.0, 2e6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [-1e-7, -1e-3, -0.5, -LN_2, -0.7, -5.0, -60.0, -700.0])
def test_log_of_one_minus_a_probability_at_both_ends(a, dtype):
    given_a = torch.tensor(a, dtype=dtype).item()  # what fp32 makes of it
    exact = math.log(-math.expm1(given_a)) if given_a > -30 else -math.exp(given_a)
    found = log1mexp(torch.tensor(a, dtype=dtype)).item()
    assert found == pytest.approx(exact, rel=3e-6 if dtype == torch.float32 else 1e-14, abs=1e-37)


def test_log_odds_keep_their_precision_beyond_where_a_clamped_probability_saturates():
    a = torch.tensor([-2e-7, -1e-6], dtype=torch.float64)
    assert log_odds(a).tolist() == pytest.approx([-math.log(2e-7), -math.log(1e-6)], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_completion_is_capped_and_counted(dtype):
    certain, tiny = 0.0, LARGEST_PER_TOKEN_LOGP / 2
    logps = pairs((certain, -30.0, 0, 0, 10, 20), (tiny, certain, 0, 0, 1, 20), PAIR_A, dtype=dtype)
    for name in ("orpo", "orpo_one_stage", "asft", "asft_one_stage"):
        loss = LOSSES[name](logps, **DEFAULTS[name])
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(logps.policy_chosen_logps.grad).all()
        assert torch.isfinite(logps.policy_rejected_logps.grad).all()
        assert own_metrics(logps, name)["odds_capped"].tolist() == [1.0, 2.0, 0.0]


def test_rewards_are_those_that_trl_logs():
    logps = pairs(PAIR_A)

    def of(name: str) -> list[float]:
        return [side.item() for side in rewards(logps, name, DEFAULTS[name])]

    assert of("dpo") == of("ipo") == of("dpo_norm") == pytest.approx([0.2, -0.2])
    assert of("simpo") == [2.0 * -2.0, 2.0 * -1.5]
    assert of("orpo") == [-2.0, -1.5]
    assert of("orpo_one_stage") == pytest.approx([0.1 * -2.0, 0.1 * -1.5])
    assert of("sft") == [-2.0, -1.5]


def test_metrics_of_its_own_by_hand():
    metrics = {k: v.item() for k, v in own_metrics(pairs(PAIR_A), "orpo_one_stage").items()}
    difference = odds(-2.0) - odds(-1.5)
    assert metrics == {
        "nll_loss": 2.0,
        "log_odds_chosen": pytest.approx(difference),
        "log_odds_ratio": pytest.approx(math.log(sigmoid(difference))),
        "odds_capped": 0.0,
    }
    assert own_metrics(pairs(PAIR_A), "dpo") == own_metrics(pairs(PAIR_A), "simpo") == {}
    assert list(own_metrics(pairs(PAIR_A), "sft")) == ["nll_loss"]


def test_the_start_values_that_fp16_cannot_hold():
    assert loss_at_reference("cal_dpo", {"beta": 3e-4, "cal_dpo_c": 1.0}) > LARGEST_FP16
    assert loss_at_reference("ipo_sum", {"beta": 1e-3}) > LARGEST_FP16
