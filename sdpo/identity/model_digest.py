"""Digest a model: its tensors and its configuration, not its files.

A save rewrites configuration files and resharding moves bytes, so file digests serve only to verify
that a file is intact. The digest here covers the sorted (tensor name, dtype, shape, bytes) of all
safetensors files and the configuration without version and path keys. It reads the files as they
are and needs neither torch nor transformers.
"""

import hashlib
import json
import mmap
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.errors import ModelError
from sdpo.identity.adapter_folder import (
    FULL,
    adapted_digest,
    base_folder,
    held_digest,
    is_adapter,
    recorded_base,
)
from sdpo.identity.canonical import canonical_json
from sdpo.identity.model_folder import CONFIG, read_config, text_config, weight_files
from sdpo.system import machine

_NOT_IDENTITY = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"}
"""A save rewrites these keys of config.json without changing what the model computes: the weights
carry their own dtype, and the cache setting only changes the speed of generation."""

_LONGEST_HEADER_BYTES = 100_000_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""The format's own limit."""
_UNREADABLE = (ValueError, AttributeError, KeyError, TypeError, RecursionError, OverflowError)
"""Reading a header of any other shape may raise these."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """An entry says where the bytes of one tensor are in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def tensor_entries(folder: Path) -> list[TensorEntry]:
    """Return all tensors of the safetensors files of a model folder, sorted by name.

    Of an adapter they are its own: those of its base are :func:`base_entries`.

    Raises:
        ModelError: no safetensors file, or one that is damaged; a tensor that two files hold; or a
            configuration of more layers than there are tensors, which nothing could load.
    """
    found: dict[str, TensorEntry] = {}
    for file in weight_files(folder):
        for entry in _header_entries(file):
            other = found.setdefault(entry.name, entry)
            if other is not entry:
                raise ModelError(
                    f"{folder}: the tensor {entry.name} is in {other.file.name} and in "
                    f"{file.name}, and programs differ in which they take: leave it in one"
                )
    if not is_adapter(folder):
        _check_layers(folder, len(found))
    return [found[name] for name in sorted(found)]


def base_entries(folder: Path) -> list[TensorEntry]:
    """Return the tensors of the weights that belong to a model: its own, or those of its base.

    Raises:
        ModelError: as :func:`tensor_entries`; or the base of an adapter is not there.
    """
    return tensor_entries(base_folder(folder))


def _check_layers(folder: Path, tensors: int) -> None:
    config = text_config(read_config(folder))
    for name in _LAYERS:
        layers = config.get(name)
        if type(layers) is int and not 0 < layers <= tensors:
            raise ModelError(
                f"{folder / CONFIG} says {name} {layers}, and the weights are {tensors} "
                "tensors: the one is not the configuration of the other"
            )


def _header_entries(file: Path) -> list[TensorEntry]:
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > min(size, _LONGEST_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        entries = [_entry(file, 8 + length, name, entry) for name, entry in header.items()]
    except (*_UNREADABLE, struct.error) as error:
        raise ModelError(f"{file} is damaged: its safetensors header cannot be read") from error
    for entry in entries:
        if entry.end > size:
            raise ModelError(
                f"{file} is cut short: {entry.name} ends at byte {entry.end} of {size}"
            )
    return entries


def _entry(file: Path, base: int, name: str, entry: dict[str, Any]) -> TensorEntry:
    start, end = entry["data_offsets"]
    numbers, dtype = (start, end, *entry["shape"]), entry["dtype"]
    if not all(type(number) is int and number >= 0 for number in numbers) or start > end:
        raise ValueError(f"{name} has a shape or a place that is none")
    name.encode()  # half of a surrogate pair is no text
    return TensorEntry(name, str(dtype), tuple(entry["shape"]), file, base + start, base + end)


def model_digest(folder: Path, *, precision: str = FULL) -> str:
    """Return the sha256 over the tensors and the configuration of the model in ``folder``.

    An adapter's is over the digest of its base, which is read unless the adapter was published here
    and records it, and over the adapter's own tensors and configuration. ``precision`` is that in
    which the linear layers of a base are held; a published adapter has its own.

    Raises:
        ModelError: the folder cannot be read as a model.
    """
    if not is_adapter(folder):
        total = hashlib.sha256(canonical_json(_identity_config(folder)).encode())
        return held_digest(_with_tensors(total, folder), precision)
    recorded = recorded_base(folder)
    base = held_digest(
        recorded.digest or model_digest(base_folder(folder)), recorded.precision or precision
    )
    return adapted_digest(folder, base=base, tensors=_with_tensors(hashlib.sha256(), folder))


def _with_tensors(total: "hashlib._Hash", folder: Path) -> str:
    """Return the digest of ``total`` and all tensors of the files in ``folder``.

    They are hashed several at a time, one a core, whichever file they are in; what is made of their
    digests has their order.
    """
    entries, maps = tensor_entries(folder), dict[Path, mmap.mmap]()
    try:
        for file in {entry.file for entry in entries}:
            with file.open("rb") as handle:
                maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)

        def content(entry: TensorEntry) -> str:
            with memoryview(maps[entry.file])[entry.start : entry.end] as view:
                return hashlib.sha256(view).hexdigest()  # lets other threads run meanwhile

        with ThreadPoolExecutor(machine.cores(), "digest") as pool:
            for entry, found in zip(entries, pool.map(content, entries), strict=True):
                told = [entry.name, entry.dtype, entry.shape, found]
                total.update(canonical_json(told).encode())
    finally:
        for mapped in maps.values():
            mapped.close()
    return total.hexdigest()


def _identity_config(folder: Path) -> object:
    return _without(read_config(folder), _NOT_IDENTITY)


def _without(value: object, keys: set[str]) -> object:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    if isinstance(value, list):
        return [_without(item, keys) for item in value]
    return value
