"""Tell where two payloads differ, line by line."""

import re
from collections.abc import Mapping
from itertools import zip_longest

DIGEST = re.compile(r"[0-9a-f]{64}")


def differences(old: object, new: object, where: str = "") -> list[str]:
    """Return where two JSON values differ, as lines ``field: old -> new``."""
    if isinstance(old, Mapping | None) and isinstance(new, Mapping | None) and (old or new):
        old, new = old or {}, new or {}
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return lines
    if isinstance(old, list | None) and isinstance(new, list | None) and (old or new):
        return [
            line
            for index, (a, b) in enumerate(zip_longest(old or [], new or []))
            for line in differences(a, b, f"{where}.{index}")
        ]
    return [] if old == new else [f"{where}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    if DIGEST.fullmatch(text):
        return text[:16]
    return text if len(text) <= 60 else f"{text[:57]}..."
