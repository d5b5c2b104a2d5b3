"""FSDP2 with `precision: bf16` computes with bf16 copies and trains fp32 weights.

Beside it stands one process whose scorer makes the copies by a cast, which autograd goes back
through: its gradients come back in bf16, pair by pair, and are added in fp32. And a model in
float64, by its own logits.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.model.policy import load_policy
from sdpo.model.prepare import prepare
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.training.trainer import Trainer

from ..training_helpers import models
from ..training_helpers.models import (
    RecordedEvents,
    double,
    hf_pair_logps,
    make_trainer,
    preference_task,
)
from ..training_helpers.ranks import RANKS, on_ranks
from ..training_helpers.runs import PreparedRun, prepare_run

LAUNCH = LaunchConfig(processes=RANKS, strategy="fsdp2", device="cpu", threads=1)
TRAINING = TrainingConfig(
    precision="bf16",
    batch_size=4,
    epochs=10,
    learning_rate=1e-4,
    max_grad_norm=1.0,
    seed=3,
    micro_batch_tokens=1,
)
"""Twenty optimizer steps, clipped; a pair is a micro-batch of its own on one rank as on two."""
PAIRS = 8


class Copying(SequenceScorer):
    """A scorer of fp32 weights that computes with bf16 copies, made in every forward."""

    def forward(self, batch, **options):
        if not hasattr(self, "_of_copies"):
            object.__setattr__(self, "_of_copies", SequenceScorer(self.model, low=True))
        copies = {name: p.bfloat16() for name, p in self.named_parameters()}
        return functional_call(self._of_copies, copies, (batch,), options)


def trained(trainer: Trainer) -> dict:
    """The gradients of the first batch, the curve of all steps, and the weights after them."""
    task, batch = preference_task(PAIRS), np.arange(PAIRS)
    trainer.scorer.train()
    first = trainer._gradients(task, batch, trainer.costs(task), step=0)
    gradients = {name: whole(p.grad) for name, p in parameters(trainer)}
    trainer.optimizer.zero_grad(set_to_none=True)
    curve: list[tuple[float, float]] = []
    trainer.train(
        task, on_step=lambda _n, _of, line: curve.append((line["loss"], line["grad_norm"]))
    )
    return {
        "loss": first["loss"],
        "gradients": gradients,
        "curve": curve,
        "weights": {name: whole(p) for name, p in parameters(trainer)},
        "dtypes": {str(p.dtype) for _, p in parameters(trainer)},
    }


def parameters(trainer: Trainer):
    return trainer.scorer.named_parameters()


def whole(tensor: torch.Tensor) -> np.ndarray:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().double().numpy().copy()


def on_rank(rank: int, tell, run: PreparedRun) -> None:
    from sdpo.stages.session import open_session

    session = open_session(run.spec(1, TRAINING, launch=LAUNCH), RecordedEvents())
    found = trained(session.trainer(TRAINING))
    session.wait()
    tell(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> PreparedRun:
    return prepare_run(tmp_path_factory.mktemp("run"), pairs={0: 2, 1: 4})


@pytest.fixture(scope="module")
def shared(run) -> dict:
    first, second = on_ranks(on_rank, run)
    assert first["curve"] == second["curve"]
    return first


@pytest.fixture(scope="module")
def single(run) -> dict:
    """One process with :class:`Copying`; nothing of FSDP2 is in it."""
    policy = load_policy(run.model, model=ModelConfig(name_or_path=str(run.model)))
    with torch.autocast("cpu", torch.bfloat16):
        prepare(policy, device=torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "SequenceScorer", Copying)
        trainer = make_trainer(policy, TRAINING)
    return trained(replace(trainer, layout="shared"))


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference in parts of the norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_gradients_are_those_of_bf16_copies_added_in_fp32(single, shared):
    assert shared["loss"] == pytest.approx(single["loss"], rel=1e-6)
    assert shared["gradients"].keys() == single["gradients"].keys()
    for name, gradient in single["gradients"].items():
        assert apart(shared["gradients"][name], gradient) <= 1e-5, name  # added in bf16: 4e-3


def test_loss_and_gradient_are_those_of_float64_but_for_the_rounding_of_bf16(run, shared):
    policy = double(load_policy(run.model, model=ModelConfig(name_or_path=str(run.model))))
    task = preference_task(PAIRS)
    loss = task.losses(
        hf_pair_logps(policy, task, np.arange(PAIRS)).T.reshape(-1), np.arange(PAIRS)
    ).loss.mean()
    loss.backward()
    assert shared["loss"] == pytest.approx(float(loss.detach()), abs=0.03)
    pairs = [
        (shared["gradients"][f"model.{name}"].ravel(), p.grad.numpy().ravel())
        for name, p in policy.named_parameters()
    ]
    found, expected = (np.concatenate(side) for side in zip(*pairs, strict=True))
    assert apart(found, expected) < 0.05
    assert np.dot(found, expected) > 0.998 * np.linalg.norm(found) * np.linalg.norm(expected)


def test_twenty_clipped_steps_are_those_of_one_process(single, shared):
    """The sums of two ranks have other last bits in fp32. Where a weight is so near the middle of
    two numbers of bf16 that these decide, its copy is another: then losses differ by more."""
    assert len(shared["curve"]) == 20
    np.testing.assert_allclose(shared["curve"][:4], single["curve"][:4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shared["curve"], single["curve"], rtol=1e-2, atol=1e-3)
    assert max(norm for _, norm in single["curve"]) > TRAINING.max_grad_norm, "they are clipped"
    losses = [loss for loss, _ in single["curve"]]
    assert max(losses) - min(losses) > 0.05, "the model learns something"


def test_what_trains_is_fp32(run, single, shared):
    """Updates of 1e-4 and less would be lost in bf16, whose steps at 0.05 are 2e-4."""
    assert shared["dtypes"] == {"torch.float32"}
    policy = load_policy(run.model, model=ModelConfig(name_or_path=str(run.model)))
    before = {f"model.{name}": whole(p) for name, p in policy.named_parameters()}
    for name, weight in single["weights"].items():
        change = weight - before[name]
        assert np.linalg.norm(change) > 0, name
        assert apart(shared["weights"][name] - before[name], change) < 1e-2, name
