"""The commands about finished runs: what they print and return."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench import Bench, Outcome
from command_line import Sdpo
from histories import contents, flip, origin
from processes import start

from sdpo.store.run_folder import RunFolder
from sdpo.system.files import temporary_path

PROJECT = Path(__file__).resolve().parents[3]


def test_replay_says_that_the_step_came_out_bitwise_identical(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    called = sdpo("replay", "tiny", "--step", 1, "--runs-dir", finished_copy.runs)
    assert called.code == 0, called.told
    assert "▶ step-1 (replayed)" in called.out
    assert "✓ step-2 shared from tiny" in called.out
    assert "step 1 of tiny again, as tiny-replay-1: bitwise identical" in called.told


def test_replay_of_a_checkpoint_with_another_beta_says_what_changed(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    target = finished_copy.runs / "tiny" / "step-2"
    called = sdpo("replay", target, "--set", "training.beta=0.2", "--name", "other")
    assert called.code == 0, called.told
    assert "step 2 of tiny again, as other: inputs differ training.beta: 0.1 -> 0.2" in (
        called.told
    )
    assert "weights digest: " in called.out


def test_a_dry_run_prints_a_line_per_node_and_does_nothing(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    before = contents(finished_copy.folder)
    options = ("--dry-run", "--runs-dir", finished_copy.runs)
    called = sdpo("replay", "tiny/step-1", "--set", "steps.1.beta=0.5", *options)
    assert called.code == 0, called.told
    lines = [re.split(r" {2,}", line.strip(), maxsplit=2) for line in called.out.splitlines()]
    assert ["REUSE", "plan"] in lines
    assert ["RUN", "step-1", "replayed"] in lines
    assert ["RUN", "step-2", "training.beta: 0.1 -> 0.5"] in lines
    assert contents(finished_copy.folder) == before
    follows = sdpo("replay", "tiny/step-1", *options)
    assert "RUN IF  step-2      an earlier output differs" in follows.out


def test_a_dry_run_shows_what_would_be_refused_and_refuses_it(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    arguments = ("--set", "data.limit=30", "--dry-run", "--runs-dir", finished_copy.runs)
    called = sdpo("replay", "tiny/step-2", *arguments)
    assert called.code == 2
    assert re.search(r"RUN +data +data\.limit: 40 -> 30", called.out)
    assert "this would change what came before step 2" in called.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tiny",), "which step is to be replayed?"),
        (("nothing", "--step", "1"), "no run at"),
        (("tiny", "--step", "9"), "no complete step 9"),
        (("tiny/step-2", "--set", "training.betta=1"), "did you mean `beta`"),
        (("tiny/step-2", "--set", "training.precision=bf16"), "measured in one arithmetic"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    finished_copy: Bench, sdpo: Sdpo, arguments: tuple[str, ...], told: str
) -> None:
    called = sdpo("replay", *arguments, "--runs-dir", finished_copy.runs)
    assert called.code == 2
    assert told in called.err


def test_verify_of_a_whole_run_and_of_one_with_a_flipped_byte(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    whole = sdpo("verify", "tiny", "--runs-dir", finished_copy.runs)
    assert whole.code == 0
    assert "run tiny is whole: 11 records, 31 files, no fault" in whole.out
    flip(origin(finished_copy).model(2) / "model.safetensors")
    called = sdpo("verify", "tiny", "--runs-dir", finished_copy.runs)
    assert called.code == 1
    assert "fault: step-2/model/model.safetensors was changed" in called.out
    assert "2 faults" in called.out


def test_status_of_runs_whose_records_are_damaged(finished_copy: Bench, sdpo: Sdpo) -> None:
    shutil.copytree(origin(finished_copy).path, finished_copy.runs / "worse")
    flip(origin(finished_copy).record_path("step-1"), 30)
    flip(finished_copy.runs / "worse" / "run.yaml", 30)
    flip(finished_copy.runs / "worse" / "nodes" / "plan.json", 30)
    called = sdpo("status", "--runs-dir", finished_copy.runs)
    assert called.code == 0, called.told
    assert re.search(r"tiny +done +1 of 2 .* step-1", called.out)
    assert re.search(r"worse +done +2 of \? +\? +run\.yaml, plan", called.out)
    one = sdpo("status", "tiny", "--runs-dir", finished_copy.runs)
    assert one.code == 1
    assert "damaged: the records of step-1; `sdpo verify tiny` says more" in one.out
    assert "record.json was changed" in one.err
    assert sdpo("status", "worse", "--runs-dir", finished_copy.runs).code == 1


def test_diff_shows_what_differs_and_says_what_does_not(finished_copy: Bench, sdpo: Sdpo) -> None:
    runs = ("--runs-dir", finished_copy.runs)
    assert sdpo("replay", "tiny/step-2", "--set", "training.beta=0.2", *runs).code == 0
    called = sdpo("diff", "tiny", "tiny-replay-2", *runs)
    assert called.code == 0, called.told
    assert re.search(r"steps\.1\.beta +– +0\.2", called.out)
    assert re.search(r"^ beta +0\.1 +0\.2", called.out, re.MULTILINE)
    assert "the same: Data; Settings of step 1" in called.out
    same = sdpo("diff", "tiny", "tiny", *runs)
    assert "Environment of step 2" in same.told
    everything = sdpo("diff", "tiny/step-1", "tiny/step-2", "--all", *runs)
    assert re.search(r"versions\.torch +2\.", everything.out)


def test_lineage_of_a_copied_folder_as_table_and_as_json(
    finished: Outcome, sdpo: Sdpo, tmp_path: Path
) -> None:
    copied = tmp_path / "a_model"
    shutil.copytree(finished.run.model(2), copied)
    digest = finished.record("step-2")["outputs"]["model"]
    called = sdpo("lineage", copied)
    assert called.code == 0, called.told
    assert f"the folder holds this model: its digest is {digest}" in called.out
    assert "data.questions" in called.out
    found = json.loads(sdpo("lineage", copied, "--json").out)
    assert found["links"][-1]["model"] == found["digest"] == digest
    flip(copied / "model.safetensors")
    assert sdpo("lineage", copied).code == 1


def test_extend_grows_the_chain_or_says_that_nothing_is_new(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    source = finished_copy.folder / "news.jsonl"
    rows = [
        {"prompt": f"How many are {n}?", "chosen": f"They are {n}.", "rejected": "Who knows."}
        for n in range(20)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ("--source", source, "--runs-dir", finished_copy.runs)
    called = sdpo("extend", "tiny", *options, "--set", "training.max_steps=1")
    assert called.code == 0, called.told
    assert "✓ step-2 shared from tiny" in called.out
    assert re.search(r"^ 3 +DPO, β 0\.1 +M_2 +M_2 +18 ", called.out, re.MULTILINE)
    status = sdpo("status", "--runs-dir", finished_copy.runs)
    assert "extends tiny, step 3" in status.told
    again = sdpo("extend", "tiny-extended-3", *options)
    assert again.code == 0
    assert "nothing new for run tiny-extended-3: no run is made" in again.out
    few = sdpo("extend", "tiny", *options, "--min-new-pairs", 50)
    assert "20 new pairs for run tiny, and 50 are wanted: no run is made" in few.out
    assert sdpo("verify", "tiny-extended-3", "--runs-dir", finished_copy.runs).code == 0
    assert sdpo("resume", "tiny-extended-3", "--runs-dir", finished_copy.runs).code == 0


def test_gc_asks_before_it_deletes(
    finished_copy: Bench, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = temporary_path(origin(finished_copy).model(1))
    orphan.write_bytes(b"0" * 5000)
    runs = ("--runs-dir", finished_copy.runs)
    lines = sdpo("gc", "--dry-run", *runs).out.splitlines()
    # A path that is longer than its column goes on in the lines below.
    assert orphan.name in "".join(line.strip().split("  ")[0] for line in lines)
    monkeypatch.setattr("rich.console.input", lambda *_: "n", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    assert "nothing was deleted" in sdpo("gc", *runs).out
    assert orphan.exists()
    assert "deleted: 5 KB are free" in sdpo("gc", "--yes", *runs).out
    assert not orphan.exists()
    assert "nothing to delete" in sdpo("gc", *runs).out


# --- folders that cannot be written, moved folders, several processes


AS_NOBODY = """
import os, sys
import flows.commands.finished_runs  # before: the interpreter's own folders may be closed to others
from flows.cli.app import run_app
os.setgid(65534); os.setuid(65534)
sys.exit(run_app(sys.argv[1:]))
"""


@pytest.fixture
def readable(finished_copy: Bench) -> Bench:
    """A run that another user may read."""
    for path in (finished_copy.folder, *finished_copy.folder.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    return finished_copy


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_run_that_cannot_be_written_verifies_has_a_lineage_and_is_refused_with_one_message(
    readable: Bench,
) -> None:
    def as_nobody(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", AS_NOBODY, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)

    runs = ("--runs-dir", readable.runs)
    before = contents(readable.folder)
    verified = as_nobody("verify", "tiny", *runs)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert as_nobody("lineage", "tiny", *runs).returncode == 0
    assert as_nobody("diff", "tiny/step-1", "tiny/step-2", *runs).returncode == 0
    refused = as_nobody("replay", "tiny/step-2", *runs)
    assert refused.returncode == 2
    assert "Permission denied" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert contents(readable.folder) == before


def test_a_moved_folder_of_runs_is_gone_on_with_where_it_is(
    finished_copy: Bench, sdpo: Sdpo, tmp_path: Path
) -> None:
    there = tmp_path / "another" / "disk"
    there.mkdir(parents=True)
    shutil.move(finished_copy.folder / "runs", there / "runs")
    shutil.move(finished_copy.folder / "cache", there / "cache")
    runs = ("--runs-dir", there / "runs")
    assert sdpo("verify", "tiny", *runs).code == 0
    called = sdpo("replay", "tiny", "--step", "2", *runs)
    assert called.code == 0, called.told
    assert (there / "runs" / "tiny-replay-2").is_dir()
    shutil.move(there / "runs", there / "again")
    assert sdpo("verify", "tiny-replay-2", "--runs-dir", there / "again").code == 0


def test_two_runs_on_one_cache_at_once_tokenise_once_and_end_in_the_same_bits(
    bench: Bench,
) -> None:
    recipe = bench.write({"training": {"max_steps": 1}, "probe": {"completions": 0}})
    calls = [
        start("run", recipe, "--name", name, log=bench.folder / f"{name}.txt", quick=True)
        for name in "ab"
    ]
    codes = [call.wait() for call in calls]
    said = [call.said for call in calls]
    assert codes == [0, 0], said
    assert sum("▶ tokens" in text for text in said) == 1
    runs = [RunFolder(bench.runs / name) for name in ("a", "b")]
    records = [[run.read_record(f"step-{step}") or {} for step in (1, 2)] for run in runs]
    assert [r["outputs"] for r in records[0]] == [r["outputs"] for r in records[1]]


def test_two_runs_of_one_name_at_once_are_one_result(bench: Bench) -> None:
    recipe = bench.write({"training": {"max_steps": 1}, "probe": {"completions": 0}})
    one = start("run", recipe, log=bench.folder / "one.txt", quick=True)
    other = start("run", recipe, "--wait", log=bench.folder / "other.txt", quick=True)
    code, other_code = one.wait(), other.wait()
    assert other_code == 0, other.said
    assert code in (0, 2), one.said
    if code == 2:
        assert re.search(r"run tiny is in use by process \d+ on host", one.said)
    else:
        assert "is complete: nothing to do" in one.said + other.said


def test_a_run_of_one_process_goes_on_with_one(finished_copy: Bench, sdpo: Sdpo) -> None:
    resume = ("resume", "tiny", "--runs-dir", finished_copy.runs, "--processes")
    assert sdpo(*resume, "1").code == 0
    refused = sdpo(*resume, "2")
    assert refused.code == 2
    assert "run tiny was begun by one process alone (launch.strategy single)" in refused.told
