"""Name what is compared: arms of a recipe, each the recipe with something changed, and their runs.

The arms of the sDPO paper (arXiv 2403.19270, tables 2 and 5) have names here; any other is
``name:key=value``. An arm is trained once a seed, each time as a run of its own: a trial.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.config import RunConfig, unread_settings
from sdpo.config.load import by_position, make_config
from sdpo.config.strategies import strategy_uses
from sdpo.errors import ConfigError, UserError
from sdpo.identity.canonical import digest_of
from sdpo.identity.differences import differences
from sdpo.identity.payloads import changed_settings
from sdpo.inputs.resolve import cache_dir
from sdpo.store.run_folder import RunFolder, runs_in
from sdpo.system.json_values import JsonObject
from sdpo.system.nearby import near_name

_PARTITION = ("partition.groups=[]", "partition.order=given")
"""What only the natural partition reads is put back, where another one is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An arm is a recipe with ``overrides``, or the finished ``run`` of that folder.

    ``what`` says in words what it is.
    """

    name: str
    what: str
    overrides: tuple[str, ...] = ()
    run: Path | None = None


ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="sdpo", what="the recipe as it is"),
        Arm(
            name="dpo",
            what="everything in one step: plain DPO",
            overrides=("partition.strategy=single", *_PARTITION),
        ),
        Arm(
            name="stratified",
            what="steps that are shares of every source",
            overrides=("partition.strategy=stratified", *_PARTITION),
        ),
        Arm(
            name="random",
            what="steps that are drawn at random",
            overrides=("partition.strategy=random", *_PARTITION),
        ),
        Arm(
            name="easy_first",
            what="sources in order of the share that S ranks right, largest first",
            overrides=("partition.strategy=natural", "partition.order=easy_first"),
        ),
        Arm(
            name="hard_first",
            what="sources in order of the share that S ranks right, smallest first",
            overrides=("partition.strategy=natural", "partition.order=hard_first"),
        ),
        Arm(
            name="target_base",
            what="training starts from S at every step",
            overrides=("training.target=base",),
        ),
        Arm(
            name="reference_base",
            what="the reference is S at every step",
            overrides=("training.reference=base",),
        ),
    )
}
"""Arms that have a name of their own."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_STEP = re.compile(r"(step|guide)-\d+")
_NEXT = re.compile(r",\s*(?=[A-Za-z_][\w.]*=)")
MOST_SEEDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trial is an arm trained with one seed: a run of the study, or one that is there already.

    ``name`` is that of the run. ``config`` is None for an existing run.
    """

    arm: str
    name: str
    seed: int | None
    config: RunConfig | None = None
    run: Path | None = None


def named_arms(names: str, given: Sequence[str], *, runs_dir: Path) -> list[Arm]:
    """Return the arms of ``--arms`` (``sdpo,dpo``) and ``--arm`` (``name:key=value,…``), in order.

    A name that is no arm's is that of a finished run in ``runs_dir``.

    Raises:
        ConfigError: a name is unknown or given twice, or an arm of one's own is not written so.
    """
    arms = [_named(name, runs_dir) for part in names.split(",") if (name := part.strip())]
    arms += [own_arm(text) for text in given]
    seen: set[str] = set()
    for arm in arms:
        if arm.name in seen:
            raise ConfigError(f"arm `{arm.name}` is given twice: name each once")
        seen.add(arm.name)
    if len(arms) < 2:
        only = f"only `{arms[0].name}`" if arms else "no arm"
        raise ConfigError(f"a comparison needs two arms, and {only} is given: --arms sdpo,dpo")
    return arms


def _named(name: str, runs_dir: Path) -> Arm:
    if name in ARMS:
        return ARMS[name]
    run = RunFolder(runs_dir.absolute() / name)
    if run.run_file.is_file():
        return Arm(name=run.name, what="a run that was there", run=run.path)
    if ":" in name or "=" in name:
        raise ConfigError(f"`{name}` is an arm of your own: give it as --arm {name}")
    near = near_name(name, [*ARMS, *(each.name for each in runs_in(runs_dir))])
    hint = f": did you mean `{near}`?" if near else ""
    raise ConfigError(
        f"`{name}` is neither an arm nor a run in {runs_dir}{hint} (arms: {', '.join(ARMS)}; one "
        "of your own: --arm name:training.beta=0.05)"
    )


def own_arm(text: str) -> Arm:
    """Return the arm of ``name:key=value,key=value``.

    Raises:
        ConfigError: it is not written so, or has the name of another arm.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not colon or not _NAME.fullmatch(name) or "=" not in rest:
        raise ConfigError(
            f"--arm {text}: write it as name:key=value, or name:key=value,key=value (a name of "
            "letters, digits, '_' and '-')"
        )
    if name in ARMS:
        raise ConfigError(
            f"--arm {text}: `{name}` is an arm already ({ARMS[name].what}): give yours another name"
        )
    if _STEP.fullmatch(name):
        raise ConfigError(f"--arm {text}: `{name}` is the name of a run's step: give another")
    overrides = tuple(split_settings(rest))
    said = counted([override.partition("=")[0].strip() for override in overrides])
    return Arm(name=name, what=". ".join([", ".join(overrides), *said]), overrides=overrides)


