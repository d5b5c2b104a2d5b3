"""Say what came of comparing a replay with its original, at a terminal and as Markdown."""

from sdpo.history.results import Comparison

ANSWERS = {
    "bitwise identical": "bitwise identical: weights, loss curve and gamma",
    "same inputs, results differ": "same inputs, results differ by",
    "inputs differ": "inputs differ",
    "unknown": "there is nothing whole to compare with",
}


def grounds(found: Comparison) -> list[str]:
    """Return what the answer of a replay rests on, line by line."""
    groups = {"": found.inputs, "results: ": found.results}
    if found.verdict != "bitwise identical":
        groups["environment: "] = found.environment or ("the same versions, device and threads",)
    return [f"{prefix}{line}" for prefix, lines in groups.items() for line in lines]


def judged(found: Comparison) -> str:
    """Return what follows from a comparison, in a sentence."""
    if found.verdict == "bitwise identical":
        return "The step is reproduced."
    if found.verdict == "same inputs, results differ":
        return "The step is not reproduced: what made it is the same, and the results are not."
    if found.verdict == "unknown":
        return "Nothing follows: one of the two steps is not whole."
    if found.results:
        return "This is another step: what made it differs, and so do its results."
    return "What made the step differs, and its results are the same, bit by bit."


def comparison_lines(found: Comparison, where: str) -> list[str]:
    """Return the answer of a replay as lines of Markdown, titled ``where``."""
    lines = [f"# {where}", "", f"**{ANSWERS[found.verdict]}**", "", judged(found), ""]
    return lines + [f"- {line}" for line in grounds(found)]
