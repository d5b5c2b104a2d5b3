"""Measure how far a base whose layers are held in fewer bits is from what it was, on the reserve.

M_0 of a run over such a base is Q(S). Some reserved pairs are scored under S, in fp32 while it is
in memory anyway, and under Q(S) with the same code: what differs is the rounding alone.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.data.parquet_columns import Columns
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, collate
from sdpo.processes.stage_specs import StepSpec
from sdpo.store.records import Rounding
from sdpo.tokens.token_file import TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PAIRS = 16


class RoundingProbe:
    """A probe has the log-probs of some reserved pairs under the exact base, then compares."""

    def __init__(self, spec: StepSpec) -> None:
        usable, tokens = Columns(spec.usable), TokenFile.open(spec.tokens)
        rows = usable.numbers("token_row")[usable.numbers("reserved")][:_PAIRS]
        pairs = [tokens.row(int(row)) for row in rows]
        self._sequences = [
            TokenSequence(np.concatenate([pair.prompt_ids, ids]), len(pair.prompt_ids))
            for pair in pairs
            for ids in (pair.chosen_ids, pair.rejected_ids)
        ]
        self._precision = spec.model.base_precision
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