def split_settings(text: str) -> list[str]:
    """Return the settings of ``key=value,key=value``; a comma within a value stays in it."""
    return _NEXT.split(text)


def trials_of(
    config: RunConfig,
    arms: Sequence[Arm],
    *,
    seeds: int,
    partition_seeds: bool,
    folder: Path,
) -> list[Trial]:
    """Return the trials of all arms, seed by seed: those of the first seed come first.

    ``folder``: of the study. Seed number k adds k to ``training.seed``, to those of steps that have
    their own and, with ``partition_seeds``, to ``partition.seed``.

    Raises:
        ConfigError: an override cannot be, two arms are the same, or the seeds are too many.
    """
    check_seeds(seeds)
    made = {arm.name: _config_of(config, arm) for arm in arms if arm.run is None}
    check_differ(made)
    trials = []
    for number in range(seeds):
        for arm in arms:
            if arm.run is not None:
                if not number:
                    trials.append(Trial(arm=arm.name, name=arm.name, seed=None, run=arm.run))
                continue
            seed = made[arm.name].training.seed + number
            name = f"{arm.name}.seed-{seed}" if number else arm.name
            settings = seeded(made[arm.name], number, of_partition=partition_seeds)
            trials.append(
                Trial(
                    arm=arm.name,
                    name=name,
                    seed=seed,
                    config=placed(made[arm.name], settings, name=name, folder=folder),
                )
            )
    return trials


