import json

import pytest

from sdpo.events import EventReader, EventWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stage.events.jsonl"


def test_events_are_read_in_order_and_once(path):
    writer, reader = EventWriter(path), EventReader(path)
    writer.emit("phase", phase="load", detail="漢字")
    writer.warning("look here")
    first, second = reader.read()
    assert (first["event"], first["phase"], first["detail"]) == ("phase", "load", "漢字")
    assert (second["event"], second["message"]) == ("warning", "look here")
    assert list(reader.read()) == []
    writer.emit("result", steps=3)
    assert [event["event"] for event in reader.read()] == ["result"]


def test_a_reader_waits_for_a_file_that_is_not_there_yet(path):
    reader = EventReader(path)
    assert list(reader.read()) == []
    EventWriter(path).emit("phase")
    assert len(list(reader.read())) == 1


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_line_that_is_half_written_is_left_for_the_next_look(path, cut):
    lines = [json.dumps({"event": "phase", "detail": f"é{i}"}) + "\n" for i in range(2)]
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
        writer.emit("phase", number=number)
    assert next(iter(reader.read()))["number"] == 0
    assert [event["number"] for event in reader.read()] == [1, 2]


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
    one.emit("a")
    other.emit("b")
    one.emit("c")
    assert [event["event"] for event in EventReader(path).read()] == ["a", "b", "c"]


def test_a_writer_without_a_path_stays_silent(tmp_path):
    EventWriter(None).emit("phase")
    assert list(tmp_path.iterdir()) == []
