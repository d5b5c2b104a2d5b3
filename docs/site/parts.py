"""Make the pages of objectives, of partition strategies and of other trainers' settings."""

from docs.site.markdown import code, escaped, table
from partitions import OWN, get
from sdpo.config.elsewhere import ELSEWHERE
from sdpo.objectives import OBJECTIVES

_READS = {
    "pairwise": "the difference of both sides",
    "pointwise": "each side by itself",
    "mixed": "both ways",
    "supervised": "the chosen side",
}


def objectives() -> str:
    """Return the page of objectives, from the facts that stand on their formulas."""
    rows = [
        (
            code(name),
            facts.title,
            facts.paper,
            ", ".join(code(f"training.{each}") for each in facts.settings) or "none",
            "yes" if facts.needs_reference else "no",
            _READS[facts.form] + (", per token" if facts.length_normalised else ""),
            "yes" if facts.has_nll else "no",
        )
        for name, facts in OBJECTIVES.items()
    ]
    head = (
        "`training.objective`",
        "Title",
        "Paper",
        "Reads",
        "Reference",
        "Compares",
        "Has an NLL",
    )
    return (
        "# Objectives by their facts\n\nFormulas stand in `sdpo/objectives/losses.py`.\n\n"
    ) + table(head, rows)


def strategies() -> str:
    """Return the page of partition strategies."""
    rows = [
        (
            code(strategy.name),
            escaped(strategy.description),
            ", ".join(code(f"partition.{each}") for each in sorted(strategy.uses)) or "none",
        )
        for strategy in map(get, OWN)
    ]
    head = ("`partition.strategy`", "What it does", "Reads")
    return f"# Partition strategies\n\n{table(head, rows)}"


def others() -> str:
    """Return the page of settings of other trainers, and what they are here."""
    rows = [(code(name), escaped(said)) for name, said in sorted(ELSEWHERE.items())]
    return (
        "# Settings of other trainers\n\nSettings of TRL, LLaMA-Factory, axolotl, open-instruct "
        "and ms-swift, and what a recipe that has one\nis answered.\n\n"
    ) + table(("Their setting", "Here"), rows)
