"""Strips of the linear parts: where the singular values of each lie, on one log10 axis for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from markupsafe import Markup

from lipaudit.records import WeightRow
from lipaudit.report.charts import CERTIFIED, GRID, Axis, power_of_ten
from lipaudit.report.svg import chart, element, percent, text
from lipaudit.report.text import shorten
from lipaudit.report.weights.cells import cells, shape

__all__ = ["Strip", "strips"]

_TOP, _HEIGHT = 4.0, 12.0


@dataclass(frozen=True)
class Strip:
    """A linear part on the page: its row, its sizes and numbers as texts, and its picture (None without numbers)."""

    row: WeightRow
    stored: str
    numbers: str
    picture: Markup | None


def strips(rows: Sequence[WeightRow], limit: int) -> tuple[list[Strip], Markup | None, int]:
    """At most ``limit`` parts in the order of the network, those of the largest norms; their axis; and how many were left out."""
    ranked = sorted(range(len(rows)), key=lambda k: (-(_log(rows[k].norm.upper) if rows[k].norm.upper else math.inf), k))[:limit]
    shown = [rows[k] for k in sorted(ranked)]
    points = [point for row in shown for point in _points(row) if point is not None]
    axis = Axis.over(points, 5, 0.02, 0.98) if points else None
    found = [Strip(row, shape(row.shape), _numbers(row), None if axis is None else _strip(row, k, axis)) for k, row in enumerate(shown)]
    return found, None if axis is None else _ruler(axis), len(rows) - len(shown)


def _log(decimal: str | None) -> float:
    """log10 of a decimal text; -inf for 0 (texts may exceed the doubles)."""
    number = Decimal(decimal or 0)
    return float(number.log10()) if number > 0 else -math.inf


def _points(row: WeightRow) -> tuple[float | None, float | None, float | None]:
    """log10 of the smallest (verified), root mean square and largest singular value, where known and not 0."""
    if row.norm.upper is None or row.operator_shape is None or min(row.operator_shape) == 0:
        return None, None, None
    top = _log(row.norm.upper)
    mean = None if row.fro is None else min(top, _log(row.fro) - math.log10(min(row.operator_shape)) / 2)
    known = (None if row.sigma_min is None else _log(row.sigma_min), mean, top)
    least, mean, top = (None if point is None or not math.isfinite(point) else point for point in known)
    return least, mean, top


def _numbers(row: WeightRow) -> str:
    """The numbers in words."""
    if row.reason:
        return row.reason
    norm, slack, _, _, _, rank, least = cells(row)
    parts = [f"largest singular value \N{LESS-THAN OR EQUAL TO} {norm}" + ("" if slack == "-" else f" (slack {slack})")]
    if rank != "-" and row.operator_shape:
        parts.append(f"stable rank {rank} of {min(row.operator_shape)}")
    if least != "-":
        parts.append(f"smallest \N{GREATER-THAN OR EQUAL TO} {least}")
    return ", ".join(parts)


def _strip(row: WeightRow, k: int, axis: Axis) -> Markup | None:
    """From the smallest singular value to the largest; a tick at their root mean square; open to the left where nothing was proved."""
    least, mean, top = _points(row)
    if top is None:
        return None
    middle = _TOP + _HEIGHT / 2
    right = axis.at(top)
    parts = [element("line", {"x1": "0%", "x2": "100%", "y1": middle, "y2": middle, "stroke": GRID, "stroke-opacity": 0.35})]
    left = axis.at(least if least is not None else mean if mean is not None else top)
    if least is None:
        dashes = {"stroke": CERTIFIED, "stroke-width": 2, "stroke-dasharray": "2 4", "class": "certified-line"}
        parts.append(element("line", {"x1": percent(axis.left), "x2": percent(left), "y1": middle, "y2": middle, **dashes}))
    box = {"x": percent(left), "y": _TOP + 1, "width": percent(max(right - left, 0.004)), "height": _HEIGHT - 2, "rx": 2}
    parts.append(element("rect", {**box, "fill": CERTIFIED, "fill-opacity": 0.45, "class": "certified"}))
    tall = {"y1": _TOP - 2, "y2": _TOP + _HEIGHT + 2}
    if mean is not None:
        at = percent(axis.at(mean))
        parts.append(element("line", {"x1": at, "x2": at, **tall, "stroke": "currentColor", "stroke-width": 2}))
    end = percent(right)
    parts.append(element("line", {"x1": end, "x2": end, **tall, "stroke": CERTIFIED, "stroke-width": 3, "class": "certified-line"}))
    return chart(f"part-{k}", f"Singular values of {shorten(row.name, 60)}", _numbers(row), _HEIGHT + 2 * _TOP, parts)


def _ruler(axis: Axis) -> Markup:
    """The axis that all strips share."""
    parts: list[Markup] = []
    ticks = axis.ticks()
    for i, tick in enumerate(ticks):
        x = percent(axis.at(tick))
        parts.append(element("line", {"x1": x, "x2": x, "y1": 15, "y2": 20, "stroke": GRID}))
        parts.append(text(power_of_ten(tick), x, 12, anchor="start" if i == 0 else "end" if i == len(ticks) - 1 else "middle", size=11))
    ends = f"from 10^{ticks[0]:.15g} to 10^{ticks[-1]:.15g}"
    return chart("parts-axis", "Axis of the singular values", f"Powers of ten, {ends}", 20, parts)
