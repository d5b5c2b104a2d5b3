"""Names of files, runs and models on the command line that are nearly right: what was meant is
told; and a step of a run is spelled alike for every command."""

from pathlib import Path

import pytest
from bench import Bench
from command_line import Sdpo
from safetensors import safe_open


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, data and a model's folder."""
    (tmp_path / "recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "first.yaml").write_text("name: mine\n", encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "recipe.yml"), "no recipe at {place}/recipe.yml: did you mean recipe.yaml?"),
        (("check", "recipe"), "no preset named `recipe`: did you mean `recipe.yaml`?"),
        (("partition", "Recipe.yaml"), "did you mean recipe.yaml?"),
        (("check", "recipse/first.yaml"), "did you mean recipes/first.yaml?"),
        (("check", "recipes"), "is a folder and no recipe: name the recipe in it (first.yaml)"),
        (("check", "demo.yaml"), "did you mean the preset `demo`?"),
        (("check", "demo.yml"), "did you mean the preset `demo`?"),
        (("check", "demmo"), "did you mean `demo`?"),
        (("recipes", "demmo"), "did you mean `demo`?"),
        (
            ("check", "demo", "--set", "data.sources=[{path: pairs.json}]"),
            "no data at {place}/pairs.json: did you mean pairs.jsonl?",
        ),
        (
            ("check", "demo", "--set", "model.name_or_path=./modles/tiny"),
            "no folder at {place}/modles/tiny: did you mean models/tiny?",
        ),
        (("gc", "--runs-dir", "recipe"), "did you mean recipe.yaml?"),
        (("server", "password", "--folder", "model"), "did you mean models?"),
        (("server", "form", "demo", "--folder", "model"), "did you mean models?"),
    ],
)
def test_a_near_miss_of_a_file_is_told(
    place: Path, sdpo: Sdpo, arguments: tuple[str, ...], told: str
) -> None:
    called = sdpo(*arguments)
    assert called.code == 2, called.told
    assert told.format(place=place) in called.told
    assert called.err.count("error:") == 1


def test_a_recipe_that_extends_a_near_miss_is_told_what_was_meant(place: Path, sdpo: Sdpo) -> None:
    for given, meant in (("recipe.yml", "recipe.yaml"), ("zephyr_7", "zephyr_7b")):
        (place / "more.yaml").write_text(f"extends: {given}\n", encoding="utf-8")
        assert f"did you mean {meant}?" in sdpo("check", "more.yaml").told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("status", "tinny"), "no run at {runs}/tinny (did you mean tiny?); runs there: tiny"),
        (("export", "Tiny", "out"), "did you mean tiny?"),
        (("verify", "{runs}/tinny"), "did you mean {runs}/tiny?"),
        (("report", "{runs}/tiny/step-9/x"), "neither a run, nor a step of one"),
        (("lineage", "tiny/1"), "did you mean tiny/step-1?"),
        (("promote", "tiny/step1"), "did you mean tiny/step-1?"),
        (("export", "tiny/M_2", "out"), "did you mean tiny/step-2?"),
        (("diff", "tiny/step_1", "tiny"), "did you mean tiny/step-1?"),
        (("replay", "tiny/steps-1"), "did you mean {runs}/tiny/step-1?"),
    ],
)
def test_a_near_miss_of_a_run_or_step_is_told(
    finished_copy: Bench, sdpo: Sdpo, arguments: tuple[str, ...], told: str
) -> None:
    given = [argument.format(runs=finished_copy.runs) for argument in arguments]
    called = sdpo(*given, "--runs-dir", finished_copy.runs)
    assert called.code == 2, called.told
    assert told.format(runs=finished_copy.runs) in called.told


def test_a_near_miss_of_a_promoted_name_is_told(finished_copy: Bench, sdpo: Sdpo) -> None:
    runs = ("--runs-dir", finished_copy.runs)
    assert sdpo("promote", "tiny", "--name", "chat", *runs).code == 0
    for command in (("current",), ("rollback",), ("retrain", "--source", "x.jsonl")):
        assert "(did you mean chat?)" in sdpo(*command, "chta", *runs).err


@pytest.mark.parametrize(
    "target",
    [
        ("tiny/step-1",),
        ("tiny", "--step", 1),
        ("tiny/step-1", "--step", 1),
        ("{runs}/tiny/step-1",),
        ("{runs}/tiny/step-1/model",),
        ("{runs}/tiny", "--step", 1),
    ],
    ids=lambda target: " ".join(map(str, target)),
)
def test_every_command_that_takes_a_step_takes_every_spelling_of_it(
    finished_copy: Bench, sdpo: Sdpo, target: tuple[str | int, ...]
) -> None:
    runs = ("--runs-dir", finished_copy.runs)
    given = [str(part).format(runs=finished_copy.runs) for part in target]
    out = finished_copy.folder / "out"
    called = sdpo("export", *given, out, "--dtype", "fp32", *runs)
    assert called.code == 0, called.told
    assert "M_1 in float32" in called.out
    theirs = finished_copy.runs / "tiny" / "step-1" / "model" / "model.safetensors"
    with safe_open(out / "model.safetensors", "np") as a, safe_open(theirs, "np") as b:
        name = next(iter(a.keys()))
        assert (a.get_tensor(name) == b.get_tensor(name)).all()
    assert "M_1 of run tiny" in sdpo("lineage", *given, *runs).out
    assert "M_1 of run tiny" in sdpo("promote", *given, *runs).out
    lines = sdpo("replay", *given, "--dry-run", *runs).told
    assert "step-1 replayed" in lines


@pytest.mark.parametrize("command", ["export", "lineage", "promote", "replay"])
def test_two_steps_that_differ_are_refused(finished_copy: Bench, sdpo: Sdpo, command: str) -> None:
    more = [finished_copy.folder / "out"] if command == "export" else []
    called = sdpo(command, "tiny/step-1", *more, "--step", 2, "--runs-dir", finished_copy.runs)
    assert called.code == 2
    assert "tiny/step-1 is step 1, and step 2 is asked for: give one" in called.err


@pytest.mark.parametrize("command", ["status", "report", "verify", "resume", "extend"])
def test_a_command_about_a_whole_run_does_not_take_a_step_for_it(
    finished_copy: Bench, sdpo: Sdpo, command: str
) -> None:
    more = ["--source", "x.jsonl"] if command == "extend" else []
    called = sdpo(command, "tiny/step-1", *more, "--runs-dir", finished_copy.runs)
    assert called.code == 2
    assert "tiny/step-1 is a step, and a run is asked for: tiny" in called.err


@pytest.mark.parametrize("name", ["bf16", "BF16", "torch.bfloat16"])
def test_export_takes_every_name_of_a_precision(
    finished_copy: Bench, sdpo: Sdpo, name: str
) -> None:
    out = finished_copy.folder / "out"
    called = sdpo("export", "tiny", out, "--dtype", name, "--runs-dir", finished_copy.runs)
    assert "M_2 in bfloat16" in called.out, called.told
    wrong = sdpo("export", "tiny", out, "--dtype", "int8", "--runs-dir", finished_copy.runs)
    assert "--dtype int8: known are float32, bfloat16, float16" in wrong.err
