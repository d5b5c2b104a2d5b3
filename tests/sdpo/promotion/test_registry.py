"""The registry of promoted models: moved at once, never losing a version, never believing a model
that is not what its record says."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from bench import Bench, Outcome
from histories import flip, origin, replayed

from sdpo.errors import IntegrityError, UserError
from sdpo.history.target import Checkpoint
from sdpo.promotion.versions import REGISTRY, current, promote, read_registry, rollback

PROMOTE = """
import sys
from pathlib import Path
from sdpo.history.target import Checkpoint
from sdpo.promotion.versions import promote
from sdpo.store.run_folder import RunFolder
runs = Path(sys.argv[1])
for turn in range(6):
    found = Checkpoint(RunFolder(runs / "tiny"), 1 + turn % 2)
    promote(found, runs_dir=runs, name=sys.argv[2])
"""


def test_a_promoted_model_is_current_with_run_digest_time_and_reason(
    finished_copy: Bench, finished: Outcome
) -> None:
    runs = finished_copy.runs
    promote(Checkpoint(origin(finished_copy)), runs_dir=runs, why="the first")
    version = current("tiny", runs_dir=runs).in_use
    assert (version.version, version.run, version.step) == (1, "tiny", 2)
    assert version.digest == finished.record("step-2")["outputs"]["model"]
    assert version.why == "the first"
    assert version.when.startswith("20")
    assert version.when.endswith("+00:00")


def test_versions_are_kept_and_rolling_back_walks_through_what_was_in_use(
    finished_copy: Bench,
) -> None:
    runs, run = finished_copy.runs, origin(finished_copy)
    for step in (1, 2, 1):
        promote(Checkpoint(run, step), runs_dir=runs, name="chat")
    assert [v.step for v in current("chat", runs_dir=runs).versions] == [1, 2, 1]
    assert rollback("chat", runs_dir=runs).current == 2
    assert promote(Checkpoint(run, 1), runs_dir=runs, name="chat").current == 4
    assert rollback("chat", runs_dir=runs).current == 2, "which version 4 replaced"
    assert rollback("chat", runs_dir=runs).current == 1
    with pytest.raises(UserError, match="version 1 of chat is the first one"):
        rollback("chat", runs_dir=runs)
    found = rollback("chat", runs_dir=runs, to=3, why="better after all")
    assert found.in_use.version == 3
    assert len(found.versions) == 4
    assert [(m.from_version, m.to_version) for m in found.moves] == [
        *((0, 1), (1, 2), (2, 3), (3, 2), (2, 4), (4, 2), (2, 1), (1, 3))
    ]
    assert found.moves[-1].why == "better after all"
    with pytest.raises(UserError, match="chat has no version 9; versions: 1, 2, 3, 4"):
        rollback("chat", runs_dir=runs, to=9)


def test_promoting_what_is_current_changes_nothing(finished_copy: Bench) -> None:
    found = Checkpoint(origin(finished_copy))
    promote(found, runs_dir=finished_copy.runs)
    before = (finished_copy.runs / REGISTRY).read_bytes()
    assert promote(found, runs_dir=finished_copy.runs, why="again").current == 1
    assert (finished_copy.runs / REGISTRY).read_bytes() == before


def test_a_model_with_a_flipped_byte_is_neither_promoted_nor_rolled_back_to(
    finished_copy: Bench,
) -> None:
    runs, run = finished_copy.runs, origin(finished_copy)
    for step in (1, 2):
        promote(Checkpoint(run, step), runs_dir=runs)
    flip(run.model(1) / "model.safetensors")
    with pytest.raises(IntegrityError, match="does not hold M_1 of run tiny"):
        rollback("tiny", runs_dir=runs)
    assert current("tiny", runs_dir=runs).current == 2
    flip(run.model(2) / "model.safetensors")
    with pytest.raises(IntegrityError, match="does not hold M_2 of run tiny"):
        promote(Checkpoint(run), runs_dir=runs, name="other")
    assert list(read_registry(runs)) == ["tiny"]


def test_a_run_is_promoted_under_the_name_of_the_run_it_comes_from(finished_copy: Bench) -> None:
    runs, run = finished_copy.runs, origin(finished_copy)
    _, other = replayed(run, "training.beta=0.2", step=2, only=True, name="other")
    assert promote(Checkpoint(other.run), runs_dir=runs).name == "tiny", "the first of its line"
    promote(Checkpoint(run), runs_dir=runs, name="chat")
    with pytest.raises(UserError, match=r"several names: chat, tiny.*--name"):
        promote(Checkpoint(other.run), runs_dir=runs)


def test_a_pointer_that_somebody_else_moved_is_not_moved_again(finished_copy: Bench) -> None:
    runs, run = finished_copy.runs, origin(finished_copy)
    promote(Checkpoint(run, 1), runs_dir=runs)
    with pytest.raises(UserError, match="at version 1 now and was at 0"):
        promote(Checkpoint(run, 2), runs_dir=runs, expected=0)
    assert promote(Checkpoint(run, 2), runs_dir=runs, expected=1).current == 2


def test_a_run_that_is_not_finished_is_refused(finished_copy: Bench) -> None:
    run = origin(finished_copy)
    (run.step(2) / "record.json").unlink()
    with pytest.raises(UserError, match=r"tiny is not finished, since step 2 is not complete"):
        promote(Checkpoint(run), runs_dir=finished_copy.runs)
    with pytest.raises(UserError, match="no complete step 2; complete: 1"):
        promote(Checkpoint(run, 2), runs_dir=finished_copy.runs)
    with pytest.raises(UserError, match="nothing was promoted as tiny yet"):
        current("tiny", runs_dir=finished_copy.runs)


def test_a_registry_that_is_none_is_an_error_and_is_not_overwritten(finished_copy: Bench) -> None:
    path = finished_copy.runs / REGISTRY
    for text in ("{", '{"names": {"tiny": {}}}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(IntegrityError, match="damaged"):
            promote(Checkpoint(origin(finished_copy)), runs_dir=finished_copy.runs)
        assert path.read_text(encoding="utf-8") == text


def test_processes_that_promote_at_once_lose_no_version(finished_copy: Bench) -> None:
    calls = [
        subprocess.Popen([sys.executable, "-c", PROMOTE, str(finished_copy.runs), name])
        for name in ("same", "same", "other")
    ]
    assert [call.wait(120) for call in calls] == [0, 0, 0]
    same, other = (current(name, runs_dir=finished_copy.runs) for name in ("same", "other"))
    assert len(other.versions) == 6
    for named in (same, other):
        assert [v.version for v in named.versions] == list(range(1, len(named.versions) + 1))
        assert all(m.to_version == b.from_version for m, b in pairwise(named.moves))
    json.loads((finished_copy.runs / REGISTRY).read_text(encoding="utf-8"))
    assert not list(Path(finished_copy.runs).glob(".tmp-*"))
