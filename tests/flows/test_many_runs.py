"""Many runs beside each other: none hides the others, and no limit of the system is met."""

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench
from command_line import Sdpo
from histories import contents, flip, origin

from sdpo.history.gc import collect
from sdpo.promotion.versions import REGISTRY, Move, RegisteredModel, Version
from sdpo.system.files import write_json


def copies(bench: Bench, count: int) -> None:
    """Runs with the same files as the finished one."""
    for number in range(count):
        shutil.copytree(bench.runs / "tiny", bench.runs / f"run-{number}", copy_function=os.link)


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """So many may this process open besides those that are open."""
    spare = 40
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
    yield spare
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_runs_than_descriptors_are_listed_and_cleaned(
    finished_copy: Bench, few_descriptors: int, sdpo: Sdpo
) -> None:
    copies(finished_copy, 2 * few_descriptors)
    runs = ("--runs-dir", finished_copy.runs)
    listed = sdpo("status", *runs)
    assert listed.out.count("2 of 2") == 2 * few_descriptors + 1
    assert "nothing to delete" in sdpo("gc", "--yes", *runs).out


def broken(run: Path) -> None:
    flip(run / "run.yaml", 20)


def not_text(run: Path) -> None:
    (run / "run.yaml").write_bytes(b"\xff\xfe")


def a_folder(run: Path) -> None:
    (run / "run.yaml").unlink()
    (run / "run.yaml").mkdir()


def a_link_to_nothing(run: Path) -> None:
    (run / "run.yaml").unlink()
    (run / "run.yaml").symlink_to("gone")


def closed(run: Path) -> None:
    run.chmod(0)


@pytest.mark.parametrize("damage", [broken, not_text, a_folder, a_link_to_nothing, closed])
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_listed(
    finished_copy: Bench, sdpo: Sdpo, damage: object
) -> None:
    if damage is closed and os.getuid() == 0:
        pytest.skip("root reads what is closed to others")
    shutil.copytree(finished_copy.runs / "tiny", finished_copy.runs / "other")
    damage(finished_copy.runs / "other")  # type: ignore[operator]
    listed = sdpo("status", "--runs-dir", finished_copy.runs)
    assert listed.code == 0
    (line,) = [line for line in listed.out.splitlines() if "other" in line]
    assert "run.yaml" in line or "not readable" in line
    assert any("tiny" in line and "2 of 2" in line for line in listed.out.splitlines())
    with collect(finished_copy.runs) as found:
        assert found.waste == [], "what it needs is not known"


def test_an_export_writes_nothing_into_the_run(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = origin(finished_copy).path
    before = contents(run)
    times = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    copy = finished_copy.folder / "copy"
    assert sdpo("export", "tiny", copy, "--runs-dir", finished_copy.runs).code == 0
    assert (copy / "model.safetensors").is_file()
    assert contents(run) == before
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == times


def test_of_a_long_history_the_latest_versions_are_shown_and_all_as_json(
    tmp_path: Path, sdpo: Sdpo
) -> None:
    entry = {"run": "tiny", "step": 2, "digest": "0" * 64, "when": "now", "why": "because"}
    versions = tuple(Version(version=n, replaced=n - 1, **entry) for n in range(1, 1001))
    moves = tuple(
        Move(from_version=n - 1, to_version=n, when="now", why="because") for n in range(1, 1001)
    )
    named = RegisteredModel(name="tiny", current=1000, versions=versions, moves=moves)
    write_json(tmp_path / REGISTRY, {"format": 1, "names": {"tiny": named.model_dump()}})
    said = sdpo("current", "tiny", "--runs-dir", tmp_path)
    assert "950 earlier versions" in said.told
    assert said.out.count("M_2") == 51
    assert sdpo("current", "tiny", "--json", "--runs-dir", tmp_path).out.count('"why"') == 2000


def opened(sdpo: Sdpo, *command: object) -> list[str]:
    """Records that a command opens, each as often as it does."""
    seen: list[str] = []
    on = True

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if on and event == "open" and str(arguments[0]).endswith(".json"):
            seen.append(str(arguments[0]))

    sys.addaudithook(look)  # for as long as this process
    assert sdpo(*command).code == 0
    on = False
    return [path for path in seen if Path(path).parent.name in ("nodes", "step-1", "step-2")]


@pytest.mark.parametrize("command", [("status",), ("gc", "--yes")])
def test_no_record_is_read_twice_however_many_runs_there_are(
    finished_copy: Bench, sdpo: Sdpo, command: tuple[str, ...]
) -> None:
    copies(finished_copy, 3)
    found = opened(sdpo, *command, "--runs-dir", finished_copy.runs)
    assert len(found) >= 4 * 9
    twice = {path for path in found if found.count(path) > 1}
    assert {Path(path).name for path in twice} <= {"plan.json"}, "which says how many steps"


def test_a_folder_of_runs_that_is_not_there_does_not_empty_the_cache_beside_it(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    before = contents(finished_copy.folder / "cache")
    refused = sdpo("gc", "--yes", "--runs-dir", finished_copy.folder / "run")
    assert refused.code == 2
    assert "there is no folder of runs" in refused.told
    assert contents(finished_copy.folder / "cache") == before
