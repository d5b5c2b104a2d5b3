"""Where runs and caches stand, and what stands there already: nothing of a user's is lost."""

import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Values
from command_line import Sdpo
from foreign import CONTENTS, OF_A_CACHE, OF_A_RUN, OF_A_SERVER, below, fill, state_of
from histories import origin, write_new_pairs

import sdpo as library
from flows.commands.desk import PASSWORD, credentials
from sdpo.errors import ForeignFolderError, IntegrityError, UserError
from sdpo.history.extend import effective_overrides, new_pairs_of
from sdpo.identity.canonical import digest_of
from sdpo.promotion.decisions import DECISION
from sdpo.promotion.judge import GateSettings
from sdpo.promotion.retrain import retrain
from sdpo.promotion.versions import current
from sdpo.store.run_folder import RunFolder
from sdpo.system.locks import hold
from sdpo.system.ownership import MARKER, Kind, claim

FEW: Values = {"partition": {"strategy": "single"}, "training": {"max_steps": 1}}
PROJECT = Path(__file__).resolve().parents[2]


def marked(folder: Path, kind: Kind) -> Path:
    """A folder with a marker and nothing else, as a copied marker makes one."""
    claim(folder, kind, proof=lambda _: False)
    return folder


# --- a marker in a folder of the user's


def test_a_marker_that_was_copied_makes_no_run_of_a_users_folder(bench: Bench, sdpo: Sdpo) -> None:
    recipe, states = bench.write(FEW), {}
    # Nobody has a file under a temporary's name by chance: those are swept.
    names = [name for name in OF_A_RUN if not name.startswith((MARKER, ".lock", ".tmp-sdpo-"))]
    for number, name in enumerate(names):
        folder = marked(bench.runs / f"mine-{number}", "run")
        state = fill(folder, [name], first=number)
        if name != "run.yaml":
            with pytest.raises(ForeignFolderError, match=r"and no run\.yaml, and holds "):
                RunFolder(folder).claim()
        states |= state
    for command in (
        ("run", recipe, "--name", "mine-1"),
        ("partition", recipe, "--name", "mine-2"),
        ("resume", bench.runs / "mine-3"),
        ("gc", "--yes", "--runs-dir", bench.runs),
    ):
        called = sdpo(*command)
        assert called.code == (0 if command[0] == "gc" else 2), called.told
    assert state_of(states) == states


def test_a_marker_that_was_copied_with_a_run_file_of_the_users_makes_no_run_either(
    bench: Bench, sdpo: Sdpo
) -> None:
    for number in range(len(CONTENTS)):
        folder = marked(bench.runs / f"mine-{number}", "run")
        state = fill(folder, ["run.yaml", "pairs.parquet", "report.html"], first=number)
        refused = sdpo("run", bench.write(FEW), "--name", folder.name)
        assert refused.code in (1, 2), refused.told
        assert state_of(state) == state, refused.told


def test_a_copied_marker_makes_no_cache_and_no_server_of_what_is_in_a_users_folder(
    bench: Bench, sdpo: Sdpo
) -> None:
    cache = marked(bench.folder / "mine", "cache")
    kept = fill(cache, [name for name in OF_A_CACHE if not name.endswith(".lock")])
    assert sdpo("check", bench.write(), "--set", f"store.cache_dir={cache}").code == 0
    assert sdpo("gc", "--yes", "--runs-dir", bench.folder, "--cache-dir", cache).code == 0
    assert state_of(kept) == kept
    with closing(socket.create_server(("127.0.0.1", 0))) as used:
        port = used.getsockname()[1]  # where all is well, this is what is said
        for number, name in enumerate(OF_A_SERVER * len(CONTENTS)):
            server = marked(bench.folder / f"server-{number}", "server")
            alone = fill(server, [name], first=number)
            called = sdpo("server", "up", "--folder", server, "--port", port)
            refused = called.code in (1, 2)  # 1: what is there is damaged
            assert (refused, state_of(alone)) == (True, alone), called.told
            if name == PASSWORD:
                with pytest.raises(UserError, match="holds no password"):
                    credentials(server)
            elif name.split("/")[0] not in ("prefect", "processes.json"):
                assert "nothing in it is touched" in called.told, (name, called.told)


def test_a_server_that_is_refused_goes_on_showing_the_runs_that_it_showed(
    tmp_path: Path, sdpo: Sdpo
) -> None:
    folder = marked(tmp_path / "server", "server")
    (folder / "runs").symlink_to(tmp_path / "shown")
    with closing(socket.create_server(("127.0.0.1", 0))) as used:
        port = used.getsockname()[1]
        assert sdpo("server", "up", "--folder", folder, "--port", port).code == 2
    assert (folder / "runs").readlink() == tmp_path / "shown"


