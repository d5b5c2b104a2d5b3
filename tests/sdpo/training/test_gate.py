import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from sdpo.config import TrainingConfig
from sdpo.errors import GateError
from sdpo.model.policy import add_adapters
from sdpo.training import gate

from ..training_helpers.models import (
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
    one, three = check(policy, task), check(policy, task, lanes=3)
    assert asdict(three) == pytest.approx(asdict(one), abs=1e-5)


def counted(policy) -> list[int]:
    """Return the list to which each forward of ``policy`` adds its number of tokens."""
    tokens: list[int] = []
    policy.model.register_forward_pre_hook(
        lambda _, __, options: tokens.append(options["input_ids"].numel()), with_kwargs=True
    )
    return tokens


def test_a_first_batch_that_agrees_with_its_cache_takes_one_forward(policy, task):
    tokens = counted(policy)
    result = check(policy, task, cached=np.array([], dtype=np.int64))
    assert len(tokens) == 1
    assert sum(tokens) >= task.completion_tokens[FIRST].sum()
    assert 0 < result.as_trained_nats == result.max_abs_difference_nats < result.tolerance_nats
    assert result.pairs == len(FIRST)


def test_so_do_the_others_of_the_cache_that_are_looked_at(policy, task):
    tokens = counted(policy)
    assert check(policy, task).pairs == 10
    assert len(tokens) == 2, "the first batch, and six others"


def test_one_that_does_not_is_asked_pair_by_pair_as_well(policy, task):
    task.reference[2, 0] += 0.01
    tokens = counted(policy)
    with pytest.raises(GateError, match=r"pair-02 has .chosen, rejected.* in the cache"):
        check(policy, task, cached=np.array([], dtype=np.int64))
    assert len(tokens) == 1 + len(FIRST) + 1


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


def in_bf16(policy, task, *, together: int):
    """The task with the policy's own values in bf16 for a reference, so many pairs in a forward."""
    trainer = make_trainer(policy, TrainingConfig(), precision="bf16")
    rows = np.split(np.arange(len(task.ids)), range(together, len(task.ids), together))
    with torch.no_grad():
        found = [trainer.logps(task, items).view(2, -1).T.numpy() for items in rows]
    return with_reference(task, np.concatenate(found))


@pytest.mark.parametrize("together", [1, 5])
def test_in_bf16_a_cache_may_differ_by_the_rounding_that_pairs_show_among_themselves(
    policy, task, together
):
    task = in_bf16(policy, task, together=together)
    result = check(policy, task, precision="bf16")
    assert result.max_abs_difference_nats <= result.tolerance_nats
    assert result.loss == pytest.approx(math.log(2), abs=0.05)


def test_in_bf16_a_value_that_is_off_by_half_a_nat_is_refused(policy, task):
    task = in_bf16(policy, task, together=5)
    shortest = min(range(4), key=lambda item: len(task.chosen[item]))
    task.reference[shortest, 0] += 0.5
    with pytest.raises(GateError, match=f"pair-{shortest:02d}"):
        check(policy, task, precision="bf16")


def test_in_bf16_a_cache_that_is_off_a_little_everywhere_is_refused():
    """Each pair is within what rounding may do to one; all of them together are not."""
    rng = np.random.default_rng(0)
    scored = rng.integers(50, 400, (40, 2))
    noise = gate.Noise(largest=0.05, root_mean_square=0.02)
    cached = -2.0 * scored
    names = [str(number) for number in range(40)]
    rounding = rng.normal(0, 0.02, scored.shape) * np.sqrt(scored)
    options = {"names": names, "precision": "bf16", "noise": noise}
    gate.compare_rows(cached + rounding, cached, scored, **options)
    stale = 0.08 * np.sqrt(scored)
    assert (stale < gate.tolerance(cached, scored, precision="bf16", noise=noise)).all()
    with pytest.raises(GateError, match="disagree before the first optimizer step"):
        gate.compare_rows(cached + stale, cached, scored, **options)


def test_the_tolerance_grows_with_the_sum_in_fp32_and_with_the_tokens_in_bf16():
    reference, scored = np.array([-100.0, -1e6]), np.array([4, 400])
    np.testing.assert_allclose(gate.tolerance(reference, scored, precision="fp32"), [1.1e-3, 1.001])
    noise = gate.Noise(largest=0.025, root_mean_square=0.01)
    allowed = gate.tolerance(reference, scored, precision="bf16", noise=noise)
    np.testing.assert_allclose(allowed, [0.2, 2.0])


class Jittery(torch.nn.Module):
    """A feed-forward part that scales what it gets by a random number in training, as a router
    with jitter does."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        noise = 1 + 0.1 * torch.rand(()) if self.training else 1
        return self.inner(states * noise)


def test_a_model_that_draws_at_random_in_training_is_refused(policy, task):
    policy.model.layers[0].mlp = Jittery(policy.model.layers[0].mlp)
    before = torch.get_rng_state()
    with pytest.raises(GateError, match="draws at random in training"):
        check(policy, task)
    assert torch.equal(torch.get_rng_state(), before)


class Sociable(torch.nn.Module):
    """A feed-forward part that adds a little of the average of all tokens of a forward."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states + 0.1 * states.mean((0, 1)))


def test_a_model_whose_forward_of_a_pair_depends_on_its_neighbours_is_refused(policy, task):
    policy.model.layers[0].mlp = Sociable(policy.model.layers[0].mlp)
    trainer = make_trainer(policy, TrainingConfig(layout="padded"))
    with pytest.raises(GateError, match="depends on its neighbours"):
        gate.check_as_trained(trainer, task, first_batch=np.arange(10), precision="fp32")


def test_pairs_of_frequencies_that_follow_the_length_are_the_same_alone_and_together(task):
    policy = tiny_llama(
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    )
    policy.config.max_position_embeddings = 12
    policy.model.rotary_emb.original_max_seq_len = 12
    policy.model.rotary_emb.max_seq_len_cached = 12
    trainer = make_trainer(policy, TrainingConfig(layout="padded"))
    options = {"first_batch": np.arange(10), "precision": "fp32"}
    assert gate.check_as_trained(trainer, task, **options) < 1e-4


def test_pairs_are_the_same_as_they_are_trained_and_alone(policy, task):
    trainer = make_trainer(policy, TrainingConfig(), lanes=2)
    assert gate.check_as_trained(trainer, task, first_batch=FIRST, precision="fp32") < 1e-3
