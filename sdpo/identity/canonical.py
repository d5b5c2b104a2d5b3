"""Write a JSON value in its one canonical spelling, and digest it."""

import hashlib
import json
import math
from collections.abc import Mapping

from sdpo.errors import Fault


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, plain types only.

    Raises:
        Fault: a type or number that has no canonical form (an infinite float, a path, ...).
    """
    _check_canonical(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _check_canonical(value: object, where: str) -> None:
    if value is None or isinstance(value, bool | int | str):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Fault(f"{where} is {value}: it has no place in an identity")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Fault(f"{where} has the key {key!r}: only text can be a key")
            _check_canonical(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_canonical(item, f"{where}[{index}]")
    else:
        raise Fault(f"{where} is a {type(value).__name__}: it has no canonical form")


def digest_of(value: object) -> str:
    """Return the sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
