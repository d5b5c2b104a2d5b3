"""Tell how long sequences are: the ends of what a run may compute, and summaries for people."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdpo.errors import Fault
from sdpo.tokens.token_file import Ids, SupervisedTokenFile, TokenFile


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles describe a length, in tokens."""

    median: float
    p95: float
    maximum: int


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """A summary has the lengths of the usable pairs in tokens.

    ``sequence`` is prompt plus the longer completion. ``*_truncated`` are shares of the usable
    pairs.
    """

    pairs: int
    prompt: Quantiles
    chosen: Quantiles
    rejected: Quantiles
    sequence: Quantiles
    chosen_truncated: float
    rejected_truncated: float


def ends_of_lengths(tokens: TokenFile, supervised: SupervisedTokenFile | None) -> list[int]:
    """Return the tokens of the shortest and longest sequence, of pairs, then of examples."""
    found: list[int] = []
    if len(prompts := tokens.prompt_lengths[tokens.usable]):
        sides = tokens.chosen_lengths[tokens.usable], tokens.rejected_lengths[tokens.usable]
        found += [int((prompts + np.minimum(*sides)).min())]
        found += [int((prompts + np.maximum(*sides)).max())]
    if supervised is not None:
        lengths = (supervised.prompt_lengths + supervised.completion_lengths)[supervised.usable]
        found += [int(lengths.min()), int(lengths.max())] if len(lengths) else []
    return found


def length_summary(
    tokens: TokenFile, rows: Sequence[int] | np.ndarray | None = None
) -> LengthSummary:
    """Summarise lengths and truncation of the usable pairs, all or those among ``rows``.

    Raises:
        Fault: none of them is usable.
    """
    chosen_rows = np.flatnonzero(tokens.usable) if rows is None else np.asarray(rows)
    kept = chosen_rows[tokens.usable[chosen_rows]]
    if not len(kept):
        raise Fault(f"no usable pair to summarise in {tokens.path}")
    prompt, chosen = tokens.prompt_lengths[kept], tokens.chosen_lengths[kept]
    rejected = tokens.rejected_lengths[kept]
    return LengthSummary(
        pairs=len(kept),
        prompt=_quantiles(prompt),
        chosen=_quantiles(chosen),
        rejected=_quantiles(rejected),
        sequence=_quantiles(tokens.sequence_lengths[kept]),
        chosen_truncated=float(tokens.chosen_truncated[kept].mean()),
        rejected_truncated=float(tokens.rejected_truncated[kept].mean()),
    )


def _quantiles(lengths: Ids) -> Quantiles:
    median, p95 = np.quantile(lengths, [0.5, 0.95])
    return Quantiles(float(median), float(p95), int(lengths.max()))
