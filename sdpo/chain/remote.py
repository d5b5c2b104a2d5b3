"""Keep a run in a remote store while it goes on, where the recipe names one.

The run is owned in the store from before its first node to its end. What the store has of it and
this folder has not is received first, so that any machine goes on from where the last one was. Then
every complete node is uploaded beside the work. The work waits for the store at its end alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo.chain.received import check_index, check_same_run, receive, without
from sdpo.config import StoreConfig
from sdpo.errors import ConfigError, Interrupted, StoreError
from sdpo.events import (
    Event,
    Listener,
    NodeEvent,
    NoteEvent,
    PublishedEvent,
    StageEvent,
    StateEvent,
    WaitEvent,
    WarningEvent,
)
from sdpo.hooks import Host
from sdpo.remote.index import Index, object_of, read_index
from sdpo.remote.lease import Lease, acquire, this_process
from sdpo.remote.place import Place, open_place
from sdpo.remote.upload import ToKeep, Uploads, Wanted
from sdpo.store.kept_files import RemoteFile, is_state, kept_files, read_remote, write_remote
from sdpo.store.run_folder import RunFolder

_PATIENCE_S = 600.0
"""A run that has ended tries for so long, without any success, to upload the rest."""
_LAST_WORD_S = 15.0
"""Who asked a run to stop waits so long at most for what it saved."""


@contextmanager
def kept(
    run: RunFolder,
    store: StoreConfig,
    *,
    host: Host,
    cache: Path,
    wait: bool = False,
) -> Iterator[Host]:
    """Own a run in the store that ``store`` names, and yield a host whose run is uploaded.

    Without one, ``host`` itself is yielded. With ``wait``, another owner is waited for.

    Raises:
        ConfigError: what ``store`` names cannot be a store of runs.
        InUseError: another process owns the run.
        RunExistsError: the store has another run of this name, or this one went on elsewhere.
        LostRunError: another process has taken the run over meanwhile.
        StoreError: the store does not answer, at the beginning; or has not everything at the end.
    """
    said = read_remote(run)
    if not store.remote:
        if said:
            message = f"run {run.name} was kept at {said.url}, and goes on without: {_NAME_IT}"
            host.listen(WarningEvent(message=message))
        yield host
        return
    place = _place_of(run, store, cache)
    is_known = said is not None and said.url == store.remote
    owner = this_process(folder=str(run.path), silence_s=store.remote_silence_s)
    token = said.token if said and is_known else ""
    lease = acquire(place, owner, known=token, wait=wait, listen=host.listen)
    try:
        index = _caught_up(run, lease, host.listen)
    except BaseException:
        lease.say(ended=True)
        raise
    received = said.received if said else False
    write_remote(run, RemoteFile(url=store.remote, token=owner.token, received=received))
    uploads = Uploads(
        lease=lease,
        index=index,
        wanted=lambda: _wanted(run, states=store.remote_states),
        is_passing=is_state,
    )
    uploads.start()
    listening = _Listening(uploads, host.listen)
    try:
        yield from _uploading(replace(host, listen=listening), listening)
    finally:
        uploads.close()
        listening.pass_on()


_NAME_IT = "--set store.remote=URL uploads it again"


def _uploading(host: Host, listening: "_Listening") -> Iterator[Host]:
    """Yield ``host``, then see to it that the store has everything."""
    uploads = listening.uploads
    uploads.ask()
    try:
        yield host
    except (Interrupted, KeyboardInterrupt):
        uploads.finish(patience_s=_LAST_WORD_S, at_most_s=_LAST_WORD_S)
        raise
    except Exception:
        uploads.finish(patience_s=_LAST_WORD_S)
        raise
    listening.wait_for_the_rest()


def open_store(run: RunFolder, store: StoreConfig, cache: Path) -> None:
    """Check that the store that is named can be opened, as far as that is known without asking it.

    Raises:
        ConfigError: it cannot.
    """
    if store.remote:
        _place_of(run, store, cache)


def _place_of(run: RunFolder, store: StoreConfig, cache: Path) -> Place:
    place = open_place(store.remote, run.name)
    if place.local:
        there = place.local.resolve()
        for folder in (run.path.resolve(), cache.resolve()):
            if there.is_relative_to(folder) or folder.is_relative_to(there):
                raise ConfigError(
                    f"store.remote {store.remote} would keep the run at {there}, which is "
                    f"{folder} of this machine, or within: name another folder"
                )
    return place


def _caught_up(run: RunFolder, lease: Lease, listen: Listener) -> Index:
    """Receive what this folder lacks; return the index of what the store has whole."""
    place = lease.place
    index = read_index(place)
    if index is None:
        return Index(run.name, {}, (lease.number, 0))
    check_index(run, place, index)
    check_same_run(run, place, index)
    damaged = receive(run, place, index, mine=lease.was_mine, listen=listen)
    for digest in damaged:
        place.delete(object_of(digest))  # so that it is uploaded again when it is made again
    return without(index, damaged, number=lease.number)


def _wanted(run: RunFolder, *, states: bool) -> Wanted:
    groups = kept_files(run, states=states)
    return {
        name: {path: ToKeep(file, digest) for path, (file, digest) in files.items()}
        for name, files in groups.items()
    }


@dataclass(slots=True)
class _Listening:
    """It hears what happens to a run, and has uploaded what is new."""

    uploads: Uploads
    listen: Listener

    def __call__(self, event: Event) -> None:
        """Pass on an event, then what the store has given cause to say.

        Raises:
            LostRunError: another process has taken the run over.
        """
        self.listen(event)
        if isinstance(event, NodeEvent | PublishedEvent | StageEvent | StateEvent):
            self.uploads.ask()
        self.pass_on()
        if self.uploads.lost:
            raise self.uploads.lost

    def pass_on(self) -> None:
        for line in self.uploads.said():
            self.listen(WarningEvent(message=line))

    def wait_for_the_rest(self) -> None:
        """Wait until the store has everything.

        Raises:
            LostRunError: another process has taken the run over.
            StoreError: it has not, and nothing moves any more.
        """
        uploads, url = self.uploads, self.uploads.place.url
        why = uploads.finish(patience_s=_LAST_WORD_S / 10)
        if why and not uploads.lost:
            message = f"the run has ended here; what {url} does not have yet is uploaded"
            self.listen(WaitEvent(event="waiting", what=url, message=message))
            why = uploads.finish(patience_s=_PATIENCE_S)
            self.listen(WaitEvent(event="waited", what=url))
        if uploads.lost:
            raise uploads.lost
        self.pass_on()
        if why:
            raise StoreError(
                f"the run has ended here and is whole, and {url} does not have all of it: {why}. "
                "`sdpo resume` with its name uploads the rest"
            )
        left = sorted(uploads.left)
        if left:
            message = f"not uploaded, since a file is not what its record says: {', '.join(left)}"
            self.listen(WarningEvent(message=f"{message}. `sdpo verify` names it"))
        self.listen(NoteEvent(message=f"{url} has the run as it is here"))
