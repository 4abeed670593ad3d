"""The pictures: scales that hold their points, bars where the numbers are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from lipaudit.report import charts
from lipaudit.report.charts import Axis
from lipaudit.report.svg import element, percent
from tests.report import audits

POINTS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


@given(POINTS, st.integers(4, 8))
def test_an_axis_holds_all_points_with_few_round_ticks(points: list[float], most: int) -> None:
    axis = Axis.over(points, most)
    assert axis.lo <= min(points) and max(points) <= axis.hi
    ticks = axis.ticks()
    assert ticks[0] == axis.lo and abs(ticks[-1] - axis.hi) <= 1e-9 * max(1.0, abs(axis.hi))
    assert 2 <= len(ticks) <= most + 2
    assert re.fullmatch(r"[125]0*", str(round(axis.step)))


@given(POINTS, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_larger_gains_are_drawn_further_right_and_inside(points: list[float], one: float, two: float) -> None:
    axis = Axis.over(points, 6, 0.1, 0.9)
    low, high = sorted((one, two))
    assert 0.1 <= axis.at(low) <= axis.at(high) <= 0.9 + 1e-12


def rects(picture: Markup | None) -> list[tuple[float, float]]:
    assert picture is not None
    return [(float(x), float(width)) for x, width in re.findall(r'<rect x="([\d.]+)%" y="[\d.]+" width="([\d.]+)%"', picture)]


def test_a_bar_reaches_from_gain_one_to_the_certified_gain() -> None:
    picture = charts.gains([audits.region("up", "linear", 2.0, 1.0), audits.region("down", "linear", -1.0, None)])
    assert rects(picture) == [(pytest.approx(100 / 3, abs=0.01), pytest.approx(200 / 3, abs=0.01)), (0.0, pytest.approx(100 / 3, abs=0.01))]
    marks = re.findall(r'<line x1="([\d.]+)%"[^>]*class="measured-line"', str(picture))
    assert [float(mark) for mark in marks] == [pytest.approx(200 / 3, abs=0.01)]


def test_an_unbounded_region_is_drawn_open_and_says_so() -> None:
    bound = audits.unbounded().certified
    picture = charts.gains([audits.region("a", "linear", 1.0, None), audits.region("b", "attention", None, None, bound=bound)])
    assert "stroke-dasharray" in str(picture) and "unbounded" in str(picture)


def test_the_interval_reaches_from_measured_to_certified() -> None:
    ((start, width),) = rects(charts.interval(audits.audit()))
    axis = Axis.over([1.49136 - 0.5, 3.86035 + 0.5], 6, 0.04, 0.96)
    assert start == pytest.approx(100 * axis.at(1.49136), abs=0.01)
    assert start + width == pytest.approx(100 * axis.at(3.86035), abs=0.01)
    ((start, width),) = rects(charts.interval(audits.unknown()))
    assert start + width == pytest.approx(100, abs=0.01)
    assert charts.interval(audits.unbounded()) is None


def test_the_profile_leaves_gaps_where_nothing_is_known() -> None:
    known = [audits.region(str(i), "linear", 0.1, None, before_log10=float(i), after_log10=4.0 - i) for i in range(5)]
    assert len(re.findall(r'class="certified-line"', str(charts.profile(known, 4.0)))) == 4 + 5
    gap = [*known[:2], audits.region("gap", "linear", 0.1, None), *known[3:]]
    assert len(re.findall(r'<line [^>]*class="certified-line"', str(charts.profile(gap, None)))) == 2
    assert charts.profile(known[:2], 4.0) is None
    assert charts.profile([audits.region(str(i), "linear", 0.1, None) for i in range(9)], None) is None


def test_svg_refuses_styles_and_escapes_everything_else() -> None:
    with pytest.raises(ValueError, match="presentation"):
        element("rect", {"style": "fill: red"})
    assert element("text", {"x": '"><script>'}, ["<b>"]) == '<text x="&#34;&gt;&lt;script&gt;">&lt;b&gt;</text>'
    assert percent(1 / 3) == "33.333%"
