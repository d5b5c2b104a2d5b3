"""The partition node: which usable pair goes to which step, and what is measured everywhere."""

from collections.abc import Mapping
from dataclasses import asdict
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
    make_plan,
    ordering_key,
    prompt_overlap,
    reserve_mask,
)
from sdpo.digest import tensor_entries
from sdpo.errors import ConfigError
from sdpo.features import (
    MODEL_FEATURES,
    column_digest,
    features_without_model,
    needed_features,
)
from sdpo.files import file_digest, publish_file, write_json
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
        per_token=config.per_token,
        seed=config.seed,
    )


def needs_gamma(context: Context) -> bool:
    """Whether the partition strategy wants gamma of every pair under M_0."""
    return bool(needed_features(partition_settings(context)) & MODEL_FEATURES)


def check(context: Context) -> None:
    """Refuse, before anything is trained or measured, what the run would refuse afterwards.

    Raises:
        PartitionError, ConfigError: as :func:`partition`; the order of steps plays no part in it.
    """
    settings, usable = partition_settings(context), pq.read_table(context.run.usable)
    needed = needed_features(settings)
    features = features_without_model(context.run.pairs, usable, needed, _tokens(context))
    # A measurement moves pairs between steps and steps among themselves, never their number.
    features |= {name: np.zeros(usable.num_rows) for name in needed & MODEL_FEATURES}
    pairs, _ = pairs_of(context, usable, features)
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
    settings = partition_settings(context)
    features = _features(context, usable)
    pairs, trained = pairs_of(context, usable, features)
    plan = make_plan(pairs, settings)
    check_steps(context, plan)
    identity = {
        "usable": file_digest(context.run.usable),
        "settings": _changed_settings(plan),
        "strategy": settings.strategy,
        "features": {name: column_digest(values) for name, values in sorted(features.items())}
        or "",
        "probe": {"max_pairs": context.config.probe.max_pairs, "seed": context.config.probe.seed},
    }

    def make() -> Outcome:
        step_of = np.zeros(usable.num_rows, dtype=np.int32)
        step_of[trained] = plan.step_of
        publish_plan(context, usable, step_of, plan, features=features)
        return {"steps": len(plan.steps)}, [context.run.plan, context.run.plan_file]

    for name in plan.ignored_settings:
        message = f"partition.{name} has no effect on strategy `{settings.strategy}`"
        context.listen({"event": "warning", "message": message})
    run_once(context, "plan", identity, make)
    return plan


def _features(context: Context, usable: pa.Table) -> dict[str, np.ndarray]:
    """What the strategy needs of every usable pair, in the order of ``usable``."""
    needed = needed_features(partition_settings(context))
    known = features_without_model(context.run.pairs, usable, needed, _tokens(context))
    measured = sorted(needed & MODEL_FEATURES)
    table = pq.read_table(context.run.features, columns=measured) if measured else None
    return known | {name: table[name].to_numpy() for name in measured if table is not None}


def _tokens(context: Context) -> TokenFile:
    return TokenFile.open(tokens_path(context))


def _changed_settings(plan: Plan) -> dict[str, Any]:
    """The settings without those that came later and stand at their default: old plans hold."""
    settings: dict[str, Any] = plan.to_dict()["settings"]
    return {name: value for name, value in settings.items() if name != "per_token" or value}


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


def publish_plan(
    context: Context,
    usable: pa.Table,
    step_of: np.ndarray,
    plan: Plan,
    *,
    features: Mapping[str, np.ndarray],
) -> None:
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
    for name, values in sorted(features.items()):
        table = table.append_column(f"feature:{name}", pa.array(values, pa.float64()))
    with publish_file(context.run.plan) as temporary:
        pq.write_table(table, temporary)
    content = _plan_summary(context, usable, step_of, plan)
    content["features"] = {
        name: {"digest": column_digest(values), "scorer": _scorer(context, name)}
        for name, values in sorted(features.items())
    }
    write_json(context.run.plan_file, content)


def _scorer(context: Context, feature: str) -> str:
    """Digest of what gave a feature its values: a model, the tokenizer; the data itself: empty."""
    if feature in MODEL_FEATURES:
        record = context.run.read_record("features")
        assert record is not None, "features are measured before they are used"
        return str(record["identity"]["scoring"]["model"])
    return str(context.resolved.inputs["tokenizer"]) if feature == "length" else ""


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
    settings_of_plan = partition_settings(context)
    needed = needed_features(settings_of_plan)
    features = features_without_model(context.run.pairs, table, needed, None)
    pairs, trained = pairs_of(context, table, features)
    plan = make_plan(pairs, settings_of_plan)
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
