"""The pictures of the HTML page: the interval of the headline, the gain of each region, the profile along depth.

All on a log10 axis. Certified is a bar from gain 1 (it is what multiplies), measured a mark on or beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from lipaudit.records import Audit, Region
from lipaudit.report import sentences
from lipaudit.report.svg import chart, element, percent, text
from lipaudit.report.text import power, shorten, shorten_path

__all__ = ["CERTIFIED", "GRID", "MEASURED", "Axis", "gains", "interval", "power_of_ten", "profile"]

# Both have a contrast of at least 3 on white and on the dark background, and differ for colour-blind readers too.
CERTIFIED = "#5b8fc7"
MEASURED = "#c8641b"
GRID = "#8a8f98"
_LABEL = 40


@dataclass(frozen=True)
class Axis:
    """A log10 axis from ``lo`` to ``hi`` with a tick every ``step`` decades, drawn between ``left`` and ``right`` (shares)."""

    lo: float
    hi: float
    step: float
    left: float = 0.0
    right: float = 1.0

    @classmethod
    def over(cls, points: Sequence[float], most: int, left: float = 0.0, right: float = 1.0) -> Axis:
        """An axis that holds all points, with round ticks, at most ``most`` of them."""
        lo, hi = min(points), max(points)
        wide = max(hi - lo, 1.0)
        most = min(most, 4) if wide >= 1000 else most  # long labels need room on a narrow screen
        step = _round_step(wide / (most - 1))
        first, last = math.floor(lo / step) * step, math.ceil(hi / step) * step
        first, last = first - step * (first > lo), last + step * (last < hi)  # lo / step may round to 0
        return cls(first, last if last > first else first + step, step, left, right)

    def at(self, point: float) -> float:
        """Where ``point`` is drawn, as a share of the width."""
        inside = min(max((point - self.lo) / (self.hi - self.lo), 0.0), 1.0)
        return self.left + inside * (self.right - self.left)

    def ticks(self) -> list[float]:
        """The round values on the axis."""
        return [self.lo + i * self.step for i in range(round((self.hi - self.lo) / self.step) + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least ``least``."""
    decade = 10.0 ** math.floor(math.log10(max(least, 1.0)))
    return next(factor * decade for factor in (1.0, 2.0, 5.0, 10.0) if factor * decade >= least * (1 - 1e-9))


def power_of_ten(exponent: float) -> list[Markup | str]:
    """The label of a tick."""
    if exponent == 0:
        return ["1"]
    return ["10", element("tspan", {"dy": -4, "font-size": 9}, [f"{exponent:.15g}"])]


def _grid(axis: Axis, top: float, bottom: float) -> Iterator[Markup]:
    """Vertical lines with a label above each; the line of gain 1 is stronger."""
    ticks = axis.ticks()
    for i, tick in enumerate(ticks):
        x = percent(axis.at(tick))
        line = {"x1": x, "x2": x, "y1": top, "y2": bottom, "stroke": GRID, "stroke-width": 1.5 if tick == 0 else 1}
        yield element("line", {**line, "stroke-opacity": 0.9 if tick == 0 else 0.3})
        anchor = "start" if i == 0 and axis.left == 0 else "end" if i == len(ticks) - 1 and axis.right == 1 else "middle"
        yield text(power_of_ten(tick), x, top - 5, anchor=anchor, size=11)


def _bar(x1: float, x2: float, y: float, height: float, fill: str, name: str, opacity: float = 1.0) -> Markup:
    start, end = min(x1, x2), max(x1, x2)
    attributes = {"x": percent(start), "y": y, "width": percent(max(end - start, 0.003)), "height": height, "rx": 2}
    return element("rect", {**attributes, "fill": fill, "fill-opacity": opacity, "class": name})


