import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdpo.config import TrainingConfig
from sdpo.errors import DivergedError
from sdpo.model.lanes import GradientSum, in_lanes
from sdpo.training.trainer import Trainer

from ..training_helpers.models import (
    make_trainer,
    preference_task,
    run_steps,
    tiny_llama,
    weights_of,
)

TRAINING = TrainingConfig(
    batch_size=8, epochs=2, learning_rate=1e-3, precision="fp32", micro_batch_tokens=150
)


@pytest.fixture
def threads():
    """``threads(n)``: torch has so many, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_results_come_in_the_order_of_the_items_whichever_is_done_first(lanes):
    def slower_first(item: int) -> int:
        time.sleep(0.002 * (20 - item) / 20)
        return item * item

    assert list(in_lanes(slower_first, range(20), lanes=lanes)) == [n * n for n in range(20)]


def test_as_many_items_are_computed_at_a_time_as_there_are_lanes():
    meeting = threading.Barrier(3, timeout=20)
    assert list(in_lanes(lambda item: meeting.wait() >= 0, range(6), lanes=3)) == [True] * 6


def test_a_result_that_nobody_takes_keeps_the_next_items_waiting():
    begun: list[int] = []
    results = in_lanes(begun.append, range(1000), lanes=2)
    next(results)
    time.sleep(0.05)
    assert len(begun) < 20
    results.close()


def test_the_threads_of_torch_are_shared_by_the_lanes_and_come_back(threads):
    threads(4)
    assert list(in_lanes(lambda _: torch.get_num_threads(), range(4), lanes=2)) == [2] * 4
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("enabled", [False, True])
def test_a_lane_has_gradients_on_or_off_as_its_caller(enabled):
    with torch.set_grad_enabled(enabled):
        found = list(in_lanes(lambda _: torch.is_grad_enabled(), range(3), lanes=2))
    assert found == [enabled] * 3


@pytest.mark.parametrize("low", [True, False])
def test_a_lane_computes_in_the_precision_of_its_caller(low):
    one = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        (found,) = in_lanes(lambda matrix: (matrix @ matrix).dtype, [one], lanes=2)
    assert found == (torch.bfloat16 if low else torch.float32)


def test_what_a_lane_raises_is_raised_when_the_others_are_done(threads):
    threads(2)
    done: list[int] = []
    second_began = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            second_began.wait(20)
            raise ValueError("the first")
        second_began.set()
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ValueError, match="the first"):
        list(in_lanes(work, [0, 1], lanes=2))
    assert done == [1]
    assert torch.get_num_threads() == 2


def test_whoever_leaves_does_not_wait_for_all_that_a_lane_has_to_do():
    """As a signal does, which raises where the results are waited for."""
    ended, turns = threading.Event(), []

    def work(item: int) -> None:
        for _ in range(1000):
            if ended.is_set():
                return
            turns.append(item)
            time.sleep(0.01)
            if item == 0:
                raise SystemExit(143)

    with pytest.raises(SystemExit):
        list(in_lanes(work, [0, 1], lanes=2, ended=ended))
    assert len(turns) < 100


def test_a_training_that_is_left_ends_after_the_micro_batches_under_way(monkeypatch):
    computed: list[int] = []
    logps = Trainer.logps

    def counted(self, task, items):
        computed.append(len(items))
        if len(computed) == 1:
            raise SystemExit(143)
        time.sleep(0.05)
        return logps(self, task, items)

    monkeypatch.setattr(Trainer, "logps", counted)
    training = TRAINING.model_copy(update={"batch_size": 32, "micro_batch_tokens": 1})
    with pytest.raises(SystemExit):
        run_steps(make_trainer(tiny_llama(), training, lanes=2), preference_task(32))
    assert len(computed) < 16


def test_a_gradient_that_two_parameters_share_counts_once_for_each():
    left, right = (nn.Parameter(torch.ones(3)) for _ in range(2))
    gradients = GradientSum([left, right])
    for factor in (1.0, 10.0):
        gradients.backward(((left + right) * factor).sum())
    gradients.hand_over()
    for parameter in (left, right):
        torch.testing.assert_close(parameter.grad, torch.full((3,), 11.0))
        parameter.grad.mul_(2)
    torch.testing.assert_close(left.grad, torch.full((3,), 22.0))


def test_a_parameter_that_nothing_depends_on_gets_no_gradient():
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    gradients = GradientSum([used, unused])
    gradients.backward(used.sum())
    gradients.hand_over()
    assert unused.grad is None
    torch.testing.assert_close(used.grad, torch.ones(2))


def test_gradients_of_several_lanes_add_up():
    weight = nn.Parameter(torch.zeros(2))
    for factor in (1.0, 2.0):
        gradients = GradientSum([weight])
        gradients.backward((weight * factor).sum())
        gradients.hand_over()
    torch.testing.assert_close(weight.grad, torch.full((2,), 3.0))


@pytest.fixture
def trained():
    """``trained(lanes)``: metrics and weights after a training in so many lanes."""

    def train(lanes: int):
        policy = tiny_llama()
        trainer = make_trainer(policy, TRAINING, lanes=lanes)
        return run_steps(trainer, preference_task(29)), weights_of(policy)

    return train


def test_a_training_in_lanes_is_the_same_to_the_last_bit_every_time(trained):
    first, weights = trained(3)
    for _ in range(3):
        again, others = trained(3)
        assert again == first
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_training_in_lanes_is_the_one_without_but_for_rounding(trained):
    (alone, _), (lanes, _) = trained(1), trained(3)
    assert len(alone) == len(lanes) == 8
    for one, other in zip(alone, lanes, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4)


def test_the_loss_of_the_reserve_is_the_same_in_lanes():
    policy, task = tiny_llama(), preference_task(11)
    found = [make_trainer(policy, TRAINING, lanes=n).evaluate(task) for n in (1, 3)]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_a_loss_that_is_no_number_stops_the_training_before_the_update():
    policy, task = tiny_llama(), preference_task(8)
    before = weights_of(policy)
    reference = task.reference.copy()
    reference[5] = np.nan
    trainer = make_trainer(policy, TRAINING, lanes=2)
    with pytest.raises(DivergedError, match="pair-05"):
        run_steps(trainer, replace(task, reference=reference))
    after = weights_of(policy)
    assert all(torch.equal(before[name], after[name]) for name in before)
