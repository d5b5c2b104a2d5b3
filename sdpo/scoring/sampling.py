"""Sample completions that depend on the seed and the prompt, not on what shares their batch.

Every completion has its own stream of uniform numbers, one per position, and its token is where the
number falls in the cumulative distribution. Batches are padded on the left and made by
transformers' own ``generate``, so every architecture's cache works.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.config.sampler import Sampler
from sdpo.model.patches import generating_with
from sdpo.model.sequence_scorer import inner_model
from sdpo.system.out_of_memory import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt is completed once for every ``sample``; ``key``: 32 hex digits."""

    key: str
    ids: np.ndarray
    sample: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion has sampled token ids, int32; ``finished``: the last one is an end token."""

    ids: np.ndarray
    finished: bool


def uniforms(prompt: Prompt, *, seed: int, tokens: int) -> np.ndarray:
    """Return the numbers in [0, 1) that decide a completion's tokens, float64 ``[tokens]``."""
    words = [int(prompt.key[start : start + 8], 16) for start in range(0, 32, 8)]
    return np.random.default_rng([seed, prompt.sample, *words]).random(tokens)


def pick(scores: torch.Tensor, numbers: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """Return tokens ``[rows]`` for logits ``[rows, vocabulary]`` and one uniform number per row."""
    scores = scores.double() / sampler.temperature
    if sampler.top_k:
        least = scores.topk(min(sampler.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares = scores.softmax(-1)
    if sampler.top_p < 1:
        shares = _nucleus(shares, sampler.top_p)
    cumulative = shares.cumsum(-1)
    whole = cumulative[:, -1:]
    at = numbers[:, None].to(cumulative) * whole
    at = torch.minimum(at, torch.nextafter(whole, torch.zeros_like(whole)))  # against rounding up
    return torch.searchsorted(cumulative, at, right=True).squeeze(1)


def _nucleus(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return shares ``[rows, vocabulary]`` with 0 for what is not among the likeliest.

    A token stays where those before it, the likeliest first, have less than ``top_p``: at least one
    (arXiv 1904.09751).
    """
    ordered, tokens = shares.sort(dim=-1, descending=True, stable=True)
    is_out = ordered.cumsum(-1) - ordered >= top_p
    return shares.masked_fill(is_out.gather(-1, tokens.argsort(-1)), 0.0)


@torch.no_grad()
def sample(
    policy: "PreTrainedModel",
    prompts: Sequence[Prompt],
    *,
    sampler: Sampler,
    seed: int,
    max_new_tokens: int,
    positions: int,
    ends: Sequence[int],
    pad_token_id: int,
    device: torch.device,
    micro_batch_tokens: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Completion]:
    """Return one completion per prompt, in their order, of at most ``max_new_tokens`` each.

    ``positions``: sequences end there too, and every prompt before; 0: no bound. ``ends``: tokens
    after which one stops.
    """
    room = [
        min(max_new_tokens, positions - len(p.ids)) if positions else max_new_tokens
        for p in prompts
    ]
    assert min(room, default=1) > 0, "every prompt leaves room for a completion"
    policy = inner_model(policy)  # adapters stand in its modules
    found: dict[int, Completion] = {}

    def generated(items: np.ndarray) -> list[list[int]]:
        members = [prompts[i] for i in items]
        numbers = np.stack([uniforms(p, seed=seed, tokens=max_new_tokens) for p in members])
        return _generate(
            policy,
            members,
            chooser=_Chooser(torch.from_numpy(numbers).to(device), sampler),
            tokens=room[items[0]],
            ends=ends,
            pad_token_id=pad_token_id,
            device=device,
        )

    sizes = np.array([len(p.ids) + more for p, more in zip(prompts, room, strict=True)])
    parts = Parts(what="sampling", cost=lambda items: float(sizes[items].sum()))
    batches = _batches(prompts, room, micro_batch_tokens=micro_batch_tokens)
    for items, written in (
        done for batch in batches for done in parts.of(np.array(batch), generated)
    ):
        for item, ids in zip(items.tolist(), written, strict=True):
            found[item] = _cut(ids, ends)
        on_batch(len(found))
    return [found[item] for item in range(len(prompts))]


def _batches(
    prompts: Sequence[Prompt], room: list[int], *, micro_batch_tokens: int
) -> list[list[int]]:
    """Return batches of items to generate together: of equal room and nearly equal length."""

    def place(item: int) -> tuple[int, int, str, int]:
        prompt = prompts[item]
        return -room[item], -len(prompt.ids), prompt.key, prompt.sample

    order = sorted(range(len(prompts)), key=place)
    batches: list[list[int]] = []
    for item in order:
        batch = batches[-1] if batches else []
        if batch and room[batch[0]] == room[item]:
            longest = len(prompts[batch[0]].ids) + room[batch[0]]
            if (len(batch) + 1) * longest <= micro_batch_tokens:
                batch.append(item)
                continue
        batches.append([item])
    return batches


def _generate(
    policy: "PreTrainedModel",
    prompts: Sequence[Prompt],
    *,
    chooser: "_Chooser",
    tokens: int,
    ends: Sequence[int],
    pad_token_id: int,
    device: torch.device,
) -> list[list[int]]:
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(len(prompt.ids) for prompt in prompts)
    ids = np.full((len(prompts), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.ids) :] = prompt.ids
        mask[row, longest - len(prompt.ids) :] = 1
    chooser.prompt_tokens = longest
    # The model's own settings (a repetition penalty, say) would make it another distribution.
    with generating_with(policy, GenerationConfig()):
        output = policy.generate(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            generation_config=GenerationConfig(
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=list(ends) or None,
                pad_token_id=pad_token_id,
            ),
            logits_processor=LogitsProcessorList([chooser]),
        )
    written: list[list[int]] = output[:, longest:].tolist()
    return written


class _Chooser:
    """This logits processor leaves one token possible: the one that its number falls on."""

    def __init__(self, numbers: torch.Tensor, sampler: Sampler) -> None:
        self._numbers = numbers
        self._sampler = sampler
        self.prompt_tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1] - self.prompt_tokens
        tokens = pick(scores, self._numbers[:, position], self._sampler)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def _cut(ids: list[int], ends: Sequence[int]) -> Completion:
    """Return the ids up to and including the first end token: what follows is padding."""
    at = next((index for index, token in enumerate(ids) if token in ends), None)
    kept = ids if at is None else ids[: at + 1]
    return Completion(np.array(kept, dtype=np.int32), at is not None)
