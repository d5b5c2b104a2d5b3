"""Ranks that try something each for itself go on the same way, whichever of them it failed on."""

import os

import numpy as np
import pytest

from sdpo.config import LaunchConfig, TrainingConfig
from sdpo.errors import Fault

from ..training_helpers.models import (
    RecordedEvents,
    preference_task,
    tiny_llama,
)
from ..training_helpers.ranks import RANKS, on_ranks
from ..training_helpers.runs import PreparedRun, prepare_run

TWO = LaunchConfig(processes=RANKS, strategy="ddp", device="cpu", threads=1)


def settled(rank: int, tell, run: PreparedRun, failing: int) -> None:
    """Tells a rank's layout and its warnings, where the trial fails on one of them."""
    from sdpo.model.layouts import attention
    from sdpo.stages.layout_trial import settle_layout
    from sdpo.stages.session import open_session
    from sdpo.stages.step import _rows_to_come

    events = RecordedEvents()
    training = TrainingConfig(precision="fp32", batch_size=4)
    session = open_session(run.spec(1, training, launch=TWO), events)
    own = attention._on_cpu

    def failed(*args):
        raise RuntimeError(f"no kernel on rank {rank}")

    attention._on_cpu = failed if rank == failing else own
    tokens = run.token_file()
    settle_layout(session, tokens, _rows_to_come(session.spec), events)
    session.close()
    tell((session.layout, [e["message"] for e in events.all if e["event"] == "warning"]))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_layouts_trial_that_fails_on_one_rank_gives_all_of_them_the_plain_one(tmp_path, failing):
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    found = on_ranks(settled, run, failing)
    assert [layout for layout, _ in found] == ["padded", "padded"]
    for _, warnings in found:
        (warning,) = warnings
        assert f"no kernel on rank {failing}" in warning


def test_a_trial_that_passes_on_all_of_them_leaves_the_layout(tmp_path):
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    assert on_ranks(settled, run, None) == [("shared", [])] * RANKS


def opened_with(rank: int, tell, run: PreparedRun) -> None:
    """Tells why a stage does not begin in an environment that keeps accelerate from DeepSpeed."""
    from sdpo.stages.session import open_session

    os.environ["ACCELERATE_USE_CPU"] = "true"
    launch = TWO.model_copy(update={"strategy": "deepspeed_zero2"})
    with pytest.raises(Fault) as caught:
        open_session(run.spec(1, TrainingConfig(precision="fp32"), launch=launch), RecordedEvents())
    tell(str(caught.value))


