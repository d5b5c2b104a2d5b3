"""Ranks settle on one token budget, and where one of them runs out of memory all start again."""

import gc
import os
from typing import Any

import numpy as np
import pytest
from bench import Bench, Outcome, Values
from forked_ranks import forked_ranks

from sdpo.chain.run_chain import run_chain
from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.config.load import make_config
from sdpo.events import Event
from sdpo.hooks import Host
from sdpo.model.policy import load_policy
from sdpo.store.budget import read_budget

from ..training_helpers.models import RecordedEvents, make_trainer, preference_task, run_steps
from ..training_helpers.ranks import RANKS, on_ranks
from ..training_helpers.runs import PreparedRun, prepare_run, skip_without, slow

TRAINING = TrainingConfig(precision="fp32", batch_size=12, learning_rate=1e-3, layout="padded")
START = 64
"""The first trial is of so many tokens; the pairs below have 600 in all."""
PAIRS = 12
ENOUGH = 10**6


def settled(
    rank: int, tell, run: PreparedRun, strategy: str, rooms: tuple[int, int], sizes: tuple[int, int]
) -> None:
    """Tells what a rank settled on, where a token takes a byte, and the loss of a step after it.

    A rank may take ``rooms[rank]`` of a device that holds ``sizes[rank]``.
    """
    import torch

    from sdpo.model import fully_sharded
    from sdpo.model.sequence_scorer import SequenceScorer
    from sdpo.stages import session as stage
    from sdpo.stages import settle_budget as settling

    tried: list[int] = []
    holds = [sizes[rank]]

    class Counted(SequenceScorer):
        def forward(self, batch, **options):
            if torch.is_grad_enabled():
                tried.append(batch.input_ids.numel())
                if tried[-1] > holds[0]:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(batch, **options)

    fully_sharded.SequenceScorer = stage.SequenceScorer = Counted
    launch = LaunchConfig(processes=RANKS, strategy=strategy, device="cpu", threads=1)
    session = stage.open_session(run.spec(1, TRAINING, launch=launch), RecordedEvents())
    settling.GPU_MICRO_BATCH_TOKENS = START
    settling._is_open = lambda trainer: True
    settling._states_to_come = lambda trainer: 0
    torch.cuda.reset_peak_memory_stats = lambda device: None
    torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda device: 0
    torch.cuda.max_memory_allocated = lambda device: tried[-1]
    torch.cuda.mem_get_info = lambda device: (rooms[rank] / settling._SHARE, 0)
    gc.freeze()  # a trial looks for garbage before each micro-batch: what is imported is none
    trainer, task, folder = session.trainer(TRAINING), preference_task(PAIRS), run.folder.step(1)
    tried.clear()
    settling.settle_budget(
        trainer, task, folder=folder, key="k", given=None, events=RecordedEvents()
    )
    given = [p.grad for p in trainer.scorer.parameters() if p.grad is not None]
    gradients = [float(gradient.abs().max()) for gradient in given]
    in_trial = list(tried)
    # Other micro-batches of so many tokens may have more padding: on a device there is room beside.
    holds[0] = ENOUGH
    losses: list[float] = []
    trainer.train(task, on_step=lambda _n, _of, line: losses.append(line["loss"]))
    session.wait()
    tell(
        {
            "tokens": trainer.progress.budget.micro_batch_tokens,
            "tried": in_trial,
            "costs": trainer.costs(task),
            "gradients": gradients,
            "losses": losses,
        }
    )


@pytest.fixture
def run(tmp_path) -> PreparedRun:
    return prepare_run(tmp_path, pairs={0: 2, 1: 4})


