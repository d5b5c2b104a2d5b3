"""Say what a comparison shows and what it does not, in sentences that are no surer than it is."""

from collections.abc import Iterator, Sequence

from sdpo.report.findings import FEWEST_PAIRS, Tone, Verdict
from sdpo.report.tables import count
from sdpo.stats.differences import POWER
from sdpo.study.comparison import Comparison, Contrast
from sdpo.study.measures import ACCURACY


def conclude(found: Comparison) -> Verdict:
    """Return what can be concluded and what cannot."""
    first = found.arms[0].arm
    few = found.prompts < FEWEST_PAIRS
    # What suites and a judge say does not depend on how many pairs are reserved.
    told = [c for c in found.contrasts if not (few and c.items == "pairs")]
    shown = [contrast for contrast in told if contrast.is_shown]
    by_accuracy = [contrast for contrast in shown if contrast.measure == ACCURACY.measure]
    sentences = [_of_contrast(contrast, first) for contrast in shown]
    if few:
        sentences.append(
            f"{count(found.prompts)} reserved prompts are too few to conclude anything from: set "
            "more aside (data.reserve)."
        )
    sentences += _not_shown(told, first)
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
    return (
        f"{contrast.arm} {contrast.verb(contrast.found.mean)} {first}: "
        f"{contrast.shown(contrast.found)} over {_over(contrast)}, {of_p(contrast.corrected)}."
    )


def _over(contrast: Contrast) -> str:
    """Write what a difference is taken over."""
    items = f"{count(contrast.found.pairs)} {contrast.items}"
    if contrast.items == "documents":
        return items
    return f"{items} of {count(contrast.found.prompts)} prompts"


def _not_shown(contrasts: Sequence[Contrast], first: str) -> Iterator[str]:
    """Yield, for each measure, what was not shown, and what its items could have shown."""
    for measure in dict.fromkeys(contrast.measure for contrast in contrasts):
        open_ = [c for c in contrasts if c.measure == measure and not c.is_shown]
        known = [c.smallest for c in open_ if c.smallest is not None]
        if not open_:
            continue
        names = listed([contrast.arm for contrast in open_])
        what = f"No difference in {open_[0].title} from {first} was shown for {names}"
        items = open_[0].items
        if not known:
            yield f"{what}: no {items.removesuffix('s')} tells them apart."
            continue
        fewest = min(contrast.found.pairs for contrast in open_)
        least = open_[0].size(max(known))
        reserved = "reserved " if items == "pairs" else ""
        yield (
            f"{what}, which does not say that there is none: with {count(fewest)} {reserved}"
            f"{items}{_and_seeds(open_)}, one of {least} or more would have been shown in "
            f"{POWER:.0%} of all tries, and a smaller one less often."
        )


def _and_seeds(contrasts: Sequence[Contrast]) -> str:
    """Write how many seeds have to agree besides; nothing where one was trained."""
    over = [c.found.over_seeds for c in contrasts]
    several = [each.seeds for each in over if each is not None and each.seeds > 1]
    return f" and {min(several)} seeds" if several else ""


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
    missing = [
        *(["suites (evaluation.suites)"] if not any(line.suites for line in found.arms) else []),
        *(
            ["win rates (evaluation.win_rate.judge)"]
            if not any(line.win_rates for line in found.arms)
            else []
        ),
    ]
    if missing:
        yield f"Not measured: {listed(missing)}."


def of_p(value: float | None) -> str:
    """Write a corrected p-value."""
    if value is None:
        return "p not known"
    return "corrected p < 0.001" if value < 0.001 else f"corrected p = {value:.3f}"


def listed(names: Sequence[str]) -> str:
    """Write names as a person lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
