"""Pairs of a prompt's samples: by rank, with ties and small margins left out."""

import math

import pytest

from sdpo.config.generating import GenerateConfig
from sdpo.data.pairing import Pairing, Sample, pair_samples

KEY = "0123456789abcdef" * 2


def paired(
    scores: list[float], *, tokens: list[int] | None = None, seed: int = 1, **settings: object
) -> Pairing:
    """Samples ``a``, ``b``, ... with these scores."""
    counts = tokens or [10] * len(scores)
    samples = [
        Sample(number=n, text=chr(97 + n), tokens=count, finished=True, score=score)
        for n, (score, count) in enumerate(zip(scores, counts, strict=True))
    ]
    given = GenerateConfig.model_validate({"prompts_of": "x", **settings})
    return pair_samples(samples, settings=given, prompt_key=KEY, seed=seed)


def texts(pairing: Pairing) -> list[str]:
    return [chosen.sample.text + rejected.sample.text for chosen, rejected in pairing.pairs]


@pytest.mark.parametrize(
    ("scores", "settings", "pairs", "dropped"),
    [
        ([1, 3, 2, 0], {}, ["bd"], ()),
        ([1, 1, 1], {}, [], ("tie",)),
        ([1, 1.5, 1.2], {"min_margin": 1}, [], ("min_margin",)),
        ([1, 2], {"min_margin": 1}, ["ba"], ()),
        ([5, 1, 4, 2, 3], {"pair": "top_bottom", "k": 2}, ["ab", "cd"], ()),
        ([5, 1, 4, 2, 3], {"pair": "top_bottom", "k": 9}, ["ab", "cd"], ()),
        ([5, 1, 5, 5], {"pair": "top_bottom", "k": 2}, ["ab"], ("tie",)),
        ([5, 1, 5], {"pair": "best_random"}, ["ab"], ()),
        ([5, 5, 5], {"pair": "best_random"}, [], ("tie",)),
        ([1], {}, [], ("no two samples",)),
        ([math.nan, 1, 2], {}, ["cb"], ()),
        ([math.nan, math.nan], {}, [], ("no sample",)),
    ],
)
def test_pairs_are_of_the_best_and_of_worse_ones(
    scores: list[float], settings: dict[str, object], pairs: list[str], dropped: tuple[str, ...]
) -> None:
    found = paired(scores, **settings)
    assert texts(found) == pairs
    assert found.dropped == dropped


def test_the_random_one_is_any_of_those_that_are_worse() -> None:
    drawn = {texts(paired([3, 1, 2, 3], pair="best_random", seed=seed))[0] for seed in range(20)}
    assert drawn == {"ab", "ac"}


def test_a_length_penalty_takes_from_the_score_for_each_token() -> None:
    found = paired([3, 2.5], tokens=[20, 5], length_penalty=0.1)
    assert texts(found) == ["ba"]
    assert [ranked.reward for ranked in found.samples] == [1, 2]


def test_what_is_not_ranked_says_why() -> None:
    samples = [
        Sample(number=0, text=" ", tokens=1, finished=True, score=9),
        Sample(number=1, text="cut", tokens=9, finished=False, score=8),
        Sample(number=2, text="one", tokens=2, finished=True, score=1),
        Sample(number=3, text="one ", tokens=3, finished=True, score=1),
        Sample(number=4, text="two", tokens=2, finished=True, score=2),
    ]
    settings = GenerateConfig(prompts_of="x")
    found = pair_samples(samples, settings=settings, prompt_key=KEY, seed=1)
    left = [(ranked.left, ranked.rank) for ranked in found.samples]
    assert left == [("empty", 0), ("unfinished", 0), ("", 2), ("repeated", 0), ("", 1)]
    keeping = settings.model_copy(update={"unfinished": "keep"})
    kept = pair_samples(samples, settings=keeping, prompt_key=KEY, seed=1)
    assert texts(kept) == ["cutone"]
