"""Extend a run: in a new run the chain grows by a step over what is new in the data.

A schedule calls this when data has come in: the origin's steps are shared, pairs that it has not
seen become D_{T+1}, and training goes on from M_T. Where prompts have come in instead, M_T answers
those that no step has answered, and D_{T+1} is made of that (:mod:`sdpo.history.new_prompts`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdpo.chain.extended import carried_from
from sdpo.chain.new_pairs import find_new_pairs
from sdpo.chain.run_chain import ChainResult, run_chain
from sdpo.config import RunConfig, SourceConfig
from sdpo.config.load import make_config
from sdpo.data.readers import default_name
from sdpo.data.schema import Format
from sdpo.errors import ConfigError, RunExistsError, UserError
from sdpo.history.new_prompts import NewRound, find_new_prompts, round_of, untaken
from sdpo.history.replay import check_models_of, free_name, of_step
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.identity.differences import differences
from sdpo.identity.payloads import Payload, changed_settings
from sdpo.identity.ranks import but_ranks
from sdpo.inputs.resolve import resolve
from sdpo.store.records import PlanOutputs
from sdpo.store.run_file import Carried, Origin
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import Stored, read_stored
from sdpo.system.json_values import Json, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """An extension says how many pairs, or prompts, are new, and which run was made, if one was."""

    new_pairs: int
    chain: ChainResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """``made`` names the new source whose prompts the model answers; "": the pairs are there."""

    run: RunFolder
    stored: Stored
    config: RunConfig
    origin: Origin
    carried: Carried
    made: str


def extend_run(
    run: RunFolder,
    sources: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    name: str = "",
    min_new_pairs: int = 1,
    made: NewRound | None = None,
    host: Host = Host(),
    wait: bool = False,
) -> Extension:
    """Extend ``run`` by one step over those pairs of ``sources`` that it has not seen.

    With ``made``, in place of sources, the step's pairs are made of the answers to prompts that no
    step has answered; then these are what is new.

    ``sources`` are paths or hub names; ``overrides`` of ``training`` apply to the new step. Fewer
    than ``min_new_pairs`` new pairs make no run. Pairs are new by their text: what the origin has,
    trained or reserved, is not new. Pairs of prompts that it reserved are not counted, and never
    trained on.

    Raises:
        UserError: the run is not complete, the data cannot be read, or an override would change
            what is carried over.
        Fault: a stage failed; what was published stands.
    """
    plan = _plan(run, sources, overrides=overrides, name=name, made=made)
    new_pairs = len(_find(plan))
    if new_pairs < max(1, min_new_pairs):
        return Extension(new_pairs=new_pairs)
    chain = run_chain(
        plan.config,
        host=host,
        origin=plan.origin,
        carried=plan.carried,
        wait=wait,
    )
    return Extension(new_pairs=new_pairs, chain=chain)


def new_pairs_of(
    run: RunFolder,
    sources: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    made: NewRound | None = None,
) -> frozenset[str]:
    """Return the ids of the pairs, or prompts, that :func:`extend_run` would make a step of.

    Raises:
        UserError: as :func:`extend_run`, before anything is made.
    """
    return _find(_plan(run, sources, overrides=overrides, name="", made=made))


def effective_overrides(run: RunFolder, overrides: Sequence[str]) -> list[str]:
    """Return what ``overrides`` change in a further step of a run, each in one spelling, in order.

    Overrides that set what holds anyway are left out.

    Raises:
        ConfigError: one of them is not possible.
    """
    stored, step = read_stored(run), _complete(run) + 1
    changed = make_config(
        stored.config.model_dump(), overrides=[of_step(each, step) for each in overrides]
    )
    before, after = (_flat(_of_step(config, step)) for config in (stored.config, changed))
    return [
        f"{name}={json.dumps(after.get(name), sort_keys=True)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _of_step(config: RunConfig, step: int) -> dict[str, Json]:
    """Return a recipe as one step sees it."""
    values = config.model_dump(mode="json", exclude={"steps"})
    return values | {"training": config.training_of(step).model_dump(mode="json")}


def _flat(values: JsonObject, where: str = "") -> dict[str, Json]:
    """Return settings by their dotted names."""
    found: dict[str, Json] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value
    return found


def _plan(
    run: RunFolder,
    sources: Sequence[str],
    *,
    overrides: Sequence[str],
    name: str,
    made: NewRound | None,
) -> _Plan:
    stored = read_stored(run)
    steps = _complete(run)
    if made and sources:
        raise ConfigError(
            f"{', '.join(sources)} has pairs, and {made.prompts} has prompts of which pairs are "
            "made: a step is of one of them. Leave the other one out"
        )
    added = [round_of(stored.config, made)] if made else _named(stored.config, sources)
    values = stored.config.model_dump() | {"name": name or free_name(run, f"extended-{steps + 1}")}
    values["data"]["sources"] += [source.model_dump() for source in added]
    config = make_config(values, overrides=[of_step(o, steps + 1) for o in overrides])
    _check_carried(stored, config, steps)
    new = RunFolder(run.path.absolute().parent / config.name)
    origin = Origin(
        kind="extend",
        run=run.name,
        path=str(run.path.absolute()),
        identity=digest_of(stored.identity),
        step=steps + 1,
        overrides=list(overrides),
    )
    new.check_own()
    if new.run_file.is_file() and read_stored(new).origin != origin:
        raise RunExistsError(
            f"{new.name} exists and is another run: give the new run another name (--name)"
        )
    return _Plan(
        run=run,
        stored=stored,
        config=config,
        origin=origin,
        carried=carried_from(run, stored.config),
        made=added[0].name if made else "",
    )


def _complete(run: RunFolder) -> int:
    """Return the number of steps of a run that is complete.

    Raises:
        UserError: a step is missing, or there is no plan yet.
    """
    plan = run.find("plan")
    steps = plan.read_outputs(PlanOutputs).steps if plan else 0
    missing = [n for n in range(1, steps + 1) if n not in run.complete_steps()]
    if not steps or missing:
        what = f"step {missing[0]} is not complete" if missing else "it has no plan yet"
        raise UserError(
            f"run {run.name} cannot be extended, since {what}: finish it first (`sdpo resume "
            f"{run.name}`)"
        )
    return steps


def _named(config: RunConfig, sources: Sequence[str]) -> list[SourceConfig]:
    """Return the new sources, each with a name that no other source has."""
    if not sources:
        raise ConfigError("nothing to extend by: name a source (--source)")
    taken = {source.name for source in config.data.sources}
    added: list[SourceConfig] = []
    for path in sources:
        name = untaken(default_name(path.removeprefix("demo:")), taken)
        taken.add(name)
        added.append(SourceConfig(name=name, path=path))
    return added


def _find(plan: _Plan) -> frozenset[str]:
    known = plan.stored.data_inputs
    resolved = resolve(plan.config, known=known)
    check_models_of(plan.stored, resolved, plan.run.name)
    data = resolved.config.data
    new = [s for s in data.sources if s.name not in plan.carried.sources]
    default_format: Format = "chat" if resolved.has_template else "text"
    if plan.made:
        made = next(source for source in data.generated if source.name == plan.made)
        return find_new_prompts(made, plan.run, default_format=default_format)
    return find_new_pairs(
        data.model_copy(update={"sources": new}),
        plan.run,
        default_format=default_format,
        strata=plan.config.partition.strata,
    )


def _check_carried(stored: Stored, config: RunConfig, steps: int) -> None:
    """Refuse settings that would change the carried steps, or their data.

    Raises:
        ConfigError: names them.
    """
    old, new = (_bearing(c, steps) for c in (stored.config, config))
    if changes := differences(old, new):
        raise ConfigError(
            f"what run {config.name} carries over cannot change: {'; '.join(changes)}. Settings of "
            f"the new step are those of `training` (or steps.{steps}); for anything else run a "
            "recipe of its own"
        )


def _bearing(config: RunConfig, steps: int) -> Payload:
    """Return what the first ``steps`` steps and their data depend on."""
    return {
        "model": changed_settings(config.model, "step"),
        "data": changed_settings(config.data, "tokens"),
        "supervised": config.supervised.model_dump(),
        "partition": config.partition.model_dump(),
        "launch": but_ranks(changed_settings(config.launch, "step")),
        "steps": [config.training_of(number + 1).model_dump() for number in range(steps)],
    }
