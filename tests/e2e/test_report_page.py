"""The report in a real browser: no table is cut, a printed page hides nothing, it looks as kept."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from sdpo.report import write_report

pytest.importorskip("playwright", reason="playwright is not installed: extra `e2e`")
from browser import CHROMIUM
from PIL import Image
from playwright.sync_api import sync_playwright

KEPT = Path(__file__).resolve().parents[1] / "golden" / "looks"
WIDTHS = [(1300, "screen"), (400, "screen"), (700, "print")]
"""Of a desk, a phone and a printed page."""

FONTS = next(Path("/usr/share/fonts").rglob("DejaVuSerif.ttf"), None)
"""In whose family the kept pictures are written: another one breaks lines elsewhere."""
FAMILIES = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<dir>{fonts}</dir><cachedir>{cache}</cachedir><include>/etc/fonts/conf.d</include></fontconfig>"""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not FONTS, reason="there is no DejaVu: apt-get install fonts-dejavu-core"),
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: apt-get install chromium"),
]

CUT = """() => [document.documentElement, ...document.querySelectorAll('.scroll, td > span')]
  .filter(each => each.scrollWidth > each.clientWidth + 1 && each.clientWidth)
  .map(each => each.innerText.slice(0, 80))"""
HIDDEN = """() => [...document.querySelectorAll('details > :not(summary), td, th, svg text')]
  .filter(each => each.textContent.trim())
  .filter(each => !each.checkVisibility() || !each.getBoundingClientRect().width)
  .map(each => each.outerHTML.slice(0, 80))"""
OPEN = "() => document.querySelectorAll('details').forEach(each => { each.open = true })"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Any]]:
    """The report of a run of random numbers, open at every width."""
    folder = tmp_path_factory.mktemp("looked")
    report = write_report(write_run(folder / "run"))
    assert FONTS is not None
    families = folder / "fonts.conf"
    families.write_text(FAMILIES.format(fonts=FONTS.parent, cache=folder / "fonts"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-dev-shm-usage"],
            env={**os.environ, "FONTCONFIG_FILE": str(families)},
        )
        opened = {}
        for width, media in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 2400}, color_scheme="light")
            page.emulate_media(media="print" if media == "print" else "screen")
            page.goto(report.as_uri())
            opened[width] = page
        yield opened
        browser.close()


@pytest.mark.parametrize(("width", "media"), WIDTHS)
def test_it_looks_as_it_was_kept(
    pages: dict[int, Any], width: int, media: str, tmp_path: Path
) -> None:
    """Within what another browser changes: both are made small, and compared in grey."""
    pages[width].screenshot(path=tmp_path / "now.png")
    size = (width // 10, 240)
    now, kept = (
        Image.open(path).convert("L").resize(size, Image.Resampling.BOX).tobytes()
        for path in (tmp_path / "now.png", KEPT / f"report_{width}_{media}.png")
    )
    differences = [abs(a - b) for a, b in zip(now, kept, strict=True)]
    assert sum(differences) / len(differences) < 6, "of 255: look at it, then keep the new one"


@pytest.mark.parametrize(("width", "media"), WIDTHS)
def test_no_table_is_cut_and_print_hides_nothing(
    pages: dict[int, Any], width: int, media: str
) -> None:
    page = pages[width]
    if media == "print":
        assert page.evaluate(HIDDEN) == []
    else:
        page.evaluate(OPEN)
    assert page.evaluate(CUT) == []
