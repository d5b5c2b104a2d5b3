"""What is made from private data is as private; else the umask alone decides."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, DemoFiles, Values
from command_line import Sdpo

from sdpo.system.privacy import withheld, withholding


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def with_data_of_mode(bench: Bench, demo_files: DemoFiles, mode: int) -> Values:
    """A recipe, the second of whose sources is the only one of this mode."""
    path = bench.folder / "mine.jsonl"
    path.write_bytes(demo_files.requests.read_bytes())
    path.chmod(mode)
    sources = [
        {"name": "questions", "path": str(demo_files.questions)},
        {"name": "requests", "path": str(path)},
    ]
    return {"data": {"sources": sources}, "training": {"max_steps": 1}}


def modes(folder: Path) -> set[int]:
    """Permission bits of everything below a folder and of itself, those of folders without x."""
    paths = [folder, *folder.rglob("*")]
    return {p.stat().st_mode & (0o666 if p.is_dir() else 0o777) for p in paths}


def test_a_run_of_private_data_its_cache_report_and_copies_are_private(
    bench: Bench, demo_files: DemoFiles, sdpo: Sdpo
) -> None:
    recipe = bench.write(with_data_of_mode(bench, demo_files, 0o600))
    runs = ("--runs-dir", bench.runs)
    assert sdpo("partition", recipe, "--out", bench.folder / "plan.json").code == 0
    assert sdpo("run", recipe).code == 0
    assert sdpo("report", "tiny", *runs).code == 0
    assert sdpo("export", "tiny", bench.folder / "copy", *runs).code == 0
    assert sdpo("replay", "tiny/step-2", *runs).code == 0
    for name in ("runs/tiny", "runs/tiny-replay-2", "cache", "copy", "plan.json"):
        assert modes(bench.folder / name) == {0o600}, name
    assert os.umask(0o022) == 0o022, "the process's own is as it was"


def test_a_run_of_open_data_has_what_the_umask_leaves(
    bench: Bench, demo_files: DemoFiles, sdpo: Sdpo
) -> None:
    recipe = bench.write(with_data_of_mode(bench, demo_files, 0o644))
    assert sdpo("run", recipe).code == 0
    assert modes(bench.runs / "tiny") | modes(bench.folder / "cache") == {0o644}


@pytest.mark.parametrize(
    ("mode", "bits"),
    [(0o644, 0), (0o640, 0o007), (0o600, 0o077), (0o400, 0o077), (0o444, 0), (0o604, 0o070)],
)
def test_who_may_not_read_a_source_may_not_read_what_is_made_of_it(
    tmp_path: Path, mode: int, bits: int
) -> None:
    source = tmp_path / "data"
    source.write_bytes(b"")
    os.chown(source, -1, os.getegid())
    source.chmod(mode)
    assert withheld([source], place=tmp_path) == bits
    with withholding(bits):
        (tmp_path / "made").touch()
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o644 & ~bits


def test_a_closed_folder_of_data_and_a_closed_file_in_an_open_one_close_what_is_made(
    tmp_path: Path,
) -> None:
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(b"")
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "open" / "data").chmod(0o600)
    assert withheld([tmp_path / "closed"], place=tmp_path) == 0o077
    assert withheld([tmp_path / "open"], place=tmp_path) == 0o077
    assert withheld([tmp_path / "gone"], place=tmp_path) == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another group")
def test_a_group_that_may_read_the_source_is_another_than_the_files_have(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.write_bytes(b"")
    os.chown(source, -1, os.getegid() + 1)
    source.chmod(0o640)
    assert withheld([source], place=tmp_path) == 0o077
