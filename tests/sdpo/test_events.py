import json

import pytest
from pydantic import ValidationError

from sdpo.events import (
    EventReader,
    EventWriter,
    NodeEvent,
    ProgressEvent,
    ResultEvent,
    event_of,
)
from sdpo.processes.stage_results import StepResult, TrialResult


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stage.events.jsonl"


def test_events_are_read_in_order_and_once(path):
    writer, reader = EventWriter(path), EventReader(path)
    writer.phase("load", detail="漢字")
    writer.warning("look here")
    first, second = reader.read()
    assert (first["event"], first["phase"], first["detail"]) == ("phase", "load", "漢字")
    assert (second["event"], second["message"]) == ("warning", "look here")
    assert list(reader.read()) == []
    writer.result(TrialResult(steps=[3]))
    assert [event["event"] for event in reader.read()] == ["result"]


def test_a_reader_waits_for_a_file_that_is_not_there_yet(path):
    reader = EventReader(path)
    assert list(reader.read()) == []
    EventWriter(path).phase("load")
    assert len(list(reader.read())) == 1


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_line_that_is_half_written_is_left_for_the_next_look(path, cut):
    lines = [
        json.dumps({"event": "phase", "phase": "load", "detail": f"é{i}"}) + "\n" for i in range(2)
    ]
    whole = "".join(lines).encode()
    at = len(lines[0].encode()) + cut if cut > 0 else len(whole) + cut
    reader = EventReader(path)
    path.write_bytes(whole[:at])
    assert [event["detail"] for event in reader.read()] == ["é0"]
    assert list(reader.read()) == []
    path.write_bytes(whole)
    assert [event["detail"] for event in reader.read()] == ["é1"]


def test_a_look_that_is_broken_off_goes_on_where_it_stood(path):
    writer, reader = EventWriter(path), EventReader(path)
    for number in range(3):
        writer.emit(ProgressEvent(phase="score", done=number, total=2, unit="pairs"))
    assert next(iter(reader.read()))["done"] == 0
    assert [event["done"] for event in reader.read()] == [1, 2]


def test_progress_is_thinned_out_and_its_end_always_told(path):
    writer = EventWriter(path)
    for done in range(1, 1001):
        writer.progress("score", done, 1000, unit="tokens")
    events = list(EventReader(path).read())
    assert events[0]["done"] == 1
    assert events[-1]["done"] == 1000
    assert len(events) < 100


def test_two_writers_share_a_file(path):
    one, other = EventWriter(path), EventWriter(path)
    one.note("a")
    other.note("b")
    one.note("c")
    assert [event["message"] for event in EventReader(path).read()] == ["a", "b", "c"]


def test_a_writer_without_a_path_stays_silent(tmp_path):
    EventWriter(None).phase("load")
    assert list(tmp_path.iterdir()) == []


def test_an_event_says_in_its_file_what_was_given_of_it_alone(path):
    EventWriter(path).phase("load")
    EventWriter(path).result(StepResult(model="", timings_s={"load": 1.5}))
    phase, result = (json.loads(line) for line in path.read_text().splitlines())
    assert list(phase) == ["event", "time", "phase"]
    assert list(result) == ["event", "time", "model", "timings_s"]


def test_a_result_comes_back_as_what_the_stage_gave(path):
    given = StepResult(model="abc", timings_s={"load": 1.5})
    EventWriter(path).result(given)
    (event,) = EventReader(path).read()
    assert isinstance(event, ResultEvent)
    assert event.read(StepResult) == given
    with pytest.raises(ValidationError, match="steps"):
        event.read(TrialResult)


def test_an_event_is_of_the_kind_that_it_says():
    node = {"event": "node", "node": "data", "status": "run", "reason": ""}
    assert event_of(node) == NodeEvent(node="data", status="run", reason="")
    read = event_of(
        {"event": "progress", "phase": "read", "done": 1, "total": None, "unit": "rows"}
    )
    assert isinstance(read, ProgressEvent)
    assert (read["phase"], read.get("note"), read.get("message", "none")) == ("read", "", "none")
    for wrong in (node | {"event": "knot"}, {"event": "node"}, node | {"status": "perhaps"}):
        with pytest.raises(ValidationError):
            event_of(wrong)


def test_a_field_that_a_kind_of_event_has_not_is_no_field():
    with pytest.raises(KeyError, match="message"):
        NodeEvent(node="data", status="run", reason="")["message"]
    with pytest.raises(ValidationError, match="frozen"):
        event_of({"event": "note", "message": "x"}).message = "y"
