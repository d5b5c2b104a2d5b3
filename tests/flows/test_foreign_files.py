"""What a user has under a name that this project uses stays as it is, whatever is called."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench
from command_line import Sdpo
from foreign import BESIDE_RUNS, CONTENTS, NAMES, OF_A_CACHE, State, below, fill, state_of
from histories import origin, write_new_pairs

from sdpo.system.files import write_json
from sdpo.system.ownership import MARKER

REFUSED = {
    "run": ("run", "{recipe}", "--name", "data"),
    "run in the folder itself": ("run", "{recipe}", "--runs-dir", "{folder}", "--name", "mine"),
    "run with a cache": ("run", "{recipe}", "--name", "new", "--set", "store.cache_dir={mine}"),
    "resume": ("resume", "data", "--runs-dir", "{runs}"),
    "resume by path": ("resume", "{mine}"),
    "check": ("check", "{recipe}", "--set", "store.cache_dir={mine}"),
    "partition": ("partition", "{recipe}", "--name", "data"),
    "partition to a file": ("partition", "{recipe}", "--out", "{mine}/plan.json"),
    "export": ("export", "tiny", "{mine}", "--runs-dir", "{runs}"),
    "report": ("report", "data", "--runs-dir", "{runs}"),
    "replay": ("replay", "tiny/step-2", "--name", "data", "--runs-dir", "{runs}"),
    "extend": ("extend", "tiny", "--source", "{new}", "--name", "data", "--runs-dir", "{runs}"),
    "server up": ("server", "up", "--folder", "{mine}"),
    "server down": ("server", "down", "--folder", "{mine}"),
}
FAILED = {
    "promote": ("promote", "tiny", "--runs-dir", "{runs}"),
    "rollback": ("rollback", "tiny", "--runs-dir", "{runs}"),
    "retrain": ("retrain", "tiny", "--source", "{new}", "--runs-dir", "{runs}"),
}
DONE = {
    "gc": ("gc", "--yes", "--runs-dir", "{runs}"),
    "gc of another cache": ("gc", "--yes", "--runs-dir", "{runs}", "--cache-dir", "{mine}"),
    "gc where everything is a user's": ("gc", "--yes", "--runs-dir", "{folder}"),
    "status": ("status", "--runs-dir", "{runs}"),
    "run again": ("run", "{recipe}"),
    "run beside": ("run", "{recipe}", "--name", "new", "--set", "training.max_steps=1"),
    "export beside": ("export", "tiny", "{folder}/exported", "--runs-dir", "{runs}"),
    "partition beside": ("partition", "{recipe}", "--name", "planned"),
    "report": ("report", "tiny", "--runs-dir", "{runs}"),
}


@pytest.fixture(params=range(3))
def place(finished_copy: Bench, request: pytest.FixtureRequest) -> tuple[Bench, State]:
    """A finished run among files of the user's, everywhere and under every name; their contents
    are others each time."""
    runs, first = finished_copy.runs, request.param * 3
    state = dict(fill(finished_copy.folder / "mine", first=first))
    state |= fill(runs / "data", first=first)
    state |= fill(runs, BESIDE_RUNS, first=first)
    state |= fill(finished_copy.folder / "cache", OF_A_CACHE, first=first)
    own = ("notes.txt", ".tmp-mine/notes", "step-1/my-notes", "step-1/resume/notes")
    state |= fill(runs / "tiny", own, first=first)
    return finished_copy, state


def called(bench: Bench, sdpo: Sdpo, command: tuple[str, ...]) -> tuple[int, str]:
    words = {
        "recipe": bench.write(),
        "folder": bench.folder,
        "runs": bench.runs,
        "mine": bench.folder / "mine",
        "new": write_new_pairs(bench.folder / "new.jsonl", *range(20)),
    }
    done = sdpo(*(word.format(**words) for word in command))
    assert "Traceback" not in done.told
    return done.code, done.told


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED)
def test_a_folder_that_is_the_users_is_refused_and_nothing_in_it_changes(
    place: tuple[Bench, State], sdpo: Sdpo, command: tuple[str, ...]
) -> None:
    bench, state = place
    folders = (bench.folder / "mine", bench.runs / "data")
    before = [below(folder) for folder in folders]
    code, told = called(bench, sdpo, command)
    assert code == 2, told
    assert state_of(state) == state
    assert [below(folder) for folder in folders] == before
    assert not (bench.runs / "new").exists()


@pytest.mark.parametrize("command", FAILED.values(), ids=FAILED)
def test_a_registry_or_a_lock_that_is_the_users_is_refused(
    place: tuple[Bench, State], sdpo: Sdpo, command: tuple[str, ...]
) -> None:
    bench, state = place
    code, told = called(bench, sdpo, command)
    assert code in (1, 2), told
    assert state_of(state) == state


@pytest.mark.parametrize("command", DONE.values(), ids=DONE)
def test_what_is_the_users_stays_beside_what_is_done(
    place: tuple[Bench, State], sdpo: Sdpo, command: tuple[str, ...]
) -> None:
    bench, state = place
    before = [below(folder) for folder in (bench.folder / "mine", bench.runs / "data")]
    code, told = called(bench, sdpo, command)
    assert code == 0, told
    assert state_of(state) == state
    assert [below(folder) for folder in (bench.folder / "mine", bench.runs / "data")] == before
    verified = sdpo("verify", "tiny", "--runs-dir", bench.runs).out.splitlines()
    faults = [line for line in verified if line.startswith("fault: ")]
    assert faults == ["fault: step-1/my-notes was not published by this run"]


def test_the_refusal_names_what_is_there_and_what_to_do(bench: Bench, sdpo: Sdpo) -> None:
    fill(bench.runs / "data", ("pairs.parquet", "report.html", ".tmp-mine/notes"))
    refused = sdpo("run", bench.write(), "--name", "data")
    assert refused.code == 2
    assert "holds .tmp-mine, pairs.parquet, report.html: nothing in it is touched" in refused.told
    assert "--name" in refused.told


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_single_file_under_any_name_is_enough_to_refuse_a_folder(
    bench: Bench, sdpo: Sdpo, name: str
) -> None:
    state = fill(bench.runs / "data", [name], first=NAMES.index(name))
    refused = sdpo("run", bench.write(), "--name", "data")
    assert (refused.code, state_of(state)) == (2, state), refused.told


def unread(path: Path) -> tuple[int, ...]:
    """What of a file's state does not change where it is only looked at."""
    found = path.lstat()
    return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"mine"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path.parent / "elsewhere"),
        os.mkfifo,
    ],
    ids=["a file", "a link to nothing", "a link to a folder", "a pipe"],
)
def test_what_is_no_folder_under_the_name_of_a_run_or_a_cache_stays(
    bench: Bench, sdpo: Sdpo, make: Callable[[Path], object]
) -> None:
    elsewhere = fill(bench.runs / "elsewhere", ["notes.txt"])
    for name, command in (
        ("data", ("run", bench.write(), "--name", "data")),
        ("kept", ("run", bench.write(), "--set", f"store.cache_dir={bench.runs / 'kept'}")),
        ("out", ("export", "tiny", bench.runs / "out", "--runs-dir", bench.runs)),
    ):
        path = bench.runs / name
        make(path)
        before = unread(path)
        assert sdpo(*command).code == 2
        assert unread(path) == before
    assert state_of(elsewhere) == elsewhere


