"""Make the partition node: which pair goes to which step, and what every model is measured on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partitions import (
    Pairs,
    PartitionSettings,
    Plan,
    in_order,
    make_plan,
    ordering_key,
    prompt_overlap,
)
from sdpo.chain.context import Context
from sdpo.chain.data import source_names
from sdpo.chain.examples_left import examples_left
from sdpo.chain.features import (
    MODEL_FEATURES,
    column_digest,
    features_without_model,
    needed_features,
)
from sdpo.chain.node import Errand, Expansion, Find, Identity, Made, Node, Part
from sdpo.chain.planned_rounds import rounds_after, rules_of_rounds, with_rounds
from sdpo.chain.tokens import tokens_path
from sdpo.config import TrainingConfig
from sdpo.config.strategies import load_strategy
from sdpo.data.parquet_columns import Columns, append_columns
from sdpo.errors import ConfigError
from sdpo.events import WarningEvent
from sdpo.identity.model_digest import base_entries
from sdpo.identity.payloads import changed_settings
from sdpo.objectives import OBJECTIVES
from sdpo.plugins.recorded import inputs_of
from sdpo.processes.stage_specs import ModulesSpec, ObjectivesSpec
from sdpo.store.plan_file import Round
from sdpo.store.records import ReserveOutputs, scored_model
from sdpo.system.files import file_digest, publish_file, write_json
from sdpo.system.json_values import Json
from sdpo.tokens.lengths import ends_of_lengths, length_summary
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile


def partition_settings(context: Context) -> PartitionSettings:
    """Return the recipe's partition group in the form that strategies read."""
    config = context.config.partition
    load_strategy(config.strategy)
    return PartitionSettings(**config.model_dump())


def needs_gamma(context: Context) -> bool:
    """Return whether the partition strategy needs gamma of every pair under M_0."""
    return bool(needed_features(partition_settings(context)) & MODEL_FEATURES)


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


def check(context: Context) -> Expansion:
    """Return a check that refuses what would fail later, before anything is trained or measured.

    It refuses what :func:`partition` refuses, a supervised stage that has nothing to train on, and
    adapters that the model's modules do not take.
    """
    return checked(context, lambda: foresee_plan(context))


def foresee_plan(context: Context) -> Plan:
    """Return the plan's steps, known before anything is trained or measured, unlike their pairs.

    Raises:
        PartitionError, ConfigError: as :func:`partition`; the order of steps plays no part in it.
        DataError: the supervised stage has nothing to train on.
    """
    settings, usable = partition_settings(context), Columns(context.run.usable)
    needed = needed_features(settings)
    features = _known_features(context, usable)
    # A measurement moves pairs between steps and steps among themselves, never their number.
    features |= {name: np.zeros(usable.rows) for name in needed & MODEL_FEATURES}
    pairs, _ = pairs_of(context, usable, features)
    plan = with_rounds(context, _plan_of(pairs, settings))
    check_steps(context, plan)
    examples_left(context)
    return plan


def _plan_of(pairs: Pairs, settings: PartitionSettings) -> Plan:
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


def checked(context: Context, foresee: Callable[[], Plan]) -> Expansion:
    """Return a look at the plan that ``foresee`` gives, then a trial of objectives and modules."""

    def parts() -> list[Part]:
        plan = foresee()
        return [
            Errand(do=lambda: _try_objectives(context, len(plan.steps))),
            Errand(do=lambda: _try_modules(context, plan)),
        ]

    return Expansion(title="check", expand=parts)


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
    for step, training in _named_modules(context, plan).items():
        _check_modules(context, step, training.lora_target_modules)


def _named_modules(context: Context, plan: Plan) -> dict[int, TrainingConfig]:
    """Return the settings of steps whose adapters are for modules that the recipe names."""
    return {
        step.step: training
        for step in plan.steps
        if (training := context.config.training_of(step.step)).lora_r
        and training.lora_target_modules != ["all-linear"]
    }


def _check_modules(context: Context, step: int, names: Sequence[str]) -> None:
    modules = [e.name.removesuffix(".weight") for e in base_entries(context.resolved.model)]
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            raise ConfigError(
                f"training.lora_target_modules of step {step}: no module of the model is named "
                f"`{name}`; there are {', '.join(sorted({m.split('.')[-1] for m in modules}))}"
            )


def _try_modules(context: Context, plan: Plan) -> None:
    """Try what untrained steps ask of the model's modules, and whether the launch can compute it.

    The modules take no memory for it.

    Raises:
        ConfigError: one of them cannot have an adapter, or not be computed under ZeRO-3.
        ModelError: there are no routers, whose loss a step wants. Both name the step.
    """
    every = {step.step: context.config.training_of(step.step) for step in plan.steps}
    trainings = {
        step: training
        for step, training in every.items()
        if (training.lora_r or training.router_aux_loss)
        and context.run.read_record(f"step-{step}") is None
    }
    if trainings or context.config.launch.shares_weights:
        context.stage(
            modules_spec(context, context.resolved.model, tokens_path(context), trainings)
        )


def modules_spec(
    context: Context, source: Path, tokens: Path, trainings: dict[int, TrainingConfig]
) -> ModulesSpec:
    """Return what the stage is told that tries the modules of the model in ``source``.

    ``tokens``: the pairs as its tokenizer cuts them.
    """
    from_source = context.config.supervised.from_source
    examples = tokens_path(context, "supervised") if from_source else None
    return ModulesSpec(
        name="modules",
        run=context.run.path,
        model=context.config.model,
        launch=context.config.launch,
        source=source,
        trainings=trainings,
        lengths=ends_of_lengths(
            TokenFile.open(tokens), SupervisedTokenFile.open(examples) if examples else None
        ),
    )


def _try_objectives(context: Context, steps: int) -> None:
    """Compute once the plug-in objectives of steps that are not trained yet.

    Raises:
        PluginError: one cannot be imported, or is no objective; names the step.
    """
    trainings = {
        step: training
        for step in range(1, steps + 1)
        if (training := context.config.training_of(step)).objective not in OBJECTIVES
        and context.run.read_record(f"step-{step}") is None
    }
    if trainings:
        context.stage(
            ObjectivesSpec(
                name="objectives",
                run=context.run.path,
                model=context.config.model,
                launch=context.config.launch,
                trainings=trainings,
            )
        )


def partition(context: Context) -> Expansion:
    """Return the node that makes ``plan.parquet`` and ``plan.json``: the step of each usable pair.

    The step of reserved pairs is 0. Expanding it raises a PartitionError where the settings cannot
    be followed, or a step has no pairs.
    """

    def decide() -> Decision:
        usable, settings = Columns(context.run.usable), partition_settings(context)
        features = _features(context, usable)
        pairs, trained = pairs_of(context, usable, features)
        offline = _plan_of(pairs, settings)
        scorers = {name: _scorer(context, name) for name in features}
        rounds = rounds_after(context, len(offline.steps))
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
    known = _known_features(context, usable)
    return known | {name: table.numbers(name) for name in measured if table is not None}


def _known_features(context: Context, usable: Columns) -> dict[str, np.ndarray]:
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
