"""Make a recipe of what a program has: a file, YAML text, a mapping, `datasets.Dataset` objects."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from sdpo.config import RunConfig, StepConfig  # noqa: F401 - mypy's plugin looks for it here
from sdpo.config import load as loading
from sdpo.errors import ConfigError
from sdpo.system.json_values import JsonObject

if TYPE_CHECKING:
    from datasets import Dataset

Overrides = JsonObject | Sequence[str]
"""Overrides are settings over a recipe's own: ``{"training.beta": 0.05}``, or
``["training.beta=0.05"]``."""


class Recipe(RunConfig):
    """A checked recipe, its groups as attributes: ``recipe.training.beta``. It is frozen.

    A source that was given as a ``datasets.Dataset`` has the path ``dataset:<name>``; its rows are
    kept beside it until :func:`sdpo.run` writes them into the run.
    """

    _datasets: "dict[str, Dataset]" = PrivateAttr(default_factory=dict)

    @property
    def datasets(self) -> "Mapping[str, Dataset]":
        """Return the ``datasets.Dataset`` of each path that stands for one."""
        return dict(self._datasets)


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | RunConfig,
    *,
    overrides: Overrides = (),
    presets: Path | None = None,
) -> Recipe:
    """Check a recipe, and say what each setting is then.

    ``recipe`` is a path, YAML text (a string with a line break or ``key: value``), a mapping of
    groups, or a recipe already. In a mapping ``path`` of a source, or of ``supervised``, may be a
    ``datasets.Dataset``; such a source needs a ``name``. ``presets`` is a folder whose recipes a
    recipe's file may name with ``extends``; a preset itself is given by the path of its file.

    Raises:
        ConfigError: with one line per fault; nothing is written.
    """
    datasets: dict[str, Dataset] = {}
    if isinstance(recipe, RunConfig):
        datasets |= recipe.datasets if isinstance(recipe, Recipe) else {}
        values = recipe.model_dump()
    elif isinstance(recipe, Mapping):
        values = _without_objects(recipe, datasets)
    elif isinstance(recipe, str) and ("\n" in recipe or ": " in recipe):
        values = loading.parse_recipe(recipe)
    elif isinstance(recipe, str | Path):
        path = Path(recipe).expanduser()
        values = {"name": path.stem, **loading.read_recipe(path, presets=presets)}
    else:
        raise ConfigError(
            f"a recipe is a path, YAML text or a mapping, and not a {type(recipe).__name__}"
        )
    if "extends" in values:
        raise ConfigError("extends: only a recipe that is a file can extend another: give its path")
    config = loading.make_config(values, overrides=override_lines(overrides))
    checked = Recipe.model_validate(config.model_dump())
    paths = {config.supervised.path, *(source.path for source in config.data.sources)}
    checked._datasets = {path: rows for path, rows in datasets.items() if path in paths}
    return checked


def override_lines(overrides: Overrides) -> list[str]:
    """Return overrides as the command line has them, ``group.key=value``.

    Raises:
        ConfigError: a value is neither text, number, boolean nor a list of these.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: give a list or a mapping, and not the text {overrides!r}")
    if not isinstance(overrides, Mapping):
        return list(overrides)
    try:
        return [
            f"{key}={json.dumps(str(value) if isinstance(value, Path) else value)}"
            for key, value in overrides.items()
        ]
    except TypeError as error:
        raise ConfigError(f"overrides: {error}: a data set is given in the recipe") from error


def is_dataset(value: object) -> bool:
    """Return whether ``value`` is a ``datasets.Dataset``, without loading the library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(value, library.Dataset)


def _without_objects(recipe: Mapping[str, Any], datasets: "dict[str, Dataset]") -> dict[str, Any]:
    """Return the recipe with a path for every data set, and add each set to ``datasets``."""
    values = dict(recipe)
    data = values.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("sources"), list | tuple):
        sources = [
            _without_object(source, f"data.sources.{index}", datasets)
            for index, source in enumerate(data["sources"])
        ]
        values["data"] = {**data, "sources": sources}
    values["supervised"] = _without_object(values.get("supervised", {}), "supervised", datasets)
    return values


def _without_object(group: Any, where: str, datasets: "dict[str, Dataset]") -> Any:
    path = group.get("path") if isinstance(group, Mapping) else None
    if path is None or isinstance(path, str):
        return group
    if isinstance(path, Path):
        return {**group, "path": str(path)}
    if not is_dataset(path):
        raise ConfigError(
            f"{where}.path: a {type(path).__name__} cannot be a source: give a path, a hub name or "
            "one split as a datasets.Dataset (of a DatasetDict: its [split]; of a list of rows: "
            "Dataset.from_list)"
        )
    name = "supervised" if where == "supervised" else group.get("name")
    if not name or not isinstance(name, str):
        raise ConfigError(f"{where}.name: a source that is a datasets.Dataset needs a name")
    placeholder = f"dataset:{name}"
    if placeholder in datasets and where == "supervised":
        placeholder = "dataset:supervised data"
    if datasets.setdefault(placeholder, path) is not path:
        raise ConfigError(f"two data sources are named `{name}`: give each a name of its own")
    return {**group, "path": placeholder}
