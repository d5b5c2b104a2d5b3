"""Receive files of a run from a store: nothing counts that is not what its digest says."""

import shutil
from pathlib import Path

from sdpo.errors import DiskFullError, IntegrityError
from sdpo.remote.index import Group, KeptFile, object_of
from sdpo.remote.place import Place
from sdpo.system.files import file_digest, publish_file


class DamagedObjectError(IntegrityError):
    """An object of the store is gone, or is not what its name says; ``sha256`` is its name."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


def check_room(group: Group, folder: Path) -> None:
    """Refuse to receive more than the disk of ``folder`` has room for.

    Raises:
        DiskFullError: it has not.
    """
    needed, free = sum(file.bytes for file in group.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{folder} has {free / 1e9:.1f} GB free, and what is to be received has "
            f"{needed / 1e9:.1f} GB"
        )


def receive_file(place: Place, path: str, file: KeptFile, target: Path) -> None:
    """Publish ``target``, which ``path`` names to a person, unless it is there already.

    Raises:
        DamagedObjectError: what the store has is something else.
        StoreError: the store did not answer.
    """
    if target.is_file() and not target.is_symlink() and file_digest(target) == file.sha256:
        return
    name = object_of(file.sha256)
    with publish_file(target) as temporary:
        size = place.size(name)
        if size != file.bytes:
            what = "is gone" if size is None else f"has {size} bytes and not {file.bytes}"
            raise _damaged(place, path, file, what)
        if not place.get(name, temporary):
            raise _damaged(place, path, file, "is gone")
        if file_digest(temporary) != file.sha256:
            raise _damaged(place, path, file, "was changed")


def _damaged(place: Place, path: str, file: KeptFile, what: str) -> DamagedObjectError:
    return DamagedObjectError(
        f"{path} in the store {what} ({place.url}/{object_of(file.sha256)})", file.sha256
    )
