"""Keep samples as they come, in a file that only grows: a round goes on after its process died.

A line has the samples of one prompt, whole, with its key; a line that was cut short is dropped.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpo.system.files import write_text


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample has token ids, int32; ``finished``: the last one is an end token.

    ``text`` is what a server wrote; None: the ids say it.
    """

    ids: np.ndarray
    finished: bool
    text: str | None = None


class SampleLog:
    """A log has the samples of prompts that are done, by the prompt's key.

    It is added to by one process; ``others`` are the logs of other ones, which it knows as well.
    """

    def __init__(self, path: Path, *, n: int, others: Sequence[Path] = ()) -> None:
        self._path = path
        self.done: dict[str, list[Answer]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        own = samples_in([path], n=n)
        # What comes next is not to be added to a line that was cut short.
        write_text(path, "".join(_line(key, samples) for key, samples in own.items()))
        self.done |= samples_in(others, n=n) | own

    def add(self, key: str, samples: Sequence[Answer]) -> None:
        """Keep the samples of a prompt, in their order, on the disk."""
        self.done[key] = list(samples)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(key, samples))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the file: what was in it has been published."""
        self._path.unlink(missing_ok=True)


def samples_in(paths: Sequence[Path], *, n: int) -> dict[str, list[Answer]]:
    """Return the samples in logs by the prompts' keys: whole lines with ``n`` of them."""
    found: dict[str, list[Answer]] = {}
    for path in paths:
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            read = _read(line)
            if read and len(read[1]) == n:
                found[read[0]] = read[1]
    return found


def _line(key: str, samples: Sequence[Answer]) -> str:
    entries = [
        [each.ids.tolist(), each.finished, *([] if each.text is None else [each.text])]
        for each in samples
    ]
    return json.dumps({"key": key, "samples": entries}) + "\n"


def _read(line: bytes) -> tuple[str, list[Answer]] | None:
    """Return what a line says; None for one that is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
        samples = [Answer(np.array(ids, np.int32), *rest) for ids, *rest in entry["samples"]]
        return str(entry["key"]), samples
    except (ValueError, KeyError, TypeError):
        return None