def test_the_marker_of_another_kind_says_what_the_folder_is(bench: Bench, sdpo: Sdpo) -> None:
    cache, run = marked(bench.folder / "kept", "cache"), marked(bench.runs / "tiny", "run")
    refused = sdpo("run", bench.write(FEW), "--set", f"store.cache_dir={run}")
    assert (refused.code, below(run)) == (2, {run / MARKER})
    assert "is a run of this project and not a cache" in refused.told
    refused = sdpo("run", bench.write(FEW), "--runs-dir", bench.folder, "--name", cache.name)
    assert (refused.code, below(cache)) == (2, {cache / MARKER})
    assert "is a cache of this project and not a run" in refused.told


# --- whoever calls


def taken_name(bench: Bench, source: Path) -> str:
    """The name of the run that a retraining over these pairs makes."""
    named = current("tiny", runs_dir=bench.runs)
    run = origin(bench, named.in_use.run)
    key = {
        "from": named.in_use.digest,
        "pairs": sorted(new_pairs_of(run, [str(source)])),
        "overrides": effective_overrides(run, []),
    }
    return f"tiny-{named.in_use.step + 1}-{digest_of(key)[:8]}"


def test_a_retraining_whose_run_has_the_name_of_a_users_folder_is_refused(
    promoted: Bench,
) -> None:
    source = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    folder = promoted.runs / taken_name(promoted, source)
    state = fill(folder)
    with pytest.raises(ForeignFolderError, match="nothing in it is touched"):
        retrain("tiny", [str(source)], runs_dir=promoted.runs)
    assert (state_of(state), current("tiny", runs_dir=promoted.runs).current) == (state, 1)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_users_file_in_the_place_of_a_decision_is_refused_by_its_name(
    promoted: Bench, content: bytes
) -> None:
    path = promoted.runs / "tiny" / DECISION
    path.write_bytes(content)
    source = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    with pytest.raises(IntegrityError, match=DECISION):
        retrain("tiny", [str(source)], runs_dir=promoted.runs, gate=GateSettings())
    assert path.read_bytes() == content


def test_the_library_refuses_a_users_folder_as_the_command_line_does(
    bench: Bench, demo_files: Any
) -> None:
    from datasets import Dataset

    state = fill(bench.runs / "tiny") | fill(bench.folder / "mine")
    rows = [json.loads(line) for line in demo_files.questions.read_text().splitlines()[:20]]
    objects = {"data": {"sources": [{"name": "rows", "path": Dataset.from_list(rows)}]}}
    elsewhere = {"name": "new", "store": {"cache_dir": str(bench.folder / "mine")}}
    for changes in (FEW, FEW | objects, FEW | elsewhere):
        with pytest.raises(ForeignFolderError, match="nothing in it is touched"):
            library.run(bench.values(changes), listen=lambda event: None)
        assert state_of(state) == state
        assert not (bench.runs / "new").exists()


# --- where a cache may be


@pytest.mark.parametrize("place", ["runs/new", "runs/new/cache", "runs/tiny/cache", "runs"])
def test_a_cache_in_a_run_or_in_the_place_of_the_runs_is_refused_before_it_is_made(
    finished_copy: Bench, sdpo: Sdpo, place: str
) -> None:
    before = below(finished_copy.runs)
    refused = sdpo(
        *("run", finished_copy.write(FEW), "--name", "new"),
        *("--set", f"store.cache_dir={finished_copy.folder / place}"),
    )
    assert refused.code == 2
    assert "store.cache_dir" in refused.told
    assert below(finished_copy.runs) == before


def test_a_part_of_a_cache_that_is_a_link_to_elsewhere_is_not_written_through(
    bench: Bench, sdpo: Sdpo
) -> None:
    cache = marked(bench.folder / "cache", "cache")
    state = fill(bench.folder / "mine", ["notes.txt"])
    (cache / "tokens").symlink_to(bench.folder / "mine")
    refused = sdpo("check", bench.write(FEW))
    assert refused.code == 2
    assert f"{cache / 'tokens'} is a link that leads out of the cache" in refused.told
    assert below(bench.folder / "mine") == state.keys()


