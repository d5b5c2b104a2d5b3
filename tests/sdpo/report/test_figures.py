import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.report.figures import MAX_POINTS, Curve, Estimate, Scale, curves, estimates, histograms
from sdpo.report.tables import count, duration, interval, number, percent


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside_the_scale(low: float, width: float) -> None:
    ticks = Scale(low, low + width, 0, 100).ticks()
    assert 1 <= len(ticks) <= 8
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


def test_ticks_are_round() -> None:
    assert Scale(-38.6, 84.35, 0, 1).ticks() == [0, 50]
    assert Scale(0, 1, 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_an_estimate_without_an_interval_has_a_dot_and_no_line() -> None:
    drawn = estimates([("D_1", [Estimate(0, "S", 2.0, None, None, "2.00")])], label="γ", mark=0.0)
    assert drawn.count("<circle") == 1
    assert "whisker" not in drawn


def test_an_estimate_stands_between_the_ends_of_its_interval() -> None:
    drawn = estimates([("D_1", [Estimate(1, "M_1", 2.0, -1.0, 3.0, "2.00")])], label="γ", mark=0.0)
    x1, x2 = (float(re.search(rf'whisker[^>]*{end}="([\d.]+)"', drawn)[1]) for end in ("x1", "x2"))
    center = float(re.search(r'cx="([\d.]+)"', drawn)[1])
    assert (center - x1) / (x2 - x1) == pytest.approx(0.75, abs=0.01)


def test_labels_are_escaped_and_subscripts_are_real() -> None:
    drawn = estimates([("D_12 <&", [Estimate(0, "M_0", 1, 0, 2, "1")])], label="γ", mark=0.0)
    assert "D₁₂ &lt;&amp;" in drawn
    assert "M₀" in drawn


@pytest.mark.parametrize("gamma", [[4.0], [4.0, 4.0], [-1e6, 0.0, 1e6]])
def test_a_histogram_of_few_or_extreme_values_is_drawn(gamma: list[float]) -> None:
    drawn = histograms([(0, "S", np.array(gamma))], label="γ on D_1")
    assert "nan" not in drawn
    assert drawn.count("<path") == 1


def test_a_long_curve_is_averaged_over_stretches() -> None:
    steps = list(range(1, 5001))
    drawn = curves([Curve(1, steps, [float(s % 2) for s in steps], [5000], [0.5])], label="loss")
    points = re.search(r'points="([^"]+)"', drawn)[1].split()
    assert len(points) == MAX_POINTS
    heights = [float(point.split(",")[1]) for point in points]
    assert max(heights) - min(heights) < 10, "the means of a wave are nearly flat"


def test_a_later_step_is_drawn_after_the_earlier_one() -> None:
    drawn = curves([Curve(1, [1, 2], [1.0, 0.5]), Curve(2, [1, 2], [1.0, 0.5])], label="loss")
    first, second = (
        [float(p.split(",")[0]) for p in points.split()]
        for points in re.findall(r'points="([^"]+)"', drawn)
    )
    assert max(first) < min(second)


def test_a_constant_curve_is_drawn() -> None:
    assert "nan" not in curves([Curve(1, [1], [0.693])], label="loss", mark=0.693)


def test_numbers_are_written_for_people() -> None:
    assert number(-38.6) == "−38.60"
    assert number(-0.001) == "0.00"
    assert number(0.001, signed=True) == "0.00"
    assert number(None) == percent(None) == count(None) == "–"
    assert percent(0.565) == "56.5%"
    assert interval(None, None) == "(too few to tell)"
    assert interval(-1.0, 2.5) == "[−1.00, +2.50]"
    assert [duration(s) for s in (4.21, 61, 3723)] == ["4.2 s", "1 min 01 s", "1 h 02 min"]
