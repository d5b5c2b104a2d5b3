"""Find what is near a path that leads nowhere, for messages that say which one was meant."""

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

_MOST_ENTRIES = 10_000
"""So many entries of a folder are looked at: more names are nobody's to choose from."""


def did_you_mean(path: Path, *, extra: Iterable[str] = ()) -> str:
    """Return `: did you mean X?` to put after what is said of ``path``, or nothing.

    X is a name beside ``path`` where its folder is right, else the path with each wrong part
    replaced; ``extra`` are further names that could have been meant.
    """
    found = near_path(path)
    if found is None:
        name = near_name(path.name, extra)
    else:
        name = found.name if found.parent == path.parent else str(found)
    return f": did you mean {name}?" if name else ""


def near_path(path: Path) -> Path | None:
    """Return the path that exists and is most like ``path``, part by part.

    It is None where a part is like nothing that is there, or where folders may not be looked into.
    """
    found = Path()
    try:
        for part in path.parts:
            if (found / part).exists():
                found /= part
                continue
            names = [entry.name for entry in islice(found.iterdir(), _MOST_ENTRIES)]
            if not (name := near_name(part, names)):
                return None
            found /= name
    except (OSError, ValueError):  # a name that no file can have is a ValueError
        return None
    return found if found != path else None


def near_name(name: str, names: Iterable[str]) -> str:
    """Return the one of ``names`` that is most like ``name``; empty where none is.

    The same in other letter case comes first, then the same with another ending, as `recipe.yml`
    for `recipe.yaml`, then what is spelled alike.
    """
    known = sorted(names)
    for same in (str.casefold, _stem):
        if alike := [each for each in known if same(each) == same(name) and each != name]:
            return difflib.get_close_matches(name, alike, n=1, cutoff=0.0)[0]
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def _stem(name: str) -> str:
    return name.casefold().lstrip(".").split(".")[0]
