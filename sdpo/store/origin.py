"""Tell where a run comes from: the run it replays or extends, and find that one again.

``run.yaml`` keeps it. The path says where the origin was, the digest of its identity which run it
is: an origin that moved together with its runs is found, and another run in its place is not
mistaken for it.
"""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.errors import IntegrityError, SdpoError, UserError
from sdpo.identity.canonical import digest_of
from sdpo.store.run_folder import RunFolder
from sdpo.system.json_values import JsonObject

M = TypeVar("M", bound=BaseModel)


class Origin(BaseModel):
    """An origin is the run that this one replays from step ``step``, or extends by step ``step``.

    ``identity`` is the digest of its identity. ``only``: the chain ends after the step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["replay", "extend"]
    run: str
    path: str
    identity: str
    step: int
    overrides: list[str] = []
    only: bool = False


class Carried(BaseModel):
    """An extended run carries its pairs and its plan over as they are, up to ``steps`` steps.

    ``data`` is the digest of the pairs, ``files`` are the digests of the files that hold them,
    ``sources`` the names of their sources, ``supervised`` the digest of S's identity where there is
    a supervised stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    data: str
    files: dict[str, str]
    sources: list[str]
    steps: int
    supervised: str = ""


def origin_of(content: JsonObject) -> Origin | None:
    """Return the origin in the content of a run.yaml, if it has one.

    Raises:
        UserError: it was written by another version.
    """
    return _read(Origin, content, "origin")


def carried_of(content: JsonObject) -> Carried | None:
    """Return what a run carries over, by the content of its run.yaml.

    Raises:
        UserError: it was written by another version.
    """
    return _read(Carried, content, "carried")


def _read(model: type[M], content: JsonObject, key: str) -> M | None:
    if key not in content:
        return None
    try:
        return model.model_validate(content[key])
    except ValidationError as error:
        raise UserError(
            f"run.yaml: `{key}` was written by another version of this project: {error}"
        ) from error


def origin_chain(run: RunFolder, origin: Origin | None) -> tuple[list[RunFolder], list[str]]:
    """Return the origin, its origin and so on, nearest first, and a sentence about each not
    found."""
    chain: list[RunFolder] = []
    while origin is not None:
        here = chain[-1] if chain else run
        found = find_origin(here, origin)
        if found is None:
            return chain, [
                f"the origin {origin.run} of {here.name} is neither at {origin.path} nor beside it"
            ]
        if any(found.path.samefile(known.path) for known in [run, *chain] if known.path.exists()):
            return chain, [f"the origins of {run.name} lead in a circle at {found.name}"]
        chain.append(found)
        try:
            origin = origin_of(found.read_run())
        except SdpoError as error:
            return chain, [f"the origin of {found.name} cannot be read: {error}"]
    return chain, []


def find_origin(run: RunFolder, origin: Origin) -> RunFolder | None:
    """Return the folder of the origin: where it was, or beside ``run``."""
    for path in (Path(origin.path), run.path.parent / origin.run):
        found = RunFolder(path)
        try:
            content = found.read_run()
        except (UserError, IntegrityError, OSError):
            continue
        if digest_of(content.get("identity")) == origin.identity:
            return found
    return None
