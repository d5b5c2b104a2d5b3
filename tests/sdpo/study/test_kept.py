"""A study's own files are kept where its runs are, and taken up in another folder from there."""

from pathlib import Path

import pytest

from sdpo.config import StoreConfig
from sdpo.errors import ConfigError, IntegrityError
from sdpo.events import Event
from sdpo.history.unnamed import find_unnamed
from sdpo.remote.index import Index, KeptFile, read_index, write_index
from sdpo.remote.place import Place, open_place
from sdpo.study.folder import StudyFile, StudyFolder
from sdpo.study.kept import kept_study

SAID = StudyFile(kind="compare", recipe="tiny")


def store(folder: Path) -> StoreConfig:
    return StoreConfig(remote=f"file://{folder}/store", remote_silence_s=2)


def place(folder: Path) -> Place:
    return open_place(f"file://{folder}/store", "tiny-compare/.study")


def study(folder: Path) -> StudyFolder:
    return StudyFolder(folder / "tiny-compare")


def test_what_a_study_made_is_kept_and_received_where_it_is_taken_up(tmp_path: Path) -> None:
    here, there = study(tmp_path / "here"), study(tmp_path / "there")
    heard: list[Event] = []
    with here.held(SAID), kept_study(here, store(tmp_path), listen=heard.append) as saved:
        here.result("sdpo").parent.mkdir()
        here.result("sdpo").write_text("{}")
        saved()
        here.values("sdpo").write_bytes(b"PAR1")
        here.page.write_text("<html>")
        here.journal.write_text("a trial\n")
    index = read_index(place(tmp_path))
    assert index is not None
    assert set(index.files()) == {
        *("study.json", "comparison.html", "optuna.journal"),
        *("results/sdpo.json", "results/sdpo.parquet"),
    }
    assert "has the study's own files" in str(heard[-1])
    with there.held(SAID):
        there.page.write_text("<html> made here")
        with kept_study(there, store(tmp_path), listen=heard.append):
            assert there.result("sdpo").read_text() == "{}"
            assert there.journal.read_text() == "a trial\n"
            assert there.page.read_text() == "<html> made here", "what is here stays"
    unnamed, notes = find_unnamed(store(tmp_path).remote)
    assert notes == []
    assert len(unnamed) <= 1, "an older list still names the page before"


def test_a_study_without_a_store_is_kept_nowhere(tmp_path: Path) -> None:
    here = study(tmp_path)
    with here.held(SAID), kept_study(here, StoreConfig(), listen=lambda _: None) as saved:
        saved()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-compare"}


def test_a_list_that_names_another_file_than_a_studys_is_refused(tmp_path: Path) -> None:
    here = study(tmp_path / "here")
    with here.held(SAID), kept_study(here, store(tmp_path), listen=lambda _: None):
        pass
    there = place(tmp_path)
    for number, path in enumerate(("../run.yaml", "results/../../x.json", "notes.txt"), start=8):
        files = {path: KeptFile(sha256="0" * 64, bytes=1)}
        write_index(there, Index("tiny-compare", {"study": files}, (number, 1)))
        other = study(tmp_path / f"other-{number}")
        refused = pytest.raises(IntegrityError, match="which no study has")
        with (
            other.held(SAID),
            refused,
            kept_study(other, store(tmp_path), listen=lambda _: None),
        ):
            pass
        assert {path.name for path in other.path.iterdir()} <= {
            *("study.json", ".sdpo.json", ".lock")
        }


def test_a_store_within_the_study_is_refused(tmp_path: Path) -> None:
    here = study(tmp_path)
    within = StoreConfig(remote=f"file://{here.path}")
    refused = pytest.raises(ConfigError, match="within its own folder")
    with here.held(SAID), refused, kept_study(here, within, listen=lambda _: None):
        pass
