"""Make the trials of a sweep of what ``--over key=value,value`` says: one of each combination."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from sdpo.config import RunConfig
from sdpo.config.load import by_position, make_config, parse_value
from sdpo.errors import ConfigError
from sdpo.identity.canonical import digest_of
from sdpo.study.arms import (
    Trial,
    check_differ,
    check_seeds,
    check_steps_there,
    placed,
    seeded,
)
from sdpo.system.json_values import Json

MOST_TRIALS = 1000
_RANGE = re.compile(r"(?P<log>log:)?(?P<low>[^,\[\]]+?)\.\.(?P<high>[^,\[\]]+)")
_BETWEEN = re.compile(r",(?![^\[]*\])(?![^{]*\})")
_FIXED = ("name", "store", "tracking", "probe", "evaluation", "extends")
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """A setting takes these ``values``, or any between ``low`` and ``high``, on a log scale or
    not; whole numbers only where both are."""

    key: str
    values: tuple[Json, ...] = ()
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    is_whole: bool = False

    @property
    def is_range(self) -> bool:
        """Return whether it is a range."""
        return self.low is not None


def read_overs(given: Sequence[str], *, config: RunConfig, with_ranges: bool) -> list[Over]:
    """Return what ``--over`` says: ``key=0.1,0.3``, ``key=0.01..0.3`` or ``key=log:0.01..0.3``.

    Raises:
        ConfigError: it is not written so, a setting is given twice or cannot be swept, a range is
            the wrong way round, or a range is given and is of no use (``with_ranges``).
    """
    if not given:
        raise ConfigError("which settings are to be swept? Give --over training.beta=0.03,0.1,0.3")
    overs = [_read(text) for text in given]
    keys = [over.key for over in overs]
    places = [by_position(key) for key in keys]
    for over in overs:
        if places.count(by_position(over.key)) > 1:
            raise ConfigError(f"--over {over.key} is given twice: give all its values together")
        if over.is_range and not with_ranges:
            raise ConfigError(
                f"--over {over.key}={_shown(over)}: a grid has no ranges: list the values, or say "
                "how many are to be tried with --trials N"
            )
    check_steps_there(config, keys, option="--over")
    return overs


def _read(text: str) -> Over:
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not key or not rest:
        raise ConfigError(f"--over {text}: write it as key=value,value")
    if (group := key.split(".")[0]) in _FIXED:
        raise ConfigError(
            f"--over {key}: `{group}` changes no model, so there is nothing to choose by it"
        )
    if found := _RANGE.fullmatch(rest):
        return _range(key, text, found)
    values = [_value(part, text) for part in _BETWEEN.split(rest)]
    if len(values) != len({json.dumps(value, default=str) for value in values}):
        raise ConfigError(f"--over {text}: a value stands twice")
    return Over(key=key, values=tuple(values))


def _value(text: str, whole: str) -> Json:
    try:
        found: Json = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"--over {whole}: {error}") from error
    return "" if found is None else found


def _range(key: str, text: str, found: re.Match[str]) -> Over:
    bounds = [_value(found[name].strip(), text) for name in ("low", "high")]
    numbers = [n for n in bounds if isinstance(n, int | float) and not isinstance(n, bool)]
    if len(numbers) < 2:
        raise ConfigError(f"--over {text}: a range is of two numbers: key=0.01..0.3")
    low, high = numbers
    if low >= high:
        raise ConfigError(
            f"--over {text}: the range is the wrong way round, or empty: write its smaller number "
            f"first, as {key}={high:g}..{low:g}"
        )
    if found["log"] and low <= 0:
        raise ConfigError(f"--over {text}: a log scale has no {low:g}: begin above 0")
    return Over(
        key=key,
        low=low,
        high=high,
        is_log=bool(found["log"]),
        is_whole=all(isinstance(number, int) for number in numbers),
    )


def _shown(over: Over) -> str:
    return f"{'log:' * over.is_log}{over.low:g}..{over.high:g}"


def grid_trials(
    config: RunConfig, overs: Sequence[Over], *, folder: Path, seeds: int = 1
) -> list[Trial]:
    """Return a trial of each combination; the settings of later ``overs`` change fastest.

    With several ``seeds`` each is trained so often: those of the first seed come first.

    Raises:
        ConfigError: a setting is unknown or cannot be, two trials would train the same, there is
            one only, or there are too many.
    """
    check_seeds(seeds)
    count = 1
    for over in overs:
        count *= len(over.values)
    if not 2 <= count <= MOST_TRIALS:
        raise ConfigError(f"the grid has {count} trials: a sweep has 2 to {MOST_TRIALS}")
    keys = [over.key for over in overs]
    trials = trials_at(
        config,
        [dict(zip(keys, at, strict=True)) for at in itertools.product(*(o.values for o in overs))],
        folder=folder,
    )
    return [
        again(trial, number) if number else trial for number in range(seeds) for trial in trials
    ]


def again(trial: Trial, number: int) -> Trial:
    """Return a trial of a grid with the seed number ``number`` after its own."""
    assert trial.config is not None  # a grid has no existing runs
    seed = trial.config.training.seed + number
    name = f"{trial.name}.seed-{seed}"
    values = trial.config.model_dump() | {"name": name}
    config = make_config(values, overrides=seeded(trial.config, number))
    return replace(trial, name=name, seed=seed, config=config)


def trials_at(
    config: RunConfig, points: Sequence[Mapping[str, Json]], *, folder: Path, prefix: str = ""
) -> list[Trial]:
    """Return a trial with the settings of each of ``points``; ``prefix`` begins their names.

    Raises:
        ConfigError: a setting is unknown or cannot be, or two trials would train the same.
    """
    made: dict[str, tuple[RunConfig, str]] = {}
    for point in points:
        label, name = label_of(point), prefix + name_of(point)
        # Whoever compares or promotes the winner later is told by which pairs it was chosen.
        lines = ["data.reserve.compare_on=report"]
        lines += [f"{key}={json.dumps(value)}" for key, value in point.items()]
        try:
            changed = make_config(config.model_dump(), overrides=lines)
        except ConfigError as error:
            raise ConfigError(f"--over {label}: {error}") from error
        made[label] = (changed, name)
    check_differ({label: changed for label, (changed, _) in made.items()}, what="trials")
    return [
        Trial(
            arm=label,
            name=name,
            seed=changed.training.seed,
            config=placed(changed, name=name, folder=folder),
        )
        for label, (changed, name) in made.items()
    ]


def label_of(point: Mapping[str, Json]) -> str:
    """Return the settings of a trial in words; a key's last part where that tells it apart."""
    return ", ".join(f"{short}={_told(value)}" for short, value in _short(point))


def name_of(point: Mapping[str, Json]) -> str:
    """Return the name of a trial's run, made from its settings."""
    text = ".".join(f"{short}-{_told(value)}" for short, value in _short(point))
    name = _UNNAMEABLE.sub("_", text).strip("._-")
    if len(name) <= _LONGEST_NAME and not re.match(r"(step|guide)-\d+$", name):
        return name
    digest = digest_of({key: str(value) for key, value in point.items()})
    return f"trial-{digest[:12]}"


def _short(point: Mapping[str, Json]) -> list[tuple[str, Json]]:
    last = [key.split(".")[-1] for key in point]
    return [
        (key if last.count(short) > 1 or key.startswith(("steps.", "step-")) else short, value)
        for (key, value), short in zip(point.items(), last, strict=True)
    ]


def _told(value: Json) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def recipe_text(config: RunConfig, *, name: str) -> str:
    """Return a recipe as a file that stands alone, under another name: settings at their default
    are left out."""
    values = config.model_dump(exclude_defaults=True, exclude={"store", "name"})
    return yaml.safe_dump({"name": name, **values}, sort_keys=False, allow_unicode=True, width=100)
