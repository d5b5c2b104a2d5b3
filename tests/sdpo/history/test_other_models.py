"""The history of runs whose steps have other references than the model before, and of KL."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Outcome, Values
from histories import contents, flip, origin, replayed

from sdpo.errors import ModelError, RunExistsError
from sdpo.history.dryrun import NodeLine
from sdpo.history.gc import collect
from sdpo.history.lineage import lineage_of
from sdpo.history.replay import look, plan_replay
from sdpo.history.verify import verify_run
from sdpo.store.run_folder import RunFolder

NAME = "mixed"
PROBE = {"completions": 0, "bootstrap_resamples": 100, "max_pairs": 8}
KL = {"kl_prompts": 2, "kl_tokens": 6}


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Values, foreign_model: Path, tmp_path_factory: Any) -> Values:
    """Step 1 has a guide, step 2 a model with a tokenizer of its own; KL of both is measured."""
    given = tmp_path_factory.mktemp("models") / "given"
    shutil.copytree(foreign_model, given)
    steps = [{"reference": "guided"}, {"reference": "model", "reference_model": str(given)}]
    return {**tiny_recipe, "name": NAME, "probe": PROBE | KL, "steps": steps}


@pytest.fixture(scope="module")
def made_bench(recipe: Values, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("mixed"), recipe)


@pytest.fixture(scope="module")
def made(made_bench: Bench) -> Outcome:
    return made_bench.run()


@pytest.fixture
def copy(made_bench: Bench, made: Outcome, tmp_path: Path) -> Bench:
    assert made.folder.is_dir()
    return made_bench.copy_to(tmp_path)


def given_model(recipe: Values) -> Path:
    return Path(recipe["steps"][1]["reference_model"])


def named(run: RunFolder) -> str:
    findings = verify_run(run)
    return " | ".join([f"{f.file} {f.what}" for f in findings.faults] + findings.notes)


def by_node(lines: list[NodeLine]) -> dict[str, tuple[str, str]]:
    return {line.node: (line.action, line.reason) for line in lines}


# --- a run as it is


def test_a_run_with_a_guide_a_given_reference_and_kl_is_whole(copy: Bench) -> None:
    before = contents(copy.folder)
    findings = verify_run(origin(copy, NAME))
    assert (findings.faults, findings.notes) == ([], [])
    assert findings.records == 14, "with guide-1 and two of KL"
    assert contents(copy.folder) == before


def test_nothing_of_it_goes(copy: Bench) -> None:
    with collect(copy.runs) as found:
        assert (found.waste, found.notes) == ([], [])


def test_without_the_run_its_guide_and_its_kl_are_of_no_use(copy: Bench) -> None:
    shutil.copytree(origin(copy, NAME).path, copy.runs / "kept")
    shutil.rmtree(origin(copy, NAME).path)
    with collect(copy.runs) as found:
        assert found.waste == []
    shutil.rmtree(copy.runs / "kept")
    with collect(copy.runs) as found:
        whys = {waste.why for waste in found.waste}
    assert {
        "KL and samples of no run",
        "tokens of no run",
        "log-probs under a model of no run",
    } <= whys


@pytest.mark.parametrize(
    "pattern",
    [
        "runs/mixed/guide-1/model/model.safetensors",
        "runs/mixed/guide-1/model/lineage.json",
        "runs/mixed/guide-1/record.json",
        "runs/mixed/guide-1/reference.parquet",
        "runs/mixed/probes/M_2.kl.parquet",
        "runs/mixed/probes/M_1.samples.parquet",
        "runs/mixed/step-2/kl.json",
        "cache/kl/*/kl.parquet",
        "cache/kl/*/key.json",
        "cache/tokens/*.arrow",
        "cache/logps/*/checked-*.json",
    ],
)
def test_a_flipped_bit_is_named(copy: Bench, pattern: str) -> None:
    paths = sorted(copy.folder.glob(pattern))
    assert paths
    for path in paths:
        flip(path, path.stat().st_size // 2)
        found = named(origin(copy, NAME))
        assert path.name in found or f"{path.parent.name} " in found, path
        flip(path, path.stat().st_size // 2)
    assert verify_run(origin(copy, NAME)).faults == []


def test_a_step_whose_reference_is_not_the_guide_is_a_fault(copy: Bench) -> None:
    run = origin(copy, NAME)
    record = run.read_record("step-1")
    assert record is not None
    run.publish_record("step-1", record | {"inputs": record["inputs"] | {"reference": "0" * 64}})
    assert "its reference is 0000000000000000, and guide-1 is " in named(run)


def test_lineage_has_the_guide_and_the_given_model(copy: Bench, recipe: Values) -> None:
    moved = copy.folder / "moved"
    shutil.copytree(origin(copy, NAME).model(2), moved)
    shutil.rmtree(copy.runs)
    found = lineage_of(str(moved), runs_dir=copy.runs)
    assert found.is_whole, found.faults
    assert [
        (link.name, link.models["reference"], link.models["target"]) for link in found.links
    ] == [
        ("guide-1", "M_0", "M_0"),
        ("M_1", "guide-1", "M_0"),
        ("M_2", "given", "M_1"),
    ]
    assert found.inputs["reference.steps.1"] == found.links[2].reference
    assert found.links[0].data == found.links[1].data


# --- replays


def test_a_dry_run_knows_the_guide_the_reference_and_kl(copy: Bench) -> None:
    before = contents(copy.folder)
    found = by_node(look(plan_replay(origin(copy, NAME), step=2)))
    assert found["guide-1"] == found["step-1"] == found["kl-M_1"] == ("REUSE", "")
    assert found["step-2"] == ("RUN", "replayed")
    assert found["reference-2"] == ("REUSE", "")
    assert found["kl-M_2"] == ("RUN IF", "an earlier output differs")
    assert contents(copy.folder) == before
    first = by_node(look(plan_replay(origin(copy, NAME), step=1)))
    assert first["guide-1"] == first["reference-1"] == ("REUSE", "")
    assert (first["step-1"][0], first["step-2"][0]) == ("RUN", "RUN IF")
    assert first["reference-2"] == ("REUSE", ""), "the recipe names it, whatever M_1 becomes"


def test_a_step_with_a_given_reference_is_made_again_bitwise(copy: Bench) -> None:
    result, again = replayed(origin(copy, NAME), step=2)
    assert result.comparison.verdict == "bitwise identical"
    assert again.result.executed == ("step-2", "report")
    assert {"guide-1", "step-1", "kl-M_1", "kl-M_2"} <= set(again.result.shared)
    assert verify_run(again.run).faults == []


def test_a_guided_step_is_made_again_from_the_shared_guide(copy: Bench) -> None:
    there = origin(copy, NAME).path / "guide-1/model/model.safetensors"
    result, again = replayed(origin(copy, NAME), step=1)
    assert result.comparison.verdict == "bitwise identical"
    assert again.result.executed == ("step-1", "report")
    assert (again.folder / "guide-1/model/model.safetensors").samefile(there)
    assert verify_run(again.run).faults == []
    shutil.rmtree(origin(copy, NAME).path)
    findings = verify_run(again.run)
    assert findings.faults == []


def test_a_guide_that_is_damaged_in_the_origin_is_trained_again(copy: Bench) -> None:
    flip(origin(copy, NAME).path / "guide-1/model/model.safetensors")
    result, again = replayed(origin(copy, NAME), step=1)
    assert {"guide-1", "step-1"} <= set(again.result.executed)
    assert result.comparison.verdict == "bitwise identical"


def test_another_beta_makes_no_scoring_forward_of_a_given_reference(copy: Bench) -> None:
    result, again = replayed(origin(copy, NAME), "training.beta=0.3", step=2)
    assert result.comparison.inputs == ("training.beta: 0.1 -> 0.3",)
    assert "reference-2" not in again.result.executed
    assert again.record("step-2")["scored_rows"]["computed"] == 0


def test_another_choice_of_reference_is_told_beforehand_and_made(copy: Bench) -> None:
    run, override = origin(copy, NAME), "training.reference=base"
    lines = by_node(look(plan_replay(run, step=2, overrides=(override,))))
    assert lines["step-1"] == ("REUSE", "")
    assert lines["step-2"][0] == "RUN"
    action, why = lines["reference-2"]
    assert action == "RUN"
    assert "rows are not cached" in why
    result, again = replayed(run, override, step=2)
    assert result.comparison.verdict == "inputs differ"
    assert result.comparison.inputs[0].startswith("inputs.reference_tokenizer: ")
    assert "reference-2" in again.result.executed
    assert again.record("step-2")["models"]["reference"]["name"] == "M_0"
    assert verify_run(again.run).faults == []


def test_measuring_more_kl_is_no_reason_to_train_again(copy: Bench) -> None:
    run, override = origin(copy, NAME), "probe.kl_samples=2"
    found = by_node(look(plan_replay(run, step=2, overrides=(override,))))
    assert found["step-1"] == ("REUSE", "")
    assert found["kl-M_1"] == ("RUN", "samples: 1 -> 2")
    _, again = replayed(run, override, step=2)
    assert {"kl-M_1", "kl-M_2"} <= set(again.result.executed)
    assert "step-1" in again.result.shared


def test_kl_that_is_damaged_in_the_cache_is_measured_again(copy: Bench, made: Outcome) -> None:
    for path in copy.folder.glob("cache/kl/*/kl.parquet"):
        flip(path, path.stat().st_size // 2)
    again = copy.run({"name": "again"})
    assert {"kl-M_1", "kl-M_2"} <= set(again.result.executed)
    said = [event["message"] for event in again.events if event["event"] == "warning"]
    assert sum("is damaged, kl.parquet was changed: it is measured again" in m for m in said) == 2
    assert again.json("step-2/kl.json") == made.json("step-2/kl.json")
    assert verify_run(again.run).faults == []


def test_tokens_of_a_given_reference_that_are_damaged_are_made_again(
    copy: Bench, made: Outcome
) -> None:
    own = made.record("step-2")["models"]["reference"]["tokens"]
    path = copy.folder / "cache" / "tokens" / f"{own}.arrow"
    content = path.read_bytes()
    flip(path, len(content) // 2)
    _, again = replayed(origin(copy, NAME), "training.beta=0.3", step=2)
    assert "tokenise-reference-2" in again.result.executed
    assert path.read_bytes() == content


# --- references that are not what they were


def test_a_given_reference_that_changed_is_refused_with_its_digests(
    copy: Bench, recipe: Values
) -> None:
    weights = given_model(recipe) / "model.safetensors"
    was = origin(copy, NAME).read_run().inputs["reference.steps.1"]
    flip(weights)
    try:
        with pytest.raises(ModelError, match=f"reference model at .* has changed .* not {was}"):
            replayed(origin(copy, NAME), step=1)
        with pytest.raises(RunExistsError, match=r"inputs\.reference\.steps\.1: "):
            copy.run()
        assert "is another reference model now: its digest is" in named(origin(copy, NAME))
    finally:
        flip(weights)
    assert verify_run(origin(copy, NAME)).faults == []


def test_a_given_reference_that_is_gone_is_a_note(copy: Bench, recipe: Values) -> None:
    folder = given_model(recipe)
    folder.rename(folder.with_name("away"))
    try:
        findings = verify_run(origin(copy, NAME))
    finally:
        folder.with_name("away").rename(folder)
    assert findings.faults == []
    assert any("the reference model is not at" in note for note in findings.notes)
