"""Settle the tokens of a micro-batch: a limit of memory is found once, kept, and lowered if needed.

What was settled is in ``budget.json`` beside the step's model, published before it is first
used, so that a resume, and a replay, cut their micro-batches alike. A reduction is known by the
optimizer step from which on it holds.
"""

import math
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.errors import SdpoError
from sdpo.system.files import read_json, write_json

BUDGET_FILE = "budget.json"


class Reduction(BaseModel):
    """From optimizer step ``step`` (counted from 0) on, micro-batches have so many tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    micro_batch_tokens: int


class Budget(BaseModel):
    """A budget gives the tokens of a micro-batch over the optimizer steps of a training.

    ``micro_batch_tokens``: at its beginning; 0: as settings and device say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch_tokens: int = 0
    reductions: tuple[Reduction, ...] = ()

    def at(self, step: int, *, default: int) -> int:
        """Return the tokens at optimizer step ``step`` (from 0)."""
        lowered = [r.micro_batch_tokens for r in self.reductions if r.step <= step]
        return lowered[-1] if lowered else self.micro_batch_tokens or default

    def lowered(self, step: int, *, to: int) -> "Budget":
        """Return the same budget with ``to`` tokens from optimizer step ``step`` on."""
        reductions = [r for r in self.reductions if r.step < step]
        return self.model_copy(
            update={"reductions": (*reductions, Reduction(step=step, micro_batch_tokens=to))}
        )


def read_budget(folder: Path, *, key: str) -> Budget | None:
    """Return what was settled for the step in ``folder``; None: nothing, or for another training.

    ``key`` is the digest of the training's identity.
    """
    try:
        content = read_json(folder / BUDGET_FILE)
        if content.pop("key") == key:
            return Budget.model_validate(content)
    except (OSError, SdpoError, KeyError, AttributeError, ValidationError):
        pass  # none was written, or half of one by a process that died: it is settled again
    return None


def write_budget(folder: Path, budget: Budget, *, key: str) -> None:
    """Publish ``budget`` for the training of this ``key``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / BUDGET_FILE, {"key": key, **budget.model_dump(mode="json")})


def halved(tokens: int, *, largest: int) -> int:
    """Return the next smaller budget; 0 where ``tokens`` holds one item of ``largest`` at most."""
    return 0 if tokens <= largest else max(largest, tokens // 2)


def probe(fits: Callable[[int], bool], *, start: int, most: int) -> int:
    """Return the largest of ``start``, twice, four times … that ``fits``, at most ``most``.

    The geometric mean of that and of the first that does not fit is returned if it fits. Where
    ``start`` does not fit it is halved until one does; ``fits`` is asked for 1 token last, which
    means one item.
    """
    tokens = min(start, most)
    while not fits(tokens):
        if tokens == 1:
            return 1
        most = tokens - 1
        tokens //= 2
    while tokens < most:
        step = min(2 * tokens, most)
        if not fits(step):
            between = math.isqrt(tokens * step)
            return between if between > tokens and fits(between) else tokens
        tokens = step
    return tokens
