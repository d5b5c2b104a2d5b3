"""Make the page by which a person judges a new model: two numbers, and what both models write."""

from collections.abc import Mapping
from typing import Any

from sdpo.promotion.judge import ALL, Judgement
from sdpo.promotion.retrain import READ_BY_A_PERSON
from sdpo.report.load import load_run
from sdpo.report.tables import interval, number, percent
from sdpo.store.run_folder import RunFolder
from sdpo.system.streams import visible

_LONGEST = 700
"""A text is cut after so many characters: a cell is read at a glance."""
_COMPARED = ("accuracy_vs_S", "margin")
_MARKUP = r"\`*_{}[]()#+-.!|~^=:@/&<>"


def judgement_page(judgement: Judgement, run: RunFolder) -> str:
    """Return Markdown: the gate's numbers of both models, and their answers side by side."""
    current, new = f"M_{judgement.current}", f"M_{judgement.new}"
    of_sources = [entry for entry in judgement.comparisons if entry["scope"] != ALL]
    shown = judgement.comparisons[:1] if len(of_sources) == 1 else judgement.comparisons
    others = [check for check in judgement.checks if check.check not in _COMPARED]
    lines = [
        f"# {new} against {current}, which is in use",
        "",
        f"**Gate: {judgement.outcome}.** {_plain(judgement.reason)}",
        "",
        f"| reserved pairs | | {current}, in use | {new}, new | change |",
        "|---|---|---|---|---|",
        *(row for entry in shown for row in _rows(entry)),
        "",
        "Accuracy: share of pairs whose γ is higher than under S, ties one half. Margin: mean of γ "
        "less γ under S, in nats. γ: log-probability of the chosen answer less that of the "
        "rejected one. Neither model was trained on these pairs; [a, b]: 95% interval.",
        "",
        *(
            f"- {'✓' if check.passed else '✗'} {check.check}: {_plain(check.why)}"
            for check in others
        ),
        "",
        *_answers(judgement, run),
    ]
    return "\n".join(lines)


def _rows(entry: Mapping[str, Any]) -> list[str]:
    where = "all" if entry["scope"] == ALL else _plain(entry["scope"])
    pairs = f"{where}, {entry['pairs']}"
    both = [entry[model] for model in ("current", "new")]
    change = entry["difference"]
    accuracy = [_share(model["accuracy_vs_S"]) for model in both]
    margin = [_nats(model["margin"]) for model in both]
    return [
        f"| {pairs} | accuracy against S | {' | '.join(accuracy)} | "
        f"{_points(change['accuracy_vs_S'])} |",
        f"| | margin over S | {' | '.join(margin)} | {_nats(change['margin'], signed=True)} |",
    ]


def _share(value: Mapping[str, float | None]) -> str:
    bounds = interval(value["low"], value["high"], digits=1, scale=100)
    return f"{percent(value['estimate'])} {bounds}"


def _points(value: Mapping[str, float | None]) -> str:
    estimate = value["estimate"]
    assert estimate is not None
    bounds = interval(value["low"], value["high"], digits=1, scale=100)
    return f"{number(100 * estimate, digits=1, signed=True)} points {bounds}"


def _nats(value: Mapping[str, float | None], *, signed: bool = False) -> str:
    return f"{number(value['estimate'], signed=signed)} {interval(value['low'], value['high'])}"


def _answers(judgement: Judgement, run: RunFolder) -> list[str]:
    """Return a table of reserved prompts with what both models write, greedily."""
    models = [f"M_{judgement.current}", f"M_{judgement.new}"]
    written = load_run(run.path).completions
    old, new = ({item["prompt_key"]: item for item in written.get(model, [])} for model in models)
    both = [key for key in old if key in new][:READ_BY_A_PERSON]
    if not both:
        return ["No completions were made (probe.completions): there is nothing to read."]
    return [
        f"## {len(both)} reserved prompts",
        "",
        f"| prompt | {models[0]}, in use | {models[1]}, new |",
        "|---|---|---|",
        *(
            f"| {_cell(old[key]['prompt'])} | {_cell(old[key]['completion'])} | "
            f"{_cell(new[key]['completion'])} |"
            for key in both
        ),
        "",
        *(
            ["`probe.completions` of the run says how many there are."]
            if len(both) < READ_BY_A_PERSON
            else []
        ),
    ]


def _cell(text: str) -> str:
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    return _plain(cut) or "(nothing)"


def _plain(text: str) -> str:
    """Return somebody's text so that Markdown shows it as it is, on one line."""
    line = visible(" ".join(text.split()))
    return "".join(f"\\{each}" if each in _MARKUP else each for each in line)
