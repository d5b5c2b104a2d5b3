"""Write files that are whole or absent, read them, and digest them."""

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
"""Opening gives these where there is no file: nothing, a folder, a link in a circle, a socket."""
NO_INODES = "no inodes are left"
"""An error says this of a disk that takes bytes but no more files."""

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""This escape may be half of a surrogate pair; the halves of a whole pair make one character."""

UNFINISHED = ".tmp-"
"""Unfinished names begin like this, whoever made them; nothing ever reads them."""

_OURS = re.compile(r"\.tmp-sdpo-.+-[0-9a-f]{32}")
_SMALL_BYTES = 2**16
_LONGEST_SEAL = 1000
"""The digest beside a file, with its name, has so many bytes at most."""
_LONGEST_NAME = 100
"""A temporary is named after so many bytes of a name: file systems end names at 255 bytes."""


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
    """Publish a folder like :func:`publish_file`; it must not exist yet unless ``replace``."""
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
    """Say of a full disk which one it is, and what it lacks: bytes or inodes.

    That is found out while the half-written file, whose removal makes room again, is still there. A
    write alone does not say where; safetensors gives words.
    """
    try:
        yield
    except Exception as error:
        number = out_of_space(error)
        if not number or (isinstance(error, OSError) and error.strerror == NO_INODES):
            raise
        why = NO_INODES if has_no_inodes(path.parent) else os.strerror(number)
        raise OSError(number, why, str(path)) from error


def out_of_space(error: BaseException) -> int:
    """Return ENOSPC or EDQUOT where that is what ``error`` says, else 0."""
    named = getattr(error, "errno", None)
    return next((n for n in _FULL if n == named or f"os error {n})" in str(error)), 0)


def has_no_inodes(folder: Path) -> bool:
    """Return whether the disk of ``folder`` has room for bytes but not for more files."""
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
    """Return what is unfinished below ``folder``, by names that this module made, sorted.

    Links are not followed. The name alone proves little in a folder that this project did not make.
    """
    return unfinished(folder)[0]


def unfinished(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return :func:`temporaries`, and what looks unfinished by a name that somebody else made."""
    ours: list[Path] = []
    others: list[Path] = []
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name.startswith(UNFINISHED):
                (ours if _OURS.fullmatch(name) else others).append(Path(where) / name)
        folders[:] = [name for name in folders if not name.startswith(UNFINISHED)]
    return sorted(ours), sorted(others)


def is_temporary(path: Path) -> bool:
    """Return whether a path has the name of something unfinished that this module made."""
    return _OURS.fullmatch(path.name) is not None


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """Yield a folder within ``place`` that is removed at the end of the block."""
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
    """Return a path beside ``path`` that nobody else uses: its name has 122 random bits."""
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
    """Publish ``value`` as indented JSON; NaN and infinities are refused by ValueError."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """Return indented JSON of ``value``; NaN and infinities are refused by ValueError."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the JSON value in ``path``: nested no deeper than Python can follow, of proper text.

    Raises:
        IntegrityError: the file is not JSON, or holds what no file of this kind does.
    """
    return json_of(read_small(str(path)), path)


def json_of(content: bytes, path: Path) -> Any:
    """Do as :func:`read_json` with a file whose bytes were read already."""
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
    """Return the sha256 of the bytes of a file."""
    with open(path, "rb", opener=_opened) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(path: Path) -> Path:
    """Return where the digest of a file is, in the form of ``sha256sum``."""
    return path.with_name(f"{path.name}.sha256")


def checksum_text(path: Path, digest: str = "") -> str:
    """Return what is written there: the file's digest, computed unless given, and its name."""
    return f"{digest or file_digest(path)}  {path.name}\n"


def seal(path: Path) -> None:
    """Write the digest of a file beside it, by which :func:`read_sealed` and others know it."""
    write_text(checksum_path(path), checksum_text(path))


def is_no_file(error: OSError) -> bool:
    """Return whether ``error`` says that what was to be opened is no file, or not there."""
    return error.errno in _NO_FILE


def is_vouched_for(path: Path) -> bool:
    """Return whether the digest beside a file is there and is that of the file as it is now."""
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
    """Return the bytes of a small file; None where it, or the digest beside it, is not there.

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
    """Return a file's bytes in as few system calls as possible: thousands are read so.

    ``at_most`` bounds their number.
    """
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
    """Open a descriptor to read from; a pipe in a file's place is empty, and not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below ``folder``, by its path relative to it, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): file_digest(p) for p in files}
