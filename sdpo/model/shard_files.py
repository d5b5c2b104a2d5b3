"""Write the weights of a model into safetensors files, tensor by tensor, by all ranks together.

A rank writes the files that are its own, and keeps no more of the model than the tensor that is on
its way; nothing is on the disk twice. What is written are the files that transformers writes, a
file with an index where there is more than one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch

GB = 10**9
_INDEX = "model.safetensors.index.json"
_ALIGNED = 8
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a tensor: what its file says of it besides its place."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class File:
    """A file of weights has these tensors, in this order."""

    name: str
    tensors: tuple[str, ...]


def plan_files(forms: Mapping[str, Form], *, max_shard_size: float) -> list[File]:
    """Divide tensors, in their order, among files of at most ``max_shard_size`` GB each.

    A tensor that is larger has a file of its own.
    """
    parts: list[list[str]] = [[]]
    filled = 0
    for name, form in forms.items():
        if parts[-1] and filled + form.size > max_shard_size * GB:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += form.size
    if len(parts) == 1:
        return [File("model.safetensors", tuple(parts[0]))]
    return [
        File(f"model-{number:05d}-of-{len(parts):05d}.safetensors", tuple(part))
        for number, part in enumerate(parts, 1)
    ]


def write_files(
    folder: Path,
    files: Sequence[File],
    forms: Mapping[str, Form],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Write this rank's files of ``files`` into ``folder``, and on rank 0 the index.

    ``tensors`` come whole, with their names, in the order of the files, on every rank.

    Raises:
        OSError: a file cannot be written.
    """
    coming = iter(tensors)
    for number, file in enumerate(files):
        if number % ranks == rank:
            with (folder / file.name).open("wb") as handle:
                handle.write(_header(file, forms))
                for name, tensor in _of(file, coming):
                    _write(handle, name, tensor, forms[name])
        else:
            for _ in _of(file, coming):
                pass
    if len(files) > 1 and rank == 0:
        _write_index(folder, files, forms)


def _of(
    file: File, coming: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the next tensors of ``coming``, which are those of ``file``."""
    for wanted in file.tensors:
        name, tensor = next(coming)
        if name != wanted:
            raise ValueError(f"{name} comes where {file.name} has {wanted}")
        yield name, tensor


def _header(file: File, forms: Mapping[str, Form]) -> bytes:
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in file.tensors:
        form = forms[name]
        offsets = [at, at + form.size]
        content[name] = {
            "dtype": _DTYPES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": offsets,
        }
        at += form.size
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _write(handle: BinaryIO, name: str, tensor: torch.Tensor, form: Form) -> None:
    if (tensor.dtype, tuple(tensor.shape)) != (form.dtype, form.shape):
        raise ValueError(f"{name} is no longer what its header says")
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.numel():
        flat.view(torch.uint8).numpy().tofile(handle)


def _write_index(folder: Path, files: Sequence[File], forms: Mapping[str, Form]) -> None:
    content = {
        "metadata": {
            "total_parameters": sum(prod(form.shape) for form in forms.values()),
            "total_size": sum(form.size for form in forms.values()),
        },
        "weight_map": {name: file.name for file in files for name in file.tensors},
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / _INDEX).write_text(text, encoding="utf-8")
