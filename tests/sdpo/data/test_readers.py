"""Reading rows: every kind of file, and errors that say where."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdpo.data import json_array
from sdpo.data.readers import default_name, place, read_rows
from sdpo.errors import DataError

STRANGE = [
    "2020-01-01",
    "2020-01-01T00:00:00Z",
    "NA",
    "null",
    "007",
    "1e5",
    "",
    " edges \t",
    "line\nbreak\r\nand\rreturn",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\x00\x01\x7f\x80\x93",
    "\ufeffinside\ufeff",
    "zero\u200bwidth\u200d\ufe0f",
    "👩‍👩‍👧‍👦 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "ﬁ Å Å e\u0301 中文 العربية",
    'quo"te, comma; tab\t </s> \\n',
    "\ufffd",
]
ROWS = [{"prompt": text, "chosen": f"{text}c", "rejected": f"{text}r"} for text in STRANGE]


def save(rows, path):
    """Write ``rows`` as the kind of file that ``path`` names."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        content = text.encode()
    elif name.endswith("array.json"):
        content = json.dumps(rows, indent=1).encode()
    elif name.endswith("columns.json"):
        content = json.dumps({key: [row[key] for row in rows] for key in rows[0]}).encode()
    elif name.endswith("data.json"):
        content = json.dumps({"version": 1, "data": rows}).encode()
    elif name.endswith("lines.json"):
        content = "\n".join(json.dumps(row) for row in rows).encode()
    elif name.endswith((".csv", ".tsv")):
        mark = "\t" if name.endswith(".tsv") else ","
        quoted = [list(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
        content = "".join(
            mark.join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n"
            for line in quoted
        ).encode()
    else:
        table = pa.Table.from_pylist(rows)
        if name.endswith(".parquet"):
            pq.write_table(table, path)
        else:
            new = pa.ipc.new_stream if "stream" in name else pa.ipc.new_file
            with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=5)
        return str(path)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.JSONL",
        "a.ndjson",
        "a.jsonl.gz",
        "array.json",
        "array.json.gz",
        "columns.json",
        "data.json",
        "lines.json",
        "a.csv",
        "a.csv.gz",
        "a.tsv",
        "a.parquet",
        "file.arrow",
        "stream.arrow",
    ],
)
def test_every_kind_of_file_gives_the_same_rows_with_their_text_unchanged(name, tmp_path):
    path = save(ROWS, tmp_path / name) if name != "a.JSONL" else save_as(ROWS, tmp_path / name)
    assert [row for _, row in read_rows(path)] == ROWS


def save_as(rows, path):
    save(rows, path.with_suffix(".jsonl"))
    path.with_suffix(".jsonl").rename(path)
    return str(path)


def test_rows_are_numbered_by_line_in_line_based_files_and_from_0_elsewhere(tmp_path):
    rows = [{"a": "1\n2"}, {"a": "3"}]
    assert [n for n, _ in read_rows(save(rows, tmp_path / "x.jsonl"))] == [1, 2]
    assert [n for n, _ in read_rows(save(rows, tmp_path / "x.csv"))] == [2, 4]
    assert [n for n, _ in read_rows(save(rows, tmp_path / "x.parquet"))] == [0, 1]
    assert [n for n, _ in read_rows(save(rows, tmp_path / "array.json"))] == [0, 1]
    assert place("d/x.jsonl.gz", 3) == "d/x.jsonl.gz, line 3"
    assert place("d/x.parquet", 3) == "d/x.parquet, row 3"


def test_saved_data_sets_are_read_by_split(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([3, 1])}).save_to_disk(
        str(tmp_path / "both")
    )
    assert [row for _, row in read_rows(str(tmp_path / "one"))] == ROWS
    assert [row for _, row in read_rows(str(tmp_path / "both"))] == ROWS
    both = list(read_rows(str(tmp_path / "both"), split="test"))
    assert both == [(0, ROWS[3]), (1, ROWS[1])]
    with pytest.raises(DataError, match="no split `dev`, but: train, test"):
        read_rows(str(tmp_path / "both"), split="dev")


