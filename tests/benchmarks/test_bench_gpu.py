"""The command for a GPU runs on a CPU too, keeps its time, and leaves nothing behind."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu.__main__ import _Table, main
from benchmarks.gpu.findings import Finding, Settings, read_findings, write_finding
from benchmarks.gpu.schedule import Outcome, Part, Schedule

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(ROOT)  # the parts are programs of the repository, not of an installed package
    return Settings(device="cpu", tiny=True, folder=str(tmp_path), threads=1)


def outcomes(settings: Settings, parts: list[Part], *, seconds: float) -> list[Outcome]:
    told: list[Outcome] = []
    Schedule(settings, seconds=seconds).run(parts, told.append)
    return told


def test_a_part_is_ended_at_its_limit_and_the_next_one_still_runs(settings):
    before = set(psutil.Process().children(recursive=True))
    parts = [
        Part(name="training", what="", limit_s=0.5),
        Part(name="no_such_part", what="", limit_s=60.0),
    ]
    slow, broken = outcomes(settings, parts, seconds=90.0)
    assert (slow.ended, broken.ended) == ("time", "failed")
    assert "No module named 'benchmarks.gpu.no_such_part'" in broken.fault
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_part_for_which_no_time_is_left_is_not_begun(settings):
    [left] = outcomes(settings, [Part(name="gate", what="", limit_s=60.0)], seconds=10.0)
    assert left == Outcome("gate", "left")


def test_what_a_part_found_before_it_was_ended_is_kept(tmp_path):
    path = tmp_path / "findings.jsonl"
    whole = Finding(what="a", seen="b", ok=True, numbers={"n": 1.5})
    write_finding(path, whole)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"what": "half of a li')
    assert list(read_findings(path)) == [whole]


def test_a_part_beside_others_has_a_limit_of_its_own(settings):
    beside = Part(name="gate", what="", limit_s=0.2)
    both = Part(name="layouts", what="", limit_s=6.0, beside=(beside,))
    first, second = outcomes(settings, [both], seconds=60.0)
    assert (first.name, first.ended, second.name) == ("gate", "time", "layouts")
    assert first.seconds < second.seconds


def command(*arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--threads", "1"),
        *arguments,
    ]


def alive(folder: Path) -> list[list[str]]:
    """Processes that work in ``folder``: their command lines name it."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(folder) in " ".join(line)]


def wait_for(seen, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


@pytest.fixture
def begun(tmp_path):
    """The command while its first part runs and has found something; its folder, its file."""
    folder, out = tmp_path / "work", tmp_path / "gpu.json"
    process = subprocess.Popen(
        command("--only", "layouts,training", "--keep", str(folder), "--json", str(out)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: list(read_findings(folder / "layouts.findings.jsonl")), seconds=120)
        assert len(alive(folder)) >= 3, "the command, the part, and the next one"
        yield process, folder, out
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_asked_to_stop_it_tells_what_it_has_found_and_leaves_no_process(begun):
    process, folder, out = begun
    process.terminate()
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert not alive(folder)
    [part] = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert (part["name"], part["ended"]) == ("layouts", "stopped")
    assert part["findings"][0]["what"] in said


def test_killed_it_leaves_no_process(begun):
    process, folder, _ = begun
    process.kill()
    process.wait()
    wait_for(lambda: not alive(folder), seconds=20)


def test_it_ends_within_its_time_and_leaves_no_process(tmp_path):
    folder, out = tmp_path / "work", tmp_path / "gpu.json"
    limits = ("--minutes", "0.4", "--keep", str(folder), "--json", str(out))
    start = time.monotonic()
    done = subprocess.run(
        command(*limits), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert time.monotonic() - start < 60 * 0.4
    assert not alive(folder)
    parts = {p["name"]: p["ended"] for p in json.loads(out.read_text(encoding="utf-8"))["parts"]}
    assert set(list(parts.values())[3:]) == {"left"}, "of the parts after the first three"
    assert "no time for: stage; memory; training; peer; adapters; compiling" in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--minutes", "0", "0 is no time that can be kept"),
        ("--minutes", "nan", "nan is no time that can be kept"),
        ("--threads", "0", "there is one at least"),
        ("--only", "layout", "--only: layout; known are layouts, gate, workloads, stage"),
    ],
)
def test_an_option_that_cannot_be_is_refused(option, value, told, capsys):
    with pytest.raises(SystemExit) as refused:
        main([option, value])
    assert told in f"{refused.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("option", ["--json", "--keep"])
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_measured(tmp_path, option):
    used = tmp_path / "used"
    used.mkdir()
    (used / "here").touch()
    place = used if option == "--keep" else used / "here" / "gpu.json"
    start = time.monotonic()
    done = subprocess.run(
        command(option, str(place)), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert time.monotonic() - start < 30
    assert done.returncode == 1
    assert done.stderr.startswith(f"{option} {place}: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_file_is_json_whatever_was_measured_and_a_full_disk_costs_no_part(tmp_path, capsys):
    path = tmp_path / "out" / "gpu.json"
    table = _Table(device="a", versions="b", tiny=True, path=path, begun=time.monotonic())
    numbers = {"loss": math.nan, "seconds": [1.0, math.inf]}
    table.tell(Outcome("a part", "ok", 1.0, [Finding(what="a", seen="b", numbers=numbers)]))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    [part] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)["parts"]
    assert part["findings"][0]["numbers"] == {"loss": None, "seconds": [1.0, None]}
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    table.tell(Outcome("another", "ok"))
    assert len(table.outcomes) == 2
    assert "is not written" in capsys.readouterr().err


@pytest.mark.slow  # four minutes
@pytest.mark.timeout(900)
def test_every_part_passes_on_a_cpu_in_its_tiny_form(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    command += ["--minutes", "12", "--threads", "2", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert {part["ended"] for part in parts} == {"ok"}
    verdicts = [finding["ok"] for part in parts for finding in part["findings"]]
    assert verdicts.count(True) >= 20
    assert False not in verdicts
