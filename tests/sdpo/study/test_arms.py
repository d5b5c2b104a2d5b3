"""Arms and the recipes that they are run by."""

from pathlib import Path
from typing import Any

import pytest

from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.study.arms import ARMS, named_arms, own_arm, planned_steps, shared_steps, trials_of


def recipe(**changes: Any) -> RunConfig:
    sources = [{"name": name, "path": f"{name}.jsonl"} for name in ("a", "b")]
    return make_config({"name": "mine", "data": {"sources": sources}} | changes)


def trials(config: RunConfig, names: str, tmp_path: Path, **options: Any) -> Any:
    given = {"seeds": 1, "partition_seeds": False} | options
    arms = named_arms(names, options.pop("own", []), runs_dir=tmp_path)
    given.pop("own", None)
    return trials_of(config, arms, folder=tmp_path / "study", **given)


def test_each_arm_of_the_paper_changes_what_its_name_says(tmp_path: Path) -> None:
    found = {t.arm: t.config for t in trials(recipe(), ",".join(ARMS), tmp_path)}
    assert found["sdpo"].partition.strategy == "natural"
    assert found["dpo"].partition.strategy == "single"
    assert found["stratified"].partition.strategy == "stratified"
    assert found["random"].partition.strategy == "random"
    assert found["easy_first"].partition.order == "easy_first"
    assert found["hard_first"].partition.order == "hard_first"
    assert found["target_base"].training.target == "base"
    assert found["reference_base"].training.reference == "base"
    for config in found.values():
        assert config.training.seed == 42
        assert config.store.cache_dir == str(Path("cache").absolute())
        assert config.store.runs_dir == str(tmp_path / "study")


def test_seeds_are_training_seeds_those_of_the_partition_only_where_asked(tmp_path: Path) -> None:
    config = recipe(training={"seed": 7}, steps=[{}, {"seed": 100}])
    found = trials(config, "sdpo,random", tmp_path, seeds=3)
    assert [t.name for t in found] == [
        "sdpo", "random", "sdpo.seed-8", "random.seed-8", "sdpo.seed-9", "random.seed-9",
    ]  # fmt: skip
    assert [t.config.training.seed for t in found] == [7, 7, 8, 8, 9, 9]
    assert [t.config.training_of(2).seed for t in found] == [100, 100, 101, 101, 102, 102]
    assert {t.config.partition.seed for t in found} == {42}
    drawn = trials(config, "sdpo,random", tmp_path, seeds=2, partition_seeds=True)
    assert [t.config.partition.seed for t in drawn] == [42, 42, 43, 43]


def test_an_arm_of_ones_own_has_several_settings_and_commas_in_them() -> None:
    arm = own_arm("mine:partition.groups=[[a, b]],training.beta=0.3, training.seed=1")
    assert arm.overrides == ("partition.groups=[[a, b]]", "training.beta=0.3", "training.seed=1")


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 2),
        ({"partition": {"strategy": "single"}}, 1),
        ({"partition": {"groups": [["a", "b"]]}}, 1),
        ({"partition": {"strategy": "random", "fractions": [0.2, 0.3, 0.5]}}, 3),
        ({"partition": {"strategy": "score_gap"}}, 2),
    ],
)
def test_the_steps_of_a_recipe_are_known_before_its_plan(
    changes: dict[str, Any], steps: int
) -> None:
    assert planned_steps(recipe(**changes)) == steps


@pytest.mark.parametrize(
    ("other", "steps"),
    [
        ({"steps": [{}, {"beta": 0.5}]}, 1),
        ({"training": {"beta": 0.5}}, 0),
        ({"steps": [{"beta": 0.1}]}, 2),
        ({"training": {"exo_epsilon": 0.2}}, 2),  # which DPO does not read
        ({"partition": {"strategy": "single"}}, 0),
        ({"data": {"sources": [{"name": "a", "path": "a.jsonl"}, {"name": "b", "path": "c"}]}}, 0),
        ({"training": {"target": "base"}}, 1),
    ],
)
def test_first_steps_that_two_recipes_make_alike_are_counted(
    other: dict[str, Any], steps: int
) -> None:
    assert shared_steps(recipe(), recipe(**other)) == steps
