"""Hold what a server says of tokens against the model that it is to serve.

M_{t-1} gives, in this process and before the server is there, the log-probs of every first token of
an answer to some prompts. The server is asked for those of its likeliest ones. Where it has other
weights, or another template of numbers, they differ by more than rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.errors import ModelError
from sdpo.generation.completions_client import CompletionsClient
from sdpo.model.sequence_scorer import inner_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = 16
"""So many prompts are compared."""
TOLERANCE_NATS = 0.1
"""Likely tokens may differ by so much in the mean: bf16 logits of large models do by half of it."""
_UNKNOWN_NATS = 10.0
"""A token that is none of the model's vocabulary counts as this far off."""


@dataclass(frozen=True, slots=True)
class Expected:
    """After a prompt's ids ``prompt`` the next token has these log-probs, float32 [vocabulary]."""

    prompt: np.ndarray
    logps: np.ndarray


@dataclass(frozen=True, slots=True)
class Agreement:
    """The log-probs of ``tokens`` tokens differ by ``mean_nats`` in the mean of their absolutes."""

    tokens: int
    mean_nats: float


@torch.no_grad()
def expected(
    policy: "PreTrainedModel", prompts: Sequence[np.ndarray], *, device: torch.device
) -> list[Expected]:
    """Return what the model says of the first token after each of the first prompts."""
    model, found = inner_model(policy), []
    for ids in prompts[:PROMPTS]:
        batch = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(device)
        logits = model(input_ids=batch, logits_to_keep=1).logits[0, -1]
        found.append(Expected(ids, logits.float().log_softmax(-1).cpu().numpy()))
    return found


def check_served(
    client: CompletionsClient,
    expect: Sequence[Expected],
    tokenizer: "PreTrainedTokenizerBase",
) -> Agreement | None:
    """Return how far the server's log-probs are from the model's; None where it tells none.

    Raises:
        ModelError: they are not those of the model.
    """
    if not client.form.tells_logprobs:
        return None
    ids = ids_by_text(tokenizer)
    apart: list[float] = []
    for each in expect:
        top = client.next_token(each.prompt.tolist()).top or {}
        apart.extend(_apart(top, each.logps, ids))
    if not apart:
        return None
    found = Agreement(tokens=len(apart), mean_nats=float(np.mean(apart)))
    if not found.mean_nats <= TOLERANCE_NATS:
        raise ModelError(
            "the server that generate.serve starts serves another model than it was started for: "
            f"log-probs of {found.tokens} likely tokens differ by {found.mean_nats:.3g} nats in "
            f"the mean, where {TOLERANCE_NATS} is the most that rounding explains. Put {{model}} "
            "where its command has the model, and leave out what changes weights much (a "
            "quantisation, an adapter)"
        )
    return found


def ids_by_text(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Return the token of every text that one token alone stands for."""
    texts: list[str] = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    found: dict[str, int] = {}
    twice: set[str] = set()
    for token, text in enumerate(texts):
        if text in found:
            twice.add(text)
        found[text] = token
    return {text: token for text, token in found.items() if text not in twice}


def _apart(top: dict[str, float], logps: np.ndarray, ids: dict[str, int]) -> list[float]:
    """Return the absolute differences in nats, of the tokens whose text says which they are."""
    return [
        abs(value - float(logps[ids[text]])) if ids[text] < len(logps) else _UNKNOWN_NATS
        for text, value in top.items()
        if text in ids
    ]
