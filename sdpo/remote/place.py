"""Read and write objects of a remote store, through fsspec, at the place of one run.

Whatever the file system raises becomes a :class:`StoreError` that names the object and the reason.
"""

import base64
import inspect
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sdpo.config.impossible import impossible_remote
from sdpo.errors import ConfigError, StoreError
from sdpo.system.files import publish_file, temporary_path

_CHUNK_BYTES = 64 * 2**20
"""S3 gets an object in parts of this size, and one of less than two parts in one request."""
_MEMORY = threading.Lock()
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}},
}
"""A store that does not answer is tried again by who asks, so that nobody waits long for it."""
_USE = "Use s3://, gs://, abfs:// or, for a folder, file://"


@dataclass(frozen=True, slots=True)
class Place:
    """A place is where a store keeps one run.

    ``url`` names it to a person; ``root`` is its path in ``fs``.
    """

    url: str
    root: str
    fs: Any = field(repr=False)

    @property
    def local(self) -> Path | None:
        """Return the folder of this machine that it is, where it is one."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object where there is none, and return whether there was none.

        Of several processes that do so at once, one succeeds.

        Raises:
            StoreError: the store did not answer, or refused.
        """
        path = self._path(name)
        with self._telling(name):
            try:
                if self.local:
                    _create_file(Path(path), content)
                elif _protocols(self.fs) & {"memory"}:
                    with _MEMORY:  # its own look and its write are two
                        self.fs.pipe_file(path, content, mode="create")
                else:
                    self.fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _is_precondition(error):
                    return False
                raise
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, in place of one that is there.

        Raises:
            StoreError: the store did not answer, or refused.
        """
        with self._telling(name):
            if self.local:
                with publish_file(Path(self._path(name))) as temporary:
                    temporary.write_bytes(content)
            else:
                self.fs.pipe_file(self._path(name), content)

    def read(self, name: str, *, at_most: int = 2**26) -> bytes | None:
        """Return the bytes of an object; None where there is none.

        Raises:
            StoreError: the store did not answer, refused, or has more than ``at_most`` bytes there.
        """
        with self._telling(name):
            size = self._size(name)
            if size is None:
                return None
            if size > at_most:
                raise StoreError(f"{self.url}/{name} has {size} bytes, which nothing here wrote")
            try:
                content: bytes = self.fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def names(self, folder: str = "") -> list[str]:
        """Return the names of what is in a folder of the place, sorted.

        Raises:
            StoreError: the store did not answer, or refused.
        """
        with self._telling(folder):
            try:
                found = self.fs.ls(self._path(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            names = (str(path).rstrip("/").rsplit("/", maxsplit=1)[-1] for path in found)
            return sorted(name for name in names if name)

    def size(self, name: str) -> int | None:
        """Return how many bytes an object has; None where there is none.

        Raises:
            StoreError: the store did not answer, or refused.
        """
        with self._telling(name):
            return self._size(name)

    def put(self, file: Path, name: str, *, sha256: str) -> None:
        """Upload ``file``, whose digest the store checks where it can.

        Raises:
            StoreError: the store did not answer, refused, or is full.
            FileNotFoundError: the file is gone.
        """
        size = file.stat().st_size
        more: dict[str, Any] = {}
        if self._is_s3:
            more["chunksize"] = _CHUNK_BYTES
            if size < 2 * _CHUNK_BYTES:
                more |= {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": _base64(sha256)}
        with self._telling(name):
            if self.local:
                with publish_file(Path(self._path(name))) as temporary:
                    shutil.copyfile(file, temporary)
            else:
                self.fs.put_file(str(file), self._path(name), **more)

    def get(self, name: str, target: Path) -> bool:
        """Download an object, and return whether there is one.

        Raises:
            StoreError: the store did not answer, or refused.
        """
        with self._telling(name):
            try:
                self.fs.get_file(self._path(name), str(target))
            except FileNotFoundError:
                return False
        return True

    def delete(self, name: str) -> None:
        """Remove an object, if it is there.

        Raises:
            StoreError: the store did not answer, or refused.
        """
        with self._telling(name), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def is_proved(self, name: str, *, sha256: str) -> bool | None:
        """Return whether the store's own checksum of an object is ``sha256``; None: it has none.

        An ETag is no digest, and neither is the checksum of an object that came in parts.

        Raises:
            StoreError: the store did not answer, or refused.
        """
        if not self._is_s3:
            return None
        bucket, key = self._path(name).split("/", maxsplit=1)
        with self._telling(name):
            head = self.fs.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        found = str(head.get("ChecksumSHA256") or "")
        if not found or "-" in found or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
            return None
        return found == _base64(sha256)

    @property
    def _is_s3(self) -> bool:
        return bool(_protocols(self.fs) & {"s3", "s3a"})

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _size(self, name: str) -> int | None:
        try:
            found = self.fs.info(self._path(name))
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Make of what a file system raises an error that names the object."""
        try:
            yield
        except (StoreError, KeyboardInterrupt):
            raise
        except Exception as error:
            where = f"{self.url}/{name}".rstrip("/")
            raise StoreError(f"{where}: {_reason(error)}") from error


