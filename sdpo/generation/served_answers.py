"""Draw the samples of many prompts from a server, several prompts at a time.

A prompt's samples are asked for one by one, each with a seed of its own, and kept when all are
there. They are not bitwise repeatable: a server puts them in batches as they come.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdpo.config.sampler import Sampler
from sdpo.data.keys import draw_key
from sdpo.generation.completions_client import CompletionsClient, Draw, as_ids
from sdpo.generation.sample_log import Answer, SampleLog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEEDS = 2**31
"""Servers take seeds below this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A server is asked with these settings: ``n`` samples of each prompt.

    ``positions``: sequences end there; 0: no bound. ``parallel``: prompts under way at a time.
    """

    sampler: Sampler
    seed: int
    n: int
    max_new_tokens: int
    positions: int
    ends: tuple[int, ...]
    parallel: int


def draw_served(
    client: CompletionsClient,
    prompts: Sequence[tuple[str, np.ndarray]],
    *,
    asking: Asking,
    tokenizer: "PreTrainedTokenizerBase",
    log: SampleLog,
    on_prompt: Callable[[int, int], None],
) -> None:
    """Bring the samples of every prompt, a key and its token ids, into ``log``.

    What it has is not drawn again. ``on_prompt`` hears how many prompts are done and the tokens
    that were generated for them.

    Raises:
        Fault: the server is gone.
        UserError: it refuses a request.
    """
    tokens = sum(len(each.ids) for samples in log.done.values() for each in samples)
    done = sum(key in log.done for key, _ in prompts)
    on_prompt(done, tokens)
    pool = ThreadPoolExecutor(asking.parallel)
    try:
        waiting: dict[Future[list[Answer]], str] = {
            pool.submit(_samples_of, client, key, ids, asking, tokenizer): key
            for key, ids in prompts
            if key not in log.done
        }
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                samples = future.result()
                log.add(waiting.pop(future), samples)
                done, tokens = done + 1, tokens + sum(len(each.ids) for each in samples)
                on_prompt(done, tokens)
    finally:
        # Requests under way end with the server, which is not kept waiting for them.
        pool.shutdown(wait=False, cancel_futures=True)


def _samples_of(
    client: CompletionsClient,
    key: str,
    ids: np.ndarray,
    asking: Asking,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Answer]:
    most = asking.max_new_tokens
    room = min(most, asking.positions - len(ids)) if asking.positions else most
    samples = []
    for number in range(asking.n):
        seed = draw_key(asking.seed, bytes.fromhex(key) + number.to_bytes(4, "big")) % _SEEDS
        draw = Draw(
            tokens=room,
            temperature=asking.sampler.temperature,
            top_p=asking.sampler.top_p,
            seed=seed,
        )
        written = client.complete(ids.tolist(), draw)
        answer = as_ids(written, tokenizer, ends=asking.ends)
        samples.append(Answer(ids=answer, finished=written.finished, text=written.text))
    return samples
