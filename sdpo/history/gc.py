"""Clean-up: what can be deleted without any run, or anything that a run came from, missing it.

Every run is held while it is looked at and cleaned, and the cache is held alone: where a run works
on it, nothing in it is touched. Cached rows are needed as long as a run of the folder has both
their model and their tokens; without a run they cost computing time to make again, never a result.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sdpo.cache import part_is_whole, read_note
from sdpo.errors import SdpoError, UserError
from sdpo.files import TEMPORARY, digest_of, read_json
from sdpo.kl import cached_fault
from sdpo.locks import hold
from sdpo.nodes import cached_tokens, token_fault
from sdpo.resolve import cache_dir
from sdpo.resume import states_folder
from sdpo.run import read_stored
from sdpo.store import Record, RunFolder, run_lock
from sdpo.tokens.store import TokenFile

_DAY_S = 24 * 3600.0
"""An unfinished file in the cache is orphaned after this time: a run elsewhere may be at it."""


@dataclass(frozen=True, slots=True)
class Waste:
    """A file or folder that nothing needs."""

    path: Path
    why: str
    size_bytes: int


@dataclass(slots=True)
class Found:
    """What can go; ``notes`` say what was left alone, and why."""

    waste: list[Waste] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes that deleting it all frees."""
        return sum(waste.size_bytes for waste in self.waste)

    def add(self, path: Path, why: str) -> None:
        """Add a file or folder."""
        if all(waste.path not in (path, *path.parents) for waste in self.waste):
            self.waste.append(Waste(path, why, _size(path)))


@contextmanager
def collect(runs_dir: Path, *, cache: Path | None = None) -> Iterator[Found]:
    """Find what can go, and hold everything that it is in until the block ends.

    ``cache``: else that of the runs, or the one beside them.
    """
    found = Found()
    runs = [RunFolder(path.parent) for path in sorted(runs_dir.glob("*/run.yaml"))]
    with ExitStack() as held:
        for run in runs:
            try:
                held.enter_context(run_lock(run))
            except (UserError, OSError) as error:
                found.notes.append(f"{error}: left alone")
            else:
                _look_at_run(run, found)
        for folder in [cache] if cache else _caches(runs_dir, runs):
            if not folder.is_dir():
                continue
            try:
                held.enter_context(hold(folder / ".lock", what=f"the cache {folder}"))
            except (UserError, OSError):
                found.notes.append(f"the cache {folder} is in use by a run: left alone")
            else:
                _look_at_cache(folder, runs, found)
        yield found


def delete(found: Found) -> None:
    """Delete what was found; call it inside :func:`collect`'s block."""
    for waste in found.waste:
        if waste.path.is_dir() and not waste.path.is_symlink():
            shutil.rmtree(waste.path)
        else:
            waste.path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes that go: a file with another hard link stays."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(f.lstat().st_size for f in files if f.lstat().st_nlink == 1)


def _caches(runs_dir: Path, runs: list[RunFolder]) -> list[Path]:
    folders = {runs_dir.absolute().parent / "cache"}
    for run in runs:
        with suppress(SdpoError):
            folders.add(cache_dir(read_stored(run).config))
    return sorted(folders)


def _look_at_run(run: RunFolder, found: Found) -> None:
    for path in sorted(run.path.rglob(f"{TEMPORARY}*")):
        found.add(path, "left unfinished by a process that died")
    for node in run.nodes():
        states = states_folder(run.path / node)
        if states.is_dir() and not run.is_damaged(node) and run.read_record(node):
            found.add(states, f"resume states of {node}, which is complete")


@dataclass(slots=True)
class _Needed:
    """What the runs of the folder need of a cache: log-probs under models, token files, KL."""

    models: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    kl: set[str] = field(default_factory=set)


def _look_at_cache(cache: Path, runs: list[RunFolder], found: Found) -> None:
    now = time.time()
    for path in sorted(cache.rglob(f"{TEMPORARY}*")):
        if now - path.lstat().st_mtime > _DAY_S:
            found.add(path, "left unfinished by a process that died")
        else:
            found.notes.append(f"{path} is unfinished and less than a day old: left alone")
    for path in sorted([*cache.glob("tokens/.*.lock"), *cache.glob("kl/.*.lock")]):
        found.add(path, "a lock that nobody holds")
    _look_for_damage(cache, found)
    needed = _Needed()
    for run in runs:
        unreadable = _add_needs(run, needed)
        if unreadable:
            # What it needs is not known, so nothing may go.
            found.notes.append(f"{unreadable}: cached rows and tokens are left alone")
            return
    for folder in sorted(cache.glob("kl/[!.]*")):
        if folder.name not in needed.kl:
            found.add(folder, "KL and samples of no run")
    _look_at_tokens(cache, needed, found)
    _look_at_rows(cache, needed, found)


