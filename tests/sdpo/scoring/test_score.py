import numpy as np
import pytest
import torch

from sdpo.errors import Fault
from sdpo.events import EventWriter
from sdpo.scoring import score_rows as score
from sdpo.scoring.score_rows import score_rows
from sdpo.store.logp_cache import LogpCache

from ..training_helpers.models import (
    RecordedEvents,
    cpu_key,
    double,
    hf_pair_logps,
    make_scorer,
    preference_task,
    tiny_llama,
    write_tokens,
)


@pytest.fixture
def task():
    return preference_task(12)


@pytest.fixture
def tokens(tmp_path, task):
    return write_tokens(tmp_path / "tokens.arrow", task)


@pytest.fixture
def cache(tmp_path):
    """``cache(name)``: as another process finds the rows of one key."""

    def open_cache(name: str = "a-digest") -> LogpCache:
        return LogpCache(tmp_path / "cache", cpu_key(name, layout="padded"))

    return open_cache


@pytest.fixture
def score_all(tokens):
    """``score_all(scorer, rows, cache)``."""

    def run(scorer, rows, cache, *, events=None):
        writer = events or EventWriter(None)
        return score_rows(scorer, tokens, rows, cache=cache, events=writer, phase="score D_1")

    return run


def both(scored) -> np.ndarray:
    return np.stack([scored.logps.chosen, scored.logps.rejected], axis=1)


def count_forwards(policy) -> list[int]:
    calls: list[int] = []
    policy.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_log_probs_are_those_of_the_models_own_logits_in_float64(task, cache, score_all):
    policy = tiny_llama()
    with torch.no_grad():
        exact = hf_pair_logps(double(policy), task, np.arange(12)).numpy()
    found = both(score_all(make_scorer(policy), range(12), cache()))
    assert found.dtype == np.float32
    assert (np.abs(found - exact) <= 1e-6 * np.abs(exact) + 1e-4).all()


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_scored_in_lanes_a_row_has_the_same_value_to_the_last_bit(cache, score_all, layout):
    """Of a thread each, as here, a forward is the same whichever lane computes it."""
    policy = tiny_llama()
    alone, in_lanes = (
        both(score_all(make_scorer(policy, layout=layout, lanes=n), range(12), cache(f"{n}")))
        for n in (1, 3)
    )
    np.testing.assert_array_equal(in_lanes, alone)


def test_a_value_that_is_no_number_ends_the_scoring_in_lanes_too(cache, score_all):
    policy = tiny_llama()
    with torch.no_grad():
        policy.model.norm.weight[0] = torch.nan
    with pytest.raises(Fault, match="gives pair pair-"):
        score_all(make_scorer(policy, lanes=2), range(12), cache())


def test_rows_come_in_the_order_asked_for(cache, score_all):
    scorer = make_scorer(tiny_llama())
    straight = both(score_all(scorer, range(12), cache()))
    order = [7, 0, 11, 3]
    np.testing.assert_array_equal(both(score_all(scorer, order, cache())), straight[order])


def test_rows_in_the_cache_are_not_computed_again(cache, score_all):
    policy = tiny_llama()
    scorer, forwards = make_scorer(policy), count_forwards(policy)
    first = score_all(scorer, range(5), cache())
    assert (first.computed, first.cached) == (5, 0)
    assert len(forwards) == 10, "one per sequence"
    second = score_all(scorer, range(3, 9), cache())
    assert (second.computed, second.cached) == (4, 2)
    assert second.cached_items.tolist() == [0, 1]
    assert len(forwards) == 10 + 8
    third = score_all(scorer, range(9), cache())
    assert (third.computed, third.cached) == (0, 9)
    assert len(forwards) == 18
    np.testing.assert_array_equal(both(third)[:5], both(first))
    np.testing.assert_array_equal(both(third)[3:], both(second))


