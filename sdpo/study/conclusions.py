"""Say what a comparison shows and what it does not, in sentences that are no surer than it is."""

from collections.abc import Iterator, Sequence

from sdpo.report.findings import FEWEST_PAIRS, Tone, Verdict
from sdpo.report.tables import count, interval, number
from sdpo.stats.differences import POWER, PairedDifference
from sdpo.study.comparison import Comparison, Contrast, Measure

_VERBS = {
    "ranking_accuracy": ("ranks more pairs right than", "ranks fewer pairs right than"),
    "gamma": ("prefers the chosen answers more than", "prefers the chosen answers less than"),
}
_NAMES: dict[Measure, str] = {"ranking_accuracy": "ranking accuracy", "gamma": "mean γ"}


def conclude(found: Comparison) -> Verdict:
    """Return what can be concluded and what cannot."""
    first = found.arms[0].arm
    few = found.prompts < FEWEST_PAIRS
    shown = [] if few else [contrast for contrast in found.contrasts if contrast.is_shown]
    by_accuracy = [contrast for contrast in shown if contrast.measure == "ranking_accuracy"]
    sentences = [_of_contrast(contrast, first) for contrast in shown]
    if few:
        sentences.append(
            f"{count(found.prompts)} reserved prompts are too few to conclude anything from: set "
            "more aside (data.reserve)."
        )
    else:
        sentences += _not_shown(found, first)
    sentences += [*_of_tests(found), *_of_seeds(found), *_of_what_is_missing(found)]
    return Verdict(
        _headline(found, by_accuracy, few=few), _tone(by_accuracy, few=few), tuple(sentences)
    )


def _headline(found: Comparison, shown: Sequence[Contrast], *, few: bool) -> str:
    first, others = found.arms[0].arm, [line.arm for line in found.arms[1:]]
    if few:
        return f"Too few reserved prompts to tell {listed([first, *others])} apart."
    better = [contrast.arm for contrast in shown if contrast.found.mean > 0]
    worse = [contrast.arm for contrast in shown if contrast.found.mean < 0]
    parts = [
        *([f"{listed(better)} better than {first}"] if better else []),
        *([f"{listed(worse)} worse than {first}"] if worse else []),
    ]
    if parts:
        return f"On ranking accuracy: {', '.join(parts)}."
    return f"No difference in ranking accuracy from {first} was shown for {listed(others)}."


def _tone(shown: Sequence[Contrast], *, few: bool) -> Tone:
    return "good" if shown and not few else "open"


def _of_contrast(contrast: Contrast, first: str) -> str:
    verb = _VERBS[contrast.measure][contrast.found.mean < 0]
    return (
        f"{contrast.arm} {verb} {first}: {shown(contrast.measure, contrast.found)} over "
        f"{count(contrast.found.pairs)} pairs of {count(contrast.found.prompts)} prompts, "
        f"{of_p(contrast.corrected)}."
    )


def _not_shown(found: Comparison, first: str) -> Iterator[str]:
    """Yield, for each measure, what was not shown, and what these pairs could have shown."""
    for measure in ("ranking_accuracy", "gamma"):
        open_ = [c for c in found.contrasts if c.measure == measure and not c.is_shown]
        known = [c.smallest for c in open_ if c.smallest is not None]
        if not open_:
            continue
        names = listed([contrast.arm for contrast in open_])
        what = f"No difference in {_NAMES[measure]} from {first} was shown for {names}"
        if not known:
            yield f"{what}: no pair tells them apart."
            continue
        least = size(measure, max(known))
        yield (
            f"{what}, which does not say that there is none: with {count(found.pairs)} reserved "
            f"pairs, one of {least} or more would have been shown in {POWER:.0%} of all tries, and "
            "a smaller one less often."
        )


def _of_tests(found: Comparison) -> Iterator[str]:
    if found.tests:
        many = (
            "differences were tested together; p-values are"
            if found.tests > 1
            else "difference was tested; its p-value is"
        )
        yield f"{found.tests} {many} corrected for that (Holm), intervals are not."


def _of_seeds(found: Comparison) -> Iterator[str]:
    if found.seeds == 1:
        yield (
            "Each was trained with one seed: intervals are over pairs, and say nothing of how "
            "another seed would have come out."
        )
    else:
        yield (
            f"Numbers are means over {found.seeds} training seeds. A difference counts as shown "
            "where both of its intervals leave out 0: that over pairs, and that over seeds."
        )


def _of_what_is_missing(found: Comparison) -> Iterator[str]:
    for one, other in found.same:
        yield f"{one} and {other} came to the very same models: nothing that was read differs."
    if found.left_out:
        why = "which not all arms have set aside"
        if found.chosen:
            why += f", or by which a sweep chose the settings of {listed(found.chosen)}"
        yield f"{count(found.left_out)} reserved pairs are left out, {why}."
    if any(line.kl is None for line in found.arms):
        yield "KL to S was not measured of every arm (probe.kl_prompts)."
    if not any(line.suites for line in found.arms):
        yield "No suite was asked (evaluation.suites), and win rates are not measured."
    else:
        yield "Win rates are not measured."


def shown(measure: Measure, found: PairedDifference) -> str:
    """Write a difference with its intervals, each named where there are two."""
    scale, digits = (100, 1) if measure == "ranking_accuracy" else (1, 2)
    unit = "points" if measure == "ranking_accuracy" else "nats"
    pairs = interval(found.low, found.high, digits=digits, scale=scale)
    text = f"{number(scale * found.mean, digits=digits, signed=True)} {unit} {pairs}"
    over = found.over_seeds
    if over is None or over.seeds < 2:
        return text
    seeds = interval(over.low, over.high, digits=digits, scale=scale)
    return f"{text} over pairs, {seeds} over {over.seeds} seeds"


def size(measure: Measure, value: float | None) -> str:
    """Write the size of a difference with its unit."""
    if measure == "ranking_accuracy":
        return f"{number(None if value is None else 100 * value, digits=1)} points"
    return f"{number(value)} nats"


def of_p(value: float | None) -> str:
    """Write a corrected p-value."""
    if value is None:
        return "p not known"
    return "corrected p < 0.001" if value < 0.001 else f"corrected p = {value:.3f}"


def listed(names: Sequence[str]) -> str:
    """Write names as a person lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
