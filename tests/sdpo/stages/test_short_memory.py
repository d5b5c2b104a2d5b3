"""Short memory where a stage computes no losses: it loads, it saves, it writes completions."""

import pytest
import torch
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin

from sdpo.config import ProbeConfig, TrainingConfig
from sdpo.errors import Fault
from sdpo.stages import step

from ..training_helpers.models import RecordedEvents, accelerator
from ..training_helpers.runs import prepare_run

TRAINING = TrainingConfig(learning_rate=1e-3, batch_size=4, precision="fp32")
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError(FULL)


@pytest.fixture
def run(tmp_path):
    return prepare_run(tmp_path, pairs={0: 4, 1: 8})


def done(run, **fields) -> list[dict]:
    """The events of step 1."""
    accelerator()  # the state that an earlier test left behind is gone
    events = RecordedEvents()
    step.run(run.spec(1, TRAINING, **fields), events)
    return events.all


def test_a_model_that_does_not_fit_says_what_helps_to_load_it(run, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "to", full)
    with pytest.raises(Fault, match=r"out of memory in loading M_0: take a device") as caught:
        done(run)
    assert FULL in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(FULL)], ids=repr)
def test_a_model_that_is_not_saved_for_want_of_memory_leaves_no_model_and_says_what_helps(
    run, monkeypatch, error
):
    def save(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(Fault, match=r"in saving the model of step-1: .*checkpoint_every"):
        done(run)
    assert not run.folder.model(1).exists()
    assert run.folder.read_record("step-1") is None


def test_completions_that_do_not_fit_are_left_out_and_the_model_is_there(run, monkeypatch):
    monkeypatch.setattr(GenerationMixin, "generate", full)
    probe = ProbeConfig(completions=2)
    events = done(run, probe=probe, measure_output=True)
    [said] = [event["message"] for event in events if event["event"] == "warning"]
    assert said.startswith("no completions of M_1: out of memory with one of them")
    assert "probe.completion_tokens" in said
    assert run.folder.model(1).is_dir()
    assert (run.folder.probes / "M_1.parquet").exists()
    assert not (run.folder.probes / "M_1.completions.json").exists()


def test_another_fault_of_theirs_is_left_as_it_is(run, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(GenerationMixin, "generate", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        done(run, probe=ProbeConfig(completions=2), measure_output=True)
