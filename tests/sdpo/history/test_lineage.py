"""How a checkpoint came to be, from its run and from the folder alone."""

import json
import shutil
from pathlib import Path

import pytest
from bench import Bench, Outcome
from histories import flip, origin, replayed

from sdpo.errors import UserError
from sdpo.history.lineage import lineage_of
from sdpo.history.target import locate


def test_a_run_has_the_lineage_of_its_last_model(finished: Outcome) -> None:
    found = lineage_of("tiny", runs_dir=finished.folder.parent)
    records = [finished.record(f"step-{step}") for step in (1, 2)]
    assert [link.model for link in found.links] == [r["outputs"]["model"] for r in records]
    assert found.links[0].target == found.inputs["model"]
    assert found.links[1].reference == records[0]["outputs"]["model"]
    assert found.links[1].data == records[1]["inputs"]["partition"]
    assert set(found.inputs) == {"model", "tokenizer", "data.questions", "data.requests"}
    assert found.is_whole
    assert found.digest == records[1]["outputs"]["model"]


@pytest.mark.parametrize("target", ["tiny/step-1", "step-1", "model"])
def test_a_checkpoint_is_named_or_given_by_its_path(finished: Outcome, target: str) -> None:
    path = {"step-1": str(finished.run.step(1)), "model": str(finished.run.model(1))}
    found = lineage_of(path.get(target, target), runs_dir=finished.folder.parent)
    assert (found.model, len(found.links)) == ("M_1", 1)
    assert found.is_whole


def test_a_folder_that_was_copied_elsewhere_knows_its_lineage(
    finished: Outcome, tmp_path: Path
) -> None:
    copied = tmp_path / "a_model"
    shutil.copytree(finished.run.model(2), copied)
    here, there = (
        lineage_of(str(folder), runs_dir=tmp_path) for folder in (finished.run.model(2), copied)
    )
    assert here.links == there.links
    assert here.inputs == there.inputs
    assert there.is_whole
    json.dumps(there.as_json())


def test_a_folder_that_holds_something_else_is_told(finished: Outcome, tmp_path: Path) -> None:
    copied = tmp_path / "a_model"
    shutil.copytree(finished.run.model(2), copied)
    flip(copied / "model.safetensors")
    found = lineage_of(str(copied), runs_dir=tmp_path)
    assert not found.is_whole
    assert found.faults[0].startswith("the folder does not hold M_2: its digest is ")
    (copied / "model.safetensors").unlink()
    assert "cannot be read" in lineage_of(str(copied), runs_dir=tmp_path).faults[0]


def test_a_chain_whose_links_do_not_meet_is_told(finished: Outcome, tmp_path: Path) -> None:
    copied = tmp_path / "a_model"
    shutil.copytree(finished.run.model(2), copied)
    content = json.loads((copied / "lineage.json").read_text())
    content["steps"].pop(0)
    (copied / "lineage.json").write_text(json.dumps(content))
    found = lineage_of(str(copied), runs_dir=tmp_path)
    assert "M_2 starts from" in found.faults[0]


NAMELESS = '{"steps": [{"step": 1, "inputs": {}, "outputs": {}}]}'


@pytest.mark.parametrize("text", ["{}", "no json", '{"steps": [1]}', '{"steps": []}', NAMELESS])
def test_what_is_no_lineage_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(UserError, match=r"lineage"):
        lineage_of(str(tmp_path), runs_dir=tmp_path)


def test_what_is_neither_run_nor_model_is_refused(finished: Outcome, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run at .*nothing; runs there: .*tiny"):
        lineage_of("nothing", runs_dir=finished.folder.parent)
    with pytest.raises(UserError, match="neither a run, nor a step of one"):
        lineage_of(str(tmp_path), runs_dir=tmp_path)
    with pytest.raises(UserError, match="no complete step 7; complete: 1, 2"):
        lineage_of("tiny/step-7", runs_dir=finished.folder.parent)


def test_a_replayed_run_has_a_lineage_of_its_own(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), "training.beta=0.2", step=2, name="again")
    found = lineage_of("again", runs_dir=finished_copy.runs)
    assert found.is_whole
    assert found.links[1].settings["beta"] == 0.2
    first = json.loads((again.run.model(1) / "lineage.json").read_text())
    assert first["run"] == "again"


def test_any_checkpoint_can_be_located_to_be_made_again(
    finished_copy: Bench, tmp_path: Path
) -> None:
    runs = finished_copy.runs
    copied = tmp_path / "elsewhere" / "a_model"
    shutil.copytree(runs / "tiny" / "step-2" / "model", copied)
    for target in ("tiny/step-2", str(runs / "tiny" / "step-2"), str(copied)):
        found = locate(target, runs_dir=runs)
        assert (found.run.path, found.step) == ((runs / "tiny").absolute(), 2)
    assert locate("tiny", runs_dir=runs).step is None
    with pytest.raises(UserError, match=r"M_2 of run tiny, and no run in .* has made it"):
        locate(str(copied), runs_dir=tmp_path / "none")
