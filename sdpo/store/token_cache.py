"""Find token files in the cache, and tell what is wrong with one."""

from pathlib import Path

from sdpo.store.kl_cache import NOT_CACHED
from sdpo.system.files import checksum_path, is_vouched_for


def cached_tokens(cache: Path, name: str) -> Path:
    """Return the path of the token file of this name."""
    return cache / "tokens" / f"{name}.arrow"


def token_fault(path: Path) -> str:
    """Return what is wrong with a cached token file, by the digest beside it; empty: nothing."""
    if not path.is_file() or not checksum_path(path).is_file():
        return NOT_CACHED
    return "" if is_vouched_for(path) else f"{path.name} in the cache was changed"