def interval(audit: Audit) -> Markup | None:
    """Where the true constant can lie: from measured to certified. None if neither is known."""
    above, below = audit.certified.log10, audit.measured.log10
    known = [point for point in (above, below) if point is not None]
    if not known:
        return None
    # Room on both sides, more where the interval is open.
    axis = Axis.over([min(known) - (0.5 if below is not None else 2.0), max(known) + (0.5 if above is not None else 2.0)], 6, 0.04, 0.96)
    top, bottom = 20.0, 58.0
    left = 0.0 if below is None else axis.at(below)
    right = 1.0 if above is None else axis.at(above)
    parts = [*_grid(axis, top, bottom), _bar(left, right, 31, 16, CERTIFIED, "certified", 0.45)]
    words: list[str] = []
    if below is not None:
        parts.append(_end(left, MEASURED, "measured-line"))
        parts.append(_end_label("measured", left, right, 76))
        words.append(f"measured at least 10^{power(below, up=False)}")
    if above is not None:
        parts.append(_end(right, CERTIFIED, "certified-line"))
        parts.append(_end_label("certified", right, left, 76 if below is None or abs(right - left) > 0.35 else 92))
        words.append(f"certified at most 10^{power(above, up=True)}")
    else:
        parts.append(text("no finite certificate", "100%", 76 if below is None else 92, anchor="end"))
    return chart("interval", "Where the true constant lies", f"Log scale: {', '.join(words)}.", 98, parts)


def _end(at: float, fill: str, name: str) -> Markup:
    return element("line", {"x1": percent(at), "x2": percent(at), "y1": 26, "y2": 52, "stroke": fill, "stroke-width": 4, "class": name})


def _end_label(words: str, at: float, other: float, y: float) -> Markup:
    anchor = "start" if at < 0.22 else "end" if at > 0.78 else "end" if at < other else "start"
    if other in (0.0, 1.0):
        anchor = "start" if at < 0.5 else "end"
    return text(words, percent(at), y, anchor=anchor)


def gains(regions: Sequence[Region]) -> Markup | None:
    """Certified and measured gain of each region as horizontal bars; None if no number is known."""
    points = [point for r in regions for point in (r.certified.log10, r.measured.log10) if point is not None]
    if not points:
        return None
    axis = Axis.over([0.0, *points], 7)
    row, top = 42.0, 24.0
    bottom = top + row * len(regions)
    parts = list(_grid(axis, top, bottom))
    for i, region in enumerate(regions):
        parts.append(_row(region, axis, top + i * row))
    description = f"A bar for each of {len(regions)} regions in the order of the network, log10 axis. The list of regions has the numbers."
    return chart("gains", "Certified and measured gain of each region", description, bottom + 6, parts)


def _row(region: Region, axis: Axis, y: float) -> Markup:
    one = axis.at(0.0)
    certified, measured = sentences.short_certified(region.certified), sentences.short_measured(region.measured)
    parts = [
        element("title", {}, [f"{shorten(region.path, 300)} ({shorten(region.kind, 40)}): certified {certified}, measured {measured}"]),
        text(shorten_path(sentences.label(region.path), _LABEL), "0%", y + 15, dx=4),
        text(_value(region), "100%", y + 15, anchor="end", size=11, dx=-4),
    ]
    above, below = region.certified.log10, region.measured.log10
    if above is not None:
        parts.append(_bar(one, axis.at(above), y + 23, 13, CERTIFIED, "certified", 0.6))
    elif region.certified.status != "finite":
        parts.append(_open_bar(one, y + 23))
    if below is not None:
        parts.append(_mark(axis.at(below), y + 20, 19))
    return element("g", {}, parts)


def _mark(at: float, y: float, height: float) -> Markup:
    """An upright mark at a measured gain."""
    ends = {"x1": percent(at), "x2": percent(at), "y1": y, "y2": y + height}
    return element("line", {**ends, "stroke": MEASURED, "stroke-width": 4, "stroke-linecap": "round", "class": "measured-line"})


