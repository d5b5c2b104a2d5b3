"""Which names this project's code writes: by its text, and by what it does when it is called."""

import ast
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("sdpo", "flows")
_JOINING = {"joinpath", "with_name"}
TEMPORARY = ".tmp-sdpo"
"""The shape of an unfinished file's or folder's name."""
_NAMING = re.compile(r"Node$|[Ss]pec$")
"""What is called so makes a node or a stage, whose files have its name."""
_TEMPORARY = re.compile(r"\.tmp-sdpo-.+-[0-9a-f]{32}")
_VARYING = ((r"[0-9a-f]{64}", "H"), (r"[0-9a-f]{32}", "K"), (r"\d+", "0"))

HOOK = """
import os, sys

_MAKING = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.mkfifo")
_ON = {place!r}, {log!r}

def _note(event, given):
    place, log = _ON
    if not place:
        return
    try:
        opened = event == "open" and (given[2] or 0) & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        for path in given[:2] if opened or event in _MAKING else ():
            path = os.path.abspath(os.fsdecode(path)) if isinstance(path, (str, bytes)) else ""
            if path.startswith(place) and path != log:
                handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(handle, os.fsencode(path) + bytes(1))
                os.close(handle)
    except (TypeError, ValueError):  # a descriptor in a path's place
        pass

sys.addaudithook(_note)
"""
"""What a process runs so that the paths which it makes below a place are noted, also those that are
soon gone. What native code opens is not: it is found where it lies at the end."""


def shape(name: str) -> str:
    """A name without what differs from run to run: keys and digests, numbers, temporaries."""
    if _TEMPORARY.fullmatch(name):
        return TEMPORARY
    for pattern, word in _VARYING:
        name = re.sub(pattern, word, name)
    return name


@contextmanager
def recorded(place: Path, log: Path) -> Iterator[str]:
    """Note the paths that this process makes below ``place``; yields the code for others."""
    code = HOOK.format(place=f"{place}/", log=str(log))
    names: dict[str, object] = {}
    exec(code, names)
    try:
        yield code
    finally:
        names["_ON"] = ("", "")  # a hook stays for good


def noted(log: Path) -> set[Path]:
    """The paths that were noted."""
    return {Path(os.fsdecode(path)) for path in log.read_bytes().split(b"\0") if path}


def joined_names() -> dict[str, str]:
    """Every name that the code joins to a path, as a pattern, and where the first one stands.

    Text is taken as it is, what is put into it as anything; a constant by its name, wherever it is
    defined. What is a variable alone cannot be told.
    """
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for package in _PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    constants = _constants(trees)
    found: dict[str, str] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for pattern in _joined(node, constants):
                for part in pattern.split("/"):
                    found.setdefault(part, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def _constants(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] |= {
                    re.escape(value.value)
                    for value in ast.walk(node.value)
                    if isinstance(value, ast.Constant) and isinstance(value.value, str)
                }
    return found


def _joined(node: ast.AST, constants: dict[str, set[str]]) -> set[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _patterns(node.right, constants)
    if not isinstance(node, ast.Call):
        return set()
    called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    if called in _JOINING and node.args:
        return _patterns(node.args[0], constants)
    named = [word.value for word in node.keywords if word.arg == "name"]
    if _NAMING.search(called) and named:
        return {rf"{pattern}\.(json|log)" for pattern in _patterns(named[0], constants)}
    return set()


def _patterns(node: ast.AST, constants: dict[str, set[str]]) -> set[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {re.escape(node.value)}
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(v.value) if isinstance(v, ast.Constant) else ".+" for v in node.values]
        return {"".join(parts)}
    if isinstance(node, ast.IfExp):
        return _patterns(node.body, constants) | _patterns(node.orelse, constants)
    if isinstance(node, ast.Name):
        return constants.get(node.id, set())
    if isinstance(node, ast.Attribute):
        return constants.get(node.attr, set())
    return set()
