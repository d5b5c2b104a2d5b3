"""Rows of one cache entry are shared out among the processes that score at the same time."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdpo.store.logp_cache import LogpCache, rows_by_run
from sdpo.store.row_claims import claimed

KEY: dict[str, str | int] = {"model": "m"}


def digests(*numbers: int) -> NDArray[np.bytes_]:
    return np.array([f"{number:016d}".encode() for number in numbers], dtype="S16")


def write(cache: LogpCache, *numbers: int) -> None:
    values = np.array(numbers, dtype=np.float32)
    cache.add(digests(*numbers), values, -values)


def leftovers(cache: LogpCache) -> list[Path]:
    return [path for path in cache.folder.parent.rglob(".*") if path.is_file()]


def test_who_comes_second_gets_what_the_first_has_not_claimed_and_reads_the_rest(
    tmp_path: Path,
) -> None:
    first, second = LogpCache(tmp_path, KEY), LogpCache(tmp_path, KEY)
    write(first, 1)
    with claimed(first, digests(1, 2, 3)) as one:
        assert one.cached.tolist() == [True, False, False]
        assert one.mine.tolist() == [False, True, True]
        with claimed(second, digests(1, 2, 3, 4)) as two:
            assert two.cached.tolist() == [True, False, False, False]
            assert two.mine.tolist() == [False, False, False, True]
            write(second, 4)
        write(first, 2, 3)
    with claimed(second, digests(2, 3, 4)) as three:
        assert three.cached.all()
    assert leftovers(first) == []


def test_what_a_claim_that_was_given_up_held_is_free_again(tmp_path: Path) -> None:
    cache = LogpCache(tmp_path, KEY)
    with claimed(cache, digests(1)):
        pass  # it failed before it wrote
    with claimed(cache, digests(1)) as again:
        assert again.mine.all()


def hold_for_ever(root: Path, ready: int) -> None:
    with claimed(LogpCache(root, KEY), digests(1, 2)):
        os.write(ready, b".")
        signal.pause()


def test_the_claim_of_a_process_that_died_holds_nothing(tmp_path: Path) -> None:
    read, write_end = os.pipe()
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=hold_for_ever, args=(tmp_path, write_end))
    holder.start()
    os.read(read, 1)
    cache = LogpCache(tmp_path, KEY)
    with claimed(cache, digests(1, 2, 3)) as found:
        assert found.mine.tolist() == [False, False, True]
    holder.kill()
    holder.join()
    with claimed(cache, digests(1, 2, 3)) as found:
        assert found.mine.all()
    assert leftovers(cache) == []


def test_parts_say_for_which_run_they_were_scored_and_read_alike(tmp_path: Path) -> None:
    marked = LogpCache(tmp_path, KEY, scored_for="a-run")
    write(marked, 1, 2)
    write(LogpCache(tmp_path, KEY), 3)
    found = sorted(rows_by_run(part) for part in marked.folder.glob("*.parquet"))
    assert found == [(1, ""), (2, "a-run")]
    assert LogpCache(tmp_path, KEY).lookup(digests(1, 2, 3)).chosen.tolist() == [1, 2, 3]
