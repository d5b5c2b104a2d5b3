"""The page by which a person judges a new model."""

from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from report_runs import write_run

from flows.ui.judgement import judgement_page
from sdpo.promotion.judge import Check, Judgement
from sdpo.store.run_folder import RunFolder

HOSTILE = r"a | b `c` <img src=x onerror=alert(1)> [d](http://evil.test) **e** ![f](//g) \\ *h*"


def interval(estimate: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"estimate": estimate, "low": low, "high": high}


def comparison(scope: str, pairs: int) -> dict[str, Any]:
    """The numbers of a scope; those of the new model are higher."""
    return {
        "scope": scope,
        "pairs": pairs,
        "current": {
            "accuracy_vs_S": interval(0.6123456789, 0.55, 0.67),
            "margin": interval(1.5, 1.1, 1.9),
        },
        "new": {
            "accuracy_vs_S": interval(0.7, 0.64, 0.76),
            "margin": interval(2.25, 1.8, 2.7),
        },
        "difference": {
            "accuracy_vs_S": interval(0.0876543211, 0.01, 0.16),
            "margin": interval(0.75, None, None),
        },
    }


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(write_run(tmp_path / "run", completion=HOSTILE))


def page(run: RunFolder, *scopes: str, new: int = 2) -> str:
    checks = (
        Check(check="accuracy_vs_S", scope="all", passed=True, why="said in the table"),
        Check(check="gamma", scope="all", passed=True, why="mean gamma changed by +2.250"),
    )
    return judgement_page(
        Judgement(
            outcome="passed",
            reason="not worse than the current model on 268 reserved pairs",
            new=new,
            current=1,
            pairs=268,
            checks=checks,
            comparisons=tuple(comparison(scope, 268) for scope in scopes),
        ),
        run,
    )


def tokens(text: str) -> list[Token]:
    """All tokens of the page as a reader of Markdown sees it, images and raw HTML too."""
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [inner for token in parsed for inner in (token, *(token.children or []))]


def rows_of(found: list[Token], heading: str) -> list[list[str]]:
    """The rows of the table below a heading, each cell as its text."""
    start = next(at for at, token in enumerate(found) if token.content.endswith(heading))
    rows: list[list[str]] = []
    for before, token in zip(found[start:], found[start + 1 :], strict=False):
        if before.type == "tr_open":
            rows.append([])
        if before.type == "td_open":
            rows[-1].append("".join(child.content for child in token.children or []))
    return [row for row in rows if row]


def test_it_has_both_numbers_of_both_models_with_intervals(run: RunFolder) -> None:
    text = page(run, "all", "orca", "ultrafeedback")
    assert "61.2% [55.0, 67.0] | 70.0% [64.0, 76.0] | +8.8 points [1.0, 16.0] |" in text
    assert "1.50 [1.10, 1.90] | 2.25 [1.80, 2.70] | +0.75 (too few to tell) |" in text
    assert text.count("| accuracy against S |") == 3
    assert "mean gamma changed by" in text
    assert "said in the table" not in text


def test_a_reserve_of_one_source_is_shown_once(run: RunFolder) -> None:
    assert page(run, "all", "orca").count("| accuracy against S |") == 1


def test_the_answers_of_both_models_stand_side_by_side_as_text(run: RunFolder) -> None:
    found = tokens(page(run, "all"))
    markup = {"image", "link_open", "html_inline", "html_block", "em_open", "code_inline"}
    rows = rows_of(found, "3 reserved prompts")
    of_answers = found[found.index(next(t for t in found if t.content == "3 reserved prompts")) :]
    of_table = [token.type for token in of_answers if token.content != "probe.completions"]
    assert not markup & set(of_table)
    assert len(rows) == 3
    assert rows[0] == [
        "What is the capital of France?",
        f"{HOSTILE} {HOSTILE}",
        f"{HOSTILE} {HOSTILE} {HOSTILE}",
    ]


def test_a_run_without_completions_says_why_there_is_nothing_to_read(run: RunFolder) -> None:
    assert "No completions were made (probe.completions)" in page(run, "all", new=9)
