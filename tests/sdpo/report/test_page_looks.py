"""What a reader sees of the report: contrasts, words before they are used, numbers."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from sdpo.report import write_report
from sdpo.report.page import TERMS

STYLE = files("sdpo.report").joinpath("report.css").read_text(encoding="utf-8")
TEXTS = ["ink", "muted", "good", "mixed", "bad", "open", *(f"t{tone}" for tone in range(7))]
GROUNDS = ["page", "panel", "soft"]


def colours(theme: str) -> dict[str, str]:
    """The colours of a theme by their names."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    return found if theme == "light" else found | dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", dark))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_black_on_white_is_the_contrast_that_the_standard_says() -> None:
    assert (luminance("#ffffff") + 0.05) / (luminance("#000000") + 0.05) == pytest.approx(21)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_text_has_the_contrast_of_level_aa(text: str, ground: str, theme: str) -> None:
    found = colours(theme)
    lighter, darker = sorted((luminance(found[text]), luminance(found[ground])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (found[text], found[ground])


def test_every_symbol_is_explained_before_it_is_used(make_run: Callable[..., Path]) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    start = text.index('class="note terms"')
    assert start < text.index('id="verdict"')
    for word in ("S ", "M_t", "D_t", "γ", "nats", "γ_ref", "Reserve", "Probe", "[a, b]"):
        assert word in TERMS, word


def test_a_count_is_written_in_one_way(make_run: Callable[..., Path]) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    assert not re.search(
        r"\d,\d{3}\b", re.sub(r"<(style|pre)>.*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL)
    )
