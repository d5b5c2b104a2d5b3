"""Score pairs under a model: log-probs come from the cache, or are computed where it lacks them.

On CPU a forward holds one sequence and no padding, so a row does not depend on its neighbours;
elsewhere rows of like length share a padded forward.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.config.automatic import micro_batch_tokens
from sdpo.errors import Fault
from sdpo.events import EventWriter
from sdpo.model.batching import GRADIENT_FREE_FACTOR, micro_batches
from sdpo.model.lanes import in_lanes
from sdpo.model.layouts import LAYOUTS, PromptGroup
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.model.share import share_of
from sdpo.store.logp_cache import LogpCache, RowLogps
from sdpo.store.row_claims import Claimed, claimed
from sdpo.system.out_of_memory import Parts
from sdpo.system.seen import PATIENCE_S
from sdpo.tokens.token_file import Digests, TokenFile

if TYPE_CHECKING:
    from accelerate import Accelerator

_PART_ROWS = 512
_LOOK_S = 0.2
_WAIT_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A scorer is a model that is ready to score.

    ``module`` is a :class:`~sdpo.model.sequence_scorer.SequenceScorer`. For more than one of
    ``lanes`` see :mod:`sdpo.model.lanes`. ``in_step``: ranks wait for each other in every forward.
    """

    accelerator: "Accelerator"
    module: SequenceScorer
    pad_token_id: int
    micro_batch_tokens: int
    layout: str = "padded"
    lanes: int = 1
    in_step: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """All rows asked for have log-probs here; ``is_new``: bool ``[rows]``, those computed now."""

    logps: RowLogps
    is_new: np.ndarray

    @classmethod
    def looked_up(cls, logps: RowLogps) -> "Scored":
        """Return values that were all in the cache before."""
        return cls(logps, np.zeros(len(logps.chosen), dtype=np.bool_))

    @property
    def new_items(self) -> np.ndarray:
        """Return the numbers of the rows that were computed now."""
        return np.flatnonzero(self.is_new)

    @property
    def cached_items(self) -> np.ndarray:
        """Return the numbers of the rows that were in the cache before."""
        return np.flatnonzero(~self.is_new)

    @property
    def computed(self) -> int:
        """Return how many rows were computed now."""
        return len(self.new_items)

    @property
    def cached(self) -> int:
        """Return how many rows were in the cache before."""
        return len(self.cached_items)


def score_rows(
    scorer: Scorer,
    tokens: TokenFile,
    rows: Sequence[int] | np.ndarray,
    *,
    cache: LogpCache,
    events: EventWriter,
    phase: str,
) -> Scored:
    """Return the log-probs of the pairs at ``rows`` of ``tokens``, in their order.

    It keeps a few dozen bytes of a row, in arrays, however long the text is.

    Raises:
        Fault: a log-prob is not finite, or a row is still missing at the end.
    """
    rows = np.asarray(rows, dtype=np.int64)
    digests = tokens.digests(rows)
    found = cache.lookup(digests)
    for part in cache.damaged:
        events.warning(f"cache part {part} is damaged: its rows are scored again")
    cache.damaged.clear()
    missing = share_of(scorer.accelerator).of_first(
        _each_once(rows, np.flatnonzero(~found.present))
    )
    is_new = np.zeros(len(rows), dtype=np.bool_)
    if len(missing):
        own = _scored(scorer, tokens, rows, missing, cache=cache, events=events, phase=phase)
        is_new[own] = True
        found = _of_all_ranks(cache, digests, ranks=scorer.accelerator.num_processes)
    holes = np.flatnonzero(~found.present)
    if len(holes):
        raise Fault(f"{phase}: {len(holes)} rows have no log-probs after scoring")
    return Scored(found, is_new)


def _scored(
    scorer: Scorer,
    tokens: TokenFile,
    rows: np.ndarray,
    left: np.ndarray,
    *,
    cache: LogpCache,
    events: EventWriter,
    phase: str,
) -> np.ndarray:
    """Score the rows ``left``, and return those that this process has scored.

    Where another run is at work on some of them, those are waited for.
    """
    own, is_told = [np.empty(0, dtype=np.int64)], False
    while len(left):
        with _claimed(scorer.accelerator, cache, tokens.digests(rows[left])) as claim:
            mine, left = left[claim.mine], left[~claim.mine & ~claim.cached]
            if len(mine):
                _compute(scorer, tokens, rows[mine], cache=cache, events=events, phase=phase)
                scorer.accelerator.wait_for_everyone()
        own.append(mine)
        if len(left) and not len(mine):
            if not is_told:
                events.note(f"{phase}: {len(left)} pairs are being scored by another run")
            is_told = True
            time.sleep(_WAIT_S)
    return np.concatenate(own)


@contextmanager
def _claimed(accelerator: "Accelerator", cache: LogpCache, wanted: np.ndarray) -> Iterator[Claimed]:
    """Claim rows for all ranks, which the main process does, and tell every rank which."""
    nothing = np.zeros(len(wanted), dtype=np.bool_)
    mains = claimed(cache, wanted) if accelerator.is_main_process else None
    with mains or nullcontext(Claimed(nothing, nothing)) as claim:
        both = share_of(accelerator).of_first(np.stack([claim.mine, claim.cached]))
        yield Claimed(both[0], both[1])


