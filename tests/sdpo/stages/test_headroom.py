"""Budgets of micro-batches: what is settled, how it is lowered, and that training does not care."""

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from hypothesis import given
from hypothesis import strategies as st

from sdpo.config import TrainingConfig
from sdpo.config.automatic import CPU_MICRO_BATCH_TOKENS
from sdpo.errors import Fault, LowMemoryError
from sdpo.stages.settle_budget import heaviest
from sdpo.store.budget import Budget, Reduction, halved, probe, read_budget, write_budget

from ..training_helpers.models import (
    ShortOfMemory,
    make_trainer,
    preference_task,
    run_steps,
    tiny_llama,
    weights_of,
)

TRAINING = TrainingConfig(learning_rate=1e-3, batch_size=4, epochs=2, precision="fp32")


def reduced(*steps_and_tokens, start=0):
    reductions = [Reduction(step=s, micro_batch_tokens=t) for s, t in steps_and_tokens]
    return Budget(micro_batch_tokens=start, reductions=tuple(reductions))


def test_a_budget_holds_from_the_step_on_at_which_it_was_lowered():
    budget = reduced((2, 50), (5, 20), start=100)
    assert [budget.at(step, default=7) for step in range(7)] == [100, 100, 50, 50, 50, 20, 20]
    assert Budget().at(3, default=7) == 7
    assert budget.lowered(5, to=10) == reduced((2, 50), (5, 10), start=100)


def test_a_budget_is_read_again_by_the_training_it_belongs_to_alone(tmp_path):
    budget = reduced((2, 50), start=100)
    write_budget(tmp_path / "step-1", budget, key="a")
    assert read_budget(tmp_path / "step-1", key="a") == budget
    assert read_budget(tmp_path / "step-1", key="b") is None
    assert read_budget(tmp_path / "step-2", key="a") is None
    (tmp_path / "step-1" / "budget.json").write_text('{"key": "a", "micro_')
    assert read_budget(tmp_path / "step-1", key="a") is None


def test_halving_ends_at_one_item():
    assert halved(100, largest=30) == 50
    assert halved(50, largest=30) == 30
    assert halved(30, largest=30) == 0


@given(st.integers(0, 10_000), st.integers(1, 5_000), st.integers(1, 10_000))
def test_a_trial_finds_what_fits_and_wastes_at_most_half(limit, start, most):
    asked = []

    def fits(tokens):
        asked.append(tokens)
        return tokens <= limit

    found = probe(fits, start=start, most=most)
    assert found == 1 or found <= min(limit, most)
    assert found >= min(limit, most) / 2
    assert len(asked) <= 30


def test_the_heaviest_micro_batch_takes_the_longest_items():
    costs = np.array([5, 9, 2, 6])
    order = np.array([1, 3, 0, 2])
    assert heaviest(order, costs, 1, "shared").tolist() == [1]
    assert heaviest(order, costs, 15, "shared").tolist() == [1, 3]
    assert heaviest(order, costs, 17, "padded").tolist() == [1]
    assert heaviest(order, costs, 99, "padded").tolist() == [1, 3, 0, 2]


def train_short(monkeypatch, limits, *, dropout=0.0, told=None, budget=None, lanes=1):
    """Train with ``limits[n]`` from optimizer step n on; returns losses, weights, the trainer."""
    monkeypatch.setattr("tests.sdpo.training_helpers.models.SequenceScorer", ShortOfMemory)
    policy = tiny_llama(attention_dropout=dropout)
    torch.manual_seed(0)
    trainer = make_trainer(policy, TRAINING, lanes=lanes)
    monkeypatch.setattr(ShortOfMemory, "limit", limits.get(0, 10**9))
    if budget:
        trainer.progress.budget = budget
    if told is not None:
        trainer.progress.on_lowered = told.append
    losses = []

    def on_step(number, total, metrics):
        losses.append(metrics["loss"])
        if number in limits:
            monkeypatch.setattr(ShortOfMemory, "limit", limits[number])

    trainer.train(preference_task(10), on_step=on_step)
    return losses, weights_of(policy), trainer


@pytest.mark.parametrize(
    ("lanes", "limits", "steps"), [(1, {0: 160, 2: 80}, [0, 3]), (2, {0: 80}, [0])]
)
def test_out_of_memory_halves_the_budget_and_the_loss_stays(monkeypatch, lanes, limits, steps):
    told = []
    losses, _, trainer = train_short(monkeypatch, limits, told=told, lanes=lanes)
    plain = [
        m["loss"] for m in run_steps(make_trainer(tiny_llama(), TRAINING), preference_task(10))
    ]
    assert losses == pytest.approx(plain, rel=1e-4)
    reductions = trainer.progress.budget.reductions
    assert [r.step for r in reductions] == steps, (
        "the last of each step is kept; batch 2 is a small one"
    )
    assert reductions[0].micro_batch_tokens in (CPU_MICRO_BATCH_TOKENS >> n for n in range(1, 9))
    assert told[-1] == trainer.progress.budget, "published before it is used"


def test_a_replay_with_the_same_reductions_is_the_same_to_the_last_bit(monkeypatch):
    losses, weights, trainer = train_short(monkeypatch, {0: 160, 2: 80}, dropout=0.2)
    again, same, _ = train_short(monkeypatch, {}, dropout=0.2, budget=trainer.progress.budget)
    assert again == losses
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_one_pair_that_does_not_fit_says_what_to_do(monkeypatch):
    with pytest.raises(Fault, match=r"one pair of .*\.gradient_checkpointing"):
        train_short(monkeypatch, {0: 3})
    with pytest.raises(Fault, match=r"set launch\.threads: 1, for one at a time"):
        train_short(monkeypatch, {0: 3}, lanes=2)


def test_among_several_processes_the_stage_ends_and_the_budget_is_told(monkeypatch):
    monkeypatch.setattr("tests.sdpo.training_helpers.models.SequenceScorer", ShortOfMemory)
    trainer, told = make_trainer(tiny_llama(), TRAINING), []
    trainer.progress.on_lowered = told.append
    monkeypatch.setattr(ShortOfMemory, "limit", 100)
    monkeypatch.setattr(trainer.accelerator.state, "distributed_type", DistributedType.MULTI_GPU)
    with pytest.raises(LowMemoryError, match=f"with {CPU_MICRO_BATCH_TOKENS // 2}"):
        run_steps(trainer, preference_task(10))
    assert [r.micro_batch_tokens for r in told[-1].reductions] == [CPU_MICRO_BATCH_TOKENS // 2]
