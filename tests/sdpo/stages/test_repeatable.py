"""Kernels whose sums have no order are told to have one, where they are used and there is one."""

import itertools

import pytest
import torch

from sdpo.config import LaunchConfig, TrainingConfig
from sdpo.processes import supervisor
from sdpo.processes.stage_specs import ExportSpec
from sdpo.stages import repeatable as module
from sdpo.stages.repeatable import needs_an_order, repeatable

from ..training_helpers.models import (
    RecordedEvents,
    make_trainer,
    preference_task,
    run_steps,
    tiny_llama,
)

TRAINING = TrainingConfig(learning_rate=1e-3, batch_size=4, precision="fp32")


def test_torchs_attention_over_padded_rows_on_a_gpu_is_what_needs_an_order():
    every = itertools.product(
        ("cpu", "cuda"), ("sdpa", "eager", "flash_attention_2"), ("padded", "packed", "shared")
    )
    names = ("device", "attention", "layout")
    needy = [way for way in every if needs_an_order(**dict(zip(names, way, strict=True)))]
    assert needy == [("cuda", "sdpa", "padded")]


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_stages_on_a_gpu_have_the_environment_that_an_order_needs(tmp_path, monkeypatch, own):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own)
    spec = ExportSpec.model_construct(launch=LaunchConfig(device="cuda"))
    environment = supervisor.stage_environment(spec)
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == (own or ":4096:8")
    assert environment["FLASH_ATTENTION_DETERMINISTIC"] == "1"


@pytest.fixture
def needy(monkeypatch):
    """This device is one whose kernels have no order of themselves."""
    monkeypatch.setattr(module, "needs_an_order", lambda **_: True)


def state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def test_where_there_is_one_it_is_asked_for_as_long_as_the_training_lasts(needy):
    trainer, task = make_trainer(tiny_llama(), TRAINING), preference_task(8)
    before, events = state(), RecordedEvents()
    with repeatable(trainer, task, events, attention="sdpa"):
        assert state() == (True, False)
        assert all(p.grad is None for p in trainer.scorer.parameters())
        asked = run_steps(trainer, task)
    assert state() == before
    assert asked == run_steps(make_trainer(tiny_llama(), TRAINING), task)
    assert not events.all


def test_where_nothing_needs_one_torch_is_as_it_was():
    before = state()
    trainer = make_trainer(tiny_llama(), TRAINING)
    with repeatable(trainer, preference_task(4), RecordedEvents(), attention="sdpa"):
        assert state() == before


class Unordered(torch.nn.Module):
    """A layer with an operation that torch refuses to do in an order."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, states):
        out = self.layer(states)
        place = torch.zeros(1, dtype=torch.long)
        return out + torch.zeros(1).put_(place, torch.zeros(1), accumulate=False)


def test_a_model_with_an_operation_that_has_none_trains_without_and_that_is_said(needy):
    def policy():
        model = tiny_llama()
        model.model.layers[0].mlp = Unordered(model.model.layers[0].mlp)
        return model

    trainer, task, events = make_trainer(policy(), TRAINING), preference_task(8), RecordedEvents()
    drawn = torch.get_rng_state()
    with repeatable(trainer, task, events, attention="sdpa"):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.equal(torch.get_rng_state(), drawn)
        went_on = run_steps(trainer, task)
    (warning,) = events.all
    assert "put_ does not have a deterministic implementation" in warning["message"]
    assert went_on == run_steps(make_trainer(policy(), TRAINING), task)


def test_another_fault_of_the_trial_is_left_as_it_is_and_torch_too(needy, monkeypatch):
    trainer, before = make_trainer(tiny_llama(), TRAINING), state()

    def broken(*_args, **_options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(type(trainer.scorer), "forward", broken)
    with (
        pytest.raises(RuntimeError, match="shapes cannot"),
        repeatable(trainer, preference_task(4), RecordedEvents(), attention="sdpa"),
    ):
        raise AssertionError("the training began")
    assert state() == before
