"""A layout is tried once under the same conditions, and again where one of them is another."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpo.config import TrainingConfig
from sdpo.model.layouts import attention
from sdpo.model.layouts.conditions import conditions
from sdpo.stages import layout_trial
from sdpo.stages.layout_trial import settle_layout
from sdpo.stages.session import open_session
from sdpo.stages.step import _rows_to_come
from sdpo.store.trials import FOLDER, note_passed, passed_with
from sdpo.system.files import checksum_path, checksum_text

from ..training_helpers.models import (
    RecordedEvents,
    preference_task,
    tiny_llama,
    write_tokens,
)
from ..training_helpers.runs import PreparedRun, prepare_run


@pytest.fixture
def run(tmp_path) -> PreparedRun:
    return prepare_run(tmp_path, pairs={0: 2, 1: 4})


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """The layouts that were tried, in order."""
    names: list[str] = []
    real = layout_trial.agrees

    def agrees(*args, layout: str, **options) -> str:
        names.append(layout)
        return real(*args, layout=layout, **options)

    monkeypatch.setattr(layout_trial, "agrees", agrees)
    return names


def settled(run: PreparedRun, **training) -> str:
    """The layout that a step takes."""
    settings = TrainingConfig(batch_size=4, **{"precision": "fp32"} | training)
    events = RecordedEvents()
    session = open_session(run.spec(1, settings), events)
    settle_layout(session, run.token_file(), _rows_to_come(session.spec), events)
    return session.layout


def test_a_layout_that_has_passed_is_not_tried_again(run, tried):
    assert settled(run) == settled(run) == "shared"
    assert tried == ["shared"]


@pytest.mark.parametrize(
    ("compared", "pairs", "longest"), [(True, 2, [32, 24, 17]), (False, 3, [96, 96, 96])]
)
def test_a_known_architecture_is_tried_on_the_beginnings_of_few_pairs(
    tmp_path, monkeypatch, compared, pairs, longest
):
    task = preference_task(6)
    long = {
        name: [np.tile(ids, 20) for ids in getattr(task, name)]
        for name in ("prompts", "chosen", "rejected")
    }
    tokens = write_tokens(tmp_path / "tokens.arrow", replace(task, **long))
    monkeypatch.setattr(layout_trial, "was_compared", lambda _: compared)
    groups = layout_trial._tried_groups(tiny_llama(), tokens, np.arange(6))
    parts = np.array([[len(g.prompt), *map(len, g.completions)] for g in groups])
    assert len(parts) == pairs
    assert parts.max(0).tolist() == longest


def test_another_layout_is_tried_by_itself(run, tried):
    settled(run)
    assert settled(run, layout="packed") == "packed"
    assert tried == ["shared", "packed"]


def test_what_did_not_pass_is_tried_each_time(run, tried, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(attention, "_on_cpu", broken)
        assert [settled(run), settled(run)] == ["padded", "padded"]
    # The padded rows have passed the first time: they use the model's own attention.
    assert tried == ["shared", "padded", "shared"]
    assert settled(run) == "shared", "once the fault is mended"


def test_a_trial_without_gradients_for_want_of_memory_does_not_count(run, monkeypatch):
    real, asked = layout_trial.agrees, []

    def short(*args, gradients: bool, **options) -> str:
        asked.append(gradients)
        if gradients:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, gradients=gradients, **options)

    monkeypatch.setattr(layout_trial, "agrees", short)
    assert settled(run) == settled(run) == "shared"
    assert asked == [True, False, True, False]


@pytest.mark.parametrize(
    ("change", "sealed"),
    [
        (lambda note: note | {"longest": 10_000}, False),
        (lambda note: note | {"longest": "long"}, True),
        (lambda note: note | {"conditions": note["conditions"] | {"layout": "flex"}}, True),
        (lambda note: note | {"by": "hand"}, True),
        (lambda note: [], True),
    ],
)
def test_a_note_that_is_damaged_counts_for_nothing(run, tried, change, sealed):
    settled(run)
    (path,) = (run.cache / FOLDER).glob("*.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    if sealed:
        checksum_path(path).write_text(checksum_text(path))
    settled(run)
    assert tried == ["shared", "shared"]
    settled(run)
    assert tried == ["shared", "shared"], "the trial has written it anew"


def test_longer_sequences_than_were_tried_are_tried(tmp_path):
    note_passed(tmp_path, {"layout": "shared"}, 100)
    note_passed(tmp_path, {"layout": "shared"}, 60)
    assert passed_with(tmp_path, {"layout": "shared"}) == 100
    assert passed_with(tmp_path, {"layout": "packed"}) == 0


def known(policy, **changes):
    given = {"layout": "shared", "precision": "fp32", "device": torch.device("cpu")}
    return conditions(policy, gradients=True, **given | changes)


def test_the_weights_and_where_they_came_from_are_no_conditions():
    one, other = tiny_llama(), tiny_llama()
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    other.config._name_or_path = "elsewhere"
    assert known(one) == known(other)


def change_window(policy):
    policy.config.max_position_embeddings += 1


def change_rope(policy):
    policy.config.rope_parameters["rope_theta"] *= 2


def change_kernel(policy):
    policy.set_attn_implementation("eager")


def test_precision_device_and_gradients_are_conditions():
    policy = tiny_llama()
    others = [
        known(policy, precision="bf16"),
        known(policy, device=torch.device("meta")),
        conditions(
            policy, layout="shared", precision="fp32", device=torch.device("cpu"), gradients=False
        ),
    ]
    assert known(policy) not in others


@pytest.mark.parametrize("change", [change_window, change_rope, change_kernel])
def test_what_the_architecture_computes_is_a_condition(change):
    one, other = tiny_llama(), tiny_llama()
    change(other)
    assert known(one) != known(other)


def test_versions_and_this_projects_code_are_conditions(monkeypatch):
    policy = tiny_llama()
    before = known(policy)
    with monkeypatch.context() as patch:
        patch.setattr("sdpo.model.layouts.conditions.versions", lambda: {"torch": "3.0"})
        assert known(policy) != before
    monkeypatch.setattr("sdpo.model.layouts.conditions._own_code", lambda: "worked on")
    assert known(policy) != before


def test_of_a_models_own_code_nothing_is_known():
    policy = tiny_llama()
    policy.config.auto_map = {"AutoModelForCausalLM": "own.Model"}
    assert known(policy) is None


def test_an_infinity_in_a_configuration_is_no_obstacle(tmp_path):
    policy = tiny_llama()
    policy.config.time_step_limit = (0.0, float("inf"))
    found = known(policy)
    note_passed(tmp_path, found, 7)
    assert passed_with(tmp_path, found) == 7
