"""Records come back as they were written, whoever wrote them."""

import json

import pytest
from pydantic import ValidationError

from sdpo.errors import IntegrityError
from sdpo.store.budget import Budget
from sdpo.store.records import (
    GateFacts,
    NodeRecord,
    PlanOutputs,
    StepFacts,
    StepRecord,
    scored_model,
)
from sdpo.store.run_folder import RunFolder

GATE = {
    "loss": 0.7,
    "expected_loss": 0.7,
    "max_abs_difference_nats": 1e-6,
    "tolerance_nats": 1e-3,
    "pairs": 4,
    "excess_loss": 0.0,
    "compared": "policy",
    "as_trained_nats": 0.0,
}
WRITTEN = {
    "step": 2,
    "name": "M_2",
    "kind": "preference",
    "identity": {"trainer_version": 3, "training": {"beta": 0.1}},
    "identity_digest": "ab" * 32,
    "models": {"target": {"choice": "previous", "name": "M_1"}},
    "inputs": {"target": "cd" * 32},
    "outputs": {"model": "ef" * 32},
    "optimizer_steps": 5,
    "pairs": 40,
    "gate": GATE,
    "scored_rows": {"computed": 40, "cached": 0},
    "resumed_at": [3],
    "budget": {"micro_batch_tokens": 64, "reductions": []},
    "training": {"objective": "dpo", "beta": 0.1},
    "timings_s": {"train": 1.5},
    "environment": {"device": "cpu"},
}
"""The fields of a step's record, in the order in which they stand in its file."""


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "trial")


def test_a_step_record_has_the_text_that_its_file_always_had():
    record = StepRecord.model_validate(dict(reversed(WRITTEN.items())))
    assert json.dumps(record.as_json()) == json.dumps(WRITTEN)


def test_a_budget_at_its_default_is_told_whole():
    facts = StepFacts(budget=Budget(**Budget(micro_batch_tokens=64).model_dump()))
    assert facts.model_dump(mode="json", exclude_unset=True) == {"budget": WRITTEN["budget"]}


def test_an_objective_without_a_reference_has_a_gate_that_is_none_and_says_so():
    facts = StepFacts(gate=None, gate_skipped="reads no reference")
    told = facts.model_dump(mode="json", exclude_unset=True)
    assert told == {"gate": None, "gate_skipped": "reads no reference"}


def test_what_an_earlier_version_did_not_write_has_a_default(run):
    old = {key: WRITTEN[key] for key in ("step", "kind", "outputs", "inputs")}
    run.publish_record(
        "step-2", old | {"gate": {"max_abs_difference_nats": 0, "tolerance_nats": 1}}
    )
    record = run.step_record("step-2")
    assert (record.name, record.models, record.shared_from, record.scored_rows) == (
        "",
        {},
        None,
        None,
    )
    assert record.gate == GateFacts(max_abs_difference_nats=0, tolerance_nats=1)
    assert record.gate.compared == "policy"


def test_what_a_later_version_wrote_stays(run):
    run.publish_record(
        "plan", {"identity": {}, "outputs": {"steps": 2, "mood": "good"}, "more": [1]}
    )
    record = run.record("plan")
    assert record.read_outputs(PlanOutputs).steps == 2
    assert record.model_extra == {"more": [1]}
    assert record.outputs["mood"] == "good"
    assert run.read_record("plan")["more"] == [1]


def test_a_record_of_something_else_is_refused_by_its_place_and_field(run):
    run.publish_record("step-2", WRITTEN | {"step": "second"})
    with pytest.raises(IntegrityError, match=r"step-2/record\.json is no record .*: step: Input"):
        run.find_step("step-2")
    run.publish_record("plan", {"identity": [], "outputs": {}})
    with pytest.raises(IntegrityError, match=r"plan\.json is no record .*: identity: Input"):
        run.find("plan")


def test_a_node_that_others_rest_on_has_to_be_there(run):
    assert run.find("data") is None
    assert run.find_step("step-1") is None
    with pytest.raises(IntegrityError, match=r"data\.json is not there, and others rest on it"):
        run.record("data")
    with pytest.raises(IntegrityError, match=r"record\.json is not there, and others rest on it"):
        run.step_record("step-1")


def test_outputs_of_another_node_are_not_taken_for_ones_own():
    record = NodeRecord(node="data", outputs={"pairs": 3})
    with pytest.raises(
        IntegrityError, match=r"record of data has outputs .*: steps: Field required"
    ):
        record.read_outputs(PlanOutputs)


def test_a_record_says_under_which_model_it_was_scored():
    assert scored_model(NodeRecord(identity={"scoring": {"model": "ab", "threads": 2}})) == "ab"
    assert scored_model(NodeRecord(identity={"usable": "cd"})) == ""


def test_a_record_is_not_changed():
    with pytest.raises(ValidationError, match="frozen"):
        StepRecord.model_validate(WRITTEN).step = 3
