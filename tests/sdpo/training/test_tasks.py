import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo.training.tasks import PreferenceTask, SupervisedTask


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


@pytest.fixture
def pairs() -> PreferenceTask:
    """The worked pairs A and B of the objectives, as items 0 and 2."""
    return PreferenceTask(
        ids=["a", "c", "b"],
        prompts=[ids(1, 2), ids(1), ids(3)],
        chosen=[ids(4), ids(5), ids(6, 7)],
        rejected=[ids(8, 9, 10), ids(11), ids(12)],
        reference=np.array([[-22, -28], [0, 0], [-40, -38]], dtype=np.float32),
        objective="dpo",
        settings={"beta": 0.1},
    )


A_AND_B = np.array([0, 2])
LOGPS = torch.tensor([-20.0, -45.0, -30.0, -36.0])
"""Chosen of A and B, then rejected of A and B."""


def test_sequences_are_chosen_sides_then_rejected_sides_each_after_its_prompt(pairs):
    sequences = pairs.sequences(A_AND_B)
    assert [s.ids.tolist() for s in sequences] == [[1, 2, 4], [3, 6, 7], [1, 2, 8, 9, 10], [3, 12]]
    assert [s.prompt for s in sequences] == [2, 1, 2, 1]
    assert len(sequences) == pairs.rows * len(A_AND_B)


def test_every_pair_counts_once(pairs):
    assert pairs.weights(A_AND_B).tolist() == [1, 1]


def test_losses_are_those_of_the_objective_against_each_items_own_reference(pairs):
    losses = pairs.losses(LOGPS, A_AND_B)
    assert losses.loss.tolist() == pytest.approx([0.513015, 1.103186], abs=1e-6)
    swapped = pairs.losses(LOGPS[[1, 0, 3, 2]], A_AND_B[::-1].copy())
    assert swapped.loss.tolist() == losses.loss.tolist()[::-1]


def test_metrics_by_hand(pairs):
    metrics = {
        name: values.tolist() for name, values in pairs.losses(LOGPS, A_AND_B).metrics.items()
    }
    assert metrics == {
        "rewards/chosen": pytest.approx([0.2, -0.5]),
        "rewards/rejected": pytest.approx([-0.2, 0.2]),
        "rewards/accuracies": [1.0, 0.0],
        "rewards/margins": pytest.approx([0.4, -0.7]),
        "logps/chosen": [-20.0, -45.0],
        "logps/rejected": [-30.0, -36.0],
    }


def test_metric_names_are_those_of_trl(pairs):
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.origin is not None
    theirs = (Path(found.origin).parent / "trainer" / "dpo_trainer.py").read_text()
    for name in pairs.losses(LOGPS, A_AND_B).metrics:
        assert f'"{name}"' in theirs, f"TRL logs nothing as {name}"


def test_only_the_loss_carries_a_gradient(pairs):
    logps = LOGPS.clone().requires_grad_()
    losses = pairs.losses(logps, A_AND_B)
    losses.loss.sum().backward()
    chosen, rejected = logps.grad.view(2, -1)
    assert (chosen < 0).all()
    assert (rejected > 0).all()
    assert not any(values.requires_grad for values in losses.metrics.values())


def test_a_tie_is_not_an_accurate_pair(pairs):
    tie = torch.tensor([-22.0, -28.0])
    losses = pairs.losses(tie, np.array([0]))
    assert losses.metrics["rewards/accuracies"].tolist() == [0.0]
    assert losses.loss.tolist() == pytest.approx([0.6931472])


@pytest.fixture
def examples() -> SupervisedTask:
    return SupervisedTask(
        ids=["a", "b"],
        prompts=[ids(1, 2), ids(3)],
        completions=[ids(4), ids(5, 6, 7)],
    )


def test_an_example_is_one_sequence(examples):
    sequences = examples.sequences(np.array([1, 0]))
    assert [s.ids.tolist() for s in sequences] == [[3, 5, 6, 7], [1, 2, 4]]
    assert [s.prompt for s in sequences] == [1, 2]


def test_an_example_counts_by_its_tokens_and_costs_its_negative_log_likelihood(examples):
    items = np.array([0, 1])
    assert examples.weights(items).tolist() == [1.0, 3.0]
    losses = examples.losses(torch.tensor([-2.0, -9.0]), items)
    assert losses.loss.tolist() == [2.0, 9.0]
    assert losses.metrics == {}
