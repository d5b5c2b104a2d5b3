"""Make what the demo recipe needs, so that nothing is downloaded: a tiny model and its data.

This package knows the names that start with ``demo:`` and where their files are. The model is made
by :mod:`sdpo.inputs.demo.model`, the text by :mod:`sdpo.inputs.demo.text`, without torch or
transformers.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from sdpo.errors import ConfigError
from sdpo.inputs.demo.model import write_model
from sdpo.inputs.demo.text import dialogues, questions, requests
from sdpo.system.files import publish_folder, write_text

GENERATOR_VERSION = 1
"""Raise this with every change of what is generated: files of another version are not reused."""

_MODEL = "demo:tiny-llama"
_ROWS: Mapping[str, Callable[[], list[dict[str, str]]]] = {
    "demo:questions": questions,
    "demo:requests": requests,
    "demo:dialogues": dialogues,
}

NAMES: tuple[str, ...] = (_MODEL, *_ROWS)
"""These are a model folder, two files of preference pairs, and prompts with completions."""


def materialise(name: str, directory: Path) -> Path:
    """Write what ``name`` stands for below ``directory``, unless it is there; return where it is.

    The bytes depend on the name and on ``GENERATOR_VERSION`` alone.

    Raises:
        ConfigError: there is no such name.
    """
    stem = f"{name.removeprefix('demo:')}-v{GENERATOR_VERSION}"
    if name == _MODEL:
        return _model_folder(directory / stem)
    if name not in _ROWS:
        raise ConfigError(f"the demo has no {name!r}; it has {', '.join(NAMES)}")
    path = directory / f"{stem}.jsonl"
    if not path.is_file():
        write_text(path, _text(name))
    return path


def is_made_here(directory: Path) -> bool:
    """Return whether some file of data below ``directory`` is the demo's, to the last byte."""
    for name in _ROWS:
        path = directory / f"{name.removeprefix('demo:')}-v{GENERATOR_VERSION}.jsonl"
        if path.is_file() and path.read_bytes() == _text(name).encode():
            return True
    return False


def _text(name: str) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS[name]())


def _model_folder(path: Path) -> Path:
    if path.is_dir():
        return path
    texts = [text for rows in _ROWS.values() for row in rows() for text in row.values()]
    try:
        with publish_folder(path) as folder:
            write_model(folder, texts)
    except OSError:
        if not path.is_dir():  # else another process has just published the same bytes
            raise
    return path