def test_a_variable_that_would_make_zero_another_strategy_is_refused(tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    for said in on_ranks(opened_with, run):
        assert "deepspeed_zero2, and accelerate set up MULTI_CPU: look for variables ACC" in said


def compiled(rank: int, tell, failing: int) -> None:
    """Tells what a rank's record says of compiling that fails on one of them."""
    import torch
    from accelerate import Accelerator

    from sdpo.model.sequence_scorer import SequenceScorer, decoder_blocks
    from sdpo.stages.compiling import compiled_blocks
    from sdpo.training.optimizer import make_optimizer
    from sdpo.training.trainer import Trainer

    def compile_of_rank(self, **_options):
        if rank == failing:
            raise RuntimeError(f"no compiler on rank {rank}")
        self._compiled_call_impl = self._call_impl

    torch.nn.Module.compile = compile_of_rank
    training = TrainingConfig(precision="fp32", batch_size=4, compile=True)
    accelerator, policy = Accelerator(cpu=True), tiny_llama()
    scorer = SequenceScorer(policy)
    scorer, optimizer = accelerator.prepare(scorer, make_optimizer(scorer, training))
    trainer = Trainer(
        accelerator=accelerator,
        scorer=scorer,
        optimizer=optimizer,
        training=training,
        pad_token_id=0,
    )
    with compiled_blocks(trainer, preference_task(4), RecordedEvents()) as facts:
        runs_compiled = any(block._compiled_call_impl for block in decoder_blocks(policy))
    accelerator.wait_for_everyone()
    tell({"left": facts.left or None, "runs compiled": runs_compiled})


def test_blocks_that_do_not_compile_on_one_rank_are_left_on_all():
    left = "RuntimeError: no compiler on rank 1"
    assert on_ranks(compiled, 1) == [{"left": left, "runs compiled": False}] * RANKS
    assert on_ranks(compiled, None) == [{"left": None, "runs compiled": True}] * RANKS


def reduced(rank: int, tell, run: PreparedRun, strategy: str) -> None:
    """Tells the gradients of a batch in bf16 once all ranks have added theirs."""
    from sdpo.stages import session as stage

    os.environ["TORCH_EXTENSIONS_DIR"] = str(run.folder.path / "extensions")
    # DeepSpeed's engine asks the model's own code: so does DDP here, for the same rounding.
    stage.fuse = stage.prune = lambda policy: None
    training = TrainingConfig(precision="bf16", batch_size=8, micro_batch_tokens=60)
    training = training.model_copy(update={"layout": "padded"})
    launch = TWO.model_copy(update={"strategy": strategy})
    session = stage.open_session(run.spec(1, training, launch=launch), RecordedEvents())
    trainer, task = session.trainer(training), preference_task(8)
    if session.is_sharded:
        trainer.scorer.step = lambda *_args, **_options: None  # which would clear them
    trainer._gradients(task, np.arange(8), trainer.costs(task), step=0)
    found = {}
    for name, parameter in trainer.scorer.named_parameters():
        gradient = parameter.grad
        if session.is_sharded:
            from deepspeed.utils import safe_get_full_grad

            gradient = safe_get_full_grad(parameter)
        found[name.removeprefix("module.")] = gradient.double().numpy().copy()
    session.wait()
    tell(found)


def test_zero_2_adds_gradients_in_fp32_as_ddp_does(tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    ddp, zero = (on_ranks(reduced, run, how)[0] for how in ("ddp", "deepspeed_zero2"))
    assert ddp.keys() == zero.keys()
    for name, gradient in ddp.items():
        apart = np.linalg.norm(zero[name] - gradient)
        assert apart <= 1e-5 * np.linalg.norm(gradient), name  # in bf16 it would be 4e-3
    assert not (run.folder.path / "extensions").exists(), "a start of ZeRO compiles nothing"


def added(rank: int, tell, run: PreparedRun) -> None:
    """Tells what ZeRO-3 makes of a pair of each rank, and of either pair on both of them."""
    from deepspeed.utils import safe_get_full_grad

    from sdpo.model.patches import global_batch_ends
    from sdpo.stages.session import open_session

    training = TrainingConfig(precision="bf16", batch_size=2, layout="padded")
    launch = TWO.model_copy(update={"strategy": "deepspeed_zero3"})
    session = open_session(run.spec(1, training, launch=launch), RecordedEvents())
    trainer, task = session.trainer(training), preference_task(2)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0  # the next passes are of the same weights
    own, found = trainer.scorer.step, []

    def step(*args, **options):
        parameters = trainer.scorer.named_parameters()
        whole = {name: safe_get_full_grad(p).double().numpy().copy() for name, p in parameters}
        found.append(whole)
        return own(*args, **options)

    trainer.scorer.step = step
    trainer.scorer.train()
    # Small weights are whole on each rank, in fp32 up to the first optimizer step.
    for item in (0, rank, 0, 1):
        items = np.array([item])
        global_batch_ends(session.accelerator, ends=True)
        losses = task.losses(trainer.logps(task, items), items)
        session.accelerator.backward(losses.loss.sum())
    session.wait()
    tell(found[1:])


def test_zero_3_adds_gradients_of_ranks_in_fp32(tmp_path):
    """What a rank's own gradient is the other rank does not change: added to itself, and halved, it
    is the same number in every precision."""
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    together, first, second = on_ranks(added, run)[0]
    for name, gradient in together.items():
        mean = (first[name] + second[name]) / 2
        apart = np.linalg.norm(gradient - mean)
        assert apart <= 1e-5 * np.linalg.norm(mean), name
        assert np.linalg.norm(first[name] - second[name]) > 0.1 * np.linalg.norm(mean), name
