"""Prove which files of a cache or a run this project wrote, by their names and their content.

A name in the right form is no proof, and neither is a place: people keep files of their own there.
What is damaged is known by what is left of it, a table by the names of its columns.
"""

import os
import re
from collections.abc import Iterator, Set
from pathlib import Path

from sdpo.errors import Fault
from sdpo.identity.canonical import digest_of
from sdpo.inputs.cache_folder import KEY, is_keyed
from sdpo.store.logp_cache import part_is_whole, read_note
from sdpo.store.resume_states import STATE_FILE
from sdpo.system.files import checksum_path, read_json
from sdpo.system.locks import is_lock

_PART = re.compile(r"[0-9a-f]{64}\.parquet")
_NOTE = re.compile(r"checked-[0-9a-f]{32}\.json")
_STATE = re.compile(r"\d{8}")
_RESPONSES = re.compile(r"responses(-\d+)?\.jsonl")
_ANSWERS = re.compile(r"answers(-\d+)?\.jsonl")
_OF_ANSWERS = (b'{"key": "', b'"samples": ')
_COLUMNS = {
    "logps": (b"row_digest", b"chosen_logps", b"rejected_logps"),
    "kl.parquet": (b"prompt_key", b"sampler", b"against", b"k1", b"k3"),
    "samples.parquet": (b"prompt_key", b"sampler", b"sample"),
    "completions.parquet": (b"prompt_key", b"sample", b"token_ids", b"finished"),
    "verdicts.parquet": (b"prompt_key", b"forward", b"backward", b"first_score"),
    "scores.parquet": (b"doc_id", b"doc_hash", b"prompt_hash", b"truncated"),
}
_TOKEN_COLUMNS = (b"prompt_ids", b"truncated", b"reason")
_SCHEMA_BYTES = 2**16
"""Arrow's schema is in this many bytes at the beginning or at the end of a file."""


def children(folder: Path) -> list[Path]:
    """Return what is in a folder, in order; nothing where it is a link, which leads elsewhere."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(folder.iterdir())


def is_plain(path: Path) -> bool:
    """Return whether a file, and not a link to one, is there."""
    return path.is_file() and not path.is_symlink()


def is_part(path: Path) -> bool:
    """Return whether a file is a part of cached log-probs, whole or damaged."""
    return (
        is_plain(path)
        and _PART.fullmatch(path.name) is not None
        and (part_is_whole(path) or _has_columns(path, _COLUMNS["logps"]))
    )


def is_note(path: Path) -> bool:
    """Return whether a file is the note of a check, whole or damaged."""
    if not is_plain(path) or not _NOTE.fullmatch(path.name):
        return False
    content = path.read_bytes()
    words = (b'"software"', b'"parts"', b'"numbers"')
    return read_note(path) is not None or all(word in content for word in words)


def is_rows_folder(folder: Path) -> bool:
    """Return whether a folder holds cached log-probs of one key."""
    return (
        KEY.fullmatch(folder.name) is not None
        and not folder.is_symlink()
        and is_keyed(folder / "key.json")
    )


def rows_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder of cached log-probs: this project's own, and the others."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in children(folder):
        own = path == folder / "key.json" or is_part(path) or is_note(path)
        (ours if own else others).append(path)
    return ours, others


def kl_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder of cached KL: this project's own, and the others."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in children(folder):
        columns = _COLUMNS.get(path.name, ())
        own = is_plain(path) and (
            (bool(columns) and _has_columns(path, columns))
            or (path.name == "key.json" and _is_kl_key(path))
            or (bool(_ANSWERS.fullmatch(path.name)) and _has_words(path, _OF_ANSWERS))
        )
        (ours if own and KEY.fullmatch(folder.name) else others).append(path)
    return ours, others


def evaluation_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder of cached scores: this project's own, and the others."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in children(folder):
        own = is_plain(path) and KEY.fullmatch(folder.name) is not None and _is_of_scores(path)
        (ours if own else others).append(path)
    return ours, others


def _is_of_scores(path: Path) -> bool:
    match path.name:
        case "scores.parquet":
            return _has_columns(path, _COLUMNS[path.name])
        case "key.json":
            words = (b'"identity"', b'"evaluation_version"', b'"files"')
        case "summary.json":
            words = (b'"task"', b'"metrics"', b'"documents_truncated"')
        case name if _RESPONSES.fullmatch(name):
            words = (b'{"key": "', b'"value": ', b'"cut": ')
        case _:
            return False
    return _has_words(path, words)


def _has_words(path: Path, words: tuple[bytes, ...]) -> bool:
    content = path.read_bytes()
    return all(word in content for word in words)


def is_token_file(path: Path) -> bool:
    """Return whether a file holds token ids, whole or damaged."""
    if not is_plain(path) or path.suffix != ".arrow" or not KEY.fullmatch(path.stem):
        return False
    with path.open("rb") as file:
        head = file.read(_SCHEMA_BYTES)
        file.seek(-min(_SCHEMA_BYTES, path.stat().st_size), os.SEEK_END)
        ends = (head, file.read())
    return any(b"ARROW1" in end for end in ends) and any(
        all(column in end for column in _TOKEN_COLUMNS) for end in ends
    )


def is_token_digest(path: Path) -> bool:
    """Return whether a file is the digest beside a token file."""
    name = path.name.removesuffix(".sha256")
    form = rf"[0-9a-f]{{64}}  {re.escape(name)}\n"
    return (
        is_plain(path)
        and path == checksum_path(path.with_name(name))
        and KEY.fullmatch(name.removesuffix(".arrow")) is not None
        and re.fullmatch(form.encode(), path.read_bytes()) is not None
    )


def is_key_lock(path: Path) -> bool:
    """Return whether a file is the lock of a cached result, which is named by its key."""
    name = path.name
    return (
        name[:1] == "."
        and name[-5:] == ".lock"
        and bool(KEY.fullmatch(name[1:-5]))
        and is_lock(path)
    )


def state_files(states: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a step's resume states: those in ``state.json``, and the others."""
    ours: set[Path] = set()
    for folder in children(states):
        if _STATE.fullmatch(folder.name) and not folder.is_symlink():
            ours |= set(_sealed(folder))
    return sorted(ours), sorted(_all_files(states) - ours)


def _sealed(folder: Path) -> Iterator[Path]:
    """Yield a state's files, where its seal is whole."""
    seal = folder / STATE_FILE
    if not is_plain(seal):
        return
    try:
        content = read_json(seal)
        sealed = {name: value for name, value in content.items() if name != "digest"}
        names = set(content["files"]) if digest_of(sealed) == content["digest"] else set()
    except (Fault, OSError, KeyError, TypeError, AttributeError):
        return
    if names:
        yield seal
        inside = _all_files(folder)
        yield from (path for path in inside if str(path.relative_to(folder)) in names)


def _all_files(folder: Path) -> Set[Path]:
    """Return everything below a folder that is not a folder; links are not followed."""
    found: set[Path] = set()
    for path in children(folder):
        is_folder = path.is_dir() and not path.is_symlink()
        found |= _all_files(path) if is_folder else {path}
    return found


def _is_kl_key(path: Path) -> bool:
    if is_keyed(path, inner="identity"):
        return True
    content = path.read_bytes()  # damaged
    kinds = (b'"kl_version"', b'"completions_version"', b'"judge"')
    return all(word in content for word in (b'"identity"', b'"files"')) and any(
        kind in content for kind in kinds
    )


def _has_columns(path: Path, names: tuple[bytes, ...]) -> bool:
    content = path.read_bytes()
    return b"PAR1" in (content[:4], content[-4:]) and all(name in content for name in names)
