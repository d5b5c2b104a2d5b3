"""Draw a model's samples of many prompts: one prompt's samples are the unit of all that is done.

On a CPU a batch holds the samples of one prompt and nothing else. So the bits of a sample do not
depend on other prompts, nor on where a round was interrupted. Elsewhere it is the same: one
prompt's samples have one length of prompt, and nothing is padded before they differ.
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
    ``micro_batch_tokens``: the samples of a prompt are cut into batches of no more.
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


def draw_answers(
    policy: "PreTrainedModel",
    prompts: Sequence[tuple[str, np.ndarray]],
    *,
    drawing: Drawing,
    log: SampleLog,
    on_prompt: Callable[[int, int], None],
) -> None:
    """Bring the samples of every prompt, a key and its token ids, into ``log``.

    What it has is not drawn again. ``on_prompt`` hears how many prompts are done and the tokens
    that were generated for them.
    """
    tokens = 0
    for done, (key, ids) in enumerate(prompts, 1):
        if key not in log.done:
            log.add(key, _samples_of(policy, key, ids, drawing))
        tokens += sum(len(each.ids) for each in log.done[key])
        on_prompt(done, tokens)


def _samples_of(
    policy: "PreTrainedModel", key: str, ids: np.ndarray, drawing: Drawing
) -> list[Answer]:
    written = sample(
        policy,
        [Prompt(key=key, ids=ids, sample=number) for number in range(drawing.n)],
        sampler=drawing.sampler,
        seed=drawing.seed,
        max_new_tokens=drawing.max_new_tokens,
        positions=drawing.positions,
        ends=drawing.ends,
        pad_token_id=drawing.pad_token_id,
        device=drawing.device,
        micro_batch_tokens=drawing.micro_batch_tokens,
    )
    return [Answer(each.ids, each.finished) for each in written]
