"""What the UI's cards, tables and log lines say of a run."""

import base64
import logging
import re
from xml.etree import ElementTree

import pytest
from bench import Bench, Outcome

from flows.show.comparison import comparison_lines
from flows.ui.runcard import gamma_ref_rows, run_card
from flows.ui.runpage import RunPage
from sdpo.events import NodeEvent
from sdpo.history.results import Comparison
from sdpo.report import summarise
from sdpo.store.reuse import NOT_DONE
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json, write_json


def test_a_probe_that_was_measured_twice_has_one_row_that_of_all_its_pairs(
    finished_copy: Bench,
) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    path = run.step(2) / "gamma.json"
    entries = read_json(path)
    (whole,) = [e for e in entries if (e["model"], e["probe"]) == ("M_1", "D_2")]
    assert whole["whole"]
    write_json(path, [*entries, whole | {"whole": False, "pairs": 5}])
    rows = [row for row in gamma_ref_rows(run.path) if row["probe"] == "D_2" and row["step"] == 2]
    assert [row["pairs"] for row in rows] == [str(whole["pairs"])]
    write_json(path, [e | {"whole": False, "pairs": 5} for e in entries])
    rows = [row for row in gamma_ref_rows(run.path) if row["probe"] == "D_2" and row["step"] == 2]
    assert [row["pairs"] for row in rows] == ["5, a sample"]


def test_the_card_has_its_figures_in_its_own_text_and_they_are_whole_images(
    finished_bench: Bench, finished: Outcome
) -> None:
    card = run_card(finished.folder, summarise(finished.folder))
    images = re.findall(r"!\[([^]]+)\]\(data:image/svg\+xml;base64,([^)]+)\)", card)
    assert [title for title, _ in images] == [
        "Mean γ of every model on every probe",
        "Ranking accuracy on the reserve",
    ]
    for title, data in images:
        svg = ElementTree.fromstring(base64.b64decode(data))
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
        assert {"S", "M₁", "M₂"} <= set(texts), title
        assert len(list(svg.iter("{http://www.w3.org/2000/svg}line"))) >= 3, "intervals"


@pytest.mark.parametrize(
    ("found", "follows"),
    [
        (Comparison(verdict="bitwise identical"), "The step is reproduced."),
        (
            Comparison(verdict="same inputs, results differ", results=("loss curve: 1 -> 2",)),
            "The step is not reproduced",
        ),
        (
            Comparison(verdict="inputs differ", inputs=("beta: 1 -> 2",), results=("weights",)),
            "This is another step",
        ),
        (Comparison(verdict="inputs differ", inputs=("beta: 1 -> 2",)), "are the same, bit by bit"),
        (Comparison(verdict="unknown", inputs=("no record",)), "Nothing follows"),
    ],
    ids=lambda given: getattr(given, "verdict", ""),
)
def test_the_card_of_a_replay_says_what_follows(found: Comparison, follows: str) -> None:
    lines = comparison_lines(found, "step 1 of tiny again")
    assert any(follows in line for line in lines)
    assert [f"- {line}" for line in found.inputs if f"- {line}" not in lines] == []


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (NodeEvent(node="plan", status="run", reason=NOT_DONE), "plan begins"),
        (NodeEvent(node="plan", status="run", reason="beta: 1 -> 2"), "plan begins: beta: 1 -> 2"),
        (NodeEvent(node="plan", status="reuse", reason=""), "plan is done"),
        (NodeEvent(node="plan", status="reuse", reason="shared from a"), "plan shared from a"),
    ],
)
def test_the_log_says_what_becomes_of_a_node(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    event: NodeEvent,
    line: str,
) -> None:
    logger = logging.getLogger("a run's")
    logger.setLevel(logging.INFO)
    monkeypatch.setattr("flows.ui.runpage.get_run_logger", lambda: logger)
    RunPage("tiny").listen(event)
    assert [record.getMessage() for record in caplog.records if record.name == logger.name] == [
        line
    ]