def test_a_link_of_a_run_that_leads_out_of_it_is_not_written_through(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    victim = fill(finished_copy.folder / "victim", ["model/config.json", "resume/00000002/x"])
    step = origin(finished_copy).step(2)
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    step.rmdir()
    step.symlink_to(finished_copy.folder / "victim")
    refused = sdpo("run", finished_copy.write())
    assert refused.code == 2
    assert "leads out of the run" in refused.told
    assert sdpo("gc", "--yes", "--runs-dir", finished_copy.runs).code == 0
    assert state_of(victim) == victim


def test_the_log_of_a_stage_is_not_written_through_a_link(bench: Bench, sdpo: Sdpo) -> None:
    sdpo("partition", bench.write(), "--name", "tiny")
    victim = fill(bench.folder, ["bashrc"])
    (bench.runs / "tiny" / "logs").mkdir()
    (bench.runs / "tiny" / "logs" / "step-1.log").symlink_to(bench.folder / "bashrc")
    assert sdpo("run", bench.write()).code != 0
    assert state_of(victim) == victim


def test_a_cache_that_a_received_run_names_is_not_cleaned(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = origin(finished_copy)
    victim = fill(finished_copy.folder / "victim", OF_A_CACHE)
    content = run.read_run()
    content["config"]["store"]["cache_dir"] = str(finished_copy.folder / "victim")
    run.write_run(content)
    said = sdpo("gc", "--yes", "--runs-dir", finished_copy.runs)
    assert (said.code, state_of(victim)) == (0, victim)
    assert "names the cache" in said.told
    assert "--cache-dir" in said.told


def test_a_token_file_that_a_record_names_outside_of_the_cache_is_not_read(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    run = origin(finished_copy)
    record = run.read_record("reserve") or {}
    record["identity"]["tokens"] = "../../mine"
    run.publish_record("reserve", record)
    mine = fill(finished_copy.folder, ["mine.arrow"])
    assert sdpo("gc", "--yes", "--runs-dir", finished_copy.runs).code == 0
    assert state_of(mine) == mine


@pytest.mark.parametrize("content", CONTENTS)
def test_a_marker_is_one_by_its_content(bench: Bench, sdpo: Sdpo, content: bytes) -> None:
    marker = bench.runs / "tiny" / MARKER
    marker.parent.mkdir(parents=True)
    marker.write_bytes(content)
    assert sdpo("run", bench.write()).code == 2
    assert marker.read_bytes() == content


def test_a_registry_of_another_format_stays(finished_copy: Bench, sdpo: Sdpo) -> None:
    path = finished_copy.runs / "registry.json"
    write_json(path, {"format": 2, "names": {}})
    before = path.read_bytes()
    assert sdpo("promote", "tiny", "--runs-dir", finished_copy.runs).code == 1
    assert path.read_bytes() == before
