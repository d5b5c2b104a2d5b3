import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.config import TrainingConfig
from sdpo.config.automatic import (
    CPU_MICRO_BATCH_TOKENS,
    GPU_MICRO_BATCH_TOKENS,
    LANE_WEIGHTS,
    head_rows,
    lane_count,
    micro_batch_tokens,
    optimizer_steps,
    training_lanes,
)
from sdpo.model.batching import epoch_order, global_batch, micro_batches

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)
CUTS = st.fixed_dictionaries(
    {"budget": st.integers(1, 2000), "padded": st.booleans(), "ranks": st.integers(1, 5)}
)


def cut(costs, **options):
    return micro_batches(np.arange(len(costs)), np.array(costs), **options)


@given(LENGTHS, CUTS)
def test_every_item_comes_exactly_once(lengths, options):
    shares = cut(lengths, **options)
    items = [int(i) for share in shares for batch in share for i in batch]
    assert sorted(items) == list(range(len(lengths)))


@given(LENGTHS, CUTS)
def test_every_rank_has_equally_many_micro_batches(lengths, options):
    shares = cut(lengths, **options)
    assert len(shares) == options["ranks"]
    assert len({len(share) for share in shares}) == 1
    # Never more than the busiest rank needs.
    assert any(all(len(batch) for batch in share) for share in shares)


@given(LENGTHS, CUTS)
def test_a_micro_batch_keeps_to_the_budget_unless_it_is_a_single_item(lengths, options):
    for share in cut(lengths, **options):
        for batch in share:
            costs = [lengths[i] for i in batch] or [0]
            tokens = len(costs) * max(costs) if options["padded"] else sum(costs)
            assert tokens <= options["budget"] or len(batch) == 1


@given(LENGTHS, CUTS)
def test_no_two_micro_batches_of_a_rank_would_fit_into_one(lengths, options):
    for share in cut(lengths, **options | {"padded": False}):
        tokens = sorted(sum(lengths[i] for i in batch) for batch in share if len(batch))
        assert len(tokens) < 2 or tokens[0] + tokens[1] > options["budget"]


@given(LENGTHS, CUTS)
def test_no_rank_has_more_than_its_share_by_more_than_one_item(lengths, options):
    loads = [sum(lengths[i] for b in share for i in b) for share in cut(lengths, **options)]
    assert max(loads) - min(loads) <= max(lengths)


@given(LENGTHS, CUTS)
def test_empty_micro_batches_come_last(lengths, options):
    for share in cut(lengths, **options):
        sizes = [len(batch) > 0 for batch in share]
        assert sizes == sorted(sizes, reverse=True)


@given(st.permutations(range(12)), CUTS)
def test_the_cut_of_distinct_lengths_does_not_depend_on_the_order_of_items(order, options):
    lengths = np.arange(1, 13) * 5
    shares = [
        [
            [batch.tolist() for batch in share]
            for share in micro_batches(np.array(items), lengths, **options)
        ]
        for items in (order, range(12))
    ]
    assert shares[0] == shares[1]


def test_only_the_items_asked_for_are_cut():
    lengths = np.full(100, 10)
    (share,) = micro_batches(np.array([7, 93]), lengths, budget=20, ranks=1, padded=True)
    assert [batch.tolist() for batch in share] == [[7, 93]]


def test_a_cut_by_hand():
    shares = cut([5, 9, 2, 4], budget=10, ranks=2, padded=True)
    # Rank 0: 9; rank 1: 5 then 4; 2 goes to the lighter or first of the two (9 and 9).
    assert [[batch.tolist() for batch in share] for share in shares] == [[[1], [2]], [[0, 3], []]]


def test_without_padding_a_short_item_fills_the_room_beside_a_long_one():
    (share,) = cut([90, 60, 50, 40, 10], budget=100, ranks=1, padded=False)
    assert [batch.tolist() for batch in share] == [[0, 4], [1, 3], [2]]
    (share,) = cut([90, 60, 50, 40, 10], budget=100, ranks=1, padded=True)
    assert [batch.tolist() for batch in share] == [[0], [1], [2, 3], [4]]


def test_nothing_is_cut_into_nothing():
    assert micro_batches(np.arange(0), np.arange(0), budget=1, ranks=2, padded=True) == [[], []]


ITEMS, BATCH = st.integers(1, 70), st.integers(1, 40)


