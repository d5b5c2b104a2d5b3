"""Tell whether a folder is a run, before anything in it is believed, and which runs are near it."""

import re
from collections.abc import Iterator
from pathlib import Path

from sdpo.store.run_head import read_head
from sdpo.store.run_start import is_seal_of
from sdpo.system.files import is_vouched_for
from sdpo.system.nearby import did_you_mean, near_name

RUN_FILE = "run.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_NAMED = 20
"""A message names so many runs at most."""
_KEYS = ("name", "created", "identity", "inputs", "config", "versions")


def is_proven(folder: Path) -> bool:
    """Return whether a folder is a run from before there were markers.

    Then run.yaml says what ran, and the digest beside it is its own."""
    file = folder / RUN_FILE
    if file.is_symlink() or not file.is_file() or not is_vouched_for(file):
        return False
    try:
        text = file.read_text(encoding="utf-8")
        versions = read_head(text, ["versions"]).get("versions")
    except ValueError:  # not UTF-8, not YAML
        return False
    has_all = all(re.search(rf"^{key}:", text, re.MULTILINE) for key in _KEYS)
    return has_all and isinstance(versions, dict) and "sdpo" in versions


def is_damaged_run(folder: Path) -> bool:
    """Return whether a digest of this project's form says that run.yaml beside it was another."""
    file = folder / RUN_FILE
    return file.is_file() and is_seal_of(file) and not is_vouched_for(file)


def folders_of_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders in a folder that have a run.yaml or cannot be looked into, by name."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _NAME.fullmatch(path.name) or not path.is_dir():
            continue
        try:
            (path / RUN_FILE).lstat()
        except PermissionError:
            pass
        except OSError:
            continue
        yield path


def known_runs(path: Path) -> str:
    """Return what a message about a run that is not at ``path`` says of those beside it."""
    names = [run.name for run in folders_of_runs(path.parent)]
    if not names:
        return f" (that folder holds no runs){did_you_mean(path.parent)}"
    near = near_name(path.name, names)
    hint = f" (did you mean {near}?)" if near else ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{hint}; runs there: {', '.join(names[:MOST_NAMED])}{more}"
