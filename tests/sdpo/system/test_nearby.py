"""What is said to be meant by a path that leads nowhere."""

from pathlib import Path

import pytest

from sdpo.system.nearby import did_you_mean, near_path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "recipe.yaml",
        "data/orca.jsonl.gz",
        "data/feedback.csv",
        "models/Tiny/config.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("recipe.yml", "recipe.yaml"),
        ("recipe", "recipe.yaml"),
        ("Recipe.YAML", "recipe.yaml"),
        ("recpie.yaml", "recipe.yaml"),
        ("./recipe.json", "recipe.yaml"),
        ("data/orca.jsonl", "data/orca.jsonl.gz"),
        ("dta/feedback.csv", "data/feedback.csv"),
        ("Data/Orca.json", "data/orca.jsonl.gz"),
        ("models/tiny", "models/Tiny"),
        ("models/tiny/config.jsn", "models/Tiny/config.json"),
        ("data/../recipe.yml", "data/../recipe.yaml"),
    ],
)
def test_each_wrong_part_is_replaced_by_what_is_most_like_it(
    folder: Path, given: str, meant: str
) -> None:
    assert near_path(Path(given)) == Path(meant)
    assert near_path(folder / given) == folder / meant
    name = meant if Path(given).parent != Path(meant).parent else Path(meant).name
    assert did_you_mean(Path(given)) == f": did you mean {name}?"


@pytest.mark.parametrize(
    "given",
    ["zzz", "data/zzz.parquet", "zzz/recipe.yaml", "recipe.yaml/x", "a\0b", "x" * 5000, "", "/"],
)
def test_what_is_like_nothing_there_has_no_hint(folder: Path, given: str) -> None:
    assert did_you_mean(Path(given)) == ""


def test_what_exists_is_not_said_to_be_something_else(folder: Path) -> None:
    assert did_you_mean(Path("recipe.yaml")) == ""