def _look_for_damage(cache: Path, found: Found) -> None:
    for part in sorted(cache.glob("logps/*/[!.]*.parquet")):
        if not part_is_whole(part):
            found.add(part, "damaged: its rows are scored again")
    for note in sorted(cache.glob("logps/*/checked-*.json")):
        if read_note(note) is None:
            found.add(note, "damaged: its rows are checked again")
    for folder in sorted(cache.glob("kl/[!.]*")):
        if fault := cached_fault(folder):
            found.add(folder, f"damaged, {fault}: it is measured again")


def _add_needs(run: RunFolder, needed: _Needed) -> str:
    """Add what a run needs; returns why that is not known, else nothing."""
    try:
        needed.models.add(read_stored(run).inputs["model"])
        records = [run.read_record(node) for node in run.nodes()]
    except (SdpoError, OSError) as error:
        return str(error)
    for record in filter(None, records):
        _add_record(record, needed)
    return ""


def _rows_of(cache: Path, names: set[str]) -> set[bytes] | None:
    """Digests of all rows of these token files; None where a file cannot tell."""
    rows: set[bytes] = set()
    for name in sorted(names):
        path = cached_tokens(cache, name)
        if not path.is_file():
            return None
        try:
            tokens = TokenFile.open(path)
        except SdpoError:
            continue  # supervised examples: they have no log-probs
        if token_fault(path):
            return None
        rows |= {tokens.row(int(i)).row_digest for i in np.flatnonzero(tokens.usable)}
    return rows


def _add_record(record: Record, needed: _Needed) -> None:
    identity, outputs = record["identity"], record.get("outputs", {})
    inputs = identity.get("inputs", {})
    needed.models |= {outputs["model"]} if "model" in outputs else set()
    needed.models |= {v for k, v in inputs.items() if k in ("base", "reference", "target")}
    scoring = identity.get("scoring", {})
    needed.models |= {scoring["model"]} if "model" in scoring else set()
    own = record.get("models", {}).get("reference", {}).get("tokens")
    for name in (identity.get("tokens"), inputs.get("examples"), own):
        if isinstance(name, str):
            needed.tokens.add(name)
    if "cached" in outputs:
        needed.kl.add(outputs["cached"])


def _look_at_tokens(cache: Path, needed: _Needed, found: Found) -> None:
    for path in sorted(cache.glob("tokens/[!.]*.arrow")):
        if path.stem not in needed.tokens:
            found.add(path, "tokens of no run")
    for path in sorted(cache.glob("tokens/[!.]*.sha256")):
        if Path(path.stem).stem not in needed.tokens or not path.with_suffix("").is_file():
            found.add(path, "digest of tokens of no run")


def _look_at_rows(cache: Path, needed: _Needed, found: Found) -> None:
    rows = _rows_of(cache, needed.tokens)
    if rows is None:
        found.notes.append(
            f"tokens of a run are not in {cache}: of models that runs have, all rows are left alone"
        )
    for folder in sorted(path for path in cache.glob("logps/*") if path.is_dir()):
        model = _model_of(folder)
        if model is None:
            found.notes.append(f"{folder} does not say what its rows are of: left alone")
        elif model not in needed.models:
            found.add(folder, "log-probs under a model of no run")
        elif rows is not None:
            for part in sorted(folder.glob("[!.]*.parquet")):
                if part_is_whole(part) and not _has_needed(part, rows):
                    found.add(part, "log-probs of pairs of no run")


def _model_of(folder: Path) -> str | None:
    try:
        key = read_json(folder / "key.json")
        return str(key["model"]) if digest_of(key)[:32] == folder.name else None
    except (SdpoError, OSError, KeyError, TypeError):
        return None


def _has_needed(part: Path, rows: set[bytes]) -> bool:
    digests = pq.read_table(part, columns=["row_digest"])["row_digest"].to_pylist()
    return any(digest in rows for digest in digests)
