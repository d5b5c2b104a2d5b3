"""A file that another machine wrote is read once it is seen as it was written."""

import threading
import time
from pathlib import Path

from sdpo.system.seen import as_here, is_seen, unseen


def later(path: Path, *contents: bytes) -> threading.Thread:
    """Write these contents to a file, one after the other, as a lagging file system shows them."""

    def write() -> None:
        for content in contents:
            time.sleep(0.15)
            path.write_bytes(content)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_a_file_that_comes_late_and_in_parts_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"whole")
    expected = as_here(tmp_path / "plan")
    (tmp_path / "plan").unlink()
    writing = later(tmp_path / "plan", b"", b"who", b"whale", b"whole")
    assert unseen(expected, patience_s=10) == []
    assert (tmp_path / "plan").read_bytes() == b"whole"
    writing.join()


def test_what_does_not_come_is_named_and_waiting_can_be_ended(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(10))
    expected = as_here(tmp_path / "model")
    assert [file.path.name for file in expected] == ["model", "weights"]
    assert all(is_seen(file) for file in expected)
    (tmp_path / "model" / "weights").write_bytes(bytes(9))
    assert unseen(expected, patience_s=0.2) == expected[1:]
    start = time.monotonic()
    assert unseen(expected, patience_s=60, go_on=lambda: False) == expected[1:]
    assert time.monotonic() - start < 5


def test_a_large_file_is_known_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(2 << 20))
    (file,) = as_here(tmp_path / "weights")
    assert file.size == 2 << 20
    assert file.sha256 == ""
    assert is_seen(file)
