"""Check what a remote store has of a run: is every file there, and by which proof is it whole?"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdpo.chain.received import check_index
from sdpo.errors import UserError
from sdpo.events import Listener, ProgressEvent
from sdpo.history.faults import Findings
from sdpo.history.pull import Kept, find_kept, is_url
from sdpo.history.target import locate_run
from sdpo.remote.index import KeptFile, object_of
from sdpo.remote.place import Place
from sdpo.store.kept_files import kept_files, read_remote
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.system.files import file_digest

Proof = Literal["downloaded", "checksum", "size"]
PROOFS: dict[Proof, str] = {
    "downloaded": "downloaded and hashed",
    "checksum": "proved by the store's checksum",
    "size": "by its size only",
}
_AGAIN = "`sdpo resume` with the run's name, where it is whole, uploads it again"


@dataclass(frozen=True, slots=True)
class RemoteFindings:
    """These are the faults and notes of a run in a store, and by which proof each file is whole."""

    url: str
    findings: Findings
    proofs: dict[str, Proof]


def verify_remote(
    target: str, *, runs_dir: Path, deep: bool, listen: Listener = lambda event: None
) -> RemoteFindings:
    """Return what is wrong with a run as a store has it; nothing is written here or there.

    ``target``: a run here, which says where it is kept and is compared with that, or its URL. With
    ``deep``, every file is downloaded and hashed.

    Raises:
        UserError: there is no such run, or it is not kept anywhere.
        StoreError: the store does not answer.
        IntegrityError: the store's list of files is damaged.
    """
    run = None if is_url(target) else locate_run(target, runs_dir=runs_dir)
    kept = find_kept(target if run is None else f"{_store_of(run)}/{run.name}")
    named = run or RunFolder(runs_dir / kept.index.run)
    check_index(named, kept.place, kept.index)
    findings, proofs = Findings(), dict[str, Proof]()
    files = kept.index.files()
    findings.files, findings.records = len(files), len(kept.index.groups)
    with tempfile.TemporaryDirectory(prefix="sdpo-") as folder:
        for done, (path, file) in enumerate(sorted(files.items()), start=1):
            proof = _check(kept.place, path, file, findings, Path(folder) if deep else None)
            proofs |= {path: proof} if proof else {}
            listen(
                ProgressEvent(
                    phase=f"verify {kept.place.url}",
                    done=done,
                    total=len(files),
                    unit="files",
                    note=path,
                )
            )
    if run:
        _compare(run, kept, findings)
    return RemoteFindings(kept.place.url, findings, proofs)


def _store_of(run: RunFolder) -> str:
    said = read_remote(run)
    url = said.url if said else read_stored(run).config.store.remote
    if not url:
        raise UserError(f"run {run.name} is kept in no store: its store.remote is empty")
    return url


def _check(
    place: Place, path: str, file: KeptFile, findings: Findings, folder: Path | None
) -> Proof | None:
    """Check one file, and return by which proof it is whole; None: it is not."""
    name = object_of(file.sha256)
    size = place.size(name)
    if size != file.bytes:
        what = f"has {size} bytes there, and not {file.bytes}"
        findings.fault(path, "is missing there" if size is None else what, _AGAIN)
        return None
    if folder is not None:
        target = folder / "object"
        is_whole = place.get(name, target) and file_digest(target) == file.sha256
        proof: Proof = "downloaded"
    else:
        proved = place.is_proved(name, sha256=file.sha256)
        is_whole, proof = proved is not False, "size" if proved is None else "checksum"
    if not is_whole:
        findings.fault(path, "was changed there", _AGAIN)
        return None
    return proof


def _compare(run: RunFolder, kept: Kept, findings: Findings) -> None:
    """Say which nodes are complete here and not there, or other ones."""
    for name, files in kept_files(run, states=False).items():
        there = kept.index.groups.get(name)
        if there is None:
            findings.fault(name, "is complete here, and not there", _AGAIN)
            continue
        for path, (file, recorded) in files.items():
            digest = recorded or (file_digest(file) if file.is_file() else "")
            if path not in there or there[path].sha256 != digest:
                findings.fault(path, "is another one here than there", _AGAIN)
    for name in kept.index.groups.keys() - kept_files(run, states=True).keys():
        findings.note(f"{name} is there, and not here: `sdpo pull` receives it")
