"""Short memory in every phase: what is not the user's loss goes on, what cannot says what helps."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.config.sampler import EXACT, SAMPLERS
from sdpo.errors import Fault, LowMemoryError
from sdpo.events import EventWriter
from sdpo.identity.model_digest import model_digest
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.model_names import NamedModel
from sdpo.scoring.divergence import divergence
from sdpo.scoring.sampling import Prompt, sample
from sdpo.stages import kl
from sdpo.store.budget import Budget
from sdpo.system.out_of_memory import Parts, is_out_of_memory
from sdpo.training import gate
from sdpo.training.trainer import Trainer

from ..training_helpers.models import (
    hf_pair_logps,
    make_trainer,
    preference_task,
    run_steps,
    tiny_llama,
    weights_of,
    with_reference,
)

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_short_memory_is_recognised_whoever_says_it(error):
    assert is_out_of_memory(error)
    wrapped = ValueError("compiling failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory")]
)
def test_other_faults_are_not_taken_for_short_memory(error):
    assert not is_out_of_memory(error)


def holding(most: int):
    """A computation that fails where it gets more than ``most`` items; what it was asked."""
    asked: list[int] = []

    def compute(items: np.ndarray) -> list[int]:
        asked.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return items.tolist()

    return compute, asked


def test_a_batch_that_does_not_fit_is_computed_in_halves_and_the_next_one_at_once():
    compute, asked = holding(most=3)
    parts = Parts(what="a test", cost=len)
    first = [result for _, result in parts.of(np.arange(10), compute)]
    assert [item for result in first for item in result] == list(range(10))
    assert asked == [10, 5, 2, 3, 2, 3]
    asked.clear()
    assert sum(len(items) for items, _ in parts.of(np.arange(10), compute)) == 10
    assert asked == [2, 3, 2, 3]


def test_one_item_that_does_not_fit_is_a_fault_that_says_what_helps():
    compute, _ = holding(most=0)
    with pytest.raises(Fault, match=r"out of memory in a test of one alone.*lora_r.*max_length"):
        list(Parts(what="a test", cost=len).of(np.arange(4), compute))


def test_processes_that_wait_for_each_other_compute_no_halves():
    compute, asked = holding(most=3)
    with pytest.raises(Fault, match=r"lower training\.micro_batch_tokens"):
        list(Parts(what="a test", cost=len, in_step=True).of(np.arange(4), compute))
    assert asked == [4]


def test_another_error_is_left_as_it_is():
    def broken(items: np.ndarray) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(Parts(what="a test", cost=len).of(np.arange(4), broken))


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch):
    """Sets how many tokens a forward may have, with or without gradients."""
    real = SequenceScorer.forward

    def limit(tokens: int) -> None:
        def forward(self, batch):
            if batch.input_ids.numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return real(self, batch)

        monkeypatch.setattr(SequenceScorer, "forward", forward)

    return limit


def own_task(policy, pairs: int = 10):
    task = preference_task(pairs)
    with torch.no_grad():
        return with_reference(task, hf_pair_logps(policy, task, np.arange(pairs)).numpy())


def test_the_gate_goes_on_in_halves(small_device):
    policy = tiny_llama()
    task = own_task(policy)
    trainer = make_trainer(policy, TrainingConfig())
    options = {"first_batch": np.arange(8), "precision": "fp32", "seed": 1, "cached": np.arange(10)}
    whole = gate.check(trainer, task, **options)
    small_device(120)
    parts = gate.check(trainer, task, **options)
    # What is computed together is rounded together: the sums differ in their last bits.
    rounded = {"loss": 1e-6, "excess_loss": 1e-6}
    rounded |= dict.fromkeys(("max_abs_difference_nats", "as_trained_nats"), 1e-5)
    for name, nats in rounded.items():
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=nats), name
    same = {name: getattr(whole, name) for name in rounded}
    assert replace(parts, **same) == whole


def test_the_loss_on_the_reserve_is_the_same_in_halves(small_device):
    task = preference_task(10)
    trainer = make_trainer(tiny_llama(), TrainingConfig())
    whole = trainer.evaluate(task)
    small_device(120)
    assert trainer.evaluate(task) == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_kl_is_the_same_in_halves(monkeypatch):
    policy, other = tiny_llama().eval(), tiny_llama(seed=1).eval()
    sequences = preference_task(6).sequences(np.arange(6))
    options = {"pad_token_id": 0, "device": torch.device("cpu"), "micro_batch_tokens": 10_000}
    whole = divergence(policy, other, sequences, **options)
    calls = _short_at_first(monkeypatch, policy.model, times=3)
    monkeypatch.setattr("sdpo.scoring.divergence.micro_batches", lambda items, *_, **__: ([items],))
    found = divergence(policy, other, sequences, **options)
    assert len(calls) > 3
    np.testing.assert_allclose(found.kl, whole.kl, rtol=1e-5)
    np.testing.assert_array_equal(found.tokens, whole.tokens)


def test_samples_are_the_same_in_halves(monkeypatch):
    policy = tiny_llama().eval()
    ids = np.arange(1, 6, dtype=np.int32)
    prompts = [Prompt(key=f"{number:064x}", ids=ids, sample=number) for number in range(8)]
    options = {
        "sampler": SAMPLERS[EXACT],
        "seed": 3,
        "max_new_tokens": 6,
        "positions": 0,
        "ends": [],
        "pad_token_id": 0,
        "device": torch.device("cpu"),
        "micro_batch_tokens": 10_000,
    }
    whole = sample(policy, prompts, **options)
    _short_at_first(monkeypatch, policy.model, times=2)
    found = sample(policy, prompts, **options)
    assert [c.ids.tolist() for c in found] == [c.ids.tolist() for c in whole]


def _short_at_first(monkeypatch, module: torch.nn.Module, *, times: int) -> list[int]:
    """The first forwards of ``module`` run out of memory; what rows each forward had."""
    calls: list[int] = []
    real = module.forward

    def forward(*args, **kwargs):
        calls.append(len(kwargs["input_ids"]))
        if len(calls) <= times:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "forward", forward)
    return calls


def short_optimizer(trainer: Trainer, monkeypatch) -> None:
    """The optimizer has no room for its states."""

    def step(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")

    monkeypatch.setattr(trainer.optimizer, "step", step)


def test_states_of_the_optimizer_that_do_not_fit_leave_a_smaller_budget_to_another_stage(
    monkeypatch,
):
    policy = tiny_llama()
    trainer = make_trainer(policy, TrainingConfig(batch_size=4, warmup_ratio=0))
    told: list[Budget] = []
    trainer.progress.on_lowered = told.append
    before = weights_of(policy)
    short_optimizer(trainer, monkeypatch)
    with pytest.raises(LowMemoryError, match=r"optimizer step 1 .*the optimizer's states"):
        run_steps(trainer, preference_task(8))
    assert [r.micro_batch_tokens for r in told[0].reductions] == [512]
    assert all(torch.equal(value, before[name]) for name, value in weights_of(policy).items())


def test_states_of_the_optimizer_that_never_fit_are_a_fault_that_says_what_helps(monkeypatch):
    training = TrainingConfig(batch_size=4, warmup_ratio=0, micro_batch_tokens=8)
    trainer = make_trainer(tiny_llama(), training)
    short_optimizer(trainer, monkeypatch)
    with pytest.raises(Fault, match=r"the optimizer's states|gradient_checkpointing"):
        run_steps(trainer, preference_task(8))


def kl_load(folder: Path):
    tiny_llama().save_pretrained(folder)
    named = NamedModel(name="M_1", folder=folder, digest=model_digest(folder))
    spec = SimpleNamespace(launch=LaunchConfig(device="cpu"), model=ModelConfig(name_or_path="x"))
    return kl._load(spec, named, EventWriter(None))


def test_models_whose_kl_is_measured_leave_no_copies_in_autocast(tmp_path):
    """Autocast keeps casts of leaves that train until its end, which is that of the stage."""
    model = kl_load(tmp_path / "model")
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_for_kl_that_does_not_fit_says_what_helps(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(PreTrainedModel, "to", full)
    with pytest.raises(Fault, match=r"in loading M_1: .*two models.*probe\.kl_prompts: 0"):
        kl_load(tmp_path / "model")
