"""Say how healthy the chain is: tables of retention, displacement and lengths, and what they show.

The numbers come from :mod:`sdpo.stats.health`; a loss or a growth is claimed where its 95% interval
leaves out 0, as everywhere in the report.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo.report.findings import direction
from sdpo.report.load import RunData
from sdpo.report.tables import (
    UNKNOWN,
    Table,
    count,
    interval,
    model_name,
    number,
    percent,
    probe_name,
)
from sdpo.stats.gamma import RESERVE, Measured, split_probes
from sdpo.stats.health import (
    Displacement,
    Interval,
    Lengths,
    Retention,
    Written,
    displacement,
    lengths,
    retention,
)

ALL_RESERVE = "reserve of all sources"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The chain's health: what later models keep, how log-probs moved, how long models write."""

    retention: tuple[Retention, ...]
    displacement: tuple[Displacement, ...]
    lengths: tuple[Lengths, ...]


def measure_health(data: RunData) -> Health:
    """Return the health of a run's chain, as far as its models were measured."""
    settings = data.config["probe"]
    resamples, seed = int(settings["bootstrap_resamples"]), int(settings["seed"])
    split = [split_probes(table) for table in data.probes.values()]
    kept: list[Retention] = []
    for step in data.steps:
        names = [f"{RESERVE}{source}" for source in step.sources]
        k = step.step
        for later in range(k + 1, len(split)):
            rows = [
                _together(split[model], names, only=data.assigned.get(k)) for model in (0, k, later)
            ]
            if all(found is not None for found in rows):
                start, taught, now = (found for found in rows if found is not None)
                kept += retention(
                    start, taught, now, step=k, model=later, resamples=resamples, seed=seed
                )
    return Health(
        retention=tuple(kept),
        displacement=tuple(_displacements(split, resamples=resamples, seed=seed)),
        lengths=tuple(_lengths(data, resamples=resamples, seed=seed)),
    )


def _displacements(
    split: Sequence[dict[str, Measured]], *, resamples: int, seed: int
) -> Iterator[Displacement]:
    """Yield every model on the reserve, and on the sample of the partition it trained on."""
    for model in range(1, len(split)):
        reserves = [name for name in split[model] if name.startswith(RESERVE)]
        for probe, names in ((ALL_RESERVE, reserves), (f"D_{model}", [f"D_{model}"])):
            start, later = (_together(split[m], names) for m in (0, model))
            if start is not None and later is not None:
                found = displacement(
                    start, later, model=model, probe=probe, resamples=resamples, seed=seed
                )
                if found:
                    yield found


def _lengths(data: RunData, *, resamples: int, seed: int) -> Iterator[Lengths]:
    written = [
        [
            Written(
                prompt_key=item["prompt_key"],
                characters=len(item["completion"]),
                finished=item["finished"],
            )
            for item in data.completions.get(f"M_{model}", [])
        ]
        for model in range(data.measured + 1)
    ]
    for model, items in enumerate(written):
        found = lengths(written[0], items, model=model, resamples=resamples, seed=seed)
        if found:
            yield found


def _together(
    probes: dict[str, Measured], names: Sequence[str], *, only: NDArray[np.str_] | None = None
) -> Measured | None:
    """Return the sampled pairs of several probes as one, by pair id; None where there is none.

    ``only``: ids of the pairs that count; None: all do.
    """
    tables = [probes[name].take(probes[name].sampled) for name in names if name in probes]
    if only is not None:
        tables = [table.take(np.isin(table.pair_id, only)) for table in tables]
    if not tables or not sum(map(len, tables)):
        return None
    fields = Measured.__dataclass_fields__
    rows = Measured(*(np.concatenate([getattr(t, name) for t in tables]) for name in fields))
    return rows.take(np.argsort(rows.pair_id))


def health_sentences(health: Health) -> tuple[str, ...]:
    """Return the verdicts in words, each with its paper."""
    return (*_of_retention(health), *_of_displacement(health), *_of_lengths(health))


def _of_retention(health: Health) -> Iterator[str]:
    last = max((found.model for found in health.retention), default=0)
    for whole in (r for r in health.retention if r.model == last and r.quartile is None):
        name, step = model_name(last), whole.step
        quartiles = [
            r for r in health.retention
            if (r.model, r.step) == (last, step) and r.quartile is not None
        ]  # fmt: skip
        lost = [f"{r.quartile}" for r in quartiles if _direction(r.change, r.pairs) == "fell"]
        numbers = (
            f"γ changed by {_shown(whole.change)} nats from M_{step} on {count(whole.pairs)} "
            f"reserved pairs of its sources, where M_{step} had moved "
            f"{number(whole.margin, signed=True)} from S"
        )
        match _direction(whole.change, whole.pairs):
            case "fell":
                said = f"{name} has lost some of what step {step} taught"
            case "rose":
                said = f"{name} keeps what step {step} taught, and prefers it more"
            case "unclear":
                said = f"{name} shows no loss of what step {step} taught"
            case _:
                said = f"Too few reserved pairs to tell what {name} keeps of step {step}"
        hidden = f"; it fell in quartile {', '.join(lost)} of M_{step}'s margin" if lost else ""
        yield f"{said}: {numbers}{hidden} (arXiv 2606.19744)."


