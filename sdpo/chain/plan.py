"""Make the partition node: which pair goes to which step, and what every model is measured on."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from partitions import Plan, in_order, ordering_key, prompt_overlap
from sdpo.chain.context import Context
from sdpo.chain.features import (
    MODEL_FEATURES,
    column_digest,
    needed_features,
)
from sdpo.chain.node import Expansion, Find, Identity, Made, Node, Part
from sdpo.chain.plan_check import check_steps
from sdpo.chain.plan_pairs import known_features, pairs_of, partition_settings, plan_of
from sdpo.chain.planned_rounds import rounds_of, rules_of_rounds, with_rounds
from sdpo.chain.tokens import tokens_path
from sdpo.data.parquet_columns import Columns, append_columns
from sdpo.events import WarningEvent
from sdpo.identity.payloads import changed_settings
from sdpo.plugins.recorded import inputs_of
from sdpo.store.plan_file import Round
from sdpo.store.records import ReserveOutputs, scored_model
from sdpo.system.files import file_digest, publish_file, write_json
from sdpo.system.json_values import Json
from sdpo.tokens.lengths import length_summary
from sdpo.tokens.token_file import TokenFile


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision is a plan, the rows of ``usable.parquet`` that it assigns, and what it rests on.

    The other rows are the reserve. ``features`` are those of every usable pair; ``scorers`` give
    the digest of what computed each of them. ``rounds`` are the steps whose pairs the models make.
    """

    plan: Plan
    trained: np.ndarray
    features: Mapping[str, np.ndarray]
    scorers: Mapping[str, str]
    rounds: Mapping[int, Round] = field(default_factory=dict)


def partition(context: Context) -> Expansion:
    """Return the node that makes ``plan.parquet`` and ``plan.json``: the step of each usable pair.

    The step of reserved pairs is 0. Expanding it raises a PartitionError where the settings cannot
    be followed, or a step has no pairs.
    """

    def decide() -> Decision:
        usable, settings = Columns(context.run.usable), partition_settings(context)
        features = _features(context, usable)
        pairs, trained = pairs_of(context, usable, features)
        offline = plan_of(pairs, settings)
        scorers = {name: _scorer(context, name) for name in features}
        rounds = rounds_of(context, len(offline.steps))
        return Decision(with_rounds(context, offline), trained, features, scorers, rounds)

    def identity(decision: Decision) -> Identity:
        features = sorted(decision.features.items())
        strategy = context.config.partition.strategy
        return {
            "usable": file_digest(context.run.usable),
            "settings": changed_settings(context.config.partition, "plan"),
            "strategy": strategy,
            **inputs_of("strategies", strategy, context.resolved.inputs),
            "features": {name: column_digest(values) for name, values in features} or "",
            "probe": sampling(context),
            **rules_of_rounds(context),
        }

    return planned(context, decide, identity)


def sampling(context: Context) -> dict[str, int]:
    """Return what decides which pairs of each partition every model is measured on."""
    probe = context.config.probe
    return {"max_pairs": probe.max_pairs, "seed": probe.seed}


def planned(
    context: Context, decide: Callable[[], Decision], identity: Callable[[Decision], Identity]
) -> Expansion:
    """Return the node that publishes what ``decide`` gives."""

    def parts() -> list[Part]:
        decision = decide()
        check_steps(context, decision.plan)
        for name in decision.plan.ignored_settings:
            strategy = context.config.partition.strategy
            message = f"partition.{name} has no effect on strategy `{strategy}`"
            context.listen(WarningEvent(message=message))

        def make(_find: Find) -> Made:
            publish_plan(context, decision)
            return Made(
                {"steps": len(decision.plan.steps)}, [context.run.plan, context.run.plan_file]
            )

        return [
            Node(
                name="plan",
                inputs=("carried", "reserve", "features"),
                identity=lambda: identity(decision),
                make=make,
            )
        ]

    return Expansion(title="partition", expand=parts, foreseen=lambda: ("plan",))


