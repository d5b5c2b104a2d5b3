"""bf16 on a CPU, where processors with AMX gain by it: every layout trains, and replays bitwise."""

import math

import pytest
from bench import Bench, Outcome, Values
from histories import origin, replayed

CHANGES = {
    "training": {"precision": "bf16"},
    "data": {"limit": 8},
    "probe": {"completions": 0},
}
LAYOUTS = ["auto", "packed", "padded"]
"""With the kernel of the demo `auto` is `shared`. FlexAttention has no compiled backward on a CPU:
in bf16 it is tried in `tests/sdpo/model/layouts/test_block_masks.py`."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    return Bench(tmp_path_factory.mktemp("bf16"), tiny_recipe)


@pytest.fixture(scope="module", params=LAYOUTS)
def trained(request: pytest.FixtureRequest, place: Bench) -> Outcome:
    layout = request.param
    return place.run(CHANGES | {"name": layout}, overrides=[f"training.layout={layout}"])


def test_both_steps_train_in_the_layout_that_was_asked_for(trained: Outcome) -> None:
    assert not [e["message"] for e in trained.events if e["event"] == "warning"]
    for step in (1, 2):
        gate = trained.record(f"step-{step}")["gate"]
        assert gate["loss"] == pytest.approx(math.log(2), abs=0.01)
        assert gate["max_abs_difference_nats"] <= gate["tolerance_nats"]


def test_a_replay_of_a_step_passes_the_gate_and_gives_the_same_model(
    trained: Outcome, place: Bench
) -> None:
    _, again = replayed(origin(place, trained.folder.name), step=2, only=True)
    step, other = trained.record("step-2"), again.record("step-2")
    assert other["outputs"] == step["outputs"]
    assert other["gate"] == step["gate"]
