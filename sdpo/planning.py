"""The partition node: which usable pair goes to which step, and what is measured everywhere."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partitions import (
    Pairs,
    PartitionSettings,
    Plan,
    get,
    make_plan,
    ordering_key,
    prompt_overlap,
    reserve_mask,
)
from sdpo.columns import Columns, append_columns
from sdpo.digest import tensor_entries
from sdpo.errors import ConfigError
from sdpo.files import digest_of, file_digest, publish_file, write_json
from sdpo.nodes import source_names, tokens_path
from sdpo.run import Context, run_once
from sdpo.tokens.store import TokenFile

Outcome = tuple[dict[str, Any], list[Path]]


def partition_settings(context: Context) -> PartitionSettings:
    """The recipe's partition group in the form that strategies read."""
    config = context.config.partition
    return PartitionSettings(
        strategy=config.strategy,
        order=config.order,
        groups=tuple(tuple(group) for group in config.groups),
        fractions=tuple(config.fractions),
        strata=tuple(config.strata),
        seed=config.seed,
    )


def needs_gamma(context: Context) -> bool:
    """Whether the partition strategy wants gamma of every pair under M_0."""
    settings = partition_settings(context)
    return "gamma" in get(settings.strategy).needs(settings)


def check(context: Context) -> None:
    """Refuse, before anything is trained or measured, what the run would refuse afterwards.

    Raises:
        PartitionError, ConfigError: as :func:`partition`; the order of steps plays no part in it.
    """
    settings = replace(partition_settings(context), order="given")
    pairs, _ = _pairs(context, Columns(context.run.usable), {})
    plan = make_plan(pairs, settings)
    _check_steps(context, plan)
    for step in plan.steps:
        _check_adapters(context, step.step)


def _check_adapters(context: Context, step: int) -> None:
    training = context.config.training_of(step)
    names = training.lora_target_modules
    if not training.lora_r or names == ["all-linear"]:
        return
    modules = [e.name.removesuffix(".weight") for e in tensor_entries(context.resolved.model)]
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            raise ConfigError(
                f"training.lora_target_modules of step {step}: no module of the model is named "
                f"`{name}`; there are {', '.join(sorted({m.split('.')[-1] for m in modules}))}"
            )


def _check_steps(context: Context, plan: Plan) -> None:
    steps, given = len(plan.steps), len(context.config.steps)
    if given > steps:
        raise ConfigError(
            f"`steps` has settings for {given} steps, but the partition makes {steps}"
        )


def partition(context: Context) -> Plan:
    """``plan.parquet`` and ``plan.json``: every usable pair's step, 0 for the reserve.

    Raises:
        PartitionError: the settings cannot be followed, or a step has no pairs.
    """
    usable = Columns(context.run.usable)
    features = _features(context) if needs_gamma(context) else {}
    settings = partition_settings(context)
    pairs, trained = _pairs(context, usable, features)
    plan = make_plan(pairs, settings)
    del pairs  # what follows needs the room
    _check_steps(context, plan)
    identity = {
        "usable": file_digest(context.run.usable),
        "settings": plan.to_dict()["settings"],
        "strategy": settings.strategy,
        "features": digest_of({k: v.tolist() for k, v in features.items()}) if features else "",
        "probe": {"max_pairs": context.config.probe.max_pairs, "seed": context.config.probe.seed},
    }

    def make() -> Outcome:
        step_of = np.zeros(usable.rows, dtype=np.int32)
        step_of[trained] = plan.step_of
        _publish_plan(context, usable, step_of, plan)
        return {"steps": len(plan.steps)}, [context.run.plan, context.run.plan_file]

    for name in plan.ignored_settings:
        message = f"partition.{name} has no effect on strategy `{settings.strategy}`"
        context.listen({"event": "warning", "message": message})
    run_once(context, "plan", identity, make)
    return plan


def _features(context: Context) -> dict[str, np.ndarray]:
    return {"gamma": pq.read_table(context.run.features)["gamma"].to_numpy()}


def _pairs(
    context: Context, usable: Columns, features: dict[str, np.ndarray]
) -> tuple[Pairs, np.ndarray]:
    """The pairs to be trained on as strategies see them, and their rows in ``usable``."""
    trained = np.flatnonzero(~usable.numbers("reserved"))
    names = source_names(context)
    return Pairs(
        ids=usable.ids("pair_id")[trained],
        source=usable.codes("source", names)[trained],
        source_names=tuple(names),
        strata=_strata(context, usable.numbers("token_row")[trained]),
        features={name: values[trained] for name, values in features.items()},
    ), trained


