"""Make the data nodes of a run that extends another: carry over what was, add what is new.

The origin's pairs, reserve and plan stay as they are, whatever made them: their files are shared
under ``carried/``. A new source is read; what the origin already has is a duplicate. Reserved
prompts stay reserved, prompts that were trained on can no longer become probes, and every new pair
that is left goes to one further step.
"""

import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from partitions import Plan, StepPlan, extend_plan, ids_to_bytes
from sdpo.chain.context import Context
from sdpo.chain.data import check_sources, tell_notes
from sdpo.chain.new_pairs import NewPairs, read_column, read_new
from sdpo.chain.node import Expansion, Find, Identity, Made, Node
from sdpo.chain.plan import Decision, planned, sampling
from sdpo.chain.plan_check import check_steps, checked
from sdpo.chain.plan_pairs import pairs_of, partition_settings
from sdpo.chain.planned_rounds import contents_of, rules_of_rounds
from sdpo.chain.reserve import reserve_by, reserved_by_settings
from sdpo.chain.tokens import rejected_as_tokens, rule_of_tokens
from sdpo.config import DataConfig, RunConfig, SourceConfig
from sdpo.data.pairs_file import BatchWriter, iter_row_groups
from sdpo.data.parquet_columns import Columns
from sdpo.data.schema import PAIRS_SCHEMA, Format
from sdpo.errors import DataError, IntegrityError
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import data_identity
from sdpo.plugins.recorded import inputs_of
from sdpo.store.links import link
from sdpo.store.plan_file import PlanFile, Round
from sdpo.store.records import DataOutputs, PlanOutputs
from sdpo.store.run_file import Carried
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import step_data
from sdpo.system.files import file_digest, publish_file, read_json, temporary_folder
from sdpo.system.json_values import Json

FILES = {
    "pairs.parquet": "pairs.parquet",
    "plan.parquet": "plan.parquet",
    "plan.json": "plan.json",
    "data.json": "nodes/data.json",
    "rejected_data_rows.jsonl": "nodes/rejected_data_rows.jsonl",
}
"""The files that are carried over: the name of each in ``carried/``, and its path in the origin."""
_OWN = re.compile(r"(pairs|usable)-(\d+)\.parquet")
"""So are called those of what a step has of its own."""


def carried_from(run: RunFolder, config: RunConfig) -> Carried:
    """Return what a run that extends ``run`` carries over; ``config`` is that of ``run``."""
    data, plan = run.record("data"), run.record("plan")
    supervised = run.find("step-0") if config.supervised.enabled else None
    return Carried(
        run=run.name,
        data=data.read_outputs(DataOutputs).digest,
        files={name: file_digest(run.path / _path(name)) for name in (*FILES, *_own_names(run))},
        sources=[source.name for source in config.data.sources],
        steps=plan.read_outputs(PlanOutputs).steps,
        supervised=digest_of(supervised.identity) if supervised else "",
    )


def _own_names(run: RunFolder) -> list[str]:
    """Return the names, in ``carried/``, of what the steps of an origin have of their own."""
    steps = [data.step for data in step_data(run)]
    return [f"{kind}-{step}.parquet" for step in steps for kind in ("pairs", "usable")]


def _path(name: str) -> str:
    """Return the path in the origin of a file by its name in ``carried/``."""
    own = _OWN.fullmatch(name)
    return f"step-{own[2]}/{own[1]}.parquet" if own else FILES[name]


def _carried_own(run: RunFolder, carried: Carried, kind: str) -> list[Path]:
    """Return the ``pairs`` or ``usable`` files that the carried steps have of their own."""
    named = [name for name in carried.files if (own := _OWN.fullmatch(name)) and own[1] == kind]
    return [carried_folder(run) / name for name in named]


def prepare_data(context: Context) -> Expansion:
    """Return the nodes that make ``pairs.parquet``: the origin's pairs, then those that are new."""
    carried = carried_by(context)
    config = _new_data(context.config.data, carried)
    default_format: Format = "chat" if context.resolved.has_template else "text"
    new_names = [source.name for source in config.sources]

    def identity() -> Identity:
        inputs = {f"data.{name}": context.resolved.inputs[f"data.{name}"] for name in new_names}
        for source in config.sources:
            inputs |= inputs_of("layouts", source.layout, context.resolved.inputs)
        new_config = context.config.model_copy(update={"data": config})
        own = data_identity(new_config, inputs, default_format=default_format)
        fits = {"fits": rule_of_tokens(context)} if config.limit else {}
        return own | {"carried": carried.data} | fits

    def make(_find: Find) -> Made:
        check_sources(context, new_names)
        if not new_names:
            return _publish_carried(context, carried)
        with temporary_folder(context.run.path) as scratch:
            new = read_new(
                config,
                [
                    carried_folder(context.run) / "pairs.parquet",
                    *_carried_own(context.run, carried, "pairs"),
                ],
                default_format=default_format,
                strata=context.config.partition.strata,
                scratch=scratch,
                origin=carried.run,
                rejected_as_tokens=partial(rejected_as_tokens, context),
            )
            tell_notes(context, new.prepared)
            return _publish_data(context, carried, new)

    data = Node(name="data", inputs=("carried",), identity=identity, make=make)
    return Expansion(
        title="prepare data",
        expand=lambda: [_carry(context, carried), data],
        foreseen=lambda: ("carried", "data"),
    )