def test_a_cache_that_is_named_by_a_link_is_one_and_is_cleaned_under_each_of_its_names(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    folder = finished_copy.folder
    (folder / "link").symlink_to(folder / "cache")
    called = sdpo("run", finished_copy.write(), "--set", f"store.cache_dir={folder / 'link'}")
    assert called.code == 0, called.told
    for name in ("link", "cache"):
        cleaned = sdpo("gc", "--runs-dir", finished_copy.runs, "--cache-dir", folder / name)
        assert (cleaned.code, "is not looked at" in cleaned.told) == (0, False), cleaned.told


def test_runs_in_the_folder_of_their_model_leave_its_digest_as_it_is(
    bench: Bench, sdpo: Sdpo, demo_files: Any
) -> None:
    model = bench.folder / "model"
    model.mkdir()
    for file in demo_files.model.iterdir():
        os.link(file, model / file.name)
    state = state_of(model.iterdir())
    here = ("--set", f"model.name_or_path={model}", "--runs-dir", model)
    for _ in range(2):
        called = sdpo("run", bench.write(FEW), *here)
        assert called.code == 0, called.told
    assert sdpo("verify", "tiny", "--runs-dir", model).code == 0
    assert sdpo("gc", "--yes", "--runs-dir", model).code == 0
    assert state_of(state) == state


# --- other names of the same files


def test_a_copy_by_hard_links_stays_as_it_is_whatever_is_done_to_the_run(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    run, copies = origin(finished_copy), finished_copy.folder / "copies"
    files = [p for top in ("runs", "cache") for p in (finished_copy.folder / top).rglob("*")]
    for path in filter(Path.is_file, files):
        copy = copies / path.relative_to(finished_copy.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, copy)
    mine = fill(finished_copy.folder, ["mine.log", "mine.empty"])
    (finished_copy.folder / "mine.empty").write_bytes(b"")
    state = state_of([*filter(Path.is_file, copies.rglob("*")), *mine])
    (run.path / ".lock").unlink(missing_ok=True)
    os.link(finished_copy.folder / "mine.empty", run.path / ".lock")
    (run.path / "logs" / "step-2.log").unlink()
    os.link(finished_copy.folder / "mine.log", run.path / "logs" / "step-2.log")
    (run.model(2) / "model.safetensors").unlink()
    runs = ("--runs-dir", finished_copy.runs)
    for command in (
        ("run", finished_copy.write()),
        ("report", "tiny", *runs),
        ("promote", "tiny", *runs),
        ("gc", "--yes", *runs),
    ):
        called = sdpo(*command)
        assert (called.code, state_of(state) == state) == (0, True), (command, called.told)


def test_a_lock_with_another_name_guards_as_any_other(tmp_path: Path) -> None:
    path, other = tmp_path / "lock", tmp_path / "other"
    path.touch()
    os.link(path, other)
    with hold(path, what="it"):
        assert other.read_bytes() == b""
        with pytest.raises(UserError, match="in use"), hold(path, what="it"):
            pass


MOVED = """
import os, sys, threading, time
def move():
    while not os.path.exists({seen!r}):
        time.sleep(0.001)
    os.rename({run!r}, {to!r})
if sys.argv[-1].endswith("/step-1.json"):
    threading.Thread(target=move, daemon=True).start()
"""


@pytest.mark.parametrize("seen", ["logs/step-1.events.jsonl", "step-1/model"])
def test_a_run_whose_folder_is_moved_while_it_is_at_work_ends_there_and_begins_no_other(
    bench: Bench, sdpo: Sdpo, seen: str
) -> None:
    run, to = bench.runs / "tiny", bench.runs / "moved"
    code = MOVED.format(seen=str(run / seen), run=str(run), to=str(to))
    ended = sdpo("run", bench.write(FEW), first=code)
    assert ended.code == 2
    assert f"{run} was moved or removed while the run was at work" in ended.told
    assert "sdpo resume" in ended.told
    assert not run.exists()
    resumed = sdpo("resume", "moved", "--runs-dir", bench.runs)
    assert resumed.code == 0, resumed.told


# --- who may read and write


@pytest.mark.parametrize("mask", [0, 0o077], ids=oct)
def test_what_is_made_has_the_modes_that_the_umask_leaves(
    bench: Bench, sdpo: Sdpo, mask: int
) -> None:
    before = os.umask(mask)
    try:
        assert sdpo("run", bench.write(FEW)).code == 0
    finally:
        os.umask(before)
    made = [*bench.runs.rglob("*"), *(bench.folder / "cache").rglob("*")]
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in made}
    assert modes == {(True, 0o777 & ~mask), (False, 0o666 & ~mask)}


AS_NOBODY = """
import json, os, sys
from flows.cli.app import run_app
import flows.commands.run, flows.commands.finished_runs, flows.commands.clean_up
os.setgid(65534); os.setuid(65534)
for command in json.loads(sys.argv[1]):
    print("code", run_app(command), flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_place_that_cannot_be_written_is_named_in_one_message_each(
    finished_copy: Bench, tmp_path: Path
) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    writable = tmp_path / "writable"
    writable.mkdir()
    writable.chmod(0o777)
    recipe, runs = finished_copy.write(FEW), str(finished_copy.runs)
    before = {path: path.lstat().st_mtime_ns for path in below(finished_copy.folder)}
    commands = [
        ["run", recipe, "--name", "new"],
        ["run", recipe, "--runs-dir", f"{writable}/runs", "--set", f"store.cache_dir={runs}/c"],
        ["run", recipe],
        ["partition", recipe, "--name", "new"],
        ["export", "tiny", f"{tmp_path}/out", "--runs-dir", runs],
        ["promote", "tiny", "--runs-dir", runs],
        ["gc", "--yes", "--runs-dir", runs],
        ["server", "up", "--folder", f"{tmp_path}/server"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line[:5] == "code "]
    expected = [0 if command[0] == "gc" else 2 for command in commands]
    assert codes == expected, done.stdout + done.stderr
    assert done.stderr.count("Permission denied") >= codes.count(2), done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.lstat().st_mtime_ns for path in before} == before
