"""List what a store has of a run: files by path, with their digests, in groups that are whole.

An index is an object of its own that is never changed: a newer one stands beside it, and the one
before is removed then. So a process that dies while it writes leaves the older one. Its name has
the number of the lease that it was written under first: what somebody writes who has lost the run
is older than what its new owner wrote, whenever it comes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdpo.errors import IntegrityError
from sdpo.remote.place import Place

FORMAT = 1
_FOLDER, _FILES = "index", "files"
_NAME = re.compile(r"(\d{8})-(\d{8})\.json")
_DIGEST = r"[0-9a-f]{64}"


class KeptFile(BaseModel):
    """A file that the store keeps: its digest by sha256, and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=rf"^{_DIGEST}$")
    bytes: int = Field(ge=0)


Group = Mapping[str, KeptFile]
"""Files by their path below the run; they count together."""


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    run: str
    groups: dict[str, dict[str, KeptFile]]


@dataclass(frozen=True, slots=True)
class Index:
    """An index says what is kept of a run, by group; ``number`` is its place among indices.

    Groups stand in the order in which they were complete.
    """

    run: str
    groups: Mapping[str, Group]
    number: tuple[int, int] = (0, 0)

    def files(self) -> dict[str, KeptFile]:
        """Return all files by their path."""
        return {path: file for group in self.groups.values() for path, file in group.items()}

    def digests(self) -> set[str]:
        """Return the digests of all files."""
        return {file.sha256 for file in self.files().values()}


def object_of(sha256: str) -> str:
    """Return the name of the object that has the content of this digest."""
    return f"{_FILES}/{sha256}"


def read_index(place: Place) -> Index | None:
    """Return the newest index that is whole; None where the place has none.

    Raises:
        StoreError: the store did not answer.
        IntegrityError: there are some, and none is whole.
    """
    numbers = _numbers(place)
    faults = []
    for number in numbers:
        content = place.read(_name(number))
        if content is None:  # its owner has just written a newer one
            return read_index(place)
        try:
            return _parsed(content, number)
        except ValueError as error:
            faults.append(f"{_name(number)}: {error}")
    if faults:
        raise IntegrityError(f"{place.url} has no list of its files that is whole: {faults[0]}")
    return None


def named_by_all(place: Place) -> set[str] | None:
    """Return the digests that any list of a place names; None where it has no list.

    Raises:
        StoreError: the store did not answer.
        IntegrityError: a list is not whole, so that nobody can tell what it names.
    """
    numbers, named = _numbers(place), set[str]()
    for number in numbers:
        content = place.read(_name(number))
        if content is None:  # its owner has just written a newer one
            return named_by_all(place)
        try:
            named |= _parsed(content, number).digests()
        except ValueError as error:
            raise IntegrityError(f"{place.url}/{_name(number)}: {error}") from error
    return named if numbers else None


def objects_in(place: Place) -> set[str]:
    """Return the digests of the contents that a place has, by the names of their objects.

    Raises:
        StoreError: the store did not answer.
    """
    return {name for name in place.names(_FILES) if re.fullmatch(_DIGEST, name)}


def write_index(place: Place, index: Index) -> None:
    """Write an index, and remove those of its lease before the last one.

    Raises:
        StoreError: the store did not answer, refused, or is full.
    """
    groups = {
        name: {path: file.model_dump() for path, file in group.items()}
        for name, group in index.groups.items()
    }
    body = json.dumps({"format": FORMAT, "run": index.run, "groups": groups}).encode()
    seal = hashlib.sha256(body).hexdigest().encode()
    place.write(_name(index.number), seal + b"\n" + body)
    for number in _numbers(place)[2:]:
        if number <= index.number:
            place.delete(_name(number))


def _parsed(content: bytes, number: tuple[int, int]) -> Index:
    """Return what an index says.

    Raises:
        ValueError: it is not whole, or another version wrote it.
    """
    seal, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != seal:
        raise ValueError("it was changed, or not written to its end")
    try:
        said = _Content.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(error.errors(include_url=False)[0]["msg"]) from error
    if said.format != FORMAT:
        raise ValueError(f"it has format {said.format}, and this version reads {FORMAT}")
    return Index(said.run, said.groups, number)


def _numbers(place: Place) -> list[tuple[int, int]]:
    """Return the numbers of the indices that are there, the newest first."""
    found = (_NAME.fullmatch(name) for name in place.names(_FOLDER))
    return sorted(((int(m[1]), int(m[2])) for m in found if m), reverse=True)


def _name(number: tuple[int, int]) -> str:
    return f"{_FOLDER}/{number[0]:08d}-{number[1]:08d}.json"
