"""Keep in the cache the trials that layouts passed: ``trials/<key>.json``, with digests.

A file says under which conditions and with how long a sequence. One that is damaged, or says other
conditions than it is named after, counts for nothing: then the trial is made.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from sdpo.errors import IntegrityError
from sdpo.identity.canonical import digest_of
from sdpo.system.files import json_of, read_sealed, seal, write_text
from sdpo.system.json_values import JsonObject

FOLDER = "trials"


class Passed(BaseModel):
    """This trial was passed under ``conditions`` with sequences of up to ``longest`` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: dict[str, JsonValue]
    longest: int


def passed_with(cache: Path, conditions: JsonObject) -> int:
    """Return the longest sequence, in tokens, of a trial passed under these conditions; 0 without
    one."""
    path = _path(cache, conditions)
    try:
        content = read_sealed(path)
        found = Passed.model_validate(json_of(content, path)) if content else None
    except (OSError, IntegrityError, ValidationError):
        return 0
    return found.longest if found and found.conditions == conditions else 0


def note_passed(cache: Path, conditions: JsonObject, longest: int) -> None:
    """Note a trial that was passed, unless one with longer sequences was."""
    if passed_with(cache, conditions) < longest:
        path = _path(cache, conditions)
        passed = Passed(conditions=dict(conditions), longest=longest)
        write_text(path, passed.model_dump_json(indent=1))
        seal(path)


def _path(cache: Path, conditions: JsonObject) -> Path:
    return cache / FOLDER / f"{digest_of(conditions)[:32]}.json"
