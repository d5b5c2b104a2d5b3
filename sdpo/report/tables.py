"""Make the report's tables of plain text cells; the command line prints the first two as well."""

from dataclasses import dataclass

from sdpo.report.load import Rejected, RunData
from sdpo.report.numbers import Numbers
from sdpo.stats.gamma import RESERVE
from sdpo.stats.gamma_rows import Difference, GammaRow, ProbeRow
from sdpo.store.plan_file import StepLengths
from sdpo.store.records import GateFacts

UNKNOWN = "–"
EQUALS = "\u00a0=\u00a0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table has cells of text. The first ``text_columns`` columns are words, the others
    numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""


def number(value: float | None, *, digits: int = 2, signed: bool = False) -> str:
    """Write a number with a real minus sign; a dash where there is none."""
    if value is None:
        return UNKNOWN
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(value: float | None, *, digits: int = 1) -> str:
    """Write a share as a percentage."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f}%"


def interval(low: float | None, high: float | None, *, digits: int = 2, scale: float = 1) -> str:
    """Write ``[low, high]``, or that there are too few prompts for an interval."""
    if low is None or high is None:
        return "(too few to tell)"
    bounds = [number(scale * bound, digits=digits, signed=low < 0) for bound in (low, high)]
    return f"[{bounds[0]}, {bounds[1]}]"


def count(value: int | None) -> str:
    """Write a count with thin spaces between thousands."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Write seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def model_name(model: int) -> str:
    """Return the name of a model by its number; M_0 is S."""
    return f"M_{model}" if model else "S"


def short(digest: str | None) -> str:
    """Return the first twelve digits of a digest."""
    return digest[:12] if digest else UNKNOWN


def reserve_table(data: RunData, numbers: Numbers) -> Table:
    """Show every model's accuracies and implied reward margin on the reserve of all sources."""
    rows = []
    for model, entry in numbers.reserve.items():
        start, moved = entry.vs_S, _from_reference(data, model, entry)
        beta = data.beta(model) if moved else None
        mean = moved.mean if moved else None
        margin = None if beta is None or mean is None else beta * mean
        rows.append(
            (
                model_name(model),
                count(entry.pairs),
                _accuracy(entry),
                percent(entry.accuracy_vs_previous),
                percent(entry.accuracy_vs_S),
                estimate(entry, "mean"),
                change(start),
                number(margin, digits=3, signed=True),
            )
        )
    return Table(
        title="Reserve",
        columns=(
            "Model",
            "Pairs",
            "Ranking accuracy",
            "γ rose, from previous",
            "γ rose, from S",
            "Mean γ",
            "Change from S",
            "Implied margin",
        ),
        rows=tuple(rows),
        note="All sources together. Ranking accuracy: share of pairs with γ > 0. γ rose: share of "
        "pairs whose γ is higher than under that model, ties one half. Implied margin: β times the "
        "mean change of γ from the step's reference, where that is the model before or S, and "
        "rewards are β times log-ratios.",
    )


def _from_reference(data: RunData, model: int, row: GammaRow) -> Difference | None:
    """Return the change of gamma from the reference that the model was trained against."""
    known = {"previous": row.vs_previous, "base": row.vs_S}
    return known.get(data.choice(model, "reference")) if model else None


def sources_table(numbers: Numbers) -> Table:
    """Show every model on every probe."""
    rows = []
    for probe in numbers.probes:
        for (model, name), entry in numbers.entries.items():
            if name == probe:
                rows.append(
                    (
                        probe_name(probe),
                        model_name(model),
                        count(entry.pairs),
                        estimate(entry, "mean"),
                        number(entry.sd),
                        number(entry.quantiles.get("50")),
                        number(entry.per_token_mean, digits=3),
                        _accuracy(entry),
                        percent(entry.accuracy_vs_S),
                        number(entry.length_correlation),
                        percent(entry.truncated_share),
                        number(entry.complete.mean if entry.complete else None),
                    )
                )
    return Table(
        title="Every model on every probe",
        columns=(
            "Probe",
            "Model",
            "Pairs",
            "Mean γ",
            "SD",
            "Median",
            "Per token",
            "Ranking accuracy",
            "γ rose, from S",
            "Corr. with length",
            "Truncated",
            "Mean γ, complete",
        ),
        rows=tuple(rows),
        text_columns=2,
        note="Partitions on their seeded sample, the same pairs for every model. Per token: mean "
        "of the chosen side's log-prob per token minus the rejected side's. Complete: pairs with "
        "neither side truncated.",
    )


