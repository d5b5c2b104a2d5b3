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
from sdpo.digest import tensor_entries
from sdpo.errors import ConfigError
from sdpo.files import digest_of, file_digest, publish_file, write_json
from sdpo.nodes import ids_of, source_codes, source_names, tokens_path
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
    pairs, _ = pairs_of(context, pq.read_table(context.run.usable), {})
    plan = make_plan(pairs, settings)
    check_steps(context, plan)


def check_steps(context: Context, plan: Plan) -> None:
    """Refuse settings of steps that the plan does not have, and adapters of unknown modules.

    Raises:
        ConfigError: names them.
    """
    steps, given = len(plan.steps), len(context.config.steps)
    if given > steps:
        raise ConfigError(
            f"`steps` has settings for {given} steps, but the partition makes {steps}"
        )
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


def partition(context: Context) -> Plan:
    """``plan.parquet`` and ``plan.json``: every usable pair's step, 0 for the reserve.

    Raises:
        PartitionError: the settings cannot be followed, or a step has no pairs.
    """
    usable = pq.read_table(context.run.usable)
    features = _features(context) if needs_gamma(context) else {}
    settings = partition_settings(context)
    pairs, trained = pairs_of(context, usable, features)
    plan = make_plan(pairs, settings)
    check_steps(context, plan)
    identity = {
        "usable": file_digest(context.run.usable),
        "settings": plan.to_dict()["settings"],
        "strategy": settings.strategy,
        "features": digest_of({k: v.tolist() for k, v in features.items()}) if features else "",
        "probe": {"max_pairs": context.config.probe.max_pairs, "seed": context.config.probe.seed},
    }

    def make() -> Outcome:
        step_of = np.zeros(usable.num_rows, dtype=np.int32)
        step_of[trained] = plan.step_of
        publish_plan(context, usable, step_of, plan)
        return {"steps": len(plan.steps)}, [context.run.plan, context.run.plan_file]

    for name in plan.ignored_settings:
        message = f"partition.{name} has no effect on strategy `{settings.strategy}`"
        context.listen({"event": "warning", "message": message})
    run_once(context, "plan", identity, make)
    return plan


def _features(context: Context) -> dict[str, np.ndarray]:
    return {"gamma": pq.read_table(context.run.features)["gamma"].to_numpy()}


def pairs_of(
    context: Context, usable: pa.Table, features: dict[str, np.ndarray]
) -> tuple[Pairs, np.ndarray]:
    """The pairs to be trained on as strategies see them, and their rows in ``usable``."""
    trained = np.flatnonzero(~usable["reserved"].to_numpy(zero_copy_only=False))
    table = usable.take(pa.array(trained))
    names = source_names(context)
    return Pairs(
        ids=ids_of(table["pair_id"]),
        source=source_codes(table["source"], names),
        source_names=tuple(names),
        strata=_strata(context, table),
        features={name: values[trained] for name, values in features.items()},
    ), trained


def _strata(context: Context, table: pa.Table) -> dict[str, np.ndarray]:
    columns = [name for name in context.config.partition.strata if name != "source"]
    if not columns or context.config.partition.strategy != "stratified":
        return {}
    stored = pq.read_table(context.run.pairs, columns=["strata"])["strata"]
    rows = stored.take(table["token_row"])
    found: dict[str, np.ndarray] = {}
    for column in columns:
        values = pa.chunked_array(
            [pc.map_lookup(chunk, pa.scalar(column), "first") for chunk in rows.chunks]
        )
        # Numbered by the values' order, as the draw's result does not depend on how they come.
        names = pa.array(sorted(pc.unique(values).to_pylist()))
        found[column] = pc.index_in(values, value_set=names).to_numpy().astype(np.int32)
    return found


def publish_plan(context: Context, usable: pa.Table, step_of: np.ndarray, plan: Plan) -> None:
    """Publish ``plan.parquet`` and ``plan.json``; ``step_of`` is 0 for reserved pairs."""
    probe = context.config.probe
    order = np.argsort(ordering_key(ids_of(usable["pair_id"]), probe.seed))
    sampled = step_of == 0
    for number in range(1, len(plan.steps) + 1):
        members = order[step_of[order] == number]
        sampled[members[: probe.max_pairs]] = True
    table = usable.select(["pair_id", "prompt_key", "source", "token_row"])
    table = table.append_column("step", pa.array(step_of, pa.int32()))
    table = table.append_column("sampled", pa.array(sampled))
    with publish_file(context.run.plan) as temporary:
        pq.write_table(table, temporary)
    write_json(context.run.plan_file, _plan_summary(context, usable, step_of, plan))


def _plan_summary(
    context: Context, usable: pa.Table, step_of: np.ndarray, plan: Plan
) -> dict[str, Any]:
    tokens = TokenFile.open(tokens_path(context))
    rows = usable["token_row"].to_numpy()
    content = plan.to_dict()
    content["reserve"] = _reserve_counts(context)
    content["overlap"] = prompt_overlap(ids_of(usable["prompt_key"]), step_of)
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
    columns = ["pair_id", "prompt_key", "source", "strata"]
    lengths = ["prompt_chars", "chosen_chars", "rejected_chars"]
    table = pq.read_table(context.run.pairs, columns=columns + lengths)
    names, settings = source_names(context), context.config.data.reserve
    source = source_codes(table["source"], names)
    mask = reserve_mask(
        ids_of(table["prompt_key"]),
        source,
        n_sources=len(names),
        fraction=settings.fraction,
        min_pairs=settings.min_pairs,
        max_fraction=settings.max_fraction,
        key=settings.key,
    )
    table = table.append_column("reserved", pa.array(mask))
    table = table.append_column("token_row", pa.array(np.arange(table.num_rows)))
    pairs, trained = pairs_of(context, table, {})
    plan = make_plan(pairs, partition_settings(context))
    step_of = np.zeros(table.num_rows, dtype=np.int32)
    step_of[trained] = plan.step_of
    content = plan.to_dict()
    reserved = np.bincount(source[mask], minlength=len(names)).tolist()
    content["reserve"] = dict(zip(names, reserved, strict=True))
    content["overlap"] = prompt_overlap(ids_of(table["prompt_key"]), step_of)
    content["unit"] = "characters"
    prompt, chosen, rejected = (table[name].to_numpy() for name in lengths)
    for entry in content["steps"]:
        members = step_of == entry["step"]
        total = (prompt + np.maximum(chosen, rejected))[members]
        median, p95 = np.quantile(total, [0.5, 0.95])
        sequence = {"median": float(median), "p95": float(p95), "maximum": int(total.max())}
        entry["lengths"] = {"sequence": sequence}
    write_json(context.run.plan_file, content)
    return plan
