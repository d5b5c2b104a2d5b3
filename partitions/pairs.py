"""Hold the columns of preference pairs on which plans are made, and order them by ids alone.

This module owns :class:`Pairs`, the form of a pair id in memory, and the keyed hash behind every
draw. It knows no text: what a pair says, and how its id was made, is the caller's.
"""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from partitions.errors import PartitionError

Ids = NDArray[np.uint64]
"""128-bit ids as uint64[n, 2]: the upper half first, so that they sort like their hex digits."""
Codes = NDArray[np.integer]
Floats = NDArray[np.floating]

_HEX_DIGITS = 32
_CHUNK = 1 << 16


def ids_from_hex(values: Sequence[str]) -> Ids:
    """Read ids of 32 hex digits into uint64[n, 2]; :class:`PartitionError` names one that is not.

    Where the strings of all pairs at once would be too many for memory, read a part at a time and
    concatenate.
    """
    ids = np.empty((len(values), 2), dtype=np.uint64)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        for row, value in enumerate(part, start):
            if len(value) != _HEX_DIGITS:
                raise PartitionError(f"id {value!r} (row {row}) is not {_HEX_DIGITS} hex digits")
        try:
            raw = binascii.unhexlify("".join(part))
        except ValueError as error:
            last = start + len(part) - 1
            raise PartitionError(f"an id in rows {start}-{last} is not hex: {error}") from error
        ids[start : start + len(part)] = np.frombuffer(raw, dtype=">u8").reshape(-1, 2)
    return ids


def ids_to_hex(ids: Ids) -> list[str]:
    """Write ids, uint64[n, 2], as 32 hex digits each."""
    digits = ids_to_bytes(ids).hex()
    return [digits[i : i + _HEX_DIGITS] for i in range(0, len(digits), _HEX_DIGITS)]


def ids_to_bytes(ids: Ids) -> bytes:
    """Return ids, uint64[n, 2], as 16 bytes each, big-endian: the same on every machine."""
    return ids.astype(">u8").tobytes()


def ordering_key(ids: Ids, seed: int) -> NDArray[np.uint64]:
    """Return a hash of each id, uint64[n], keyed by ``seed`` (0 to 2**64 - 1).

    Both halves and the seed go through the finaliser of splitmix64 (Steele et al., 2014), so the
    values are as good as uniform, and different for another seed. It is not cryptographic.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = ids[:, 0] ^ _mix(np.array([seed], dtype=np.uint64) + golden)
    key = _mix(key)
    key ^= ids[:, 1]
    key += golden
    return _mix(key)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of splitmix64 in place; products wrap at 2**64 as they should."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def argsort_by(key: NDArray[np.uint64], ids: Ids) -> NDArray[np.intp]:
    """Return the rows sorted by ``key``, uint64[n], and ties by id, uint64[n, 2].

    The order of the input does not change the result. Rows with equal ids stand side by side, in
    no particular order among themselves.
    """
    order = np.argsort(key)
    ordered = key[order]
    ties = np.flatnonzero(ordered[1:] == ordered[:-1])
    # Sorting by one column is several times faster, and ties of unequal ids are one in 2**64.
    if (ids[order[ties]] != ids[order[ties + 1]]).any():
        order = np.lexsort((ids[:, 1], ids[:, 0], key))
    return order


def argsort_ids(ids: Ids) -> NDArray[np.intp]:
    """Return the rows sorted by id, uint64[n, 2], ascending."""
    return argsort_by(ids[:, 0], ids)


def run_starts(values: NDArray[np.generic]) -> NDArray[np.intp]:
    """Return where runs of equal rows begin in ``values``, [n] or [n, k]."""
    changed = values[1:] != values[:-1]
    if changed.ndim > 1:
        changed = changed.any(axis=1)
    return np.flatnonzero(np.concatenate(([len(values) > 0], changed)))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Preference pairs are held as columns. The order of rows carries no meaning.

    ids: uint64[n, 2], each different.
    source: int[n], signed, codes into ``source_names``.
    source_names: in the recipe's order; a source may have no pairs.
    strata: further columns by name, int[n], signed, codes from 0 (a missing value has a code of
        its own).
    features: what was measured of the pairs, float[n]; ``gamma`` is the log-prob margin in nats,
        chosen minus rejected, under M_0.

    Raises :class:`PartitionError` for a column of the wrong shape or type, a code out of range, and
    duplicate ids.
    """

    ids: Ids
    source: Codes
    source_names: tuple[str, ...]
    strata: Mapping[str, Codes] = field(default_factory=dict)
    features: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ids.dtype != np.uint64 or self.ids.shape != (len(self.ids), 2):
            raise PartitionError(
                f"ids must be uint64[n, 2], not {self.ids.dtype}{list(self.ids.shape)}"
            )
        if len(set(self.source_names)) != len(self.source_names):
            raise PartitionError(f"two sources have the same name: {list(self.source_names)}")
        if "source" in self.strata:
            raise PartitionError("a stratum named `source` would hide the pairs' own source")
        self._check_codes("source", self.source, limit=len(self.source_names))
        for name, codes in self.strata.items():
            self._check_codes(f"stratum `{name}`", codes, limit=None)
        for name, values in self.features.items():
            self._check_column(f"feature `{name}`", values, kinds="f")
        self._check_ids_differ()

    def __len__(self) -> int:
        return len(self.ids)

    def _check_column(self, name: str, values: NDArray[np.generic], *, kinds: str) -> None:
        if values.shape != (len(self),) or values.dtype.kind not in kinds:
            expected = "floats" if kinds == "f" else "signed integers"
            raise PartitionError(
                f"{name} must be {len(self)} {expected}, one per pair, "
                f"not {values.dtype}{list(values.shape)}"
            )

    def _check_codes(self, name: str, codes: Codes, *, limit: int | None) -> None:
        self._check_column(name, codes, kinds="i")
        if len(codes) and (codes.min() < 0 or (limit is not None and codes.max() >= limit)):
            upper = "" if limit is None else f" to {limit - 1}"
            raise PartitionError(
                f"codes of {name} go from 0{upper}, not from {codes.min()} to {codes.max()}"
            )

    def _check_ids_differ(self) -> None:
        upper = np.sort(self.ids[:, 0])
        if not (upper[1:] == upper[:-1]).any():
            return
        ordered = self.ids[argsort_ids(self.ids)]
        repeats = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
        if len(repeats):
            example = ids_to_hex(ordered[repeats[:1]])[0]
            raise PartitionError(
                f"{len(repeats)} of {len(self)} pairs repeat the id of another pair (for example "
                f"{example}): remove duplicates before planning"
            )
