"""The command for a GPU runs on a CPU too, keeps its time, and leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

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
