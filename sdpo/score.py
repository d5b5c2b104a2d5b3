"""Scoring: log-probs of pairs under a model, from the cache where they are, computed where not.

On CPU a forward holds one sequence and no padding, so a row does not depend on its neighbours;
elsewhere rows of like length share a padded forward.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdpo.batching import GRADIENT_FREE_FACTOR, micro_batch_tokens, micro_batches
from sdpo.cache import LogpCache, RowLogps
from sdpo.errors import Fault
from sdpo.events import EventWriter
from sdpo.lanes import in_lanes
from sdpo.layouts import LAYOUTS, PromptGroup
from sdpo.tokens.store import TokenFile

_PART_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A model that is ready to score: ``module`` is a :class:`~sdpo.logps.SequenceScorer`.

    More than one of ``lanes``: see :mod:`sdpo.lanes`.
    """

    accelerator: Any
    module: Any
    pad_token_id: int
    micro_batch_tokens: int
    layout: str = "padded"
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probs of all rows asked for; ``is_new``: bool ``[rows]``, those computed now."""

    logps: RowLogps
    is_new: np.ndarray

    @classmethod
    def looked_up(cls, logps: RowLogps) -> "Scored":
        """Values that were all there before."""
        return cls(logps, np.zeros(len(logps.chosen), dtype=np.bool_))

    @property
    def new_items(self) -> np.ndarray:
        """Numbers of the rows that were computed now."""
        return np.flatnonzero(self.is_new)

    @property
    def cached_items(self) -> np.ndarray:
        """Numbers of the rows that were there before."""
        return np.flatnonzero(~self.is_new)

    @property
    def computed(self) -> int:
        """How many were computed now."""
        return len(self.new_items)

    @property
    def cached(self) -> int:
        """How many were there before."""
        return len(self.cached_items)


def score_rows(
    scorer: Scorer,
    tokens: TokenFile,
    rows: Sequence[int],
    *,
    cache: LogpCache,
    events: EventWriter,
    phase: str,
) -> Scored:
    """Log-probs of the pairs at ``rows`` of ``tokens``, in their order.

    Raises:
        Fault: a log-prob is not finite, or a row is still missing at the end.
    """
    digests = [tokens.row(row).row_digest for row in rows]
    found = cache.lookup(digests)
    for part in cache.damaged:
        events.warning(f"cache part {part} is damaged: its rows are scored again")
    cache.damaged.clear()
    missing = _agreed(scorer.accelerator, np.flatnonzero(~found.present))
    if len(missing):
        _compute(
            scorer, tokens, [rows[int(i)] for i in missing], cache=cache, events=events, phase=phase
        )
        scorer.accelerator.wait_for_everyone()
        found = cache.lookup(digests)
    holes = np.flatnonzero(~found.present)
    if len(holes):
        raise Fault(f"{phase}: {len(holes)} rows have no log-probs after scoring")
    is_new = np.zeros(len(rows), dtype=np.bool_)
    is_new[missing] = True
    return Scored(found, is_new)


def _agreed(accelerator: Any, missing: np.ndarray) -> np.ndarray:
    """The main process's view of what is missing: others may look when rows are there already."""
    if accelerator.num_processes == 1:
        return missing
    from accelerate.utils import broadcast_object_list

    view = [missing]
    broadcast_object_list(view)
    return view[0]


@torch.no_grad()
def _compute(
    scorer: Scorer,
    tokens: TokenFile,
    rows: Sequence[int],
    *,
    cache: LogpCache,
    events: EventWriter,
    phase: str,
) -> None:
    """Score ``rows`` and add them to the cache; every rank does its share."""
    scorer.module.eval()
    accelerator = scorer.accelerator
    layout = LAYOUTS[scorer.layout]
    at = np.asarray(rows)
    sides = np.stack([tokens.chosen_lengths[at], tokens.rejected_lengths[at]], axis=1)
    lengths = layout.tokens(tokens.prompt_lengths[at], sides)
    on_cpu = accelerator.device.type == "cpu"
    budget = micro_batch_tokens(scorer.micro_batch_tokens, device=accelerator.device.type)
    shares = micro_batches(
        np.arange(len(rows)),
        lengths,
        budget=1 if on_cpu else budget * GRADIENT_FREE_FACTOR,
        ranks=accelerator.num_processes,
        padded=layout.padded,
    )
    share = shares[accelerator.process_index]
    costs = np.array([lengths[batch].sum() for batch in share])
    total, size = int(costs.sum()), f"{len(rows)} pairs"

    def forward(batch: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Its rows and their log-probs; a rank without any takes part, as sharded models need."""
        members = [rows[i] for i in batch] or [rows[-1]]
        return members, _forward(scorer, tokens, members, unpadded=on_cpu)

    done, pending = 0, _Pending(cache)
    with closing(in_lanes(forward, share, lanes=scorer.lanes)) as found:
        for batch, cost, (members, logps) in zip(share, costs, found, strict=True):
            if len(batch):
                _check_finite(logps, tokens, members)
                pending.add([tokens.row(row).row_digest for row in members], logps)
            done += int(cost)
            events.progress(phase, done, total, unit="tokens", note=size, size=size)
    pending.flush()


def _forward(
    scorer: Scorer, tokens: TokenFile, rows: Sequence[int], *, unpadded: bool
) -> np.ndarray:
    """fp32 ``[rows, 2]``: chosen and rejected log-probs."""
    groups: list[list[PromptGroup]] = []
    for row in rows:
        pair = tokens.row(row)
        sides = (pair.chosen_ids, pair.rejected_ids)
        if scorer.layout == "shared" or not unpadded:
            groups.append([PromptGroup(pair.prompt_ids, sides)])
        else:  # a row of its own for each side, so that nothing is padded
            groups += [[PromptGroup(pair.prompt_ids, (side,))] for side in sides]
    if not unpadded:
        groups = [[group for alone in groups for group in alone]]
    device, layout = scorer.accelerator.device, LAYOUTS[scorer.layout]
    parts = [
        scorer.module(
            layout.collate(group, pad_token_id=scorer.pad_token_id, device=device.type).to(device)
        )
        for group in groups
    ]
    logps: np.ndarray = torch.cat(parts).float().cpu().numpy().reshape(-1, 2)
    return logps


def _check_finite(logps: np.ndarray, tokens: TokenFile, rows: Sequence[int]) -> None:
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(bad):
        pair_id = tokens.pair_ids[rows[int(bad[0])]]
        raise Fault(
            f"the model gives pair {pair_id} log-probs of {logps[bad[0]].tolist()}: its weights or "
            "the precision are not usable"
        )


class _Pending:
    """Rows waiting to become a part of the cache: what a crash loses is at most one part."""

    def __init__(self, cache: LogpCache) -> None:
        self._cache = cache
        self._digests: list[bytes] = []
        self._logps: list[np.ndarray] = []

    def add(self, digests: list[bytes], logps: np.ndarray) -> None:
        self._digests += digests
        self._logps.append(logps)
        if len(self._digests) >= _PART_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._digests:
            logps = np.concatenate(self._logps)
            self._cache.add(self._digests, logps[:, 0], logps[:, 1])
        self._digests, self._logps = [], []
