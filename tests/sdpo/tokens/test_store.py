import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.errors import Fault, IntegrityError
from sdpo.tokens.lengths import length_summary
from sdpo.tokens.token_file import TOKENS_SCHEMA, TokenFile, row_digest

ROWS = [
    ([1, 2, 3], [4, 5], [6], False, False, None),
    ([], [], [], False, False, "empty_completion"),
    ([1], [4], [6, 7, 8, 9], False, True, None),
    ([1, 2, 3, 4, 5], [4, 5, 6], [6], True, True, None),
]


@pytest.fixture
def file(tmp_path) -> TokenFile:
    """Four rows in two batches."""
    names = ["prompt_ids", "chosen_ids", "rejected_ids", "chosen_truncated", "rejected_truncated"]
    path = tmp_path / "tokens.arrow"
    with pa.ipc.new_file(str(path), TOKENS_SCHEMA) as writer:
        for start in (0, 2):
            rows = [
                {
                    "pair_id": f"p{start + i}",
                    "row_digest": None if row[5] else bytes([start + i] * 16),
                    **dict(zip([*names, "reason"], row, strict=True)),
                }
                for i, row in enumerate(ROWS[start : start + 2])
            ]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=TOKENS_SCHEMA))
    return TokenFile.open(path)


def ids(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_lengths_flags_and_ids_stand_in_the_order_of_the_file(file):
    assert len(file) == 4
    assert file.pair_ids == ["p0", "p1", "p2", "p3"]
    assert file.prompt_lengths.tolist() == [3, 0, 1, 5]
    assert file.chosen_lengths.tolist() == [2, 0, 1, 3]
    assert file.rejected_lengths.tolist() == [1, 0, 4, 1]
    assert file.usable.tolist() == [True, False, True, True]
    assert file.chosen_truncated.tolist() == [False, False, False, True]
    assert file.reasons == {"p1": "empty_completion"}


def test_a_row_is_a_read_only_view_of_the_file(file):
    row = file.row(2)
    assert row.rejected_ids.tolist() == [6, 7, 8, 9]
    assert row.rejected_ids.dtype == np.int32
    assert row.row_digest == bytes([2] * 16)
    assert (row.chosen_truncated, row.rejected_truncated) == (False, True)
    assert not row.rejected_ids.flags.owndata
    assert not row.rejected_ids.flags.writeable
    again = file.row(2).rejected_ids
    assert again.ctypes.data == row.rejected_ids.ctypes.data


def test_a_row_without_tokens_is_not_handed_out(file):
    with pytest.raises(Fault, match=r"row 1 .*empty_completion"):
        file.row(1)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            file.row(index)


def test_the_summary_covers_usable_pairs_only(file):
    summary = length_summary(file)
    assert summary.pairs == 3
    assert (summary.prompt.median, summary.prompt.maximum) == (3.0, 5)
    assert summary.prompt.p95 == pytest.approx(4.8)  # between 3 and 5, at 0.9
    assert (summary.chosen.median, summary.rejected.maximum) == (2.0, 4)
    assert (summary.sequence.median, summary.sequence.maximum) == (5.0, 8)
    assert summary.chosen_truncated == pytest.approx(1 / 3)
    assert summary.rejected_truncated == pytest.approx(2 / 3)
    assert length_summary(file, [1, 2]).sequence.maximum == 5


def test_a_summary_of_nothing_usable_is_refused(file):
    with pytest.raises(Fault, match="no usable pair"):
        length_summary(file, [1])


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0 and then nothing"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "tokens.arrow"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"tokens\.arrow"):
        TokenFile.open(path)
    with pytest.raises(IntegrityError, match=r"absent\.arrow"):
        TokenFile.open(tmp_path / "absent.arrow")


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "other.arrow"
    schema = pa.schema([("a", pa.int32())])
    with pa.ipc.new_file(str(path), schema):
        pass
    with pytest.raises(IntegrityError, match="another kind of file"):
        TokenFile.open(path)


_IDS = st.lists(st.integers(0, 2), max_size=4)
_ROW = st.tuples(_IDS, _IDS, _IDS)


@given(a=_ROW, b=_ROW)
def test_row_digests_are_equal_exactly_where_boundary_and_ids_are(a, b):
    assert (row_digest(*map(ids, a)) == row_digest(*map(ids, b))) == (a == b)


def test_the_row_digest_is_what_it_was():
    digest = row_digest(ids([1, 2]), ids([3]), ids([4, 70000]))
    assert digest.hex() == "93c45aeb8851c954996747a85aca574c"


@pytest.mark.parametrize(
    "module", ["sdpo.tokens", "sdpo.tokens.token_file", "sdpo.identity.tokenizer_digest"]
)
def test_reading_stored_tokens_imports_neither_torch_nor_transformers(module):
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "[]"
