"""Budgets of micro-batches: what is settled, how it is lowered, and that training does not care."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from hypothesis import given
from hypothesis import strategies as st

from sdpo.config import TrainingConfig
from sdpo.config.automatic import CPU_MICRO_BATCH_TOKENS
from sdpo.errors import Fault, LowMemoryError
from sdpo.stages.settle_budget import heaviest, settle_budget
from sdpo.store.budget import Budget, Reduction, halved, probe, read_budget, write_budget

from ..training_helpers.models import (
    RecordedEvents,
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


class Counted(ShortOfMemory):
    """A model on a device whose memory is counted in bytes: gradients, and 1,000 for each padded
    token of a micro-batch."""

    bytes_of_gradients: ClassVar[list[int]] = []
    peak = 0

    def forward(self, batch):
        trained = [p for p in self.parameters() if p.requires_grad]
        held = sum(p.grad.numel() * 4 for p in trained if p.grad is not None)
        self.bytes_of_gradients.append(held)
        Counted.peak = held + 1000 * batch.input_ids.numel()
        return super().forward(batch)


@pytest.fixture
def counted_device(monkeypatch):
    """The device that :class:`Counted` computes on has room for what was asked of it: a function
    that sets its bytes."""
    monkeypatch.setattr("tests.sdpo.training_helpers.models.SequenceScorer", Counted)
    monkeypatch.setattr(Counted, "bytes_of_gradients", [])
    monkeypatch.setattr("sdpo.stages.settle_budget._is_open", lambda trainer: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: Counted.peak)

    def holds(size):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(size / 0.85), 0))

    return holds


def settled(trainer, task, folder):
    settle_budget(trainer, task, folder=folder, key="k", given=None, events=RecordedEvents())
    return trainer.progress.budget.micro_batch_tokens


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_what_is_tried_first_has_the_gradients_of_another_micro_batch_beside_it(
    counted_device, tmp_path, optimizer
):
    training = TRAINING.model_copy(update={"optimizer": optimizer, "batch_size": 10})
    trainer, task = make_trainer(tiny_llama(), training), preference_task(10)
    longest = np.sort(trainer.costs(task))[::-1]
    weights = 4 * sum(p.numel() for p in trainer.scorer.parameters())
    states = (2 if optimizer == "adamw" else 1) * weights
    counted_device(1000 * int(longest[0]) * 4 + weights + states)
    tokens = settled(trainer, task, tmp_path)
    assert set(Counted.bytes_of_gradients) == {weights}
    assert longest[0] <= tokens <= 4 * longest[0]
    assert all(p.grad is None for p in trainer.scorer.parameters()), "training starts with none"


def test_gradients_that_do_not_fit_leave_one_item_to_a_micro_batch(
    counted_device, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    counted_device(10**12)
    trainer = make_trainer(tiny_llama(), TRAINING)
    monkeypatch.setattr(torch, "zeros_like", full)
    assert settled(trainer, preference_task(10), tmp_path) == 1
    assert not Counted.bytes_of_gradients


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
