import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpo import gate
from sdpo.config import TrainingConfig
from sdpo.errors import GateError
from sdpo.policy import add_adapters

from .training_helpers.models import (
    double,
    hf_pair_logps,
    make_trainer,
    preference_task,
    tiny_llama,
    with_reference,
)

FIRST = np.arange(4)


@pytest.fixture
def policy():
    return tiny_llama()


@pytest.fixture
def task(policy):
    """Ten pairs whose reference is the policy itself, by its own logits in float64."""
    pairs = preference_task(10)
    with torch.no_grad():
        return with_reference(pairs, hf_pair_logps(double(policy), pairs, np.arange(10)).numpy())


def check(policy, task, *, precision="fp32", cached=None, lanes=1):
    trainer = make_trainer(policy, TrainingConfig(), precision=precision, lanes=lanes)
    cached = np.arange(len(task.ids)) if cached is None else cached
    return gate.check(trainer, task, first_batch=FIRST, precision=precision, seed=1, cached=cached)


def test_a_policy_that_is_its_reference_passes_with_a_loss_of_ln_2(policy, task):
    result = check(policy, task)
    assert result.loss == pytest.approx(math.log(2), abs=1e-4)
    assert result.expected_loss == math.log(2)
    assert result.max_abs_difference_nats < result.tolerance_nats < 2e-3
    assert result.pairs == 10


def test_the_gate_says_the_same_in_lanes(policy, task):
    assert check(policy, task, lanes=3) == check(policy, task)


def test_at_most_32_pairs_beside_the_first_batch_are_looked_at(policy):
    pairs = preference_task(50)
    with torch.no_grad():
        reference = hf_pair_logps(policy, pairs, np.arange(50)).numpy()
    assert check(policy, with_reference(pairs, reference)).pairs == 4 + 32


def test_pairs_that_were_scored_a_moment_ago_are_looked_at_in_the_first_batch_alone(policy, task):
    cached = np.array([0, 6, 7])
    assert check(policy, task, cached=cached).pairs == 4 + 2
    task.reference[7, 1] -= 0.01
    with pytest.raises(GateError, match="pair-07"):
        check(policy, task, cached=cached)


def test_a_difference_within_the_tolerance_passes_and_is_recorded(policy, task):
    task.reference[1, 0] += 7e-4
    assert check(policy, task).max_abs_difference_nats == pytest.approx(7e-4, abs=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1e-6])
@pytest.mark.parametrize("row", [2, 8])
def test_a_stale_value_stops_the_step_with_its_pair_and_its_numbers(policy, task, row, beta):
    """In the first batch or beyond it, and with a beta that hides it from the loss."""
    now = task.reference[row, 1]
    task.reference[row, 1] = stale = np.float32(now - 0.01)
    with pytest.raises(GateError, match=f"pair-{row:02d}") as error:
        check(policy, replace(task, settings={"beta": beta}))
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", str(error.value))]
    _, policy_rejected, _, cached_rejected, *allowed = numbers
    assert policy_rejected == pytest.approx(now, abs=1e-4)
    assert cached_rejected == stale
    assert allowed == pytest.approx([1e-3, 1e-3], rel=0.2)


def test_a_value_that_is_not_a_number_stops_the_step(policy, task):
    task.reference[3, 0] = np.nan
    with pytest.raises(GateError, match="pair-03"):
        check(policy, task)


def test_another_model_than_that_of_the_cache_stops_the_step(task):
    with pytest.raises(GateError):
        check(tiny_llama(seed=1), task)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_fresh_adapters_pass_and_used_ones_do_not(policy, task):
    adapted = add_adapters(policy, TrainingConfig(lora_r=4, lora_dropout=0.5))
    assert check(adapted, task).max_abs_difference_nats < 1e-3
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    with pytest.raises(GateError):
        check(adapted, task)


def test_bf16_is_judged_by_its_own_tolerance(policy, task):
    """Autocast on CPU against fp32 values: rounding passes, half a nat more does not."""
    result = check(policy, task, precision="bf16")
    assert 1e-3 < result.max_abs_difference_nats < result.tolerance_nats
    assert result.loss == pytest.approx(math.log(2), abs=0.1)
    shortest = min(range(4), key=lambda item: len(task.chosen[item]))
    task.reference[shortest, 0] += 0.05 * math.sqrt(len(task.chosen[shortest])) + 0.3
    with pytest.raises(GateError, match=f"pair-{shortest:02d}"):
        check(policy, task, precision="bf16")


def test_the_tolerance_grows_with_the_sum_in_fp32_and_with_the_tokens_in_bf16():
    reference, scored = np.array([-100.0, -1e6]), np.array([4, 400])
    np.testing.assert_allclose(gate.tolerance(reference, scored, precision="fp32"), [1.1e-3, 1.001])
    np.testing.assert_allclose(gate.tolerance(reference, scored, precision="bf16"), [0.1, 1.0])
