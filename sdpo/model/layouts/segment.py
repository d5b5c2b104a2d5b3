"""A run of query tokens with the run of key tokens that they may look at."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Query tokens ``[first, last)`` and the key tokens ``[first_key, last_key)`` they may see."""

    first: int
    last: int
    first_key: int
    last_key: int
