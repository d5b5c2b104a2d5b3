"""A changed default is a new version: else an old result would serve as the new one."""

import json
from pathlib import Path
from typing import Any

import pytest
from defaults_table import bearing_defaults, faults

from sdpo.config import DataConfig, RunConfig, SupervisedConfig
from sdpo.identity.payloads import DATA_VERSION, TRAINER_VERSION

TABLES = json.loads(
    (Path(__file__).parents[2] / "golden" / "defaults.json").read_text(encoding="utf-8")
)
DEFAULTS = {
    "TRAINER_VERSION": dict(bearing_defaults(RunConfig)),
    # What pairs are made of has a version of its own: a new trainer does not read them anew.
    "DATA_VERSION": dict(bearing_defaults(DataConfig, "data", "data."))
    | dict(bearing_defaults(SupervisedConfig, "data", "supervised.")),
}
VERSIONS = {"TRAINER_VERSION": TRAINER_VERSION, "DATA_VERSION": DATA_VERSION}


def found(constant: str, *, later: int = 0, **changed: Any) -> list[str]:
    """What is said of the defaults with ``changed`` ones (None: gone), ``later`` versions on."""
    defaults = DEFAULTS[constant] | {
        path.replace("__", "."): value for path, value in changed.items()
    }
    defaults = {path: value for path, value in defaults.items() if value != "gone"}
    return faults(TABLES[constant], VERSIONS[constant] + later, defaults, constant=constant)


@pytest.mark.parametrize("constant", DEFAULTS)
def test_defaults_are_those_of_the_version(constant: str) -> None:
    lines = found(constant)
    assert not lines, "tests/golden/defaults.json: " + "\n".join(lines)


def test_the_table_has_what_bears_identity_alone() -> None:
    of_trainer, of_data = DEFAULTS.values()
    assert of_trainer["training.learning_rate"] == 5e-7
    assert of_trainer["steps.0.beta"] is None
    assert of_data["data.sources.0.split"] == of_trainer["data.sources.0.split"] == "train"
    assert not {"name", "store.runs_dir", "training.checkpoint_minutes"} & of_trainer.keys()
    assert "supervised.split" in of_data
    assert not {"data.max_length", "data.sources.0.path", "supervised.epochs"} & of_data.keys()


@pytest.mark.parametrize(
    ("constant", "path", "old"),
    [("TRAINER_VERSION", "training__beta", "0.1"), ("DATA_VERSION", "data__seed", "42")],
)
def test_a_changed_default_needs_a_new_version(constant: str, path: str, old: str) -> None:
    (line,) = found(constant, **{path: 0.2})
    assert line.startswith(f"{path.replace('__', '.')} was {old} and is 0.2")
    assert f"raise {constant} to {VERSIONS[constant] + 1}" in line


def test_a_new_field_needs_an_entry_and_no_new_version_where_it_is_neutral() -> None:
    (line,) = found("TRAINER_VERSION", training__new=0)
    assert f"add it to the table of TRAINER_VERSION {TRAINER_VERSION}" in line


def test_a_field_that_goes_and_a_version_without_table_are_told() -> None:
    (line,) = found("TRAINER_VERSION", training__beta="gone")
    assert line.startswith("training.beta is gone")
    (line,) = found("TRAINER_VERSION", later=1)
    assert line.startswith(f"there is no table of TRAINER_VERSION {TRAINER_VERSION + 1}")
