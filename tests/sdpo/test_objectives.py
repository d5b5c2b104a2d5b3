import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo.objectives import OBJECTIVES, PairLogps, dpo

PAIR_A = (-20.0, -30.0, -22.0, -28.0)
PAIR_B = (-45.0, -36.0, -40.0, -38.0)
"""Policy chosen, policy rejected, reference chosen, reference rejected."""

NATS = st.floats(-200, 0)


def pairs(*rows: tuple[float, ...], dtype: torch.dtype = torch.float64) -> PairLogps:
    columns = torch.tensor(rows, dtype=dtype).T
    return PairLogps(
        policy_chosen_logps=columns[0].clone().requires_grad_(),
        policy_rejected_logps=columns[1].clone().requires_grad_(),
        reference_chosen_logps=columns[2],
        reference_rejected_logps=columns[3],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dpo_of_the_worked_pairs(dtype):
    loss = dpo(pairs(PAIR_A, PAIR_B, dtype=dtype), beta=0.1)
    assert loss.tolist() == pytest.approx([0.513015, 1.103186], abs=1e-6)


def test_margins_are_differences_of_gammas():
    assert pairs(PAIR_A, PAIR_B).margins().tolist() == [4.0, -7.0]


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
def test_where_policy_is_reference_the_loss_is_ln_2_and_the_gradient_half_of_beta(beta):
    logps = pairs((-20.0, -30.0, -20.0, -30.0), (-9.0, -3.0, -9.0, -3.0))
    loss = dpo(logps, beta=beta)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert OBJECTIVES["dpo"].loss_at_reference == math.log(2)
    assert logps.policy_chosen_logps.grad.tolist() == pytest.approx([-beta / 2] * 2)
    assert logps.policy_rejected_logps.grad.tolist() == pytest.approx([beta / 2] * 2)


@given(NATS, NATS, NATS, NATS, st.sampled_from([0.01, 0.1, 0.5]))
def test_gradients_are_finite_differences(a, b, c, d, beta):
    logps = pairs((a, b, c, d))
    dpo(logps, beta=beta).sum().backward()
    step = 1e-4

    def slope(side: int) -> float:
        shifted = [[a, b, c, d], [a, b, c, d]]
        shifted[0][side] += step
        shifted[1][side] -= step
        up, down = dpo(pairs(*map(tuple, shifted)), beta=beta).tolist()
        return (up - down) / (2 * step)

    assert logps.policy_chosen_logps.grad.item() == pytest.approx(slope(0), abs=1e-6)
    assert logps.policy_rejected_logps.grad.item() == pytest.approx(slope(1), abs=1e-6)


@given(NATS, NATS, NATS, NATS, st.floats(-100, 100))
def test_a_shift_of_both_sides_changes_nothing(a, b, c, d, shift):
    before = dpo(pairs((a, b, c, d)), beta=0.1).item()
    assert dpo(pairs((a + shift, b + shift, c, d)), beta=0.1).item() == pytest.approx(before)
    assert dpo(pairs((a, b, c + shift, d + shift)), beta=0.1).item() == pytest.approx(before)


@given(NATS, NATS, NATS, NATS)
def test_gradients_in_score_space_sum_to_zero(a, b, c, d):
    logps = pairs((a, b, c, d))
    dpo(logps, beta=0.3).sum().backward()
    assert logps.policy_chosen_logps.grad + logps.policy_rejected_logps.grad == pytest.approx(0)


@given(NATS, NATS, NATS, NATS)
def test_swapping_the_sides_turns_the_margin_around(a, b, c, d):
    loss, swapped = dpo(pairs((a, b, c, d), (b, a, d, c)), beta=0.1).tolist()
    margin = (a - b) - (c - d)
    assert loss - swapped == pytest.approx(-0.1 * margin, abs=1e-9)


def test_extreme_margins_stay_finite_in_fp32():
    far = (0.0, -1e5, -1e5, 0.0)
    logps = pairs(far, (far[1], far[0], far[3], far[2]), dtype=torch.float32)
    loss = dpo(logps, beta=10.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0, 2e6])
    assert np.isfinite(logps.policy_chosen_logps.grad.numpy()).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_recorded_loss_at_the_reference_is_that_of_the_objective(name):
    objective = OBJECTIVES[name]
    loss = objective.loss(pairs((-20.0, -30.0, -20.0, -30.0)), beta=0.1)
    assert loss.item() == pytest.approx(objective.loss_at_reference)
