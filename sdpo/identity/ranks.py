"""Compare identities whatever number of ranks a step is shared among.

A step computes the same under 2 ranks and under 8, but for the last bits of its sums: its payload
says how many they were, and nothing that is kept of it stops counting where they are others. One
process is another matter, since nothing is shared there.
"""

from collections.abc import Mapping

from sdpo.identity.canonical import digest_of
from sdpo.system.json_values import Json, JsonObject

_RANKS = "processes"


def same_result(one: JsonObject, other: JsonObject) -> bool:
    """Return whether two payloads are of one result."""
    return result_digest(one) == result_digest(other)


def result_digest(identity: JsonObject) -> str:
    """Return the digest of a payload without its number of ranks."""
    return digest_of(without_ranks(identity))


def in_common_terms(one: JsonObject, other: JsonObject) -> tuple[JsonObject, JsonObject]:
    """Return two payloads without their ranks, or as they are where only one has several."""
    pair = without_ranks(one), without_ranks(other)
    return pair if (pair[0] != one) == (pair[1] != other) else (one, other)


def without_ranks(identity: JsonObject) -> dict[str, Json]:
    """Return a payload without the number of ranks that share a step, where it states one.

    It stands in the `arithmetic` of a step, in the `launch` settings of a run, and in what the
    log-probs of a probe depend on.
    """
    payload = dict(identity)
    arithmetic, settings, scoring = (payload.get(n) for n in ("arithmetic", "settings", "scoring"))
    if isinstance(arithmetic, Mapping) and arithmetic.get("strategy") != "single":
        payload["arithmetic"] = but_ranks(arithmetic)
    if isinstance(settings, Mapping) and isinstance(launch := settings.get("launch"), Mapping):
        payload["settings"] = {**settings, "launch": but_ranks(launch)}
    if isinstance(scoring, Mapping) and scoring.get(_RANKS) != 1:
        payload["scoring"] = but_ranks(scoring)
    return payload


def but_ranks(settings: JsonObject) -> dict[str, Json]:
    """Return settings of `launch` without the number of ranks."""
    return {name: value for name, value in settings.items() if name != _RANKS}