def test_a_folder_of_data_files_is_read_in_order_of_names_and_by_split(tmp_path):
    for index in (2, 0, 1):
        save([ROWS[index]], tmp_path / f"train-0000{index}.parquet")
    save([ROWS[5]], tmp_path / "test-00000.parquet")
    (tmp_path / "README.md").write_text("not data")
    assert list(read_rows(str(tmp_path))) == list(enumerate(ROWS[:3]))
    assert list(read_rows(str(tmp_path), split="test")) == [(0, ROWS[5])]
    with pytest.raises(DataError, match="no file of the split `dev`, but of: test, train"):
        read_rows(str(tmp_path), split="dev")


HUB_SPLITS = ["test_prefs", "test_sft", "train_gen", "train_prefs", "train_sft"]


def test_shards_of_a_split_are_of_exactly_that_split(tmp_path):
    for index, name in enumerate(HUB_SPLITS):
        (tmp_path / "data").mkdir(exist_ok=True)
        save([ROWS[index]], tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    for split in ("train", "test"):
        with pytest.raises(DataError, match=f"split `{split}`, but of: {', '.join(HUB_SPLITS)}"):
            read_rows(str(tmp_path), split=split)
    assert list(read_rows(str(tmp_path), split="train_prefs")) == [(0, ROWS[3])]


def test_files_of_several_splits_are_not_read_as_one(tmp_path):
    save([ROWS[0]], tmp_path / "train_prefs.parquet")
    assert list(read_rows(str(tmp_path))) == [(0, ROWS[0])]
    save([ROWS[1]], tmp_path / "train_sft.parquet")
    with pytest.raises(DataError, match="but of: train_prefs, train_sft"):
        read_rows(str(tmp_path))
    save([ROWS[2]], tmp_path / "train.parquet")
    assert list(read_rows(str(tmp_path))) == [(0, ROWS[2])]


TABLE = [{"prompt": "Q; a|b?", "chosen": "yes", "rejected": 'no, "not"'}] * 2
ENCODED = '"Q; a|b?"{0}"yes"{0}"no, ""not"""'


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("index", ["none", "named nothing", "not in the header", "sep"])
def test_csv_is_read_as_pandas_r_and_spreadsheets_write_it(
    separator, newline, encoding, index, tmp_path
):
    row, header = ENCODED.format(separator), separator.join(["prompt", "chosen", "rejected"])
    rows = [row, row]
    if index in ("named nothing", "not in the header"):
        rows = [f'"{number}"{separator}{row}' for number in (1, 2)]
        header = f'""{separator}{header}' if index == "named nothing" else header
    lead = [f"sep={separator}"] if index == "sep" else []
    path = tmp_path / "a.csv"
    path.write_bytes(newline.join([*lead, header, *rows, ""]).encode(encoding))
    start = 3 if index == "sep" else 2
    assert list(read_rows(str(path))) == list(enumerate(TABLE, start=start))


def test_pandas_own_csv_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(TABLE).to_csv(tmp_path / "a.csv")
    pandas.DataFrame(TABLE).to_csv(tmp_path / "b.csv", sep=";", index=False, encoding="utf-16")
    for name in ("a.csv", "b.csv"):
        assert [row for _, row in read_rows(str(tmp_path / name))] == TABLE


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_what_stands_in_place_of_data_is_named(name, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    for content, message in (
        (pointer, "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>", "web"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize("indent", [1, 4])
@pytest.mark.parametrize("value", [{"prompt": "Q"}, [{"prompt": "Q"}], [[1]]])
def test_json_over_several_lines_in_a_jsonl_file_says_what_to_do(indent, value, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(value, indent=indent))
    with pytest.raises(DataError, match=r"line 1 ends in .*over several lines.*\.json"):
        list(read_rows(str(path)))


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b'\n{"a": "2"}\n'])
@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b'{"a": "x', "a text"),
        (b'{"a": "x \\', "a text"),
        (b'{"a": "1", ', "an object"),
        (b'{"a": [{"b": 1}', "an object"),
        (b"[1", "a list"),
    ],
)
def test_a_record_that_was_cut_off_is_not_told_as_json_over_several_lines(
    beginning, kind, ending, tmp_path
):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + GOOD + beginning + ending)
    cut = rf"line 3 ends in the middle of {kind}: .* cut off; complete it or delete the line$"
    with pytest.raises(DataError, match=cut):
        list(read_rows(str(path)))


