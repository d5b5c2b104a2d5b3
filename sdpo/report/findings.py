"""Say what the numbers show: the verdict, and what a reader must be warned of.

Nothing here is softer or harder than its interval: an effect is claimed where the 95% interval
leaves out 0, and where it does not, that is what is said.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sdpo.report.load import RunData
from sdpo.report.numbers import Numbers
from sdpo.report.rounds import rounds_of
from sdpo.report.tables import count, interval, model_name, number, percent, probe_name
from sdpo.stats.gamma import RESERVE
from sdpo.stats.gamma_rows import Difference
from sdpo.system.words import be, noun

SMALL_PROBE = 200
"""Below this many pairs a probe is called small."""
FEWEST_PAIRS = 20
"""Below this many pairs nothing is concluded."""
TRUNCATED_SHARE = 0.05
"""Above this share of truncated pairs a partition is warned of."""
GATE_SHARE = 0.5
"""Above this share of what the gate allows, its difference is warned of."""

Direction = Literal["rose", "fell", "unclear", "unknown"]
Tone = Literal["good", "mixed", "bad", "open"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict is a headline, how the run ended, and the sentences that support it."""

    headline: str
    tone: Tone
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caveat:
    """A caveat is something that could make a reader draw the wrong conclusion."""

    title: str
    text: str


def verdict(data: RunData, numbers: Numbers) -> Verdict:
    """Say whether gamma_ref rose on the partitions to come, and accuracy on the reserve."""
    last = data.measured
    if last < 1 or not data.steps:
        return Verdict(_unfinished(data), "open", ("Nothing can be compared yet.",))
    changes = [
        (step, row.vs_S)
        for step in range(2, last + 2)
        if (row := numbers.entries.get((step - 1, f"D_{step}"))) and row.vs_S
    ]
    sentences = [_gamma_sentence(data, numbers, step, change) for step, change in changes]
    accuracy = numbers.reserve[last].vs_S if last in numbers.reserve else None
    sentences.append(_accuracy_sentence(numbers, last, accuracy))
    if data.done < len(data.steps):
        sentences.insert(0, _unfinished(data))
    before = numbers.before.get(2)
    if before and before.warning:
        headline = "No conclusion: M_1 may have seen D_2, so the rise of its γ_ref shows nothing."
        return Verdict(headline, "bad", tuple(sentences))
    headline, tone = _headline(changes[0][1] if changes else None, accuracy, last)
    return Verdict(headline, tone, tuple(sentences))


def caveats(data: RunData, numbers: Numbers) -> list[Caveat]:
    """Return all that a reader must know before believing the numbers, worst first."""
    return [
        *_lineage(data),
        *_references(data),
        *_contamination(numbers),
        *_overlaps(data, numbers),
        *_truncation(data, numbers),
        *_gates(data),
        *_small_probes(data, numbers),
        *_rounds(data, numbers),
    ]


def direction(low: float | None, high: float | None, *, pairs: int) -> Direction:
    """Say what an interval shows about a change.

    Resampling a handful of pairs gives intervals that are too narrow, so they say nothing; and a
    small probe that shows no change does not show that there is none.
    """
    if low is None or high is None or pairs < FEWEST_PAIRS:
        return "unknown"
    if low <= 0 <= high:
        return "unclear" if pairs >= SMALL_PROBE else "unknown"
    return "rose" if low > 0 else "fell"


def _headline(gamma: Difference | None, accuracy: Difference | None, last: int) -> tuple[str, Tone]:
    on_d2 = _gamma_direction(gamma) if gamma else None
    on_reserve = _accuracy_direction(accuracy)
    accuracies: dict[Direction, str] = {
        "rose": "accuracy on the reserve rose",
        "fell": "accuracy on the reserve fell",
        "unclear": "accuracy on the reserve did not change measurably",
        "unknown": "the reserve is too small to tell whether accuracy rose",
    }
    if on_d2 is None:
        tones: dict[Direction, Tone] = {
            "rose": "good",
            "fell": "bad",
            "unclear": "mixed",
            "unknown": "open",
        }
        return f"From S to {model_name(last)}, {accuracies[on_reserve]}.", tones[on_reserve]
    gammas: dict[Direction, str] = {
        "rose": "γ_ref on D_2 rose from S to M_1",
        "fell": "γ_ref on D_2 fell from S to M_1",
        "unclear": "γ_ref on D_2 did not change measurably from S to M_1",
        "unknown": "the probe of D_2 is too small to tell whether γ_ref rose",
    }
    both = f"{gammas[on_d2]}, {{}} {accuracies[on_reserve]}."
    if on_d2 == on_reserve == "rose":
        return "The effect appeared: " + both.format("and"), "good"
    if "rose" in {on_d2, on_reserve}:
        return "Half of the effect: " + both.format("but"), "mixed"
    if "unknown" in {on_d2, on_reserve}:
        return "Nothing can be concluded: " + both.format("and"), "open"
    return "The effect did not appear: " + both.format("and"), "bad"


