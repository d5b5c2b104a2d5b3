"""Receive a run from a remote store, to look at it or to go on with it here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdpo.chain.received import check_index, check_same_run, receive
from sdpo.config.load import check_run_name
from sdpo.errors import IntegrityError, UserError
from sdpo.events import Listener
from sdpo.remote.index import Index, read_index
from sdpo.remote.place import Place, names_in, open_place
from sdpo.store.kept_files import START, RemoteFile, read_remote, write_remote
from sdpo.store.run_folder import RunFolder, run_lock
from sdpo.system.nearby import near_name
from sdpo.system.privacy import withheld_by_folder, withholding


@dataclass(frozen=True, slots=True)
class Kept:
    """A run as a store has it: where, under which URL of the store, and the list of its files."""

    store: str
    place: Place
    index: Index


def is_url(target: str) -> bool:
    """Return whether a person means a run in a store."""
    return "://" in target


def find_kept(target: str) -> Kept:
    """Return the run that ``target``, the URL of a store and a run's name, stands for.

    Raises:
        UserError: the store has no such run, or cannot be opened.
        StoreError: it does not answer.
        IntegrityError: what it has is damaged.
    """
    url, _, name = target.rstrip("/").rpartition("/")
    if url.endswith((":/", ":")):
        raise UserError(f"{target} names a store and no run in it: write URL/NAME")
    place = open_place(url, check_run_name(name))
    index = read_index(place)
    if index is None:
        names = names_in(url)
        near = near_name(name, names)
        hint = f" (did you mean {near}?)" if near else ""
        listed = f"; there: {', '.join(names[:20])}" if names else ""
        raise UserError(f"no run {name} is kept at {url}{hint}{listed}")
    return Kept(url, place, index)


def pull_run(
    target: str, *, runs_dir: Path, start_only: bool = False, listen: Listener = lambda event: None
) -> RunFolder:
    """Receive a run into ``runs_dir``, or what is new of one that is there, and return its folder.

    With ``start_only``, only what makes it a run: who then goes on with it receives the rest.

    Raises:
        UserError: the store has no such run, or cannot be opened.
        ForeignFolderError, RunExistsError: something else has its name, or it went on here.
        InUseError: a process here works on it.
        IntegrityError: what the store has is damaged; what is whole has been received.
        StoreError: the store does not answer.
    """
    kept = find_kept(target)
    place, index = kept.place, kept.index
    run = RunFolder(runs_dir.absolute() / check_run_name(target.rstrip("/").rpartition("/")[2]))
    run.check_own()
    check_index(run, place, index)
    with _held(run, listen):
        check_same_run(run, place, index)
        start = Index(index.run, {START: index.groups[START]})
        damaged = receive(run, place, start, listen=listen)
        said = read_remote(run)
        if run.run_file.is_file() and (said is None or said.url != kept.store):
            write_remote(run, RemoteFile(url=kept.store, received=True))
        if not start_only and not damaged:
            damaged = receive(run, place, index, listen=listen)
    if damaged:
        raise IntegrityError(
            f"{place.url} is damaged: {len(damaged)} of its objects are gone or were changed. What "
            f"is whole is in {run.path}. `sdpo verify {place.url} --remote --deep` names the rest; "
            f"`sdpo resume {place.url}` makes it again"
        )
    return run


@contextmanager
def _held(run: RunFolder, listen: Listener) -> Iterator[None]:
    """Hold a run's folder, which is made where there is none."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    run.claim()
    with withholding(withheld_by_folder(run.path)), run_lock(run, listen=listen):
        run.claim()  # again: who had the lock may have given the name up
        yield
