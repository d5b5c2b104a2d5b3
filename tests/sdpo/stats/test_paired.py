"""Paired differences of two models, against loops over their documents."""

import numpy as np
import pytest

from sdpo.stats.paired import Part, Scores, numbered, paired

OPTIONS = {"resamples": 2000, "seed": 3}


def scores(values: dict[str, float]) -> Scores:
    return Scores(np.array(list(values), dtype=np.str_), np.array(list(values.values())))


def test_only_documents_that_both_were_asked_alike_are_compared() -> None:
    now = scores({"a": 1.0, "b": 0.0, "c": 1.0, "only-now": 1.0})
    before = scores({"c": 0.0, "a": 0.0, "b": 0.0, "one": 1.0, "two": 1.0})
    found = paired([Part(1.0, now, before)], **OPTIONS)
    assert found is not None
    assert (found.documents, found.alone) == (3, 3)
    assert found.change.mean == pytest.approx((1 + 0 + 1) / 3)


def test_the_interval_is_that_of_a_normal_approximation_where_there_are_many_documents() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(900)
    after = before + generator.normal(0.02, 0.3, 900)
    keys = [f"d{i}" for i in range(900)]
    one = Part(
        1.0,
        scores(dict(zip(keys, after, strict=True))),
        scores(dict(zip(keys, before, strict=True))),
    )
    found = paired([one], **OPTIONS)
    assert found is not None
    difference = after - before
    spread = 1.96 * difference.std(ddof=1) / 30
    assert found.change.low == pytest.approx(difference.mean() - spread, abs=0.1 * spread)
    assert found.change.high == pytest.approx(difference.mean() + spread, abs=0.1 * spread)


def test_a_mean_of_tasks_is_the_mean_of_their_means_whatever_their_sizes() -> None:
    small = Part(0.5, scores({"a": 1.0, "b": 1.0}), scores({"a": 0.0, "b": 1.0}))
    keys = [f"k{i}" for i in range(50)]
    zeros, ones = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 1.0)
    large = Part(0.5, scores(zeros), scores({**ones, "k0": 0.0}))
    found = paired([small, large], **OPTIONS)
    assert found is not None
    assert found.change.mean == pytest.approx(0.5 * 0.5 - 0.5 * 49 / 50)
    assert found.documents == 52


def test_a_document_that_stands_twice_is_compared_with_its_like() -> None:
    assert numbered(["a", "b", "a"]).tolist() == ["a#1", "b#1", "a#2"]
    now = Scores(numbered(["a", "a"]), np.array([1.0, 0.0]))
    before = Scores(numbered(["a", "a"]), np.array([0.0, 0.0]))
    found = paired([Part(1.0, now, before)], **OPTIONS)
    assert found is not None
    assert (found.documents, found.change.mean) == (2, 0.5)


def test_two_models_without_a_common_question_are_not_compared() -> None:
    apart = Part(1.0, scores({"a": 1.0}), scores({"b": 1.0}))
    assert paired([apart], **OPTIONS) is None
