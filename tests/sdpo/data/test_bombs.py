"""Data that is small and stands for much, or that Python cannot hold."""

import gzip
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo.data import readers
from sdpo.data.readers import read_rows
from sdpo.errors import DataError
from sdpo.inputs.locate import data_digest

MIB = 2**20


def zipped(path: Path, parts: Iterator[bytes]) -> str:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
    assert path.stat().st_size < 3 * MIB
    return str(path)


def one_line() -> Iterator[bytes]:
    yield b'{"prompt": "'
    for _ in range(80):
        yield b"a" * MIB
    yield b'"}\n'


def blank_lines() -> Iterator[bytes]:
    for _ in range(48):
        yield b"\n" * MIB


def rows() -> Iterator[bytes]:
    row = b'{"prompt": "' + b"a" * 200_000 + b'"}\n'
    for _ in range(250):
        yield row


BOMBS = {"one line": one_line, "blank lines": blank_lines, "rows": rows}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.json.gz", "bomb.csv.gz"])
def test_a_small_file_that_grows_is_refused_in_bounded_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str, name: str
) -> None:
    monkeypatch.setattr(readers, "_UNPACKED_BYTES", 32 * MIB)
    monkeypatch.setattr(readers, "_MOST_GROWTH", 20)
    path = zipped(tmp_path / name, BOMBS[bomb]())
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb\.\w+\.gz"):
        for _ in read_rows(path):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 20
    assert peak < 400 * MIB


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz"])
def test_a_file_that_is_a_hole_of_a_terabyte_is_refused_before_it_is_read(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"sparse.{ending}"
    with path.open("wb") as file:
        file.truncate(2**40)
    for read in (lambda: data_digest(str(path), ""), lambda: next(iter(read_rows(str(path))))):
        with pytest.raises(DataError, match=r"begins with 4,096 zero bytes"):
            read()


def test_a_gzip_file_of_ordinary_text_is_read(tmp_path: Path) -> None:
    lines = (json.dumps({"prompt": f"What is {k}?"}).encode() + b"\n" for k in range(1_000))
    path = zipped(tmp_path / "data.jsonl.gz", lines)
    assert [row["prompt"] for _, row in read_rows(path)][-1] == "What is 999?"


def test_blank_lines_between_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n\n  \n\r\n{"a": 2}\n\n')
    assert [(n, row["a"]) for n, row in read_rows(str(path))] == [(1, 1), (5, 2)]


ODD = {
    "integer": '{"a": ' + "9" * 5_000 + "}",
    "deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "half": '{"\\ud800": 1}',
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", ["odd.jsonl", "odd.json"])
def test_json_that_python_cannot_hold_is_one_message(
    tmp_path: Path, name: str, content: str
) -> None:
    path = tmp_path / name
    path.write_text(f"[{content}]" if name == "odd.json" else content)
    with pytest.raises(DataError, match=rf"{name}, (line|row) \d") as refused:
        list(read_rows(str(path)))
    str(refused.value).encode()


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", '{"splits": 5}', '{"splits": [1]}', "[" * 100_000, "{", '"x"']
)
def test_a_list_of_splits_of_another_shape_is_one_message(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset_dict\.json does not list the splits"):
        list(read_rows(str(tmp_path)))
