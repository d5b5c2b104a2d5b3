"""Give the version of what is built: a release's is its tag, and no file has to be edited for it.

Images and installations are built from locked packages alone, so this needs nothing but setuptools,
where a tool like setuptools-scm would be one more of them.
"""

import os
import re
import subprocess
from pathlib import Path

FALLBACK = "0.2.0.dev0"
"""A clone without tags, or an archive of the sources, is the development of the next release."""

GIVEN = "SDPO_VERSION"
"""This variable gives the version where sources are built that have no history, as in an image."""

_TAG = re.compile(r"v?(?P<release>\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?)")
_DESCRIBED = re.compile(
    rf"{_TAG.pattern}-(?P<commits>\d+)-g(?P<commit>[0-9a-f]+)(?P<dirty>-dirty)?"
)
_DEVELOPED = re.compile(r"\d+(?:\.\d+)*\.dev\d+(?:\+g[0-9a-f]+(?:\.dirty)?)?")
"""What is between two releases has such a version, which sources without history may be given."""


def version_of(folder: Path) -> str:
    """Return the version of the sources in ``folder``, in the form of PEP 440.

    At a tag it is the tag's. After it, it is the next one's development: ``0.2.1.dev3+g1a2b3c4`` is
    three commits after v0.2.0. An sdist says itself what it is.

    Raises:
        SystemExit: the variable SDPO_VERSION gives no version.
    """
    if given := os.environ.get(GIVEN, ""):
        if _DEVELOPED.fullmatch(given):
            return given
        if not _TAG.fullmatch(given) and not _DESCRIBED.fullmatch(given):
            raise SystemExit(f"{GIVEN}={given} is no version: give one like 0.2.0 or v0.2.0")
        return _version(given)
    packed = folder / "PKG-INFO"
    if packed.is_file():
        found = re.search(r"^Version: (\S+)$", packed.read_text(encoding="utf-8"), re.MULTILINE)
        return found[1] if found else FALLBACK
    return _version(_described(folder))


def _described(folder: Path) -> str:
    """Return what git says of the sources by their last tag; empty without git, history or tag."""
    if not (folder / ".git").exists():  # else a repository around an archive would answer
        return ""
    command = ["git", "describe", "--tags", "--long", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(
            [*command, "--match", "v[0-9]*"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _version(described: str) -> str:
    if tag := _TAG.fullmatch(described):
        return tag["release"]
    found = _DESCRIBED.fullmatch(described)
    if not found:
        return FALLBACK
    if found["commits"] == "0" and not found["dirty"]:
        return found["release"]
    numbers = re.sub(r"(a|b|rc)\d+$", "", found["release"])
    following = numbers if numbers != found["release"] else _next(numbers)
    changed = ".dirty" if found["dirty"] else ""
    return f"{following}.dev{found['commits']}+g{found['commit']}{changed}"


def _next(release: str) -> str:
    *front, last = release.split(".")
    return ".".join([*front, str(int(last) + 1)])


if __name__ == "__main__":
    from setuptools import setup

    setup(version=version_of(Path(__file__).resolve().parent))
