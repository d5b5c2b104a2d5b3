"""Space on disks: what a step will need, asked before it starts, and how a full disk is known.

An estimate from shapes alone: fp32 weights to publish, resume states with optimizer moments, cache
rows. It needs no torch.
"""

import errno
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdpo.config import TrainingConfig
from sdpo.digest import TensorEntry, tensor_entries
from sdpo.errors import DiskFullError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FLOAT_BYTES = 4
_MOMENTS = {"adamw": 2, "rmsprop": 1}
_ROW_BYTES = 96
"""Of a cached row and its copies in reference and probe: digests, ids, log-probs, counts."""
_SMALL_BYTES = 4 * 2**20
"""Records, logs, metrics, tokenizer."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that something will take below a folder, and what for."""

    folder: Path
    what: str
    size_bytes: int


def step_needs(
    model: Path, training: TrainingConfig, *, run: Path, cache: Path, rows: int
) -> list[Need]:
    """What a step from ``model`` will write: ``rows`` are those that are scored."""
    entries = tensor_entries(model)
    weights = _FLOAT_BYTES * sum(entry.elements for entry in entries)
    needs = [
        Need(run, "weights", weights + _SMALL_BYTES),
        Need(cache, "cached log-probs", rows * _ROW_BYTES),
    ]
    if training.checkpoint_minutes or training.checkpoint_every:
        trained = _adapter_bytes(entries, training.lora_r) if training.lora_r else weights
        state = trained * (1 + _MOMENTS[training.optimizer])
        # The new one is whole before an old one goes.
        needs.append(Need(run, "resume states", state * (training.checkpoints_kept + 1)))
    return needs


def _adapter_bytes(entries: list[TensorEntry], rank: int) -> int:
    """At most: adapters on every matrix."""
    matrices = [entry.shape for entry in entries if len(entry.shape) == 2]
    return _FLOAT_BYTES * rank * sum(sum(shape) for shape in matrices)


def check_space(needs: list[Need], *, used_bytes: Mapping[Path, int], what: str) -> None:
    """Refuse to start what the disks have no room for.

    ``used_bytes``: what stands below the folders now and will be replaced.

    Raises:
        DiskFullError: names every disk that is short, with the numbers.
    """
    short = [
        _line(group, free) for group, free in _by_disk(needs, used_bytes) if _short(group, free)
    ]
    if short:
        raise DiskFullError(
            f"{what} is not started, since the disk is too small for it:\n"
            + "\n".join(f"  {line}" for line in short)
            + "\nmake room, or set store.runs_dir and store.cache_dir to another disk; resume "
            "states can be left out (training.checkpoint_minutes 0) at the price of a step that "
            "starts again after a crash"
        )


def _by_disk(needs: list[Need], used_bytes: Mapping[Path, int]) -> Iterator[tuple[list[Need], int]]:
    """Needs of one disk together, with the bytes that it has for them."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for group in disks.values():
        folders = {need.folder for need in group}
        replaced = sum(used_bytes.get(folder, 0) for folder in folders)
        yield group, shutil.disk_usage(_existing(group[0].folder)).free + replaced


def _short(group: list[Need], free: int) -> bool:
    return sum(need.size_bytes for need in group) > free


def _line(group: list[Need], free: int) -> str:
    total = sum(need.size_bytes for need in group)
    parts = ", ".join(f"{need.what} {in_units(need.size_bytes)}" for need in group)
    where = _existing(group[0].folder)
    return f"{where}: needs {in_units(total)} ({parts}), has {in_units(free)} free"


def _existing(path: Path) -> Path:
    """``path`` or the folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def in_units(size_bytes: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def is_disk_full(error: BaseException | None) -> bool:
    """Whether ``error``, or what led to it, is that no space was left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # safetensors gives the text alone.
        if any(f"os error {number})" in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def no_space_message(folder: Path) -> str:
    """What to say where no space was left below ``folder``."""
    free = in_units(shutil.disk_usage(_existing(folder)).free)
    return (
        f"no space is left on the disk of {folder} ({free} free). What was published before is "
        "whole; make room, then go on"
    )
