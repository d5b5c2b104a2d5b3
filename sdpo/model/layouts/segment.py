"""Define a segment: a run of query tokens with the run of key tokens that they may see."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment lets query tokens ``[first, last)`` see of keys ``[first_key, last_key)``."""

    first: int
    last: int
    first_key: int
    last_key: int