def _gamma_direction(difference: Difference) -> Direction:
    return direction(difference.low, difference.high, pairs=difference.pairs)


def _accuracy_direction(difference: Difference | None) -> Direction:
    if not difference:
        return "unknown"
    low, high = difference.ranking_accuracy_change_low, difference.ranking_accuracy_change_high
    return direction(low, high, pairs=difference.pairs)


def _unfinished(data: RunData) -> str:
    if not data.steps:
        return "Unfinished: the data is not partitioned yet."
    if data.done == len(data.steps):
        return "All steps are complete, but their models were not all measured."
    return f"Unfinished: {data.done} of {len(data.steps)} steps are complete."


def _gamma_sentence(data: RunData, numbers: Numbers, step: int, change: Difference) -> str:
    name = model_name(step - 1)
    is_reference = data.model_name(step, "reference") == name
    what = f"{name}, the {'reference of' if is_reference else 'model before'} step {step},"
    now, before = numbers.entries[step - 1, f"D_{step}"], numbers.entries[0, f"D_{step}"]
    verb = {
        "rose": f"{what} favours the chosen answers more than S",
        "fell": f"{what} favours the chosen answers less than S",
        "unclear": f"{what} is not measurably different from S",
        "unknown": f"Too few pairs to compare {what} with S",
    }[_gamma_direction(change)]
    return (
        f"{verb}: mean γ on D_{step} is {number(before.mean)} nats under S and "
        f"{number(now.mean)} under {name}, a change of {number(change.mean, signed=True)} "
        f"{interval(change.low, change.high)} over {count(change.pairs)} pairs, before "
        f"step {step} trained on any of them."
    )


def _accuracy_sentence(numbers: Numbers, last: int, difference: Difference | None) -> str:
    if not difference:
        return "There is no reserve, so nothing says whether accuracy rose on unseen prompts."
    now, before = numbers.reserve[last], numbers.reserve[0]
    low, high = difference.ranking_accuracy_change_low, difference.ranking_accuracy_change_high
    points = interval(low, high, digits=1, scale=100)
    rise = number(_scaled(difference.ranking_accuracy_change), digits=1, signed=True)
    return (
        f"Ranking accuracy on the reserve went from {percent(before.ranking_accuracy)} under S "
        f"to {percent(now.ranking_accuracy)} under {model_name(last)}, "
        f"{rise} points {points} over "
        f"{count(difference.pairs)} pairs; γ rose on {percent(difference.accuracy)} of them."
    )


