"""Recipes that are bombs, and the YAML that is none."""

import time
from pathlib import Path

import pytest
import yaml
from bench import Outcome

from sdpo.config.load import load_recipe, make_config
from sdpo.errors import ConfigError, IntegrityError
from sdpo.store.run_folder import RunFolder
from sdpo.system.bounded_yaml import MalformedError, load_written_yaml, load_yaml


def laughs(levels: int) -> str:
    """Lists of nine aliases of lists of nine aliases ..."""
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["m0: &m0 {k0: 1}"]
    for level in range(1, levels):
        aliases = ", ".join([f"*m{level - 1}"] * 9)
        lines.append(f"m{level}: &m{level} {{<<: [{aliases}], k{level}: 1}}")
    return "\n".join(lines)


BOMBS = {
    "laughs": laughs(12),
    "merges": merges(12),
    "circle": "a: &a [*a]",
    "circle of mappings": "a: &a {b: {c: *a}}",
    "deep": "[" * 5_000 + "]" * 5_000,
    "deep mappings": "{a: " * 3_000 + "1" + "}" * 3_000,
    "integer": "a: " + "9" * 5_000,
    "hexadecimal": "a: 0x" + "f" * 9_000,
    "date": "a: 2020-13-45",
    "half": 'a: "\\ud800"',
    "zero": 'a: "\\0"',
    "control": "a: \x07",
    "tag": "a: !!python/object/apply:os.system [true]",
    "binary": "a: !!binary 5",
    "unhashable": "{[a]: 1}",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(MalformedError):
        load_yaml(text)
    with pytest.raises(MalformedError):
        load_written_yaml(text)
    with pytest.raises(ConfigError, match=r"bomb\.yaml is not YAML: "):
        load_recipe(path)
    assert time.process_time() - start < 10


def test_a_file_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(ConfigError, match="is no recipe: it has 10000000000 bytes"):
        load_recipe(path)


def test_a_run_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(laughs(12))
    with pytest.raises(IntegrityError, match="is damaged: it is not YAML"):
        RunFolder(tmp_path).read_run()


MERGED = {
    "one": "base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}",
    "several": "a: &a {x: 1}\nb: &b {x: 2, z: 3}\nmine: {<<: [*a, *b], y: 3}",
    "nested": "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nmine: {<<: *b, z: 3}\nagain: *b",
    "within": "z: &z {x: 1}\nmine: {<<: &m {<<: *z, x: 2}, k: *m}",
    "aliases": "a: &a [1, 2]\nb: *a\nc: {d: *a}",
    "plain": "a: 1\nb: [true, null, 1.5, text]\nc: {}",
    "empty": "",
}


@pytest.mark.parametrize("text", MERGED.values(), ids=MERGED)
def test_standard_yaml_is_read_as_everybody_reads_it(text: str) -> None:
    assert load_yaml(text) == load_written_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize("opening", ["[", "[\n", "{a: ", "- ", "? "])
def test_nesting_without_an_end_ends_no_process(opening: str) -> None:
    """libyaml's composer of nodes would: it is not asked."""
    with pytest.raises(MalformedError, match="nested too deeply"):
        load_written_yaml(opening * 100_000)


def test_a_caller_may_change_what_it_read_of_a_run(finished: Outcome) -> None:
    first = finished.run.check_there()
    first["config"] = {}
    first["inputs"]["model"] = "another"
    assert finished.run.check_there()["config"]
    assert finished.run.check_there()["inputs"]["model"] != "another"


def test_merge_keys_work_in_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "training: &t {beta: 0.5, learning_rate: 5e-7}\nsteps: [{}, {<<: {beta: 0.2}, epochs: 2}]"
    )
    config = load_recipe(path)
    assert config.training_of(2).beta == 0.2
    assert config.training_of(2).epochs == 2
    assert config.training_of(1).beta == 0.5


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: {<<: {b: 1}, <<: {c: 1}}", "{x: {y: 1, y: 1}}"])
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(MalformedError, match=r"line \d, column \d+: the key `.+` stands twice"):
        load_yaml(text)


FOREIGN = [
    "root:x:0:0:secret\n\tmore: [",
    "secret: [",
    "secret: 1\nsecret: 2",
    "a: *secret",
    "a: !secret 1",
    "- secret",
    "secret",
]


@pytest.mark.parametrize("content", FOREIGN)
def test_what_a_foreign_file_says_is_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "passwd").write_text(content)
    path = tmp_path / "mine.yaml"
    path.write_text("extends: passwd")
    with pytest.raises(ConfigError, match="passwd") as refused:
        load_recipe(path)
    assert "secret" not in str(refused.value)


def test_the_place_in_a_foreign_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model:\n  name_or_path: x\n bad: y")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml")
    with pytest.raises(ConfigError, match=r"base\.yaml is not YAML: line 3, column \d"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_chain_of_recipes_without_an_end_is_refused(tmp_path: Path) -> None:
    for number in range(1_500):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml")
    with pytest.raises(ConfigError, match="and so on, 50 times"):
        load_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    "override",
    [
        ".".join(["a"] * 2_000) + "=1",
        "steps.999999999999.beta=1",
        "steps." + "9" * 5_000 + ".beta=1",
        "data.sources.7777.path=x",
        "training.beta=" + "9" * 5_000,
        "training.beta=[" + "[" * 3_000,
        "training.beta=0x" + "f" * 9_000,
    ],
    ids=["deep", "far", "long", "thousands", "integer", "brackets", "hexadecimal"],
)
def test_an_override_that_nobody_writes_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_config({"steps": [], "data": {"sources": []}}, overrides=[override])
    assert len(str(refused.value)) < 20_000


def test_a_message_quotes_no_more_than_a_person_reads() -> None:
    with pytest.raises(ConfigError) as refused:
        make_config({"training": {"beta": "x" * 100_000}})
    assert len(str(refused.value)) < 500