def carried_by(context: Context) -> Carried:
    """Return what the run carries over.

    Raises:
        IntegrityError: it extends no other run.
    """
    if context.carried is None:
        raise IntegrityError(f"{context.run.run_file} says nothing of what the run carries over")
    return context.carried


def carried_folder(run: RunFolder) -> Path:
    """Return the folder in which a run keeps what it carries over."""
    return run.path / "carried"


def _carry(context: Context, carried: Carried) -> Node:
    """Return the node that links the carried files from a run that has them unchanged."""
    folder = carried_folder(context.run)

    def make(_find: Find) -> Made:
        for origin in context.origins:
            there = {name: origin.path / _path(name) for name in carried.files}
            if all(
                path.is_file() and file_digest(path) == carried.files[name]
                for name, path in there.items()
            ):
                for name, path in there.items():
                    link(path, folder / name)
                return Made({"run": origin.name}, [folder / name for name in carried.files])
        raise DataError(
            f"pairs and plan of run {carried.run}, which this run extends, are not to be had: put "
            f"that run back (see `sdpo verify {carried.run}`), or make this one anew"
        )

    return Node(name="carried", identity=lambda: {"files": dict(carried.files)}, make=make)


def _new_data(data: DataConfig, carried: Carried) -> DataConfig:
    """Return the data settings with the new sources only."""
    new = [source for source in data.given if source.name not in carried.sources]
    return data.model_copy(update={"sources": new})


def made_next(context: Context) -> list[SourceConfig]:
    """Return the source of which the further step is a round; none where it has new pairs."""
    carried = carried_by(context)
    return [each for each in context.config.data.generated if each.name not in carried.sources][:1]


def _publish_carried(context: Context, carried: Carried) -> Made:
    """Publish the carried pairs as all that there are: those of the further step are to be made."""
    run, folder = context.run, carried_folder(context.run)
    link(folder / "pairs.parquet", run.pairs)
    link(folder / "rejected_data_rows.jsonl", run.rejected_data)
    outputs = read_json(folder / "data.json")["outputs"]
    return Made({**outputs, "digest": carried.data}, [run.pairs, run.rejected_data])


def _publish_data(context: Context, carried: Carried, new: NewPairs) -> Made:
    run, folder = context.run, carried_folder(context.run)
    with publish_file(run.pairs) as temporary, BatchWriter(temporary, PAIRS_SCHEMA) as writer:
        for table in iter_row_groups(folder / "pairs.parquet"):
            writer.add_table(table)
        for table in new.tables():
            writer.add_table(table)
    with publish_file(run.rejected_data) as temporary:
        earlier = (folder / "rejected_data_rows.jsonl").read_bytes()
        temporary.write_bytes(
            earlier + new.prepared.rejected_path.read_bytes() + "".join(new.lines).encode()
        )
    there = read_json(folder / "data.json")["outputs"]
    prompts = read_column(run.pairs, "prompt_key")
    outputs: dict[str, Json] = there | {
        "digest": digest_of({"carried": carried.data, "new": new.prepared.digest}),
        "pairs": there["pairs"] + new.kept,
        "sources": [*there["sources"], *(asdict(source) for source in new.counts())],
        "repeated_prompt_share": 1 - len(set(prompts)) / len(prompts),
    }
    return Made(outputs, [run.pairs, run.rejected_data])


def reserve(context: Context) -> Node:
    """Return the node of :func:`sdpo.chain.reserve.reserve` for an extended run.

    What was reserved stays reserved; new sources add probes only of prompts that the origin has
    not.
    """
    carried = carried_by(context)

    def choose(pairs: np.ndarray, prompts: np.ndarray, source: np.ndarray) -> np.ndarray:
        there = Columns(carried_folder(context.run) / "plan.parquet")
        step_of_pair, steps = _carried_steps(there), there.numbers("step")
        keys = _keys(there.ids("prompt_key"))
        held = {key for key, step in zip(keys, steps, strict=True) if not step}
        known, ids = set(keys), _keys(pairs)
        for path in _carried_own(context.run, carried, "usable"):
            known.update(_keys(Columns(path).ids("prompt_key")))
        is_new = np.array([i not in step_of_pair for i in ids], dtype=bool)
        is_held = np.array([prompt in held for prompt in _keys(prompts)], dtype=bool)
        fresh = is_new & np.array([prompt not in known for prompt in _keys(prompts)], dtype=bool)
        if not fresh.any():
            chosen = np.zeros(0, dtype=bool)
        else:
            chosen = reserved_by_settings(context, prompts[fresh], source[fresh])
        # A prompt may be both reserved and trained in the origin only by mistake: its plan stands.
        mask = np.where(is_new, is_held, np.array([step_of_pair.get(i) == 0 for i in ids]))
        mask[fresh] = chosen
        return mask

    return reserve_by(context, choose, carried={"plan": carried.files["plan.parquet"]})


