import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from sdpo.errors import IntegrityError, UserError
from sdpo.identity.canonical import digest_of
from sdpo.identity.differences import differences
from sdpo.store.reuse import reuse
from sdpo.store.run_folder import RunFolder, run_lock
from sdpo.store.run_head import picked, read_head

IDENTITY = {"training": {"beta": 0.1, "learning_rate": 5e-7}, "inputs": {"reference": "abc"}}


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "trial")


@pytest.fixture
def done(run):
    """A complete node with two files."""

    def done(node="step-1"):
        run.model(1).mkdir(parents=True, exist_ok=True)
        files = [run.model(1) / "model.safetensors", run.step(1) / "reference.parquet"]
        for file in files:
            file.write_text(f"the content of {file.name}")
        run.write_record(node, {"node": node, "identity": IDENTITY, "outputs": {}}, files=files)
        return files

    return done


@pytest.mark.parametrize("node", ["step-1", "plan"])
def test_a_complete_node_with_the_same_identity_is_reused(run, done, node):
    done(node)
    found = reuse(run, node, IDENTITY)
    assert found.reason == ""
    assert found.record is not None
    assert found.record.identity == IDENTITY
    assert sorted(found.record.files) == [
        "step-1/model/model.safetensors",
        "step-1/reference.parquet",
    ]


def test_the_record_of_a_step_stands_in_its_folder_and_others_apart(run, done):
    done("step-1")
    done("plan")
    assert (run.step(1) / "record.json").is_file()
    assert (run.step(1) / "record.json.sha256").is_file()
    assert (run.path / "nodes" / "plan.json").is_file()


def test_nothing_is_reused_where_nothing_was_done(run):
    assert reuse(run, "step-1", IDENTITY) == reuse(run, "step-2", IDENTITY)
    assert reuse(run, "step-1", IDENTITY).record is None
    assert reuse(run, "step-1", IDENTITY).reason == "not done yet"


def test_another_identity_is_not_reused_and_the_change_is_named(run, done):
    done()
    other = {"training": {"beta": 0.3, "learning_rate": 5e-7}, "inputs": {"reference": "abc"}}
    found = reuse(run, "step-1", other)
    assert found.record is None
    assert found.reason == "training.beta: 0.1 -> 0.3"


def test_a_file_that_was_changed_or_removed_is_named(run, done):
    weights, reference = done()
    weights.write_text("the content of something else")
    reference.unlink()
    found = reuse(run, "step-1", IDENTITY)
    assert found.record is None
    assert found.reason == (
        "step-1/model/model.safetensors was changed; step-1/reference.parquet is missing"
    )


def test_a_file_that_was_touched_or_moved_back_is_the_same_file(run, done):
    weights, _ = done()
    os.utime(weights, (0, 0))
    (run.step(1) / "another.txt").write_text("not of the record")
    assert reuse(run, "step-1", IDENTITY).record


def test_a_record_that_was_changed_is_refused(run, done):
    done()
    path = run.record_path("step-1")
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(IntegrityError, match=r"record\.json was changed after it was written"):
        run.read_record("step-1")
    found = reuse(run, "step-1", IDENTITY)
    assert found.record is None
    assert "was changed after it was written" in found.reason


def test_a_record_without_its_digest_is_not_complete(run, done):
    done()
    (run.step(1) / "record.json.sha256").unlink()
    assert run.read_record("step-1") is None


def test_a_record_written_again_is_the_new_one(run, done):
    done()
    run.write_record("step-1", {"identity": {"training": {}}}, files=[])
    record = run.read_record("step-1")
    assert record is not None
    assert record["identity"] == {"training": {}}
    assert record["files"] == {}


def test_run_yaml_comes_back_as_it_was_written(run):
    content = {"name": "trial", "config": {"learning_rate": 5e-7, "text": "1e5", "empty": ""}}
    run.path.mkdir(parents=True)
    run.write_run(content)
    assert run.check_there() == content


