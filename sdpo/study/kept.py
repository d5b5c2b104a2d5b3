"""Keep a study's own files in the remote store of its runs: what it is, its results, its pages.

They stand beside the runs, below the study's name. A study that is taken up in another folder
receives what that folder does not have, so that trials whose runs are gone are not run again.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo.config import StoreConfig
from sdpo.errors import ConfigError, IntegrityError
from sdpo.events import Listener, NoteEvent, WarningEvent
from sdpo.remote.index import Index, read_index
from sdpo.remote.lease import acquire, this_process
from sdpo.remote.place import Place, open_place
from sdpo.remote.receive import receive_file
from sdpo.remote.upload import ToKeep, Uploads, Wanted
from sdpo.study.folder import RESULTS, StudyFolder
from sdpo.system.files import UNFINISHED

STUDY_PLACE = ".study"
"""No run has this name: below a study's, its own files are kept there."""
_GROUP = "study"
_PATIENCE_S, _LAST_WORD_S = 120.0, 15.0
_RESULT = re.compile(rf"{RESULTS}/[^/]+\.(json|parquet)")


@contextmanager
def kept_study(
    study: StudyFolder, store: StoreConfig, *, listen: Listener, wait: bool = False
) -> Iterator[Callable[[], None]]:
    """Keep a study that is held where ``store`` names a remote store, while within.

    Yields what is to be called when there is something new. What could not be uploaded at the end
    is told: the study itself is whole here.

    Raises:
        ConfigError: the store cannot be opened, or is within the study's folder.
        InUseError: another process owns the study there.
        IntegrityError: what is kept there is no study's.
        StoreError: the store does not answer at the beginning.
    """
    if not store.remote:
        yield lambda: None
        return
    place = _place_of(study, store)
    owner = this_process(folder=str(study.path), silence_s=store.remote_silence_s)
    lease = acquire(place, owner, wait=wait, listen=listen)
    try:
        index = read_index(place)
        if index is not None:
            _receive(study, place, index)
    except BaseException:
        lease.say(ended=True)
        raise
    is_over: list[bool] = []
    uploads = Uploads(
        lease=lease,
        index=Index(study.name, index.groups if index else {}, (lease.number, 0)),
        wanted=lambda: _wanted(study, journal=bool(is_over)),
        is_passing=lambda _: False,
    )
    uploads.start()
    try:
        yield uploads.ask
    except BaseException:
        uploads.finish(patience_s=_LAST_WORD_S, at_most_s=_LAST_WORD_S)
        raise
    else:
        is_over.append(True)
        _tell_end(uploads, listen)
    finally:
        uploads.close()


def _place_of(study: StudyFolder, store: StoreConfig) -> Place:
    place = open_place(store.remote, f"{study.name}/{STUDY_PLACE}")
    if place.local and place.local.resolve().is_relative_to(study.path.resolve()):
        raise ConfigError(
            f"store.remote {store.remote} would keep study {study.name} within its own folder: "
            "name another one"
        )
    return place


def _own_files(study: StudyFolder, *, journal: bool) -> list[Path]:
    """Return the study's own files that are there; Optuna's journal is added to until the end."""
    named = [study.file, study.numbers, study.page, study.best, *([study.journal] * journal)]
    results = sorted((study.path / RESULTS).glob("*"))
    found = [*named, *(path for path in results if not path.name.startswith(UNFINISHED))]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _wanted(study: StudyFolder, *, journal: bool) -> Wanted:
    files = _own_files(study, journal=journal)
    return {_GROUP: {str(path.relative_to(study.path)): ToKeep(path) for path in files}}


def _receive(study: StudyFolder, place: Place, index: Index) -> None:
    """Receive what is not here; what is here stays, and is uploaded.

    Raises:
        IntegrityError: a path is not one of a study's, or a file is damaged.
    """
    own = (study.file, study.numbers, study.page, study.best, study.journal)
    names = {str(path.relative_to(study.path)) for path in own}
    for path, file in index.files().items():
        if path not in names and not (_RESULT.fullmatch(path) and ".." not in path):
            raise IntegrityError(
                f"{place.url} lists {path}, which no study has: nothing of it is received"
            )
        target = study.path / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            receive_file(place, path, file, target)


def _tell_end(uploads: Uploads, listen: Listener) -> None:
    why = uploads.finish(patience_s=_PATIENCE_S)
    for line in uploads.said():
        listen(WarningEvent(message=line))
    url = uploads.place.url
    if uploads.lost:
        raise uploads.lost
    if why:
        message = f"{url} does not have all of the study's own files: {why}. Call the same again"
        listen(WarningEvent(message=message))
    else:
        listen(NoteEvent(message=f"{url} has the study's own files as they are here"))