def _carried_steps(plan: Columns) -> dict[bytes, int]:
    """Return the step of every pair of the carried plan, by the bytes of its id."""
    return dict(zip(_keys(plan.ids("pair_id")), plan.numbers("step").tolist(), strict=True))


def _keys(ids: np.ndarray) -> list[bytes]:
    """Return each id as 16 bytes, which can be the key of a dictionary."""
    joined = ids_to_bytes(ids)
    return [joined[start : start + 16] for start in range(0, len(joined), 16)]


def check(context: Context) -> Expansion:
    """Return a check that refuses what would be refused later, before anything is measured."""

    def foresee() -> Plan:
        plan, _ = _plan(context, Columns(context.run.usable))
        check_steps(context, plan)
        return plan

    return checked(context, foresee)


def partition(context: Context) -> Expansion:
    """Return the node that makes ``plan.parquet`` and ``plan.json``: the origin's plan and a step.

    Expanding it raises a PartitionError where nothing is new, or where a carried step would not
    have the pairs that it had.
    """
    carried, rehearse = carried_by(context), context.config.partition.rehearse

    def decide() -> Decision:
        usable = Columns(context.run.usable)
        plan, trained = _plan(context, usable)
        features, scorers = _carried_features(context.run, usable)
        steps = _carried_plan(context.run).steps
        rounds = {step.step: step.generated for step in steps if step.generated}
        for made in made_next(context):
            rounds[len(steps) + 1] = Round(source=made.name, round=1)
        return Decision(plan, trained, features, scorers, rounds)

    def identity(_decision: Decision) -> Identity:
        return {
            "usable": file_digest(context.run.usable),
            "carried": carried.files["plan.parquet"],
            "probe": sampling(context),
            **({"rehearse": rehearse} if rehearse else {}),
            **rules_of_rounds(context, made_next(context)),
        }

    return planned(context, decide, identity)


def _carried_features(
    run: RunFolder, usable: Columns
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the features that the origin's plan rests on, and the digest of what gave each.

    Features are float64 per row of ``usable``; new pairs, for which nothing was measured, have NaN.
    """
    said = _carried_plan(run).features
    plan = Columns(carried_folder(run) / "plan.parquet")
    row_of = {pair: row for row, pair in enumerate(_keys(plan.ids("pair_id")))}
    rows = np.array([row_of.get(pair, -1) for pair in _keys(usable.ids("pair_id"))])
    columns = {name: plan.numbers(f"feature:{name}") for name in said}
    features = {name: np.where(rows < 0, np.nan, values[rows]) for name, values in columns.items()}
    return features, {name: entry["scorer"] for name, entry in said.items()}


def _carried_plan(run: RunFolder) -> PlanFile:
    path = carried_folder(run) / "plan.json"
    return PlanFile.of(read_json(path), path)


def _plan(context: Context, usable: Columns) -> tuple[Plan, np.ndarray]:
    """Return the plan, and the rows of ``usable`` that it assigns: those that are trained on."""
    there = _carried_plan(context.run)
    last = len(there.steps) + 1
    to_be_made = [
        contents_of(Round(source=made.name, round=1), last) for made in made_next(context)
    ]
    pairs, trained = pairs_of(context, usable, {})
    carried_rows, carried_step = _carried_entries(context.run, pairs.ids)
    plan = extend_plan(
        pairs,
        partition_settings(context),
        carried_rows=carried_rows,
        carried_step=carried_step,
        carried=[
            StepPlan(
                step=step.step,
                contents=step.contents,
                pairs=step.pairs,
                sources=step.sources,
                digest=step.digest,
            )
            for step in there.steps
        ],
        measured=there.measured,
        to_be_made="".join(to_be_made),
    )
    return plan, trained


def _carried_entries(run: RunFolder, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and step of every entry of the carried plan that is trained on and still there.

    Rows are positions in ``ids``, intp; steps are int32.
    """
    there = Columns(carried_folder(run) / "plan.parquet")
    row_of = {pair: row for row, pair in enumerate(_keys(ids))}
    rows = np.array([row_of.get(pair, -1) for pair in _keys(there.ids("pair_id"))], dtype=np.intp)
    steps = there.numbers("step").astype(np.int32)
    kept = (rows >= 0) & (steps > 0)
    return rows[kept], steps[kept]