def gaps_table(numbers: Numbers) -> Table:
    """Show the contamination before each step and the fit gap after it."""
    rows = []
    for step in sorted({*numbers.before, *numbers.after}):
        for gap in (numbers.before.get(step), numbers.after.get(step)):
            if gap:
                rows.append(
                    (
                        f"D_{step}",
                        f"{gap.model}, {'before' if gap.before_training else 'after'} step {step}",
                        count(gap.pairs),
                        count(gap.reserve_pairs),
                        number(gap.mean, signed=True),
                        number(gap.reserve_mean, signed=True),
                        f"{number(gap.gap, signed=True)} {interval(gap.low, gap.high)}",
                        number(100 * gap.share_above_gap, digits=1, signed=True),
                    )
                )
    return Table(
        title="Seen or unseen",
        columns=(
            "Partition",
            "Model",
            "Pairs",
            "Reserve pairs",
            "Change of γ from S",
            "On the reserve",
            "Gap",
            "Gap in share risen, points",
        ),
        rows=tuple(rows),
        text_columns=2,
        note="Before a step the gap should be near 0: a model that moved more on D_t than on the "
        "reserve has seen D_t. After the step the same number is the fit gap, which is expected.",
    )


def partition_table(data: RunData) -> Table:
    """Show the pairs per step and source, with the lengths that the plan knows."""
    steps, reserve = data.steps, data.plan.reserve if data.plan else {}
    sources = list(dict.fromkeys([name for s in steps for name in s.sources] + list(reserve)))
    rows = [
        (
            f"D_{step.step}",
            *(count(step.sources.get(source, 0)) for source in sources),
            count(step.pairs),
            *_lengths(step.lengths),
            short(step.digest),
        )
        for step in steps
    ]
    held = [reserve.get(source, 0) for source in sources]
    if steps:
        rows.append(("reserve", *map(count, held), count(sum(held)), *[UNKNOWN] * 3))
    return Table(
        title="Partitions",
        columns=(
            "",
            *sources,
            "All",
            "Tokens: median / 95% / max",
            "Truncated: chosen / rejected",
            "Pair ids",
        ),
        rows=tuple(rows),
    )


def read_table(data: RunData) -> Table:
    """Show the rows read and kept per source."""
    rows = [
        (
            source.name,
            count(source.read),
            count(source.kept),
            count(sum(source.rejected.values())),
        )
        for source in data.sources
    ]
    return Table(
        title="Rows",
        columns=("Source", "Read", "Kept", "Rejected"),
        rows=tuple(rows),
        note="As text; rows that the tokenizer rejects come on top, below." if rows else "",
    )


def rejected_table(data: RunData) -> Table:
    """Show what was rejected, why, and the first rows of each kind."""
    rows = [(r.source, r.reason, _examples(r), count(r.count)) for r in data.rejected]
    return Table(
        title="Rejected rows",
        columns=("Source", "Reason", "First rows", "Rows"),
        rows=tuple(rows),
        text_columns=3,
        note="All of them are listed in rejected_rows.jsonl." if rows else "",
    )


