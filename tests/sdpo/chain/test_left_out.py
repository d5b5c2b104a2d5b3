"""What a run says of rows that it leaves out: how many, why, where they are listed, and once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench, Values
from forked_stages import forked_stages

from sdpo.chain.execute import execute
from sdpo.chain.open_run import open_run
from sdpo.chain.run_chain import chain
from sdpo.config.load import make_config
from sdpo.events import Event, NoteEvent, WarningEvent
from sdpo.hooks import Host

GOOD = [{"prompt": f"Q {k}?", "chosen": f"good {k}", "rejected": f"bad {k}"} for k in range(20)]
LONG = [{"prompt": f"{'why ' * 300}{k}", "chosen": "good", "rejected": "bad"} for k in range(2)]
"""These have no room for an answer once they are tokens."""

Told = Callable[..., list[Event]]


@pytest.fixture
def told(bench: Bench, write_jsonl: Callable[..., Path]) -> Told:
    """``told(rows, **settings)``: what a run of these rows says of them until its plan."""

    def told(
        rows: list[Values], *, name: str = "tiny", supervised: Values | None = None, **data: Values
    ) -> list[Event]:
        path = str(write_jsonl(rows, f"{name}.jsonl"))
        changes: Values = {
            "name": name,
            "data": {"max_length": 64, "sources": [{"name": "mine", "path": path}], **data},
            "partition": {"strategy": "natural"},
            "steps": [],
            **({"supervised": supervised} if supervised else {}),
        }
        events: list[Event] = []
        config = make_config(bench.values(changes))
        with forked_stages(), open_run(config, host=Host(listen=events.append)) as context:
            execute(context, chain(context)[:3])
        kinds = (NoteEvent, WarningEvent)
        return [e for e in events if isinstance(e, kinds) and "left out" in e.message]

    return told


def test_many_rows_that_are_left_out_are_warned_of_once_with_reasons_and_their_list(
    told: Told, bench: Bench
) -> None:
    rows = [*GOOD, *GOOD[:3], {"prompt": "same", "chosen": "x", "rejected": "x"}, *LONG]
    [event] = told(rows)
    assert isinstance(event, WarningEvent)
    listed = bench.runs / "tiny" / "rejected_rows.jsonl"
    assert event.message == (
        "6 of 26 rows are left out (duplicate 3, equal_sides 1, prompt_fills_length 2): "
        f"{listed} lists them"
    )
    assert len(listed.read_text().splitlines()) == 6
    assert told(rows) == []


def test_a_few_rows_that_are_left_out_are_a_note_and_none_is_no_word(told: Told) -> None:
    [event] = told([*GOOD, GOOD[0]])
    assert isinstance(event, NoteEvent)
    assert event.message.startswith("1 of 21 rows is left out (duplicate 1): ")
    assert told(GOOD, name="good") == []


def test_rows_that_were_only_not_drawn_are_not_left_out(told: Told) -> None:
    assert told(GOOD, limit=10) == []


def test_supervised_rows_that_are_left_out_are_told_too(
    told: Told, write_jsonl: Callable[..., Path]
) -> None:
    rows = [{"prompt": f"Text {k}", "completion": f"Word {k}."} for k in range(6)]
    path = write_jsonl([*rows, rows[0]], "examples.jsonl")
    [event] = told(GOOD, supervised={"enabled": True, "examples": "source", "path": str(path)})
    assert "1 of 7 supervised rows is left out (duplicate 1)" in event.message
    listed = Path(event.message.split("): ")[1].removesuffix(" lists them"))
    assert json.loads(listed.read_text())["row"] == 7
