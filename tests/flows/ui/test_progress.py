"""How far a stage is, and how long it will take."""

from flows.ui.progress import StageProgress
from sdpo.events import ProgressEvent


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(phase: str, done: int, total: int) -> ProgressEvent:
    return ProgressEvent(phase=phase, done=done, total=total, unit="pairs")


def test_the_phases_of_a_stage_share_its_percent_by_their_work() -> None:
    clock = Clock()
    state = StageProgress({"score": 100, "train": 300}, clock)
    assert state.left == ""
    state.take(progress("score", 5, 10))
    assert state.percent == 12.5
    clock.now = 30
    state.take(progress("train", 1, 3))
    assert state.percent == 50
    assert state.left == "about 30 s left"
    clock.now = 40
    state.take(progress("train", 3, 3))
    assert state.percent == 100
    assert state.left == ""


def test_a_phase_that_was_not_announced_moves_nothing_back() -> None:
    state = StageProgress({"score": 100, "train": 300}, Clock())
    state.take(progress("train", 1, 3))
    for phase in ("completions", "score"):
        state.take(progress(phase, 1, 10))
        assert state.percent == 50


def test_a_stage_that_says_nothing_of_its_work_is_as_far_as_its_phase() -> None:
    clock = Clock()
    state = StageProgress(clock=clock)
    state.take(progress("tokenise", 10, 1000))
    clock.now = 100
    state.take(progress("tokenise", 20, 1000))
    assert state.percent == 2
    assert state.left == "about 82 min left"
    state.take(progress("tokenise", 0, 0))
    assert state.percent == 2
