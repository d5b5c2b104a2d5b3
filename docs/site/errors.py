"""Make the page of errors: every class, and every message in the code that is raised with it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docs.site.markdown import escaped, table
from sdpo import errors
from sdpo.errors import Fault, SdpoError, UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "partitions", "sdpo")
LEFT_OUT = "…"
"""It stands in a message for what differs."""


class Message(NamedTuple):
    """A message stands in a ``module`` and is raised as an ``error``; what differs is left out."""

    error: str
    text: str
    module: str


def classes() -> list[type[SdpoError]]:
    """Return the error classes of :mod:`sdpo.errors`, in its order."""
    found = vars(errors).values()
    return [each for each in found if isinstance(each, type) and issubclass(each, SdpoError)]


@cache
def messages() -> list[Message]:
    """Return every message that stands in a ``raise`` of one of these errors, in order of text."""
    names = {each.__name__ for each in classes()} | {"PartitionError"}
    found = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found |= {Message(name, text, module) for name, text in _raised(node, names)}
    return sorted(found, key=lambda each: (each.text.strip("`… ").lower(), each.module))


def page() -> str:
    """Return the page."""
    kinds = [
        (f"`{each.__name__}`", _exit_code(each), escaped(" ".join((each.__doc__ or "").split())))
        for each in classes()
    ]
    listed = messages()
    parts = [
        "# Errors\n\nThe command line shows an error as one message that says what is wrong, "
        "where, and what to do. A Python\nprogram catches it by its class, from `sdpo.errors`.\n",
        table(("Class", "Exit code", "What it means"), kinds),
    ]
    for title, codes in (("Mistakes", "2"), ("Faults", "1")):
        of = {each.__name__ for each in classes() if _exit_code(each) == codes}
        of |= {"PartitionError"} if codes == "2" else set()
        rows = [(escaped(m.text), f"`{m.error}`", f"`{m.module}`") for m in listed if m.error in of]
        parts.append(
            f"## {title}: messages\n\nIn alphabetical order; `{LEFT_OUT}` stands for what "
            "differs.\n\n" + table(("Message", "Class", "Where"), rows)
        )
    return "\n".join(parts)


def _exit_code(kind: type[SdpoError]) -> str:
    if issubclass(kind, UserError):
        return "2"
    if issubclass(kind, Fault) or kind.__name__ == "LayoutError":
        return "1"
    return "130" if kind.__name__ == "Interrupted" else ""


def _raised(node: ast.AST, names: set[str]) -> Iterator[tuple[str, str]]:
    """Yield error and message of a ``raise`` whose message stands in it."""
    if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
        return
    call = node.exc
    if isinstance(call.func, ast.Name) and call.func.id in names and call.args:
        text = text_of(call.args[0])
        if text.strip(f"{LEFT_OUT} :"):
            yield call.func.id, " ".join(text.split())


def text_of(node: ast.AST) -> str:
    """Return the words of a string or f-string; what is computed is left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return LEFT_OUT