def check_seeds(seeds: int) -> None:
    """Refuse a number of seeds that cannot be.

    Raises:
        ConfigError: says which can.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ConfigError(f"--seeds {seeds}: give 1 to {MOST_SEEDS}")


def placed(
    config: RunConfig, overrides: Sequence[str] = (), *, name: str, folder: Path
) -> RunConfig:
    """Return a recipe as a run of the study in ``folder``, which shares the recipe's own cache.

    In a remote store, too, it is kept under the study's name.
    """
    values = config.model_dump()
    values["name"] = name
    remote = config.store.remote
    values["store"] |= {
        "runs_dir": str(folder),
        "cache_dir": str(cache_dir(config)),
        "remote": f"{remote.rstrip('/')}/{folder.name}" if remote else "",
    }
    return make_config(values, overrides=overrides)


def _config_of(config: RunConfig, arm: Arm) -> RunConfig:
    try:
        return make_config(config.model_dump(), overrides=arm.overrides)
    except ConfigError as error:
        raise ConfigError(f"arm `{arm.name}`: {error}") from error


def seeded(config: RunConfig, number: int, *, of_partition: bool = False) -> list[str]:
    """Return the settings by which a trial has seed number ``number``; none for the first."""
    if not number:
        return []
    settings = [f"training.seed={config.training.seed + number}"]
    for index, step in enumerate(config.steps):
        own = step.model_dump().get("seed")  # type: ignore[attr-defined]
        if own is not None:
            settings.append(f"steps.{index}.seed={json.dumps(own + number)}")
    if of_partition:
        settings.append(f"partition.seed={config.partition.seed + number}")
    return settings


def check_differ(configs: Mapping[str, RunConfig], *, what: str = "arms") -> None:
    """Refuse recipes of which two would train the same.

    Raises:
        ConfigError: names them.
    """
    known: dict[str, str] = {}
    for name, config in configs.items():
        found = digest_of(essence(config).as_json())
        if other := known.get(found):
            why = ", since the recipe has one step" if planned_steps(config) == 1 else ""
            raise ConfigError(
                f"{what} `{other}` and `{name}` are the same{why}: nothing would be compared. "
                "Leave one out, or change something in it that has an effect"
            )
        known[found] = name


@dataclass(frozen=True, slots=True)
class Essence:
    """An essence is what of a recipe makes its models: ``common`` to all steps, and of each step.

    Settings that nothing reads are left out.
    """

    common: JsonObject
    steps: tuple[JsonObject, ...]

    def as_json(self) -> JsonObject:
        """Return both as one JSON object."""
        return {"common": self.common, "steps": list(self.steps)}


def essence(config: RunConfig) -> Essence:
    """Return the essence of a recipe.

    The model before step 1 is S, and all partitions into one step are the same.
    """
    steps = planned_steps(config)
    used = {"strategy", "rehearse", *strategy_uses(config.partition.strategy)}
    partition: JsonObject = {"strategy": "single"}
    if steps != 1:
        partition = {k: v for k, v in config.partition.model_dump().items() if k in used}
    rest = changed_settings(config)
    for group in ("training", "steps", "partition", "probe", "evaluation"):
        rest.pop(group, None)
    made_from = {
        "model": config.model.name_or_path,
        "data": [source.path for source in config.data.sources],
    }
    count = max(1, len(config.steps)) if steps is None else steps
    return Essence(
        common={"partition": partition, "rest": rest, **made_from},
        steps=tuple(_of_step(config, step) for step in range(1, count + 1)),
    )


def _of_step(config: RunConfig, step: int) -> JsonObject:
    training = config.training_of(step)
    unread = unread_settings(training)
    said = {k: v for k, v in changed_settings(training).items() if k not in unread}
    roles = {"reference": training.reference, "target": training.target}
    names = {"reference_model": training.reference_model} if training.reference == "model" else {}
    if step == 1:
        roles = {k: "previous" if v == "base" else v for k, v in roles.items()}
    return {**said, **roles, **names}


def planned_steps(config: RunConfig) -> int | None:
    """Return how many steps a recipe's partition will have; None where only the plan tells."""
    partition, trained = config.partition, [s for s in config.data.given if s.train]
    rounds = sum(source.generate.rounds for source in config.data.generated)
    if not trained:
        return rounds
    if partition.strategy == "single":
        return 1 + rounds
    if partition.strategy == "natural":
        return (len(partition.groups) or len(trained)) + rounds
    if "fractions" in strategy_uses(partition.strategy):
        return len(partition.fractions) + rounds
    return None


def shared_steps(one: RunConfig, other: RunConfig) -> int:
    """Return how many first steps two recipes make alike, as far as their settings tell."""
    mine, theirs = essence(one), essence(other)
    if differences(mine.common, theirs.common):
        return 0
    both = enumerate(zip(mine.steps, theirs.steps, strict=False))
    return next(
        (n for n, pair in both if differences(*pair)), min(map(len, (mine.steps, theirs.steps)))
    )


def check_steps_there(config: RunConfig, keys: Sequence[str], *, option: str) -> None:
    """Refuse settings of a step that the recipe does not have.

    Raises:
        UserError: names the setting that may have been meant.
    """
    steps = planned_steps(config)
    for key in keys:
        step = step_of(key)
        if steps is None or step is None or step <= steps:
            continue
        has = f"the recipe has {steps} step{'s' * (steps != 1)}"
        rest = by_position(key).split(".", 2)[2]
        if by_position(key) != key:
            raise UserError(f"{option} {key}: {has}: the last one's is step-{steps}.{rest}")
        meant = (
            f"of step {steps} it is step-{steps}.{rest}"
            if step == steps + 1
            else f"the last step's is step-{steps}.{rest}"
        )
        raise UserError(
            f"{option} {key}: positions count from 0, so this is step {step}, and {has}: {meant}"
        )


def step_of(key: str) -> int | None:
    """Return the number of the step, from 1, that ``steps.0.beta`` or ``step-1.beta`` is of."""
    parts = by_position(key).split(".")
    if parts[0] != "steps" or len(parts) < 3 or not parts[1].isdecimal():
        return None
    return int(parts[1]) + 1


def counted(keys: Sequence[str]) -> list[str]:
    """Return a sentence for each key that names its step by a position: which step it is of."""
    found = [(key, step_of(key)) for key in dict.fromkeys(keys) if by_position(key) == key]
    return [
        f"{key} is of step {step}: positions count from 0 (step-{step} names the step)."
        for key, step in found
        if step is not None
    ]