def padded(costs: np.ndarray, tokens: int) -> int:
    """The padded tokens of the micro-batch of so many tokens that takes most."""
    return int(costs.max()) * max(1, tokens // int(costs.max()))


@pytest.mark.parametrize(
    ("strategy", "short"),
    [
        ("ddp", 1),
        ("fsdp2", 0),
        slow("deepspeed_zero1", 1),
        slow("deepspeed_zero2", 0),
        ("deepspeed_zero3", 1),
    ],
)
def test_ranks_settle_on_what_fits_on_the_one_with_the_least_memory(run, strategy, short):
    skip_without(strategy)
    rooms = (300, ENOUGH) if short == 0 else (ENOUGH, 300)
    sizes = rooms if strategy == "ddp" else (ENOUGH, ENOUGH)  # past its room it has no memory
    found = on_ranks(settled, run, strategy, rooms, sizes)
    tokens = found[0]["tokens"]
    assert [told["tokens"] for told in found] == [tokens] * RANKS
    costs = found[0]["costs"]
    assert padded(costs, tokens) <= 300 < padded(costs, 2 * tokens)
    kept = read_budget(run.folder.step(1), key="k")
    assert kept.micro_batch_tokens == tokens
    assert not kept.reductions
    for told in found:
        assert not any(told["gradients"]), "training starts with none"
        assert not told["gradients"] or strategy == "deepspeed_zero1", "which keeps them: zeros"
        assert told["tried"][0] == padded(costs, START)
        if strategy != "ddp":
            assert max(told["tried"]) <= 300, "ranks in step try nothing that is known not to fit"


@pytest.mark.parametrize(
    "strategy",
    ["ddp", "fsdp2", *map(slow, ("deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"))],
)
def test_ranks_with_memory_enough_take_all_of_a_batch_and_train_as_one_process(run, strategy):
    skip_without(strategy)
    told, other = on_ranks(settled, run, strategy, (ENOUGH, ENOUGH), (ENOUGH, ENOUGH))
    assert told["tokens"] == other["tokens"] == told["costs"].sum()
    policy = load_policy(run.model, model=ModelConfig(name_or_path=str(run.model)))
    alone = run_steps(make_trainer(policy, TRAINING), preference_task(PAIRS))
    assert told["losses"] == pytest.approx([line["loss"] for line in alone], rel=1e-4)


SHORT = """
import os
if os.environ.get("RANK") == "1":
    import torch
    from sdpo.model import fully_sharded
    from sdpo.stages import session

    class Short(session.SequenceScorer):
        def forward(self, batch, **options):
            if torch.is_grad_enabled() and batch.input_ids.numel() > 75:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(batch, **options)

    fully_sharded.SequenceScorer = session.SequenceScorer = Short
"""
"""Rank 1 alone is on a device that holds 75 tokens with their activations."""
TRIED = """
import torch
from sdpo.stages import settle_budget
settle_budget._is_open = lambda trainer: True
settle_budget.GPU_MICRO_BATCH_TOKENS = 140
torch.cuda.reset_peak_memory_stats = lambda device: None
torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda device: 0
torch.cuda.max_memory_allocated = lambda device: 0
torch.cuda.mem_get_info = lambda device: (10**12, 0)
"""
"""The budget is tried, from 140 tokens on."""


def launched(bench: Bench, strategy: str, **training: Any) -> Outcome:
    """A run of one step whose stages are of two processes."""
    launch = {"processes": RANKS, "strategy": strategy}
    changes = {
        "data": {"sources": bench.recipe["data"]["sources"][:1], "limit": 24},
        "launch": launch,
        "training": training,
        "probe": {"completions": 0},
    }
    events: list[Event] = []
    result = run_chain(make_config(bench.values(changes)), host=Host(listen=events.append))
    return Outcome(result, events)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_recipe: Values) -> list[float]:
    """Losses where memory suffices."""
    place = Bench(tmp_path_factory.mktemp("plain"), tiny_recipe)
    with forked_ranks():
        return losses(launched(place, "ddp", micro_batch_tokens=140))


def losses(done: Outcome) -> list[float]:
    return [line["loss"] for line in done.metrics(1) if "loss" in line]


def check_began_again(done: Outcome, plain: list[float], *, step: int) -> None:
    """The stage said what was short, began again with half, and trained as with memory enough."""
    said = [e["message"] for e in done.events if e["event"] == "warning"]
    short = f"out of memory at optimizer step {step} with micro-batches of 140 tokens: it goes on"
    assert [m for m in said if f"{short} with 70" in m and m.endswith("it starts again")], said
    assert done.record("step-1")["budget"]["reductions"] == [
        {"step": step - 1, "micro_batch_tokens": 70}
    ]
    assert losses(done) == pytest.approx(plain, rel=1e-4)
    assert max(plain) - min(plain) > 0.05, "the model learns something"


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        "fsdp2",
        pytest.param("deepspeed_zero3", marks=pytest.mark.slow),
        pytest.param("deepspeed_zero2", marks=pytest.mark.slow),
        pytest.param("deepspeed_zero1", marks=pytest.mark.slow),
    ],
)
def test_where_one_rank_runs_out_of_memory_all_start_again_with_less(bench, plain, strategy):
    skip_without(strategy)
    with forked_ranks(first=SHORT):
        done = launched(bench, strategy, micro_batch_tokens=140)
    check_began_again(done, plain, step=1)


@pytest.mark.parametrize("strategy", ["fsdp2", slow("deepspeed_zero3")])
def test_where_one_rank_runs_out_in_a_trial_in_step_all_start_again_with_less(
    bench, plain, strategy
):
    skip_without(strategy)
    with forked_ranks(first=SHORT + TRIED):
        done = launched(bench, strategy)
    check_began_again(done, plain, step=1)


@pytest.mark.slow
def test_ranks_of_the_real_launcher_start_again_with_less(bench, plain, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SHORT, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    check_began_again(launched(bench, "ddp", micro_batch_tokens=140), plain, step=1)