def _of_all_ranks(cache: LogpCache, digests: Digests, *, ranks: int) -> RowLogps:
    """Return what the ranks have added, waiting for what another node wrote to be seen here."""
    found, end = cache.lookup(digests), time.monotonic() + PATIENCE_S
    while ranks > 1 and not found.present.all() and time.monotonic() < end:
        time.sleep(_LOOK_S)
        found = cache.lookup(digests)
        cache.damaged.clear()  # a part that is seen by half is not damaged
    return found


def _each_once(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the first of ``items`` of each row: a pair may belong to several steps."""
    _, first = np.unique(rows[items], return_index=True)
    return items[np.sort(first)]


@torch.no_grad()
def _compute(
    scorer: Scorer,
    tokens: TokenFile,
    rows: np.ndarray,
    *,
    cache: LogpCache,
    events: EventWriter,
    phase: str,
) -> None:
    """Score ``rows`` and add them to the cache; every rank does its share."""
    scorer.module.eval()
    sides = np.stack([tokens.chosen_lengths[rows], tokens.rejected_lengths[rows]], axis=1)
    lengths = LAYOUTS[scorer.layout].tokens(tokens.prompt_lengths[rows], sides)
    share = _share(scorer, lengths)

    parts = Parts(
        what=f"the scoring of {phase}",
        cost=lambda batch: float(lengths[batch].sum()),
        in_step=scorer.in_step,
    )

    def forward(batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return parts of the batch with their log-probs.

        A rank without any pairs takes part too, as sharded models need."""
        if not len(batch):
            return [(batch, _forward(scorer, tokens, rows[-1:]))]
        return list(parts.of(batch, lambda part: _forward(scorer, tokens, rows[part])))

    done, total, size = 0, sum(int(lengths[batch].sum()) for batch in share), f"{len(rows)} pairs"
    pending = _Pending(cache)
    with closing(in_lanes(forward, share, lanes=scorer.lanes)) as found:
        for batch, logps in chain.from_iterable(found):
            if len(batch):
                _check_finite(logps, tokens, rows[batch])
                pending.add(tokens.digests(rows[batch]), logps)
            done += int(lengths[batch].sum())
            events.progress(phase, done, total, unit="tokens", note=size, size=size)
    pending.flush()


def _share(scorer: Scorer, lengths: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
    """Return this rank's batches of positions in ``lengths``; every rank has equally many.

    On a CPU a batch is one pair, so that its log-probs do not depend on other pairs.
    """
    accelerator = scorer.accelerator
    rank, ranks, kind = (
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device.type,
    )
    if kind == "cpu":
        alone: np.ndarray = np.argsort(-lengths, kind="stable")[rank::ranks, None]
        idle = -(-len(lengths) // ranks) - len(alone)
        return [*alone, *(np.empty(0, dtype=np.int64) for _ in range(idle))] if idle else alone
    return micro_batches(
        np.arange(len(lengths)),
        lengths,
        budget=micro_batch_tokens(scorer.micro_batch_tokens, device=kind) * GRADIENT_FREE_FACTOR,
        ranks=ranks,
        padded=LAYOUTS[scorer.layout].padded,
    )[rank]


def _forward(scorer: Scorer, tokens: TokenFile, rows: np.ndarray) -> np.ndarray:
    """Return chosen and rejected log-probs, fp32 ``[rows, 2]``."""
    device, layout = scorer.accelerator.device, LAYOUTS[scorer.layout]
    unpadded = device.type == "cpu"
    groups: list[list[PromptGroup]] = []
    for row in rows.tolist():
        pair = tokens.row(row)
        sides = (pair.chosen_ids, pair.rejected_ids)
        if scorer.layout == "shared" or not unpadded:
            groups.append([PromptGroup(pair.prompt_ids, sides)])
        else:  # a row of its own for each side, so that nothing is padded
            groups += [[PromptGroup(pair.prompt_ids, (side,))] for side in sides]
    if not unpadded:
        groups = [[group for alone in groups for group in alone]]
    parts = [
        scorer.module(
            layout.collate(group, pad_token_id=scorer.pad_token_id, device=device.type).to(device)
        )
        for group in groups
    ]
    logps: np.ndarray = torch.cat(parts).float().cpu().numpy().reshape(-1, 2)
    return logps


def _check_finite(logps: np.ndarray, tokens: TokenFile, rows: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(bad):
        pair_id = tokens.pair_ids[rows[int(bad[0])]]
        raise Fault(
            f"the model gives pair {pair_id} log-probs of {logps[bad[0]].tolist()}: its weights or "
            "the precision are not usable"
        )


class _Pending:
    """Rows wait here to become a part of the cache: a crash loses one part at most."""

    def __init__(self, cache: LogpCache) -> None:
        self._cache = cache
        self._rows = 0
        self._digests: list[Digests] = []
        self._logps: list[np.ndarray] = []

    def add(self, digests: Digests, logps: np.ndarray) -> None:
        self._rows += len(digests)
        self._digests.append(digests)
        self._logps.append(logps)
        if self._rows >= _PART_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            logps = np.concatenate(self._logps)
            self._cache.add(np.concatenate(self._digests), logps[:, 0], logps[:, 1])
        self._rows, self._digests, self._logps = 0, [], []
