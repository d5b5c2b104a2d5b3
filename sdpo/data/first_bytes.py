"""Tell what a file is by its first bytes, where its name says something else."""

from pathlib import Path

from sdpo.errors import DataError

_ZEROS = 4096
_UNPACK = "unpack it, or compress it with gzip (.gz)"
_MAGIC: dict[bytes, tuple[str, tuple[str, ...], str]] = {
    b"\x1f\x8b": ("compressed with gzip", (".gz",), "give it the ending .gz, or unpack it"),
    b"PK\x03\x04": (
        "a zip archive, or a spreadsheet (.xlsx)",
        (),
        "unpack it; save a sheet as `CSV UTF-8`",
    ),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", (), _UNPACK),
    b"BZh": ("compressed with bzip2", (), _UNPACK),
    b"\xfd7zXZ\x00": ("compressed with xz", (), _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", (), _UNPACK),
    b"PAR1": ("a Parquet file", (".parquet",), "give it the ending .parquet"),
    b"ARROW1": ("an Arrow file", (".arrow", ".feather", ".ipc"), "give it the ending .arrow"),
    b"SQLite format 3": ("an SQLite database", (), "save its table as JSONL, CSV or Parquet"),
    b"\x89HDF": ("an HDF5 file", (), "save it as JSONL, CSV or Parquet"),
    b"Obj\x01": ("an Avro file", (), "save it as JSONL, CSV or Parquet"),
    b"%PDF": ("a PDF document", (), "save its table as JSONL, CSV or Parquet"),
}
"""First bytes tell what a file is, with which endings it is read, and what to do."""


def check_written(path: Path) -> None:
    """Refuse a file that begins with nothing but zero bytes, before it is read to its end.

    A copy that was broken off, or a disk after a crash, leaves such a file: of any size, and with
    none of it on the disk.

    Raises:
        DataError: it is such a file.
    """
    with path.open("rb") as file:
        start = file.read(_ZEROS)
    if len(start) == _ZEROS and not any(start):
        raise DataError(
            f"{path} begins with {_ZEROS:,} zero bytes, as a file that was never written to its "
            "end does: copy it again from where it came"
        )


def check_first_bytes(path: Path) -> None:
    """Refuse what is in a file's place instead of its data, or under another ending.

    Raises:
        DataError: the message says what it is, and what to do.
    """
    with path.open("rb") as file:
        raw = file.read(64)
    start = raw.lstrip()
    for beginning, (kind, endings, remedy) in _MAGIC.items():
        if raw.startswith(beginning) and not path.name.lower().endswith(endings):
            raise DataError(
                f"{path} is {kind} by its first bytes, whatever its name says: {remedy}"
            )
    is_text = not path.name.lower().endswith((".parquet", ".arrow", ".gz"))
    if is_text and (raw[1:4:2] == b"\0\0" or raw[0:3:2] == b"\0\0"):
        raise DataError(
            f"{path} is UTF-16 without the mark that says so, by its first bytes: save it as UTF-8"
        )
    if start.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a Git LFS pointer and not the data: fetch the file itself with `git lfs "
            "pull` in its folder, or download it again"
        )
    if start.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{path} is a web page and not data (an error or a login page, as a rule): download "
            "the file itself"
        )
