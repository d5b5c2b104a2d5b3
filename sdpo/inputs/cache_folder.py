"""Recognise the folder of the caches: by the marker it was made with, or by what is in it.

It has ``logps/<key>/`` log-probs, ``tokens/<key>.arrow`` token files, ``kl/<key>/`` measurements,
``trials/<key>.json`` layouts that serve, and ``demo/``. Keys are the first 32 hexadecimal digits of
a digest, so what is there says itself what it is.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from sdpo.errors import Fault, ForeignFolderError
from sdpo.identity.canonical import digest_of
from sdpo.inputs import demo
from sdpo.system import ownership
from sdpo.system.files import checksum_path, is_vouched_for, read_json
from sdpo.system.locks import is_lock

KEY = re.compile(r"[0-9a-f]{32}")
_ELSEWHERE = "caches outlast runs, so name a folder beside them (store.cache_dir)"
_PARTS = ("logps", "tokens", "kl", "trials", "demo")


def is_cache(folder: Path) -> bool:
    """Return whether this project made the folder as a cache."""
    return ownership.is_own(folder, "cache", proof=_is_proven)


def check_cache(folder: Path) -> None:
    """Refuse a ``folder`` that is no cache and not free to become one; nothing is written.

    Raises:
        ForeignFolderError: something else is there, or it cannot be there.
    """
    _check_place(folder)
    ownership.check(folder, "cache", proof=_is_proven)


def check_beside(cache: Path, *, run: Path) -> None:
    """Refuse a cache that would be a run, lie in one, or be the folder that runs lie in.

    Raises:
        ForeignFolderError: it would.
    """
    if run.resolve() in (cache.resolve(), *cache.resolve().parents):
        raise ForeignFolderError(f"{cache} is in the folder of the run {run}: {_ELSEWHERE}")
    if cache.resolve() == run.parent.resolve():
        raise ForeignFolderError(f"{cache} is the folder of the runs: {_ELSEWHERE}")


def _check_place(folder: Path) -> None:
    """Refuse a cache in a run of this project, and one whose parts are links to elsewhere.

    Whoever moves or deletes that run would take the caches of others with it.
    """
    for parent in folder.resolve().parents:
        if ownership.is_marked(parent, "run"):
            raise ForeignFolderError(f"{folder} is in the folder of the run {parent}: {_ELSEWHERE}")
    for part in (folder / name for name in _PARTS):
        if part.is_symlink() and not part.resolve().is_relative_to(folder.resolve()):
            raise ForeignFolderError(
                f"{part} is a link that leads out of the cache, to {part.readlink()}: what is "
                "cached stays in its own folder. Put a folder in the link's place, or name one on "
                "that disk (store.cache_dir)"
            )


def claim_cache(folder: Path) -> None:
    """Make the folder of a cache, or take up the one that is there.

    Raises:
        ForeignFolderError: something else is there, or it cannot be there.
    """
    _check_place(folder)
    ownership.claim(folder, "cache", proof=_is_proven)


def is_keyed(file: Path, *, inner: str = "") -> bool:
    """Return whether the folder of ``key.json`` is named after it, or after its part ``inner``."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        content = read_json(file)
        named = digest_of(content[inner] if inner else content)[:32]
        return isinstance(content, dict) and named == file.parent.name
    except (Fault, OSError, KeyError, TypeError):
        return False


def _is_proven(folder: Path) -> bool:
    """Return whether a folder is a cache made before there were markers."""
    return _holds_nothing(folder) or any(_proofs(folder))


def _holds_nothing(folder: Path) -> bool:
    """Return whether nothing but empty folders is there, as a run that ended early leaves them."""
    return all(
        (path.name == ownership.LOCK and is_lock(path))
        or (path.name in _PARTS and path.is_dir() and not any(path.iterdir()))
        for path in folder.iterdir()
    )


def _proofs(folder: Path) -> Iterator[bool]:
    yield from (is_keyed(file) for file in folder.glob("logps/*/key.json"))
    yield from (is_keyed(file, inner="identity") for file in folder.glob("kl/*/key.json"))
    yield demo.is_made_here(folder / "demo")
    yield from (
        KEY.fullmatch(file.stem) is not None
        and checksum_path(file).is_file()
        and is_vouched_for(file)
        for file in folder.glob("tokens/*.arrow")
    )
