"""Say how a run would go, before it starts: what each step would do, its time, its disk."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sdpo.chain.context import Context
from sdpo.chain.examples_left import examples_left
from sdpo.chain.held_out import answers_of
from sdpo.chain.open_run import run_folder_of
from sdpo.chain.round_prompts import prompts_left
from sdpo.config import SupervisedConfig, TrainingConfig
from sdpo.config.automatic import optimizer_steps
from sdpo.identity.model_digest import tensor_entries
from sdpo.processes.disk_space import free_bytes, in_units, step_needs
from sdpo.report.tables import duration
from sdpo.store.step_data import planned
from sdpo.system.words import counted, noun
from sdpo.tokens.token_file import TokenFile

_TRAINING = 3
"""Forward and backward pass together take so many times a forward pass."""
_USEFUL_SHARE = 0.5
"""Of a CPU's matrix products training gets so much: 49% to 57% in docs/benchmarks.md."""
_STAGE_S = 8.0
"""A stage takes so long to start, load and publish a small model."""
_FEW_UPDATES = 10
"""Of so many updates or fewer, one that changes nothing is a large share."""
_SIDE = 768
_GPU_FLOPS = 4e14
"""A GPU is taken to do so many useful operations a second, where a time on one is told."""

_Stage: TypeAlias = tuple[str, str, TrainingConfig | SupervisedConfig, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """A foresight has what a run would take: seconds, bytes below the run's folder, free bytes.

    ``flops``: operations of scoring, training and measuring, and of samples where the chain makes
    pairs of its own. ``tokens``: those that are trained on, with every pass over them.
    ``generated``: tokens of samples, held-out ones too, at most. ``on_gpu``: the seconds are those
    of a GPU that this machine was not asked about.
    """

    steps: int
    flops: float
    tokens: float
    generated: float
    seconds: float
    on_gpu: bool
    disk_bytes: int
    free_bytes: int

    def sentence(self) -> str:
        """Return the verdict in words."""
        where = "on one GPU of 400 useful TFLOP/s" if self.on_gpu else "on this CPU"
        return (
            f"ready: {self.steps} step{'s' * (self.steps != 1)}; roughly "
            f"{duration(_rounded(self.seconds))} {where} ({self.flops:.1e} operations, completions "
            f"and KL not counted){self._rounds()}; {in_units(self.disk_bytes)} of disk, of which "
            f"{in_units(self.free_bytes)} are free"
        )

    def _rounds(self) -> str:
        if not self.generated:
            return ""
        return (
            f", with up to {self.generated:,.0f} tokens of samples, which take longer than their "
            "operations tell: a token comes after the one before it"
        )


def without_update(context: Context, steps: list[int]) -> str:
    """Return which stage would make one optimizer step, at rate 0, and what to change; else ""."""
    for stage, group, settings, items in _stages(context, steps):
        if _steps_of(settings, items) == 1 and _warmup(settings, 1) >= 1:
            more = "a larger max_steps" if settings.max_steps == 1 else "a smaller batch_size"
            return (
                f"{stage} would change nothing: its {counted(items, 'item')} "
                f"{noun(items, 'makes', 'make')} one optimizer step "
                f"({group}.batch_size {settings.batch_size}, max_steps {settings.max_steps}), and "
                "warmup begins at rate 0. Set "
                f"{group}.warmup_ratio=0 and {group}.warmup_steps=0, or {more}"
            )
    return ""


def updates_at_rate_0(context: Context, steps: list[int]) -> str:
    """Return of which stages a large share of the updates has a rate of 0; else "".

    Where there is warmup it begins at 0, so that the first update of a stage changes nothing.
    """
    found = [
        (f"1 of {total} updates of {stage}", group)
        for stage, group, settings, items in _stages(context, steps)
        for total in [_steps_of(settings, items)]
        if 1 < total <= _FEW_UPDATES and _warmup(settings, total) >= 1
    ]
    if not found:
        return ""
    told = ", ".join(what for what, _ in found)
    groups = dict.fromkeys(group for _, group in found)
    without = " and ".join(f"{group}.warmup_ratio=0 and {group}.warmup_steps=0" for group in groups)
    has = noun(len(found), "has", "have")
    return f"{told} {has} a rate of 0, at which warmup begins: with {without} every update counts"


def _stages(context: Context, steps: list[int]) -> list[_Stage]:
    """Return name, group, settings and items of the stages that train, in order."""
    training, plan = context.config.training_of, planned(context.run)
    found: list[_Stage] = [
        (f"step {step}", "training", training(step), len(plan.rows_of(step))) for step in steps
    ]
    if left := examples_left(context):
        supervised = context.config.supervised
        found.insert(0, ("the supervised stage", "supervised", supervised, len(left.rows)))
    return found


def foresee(context: Context, tokens: TokenFile, steps: list[int]) -> Foresight:
    """Estimate what the steps of the plan would take; tokens are counted, speed is measured."""
    model = context.resolved.model
    parameters = sum(entry.elements for entry in tensor_entries(model))
    forward = 2.0 * parameters
    plan = planned(context.run)
    all_tokens = _tokens(tokens, np.flatnonzero(tokens.usable))
    measured = min(all_tokens, 2 * context.config.probe.max_pairs * _mean(tokens) * len(steps))
    flops = forward * measured * (len(steps) + 1)
    trained = 0.0
    for step in steps:
        training, rows = context.config.training_of(step), plan.rows_of(step)
        passes = _steps_of(training, len(rows)) * training.batch_size / max(1, len(rows))
        trained += _tokens(tokens, rows) * passes
        flops += forward * _tokens(tokens, rows) * (1 + _TRAINING * passes)
    sampled, of_rounds = _rounds(context, tokens)
    trained += of_rounds
    answered = sum(
        answers_of(context, source) * source.generate.max_new_tokens
        for source in context.config.data.generated
    )
    # A sample is drawn, scored under two models, and trained on at most; a held-out one is drawn.
    flops += forward * (3 * sampled + (1 + _TRAINING) * of_rounds + answered)
    if left := examples_left(context):
        supervised = context.config.supervised
        examples = _steps_of(supervised, len(left.rows)) * supervised.batch_size
        flops += forward * _TRAINING * examples * _mean(tokens)
    on_gpu = context.config.launch.device != "cpu"
    speed = _GPU_FLOPS * context.config.launch.processes if on_gpu else _measured_flops()
    run = run_folder_of(context.config).path
    return Foresight(
        steps=len(steps),
        flops=flops,
        tokens=trained,
        generated=sampled + answered,
        seconds=flops / (speed * (1 if on_gpu else _USEFUL_SHARE)) + _STAGE_S * (len(steps) + 1),
        on_gpu=on_gpu,
        disk_bytes=_disk(context, run, steps),
        free_bytes=free_bytes(run),
    )


def _rounds(context: Context, tokens: TokenFile) -> tuple[float, float]:
    """Return the tokens that rounds draw, and those that are trained on, at most."""
    prompt = float(tokens.prompt_lengths[tokens.usable].mean())
    drawn = trained = 0.0
    for source in context.config.data.generated:
        settings = source.generate
        left = prompts_left(context, source)
        prompts = min(settings.per_round or left, left) * settings.rounds
        drawn += prompts * settings.n * settings.max_new_tokens
        pairs = prompts * (settings.k if settings.pair == "top_bottom" else 1)
        trained += pairs * (prompt + 2 * settings.max_new_tokens) * context.config.training.epochs
    return drawn, trained


def _steps_of(settings: TrainingConfig | SupervisedConfig, items: int) -> int:
    return optimizer_steps(
        items,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
    )


def _warmup(settings: TrainingConfig | SupervisedConfig, total: int) -> int:
    return settings.warmup_steps or math.ceil(settings.warmup_ratio * total)


def _tokens(tokens: TokenFile, rows: np.ndarray) -> float:
    """Return the tokens of both sequences of some pairs, the prompt once, as training has them."""
    sides = tokens.chosen_lengths[rows] + tokens.rejected_lengths[rows]
    return float((tokens.prompt_lengths[rows] + sides).sum())


def _mean(tokens: TokenFile) -> float:
    rows = np.flatnonzero(tokens.usable)
    return _tokens(tokens, rows) / max(1, len(rows))


def _disk(context: Context, run: Path, steps: list[int]) -> int:
    """Return the bytes of what is there at the end, and of the resume states of the last step."""
    usable = planned(context.run)
    sizes = 0
    for step in steps:
        needs = step_needs(
            context.resolved.model,
            context.config.training_of(step),
            run=run,
            cache=context.cache,
            rows=2 * len(usable.rows_of(step)),
        )
        is_last = step == steps[-1]
        sizes += sum(need.size_bytes for need in needs if is_last or need.what != "resume states")
    return sizes


def _measured_flops() -> float:
    """Return how many operations a second this machine does in matrix products, by trying."""
    matrix = np.ones((_SIDE, _SIDE), dtype=np.float32)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2.0 * _SIDE**3 / best


def _rounded(seconds: float) -> float:
    """Return an estimate with no more digits than it deserves."""
    unit = 10 if seconds < 120 else 60 if seconds < 7200 else 3600
    return max(unit, round(seconds / unit) * unit)
