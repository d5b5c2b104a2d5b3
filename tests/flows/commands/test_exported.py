"""A copy of a model in another precision says what it is, and is checked by what it says."""

import json
from pathlib import Path

import pytest
from bench import Bench
from command_line import Sdpo
from histories import flip


@pytest.fixture
def exported(finished_copy: Bench, sdpo: Sdpo) -> Path:
    folder = finished_copy.folder / "copy"
    called = sdpo("export", "tiny", folder, "--runs-dir", finished_copy.runs)
    assert called.code == 0, called.told
    return folder


def test_a_copy_is_whole_and_says_its_precision(
    finished_copy: Bench, exported: Path, sdpo: Sdpo
) -> None:
    card = (exported / "README.md").read_text()
    assert ", bfloat16. Step 2" in card
    assert "fp32" not in card
    for command in ("verify", "lineage"):
        called = sdpo(command, exported, "--runs-dir", finished_copy.runs)
        assert called.code == 0, called.told
    elsewhere = sdpo("verify", exported, "--runs-dir", exported.parent / "none")
    assert elsewhere.code == 0
    assert "card and lineage cannot be compared" in " ".join(elsewhere.told.split())


def rewrite(folder: Path, change: str) -> None:
    path = folder / "lineage.json"
    content = json.loads(path.read_text())
    match change:
        case "settings":
            content["steps"][-1]["identity"]["training"]["beta"] = 9.0
        case "export":
            content["export"]["dtype"] = "float16"
    path.write_text(json.dumps(content))


DAMAGE = {
    "weights": ("the folder does not hold the copy of M_2", True),
    "card": ("README.md is not the card that was exported", True),
    "no card": ("README.md is not the card that was exported", True),
    "settings": ("copy/lineage.json was changed, by the records of tiny", False),
    "export": ("copy/README.md was changed, by the records of tiny", False),
    "adapter": ("is no part of the model", True),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_copy_that_was_changed_is_told_with_and_without_its_run(
    finished_copy: Bench, exported: Path, sdpo: Sdpo, what: str
) -> None:
    match what:
        case "weights":
            flip(exported / "model.safetensors")
        case "card":
            (exported / "README.md").write_text("Quite another model.")
        case "no card":
            (exported / "README.md").unlink()
        case "adapter":
            (exported / "pytorch_model.bin").write_bytes(b"x")
        case _:
            rewrite(exported, what)
    told, alone = DAMAGE[what]
    called = sdpo("verify", exported, "--runs-dir", finished_copy.runs)
    assert called.code == 1
    assert told in " ".join(called.told.split())
    assert "Traceback" not in called.told
    if alone:
        called = sdpo("verify", exported, "--runs-dir", exported.parent / "none")
        assert called.code == 1
        assert told in " ".join(called.told.split())


def test_a_lineage_of_another_form_is_one_message(exported: Path, sdpo: Sdpo) -> None:
    path = exported / "lineage.json"
    content = json.loads(path.read_text())
    for copy in (7, {}, {"dtype": 1, "model": "x", "card": "y"}):
        path.write_text(json.dumps({**content, "export": copy}))
        called = sdpo("verify", exported)
        assert called.code == 2
        assert "is damaged" in called.told