def _value(region: Region) -> list[Markup | str]:
    words: list[Markup | str] = []
    if region.certified.log10 is not None:
        words += ["\u2264\u200910", _raised(power(region.certified.log10, up=True))]
    else:
        words.append(sentences.short_certified(region.certified))
    if region.measured.log10 is not None:
        words += [element("tspan", {"dy": 4} if region.certified.log10 is not None else {}, ["  \u2265\u200910"])]
        words += [_raised(power(region.measured.log10, up=False))]
    return words


def _raised(exponent: str) -> Markup:
    return element("tspan", {"dy": -4, "font-size": 9}, [exponent])


def _open_bar(start: float, y: float) -> Markup:
    """A dashed outline to the end of the axis: no finite bound."""
    box = {"x": percent(start), "y": y + 1, "width": percent(max(1.0 - start, 0.002)), "height": 11, "rx": 2, "fill": "none"}
    return element("rect", {**box, "stroke": CERTIFIED, "stroke-width": 1.5, "stroke-dasharray": "5 4", "class": "certified-line"})


def profile(regions: Sequence[Region], total: float | None) -> Markup | None:
    """Certified gain from the inputs to each region, and from each region to the outputs, along depth."""
    before = [region.before_log10 for region in regions]
    after = [region.after_log10 for region in regions]
    points = [point for point in (*before, *after, total) if point is not None]
    if len(regions) < 3 or sum(point is not None for point in before) + sum(point is not None for point in after) < 4:
        return None
    axis = Axis.over([0.0, *points], 6)
    top, bottom = 14.0, 214.0
    parts: list[Markup] = []
    for tick in axis.ticks():
        y = bottom - (tick - axis.lo) / (axis.hi - axis.lo) * (bottom - top)
        line = {"x1": "10%", "x2": "100%", "y1": y, "y2": y, "stroke": GRID, "stroke-width": 1.5 if tick == 0 else 1}
        parts.append(element("line", {**line, "stroke-opacity": 0.9 if tick == 0 else 0.3}))
        parts.append(text(power_of_ten(tick), "9%", y + 4, anchor="end", size=11))
    parts += _curve(before, axis, top, bottom, CERTIFIED, "certified-line", "")
    parts += _curve(after, axis, top, bottom, MEASURED, "measured-line", "6 3")
    parts.append(text("input", "10%", bottom + 18, size=11))
    parts.append(text("depth", "55%", bottom + 18, anchor="middle", size=11))
    parts.append(text("output", "100%", bottom + 18, anchor="end", size=11))
    description = (
        f"Two lines over {len(regions)} regions in the order of the network, log10 axis: the certified gain from the inputs to the "
        "entry of each region, and the certified gain from its exit to the outputs."
    )
    return chart("profile", "Certified gain along depth", description, bottom + 26, parts)


def _curve(points: Sequence[float | None], axis: Axis, top: float, bottom: float, colour: str, name: str, dash: str) -> Iterator[Markup]:
    def place(i: int, point: float) -> tuple[str, float]:
        x = 0.11 + 0.88 * i / max(len(points) - 1, 1)
        return percent(x), bottom - (point - axis.lo) / (axis.hi - axis.lo) * (bottom - top)

    for i, (left, right) in enumerate(pairwise(points)):
        if left is not None and right is not None:
            (x1, y1), (x2, y2) = place(i, left), place(i + 1, right)
            line = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "stroke": colour, "stroke-width": 2.5, "stroke-linecap": "round"}
            yield element("line", {**line, "class": name, **({"stroke-dasharray": dash} if dash else {})})
    for i, point in enumerate(points):
        alone = (i == 0 or points[i - 1] is None) and (i + 1 == len(points) or points[i + 1] is None)
        if point is not None and (alone or len(points) <= 60):
            x, y = place(i, point)
            yield element("circle", {"cx": x, "cy": y, "r": 2.5, "fill": colour, "class": name})
