"""Installed distributions of a test's own: what an installer would have written, and its end."""

import importlib
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sdpo.plugins import installed


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Files by their names below ``folder``, their common indentation left out."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")


def write_distribution(
    site: Path, name: str, files: Mapping[str, str], points: Mapping[str, Mapping[str, str]]
) -> None:
    """A distribution as it stands in a site folder; ``points``: entry points by their group."""
    write_files(site, files)
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in named.items())
        for group, named in points.items()
    ]
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    record = "".join(f"{file},,\n" for file in files)
    write_files(
        site / f"{name.replace('-', '_')}-1.0.dist-info",
        {"METADATA": about, "entry_points.txt": "".join(lines), "RECORD": record},
    )


@contextmanager
def on_path(site: Path) -> Iterator[str]:
    """Within it the distributions of ``site`` are installed; yields what a child has to run first.

    What was imported of them is forgotten afterwards.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(site))
    _look_again()
    try:
        yield f"import sys; sys.path.insert(0, {str(site)!r})"
    finally:
        sys.path.remove(str(site))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(str(site)):
                del sys.modules[name]
        _look_again()


def _look_again() -> None:
    importlib.invalidate_caches()
    installed.forget()
