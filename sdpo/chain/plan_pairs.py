"""Show partition strategies the pairs that are there, as they see them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partitions import Pairs, PartitionSettings, Plan, make_plan
from sdpo.chain.context import Context
from sdpo.chain.data import source_names
from sdpo.chain.features import MODEL_FEATURES, features_without_model, needed_features
from sdpo.chain.tokens import tokens_path
from sdpo.config.strategies import load_strategy
from sdpo.data.parquet_columns import Columns
from sdpo.tokens.token_file import TokenFile


def partition_settings(context: Context) -> PartitionSettings:
    """Return the recipe's partition group in the form that strategies read."""
    config = context.config.partition
    load_strategy(config.strategy)
    return PartitionSettings(**config.model_dump())


def needs_gamma(context: Context) -> bool:
    """Return whether the partition strategy needs gamma of every pair under M_0."""
    return bool(needed_features(partition_settings(context)) & MODEL_FEATURES)


def known_features(context: Context, usable: Columns) -> dict[str, np.ndarray]:
    """Return the needed features that take no model, in the order of ``usable``."""
    return features_without_model(
        context.run.pairs,
        usable.numbers("token_row"),
        needed_features(partition_settings(context)),
        TokenFile.open(tokens_path(context)),
    )


def pairs_of(
    context: Context, usable: Columns, features: Mapping[str, np.ndarray]
) -> tuple[Pairs, np.ndarray]:
    """Return the pairs to be trained on as strategies see them, and their rows in ``usable``."""
    names = [source.name for source in context.config.data.given if source.train]
    place = {name: code for code, name in enumerate(names)}
    every = source_names(context)
    code_of = np.array([place.get(name, -1) for name in every], dtype=np.int32)
    codes = code_of[usable.codes("source", every)]
    trained = np.flatnonzero(~usable.numbers("reserved") & (codes >= 0))
    return Pairs(
        ids=usable.ids("pair_id")[trained],
        source=codes[trained],
        source_names=tuple(names),
        strata=_strata(context, usable.numbers("token_row")[trained]),
        features={name: values[trained] for name, values in features.items()},
    ), trained


def _strata(context: Context, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the codes of the strata columns of these rows of ``pairs.parquet``, int32 each."""
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


def plan_of(pairs: Pairs, settings: PartitionSettings) -> Plan:
    """Return the plan of the pairs that are there; one without steps where no source is trained on.

    Raises:
        PartitionError: the settings cannot be followed.
    """
    if pairs.source_names:
        return make_plan(pairs, settings)
    return Plan(
        settings=settings,
        rows=np.empty(0, dtype=np.intp),
        step_of=np.empty(0, dtype=np.int32),
        steps=(),
        measured={},
        ignored_settings=tuple(settings.changed()),
    )