def lineage_table(data: RunData) -> Table:
    """Show what each model was made from, by digest."""
    inputs = data.run.inputs
    base = short(inputs.get("model"))
    rows = [("base model", UNKNOWN, UNKNOWN, UNKNOWN, base, UNKNOWN, UNKNOWN)]
    for step, record in sorted(data.records.items()):
        given, scored = record.inputs, record.scored_rows
        rows.append(
            (
                f"step {step}" if step else "step 0, supervised",
                short(given.get("reference")),
                short(given.get("target") or given.get("base")),
                short(given.get("partition")),
                f"{short(record.model)}{EQUALS}{model_name(step)}",
                _gate(record.gate),
                f"{count(scored.computed)} / {count(scored.cached)}" if scored else UNKNOWN,
            )
        )
    return Table(
        title="Models",
        columns=(
            "",
            "Reference",
            "Initial target",
            "Partition",
            "Model",
            "Gate: difference / allowed, nats",
            "Reference rows computed / cached",
        ),
        rows=tuple(rows),
        text_columns=5,
        note="First twelve digits of content digests; in full below, and in step-t/record.json.",
    )


def digests_table(data: RunData) -> Table:
    """Show all digests in full."""
    named = [(f"input: {key}", str(value)) for key, value in data.run.inputs.items()]
    named += [(f"partition D_{s.step}", str(s.digest)) for s in data.steps]
    for step, record in sorted(data.records.items()):
        for kind, digests in (("inputs", record.inputs), ("outputs", record.outputs)):
            named += [(f"step {step}, {kind}: {k}", v) for k, v in digests.items()]
    return Table(title="Digests", columns=("Of", "Digest"), rows=tuple(named), text_columns=2)


def timings_table(data: RunData) -> Table:
    """Show the time of each phase per step."""
    timings = {step: record.timings_s for step, record in sorted(data.records.items())}
    phases = list(dict.fromkeys(phase for seconds in timings.values() for phase in seconds))
    rows = [
        (
            f"step {step}",
            *(duration(seconds[phase]) if phase in seconds else UNKNOWN for phase in phases),
            duration(sum(seconds.values())),
        )
        for step, seconds in timings.items()
    ]
    return Table(title="Timings", columns=("", *phases, "all"), rows=tuple(rows))


def probe_name(probe: str) -> str:
    """Name a probe such as ``reserve:ultrafeedback`` in words."""
    return f"reserve of {probe.removeprefix(RESERVE)}" if probe.startswith(RESERVE) else probe


def estimate(row: ProbeRow | None, name: str) -> str:
    """Write a value of a row with its interval."""
    if not row:
        return UNKNOWN
    bounds = interval(getattr(row, f"{name}_low"), getattr(row, f"{name}_high"))
    return f"{number(getattr(row, name))} {bounds}"


def _accuracy(row: ProbeRow) -> str:
    low, high = row.ranking_accuracy_low, row.ranking_accuracy_high
    return f"{percent(row.ranking_accuracy)} {interval(low, high, digits=1, scale=100)}"


def change(difference: Difference | None) -> str:
    """Write a difference with its interval."""
    if not difference:
        return UNKNOWN
    bounds = interval(difference.low, difference.high)
    return f"{number(difference.mean, signed=True)} {bounds}"


def _lengths(lengths: StepLengths) -> tuple[str, str]:
    """Write the lengths of prompt plus longer side, and the truncated share of each side."""
    quantiles, truncated = UNKNOWN, UNKNOWN
    if found := lengths.sequence:
        values = (found.median, found.p95, found.maximum)
        quantiles = " / ".join(count(round(value)) for value in values)
    if lengths.chosen_truncated is not None:
        sides = (lengths.chosen_truncated, lengths.rejected_truncated)
        truncated = " / ".join(percent(share) for share in sides)
    return quantiles, truncated


def _gate(gate: GateFacts | None) -> str:
    if not gate:
        return UNKNOWN
    return f"{gate.max_abs_difference_nats:.1e} / {gate.tolerance_nats:.1e}"


def _examples(rejected: Rejected) -> str:
    """Write the first rows, with what was said of them."""
    details = [str(example.get("detail") or "") for example in rejected.examples]
    numbers = [str(example["row"]) for example in rejected.examples]
    more = "; …" if rejected.count > len(numbers) else ""
    if len(set(details)) == 1:
        text = ", ".join(numbers) + more
        return f"{text}: {details[0]}" if details[0] else text
    named = (f"{n} ({d})" if d else n for n, d in zip(numbers, details, strict=True))
    return "; ".join(named) + more