def _scaled(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _lineage(data: RunData) -> Iterator[Caveat]:
    base = data.records[0].model if 0 in data.records else None
    for step, record in sorted(data.records.items()):
        before = data.records.get(step - 1)
        if step < 2 or not before:
            continue
        made = {"previous": before.model}
        made["base"] = base or data.records[1].inputs["target"]
        for role in ("reference", "target"):
            given, due = record.inputs.get(role), made.get(data.choice(step, role))
            if given and due and given != due:
                source = {"previous": f"step {step - 1}", "base": "S"}[data.choice(step, role)]
                yield Caveat(
                    f"Step {step} did not start from {source}",
                    f"Its {role} is {given[:12]}, but {source} is {due[:12]}.",
                )
                break


def _references(data: RunData) -> Iterator[Caveat]:
    """Say what is unusual about a reference that is not the model before."""
    for step, record in sorted(data.records.items()):
        excess = record.gate.excess_loss if record.gate else None
        restarted = data.choice(step, "target") == "base"
        if step > 1 and restarted and excess is not None and excess <= 0:
            yield Caveat(
                f"The reference of step {step} is no better than S",
                f"Training starts at S, and its first loss is {number(excess, digits=4)} from what "
                "it is where policy and reference agree. A reference that favours the chosen "
                "answers more than S would raise it.",
            )
        if record.inputs.get("reference_tokenizer"):
            yield Caveat(
                f"The reference of step {step} has a tokenizer of its own",
                "It scored the same text in other tokens, so nothing is given per token for it.",
            )


def _contamination(numbers: Numbers) -> Iterator[Caveat]:
    for step, gap in numbers.before.items():
        if gap.warning:
            yield Caveat(
                f"{gap.model} may have seen D_{step} before step {step}",
                f"From S it moved by {number(gap.mean, signed=True)} nats on D_{step} but by "
                f"{number(gap.reserve_mean, signed=True)} on the reserve of the same sources: "
                f"a gap of {number(gap.gap)} {interval(gap.low, gap.high)} where 0 is "
                f"expected. γ_ref on D_{step} is then no evidence of a better reference.",
            )


def _overlaps(data: RunData, numbers: Numbers) -> Iterator[Caveat]:
    for overlap in data.plan.overlap if data.plan else []:
        names = " and ".join(f"D_{step}" for step in overlap.steps)
        yield Caveat(
            f"Prompts in common: {names}",
            f"{count(overlap.prompts)} {noun(overlap.prompts, 'prompt')} with "
            f"{count(overlap.pairs)} {noun(overlap.pairs, 'pair')} "
            f"{noun(overlap.prompts, 'occurs', 'occur')} in each of them, so a later "
            "partition is not wholly new to the model that meets it.",
        )
    for step, prompts in numbers.reserve_overlap.items():
        yield Caveat(
            f"D_{step} has reserved prompts",
            f"{count(prompts)} {noun(prompts, 'prompt')} of D_{step} {be(prompts)} in the reserve "
            "as well: accuracy on the reserve is too high.",
        )


def _truncation(data: RunData, numbers: Numbers) -> Iterator[Caveat]:
    if data.plan and (cut := data.plan.cut_prompts):
        yield Caveat(
            f"Prompts of {count(cut)} {noun(cut, 'pair')} are cut",
            f"They keep their last {count(data.config['data']['max_prompt_length'])} tokens "
            "(data.max_prompt_length), with a BOS in front where there is one: the models were "
            "trained and measured on those.",
        )
    for plan in data.steps:
        step = plan.step
        measured, lengths = numbers.references.get(step), plan.lengths
        sides = [lengths.chosen_truncated or 0.0, lengths.rejected_truncated or 0.0]
        share = measured.truncated_share if measured else None
        share = max(sides) if share is None else share
        if share > TRUNCATED_SHARE:
            yield Caveat(
                f"{percent(share)} of D_{step} is truncated",
                f"A side of these pairs is longer than {count(data.config['data']['max_length'])} "
                "tokens with its prompt (data.max_length), and was cut.",
            )


def _gates(data: RunData) -> Iterator[Caveat]:
    for step, record in sorted(data.records.items()):
        gate = record.gate
        if gate and gate.max_abs_difference_nats > GATE_SHARE * gate.tolerance_nats:
            yield Caveat(
                f"Step {step} passed its gate narrowly",
                f"Policy and cached reference differ by {gate.max_abs_difference_nats:.2g} nats "
                f"before training; {gate.tolerance_nats:.2g} is allowed.",
            )


def _rounds(data: RunData, numbers: Numbers) -> Iterator[Caveat]:
    """Tell where models please their judge more and the reserve's pairs less."""
    rounds = rounds_of(data)
    if len(rounds) < 2:
        return
    first, last = rounds[0], rounds[-1]
    before, now = (numbers.reserve.get(each.step - 1) for each in (first, last))
    if not before or not now or last.outputs.score <= first.outputs.score:
        return
    if (now.ranking_accuracy or 0) < (before.ranking_accuracy or 0):
        yield Caveat(
            "The judge's score rises while accuracy on the reserve falls",
            f"Samples of {model_name(first.step - 1)} score {number(first.outputs.score)} on "
            f"average, those of {model_name(last.step - 1)} {number(last.outputs.score)}; ranking "
            f"accuracy on the reserve went from {percent(before.ranking_accuracy)} to "
            f"{percent(now.ranking_accuracy)}: the models may please the judge and nobody else.",
        )


def _small_probes(data: RunData, numbers: Numbers) -> Iterator[Caveat]:
    sizes = {probe: numbers.entries[0, probe].pairs for probe in numbers.probes}
    if data.plan and sizes:
        empty = (name for name, pairs in data.plan.reserve.items() if not pairs)
        sizes |= {f"{RESERVE}{name}": 0 for name in empty}
    small = [f"{probe_name(p)} ({n} pairs)" for p, n in sizes.items() if n < SMALL_PROBE]
    if small:
        yield Caveat(
            "Small probes",
            f"With fewer than {SMALL_PROBE} pairs a change has to be large to show: "
            f"{', '.join(small)}.",
        )