def test_a_first_line_that_ends_in_a_text_was_cut_off_as_json_breaks_no_line_there(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "x\n' + GOOD)
    with pytest.raises(DataError, match=r"line 1 ends in the middle of a text: .* cut off"):
        list(read_rows(str(tmp_path / "a.jsonl")))


def test_a_byte_order_mark_and_empty_lines_are_no_rows(tmp_path):
    for name, text in (
        ("a.jsonl", '{"a": "1"}\r\n\r\n \n{"a": "2"}'),
        ("a.json", '[{"a": "1"}, {"a": "2"}]\n'),
        ("a.csv", 'a\n1\n\n"2"\n'),
    ):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert [row for _, row in read_rows(str(tmp_path / name))] == [{"a": "1"}, {"a": "2"}]


def test_one_object_of_messages_in_a_json_file_is_one_row_not_columns(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"chosen": turns, "rejected": turns}
    (tmp_path / "one.json").write_text(json.dumps(row, indent=2))
    assert list(read_rows(str(tmp_path / "one.json"))) == [(0, row)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_json_arrays_are_decoded_alike_whatever_the_size_of_the_window(
    chunk, tmp_path, monkeypatch
):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk)
    rows = [{**row, "n": [1.5, None, True, {"x": "]}"}]} for row in ROWS]
    path = tmp_path / "array.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    assert [row for _, row in read_rows(str(path))] == rows


GOOD = b'{"a": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b'{"a": "1"\n', r"a\.jsonl, line 2 ends in the middle of an object"),
        ("a.jsonl", GOOD + b'{"a": tru}\n', "line 2: malformed JSON: Expecting value at column 7$"),
        ("a.jsonl", GOOD + b'{"a": "\t"}', "JSON: Invalid control character at column 8$"),
        ("a.jsonl", GOOD + b"[1]\n", "line 2: not an object with columns but a list.*array"),
        ("a.jsonl", GOOD + b"null\n", "line 2: not an object"),
        ("a.jsonl", GOOD + b'{"a": "\xff"}', r"line 2: not UTF-8 .* Save the file as UTF-8"),
        ("a.jsonl", b"[" * 100_000, "line 1: malformed JSON"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
        ("a.jsonl.gz", b"not gzip", "damaged or no gzip"),
        ("a.jsonl.gz", gzip.compress(GOOD * 1000, mtime=0)[:-20], "damaged or no gzip"),
        ("a.json", b"", r"a\.json is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.json", b'[\n{"a": 1},\n{"a": 2}\n', "line 4: malformed JSON: expected"),
        ("a.json", b'[\n{"a": 1}\n{"a": 2}]', "line 3: malformed JSON: expected `,`"),
        ("a.json", b'[\n{"a": 1},\n]', "line 3: malformed JSON"),
        ("a.json", b'[{"a": 1}]\n]', "line 2: malformed JSON: text after the end"),
        ("a.json", b'[{"a": 1},\n{"a": tru}]', "line 2: malformed JSON"),
        ("a.json", b'[{"a": "x}]', "line 1: malformed JSON: the text .* has no end: the file"),
        ("a.json", GOOD + b'{"a": "x\n' + GOOD, "line 2: .* ends in the middle of a text: .* cut"),
        ("a.json", b'[{"a": "\t"}]', "line 1: malformed JSON: Invalid control character$"),
        ("a.json", b'[{"a": 1},\n7]', "row 1: not an object but a int"),
        ("a.json", b'[\n{"a": "\xe4"}]', "line 2: not UTF-8"),
        ("a.json", b'"text"', "neither an array of objects nor an object of columns"),
        ("a.json", b'{"a": ["1"], "b": ["1", "2"]}', "columns of different lengths"),
        ("a.json", GOOD + b'{"a": \n', "line 3: malformed JSON"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 fields, but the header has 2"),
        ("a.csv", b'a,b\n1,2\n"1,2\n3,4\n', "line 3: malformed CSV"),
        ("a.csv", b"a,a\n1,2\n", "line 1: column names are missing or repeated"),
        ("a.csv", b"a,b\n1,\xff\n", "line 2: not UTF-8"),
        ("a.csv", b"a,b\n", r"a\.csv is empty"),
        ("a.csv", b"a, b\n1, 2\n", "line 1: column names have white space at their ends: .' b'"),
        ("a.csv", b'a,b\n"x \\"y\\" z",2\n', "line 2: malformed CSV: .*written twice"),
        ("a.csv", b"a,b\r1,2\r", "line 1: malformed CSV: its lines end in carriage returns alone"),
        ("a.csv", b'a,b\n1,2\n"1,2\n', "line 3: .*a quotation mark .* is never closed"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), "UTF-16 without the mark"),
        ("a.jsonl", GOOD.decode().encode("utf-16-be"), "UTF-16 without the mark"),
        ("a.jsonl", GOOD + b'{"a": "1", "a": "2"}', "line 2: .*the name 'a' stands twice"),
        ("a.jsonl", b'{"a": {"b": 1, "c": 2, "b": 3}}', "line 1: .*the name 'b' stands twice"),
        ("a.json", b'[{"a": "1"},\n{"a": "1", "a": "2"}]', "line 2: .*the name 'a' stands twice"),
        ("a.jsonl", gzip.compress(GOOD, mtime=0), r"compressed with gzip.*the ending \.gz"),
        ("a.csv", b"PK\x03\x04rest", r"a spreadsheet \(\.xlsx\).*save a sheet as `CSV UTF-8`"),
        ("a.jsonl", b"\x28\xb5\x2f\xfdrest", r"compressed with Zstandard.*gzip \(\.gz\)"),
        ("a.json", bz2.compress(GOOD), "compressed with bzip2"),
        ("a.jsonl", lzma.compress(GOOD), "compressed with xz"),
        ("a.jsonl", b"PAR1 nonsense", r"a Parquet file.*the ending \.parquet"),
        ("a.parquet", b"ARROW1\0\0", r"an Arrow file.*the ending \.arrow"),
        ("a.csv", b"SQLite format 3\0", "an SQLite database"),
        ("a.parquet", b"PAR1 nonsense", r"a\.parquet cannot be read as Parquet"),
        ("a.arrow", b"nonsense", r"a\.arrow cannot be read as Arrow"),
        ("a.pkl", b"\x80", "pickles are never read"),
        ("a.pt", b"\x80", "pickles are never read"),
        ("a.xlsx", b"", r"no data file that is known: .*\.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(str(tmp_path / name)))
    assert str(tmp_path / name) in str(caught.value)


def test_empty_lines_before_a_header_are_no_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n \r\na,b\n1,2\n")
    assert list(read_rows(str(path))) == [(4, {"a": "1", "b": "2"})]


def test_a_missing_file_is_named_in_full_with_what_is_nearby(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"nearby: train\.jsonl") as caught:
        read_rows(str(tmp_path / "trian.jsonl"))
    assert str(tmp_path / "trian.jsonl") in str(caught.value)
    with pytest.raises(DataError, match=r"the folder .* does not exist either"):
        read_rows(str(tmp_path / "no" / "x.jsonl"))
    with pytest.raises(DataError, match="no such file or folder"):
        read_rows("relative.jsonl")


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no data file .* it holds: notes\.txt"):
        read_rows(str(tmp_path))


def test_rows_are_read_one_by_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD * 3 + b"broken")
    rows = read_rows(str(tmp_path / "a.jsonl"))
    assert [next(rows)[0] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match="line 4"):
        next(rows)


def test_default_names_are_file_and_data_set_names():
    names = {
        "/d/ultra.jsonl.gz": "ultra",
        "/d/a.b.parquet": "a.b",
        "org/set-v1.5": "set-v1.5",
        "/d/saved": "saved",
        "/d/X.JSONL": "X",
    }
    assert {path: default_name(path) for path in names} == names


def test_an_unreachable_hub_is_the_users_error_and_reading_imports_no_torch():
    code = """
import sys
from sdpo.data.prepare import prepare_pairs
from sdpo.data.supervised import prepare_supervised
from sdpo.data.readers import read_rows
from sdpo.errors import DataError
assert "datasets" not in sys.modules
try:
    read_rows("nobody/no-such-set", subset="s", split="dev", revision="abc")
except DataError as error:
    print(error)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    message, modules = done.stdout.strip().split("\n")
    assert "`nobody/no-such-set` at abc (subset `s`, split `dev`) could not be read" in message
    assert modules == "[]"
