"""Know which packages a recipe wants beyond those that are always there, and how to do without."""

import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

from sdpo.config.run import RunConfig
from sdpo.config.training import IN_8_BITS


class _Wanted(NamedTuple):
    """A recipe wants the package ``name``, which the project's ``extra`` brings.

    ``without``: what to set to do without it.
    """

    module: str
    name: str
    extra: str
    without: str


def missing_packages(config: RunConfig) -> list[str]:
    """Return, of each package that the recipe wants and that is not here, the remedy in words."""
    return [
        f"{wanted.name}, which is not installed: pip install {wanted.name} (this project's extra "
        f"`{wanted.extra}`), or go without: {wanted.without}"
        for wanted in _wanted(config)
        if not _is_there(wanted.module)
    ]


def optimizers(config: RunConfig) -> set[str]:
    """Return the optimizers of all steps."""
    of_steps = {config.training_of(step + 1).optimizer for step in range(len(config.steps))}
    return {config.training.optimizer, *of_steps}


def _wanted(config: RunConfig) -> Iterator[_Wanted]:
    there = ",".join(filter(_is_there, config.tracking.tools))
    for tool in config.tracking.tools:
        yield _Wanted(tool, tool, "tracking", f"--set tracking.tools=[{there}]")
    if config.model.attention == "flash_attention_2":
        without = "--set model.attention=sdpa"
        yield _Wanted("flash_attn", "flash-attn", "flash-attn", without)
    if config.launch.strategy.startswith("deepspeed"):
        yield _Wanted("deepspeed", "deepspeed", "deepspeed", "--set launch.strategy=fsdp2")
    if config.evaluation.suites:
        yield _Wanted("lm_eval", "lm-eval", "eval", "--set evaluation.suites=[]")
    if config.model.base_precision in ("int8", "nf4"):
        yield _in_8_bits("--set model.base_precision=bf16")
    elif optimizers(config) & {*IN_8_BITS}:
        yield _in_8_bits("--set training.optimizer=adamw (or that of the steps)")


def _in_8_bits(without: str) -> _Wanted:
    return _Wanted("bitsandbytes", "bitsandbytes", "quantisation", without)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
