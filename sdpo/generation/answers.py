"""Draw a model's samples of many prompts: one prompt's samples are the unit of all that is kept.

The last bits of a sample depend on what shares its batch. That is the block of prompts that it is
in, and nothing else: what was kept when a drawing was interrupted in the middle of a block is drawn
again with it, and is the same. A block of one prompt makes its samples independent of all others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.config.sampler import Sampler
from sdpo.generation.sample_log import Answer, SampleLog
from sdpo.scoring.sampling import Prompt, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Samples are drawn with these settings: ``n`` of each prompt, of ``max_new_tokens`` at most.

    ``positions``: sequences end there; 0: no bound. ``ends``: tokens after which a sample stops.
    ``micro_batch_tokens``: samples are cut into batches of no more. ``together``: so many prompts
    are a block, whose samples may share a batch.
    """

    sampler: Sampler
    seed: int
    n: int
    max_new_tokens: int
    positions: int
    ends: tuple[int, ...]
    pad_token_id: int
    device: torch.device
    micro_batch_tokens: int
    together: int = 1


def draw_answers(
    policy: "PreTrainedModel",
    prompts: Sequence[tuple[str, np.ndarray]],
    *,
    drawing: Drawing,
    log: SampleLog,
    on_prompt: Callable[[int, int], None],
) -> None:
    """Bring the samples of every prompt, a key and its token ids, into ``log``.

    A block of which it has everything is not drawn again. ``on_prompt`` hears how many prompts are
    done and the tokens that were generated for them.
    """
    tokens = 0
    for start in range(0, len(prompts), drawing.together):
        block = prompts[start : start + drawing.together]
        missing = [key for key, _ in block if key not in log.done]
        drawn = _samples_of(policy, block, drawing) if missing else []
        for (key, _), samples in zip(block, drawn, strict=bool(drawn)):
            if key in missing:
                log.add(key, samples)
        for done, (key, _) in enumerate(block, start + 1):
            tokens += sum(len(each.ids) for each in log.done[key])
            on_prompt(done, tokens)


def _samples_of(
    policy: "PreTrainedModel", prompts: Sequence[tuple[str, np.ndarray]], drawing: Drawing
) -> list[list[Answer]]:
    """Return the samples of each of these prompts, computed together."""
    written = sample(
        policy,
        [
            Prompt(key=key, ids=ids, sample=number)
            for key, ids in prompts
            for number in range(drawing.n)
        ],
        sampler=drawing.sampler,
        seed=drawing.seed,
        max_new_tokens=drawing.max_new_tokens,
        positions=drawing.positions,
        ends=drawing.ends,
        pad_token_id=drawing.pad_token_id,
        device=drawing.device,
        micro_batch_tokens=drawing.micro_batch_tokens,
    )
    answers = [Answer(each.ids, each.finished) for each in written]
    return [answers[at : at + drawing.n] for at in range(0, len(answers), drawing.n)]
