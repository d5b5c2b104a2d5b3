"""Name the files of KL measurements in the cache, and tell what is wrong with one."""

from pathlib import Path

from sdpo.errors import Fault
from sdpo.identity.canonical import digest_of
from sdpo.system.files import file_digest, read_json

KL_FILES = ("kl.parquet", "samples.parquet")
KEY_FILE = "key.json"
"""This file is written last: what a measurement depends on, and the digests of its files."""
NOT_CACHED = "not cached"
"""This is wrong with what is not there, or not done yet."""


def cached_fault(folder: Path) -> str:
    """Return what is wrong with a cached measurement; empty: nothing."""
    if not (folder / KEY_FILE).is_file():
        return NOT_CACHED
    try:
        content = read_json(folder / KEY_FILE)
        if digest_of(content["identity"])[:32] != folder.name:
            return f"{KEY_FILE} was changed"
        for name, digest in content["files"].items():
            if file_digest(folder / name) != digest:
                return f"{name} was changed"
    except (Fault, OSError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return ""