def _strata(context: Context, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Codes of the strata columns of these rows of ``pairs.parquet``."""
    columns = [name for name in context.config.partition.strata if name != "source"]
    if not columns or context.config.partition.strategy != "stratified":
        return {}
    pairs = Columns(context.run.pairs)
    found: dict[str, np.ndarray] = {}
    for column in columns:
        codes: dict[str, int] = {}
        values = np.empty(pairs.rows, dtype=np.int32)
        for start, part in pairs.parts("strata"):
            stated = pc.map_lookup(part, pa.scalar(column), "first").to_pylist()
            values[start : start + len(stated)] = [codes.setdefault(v, len(codes)) for v in stated]
        found[column] = values[rows]
    return found


def _publish_plan(context: Context, usable: Columns, step_of: np.ndarray, plan: Plan) -> None:
    sampled = _sampled(context, usable, step_of, steps=len(plan.steps))
    with publish_file(context.run.plan) as temporary:
        append_columns(
            usable.path,
            temporary,
            ["pair_id", "prompt_key", "source", "token_row"],
            {"step": step_of, "sampled": sampled},
        )
    write_json(context.run.plan_file, _plan_summary(context, usable, step_of, plan))


def _sampled(context: Context, usable: Columns, step_of: np.ndarray, *, steps: int) -> np.ndarray:
    """Which pairs every model is measured on, bool ``[rows]``: the reserve whole, a draw of each
    partition."""
    probe = context.config.probe
    order = np.argsort(ordering_key(usable.ids("pair_id"), probe.seed))
    sampled: np.ndarray = step_of == 0
    for number in range(1, steps + 1):
        members = order[step_of[order] == number]
        sampled[members[: probe.max_pairs]] = True
    return sampled


def _plan_summary(
    context: Context, usable: Columns, step_of: np.ndarray, plan: Plan
) -> dict[str, Any]:
    tokens = TokenFile.open(tokens_path(context))
    rows = usable.numbers("token_row")
    content = plan.to_dict()
    content["reserve"] = _reserve_counts(context)
    content["overlap"] = prompt_overlap(usable.ids("prompt_key"), step_of)
    for entry in content["steps"]:
        lengths = tokens.length_summary(rows[step_of == entry["step"]])
        entry["lengths"] = asdict(lengths)
    return content


def _reserve_counts(context: Context) -> dict[str, int]:
    record = context.run.read_record("reserve")
    assert record is not None, "the plan comes after the reserve"
    counts: dict[str, int] = record["outputs"]["reserved"]
    return counts


def plan_on_text(context: Context) -> Plan:
    """``plan.json`` from text alone: no tokenizer was asked, so lengths are in characters.

    Rows that only the tokenizer would reject are still in it.

    Raises:
        PartitionError: as :func:`partition`.
    """
    pairs, names = Columns(context.run.pairs), source_names(context)
    settings = context.config.data.reserve
    source, prompts = pairs.codes("source", names), pairs.ids("prompt_key")
    mask = reserve_mask(
        prompts,
        source,
        n_sources=len(names),
        fraction=settings.fraction,
        min_pairs=settings.min_pairs,
        max_fraction=settings.max_fraction,
        key=settings.key,
    )
    trained = np.flatnonzero(~mask)
    columns = Pairs(
        ids=pairs.ids("pair_id")[trained],
        source=source[trained],
        source_names=tuple(names),
        strata=_strata(context, trained),
    )
    plan = make_plan(columns, partition_settings(context))
    step_of = np.zeros(pairs.rows, dtype=np.int32)
    step_of[trained] = plan.step_of
    content = plan.to_dict()
    reserved = np.bincount(source[mask], minlength=len(names)).tolist()
    content["reserve"] = dict(zip(names, reserved, strict=True))
    content["overlap"] = prompt_overlap(prompts, step_of)
    content["unit"] = "characters"
    prompt, chosen, rejected = (
        pairs.numbers(f"{name}_chars") for name in ("prompt", "chosen", "rejected")
    )
    for entry in content["steps"]:
        members = step_of == entry["step"]
        total = (prompt + np.maximum(chosen, rejected))[members]
        median, p95 = np.quantile(total, [0.5, 0.95])
        sequence = {"median": float(median), "p95": float(p95), "maximum": int(total.max())}
        entry["lengths"] = {"sequence": sequence}
    write_json(context.run.plan_file, content)
    return plan