def _of_displacement(health: Health) -> Iterator[str]:
    last = max((found.model for found in health.displacement), default=0)
    for found in (d for d in health.displacement if d.model == last):
        name, where = model_name(last), _probe(found.probe)
        numbers = (
            f"from S the log-prob of chosen answers changed by {_shown(found.chosen)} nats, of "
            f"rejected ones by {_shown(found.rejected)}; both fell on {percent(found.both_fell)} "
            f"of {count(found.pairs)} pairs"
        )
        match _direction(found.chosen, found.pairs):
            case "fell":
                said = (
                    f"Likelihood displacement on {where}: {name} finds chosen answers less likely"
                )
            case "rose":
                said = f"No likelihood displacement on {where}: chosen answers became more likely"
            case "unclear":
                said = f"No likelihood displacement shows on {where}"
            case _:
                said = f"Too few pairs to tell of likelihood displacement on {where}"
        yield f"{said}: {numbers} (arXiv 2410.08847)."


def _of_lengths(health: Health) -> Iterator[str]:
    if not health.lengths:
        return
    found, start = health.lengths[-1], health.lengths[0]
    if found.change is None or start.model:
        return
    name = model_name(found.model)
    numbers = (
        f"{number(found.mean, digits=0)} characters against {number(start.mean, digits=0)} of S, "
        f"a change of {_shown(found.change, digits=0)} on {count(found.prompts)} prompts; "
        f"{percent(found.unfinished)} were cut at their limit"
    )
    match _direction(found.change, found.prompts):
        case "rose":
            said = f"{name} writes longer than S"
        case "fell":
            said = f"{name} writes shorter than S"
        case "unclear":
            said = f"{name} writes as long as S, as far as shows"
        case _:
            said = f"Too few completions to tell whether {name} writes longer (probe.completions)"
    yield f"{said}: {numbers} (arXiv 2406.11817)."


def _direction(change: Interval, rows: int) -> str:
    return direction(change.low, change.high, pairs=rows)


def _shown(change: Interval, *, digits: int = 2) -> str:
    bounds = interval(change.low, change.high, digits=digits)
    return f"{number(change.mean, digits=digits, signed=True)} {bounds}"


def _probe(name: str) -> str:
    return f"the {name}" if name == ALL_RESERVE else probe_name(name)


def retention_table(health: Health) -> Table:
    """Show every later model against the one right after each step, by quartile of its margin."""
    rows = [
        (
            f"{r.step}",
            model_name(r.model),
            "all" if r.quartile is None else f"{r.quartile}",
            count(r.pairs),
            number(r.margin, signed=True),
            _shown(r.change),
            percent(r.fell),
            _points(r.accuracy),
        )
        for r in health.retention
    ]
    return Table(
        title="Retention",
        columns=(
            "Taught by step",
            "Later model",
            "Quartile",
            "Pairs",
            "Margin after the step",
            "Change of γ since",
            "γ fell",
            "Ranking accuracy, points",
        ),
        rows=tuple(rows),
        text_columns=3,
        note="Reserved pairs of the step's sources; of a curriculum those whose feature is "
        "nearest to that of the step's own pairs; else steps that share their sources share the "
        "pairs. Margin: γ under the model right after the step minus γ under S, in nats; quartile "
        "1 has the smallest margins. arXiv 2606.19744.",
    )


def displacement_table(health: Health) -> Table:
    """Show how far every model moved the log-probs of both sides from S."""
    rows = [
        (
            model_name(d.model),
            probe_name(d.probe),
            count(d.pairs),
            _shown(d.chosen),
            _shown(d.rejected),
            _shown(d.margin),
            percent(d.both_fell),
        )
        for d in health.displacement
    ]
    return Table(
        title="Likelihood displacement",
        columns=(
            "Model",
            "Pairs of",
            "Pairs",
            "Log-prob of chosen, from S",
            "Log-prob of rejected, from S",
            "γ, from S",
            "Both fell",
        ),
        rows=tuple(rows),
        text_columns=2,
        note="Nats per completion, 95% intervals, prompts resampled. D_t: the sample of the "
        "partition that the model was trained on. arXiv 2410.08847.",
    )


def lengths_table(health: Health) -> Table:
    """Show how long every model writes."""
    rows = [
        (
            model_name(found.model),
            count(found.prompts),
            number(found.mean, digits=0),
            _shown(found.change, digits=0) if found.change else UNKNOWN,
            percent(found.unfinished),
        )
        for found in health.lengths
    ]
    return Table(
        title="Length of completions",
        columns=("Model", "Prompts", "Characters", "Change from S", "Cut at the limit"),
        rows=tuple(rows),
        note="Greedy completions of the same reserved prompts (probe.completions, "
        "probe.completion_tokens). arXiv 2406.11817.",
    )


def _points(accuracy: Interval) -> str:
    bounds = interval(accuracy.low, accuracy.high, digits=1, scale=100)
    return f"{number(100 * accuracy.mean, digits=1, signed=True)} {bounds}"
