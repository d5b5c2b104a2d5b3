"""How far a stage is, and how long it will take."""

from sdpo.events import ProgressEvent
from sdpo.processes.pace import Pace, StageProgress, in_words


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
    assert state.left == "about 40 s left", "37.5% took 30 s"
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
    assert state.left == "about 2.7 h left", "10 of the 980 that are left took 100 s"
    state.take(progress("tokenise", 0, 0))
    assert state.percent == 2


def test_the_first_look_tells_no_time_and_what_was_done_before_it_counts_for_none() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.left_s(47009) is None
    pace.take(1830)
    assert pace.left_s(47009) is None, "nobody knows how long the first part took"
    clock.now = 0.1
    pace.take(1900)
    assert pace.left_s(47009) is None, "too short to tell"
    clock.now = 10
    pace.take(2830)
    assert pace.left_s(47009) == (47009 - 2830) / 100
    pace.take(47009)
    assert pace.left_s(47009) is None


def test_a_step_that_goes_on_from_a_saved_state_is_not_faster_for_it() -> None:
    clock = Clock()
    state = StageProgress(clock=clock)
    state.take(progress("train", 80, 100))
    clock.now = 50
    state.take(progress("train", 85, 100))
    assert state.left == "about 2 min left", "5 of 15 steps that are left took 50 s"


def test_a_time_left_is_never_none_at_all() -> None:
    assert [in_words(s) for s in (None, 0.2, 59, 61, 7300)] == [
        *("", "about 1 s left", "about 59 s left", "about 1 min left", "about 2.0 h left")
    ]
