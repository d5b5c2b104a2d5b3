"""A reader's folder: a finished run, its recipe, and files of pairs that pages name."""

import pytest
from bench import Bench, Outcome
from command_line import Sdpo, caller
from histories import write_new_pairs


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sdpo:
    monkeypatch.setenv("COLUMNS", "200")
    return caller(capsys)


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, finished_bench: Bench, finished: Outcome
) -> Bench:
    assert finished.folder.is_dir()
    bench = finished_bench.copy_to(tmp_path_factory.mktemp("pages"))
    write_new_pairs(bench.folder / "new.jsonl", *range(12))
    write_new_pairs(bench.folder / "feedback.jsonl", *range(20, 60))
    bench.write(name="recipe.yaml")
    return bench


@pytest.fixture
def at_place(place: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(place.folder)
    return place
