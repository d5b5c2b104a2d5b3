"""Make preference pairs of a prompt's samples by their scores.

A sample's reward is its score less a penalty for each of its tokens (arXiv 2406.11817). Samples
are ranked by reward, the best first; of equal rewards the one that was drawn first comes first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.config.generating import GenerateConfig
from sdpo.data.keys import draw_key, squash


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sample is an answer that was drawn: the ``number``-th of its prompt, from 0.

    ``tokens`` are those that were generated, an end token among them; ``finished``: there is one.
    """

    number: int
    text: str
    tokens: int
    finished: bool
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A sample has its reward, and its rank from 1; rank 0: it is not ranked, and ``left`` why."""

    sample: Sample
    reward: float
    rank: int = 0
    left: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A prompt's samples, ranked or left, give these pairs of a chosen and a rejected one.

    ``dropped`` are the reasons why pairs were not made: one each.
    """

    samples: tuple[Ranked, ...]
    pairs: tuple[tuple[Ranked, Ranked], ...]
    dropped: tuple[str, ...]


def pair_samples(
    samples: Sequence[Sample], *, settings: GenerateConfig, prompt_key: str, seed: int
) -> Pairing:
    """Rank a prompt's samples and make its pairs, as ``settings`` say.

    ``seed`` and ``prompt_key`` decide what is drawn.
    """
    judged: list[Ranked] = []
    seen: set[str] = set()
    for sample in samples:
        reward = sample.score - settings.length_penalty * sample.tokens
        left = _left(sample, settings, seen)
        judged.append(Ranked(sample=sample, reward=reward, left=left))
    order = sorted(
        (each for each in judged if not each.left),
        key=lambda each: (-each.reward, each.sample.number),
    )
    rank_of = {each.sample.number: rank for rank, each in enumerate(order, 1)}
    ranked = [
        Ranked(
            sample=each.sample,
            reward=each.reward,
            rank=rank_of.get(each.sample.number, 0),
            left=each.left,
        )
        for each in judged
    ]
    by_rank = sorted((each for each in ranked if each.rank), key=lambda each: each.rank)
    if len(by_rank) < 2:
        reason = "no two samples" if by_rank else "no sample"
        return Pairing(samples=tuple(ranked), pairs=(), dropped=(reason,))
    pairs: list[tuple[Ranked, Ranked]] = []
    dropped: list[str] = []
    for chosen, rejected in _candidates(by_rank, settings, prompt_key=prompt_key, seed=seed):
        margin = chosen.reward - rejected.reward
        if margin <= 0:
            dropped.append("tie")
        elif margin < settings.min_margin:
            dropped.append("min_margin")
        else:
            pairs.append((chosen, rejected))
    return Pairing(samples=tuple(ranked), pairs=tuple(pairs), dropped=tuple(dropped))


def _left(sample: Sample, settings: GenerateConfig, seen: set[str]) -> str:
    """Return why a sample is not ranked; "" where it is. Its text is then one of those seen."""
    text = squash(sample.text)
    if not text:
        return "empty"
    if not sample.finished and settings.unfinished == "drop":
        return "unfinished"
    if text in seen:
        return "repeated"
    if math.isnan(sample.score):
        return "no verdict"
    seen.add(text)
    return ""


def _candidates(
    by_rank: Sequence[Ranked], settings: GenerateConfig, *, prompt_key: str, seed: int
) -> list[tuple[Ranked, Ranked]]:
    """Return what may become pairs: of a better sample with a worse one, or one as good."""
    best = by_rank[0]
    if settings.pair == "top_bottom":
        count = min(settings.k, len(by_rank) // 2)
        return [(by_rank[at], by_rank[-1 - at]) for at in range(count)]
    if settings.pair == "best_random":
        worse = [each for each in by_rank if each.reward < best.reward]
        key = bytes.fromhex(prompt_key)
        if worse:
            return [(best, worse[draw_key(seed, key) % len(worse)])]
    return [(best, by_rank[-1])]
