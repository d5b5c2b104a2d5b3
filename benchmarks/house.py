"""Measure the house: lengths of modules and functions, what imports what, what is without a type.

    python -m benchmarks.house [FOLDER OF THE PROJECT]

Everything is read from the syntax; nothing is imported. A room is a package below ``sdpo``,
``flows`` or ``partitions``, or a module beside them; an arrow leads from a room to one that it
imports at run time.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TOPS = ("sdpo", "flows", "partitions")
_LOOSE = ("Any", "object", "cast")
"""These names say little of a type, or contradict what the checker knows."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the project has a dotted name; ``is_package``: it is an ``__init__``."""

    name: str
    is_package: bool
    lines: int
    tree: ast.Module

    @property
    def room(self) -> str:
        """Return the package below the top, or the module itself where it is beside packages."""
        parts = self.name.split(".")
        return ".".join(parts[:2]) if len(parts) > 1 else f"{self.name}.__init__"


def read_modules(root: Path) -> list[Module]:
    """Return every module of the project in ``root``, sorted by path."""
    modules = []
    for path in sorted(path for top in _TOPS for path in (root / top).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        text = path.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module(name, is_package, text.count("\n"), ast.parse(text)))
    return modules


def function_lines(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of each function, decorators aside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def loose_types(tree: ast.AST) -> Counter[str]:
    """Count the loose names used for types, and assertions that something is not None.

    Imports of the names are not counted.
    """
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _LOOSE:
            found[node.id] += 1
        elif isinstance(node, ast.Attribute) and node.attr in ("Any", "cast"):
            found[node.attr] += 1
        elif isinstance(node, ast.Assert) and "is not None" in ast.unparse(node.test):
            found["assert … is not None"] += 1
        for text in _quoted_types(node):
            found.update(loose_types(ast.parse(text, mode="eval")))
    return found


def _quoted_types(node: ast.AST) -> Iterator[str]:
    """Yield annotations that are written as strings."""
    for field in ("annotation", "returns"):
        told = getattr(node, field, None)
        if isinstance(told, ast.Constant) and isinstance(told.value, str):
            yield told.value


def imports(module: Module, names: set[str]) -> set[str]:
    """Return the modules of the project that ``module`` imports when it is imported itself.

    Imports within a function, and those for types alone, do not count.
    """
    found: set[str] = set()
    for node in _at_import(module.tree.body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            of_module = {f"{base}.{alias.name}" for alias in node.names} & names
            found |= of_module or {base}
    return (found & names) - {module.name}


def _at_import(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _at_import(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _at_import([*node.body, *getattr(node, "orelse", [])])
        else:
            yield node


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(arrows):
        if name not in order:
            visit(name)
    return found


def _spread(numbers: Sequence[int]) -> str:
    median, p90 = np.quantile(numbers, [0.5, 0.9])
    return f"median {median:.0f}, p90 {p90:.0f}, max {max(numbers)}, in all {len(numbers)}"


def main(root: Path) -> None:
    """Print the measurements of the project in ``root``."""
    modules = read_modules(root)
    names = {module.name for module in modules}
    arrows = {module.name: imports(module, names) for module in modules}
    rooms = {module.name: module.room for module in modules}
    between = {(rooms[a], rooms[b]) for a in arrows for b in arrows[a] if rooms[a] != rooms[b]}
    print("lines of a module:  ", _spread([module.lines for module in modules]))
    print("lines of a function:", _spread([n for m in modules for n in function_lines(m.tree)]))
    print("circles of imports: ", circles(arrows) or "none")
    print(f"rooms: {len(set(rooms.values()))}, arrows between them: {len(between)}")
    lines = sum(module.lines for module in modules)
    counts: Counter[str] = Counter()
    by_room: Counter[str] = Counter()
    for module in modules:
        here = loose_types(module.tree)
        counts += here
        by_room[module.room] += here["Any"]
    print(f"{lines} lines; of each, and per thousand lines:")
    for name in (*_LOOSE, "assert … is not None"):
        print(f"  {name}: {counts[name]} ({1000 * counts[name] / lines:.2f})")
    print("Any by room:", ", ".join(f"{room} {n}" for room, n in by_room.most_common() if n))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
