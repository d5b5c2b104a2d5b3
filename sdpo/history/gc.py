"""Clean up: find what can be deleted without any run, or anything a run came from, missing it.

Only what this project can prove that it wrote (:mod:`sdpo.history.proofs`), in a folder with its
marker, is deleted; the rest is listed and left alone. A run is held while it is looked at, and
again while it is cleaned; the cache is held alone from the beginning to the end, so that no run
works on it. Cached rows are needed as long as a run of the folder has both their model and their
tokens; without such a run they cost computing time to make again, never a result.

No path that a run names is followed: run.yaml may come from somebody else. The cache that is looked
at is the one beside the runs, or one that a person names.
"""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from sdpo.errors import UserError
from sdpo.history import proofs
from sdpo.history.needs import Needed, add_needs, rows_of
from sdpo.inputs.cache_folder import is_cache
from sdpo.store.evaluations import KEY_FILE, evaluation_fault, responses_in
from sdpo.store.kl_cache import cached_fault
from sdpo.store.logp_cache import part_is_whole, read_note
from sdpo.store.resume_states import states_folder
from sdpo.store.run_folder import RunFolder, run_lock, runs_in, runs_of_studies
from sdpo.store.win_rates import answers_so_far
from sdpo.system.files import UNFINISHED, read_json, unfinished
from sdpo.system.locks import hold
from sdpo.system.nearby import did_you_mean
from sdpo.system.ownership import LOCK, MARKER

_DAY_S = 24 * 3600.0
"""An unfinished file in the cache counts as orphaned after this: a run elsewhere may write it."""
_OF_A_CACHE = {
    *("logps", "tokens", "kl", "evaluations", "suites", "trials", "demo"),
    *("completions", "win_rates", "verdicts"),
    *(LOCK, MARKER, "lost+found"),
}
_DIED = "left unfinished by a process that died"
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Waste:
    """Waste is a file or folder that nothing needs.

    ``run``: the one that it belongs to, if any. ``files``: those of the folder that are deleted,
    and the folder with them where it is then empty. A folder for which none are named is unfinished
    by its own name, and deleted whole.
    """

    path: Path
    why: str
    size_bytes: int
    run: RunFolder | None = None
    files: tuple[Path, ...] = ()


@dataclass(slots=True)
class Found:
    """A search for waste found this; ``notes`` say what was left alone, and why."""

    waste: list[Waste] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    _known: set[Path] = field(default_factory=set, repr=False)

    @property
    def size_bytes(self) -> int:
        """Return the bytes that deleting it all frees."""
        return sum(waste.size_bytes for waste in self.waste)

    def add(
        self,
        path: Path,
        why: str,
        *,
        files: Iterable[Path] = (),
        run: RunFolder | None = None,
    ) -> None:
        """Add a file or folder, or only these ``files`` of the folder."""
        if self._known.isdisjoint((path, *path.parents)):
            self._known.add(path)
            listed = tuple(files)
            size = sum(map(_size, listed or [path]))
            self.waste.append(Waste(path, why, size, run, listed))

    def add_folder(
        self,
        folder: Path,
        why: str,
        files: tuple[list[Path], list[Path]],
        *,
        run: RunFolder | None = None,
    ) -> None:
        """Add those ``files`` of a folder that are this project's, the first list; others stay."""
        if files[0]:
            self.add(folder, why, files=files[0], run=run)


@contextmanager
def collect(runs_dir: Path, *, cache: Path | None = None) -> Iterator[Found]:
    """Find what can be deleted, and hold the cache that it is in until the block ends.

    ``cache``: the one to look at; else the one beside the runs.

    Raises:
        UserError: there is no such folder of runs, or no such cache. Without runs nothing would be
            needed, and a slip of the pen would empty the cache.
    """
    if not runs_dir.is_dir():
        raise UserError(
            f"there is no folder of runs at {runs_dir.absolute()}, so nothing is deleted"
            f"{did_you_mean(runs_dir)}"
        )
    found = Found()
    runs = [*runs_in(runs_dir), *runs_of_studies(runs_dir)]
    folder = (cache or runs_dir.absolute().parent / "cache").absolute()
    with ExitStack() as held:
        is_held = _hold_cache(folder, held, found, is_named=cache is not None)
        needed = Needed()
        for run in runs:
            _look_at_run(run, found, needed)
        if is_held:
            _look_at_cache(folder, needed, found)
        _note_other_caches(needed.caches, folder, found)
        _note_foreign(found)
        yield found


def _hold_cache(folder: Path, held: ExitStack, found: Found, *, is_named: bool) -> bool:
    if not folder.is_dir():
        if is_named:
            raise UserError(f"there is no cache at {folder}{did_you_mean(folder)}")
        return False
    if not is_cache(folder):
        found.notes.append(f"{folder} is no cache that this project made: left alone")
        return False
    try:
        held.enter_context(hold(folder / LOCK, what=f"the cache {folder}"))
    except (UserError, OSError):
        found.notes.append(f"the cache {folder} is in use by a run: left alone")
        return False
    return True


