"""A folder that several processes begin at once is theirs; an unfinished marker is nobody's."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from sdpo.errors import ForeignFolderError
from sdpo.system import ownership
from sdpo.system.ownership import MARKER, check, claim, is_marked

NO_PROOF = {"kind": "cache", "proof": lambda _: False}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder whose marker was made and has nothing in it yet."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / MARKER).touch()
    return folder


@pytest.mark.parametrize("look", [check, claim])
def test_who_comes_between_a_marker_and_its_content_waits_for_it(
    begun: Path, tmp_path: Path, look: Callable[..., None]
) -> None:
    claim(tmp_path / "other", **NO_PROOF)
    content = (tmp_path / "other" / MARKER).read_bytes()
    writer = threading.Timer(0.2, partial((begun / MARKER).write_bytes, content))
    started = time.monotonic()
    writer.start()
    look(begun, **NO_PROOF)
    assert time.monotonic() - started >= 0.2
    assert is_marked(begun, "cache")


@pytest.mark.parametrize("look", [check, claim])
def test_a_marker_that_stays_empty_is_nobodys(
    begun: Path, look: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_WRITTEN_S", 0.05)
    with pytest.raises(ForeignFolderError, match=r"no \.sdpo\.json of its own"):
        look(begun, **NO_PROOF)
    assert (begun / MARKER).read_bytes() == b""


def test_all_who_claim_a_folder_at_once_have_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(25):
            folder = tmp_path / str(number)
            claims = [pool.submit(claim, folder, **NO_PROOF) for _ in range(8)]
            assert [each.result(timeout=30) for each in claims] == [None] * 8
            assert is_marked(folder, "cache")
