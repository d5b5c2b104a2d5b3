import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.errors import Fault, IntegrityError
from sdpo.identity.canonical import canonical_json, digest_of
from sdpo.system.files import (
    file_digest,
    folder_digests,
    publish_file,
    publish_folder,
    read_json,
    write_json,
    write_text,
)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def upside_down(value):
    if isinstance(value, dict):
        return {key: upside_down(value[key]) for key in reversed(value)}
    return [upside_down(item) for item in value] if isinstance(value, list) else value


def test_a_published_file_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "deep" / "down" / "a.txt"
    write_text(path, "one")
    with publish_file(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, "as it was"])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "a.txt"
    if before:
        write_text(path, before)

    def write_half() -> None:
        with publish_file(path) as temporary:
            temporary.write_text("half of it")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_writer_that_writes_nothing_publishes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), publish_file(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_published_folder_appears_with_everything_in_it(tmp_path):
    path = tmp_path / "model"
    with publish_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("a")
        assert not path.exists()
    assert folder_digests(path) == {"inner/a": file_digest(path / "inner" / "a")}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_writer_that_fails_leaves_nothing(tmp_path):
    def write_half() -> None:
        with publish_folder(tmp_path / "model") as temporary:
            (temporary / "a").write_text("a")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    path = tmp_path / "model"
    with publish_folder(path) as temporary:
        (temporary / "a").write_text("first")
    with pytest.raises(OSError, match="not empty"), publish_folder(path) as temporary:
        (temporary / "a").write_text("second")
    assert (path / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_remains_of_a_writer_that_was_killed_do_not_come_back(tmp_path):
    with publish_folder(tmp_path / "model") as temporary:
        name = temporary.name
    (tmp_path / "model").rmdir()
    (tmp_path / name).mkdir()
    (tmp_path / name / "old").write_text("of a process with the same id")
    with publish_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("new")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": "é 漢字 \u2028"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "漢字" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_with_a_number_that_is_none_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a\.json is damaged: it is not JSON"):
        read_json(tmp_path / "a.json")


@given(PLAIN)
def test_the_order_of_keys_never_matters(value):
    assert canonical_json(upside_down(value)) == canonical_json(value)
    assert digest_of(upside_down(value)) == digest_of(value)


@given(PLAIN)
def test_canonical_json_is_json_of_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(PLAIN)
def test_a_value_read_back_from_json_has_the_same_digest(value):
    assert digest_of(json.loads(json.dumps(value))) == digest_of(value)


def test_the_digest_of_a_value_stays_what_it_is():
    value = {"b": [1, 0.1, None], "a": "é"}
    assert canonical_json(value) == '{"a":"é","b":[1,0.1,null]}'
    assert digest_of(value) == "02c8256276f77f59f9c6ec9bdb9309921dd18db6315871b31a404de92285879c"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"\$ is nan"),
        ({"a": [0.5, -math.inf]}, r"\$\.a\[1\] is -inf"),
        ({"a": Path("x")}, r"\$\.a is a PosixPath"),
        ({"a": {"b": {1, 2}}}, r"\$\.a\.b is a set"),
        ([b"bytes"], r"\$\[0\] is a bytes"),
        ({1: "one"}, r"\$ has the key 1: only text"),
        ({"a": object()}, r"\$\.a is a object"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_its_place(value, message):
    with pytest.raises(Fault, match=message):
        canonical_json(value)


def test_a_folder_is_known_by_its_files_contents_and_places(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("1")
    (tmp_path / "a").write_text("2")
    digests = folder_digests(tmp_path)
    assert list(digests) == ["a", "b/x"]
    (tmp_path / "a").write_text("3")
    assert folder_digests(tmp_path)["a"] != digests["a"]
    assert folder_digests(tmp_path)["b/x"] == digests["b/x"]
