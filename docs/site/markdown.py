"""Write the few forms of Markdown that generated pages have."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; bars and line ends within a cell are made harmless."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def code(text: str) -> str:
    """Return ``text`` as code in a line; empty where it is empty."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}" if text else ""


def block(text: str, language: str = "") -> str:
    """Return ``text`` as a block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def escaped(text: str) -> str:
    """Return text of a docstring or message with what HTML would take for a tag made harmless.

    Roles of Sphinx become code.
    """
    for role in (":class:", ":func:", ":mod:", ":meth:"):
        text = text.replace(role, "")
    text = text.replace("``", "`")
    parts = text.split("`")  # every second part is code, where nothing is a tag
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