def test_a_cache_belongs_to_its_model(cache, score_all):
    score_all(make_scorer(tiny_llama()), range(4), cache("M_0"))
    other = score_all(make_scorer(tiny_llama(seed=1)), range(4), cache("M_1"))
    assert (other.computed, other.cached) == (4, 0)


def test_a_row_does_not_depend_on_its_neighbours(cache, score_all):
    scorer = make_scorer(tiny_llama())
    together = both(score_all(scorer, range(12), cache("together")))
    for row in range(12):
        alone = both(score_all(scorer, [row], cache("alone")))
        np.testing.assert_array_equal(alone[0], together[row])


def short_of_memory(monkeypatch, *, most: int) -> list[int]:
    """All rows come in one batch, as on a GPU, and memory holds ``most``; how many were tried."""
    tried: list[int] = []
    real = score._forward

    def forward(scorer, tokens, rows):
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(scorer, tokens, rows)

    monkeypatch.setattr(score, "_share", lambda scorer, lengths: [np.arange(len(lengths))])
    monkeypatch.setattr(score, "_forward", forward)
    return tried


def test_rows_that_memory_does_not_hold_together_are_scored_in_halves(
    cache, score_all, monkeypatch
):
    scorer = make_scorer(tiny_llama())
    whole = both(score_all(scorer, range(12), cache("whole")))
    tried = short_of_memory(monkeypatch, most=3)
    halves = both(score_all(scorer, range(12), cache("halves")))
    np.testing.assert_array_equal(halves, whole)
    assert tried[0] == 12
    assert sum(count for count in tried if count <= 3) == 12, "each once"


def test_one_row_that_memory_does_not_hold_is_a_fault_that_says_what_helps(
    cache, score_all, monkeypatch
):
    short_of_memory(monkeypatch, most=0)
    with pytest.raises(Fault, match=r"out of memory in the scoring of score D_1 of one alone"):
        score_all(make_scorer(tiny_llama()), range(12), cache())


def test_a_damaged_part_is_scored_again_and_said(cache, score_all):
    scorer = make_scorer(tiny_llama())
    whole = both(score_all(scorer, range(6), cache()))
    (part,) = cache().folder.glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    events = RecordedEvents()
    again = score_all(scorer, range(6), cache(), events=events)
    assert (again.computed, again.cached) == (6, 0)
    np.testing.assert_array_equal(both(again), whole)
    warnings = [event["message"] for event in events.all if event["event"] == "warning"]
    assert len(warnings) == 1
    assert part.name in warnings[0]


def test_a_scoring_that_is_cut_off_keeps_its_finished_parts(cache, score_all, monkeypatch):
    monkeypatch.setattr(score, "_PART_ROWS", 4)
    policy = tiny_llama()
    scorer, forwards = make_scorer(policy), count_forwards(policy)

    def stop(*_):
        if len(forwards) == 13:
            raise KeyboardInterrupt

    handle = policy.model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        score_all(scorer, range(12), cache())
    handle.remove()
    rest = score_all(scorer, range(12), cache())
    assert (rest.computed, rest.cached) == (8, 4)


def test_a_log_prob_that_is_not_a_number_is_a_fault_and_never_cached(cache, score_all):
    policy = tiny_llama()
    with torch.no_grad():
        policy.model.norm.weight[0] = torch.nan
    with pytest.raises(Fault, match=r"pair-\d\d log-probs of \[nan, nan\]"):
        score_all(make_scorer(policy), range(3), cache())
    assert not list(cache().folder.glob("*.parquet"))


def test_progress_reaches_its_end_in_tokens(task, cache, score_all):
    events = RecordedEvents()
    score_all(make_scorer(tiny_llama()), range(12), cache(), events=events)
    last = events.all[-1]
    assert (last["event"], last["phase"]) == ("progress", "score D_1")
    tokens = 2 * (task.prompt_tokens + task.completion_tokens.max(axis=1)).sum()
    assert last["done"] == last["total"] == tokens