def open_place(url: str, name: str) -> Place:
    """Return the place of run ``name`` in the store at ``url``; nothing is asked of it yet.

    Raises:
        ConfigError: ``url`` cannot be a store of runs: it is none, it has credentials in it, its
            file system is not installed or cannot create an object only where there is none.
    """
    for problem in impossible_remote(url):
        raise ConfigError(problem)
    protocol = url.split("://", maxsplit=1)[0]
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = _PACKAGES.get(protocol, "")
        how = f"pip install {package}" if package else f"install what it needs ({error})"
        raise ConfigError(f"store.remote {url}: {how}") from error
    except ValueError as error:
        raise ConfigError(f"store.remote {url}: {protocol}:// is not known. {_USE}") from error
    if not (issubclass(kind, LocalFileSystem) or _creates_exclusively(kind)):
        raise ConfigError(
            f"store.remote {url}: the file system of {protocol}:// cannot write an object on the "
            f"condition that there is none, so that two machines could own one run. {_USE}"
        )
    try:
        more = _OPTIONS.get(protocol, {})
        fs, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **more)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"store.remote {url} cannot be opened: {error}") from error
    where = f"{root.rstrip('/')}/{name}".rstrip("/")
    return Place(url=f"{url.rstrip('/')}/{name}".rstrip("/"), root=where, fs=fs)


def names_in(url: str) -> list[str]:
    """Return the names of runs that the store at ``url`` may have.

    Raises:
        ConfigError, StoreError: as :func:`open_place` and :meth:`Place.names`.
    """
    place = open_place(url, "")
    return [name for name in place.names() if not name.startswith(".")]


def _creates_exclusively(kind: type[Any]) -> bool:
    """Return whether a file system has a conditional write of its own.

    fsspec's default looks first and writes then: another process may come between the two.
    """
    if _protocols(kind) & {"reference"}:
        return False
    for name in ("_pipe_file", "pipe_file"):
        own = getattr(kind, name, None)
        if own is None or own.__module__.startswith(("fsspec.spec", "fsspec.asyn")):
            continue
        return "mode" in inspect.signature(own).parameters
    return False


def _protocols(fs: Any) -> set[str]:
    named = fs.protocol
    return {named} if isinstance(named, str) else set(named)


def _create_file(path: Path, content: bytes) -> None:
    """Create a file with its content whole: a link to a finished file is made or refused at once.

    Raises:
        FileExistsError: there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(content)
        os.link(temporary, path)
    except PermissionError:  # a file system without hard links
        with path.open("xb") as file:
            file.write(content)
    finally:
        temporary.unlink(missing_ok=True)


def _is_precondition(error: OSError) -> bool:
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("PreconditionFailed", "412")


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