def test_the_head_of_run_yaml_is_what_the_whole_of_it_says(run):
    content = {
        "name": "trial",
        "text": "first\nsecond: not a key\n\n- no item",
        "inputs": {"data.my: source": "1e5", "model": "abc", "list": ["model: x", {"model": 2}]},
        "config": {"store": {"cache_dir": "a: b", "runs_dir": "long words " * 30}, "steps": []},
        "last": None,
    }
    run.write_run(content)
    keys = ("name", "text", "inputs", "inputs.model", "inputs.list", "config.store", "not.there")
    found = run.read_head(*keys, "config.store.cache_dir", "config.store.runs_dir", "last")
    assert found == {
        **{key: content[key] for key in ("name", "text", "inputs", "last")},
        "inputs.model": "abc",
        "inputs.list": content["inputs"]["list"],
        "config.store": content["config"]["store"],
        "config.store.cache_dir": "a: b",
        "config.store.runs_dir": content["config"]["store"]["runs_dir"],
    }
    run.run_file.with_name("run.yaml.sha256").unlink()
    assert run.read_head("inputs.model", "not.there") == {"inputs.model": "abc"}


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_nesting_without_an_end_in_run_yaml_ends_no_process(opening: str) -> None:
    """libyaml's composer of nodes would: it is not asked."""
    with pytest.raises(ValueError, match="recursion"):
        read_head(f"config: {opening * 100_000}", ["config"])


@example({"": "\n\x85"})
@example({"a": ["b\u2028\nc: d\u2029\n"]})
@given(st.dictionaries(st.text(max_size=4), st.text() | st.lists(st.text()), max_size=4))
def test_no_text_in_run_yaml_is_taken_for_a_key(values):
    text = yaml.safe_dump({"a": values, "b": 1}, sort_keys=False, allow_unicode=True, width=100)
    whole = yaml.safe_load(text)
    plain = [key for key in values if key.isidentifier() and yaml.safe_load(key) == key]
    keys = [f"a.{key}" for key in plain]
    found = read_head(text, ["a", "b", *keys])
    assert found == {"a": whole["a"], "b": 1, **picked(whole, keys)}


def test_a_run_that_is_not_there_names_those_that_are(run):
    with pytest.raises(UserError, match=r"no run at .*trial \(that folder holds no runs\)"):
        run.read_run()
    RunFolder(run.path.parent / "first").write_run({})
    RunFolder(run.path.parent / "second").write_run({})
    with pytest.raises(UserError, match=r"no run at .*trial; runs there: first, second"):
        run.read_run()


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b: 1 -> 2"]),
        ({"a": 1}, {"b": 1}, ["a: 1 -> nothing", "b: nothing -> 1"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a.1: 2 -> 3"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a.1: nothing -> 2"]),
        ({"a": {"b": 1}}, {"a": 3}, ["a: {'b': 1} -> 3"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ["a.0.b: 1 -> 2"]),
        ({"a": 1, "b": None}, {"a": 1}, []),
        ({"a": "x" * 99}, {"a": ""}, [f"a: {'x' * 57}... -> "]),
    ],
)
def test_differences_are_named_field_by_field(old, new, lines):
    assert differences(old, new) == lines


VALUES = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_values_with_different_digests_have_a_difference_to_name(old, new):
    if differences(old, new) == []:
        assert old == new
    if digest_of(old) == digest_of(new):
        assert differences(old, new) == []


HOLDER = """
import sys
from pathlib import Path
from sdpo.store.run_folder import RunFolder, run_lock
with run_lock(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_holds_is_refused_with_its_pid(run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"run trial is in use by process {holder.pid} on host"),
            run_lock(run),
        ):
            pytest.fail("two processes hold the run")
        holder.kill()
    with run_lock(run):
        assert str(os.getpid()) in (run.path / ".lock").read_text()


def test_a_lock_is_let_go_of_when_the_work_fails(run):
    with pytest.raises(RuntimeError), run_lock(run):
        raise RuntimeError
    with run_lock(run):
        pass