def delete(found: Found) -> None:
    """Delete what was found; call it inside :func:`collect`'s block.

    A run is locked and looked at once more: it may have gone on since.
    """
    by_run: dict[Path, list[Waste]] = {}
    for waste in found.waste:
        if waste.run is None:
            _delete(waste)
        else:
            by_run.setdefault(waste.run.path, []).append(waste)
    for path, listed in by_run.items():
        run, now = RunFolder(path), Found()
        try:
            with run_lock(run):
                _look_into(run, now)
                asked = {waste.path for waste in listed}
                for waste in now.waste:
                    if waste.path in asked:
                        _delete(waste)
        except (UserError, OSError) as error:
            found.notes.append(f"{error}: left alone")


def _delete(waste: Waste) -> None:
    if waste.path.is_symlink() or not waste.path.is_dir():
        waste.path.unlink(missing_ok=True)
    elif not waste.files:
        shutil.rmtree(waste.path)
    else:
        for path in waste.files:
            path.unlink(missing_ok=True)
        folders = {path.parent for path in waste.files} | {waste.path}
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # somebody else's files are in it
                folder.rmdir()


def _size(path: Path) -> int:
    """Return the bytes that are freed: a file with another hard link frees none."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(f.lstat().st_size for f in files if f.lstat().st_nlink == 1)


def _look_at_run(run: RunFolder, found: Found, needed: Needed) -> None:
    """Look for what can be deleted in a run, and add what it needs of a cache."""
    try:
        if run.is_own:
            with run_lock(run):
                _look_into(run, found)
        else:
            found.notes.append(f"{run.path} is no run that this project made: left alone")
    except (UserError, OSError) as error:
        found.notes.append(f"{error}: left alone")
    add_needs(run, needed)


def _look_into(run: RunFolder, found: Found) -> None:
    """Add what nothing needs in a run that is locked."""
    run.check_own()
    swept, others = unfinished(run.path)
    found.foreign += others
    for path in swept:
        found.add(path, _DIED, run=run)
    for node in run.publishing_nodes():
        states = states_folder(run.path / node)
        if states.is_dir() and not run.is_damaged(node) and run.read_record(node):
            ours, others = proofs.state_files(states)
            why = f"resume states of {node}, which is complete"
            found.add_folder(states, why, (ours, others), run=run)
            found.foreign += _not_unfinished(others)


def _note_other_caches(named: Iterable[str], cache: Path, found: Found) -> None:
    """Note the caches that runs name and that are not looked at."""
    for given in sorted(named):
        if Path(given).resolve() != cache.resolve():
            found.notes.append(
                f"a run names the cache {given}, which is not looked at: `sdpo gc --cache-dir` "
                "does so"
            )


def _note_foreign(found: Found) -> None:
    paths = sorted(set(found.foreign))
    for path in paths[:_NAMED]:
        found.notes.append(f"{path} cannot be shown to be this project's: left alone")
    if len(paths) > _NAMED:
        found.notes.append(f"{len(paths) - _NAMED} more of that kind: left alone")


def _look_at_cache(cache: Path, needed: Needed, found: Found) -> None:
    now = time.time()
    ours, others = unfinished(cache)
    found.foreign += others
    for path in ours:
        if now - path.lstat().st_mtime > _DAY_S:
            found.add(path, _DIED)
        else:
            found.notes.append(f"{path} is unfinished and less than a day old: left alone")
    found.foreign += [path for path in proofs.children(cache) if path.name not in _OF_A_CACHE]
    content = _Content.of(cache, found)
    _look_for_damage(content, found)
    if needed.unknown:
        # What these runs need is not known, so nothing may go.
        found.notes += [f"{why}: cached rows and tokens are left alone" for why in needed.unknown]
        return
    for folder in content.kl:
        if folder.name not in needed.kl:
            found.add_folder(folder, "KL and samples of no run", proofs.kl_files(folder))
    _look_at_scores(content, needed, found)
    _look_at_tokens(content, needed, found)
    _look_at_rows(cache, content, needed, found)


@dataclass(slots=True)
class _Content:
    """The content of a cache that is this project's is listed here.

    It is folders of log-probs with their parts and notes, folders of KL, scores and answers, token
    files and their digests. ``whole``: the parts that are not damaged.
    """

    parts: dict[Path, list[Path]] = field(default_factory=dict)
    notes: list[Path] = field(default_factory=list)
    kl: list[Path] = field(default_factory=list)
    scores: list[Path] = field(default_factory=list)
    answers: list[Path] = field(default_factory=list)
    tokens: list[Path] = field(default_factory=list)
    digests: list[Path] = field(default_factory=list)
    whole: set[Path] = field(default_factory=set)

    @classmethod
    def of(cls, cache: Path, found: Found) -> "_Content":
        """Return the content of a cache.

        What is somebody else's is noted in ``found``, and locks that nobody holds are added to it
        as waste.
        """
        content = cls()
        for folder in _entries(cache / "logps", found):
            if not proofs.is_rows_folder(folder):
                found.foreign.append(folder)
                continue
            ours, others = proofs.rows_files(folder)
            found.foreign += _not_unfinished(others)
            content.parts[folder] = [path for path in ours if path.suffix == ".parquet"]
            content.notes += [path for path in ours if path.name.startswith("checked-")]
            content.whole |= {path for path in content.parts[folder] if part_is_whole(path)}
        for name, files_of, folders in (
            *((name, proofs.kl_files, content.kl) for name in ("kl", "win_rates")),
            ("completions", proofs.kl_files, content.answers),
            ("evaluations", proofs.evaluation_files, content.scores),
        ):
            for folder in _entries(cache / name, found):
                ours, others = files_of(folder)
                if ours:
                    folders.append(folder)
                    found.foreign += _not_unfinished(others)
                else:
                    found.foreign += _not_unfinished([folder])
        for path in _entries(cache / "tokens", found):
            if proofs.is_token_file(path):
                content.tokens.append(path)
            elif proofs.is_token_digest(path):
                content.digests.append(path)
            else:
                found.foreign += _not_unfinished([path])
        return content


def _entries(folder: Path, found: Found) -> Iterator[Path]:
    """Yield what is in a folder of a cache, but for locks, which are added to the waste."""
    for path in proofs.children(folder):
        if proofs.is_key_lock(path):
            found.add(path, "a lock that nobody holds")
        else:
            yield path


def _not_unfinished(paths: list[Path]) -> list[Path]:
    """Return the paths that are not listed as unfinished already."""
    return [path for path in paths if not path.name.startswith(UNFINISHED)]


def _look_for_damage(content: _Content, found: Found) -> None:
    for part in sorted(path for parts in content.parts.values() for path in parts):
        if part not in content.whole:
            found.add(part, "damaged: its rows are scored again")
    for note in content.notes:
        if read_note(note) is None:
            found.add(note, "damaged: its rows are checked again")
    answered = [folder for folder in content.answers if (folder / KEY_FILE).is_file()]
    for folder in (*content.kl, *answered):
        if fault := cached_fault(folder):
            why = f"damaged, {fault}: it is measured again"
            found.add_folder(folder, why, proofs.kl_files(folder))
    for folder in content.scores:
        if (folder / KEY_FILE).is_file() and (fault := evaluation_fault(folder)):
            why = f"damaged, {fault}: it is scored again"
            found.add_folder(folder, why, proofs.evaluation_files(folder))


def _look_at_scores(content: _Content, needed: Needed, found: Found) -> None:
    """Add scores and answers of no run; those of a stage that is not done stay for a day."""
    for kind, folders, files_of, so_far in (
        ("scores", content.scores, proofs.evaluation_files, responses_in),
        ("answers", content.answers, proofs.kl_files, answers_so_far),
    ):
        for folder in folders:
            if folder.name in needed.kl:
                continue
            is_done = (folder / KEY_FILE).is_file()
            ages = [time.time() - each.lstat().st_mtime for each in so_far(folder)]
            if not is_done and min(ages, default=_DAY_S) < _DAY_S:
                found.notes.append(f"{folder} is not finished and less than a day old: left alone")
            else:
                found.add_folder(folder, f"{kind} of no run", files_of(folder))


def _look_at_tokens(content: _Content, needed: Needed, found: Found) -> None:
    for path in content.tokens:
        if path.stem not in needed.tokens:
            found.add(path, "tokens of no run")
    for path in content.digests:
        if Path(path.stem).stem not in needed.tokens or not path.with_suffix("").is_file():
            found.add(path, "digest of tokens of no run")


def _look_at_rows(cache: Path, content: _Content, needed: Needed, found: Found) -> None:
    rows = rows_of(cache, needed)
    if rows is None:
        found.notes.append(
            f"tokens of a run are not in {cache}: of models that runs have, all rows are left alone"
        )
    for folder, parts in content.parts.items():
        if str(read_json(folder / "key.json").get("model")) not in needed.models:
            why = "log-probs under a model of no run"
            found.add_folder(folder, why, proofs.rows_files(folder))
        elif rows is not None:
            for part in parts:
                if part in content.whole and not _has_needed(part, rows):
                    found.add(part, "log-probs of pairs of no run")


def _has_needed(part: Path, rows: set[bytes]) -> bool:
    digests = pq.read_table(part, columns=["row_digest"])["row_digest"].to_pylist()
    return any(digest in rows for digest in digests)
