"""Score completions: a causal language model as a function from batches to summed log-probs."""

import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sdpo.errors import ModelError
from sdpo.model.by_length import changes_itself, forget_lengths, split
from sdpo.model.chunked_head import teach_head
from sdpo.model.layouts import LAYOUTS, Batch, PromptGroup
from sdpo.model.layouts.attention import NAME as SEGMENTED
from sdpo.model.layouts.attention import register
from sdpo.model.layouts.segments import Segments
from sdpo.model.rounding import allowed
from sdpo.model.routers import router_load

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A sequence is prompt and completion, int32 ``[tokens]``; ``ids[prompt:]`` are scored."""

    ids: np.ndarray
    prompt: int

    @property
    def scored(self) -> int:
        """Return the number of scored tokens."""
        return len(self.ids) - self.prompt


def collate(sequences: Sequence[TokenSequence], *, pad_token_id: int) -> Batch:
    """Return a batch of ``sequences`` in rows of their own, padded on the right."""
    groups = [PromptGroup(s.ids[: s.prompt], (s.ids[s.prompt :],)) for s in sequences]
    return LAYOUTS["padded"].collate(groups, pad_token_id=pad_token_id, device="cpu")


class SequenceScorer(nn.Module):
    """A scorer is a causal language model that answers with summed log-probs of completions.

    It is one module, so that data-parallel and sharding wrappers see every parameter that is used.
    ``attention`` is the kernel for rows of one sequence; rows of several have their own. ``low``:
    it computes in bf16 by itself, whoever calls it.
    """

    def __init__(self, model: "PreTrainedModel", *, low: bool = False) -> None:
        super().__init__()
        self.model = model
        self.low = low
        inner = inner_model(model)
        teach_head(inner)
        register()
        current = inner.config._attn_implementation
        self.attention: str = getattr(inner, "_sdpo_attention", current)
        inner._sdpo_attention = self.attention
        self.by_length = changes_itself(inner)

    def forward(
        self, batch: Batch, *, routers: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the log-prob of each completion, fp32 ``[completions]``, in nats, group by group.

        With ``routers`` return also their load, float64 ``[2, experts]``: see
        :mod:`sdpo.model.routers`.

        Raises:
            ModelError: ``routers`` is set, and the model has none, or makes no loss of them.
        """
        device = batch.input_ids.device.type
        with torch.autocast(device, torch.bfloat16) if self.low else nullcontext():
            logps, load = (
                self._by_length(batch, routers) if self.by_length else self._of(batch, routers)
            )
        return logps if load is None else (logps, load)

    def _by_length(self, batch: Batch, routers: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts, order = [batch], None
        if batch.segments is None:
            parts, order = split(self.model, batch)
        found = []
        for part in parts:
            forget_lengths(self.model)
            found.append(self._of(part, routers))
        logps = torch.cat([logps for logps, _ in found])
        loads = [load for _, load in found if load is not None]
        load = torch.stack(loads).sum(0) if loads else None
        return logps if order is None else logps[order.to(logps.device)], load

    def _of(self, batch: Batch, routers: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        inner = inner_model(self.model)
        options: dict[str, torch.Tensor | Segments | int | bool] = {}
        if batch.segments is None:
            use_attention(inner, self.attention)
        elif self.attention == "flash_attention_2":
            use_attention(inner, self.attention)
            starts, longest = batch.segments.sequences()
            # As FlashAttentionKwargs of transformers has them: of queries and of keys.
            options |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), starts)
            options |= dict.fromkeys(("max_length_q", "max_length_k"), longest)
        else:
            use_attention(inner, SEGMENTED)
            options["segments"] = batch.segments
        if batch.position_ids is not None:
            options["position_ids"] = batch.position_ids
        # Routers of the last block are to see all tokens.
        pruned = getattr(inner, "prunes_last_block", False) and not routers
        if pruned:
            options["predictors"] = batch.predictors
        if routers:
            options["output_router_logits"] = True
        answer = inner.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            **options,
        )
        load = router_load(inner, answer.router_logits, batch) if routers else None
        rows = answer.last_hidden_state
        rows = rows.reshape(-1, rows.shape[-1])
        if not pruned:
            rows = predicting(rows, batch.predictors)
        if torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        per_token_logps = inner.get_output_embeddings()(rows, batch.targets)
        # Summed in double: one after another in fp32, hundreds of tokens lose 1e-4 nats and more.
        sums = torch.segment_reduce(per_token_logps.double(), "sum", lengths=batch.scored)
        return sums.float(), load

    @torch.no_grad()
    def check_head(self, *, vocabulary: int, device: torch.device) -> None:
        """Compare the chunked head with the model's own logits on a few tokens.

        An architecture may do more to its logits than this module knows; then training would be
        silently wrong. Only rounding may make them differ: see :mod:`sdpo.model.rounding`.

        Raises:
            ModelError: they differ by more, or are not finite.
        """
        ids = np.arange(8, dtype=np.int32) * 7 % vocabulary
        batch = collate([TokenSequence(ids, 1)], pad_token_id=0).to(device)
        ours: torch.Tensor = self(batch)
        logits = self.model(input_ids=batch.input_ids, use_cache=False).logits[0, :-1].float()
        own = torch.log_softmax(logits, -1).gather(1, batch.targets[:, None]).sum()
        if not torch.isfinite(own):
            raise ModelError(f"the model gives log-probs of {float(own)}: its weights are damaged")
        size = float(logits.abs().amax(-1).norm()) + abs(float(own)) / math.sqrt(len(logits))
        most = allowed(size, low=torch.is_autocast_enabled(device.type))
        if not abs(float(ours[0]) - float(own)) <= most:
            raise ModelError(
                f"{type(inner_model(self.model)).__name__} treats its logits in a way that is not "
                f"known here: log-prob {float(ours[0]):.6g} against its own {float(own):.6g}"
            )


def predicting(rows: torch.Tensor, predictors: torch.Tensor) -> torch.Tensor:
    """Return the ``rows`` that predict.

    They are not taken by indexing, whose backward sorts: here it is an addition of rows, and the
    last row of a prompt predicts the first token of both completions.
    """
    return rows.index_select(0, predictors)


def inner_model(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return the transformers model below a PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_blocks(model: "PreTrainedModel") -> list[nn.Module]:
    """Return the layers of a model that repeat, by the names that its architecture gives."""
    inner = inner_model(model)
    names = set(inner._no_split_modules or ())
    # A wrapper may have put a class of its own before the architecture's.
    return [m for m in inner.modules() if names & {kind.__name__ for kind in type(m).__mro__}]


def plain_attention(model: "PreTrainedModel") -> None:
    """Let the model use the kernel it was loaded with, for anything that is not scored here."""
    inner = inner_model(model)
    use_attention(inner, getattr(inner, "_sdpo_attention", inner.config._attn_implementation))


_SWITCHING = threading.Lock()


def use_attention(inner: "PreTrainedModel", name: str) -> None:
    """Let all parts of the model take their attention from the function called ``name``."""
    with _SWITCHING:
        if inner.config._attn_implementation != name:
            inner.set_attn_implementation(name)
