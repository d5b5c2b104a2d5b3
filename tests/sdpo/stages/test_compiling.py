"""The decoder blocks through torch.compile: what it gained is said, and nothing else changes."""

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from sdpo.config import RunConfig, TrainingConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError, Interrupted
from sdpo.identity.canonical import digest_of
from sdpo.model.sequence_scorer import decoder_blocks
from sdpo.stages.compiling import compiled_blocks

from ..training_helpers.models import (
    RecordedEvents,
    ShortOfMemory,
    make_trainer,
    preference_task,
    run_steps,
    tiny_llama,
    weights_of,
)

# Dynamo looks at attributes of every tensor it meets, and torch warns of some of them.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")

TRAINING = TrainingConfig(learning_rate=1e-3, batch_size=4, precision="fp32", compile=True)


def test_the_blocks_are_those_that_repeat():
    blocks = decoder_blocks(tiny_llama())
    assert [type(block).__name__ for block in blocks] == ["LlamaDecoderLayer"] * 2


def test_without_the_setting_nothing_is_compiled():
    trainer = make_trainer(tiny_llama(), TRAINING.model_copy(update={"compile": False}))
    with compiled_blocks(trainer, preference_task(4), RecordedEvents()) as facts:
        assert facts is None


def test_a_compiler_that_is_not_there_is_said_and_the_models_own_code_trains(monkeypatch):
    def no_compiler(self, **_options):
        raise RuntimeError("no working C++ compiler\nwas found")

    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    policy, events = tiny_llama(), RecordedEvents()
    before = weights_of(policy)
    trainer = make_trainer(policy, TRAINING)
    with compiled_blocks(trainer, preference_task(4), events) as facts:
        assert all(block._compiled_call_impl is None for block in decoder_blocks(policy))
        assert facts.left == "RuntimeError: no working C++ compiler"
        left = run_steps(trainer, preference_task(4))
    (warning,) = [event for event in events.all if event["event"] == "warning"]
    assert warning["message"].startswith("training.compile is left")
    plain = run_steps(make_trainer(tiny_llama(), TRAINING), preference_task(4))
    assert left == plain
    assert before.keys() == weights_of(policy).keys()


def compile_with(monkeypatch, *, backward):
    """Let torch compile with backends of these, the forward pass as it is."""
    torch._dynamo.reset()
    own = torch.nn.Module.compile

    def forward(graph, inputs):
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: own(self, backend=backend, dynamic=True)
    )


def test_a_compiler_that_fails_inside_a_backward_pass_leaves_no_gradients(monkeypatch):
    begun = []

    def no_backward(graph, inputs):
        begun.extend(name for name, p in policy.named_parameters() if p.grad is not None)
        raise RuntimeError("no kernel for the backward pass")

    compile_with(monkeypatch, backward=no_backward)
    policy, events = tiny_llama(), RecordedEvents()
    trainer = make_trainer(policy, TRAINING)
    with compiled_blocks(trainer, preference_task(4), events) as facts:
        assert facts.left == "RuntimeError: no kernel for the backward pass"
        assert begun, "it failed when the pass had begun"
        assert all(parameter.grad is None for parameter in policy.parameters())
        left = run_steps(trainer, preference_task(4))
    plain = run_steps(make_trainer(tiny_llama(), TRAINING), preference_task(4))
    assert left == plain


def test_a_wish_to_stop_is_no_compilers_failure(monkeypatch):
    def stopped(self, **_options):
        raise Interrupted("the user asked")

    monkeypatch.setattr(torch.nn.Module, "compile", stopped)
    events = RecordedEvents()
    trainer = make_trainer(tiny_llama(), TRAINING)
    with (
        pytest.raises(Interrupted, match="the user asked"),
        compiled_blocks(trainer, preference_task(4), events),
    ):
        pytest.fail("nothing trains")
    assert not events.all


def test_short_memory_before_compiling_lowers_the_budget_as_training_does(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr("tests.sdpo.training_helpers.models.SequenceScorer", ShortOfMemory)
    trainer, told = make_trainer(tiny_llama(), TRAINING), []
    trainer.progress.on_lowered = told.append
    monkeypatch.setattr(ShortOfMemory, "limit", 160)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)
    with compiled_blocks(trainer, preference_task(10), RecordedEvents()) as facts:
        assert not facts.left
    assert told[-1].at(0, default=0) <= 160, "and the first micro-batch was cut by it"


def test_a_rank_without_pairs_of_its_own_is_timed_with_another(monkeypatch):
    trainer = make_trainer(tiny_llama(), TRAINING)
    monkeypatch.setattr(type(trainer), "cut", lambda *_, **__: [np.empty(0, dtype=np.int64)])
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)
    with compiled_blocks(trainer, preference_task(4), RecordedEvents()) as facts:
        assert not facts.left


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_training_has_the_same_losses_and_says_what_it_gained():
    torch._dynamo.reset()
    policy, events = tiny_llama(), RecordedEvents()
    trainer = make_trainer(policy, TRAINING)
    with compiled_blocks(trainer, preference_task(8), events) as facts:
        assert not facts.left, facts
        assert all(block._compiled_call_impl for block in decoder_blocks(policy))
        compiled = [line["loss"] for line in run_steps(trainer, preference_task(8))]
    assert all(block._compiled_call_impl is None for block in decoder_blocks(policy))
    plain = run_steps(make_trainer(tiny_llama(), TRAINING), preference_task(8))
    assert compiled == pytest.approx([line["loss"] for line in plain], rel=1e-4)
    (note,) = [event["message"] for event in events.all if event["event"] == "note"]
    assert note.startswith("compiled 2 decoder blocks: a micro-batch takes")


def test_sharded_training_is_not_compiled():
    values = RunConfig().model_dump()
    values["model"]["name_or_path"] = "x"
    overrides = ["training.compile=true", "launch.strategy=deepspeed_zero2", "launch.processes=2"]
    with pytest.raises(ConfigError, match=r"training\.compile with launch\.strategy deepspeed"):
        make_config(values, overrides=overrides)
    assert digest_of(TRAINING.model_dump()) != digest_of(TrainingConfig().model_dump())
