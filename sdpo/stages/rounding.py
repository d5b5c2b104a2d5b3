"""Measure how far a model whose layers are held in fewer bits is from what it was, on the reserve.

M_0 of a run over such a base is Q(S). Some reserved pairs are scored under S, in fp32 while it is
in memory anyway, and under Q(S) with the same code: what differs is the rounding alone. The same is
measured of a step that merges: its M_t is Q(Q(M_{t-1}) + adapter).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.data.parquet_columns import Columns
from sdpo.model.held import hold_base, let_go
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, collate
from sdpo.processes.stage_specs import StepSpec
from sdpo.store.records import Rounding
from sdpo.tokens.token_file import TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PAIRS = 16


class RoundingProbe:
    """A probe has the log-probs of some reserved pairs under the exact base, then compares."""

    def __init__(self, usable_file: Path, token_file: Path, *, precision: str) -> None:
        usable, tokens = Columns(usable_file), TokenFile.open(token_file)
        rows = usable.numbers("token_row")[usable.numbers("reserved")][:_PAIRS]
        pairs = [tokens.row(int(row)) for row in rows]
        self._sequences = [
            TokenSequence(np.concatenate([pair.prompt_ids, ids]), len(pair.prompt_ids))
            for pair in pairs
            for ids in (pair.chosen_ids, pair.rejected_ids)
        ]
        self._precision = precision
        self._exact = np.zeros(0)

    def see(self, base: "PreTrainedModel") -> None:
        """Score the pairs under the exact ``base``."""
        self._exact = self._logps(base)

    def compare(self, held: "PreTrainedModel") -> Rounding | None:
        """Return how the log-probs under ``held`` differ; None without reserved pairs."""
        if not self._sequences:
            return None
        difference = self._logps(held) - self._exact
        tokens = np.array([sequence.scored for sequence in self._sequences])
        margins = difference.reshape(-1, 2) @ np.array([1.0, -1.0])
        return Rounding(
            precision=self._precision,
            pairs=len(margins),
            nats_per_token=float(np.abs(difference).sum() / tokens.sum()),
            largest_nats=float(np.abs(difference).max()),
            gamma_nats=float(np.abs(margins).mean()),
        )

    @torch.no_grad()
    def _logps(self, model: "PreTrainedModel") -> np.ndarray:
        scorer = SequenceScorer(model).eval()
        device = model.get_output_embeddings().weight.device
        found = [
            float(scorer(collate([sequence], pad_token_id=0).to(device)))
            for sequence in self._sequences
        ]
        return np.array(found)


def probe_of(spec: StepSpec) -> RoundingProbe:
    """Return the probe of a step's reserved pairs."""
    return RoundingProbe(spec.usable, spec.tokens, precision=spec.model.base_precision)


def round_again(merged: "PreTrainedModel", spec: StepSpec, *, measures: bool) -> Rounding | None:
    """Give the layers of ``merged`` the values that ``model.base_precision`` has of theirs.

    They are fp32 afterwards, so that they are published as they are; to hold them again changes
    nothing. Returns what the rounding changed, where this rank ``measures`` it.
    """
    probe = probe_of(spec) if measures else None
    if probe:
        probe.see(merged)
    held = hold_base(merged, spec.model.base_precision)
    found = probe.compare(held) if probe else None
    let_go(held)
    return found
