"""Files that are whole or absent, and their digests."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdpo.errors import IntegrityError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
"""What opening gives where there is no file: nothing, a folder, a link in a circle, a socket."""
NO_INODES = "no inodes are left"
"""What an error says of a disk that takes bytes, and no more files."""

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be half of a surrogate pair; the halves of a whole pair make one character."""

UNFINISHED = ".tmp-"
"""How names begin that are not finished, whoever made them; nothing ever reads them."""

_OURS = re.compile(r"\.tmp-sdpo-.+-[0-9a-f]{32}")
_SMALL_BYTES = 2**16
_LONGEST_SEAL = 1000
"""Bytes of the digest beside a file and its name, at most."""
_LONGEST_NAME = 100
"""Of what a temporary is named after: file systems end names at 255 bytes."""


@contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it takes the place of ``path``.

    The bytes are on the disk (fsync) before the rename, so ``path`` is always whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with _telling_which_disk(path):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def publish_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Like :func:`publish_file` for a folder, which must not exist yet unless ``replace``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = temporary_path(path), temporary_path(path)
    try:
        with _telling_which_disk(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_symlink():  # its permissions are those of what it leads to
                    continue
                if file.is_file():  # safetensors makes files that only their owner can read
                    file.chmod(0o666 & ~_umask())
                _sync(file)
            _sync(temporary)
        if replace and path.exists():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        remove(temporary)
        remove(old)


@contextmanager
def _telling_which_disk(path: Path) -> Iterator[None]:
    """Of a full disk, say which, and of what there is none: the half-written file, whose removal
    makes room again, is still there. A write alone does not say where; safetensors gives words."""
    try:
        yield
    except Exception as error:
        number = out_of_space(error)
        if not number or (isinstance(error, OSError) and error.strerror == NO_INODES):
            raise
        why = NO_INODES if has_no_inodes(path.parent) else os.strerror(number)
        raise OSError(number, why, str(path)) from error


def out_of_space(error: BaseException) -> int:
    """ENOSPC or EDQUOT where that is what ``error`` says, else 0."""
    named = getattr(error, "errno", None)
    return next((n for n in _FULL if n == named or f"os error {n})" in str(error)), 0)


def has_no_inodes(folder: Path) -> bool:
    """Whether the disk of ``folder`` has room for bytes, and for no more files."""
    found = os.statvfs(folder)
    return bool(found.f_files) and not found.f_favail


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as it can be; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def temporaries(folder: Path) -> list[Path]:
    """What is unfinished below ``folder`` by a name that this module made; links are not followed.

    The name alone says little of a folder that this project did not make.
    """
    return unfinished(folder)[0]


def unfinished(folder: Path) -> tuple[list[Path], list[Path]]:
    """:func:`temporaries`, and what looks unfinished by a name that somebody else made."""
    ours: list[Path] = []
    others: list[Path] = []
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name.startswith(UNFINISHED):
                (ours if _OURS.fullmatch(name) else others).append(Path(where) / name)
        folders[:] = [name for name in folders if not name.startswith(UNFINISHED)]
    return sorted(ours), sorted(others)


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A folder within ``place`` for what is gone at the end of the block."""
    folder = temporary_path(place / "scratch")
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def _umask() -> int:
    mask = os.umask(0o077)  # it cannot be read but by setting it, for other threads too
    os.umask(mask)
    return mask


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that nobody else has: 122 random bits tell it from a user's file."""
    name = path.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return path.parent / f"{UNFINISHED}sdpo-{name}-{uuid.uuid4().hex}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Publish ``text`` as UTF-8."""
    with publish_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Publish ``value`` as indented JSON; NaN and infinities are refused."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """Indented JSON of ``value``; NaN and infinities are refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The JSON value in ``path``: nested no deeper than Python can follow, of text that is text.

    Raises:
        IntegrityError: the file is not JSON, or holds what no file of this kind does.
    """
    return json_of(read_small(str(path)), path)


def json_of(content: bytes, path: Path) -> Any:
    """:func:`read_json` of a file whose bytes were read already."""
    try:
        text = content.decode()
        value = json.loads(text)
        if _HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        raise IntegrityError(
            f"{path} is damaged: it has text that is none (half a pair of \\u surrogates)"
        ) from error
    except RecursionError as error:
        raise IntegrityError(f"{path} is damaged: it is nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, an integer of thousands of digits
        raise IntegrityError(f"{path} is damaged: it is not JSON ({error})") from error


def file_digest(path: Path) -> str:
    """sha256 of the bytes of a file."""
    with open(path, "rb", opener=_opened) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(path: Path) -> Path:
    """Where the digest of a file stands, in the form of ``sha256sum``."""
    return path.with_name(f"{path.name}.sha256")


def checksum_text(path: Path, digest: str = "") -> str:
    """What stands there: the digest of the file as it is now, unless it is given, and its name."""
    return f"{digest or file_digest(path)}  {path.name}\n"


def is_no_file(error: OSError) -> bool:
    """Whether ``error`` says that what was to be opened is no file, or not there."""
    return error.errno in _NO_FILE


def is_vouched_for(path: Path) -> bool:
    """Whether the digest beside a file is there and is that of the file as it is now."""
    try:
        beside = read_small(f"{path}.sha256", at_most=_LONGEST_SEAL)
        with open(path, "rb", opener=_opened) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if is_no_file(error):
            return False
        raise
    return beside == f"{digest}  {path.name}\n".encode()


def read_sealed(path: Path) -> bytes | None:
    """The bytes of a small file; None where it, or the digest beside it, is not there.

    Raises:
        IntegrityError: the digest beside it is not that of these bytes.
    """
    try:
        beside = read_small(f"{path}.sha256", at_most=_LONGEST_SEAL)
        content = read_small(str(path))
    except OSError as error:
        if is_no_file(error):
            return None
        raise
    if beside != f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode():
        name = checksum_path(path).name
        raise IntegrityError(f"{path} was changed after it was written, or {name} was")
    return content


def read_small(path: str, *, at_most: int | None = None) -> bytes:
    """A file's bytes in as few calls of the system as there can be: thousands are read so."""
    handle = _opened(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if at_most is not None:
            return os.read(handle, at_most)
        parts = []
        while part := os.read(handle, _SMALL_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def _opened(path: str, flags: int) -> int:
    """A descriptor to read from; a pipe in a file's place is empty, and not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def folder_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``, by its path relative to it, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): file_digest(p) for p in files}
