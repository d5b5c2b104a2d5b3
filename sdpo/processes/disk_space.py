"""Check before a step starts that the disks have room for it, and recognise a full disk.

Needs are estimated from shapes alone: fp32 weights to publish, resume states with optimizer
moments, cache rows. This takes no torch.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdpo.config import TrainingConfig
from sdpo.config.training import MOMENT_BYTES
from sdpo.errors import DiskFullError
from sdpo.identity.model_digest import TensorEntry, base_entries
from sdpo.system.files import NO_INODES, has_no_inodes, out_of_space

_FLOAT_BYTES = 4
_ROW_BYTES = 96
"""A cached row and its copies in reference and probe take so many bytes: ids, log-probs, counts."""
_LINES_BYTES = 4096
_SMALL_BYTES = 4 * 2**20
"""Records, logs, metrics and the tokenizer take so many bytes."""


@dataclass(frozen=True, slots=True)
class Need:
    """A need is the bytes that something will take below a folder, and what it is for."""

    folder: Path
    what: str
    size_bytes: int


def step_needs(
    model: Path, training: TrainingConfig, *, run: Path, cache: Path, rows: int
) -> list[Need]:
    """Return what a step from ``model`` will write; ``rows`` is how many rows are scored."""
    entries = base_entries(model)
    weights = _FLOAT_BYTES * sum(entry.elements for entry in entries)
    trained = _adapter_bytes(entries, training) if training.lora_r else weights
    published = trained if training.hands_on else weights
    needs = [
        Need(run, "weights", published + _SMALL_BYTES),
        Need(cache, "cached log-probs", rows * _ROW_BYTES),
    ]
    if training.checkpoint_minutes or training.checkpoint_every:
        state = math.ceil(trained * (1 + MOMENT_BYTES[training.optimizer] / _FLOAT_BYTES))
        # The new one is whole before an old one goes.
        needs.append(Need(run, "resume states", state * (training.checkpoints_kept + 1)))
    return needs


def weights_need(model: Path, *, run: Path) -> Need:
    """Return what publishing a whole model like this one takes."""
    size = _FLOAT_BYTES * sum(entry.elements for entry in base_entries(model))
    return Need(run, "weights", size + _SMALL_BYTES)


def _adapter_bytes(entries: list[TensorEntry], training: TrainingConfig) -> int:
    """Return the most bytes that adapters can take, in fp32: on every matrix, and what is whole."""
    sizes = [sum(entry.shape) for entry in entries if len(entry.shape) == 2]
    whole = [
        entry.elements
        for entry in entries
        if set(entry.name.split(".")) & set(training.lora_modules_to_save)
    ]
    return _FLOAT_BYTES * (training.lora_r * sum(sizes) + sum(sizes) + sum(whole))


def check_space(needs: list[Need], *, used_bytes: Mapping[Path, int], what: str) -> None:
    """Refuse to start what the disks have no room for.

    ``used_bytes``: what is below the folders now and will be replaced.

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
    """Yield the needs of each disk together, with the bytes that it has for them."""
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
    """Return ``path``, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that has, or would have, ``folder``."""
    return shutil.disk_usage(_existing(folder)).free


def in_units(size_bytes: float) -> str:
    """Return bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether ``error``, or what led to it, says that no space was left."""
    return any(out_of_space(each) for each in _chain(error))


def no_space_message(error: BaseException | None, places: Iterable[Path]) -> str:
    """Return what to say where no space was left, and on which disk.

    It is the disk of the file that ``error`` or what led to it names, else of the first of
    ``places`` whose disk is full, else of the first.
    """
    places = list(places)
    for each in _chain(error):
        if out_of_space(each) and isinstance(each, OSError) and isinstance(each.filename, str):
            return _no_space(Path(each.filename), no_inodes=each.strerror == NO_INODES)
    place = next((place for place in places if is_full(place)), places[0])
    return _no_space(place, no_inodes=has_no_inodes(_existing(place)))


def is_full(folder: Path) -> bool:
    """Return whether the disk of ``folder`` has no room for another file of a few lines."""
    where = _existing(folder)
    return shutil.disk_usage(where).free < _LINES_BYTES or has_no_inodes(where)


def _no_space(path: Path, *, no_inodes: bool) -> str:
    free = in_units(shutil.disk_usage(_existing(path)).free)
    what = f"no space is left on the disk of {path} ({free} free)"
    if no_inodes:
        what = f"the disk of {path} takes no more files: its inodes are used up ({free} free)"
    return f"{what}. What was published before is whole; make room, then go on"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
