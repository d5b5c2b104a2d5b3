"""Find the objects of a remote store that no list of a run names any more, and delete them.

A record that was made again, or a machine that died while it uploaded, leaves such objects. Only
what has the name of a content counts, at a place that has a list; and it is deleted by the run's
owner alone, since somebody else may be about to name it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sdpo.errors import IntegrityError, InUseError
from sdpo.events import Listener
from sdpo.remote.index import named_by_all, object_of, objects_in
from sdpo.remote.lease import acquire, on_behalf
from sdpo.remote.place import Place, names_in, open_place

_SILENCE_S = 60.0
_OF_A_STUDY = ".study"
"""Below a study's name its own files are kept there."""


@dataclass(frozen=True, slots=True)
class Unnamed:
    """These objects at a place, by their digests, are named by no list; with all their bytes."""

    place: Place
    digests: frozenset[str]
    size_bytes: int


def find_unnamed(url: str) -> tuple[list[Unnamed], list[str]]:
    """Return what can go of each run in the store at ``url``, or of the one run that is there.

    With it come notes on what was left alone, and why.

    Raises:
        ConfigError: ``url`` is no store.
        StoreError: the store does not answer.
    """
    found, notes = list[Unnamed](), list[str]()
    for place in _runs_at(url.rstrip("/")):
        try:
            unnamed = _unnamed(place)
        except IntegrityError as error:
            notes.append(f"{error}: left alone")
            continue
        if unnamed.digests:
            found.append(unnamed)
    return found, notes


def delete_unnamed(unnamed: Unnamed, *, listen: Listener) -> str:
    """Delete what was found and is still named by nobody; return "" or why it was left alone.

    Raises:
        StoreError: the store does not answer.
    """
    try:
        owner = on_behalf(unnamed.place, silence_s=_SILENCE_S)
        lease = acquire(unnamed.place, owner, listen=listen)
    except (InUseError, IntegrityError) as error:
        return f"{error}: left alone"
    try:
        for digest in _unnamed(unnamed.place).digests & unnamed.digests:
            lease.check()
            unnamed.place.delete(object_of(digest))
    finally:
        lease.say(ended=True)
    return ""


def _unnamed(place: Place) -> Unnamed:
    named = named_by_all(place)
    digests = frozenset() if named is None else frozenset(objects_in(place) - named)
    size = sum(place.size(object_of(digest)) or 0 for digest in digests)
    return Unnamed(place, digests, size)


def _runs_at(url: str, *, depth: int = 2) -> Iterator[Place]:
    """Yield the places below a URL that have lists: a run's, those of a store, those of a study."""
    place = open_place(url, "")
    if place.names("index"):
        yield place
    elif depth:
        own = open_place(url, _OF_A_STUDY)
        if own.names("index"):
            yield own
        for name in names_in(url):
            yield from _runs_at(f"{url}/{name}", depth=depth - 1)
