"""Find an installed module's files without importing anything, and digest them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from sdpo.system.files import file_digest

_MADE = "__pycache__"
"""Python writes this beside the files of a package and makes it again."""


def module_file(module: str) -> Path:
    """Return the source file of an installed module.

    Raises:
        LookupError: it is not there, or has no source.
    """
    return _source(_spec_of(module), module)


def package_roots(module: str) -> list[Path]:
    """Return the folders of the package that a module is of, or the file of a module alone.

    Where several distributions share its outermost package (a namespace), they are the folders of
    the outermost package that is not shared.

    Raises:
        LookupError: it is not there.
    """
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        spec = _spec_of(name)
        if spec.origin is not None and spec.has_location:
            inside = spec.submodule_search_locations
            return (
                [Path(folder).resolve() for folder in inside] if inside else [_source(spec, name)]
            )
    raise LookupError(f"the module {module} has no files of its own")


def is_of_one(name: str) -> bool:
    """Return whether ``name`` is an outermost package or module with files of its own."""
    try:
        return bool(name.isidentifier() and package_roots(name))
    except LookupError:
        return False


def digest_of_files(roots: Sequence[Path]) -> str:
    """Return the sha256 over the names and contents of all files below ``roots``.

    Files of every kind count, and links are followed; only what Python itself caches is left out.
    """
    total = hashlib.sha256()
    for root in roots:
        for name, path in sorted(_files(root)):
            total.update(f"{name}\0{file_digest(path)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield root.name, root
        return
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name != _MADE]
        for name in files:
            path = Path(folder, name)
            if path.is_file():
                yield f"{root.name}/{path.relative_to(root).as_posix()}", path


def _spec_of(module: str) -> ModuleSpec:
    """Return a module's spec. `find_spec` would import the packages that it is in."""
    outer, *inner = module.split(".")
    spec, name = _outermost(outer), outer
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            break
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or name != module:
        raise LookupError(f"there is no module {module}")
    return spec


def _outermost(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except ValueError:  # a module that was loaded without a spec
        return None


def _source(spec: ModuleSpec, module: str) -> Path:
    path = Path(spec.origin or "")
    if path.suffix != ".py" or not path.is_file():
        raise LookupError(f"the module {module} has no source file")
    return path