@given(ITEMS, BATCH, st.integers(0, 2**32), st.integers(1, 3))
def test_global_batches_cover_every_epoch_exactly_once(items, batch_size, seed, epochs):
    total = optimizer_steps(items, batch_size=batch_size, epochs=epochs, max_steps=0)
    seen: dict[int, list[int]] = {epoch: [] for epoch in range(epochs)}
    for step in range(total):
        batch, epoch = global_batch(step, items=items, batch_size=batch_size, seed=seed)
        assert 1 <= len(batch) <= batch_size
        seen[epoch] += batch.tolist()
    assert all(sorted(order) == list(range(items)) for order in seen.values())


def test_a_global_batch_is_known_without_those_before_it():
    seed, items = 7, 50
    forward = [global_batch(s, items=items, batch_size=8, seed=seed)[0] for s in range(14)]
    backward = [global_batch(s, items=items, batch_size=8, seed=seed)[0] for s in range(13, -1, -1)]
    assert all(map(np.array_equal, forward, reversed(backward)))


def test_another_seed_or_epoch_is_another_order():
    orders = [epoch_order(50, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4


def test_the_order_of_a_seed_stays_what_it_is():
    assert epoch_order(8, seed=42, epoch=0).tolist() == [3, 4, 2, 7, 6, 1, 5, 0]


@pytest.mark.parametrize(
    ("items", "batch_size", "epochs", "max_steps", "steps"),
    [
        (64, 32, 1, 0, 2),
        (65, 32, 1, 0, 3),
        (65, 32, 2, 0, 6),
        (65, 32, 2, 4, 4),
        (65, 32, 2, 99, 6),
        (1, 32, 1, 0, 1),
    ],
)
def test_optimizer_steps_by_hand(items, batch_size, epochs, max_steps, steps):
    options = {"batch_size": batch_size, "epochs": epochs, "max_steps": max_steps}
    assert optimizer_steps(items, **options) == steps


def test_the_papers_step_count():
    # 60.8 thousand pairs of UltraFeedback Cleaned at batch 32: about 1,900 steps (Fig. 3).
    assert optimizer_steps(60_800, batch_size=32, epochs=1, max_steps=0) == 1900


def test_the_budget_is_the_recipes_or_the_devices():
    assert micro_batch_tokens(7, device="cpu") == micro_batch_tokens(7, device="cuda") == 7
    assert micro_batch_tokens(0, device="cpu") == CPU_MICRO_BATCH_TOKENS
    assert micro_batch_tokens(0, device="cuda") == GPU_MICRO_BATCH_TOKENS


@pytest.mark.parametrize(
    ("vocabulary", "device", "rows"),
    [(2048, "cpu", 512), (32000, "cpu", 256), (128256, "cpu", 65), (128256, "cuda", 4185)],
)
def test_a_chunk_of_the_head_is_as_large_as_its_device_likes(vocabulary, device, rows):
    assert head_rows(vocabulary, device=device) == rows


def test_a_chunk_of_the_head_takes_a_sixteenth_of_a_small_gpu_at_most():
    rows = head_rows(128256, device="cuda", memory=24 * 10**9)
    assert 4 * 128256 * rows <= 1.5 * 10**9 < 4 * 128256 * (rows + 1)


def test_a_chunk_of_the_head_has_at_least_one_row():
    assert head_rows(10**9, device="cpu") == head_rows(10**9, device="cuda") == 1


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (3, 3), (5, 1), (6, 3), (16, 4)])
def test_a_small_model_gets_lanes_that_share_the_threads_evenly(threads, lanes):
    for weights in (LANE_WEIGHTS.start, LANE_WEIGHTS.stop - 1):
        assert lane_count(weights, threads=threads, device="cpu", processes=1) == lanes


@pytest.mark.parametrize(
    ("weights", "device", "processes"),
    [
        (LANE_WEIGHTS.stop, "cpu", 1),
        (LANE_WEIGHTS.start - 1, "cpu", 1),
        (10_000_000, "cpu", 2),
        (10_000_000, "cuda", 1),
    ],
)
def test_a_larger_or_smaller_model_several_processes_and_a_gpu_get_one_lane(
    weights, device, processes
):
    assert lane_count(weights, threads=2, device=device, processes=processes) == 1


@pytest.mark.parametrize(
    ("settings", "lanes"),
    [
        ({}, 4),
        ({"batch_size": 3}, 3),
        ({"gradient_checkpointing": True}, 1),
        ({"compile": True}, 1),
        ({"lora_r": 4, "lora_dropout": 0.1}, 1),
        ({"lora_dropout": 0.1}, 4),  # there is no adapter to drop anything of
    ],
)
def test_training_uses_the_lanes_that_its_settings_let_it(settings, lanes):
    assert training_lanes(TrainingConfig(**settings), 4) == lanes
