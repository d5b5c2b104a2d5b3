"""The notebooks of the documentation run from top to bottom, on runs as small as tests have."""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench
from forked_stages import forked_stages

from docs.site.notebooks import FOLDER, Names, Shown, code_cells, execute, page
from sdpo.plugins import installed

RunNotebook = Callable[..., tuple[Names, list[Shown]]]


@pytest.fixture
def run_notebook(monkeypatch: pytest.MonkeyPatch) -> RunNotebook:
    """``run_notebook(name, folder)``: every cell, in this process; stages find its package."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))

    def run(name: str, folder: Path) -> tuple[Names, list[Shown]]:
        monkeypatch.chdir(folder)
        names: Names = {}
        shown = []
        for code in code_cells(FOLDER / f"{name}.ipynb"):
            installed.forget()  # a process of its own would not have looked yet
            with forked_stages(first=f"import sys; sys.path.insert(0, {str(folder / 'site')!r})"):
                shown.append(execute(code, names))
        return names, shown

    return run


def test_the_demo_run_is_explored(run_notebook: RunNotebook, finished_copy: Bench) -> None:
    finished_copy.write(name="demo.yaml")
    names, shown = run_notebook("demo", finished_copy.folder)
    assert names["first"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert names["again"].comparison().inputs == ("training.beta: 0.1 -> 0.3",)
    assert "M_1 on D_2" in shown[2].printed
    assert "<caption>Reserve</caption>" in shown[1].html


def test_an_objective_of_ones_own_trains(run_notebook: RunNotebook, tmp_path: Path) -> None:
    names, shown = run_notebook("objective", tmp_path)
    assert names["losses"][0] == pytest.approx(1, abs=1e-6)
    assert names["losses"][-1] < 1
    assert "Squared hinge, β 0.1" in shown[2].text
    installed.forget()


@pytest.mark.parametrize("name", ["demo", "objective"])
def test_a_page_of_a_notebook_has_its_text_its_code_and_what_was_shown(name: str) -> None:
    text = page(FOLDER / f"{name}.ipynb")
    assert text.startswith("# ")
    for code in code_cells(FOLDER / f"{name}.ipynb"):
        assert f"```python\n{code}\n```" in text
    assert "\n```\n" in text
    assert "ln 2 is 0.693147" in text or "first 1.000000" in text
