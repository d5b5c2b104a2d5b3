"""Execute the notebooks of the documentation, and make pages of them.

``python -m docs.site.notebooks NOTEBOOK`` executes one in the current folder and keeps what its
cells show. No Jupyter is needed: cells are plain Python, without magic commands.
"""

import argparse
import ast
import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.site.markdown import block

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
Names = dict[str, object]
"""What the cells of a notebook have defined so far."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell shows what it ``printed``, and its last expression as ``text`` and as ``html``."""

    printed: str = ""
    text: str = ""
    html: str = ""


def code_cells(notebook: Path) -> Iterator[str]:
    """Yield the code of the cells in order."""
    for cell in _read(notebook)["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


def execute(code: str, names: Names) -> Shown:
    """Execute a cell among ``names`` and return what it shows."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last else None
    if value is None:
        return Shown(printed.getvalue())
    html = getattr(value, "_repr_html_", str)() if hasattr(value, "_repr_html_") else ""
    return Shown(printed.getvalue(), repr(value), html)


def page(notebook: Path) -> str:
    """Return a notebook as Markdown, with what its cells showed when they were last executed."""
    parts = []
    for cell in _read(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source + "\n")
            continue
        parts.append(block(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "text/html" in data:
                parts.append("".join(data["text/html"]) + "\n")
            else:
                parts.append(block("".join(output.get("text", data.get("text/plain", [])))))
    return "\n".join(parts)


def refresh(notebook: Path) -> None:
    """Execute all cells and write what they show into the notebook's file."""
    content = _read(notebook)
    names: Names = {"__name__": "__main__"}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = list(_outputs(execute("".join(cell["source"]), names)))
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(notebook: Path) -> dict[str, list[dict[str, object]]]:
    content: dict[str, list[dict[str, object]]] = json.loads(notebook.read_text(encoding="utf-8"))
    return content


def _outputs(shown: Shown) -> Iterator[dict[str, object]]:
    if shown.printed:
        text = shown.printed.splitlines(keepends=True)
        yield {"name": "stdout", "output_type": "stream", "text": text}
    if shown.text:
        text = shown.text.replace(str(Path.cwd()), "/home/me")
        data = {"text/plain": [text]} | ({"text/html": [shown.html]} if shown.html else {})
        yield {
            "data": data,
            "execution_count": None,
            "metadata": {},
            "output_type": "execute_result",
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.site.notebooks", description=__doc__)
    parser.add_argument("notebook", type=Path)
    refresh(parser.parse_args().notebook)
