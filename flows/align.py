"""Define the Prefect flow of a run by a recipe, a preset or a file, with a short form.

The form has what most people change; :mod:`flows.align_full` has the whole recipe as its form.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run

from flows.recipes.presets import Preset, configured, presets
from flows.ui.folder import enter_folder
from flows.ui.form import Empty, form, required_text
from flows.ui.runpage import RunPage
from sdpo.chain.run_chain import ChainResult, run_chain
from sdpo.config import RunConfig
from sdpo.config.annotations import NO_UNIT, Unit
from sdpo.config.strategies import strategy_names
from sdpo.errors import ConfigError
from sdpo.events import NoteEvent
from sdpo.objectives import objective_names
from sdpo.system.json_values import Json

_AS_RECIPE = "Empty: as the recipe says."
_FAMILY = 5
"""So many presets of one paper, or more, are listed by their names alone."""


def _presets() -> str:
    """Return a line for each preset; for those of a paper with many, one for all of them."""
    papers: dict[str, list[Preset]] = {}
    for preset in presets():
        papers.setdefault(preset.paper, []).append(preset)
    lines = []
    for paper, members in papers.items():
        if len(members) < _FAMILY:
            lines += [f"- `{preset.name}`: {preset.summary}" for preset in members]
        else:
            names = ", ".join(f"`{preset.name}`" for preset in members)
            lines.append(f"- the rows of arXiv {paper}: {names}")
    return "\n\n".join(sorted(lines, key=lambda line: (not line.startswith("- `demo`"), line[2])))


_DESCRIPTIONS = {
    "recipe": "Name of a preset, or path of a recipe file (YAML) where the worker runs. `demo` "
    f"needs no data and no model of yours. Presets:\n\n{_presets()}",
    "model": "Base model: a folder or a hub name, at its default revision. "
    f"`model.name_or_path`. {_AS_RECIPE}",
    "sources": "Preference pairs, one file, folder or hub name a line, instead of the recipe's. "
    f"`data.sources`. {_AS_RECIPE}",
    "strategy": f"Which pair goes to which step. `partition.strategy`. {_AS_RECIPE}",
    "objective": "Objective of every step that has none of its own. `training.objective`. "
    f"{_AS_RECIPE}",
    "beta": f"Strength of the pull to the reference. `training.beta`. {_AS_RECIPE}",
    "learning_rate": f"Peak learning rate. `training.learning_rate`. {_AS_RECIPE}",
    "name": "Letters, digits, `.`, `_` and `-`. A run of that name that is there goes on, and does "
    f"not begin anew. {_AS_RECIPE}",
    "limit": f"Pairs per source, for a smoke run; 0: all. `data.limit`. {_AS_RECIPE}",
    "overrides": "Any other setting, one a line, as the command line's `--set` takes it: "
    "`training.epochs=2`. The form of `align-full` has all of them.",
}
_SETTINGS = {
    "model": "model.name_or_path",
    "strategy": "partition.strategy",
    "objective": "training.objective",
    "beta": "training.beta",
    "learning_rate": "training.learning_rate",
    "limit": "data.limit",
}
"""Each field stands for this setting; `sources` stands for a list of them."""


def _run_name() -> str:
    """Return the run's name in the UI: its own, else its recipe's, which a retry keeps."""
    given = flow_run.parameters
    return str(given.get("name") or Path(str(given.get("recipe") or "")).stem or flow_run.name)


# Parameters are validated by recipe_of, which says it better.
@form(_DESCRIPTIONS, labels={"name": "Name of the run's folder"})
@flow(name="sdpo-align", flow_run_name=_run_name, validate_parameters=False)
def align(
    recipe: Annotated[str, required_text()] = "",
    model: str = "",
    sources: list[str] = [],  # noqa: B006 - never mutated
    strategy: Annotated[str | None, Empty("string", names=strategy_names)] = None,
    objective: Annotated[str | None, Empty("string", names=objective_names)] = None,
    beta: Annotated[float | None, Unit(NO_UNIT), Empty("number", above=0)] = None,
    learning_rate: Annotated[float | None, Unit(NO_UNIT), Empty("number", above=0)] = None,
    name: str = "",
    limit: Annotated[int | None, Unit("pairs"), Empty("integer", least=0)] = None,
    overrides: list[str] = [],  # noqa: B006 - never mutated
) -> ChainResult:
    """Align a model in steps by a recipe, with a few settings changed."""
    enter_folder()
    config = recipe_of(
        recipe,
        fields={
            "model": model,
            "strategy": strategy,
            "objective": objective,
            "beta": beta,
            "learning_rate": learning_rate,
            "limit": limit,
        },
        sources=sources or [],
        name=name or "",
        overrides=overrides or [],
    )
    return align_config(config)


def recipe_of(
    recipe: str,
    *,
    fields: Mapping[str, str | float | None],
    sources: list[str],
    name: str,
    overrides: list[str],
) -> RunConfig:
    """Return the recipe with what the form's ``fields`` change; an empty one changes nothing.

    Raises:
        ConfigError: no recipe is named, there is none of that name, or a setting is given twice or
            cannot be.
    """
    if not recipe.strip():
        raise ConfigError("which recipe is to be run? Give `recipe`: `demo`, or a file's path")
    given = {_SETTINGS[field]: value for field, value in fields.items() if value not in ("", None)}
    changes: dict[str, Json] = dict(given)
    if "model.name_or_path" in changes:
        changes["model.revision"] = ""  # that of the recipe is of another model
    if sources:
        changes["data.sources"] = [{"path": path} for path in sources]
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in given or (sources and key.split(".")[:2] == ["data", "sources"]):
            raise ConfigError(f"`{key}` is given in a field and among the overrides: choose one")
    settings = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return configured(Path(recipe.strip()), overrides=[*settings, *overrides], name=name)


def align_config(config: RunConfig) -> ChainResult:
    """Run the chain with its nodes as tasks; this is the flow's body, called inside a flow run."""
    with RunPage(config.name) as page:
        result = run_chain(config, host=page.host)
        if not result.executed:
            already = f"run {result.run.name} was complete already: nothing was trained"
            page.host.listen(NoteEvent(message=f"{already}. Another name makes another run"))
        page.finish(result.run)
    return result