def _features(context: Context, usable: Columns) -> dict[str, np.ndarray]:
    """Return what the strategy needs of every usable pair, in the order of ``usable``."""
    measured = sorted(needed_features(partition_settings(context)) & MODEL_FEATURES)
    table = Columns(context.run.features) if measured else None
    known = known_features(context, usable)
    return known | {name: table.numbers(name) for name in measured if table is not None}


def plan_entries(usable: Columns, trained: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of ``plan.parquet``: rows of ``usable`` and steps, by row, then by step.

    ``trained`` are the rows that ``plan`` assigns; the others are the reserve, whose step is 0.
    """
    reserved = np.flatnonzero(usable.numbers("reserved"))
    return in_order(
        np.concatenate([reserved, trained[plan.rows]]),
        np.concatenate([np.zeros(len(reserved), dtype=np.int32), plan.step_of]),
    )


def publish_plan(context: Context, decision: Decision) -> None:
    """Publish ``plan.json``, and ``plan.parquet`` with a row per pair and step (reserve: 0)."""
    usable, plan = Columns(context.run.usable), decision.plan
    rows, step_of = plan_entries(usable, decision.trained, plan)
    features = sorted(decision.features.items())
    columns = {
        "step": step_of,
        "sampled": _sampled(context, usable, rows, step_of, steps=len(plan.steps)),
        **{f"feature:{name}": values[rows] for name, values in features},
    }
    with publish_file(context.run.plan) as temporary:
        named = ["pair_id", "prompt_key", "source", "token_row"]
        append_columns(usable.path, temporary, named, columns, rows=rows)
    content = _plan_summary(context, usable, rows, step_of, decision)
    content["features"] = {
        name: {"digest": column_digest(values), "scorer": decision.scorers[name]}
        for name, values in features
    }
    write_json(context.run.plan_file, content)


def _scorer(context: Context, feature: str) -> str:
    """Return the digest of what computed a feature, a model or the tokenizer; empty: the data."""
    if feature in MODEL_FEATURES:
        return scored_model(context.run.record("features"))
    return str(context.resolved.inputs["tokenizer"]) if feature == "length" else ""


def _sampled(
    context: Context, usable: Columns, rows: np.ndarray, step_of: np.ndarray, *, steps: int
) -> np.ndarray:
    """Return which entries every model is measured on, bool ``[entries]``: reserve and a draw.

    With rehearsal the draw is of pairs that the step is the first to have: the others are measured
    where they are new, and would look as if the model before had seen the step's data.
    """
    probe = context.config.probe
    order = np.argsort(ordering_key(usable.ids("pair_id")[rows], probe.seed))
    sampled: np.ndarray = step_of == 0
    is_again = np.zeros(len(rows), dtype=bool)
    if context.config.partition.rehearse:
        is_again[1:] = rows[1:] == rows[:-1]  # entries are by pair, then by step
    for number in range(1, steps + 1):
        members = order[step_of[order] == number]
        first = members[~is_again[members]]
        members = first if len(first) else members
        sampled[members[: probe.max_pairs]] = True
    return sampled


def _plan_summary(
    context: Context, usable: Columns, rows: np.ndarray, step_of: np.ndarray, decision: Decision
) -> dict[str, Json]:
    tokens = TokenFile.open(tokens_path(context))
    token_rows = usable.numbers("token_row")[rows]
    content = decision.plan.to_dict()
    content["reserve"] = _reserve_counts(context)
    content["overlap"] = prompt_overlap(usable.ids("prompt_key")[rows], step_of)
    if cut := tokens.report.notes.get("prompt_cut"):
        content["cut_prompts"] = cut
    for step, made in decision.rounds.items():
        content["steps"][step - 1]["generated"] = made.model_dump()
    for entry in content["steps"]:
        if not entry["pairs"]:
            continue  # those of a generated step are not there yet
        lengths = length_summary(tokens, token_rows[step_of == entry["step"]])
        entry["lengths"] = asdict(lengths)
    return content


def _reserve_counts(context: Context) -> dict[str, int]:
    return context.run.record("reserve").read_outputs(ReserveOutputs).reserved
