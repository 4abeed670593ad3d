"""Charts as stand-alone SVG files: light background, fixed size, legible where a page is dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from lipaudit.report.svg import element
from studies.study import Line, Panel

__all__ = ["picture"]

# Okabe and Ito's colours, which differ for colour-blind readers too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 46
_ROW = 17


def _text(words: str, x: float, y: float, anchor: str = "middle", size: int = 12, **more: str) -> Markup:
    attributes = {"x": x, "y": y, "text-anchor": anchor, "font-size": size, "fill": "#222", **more}
    return element("text", attributes, [words])


def _ticks(lo: float, hi: float, most: int) -> list[float]:
    """Round numbers that span [lo, hi]."""
    wide = max(hi - lo, 1e-9) / most
    decade = 10.0 ** math.floor(math.log10(wide))
    step = next(factor * decade for factor in (1.0, 2.0, 5.0, 10.0) if factor * decade >= wide * (1 - 1e-9))
    first = math.floor(lo / step + 1e-9)
    return [i * step for i in range(first, math.ceil(hi / step - 1e-9) + 1)]


def _panel(panel: Panel, top: float) -> Iterator[Markup]:
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    x_ticks = sorted(set(xs)) if panel.log_x else _ticks(min(xs), max(xs), 8)
    y_ticks = _ticks(min(ys), max(*ys, min(ys) + 0.1), 6)

    def across(x: float) -> float:
        ends = [math.log(t) if panel.log_x else t for t in (x_ticks[0], x_ticks[-1])]
        share = ((math.log(x) if panel.log_x else x) - ends[0]) / ((ends[1] - ends[0]) or 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return top + _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    yield _text(panel.title, _WIDTH / 2, top + 20, size=14, **{"font-weight": "bold"})
    for y in y_ticks:
        line = {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": down(y), "y2": down(y), "stroke": "#999" if abs(y) < 1e-9 else "#ddd"}
        yield element("line", line)
        yield _text(f"{y:.10g}", _LEFT - 6, down(y) + 4, "end", 11)
    for x in x_ticks:
        yield _text(f"{x:g}", across(x), top + _HEIGHT - _BOTTOM + 16, size=11)
    yield _text(panel.x, (_LEFT + _WIDTH - _RIGHT) / 2, top + _HEIGHT - _BOTTOM + 34)
    middle = top + (_HEIGHT - _BOTTOM + _TOP) / 2
    yield _text(panel.y, 16, middle, transform=f"rotate(-90 16 {middle:g})")
    for line, colour in zip(panel.lines, _colours(panel.lines), strict=True):
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
        dash = {"stroke-dasharray": "6 4"} if line.dashed else {}
        yield element("polyline", {"points": points, "fill": "none", "stroke": colour, "stroke-width": 2, **dash})
        for x, y in line.points:
            yield element("circle", {"cx": across(x), "cy": down(y), "r": 2.5, "fill": colour})


def _colours(lines: Sequence[Line]) -> list[str]:
    """A colour for each pair of a solid and a dashed line, or for each line."""
    found: list[str] = []
    count = -1
    for line in lines:
        count += not (line.dashed and found)
        found.append(_COLOURS[count % len(_COLOURS)])
    return found


def _legend(lines: Sequence[Line], top: float) -> Iterator[Markup]:
    for i, (line, colour) in enumerate(zip(lines, _colours(lines), strict=True)):
        y = top + 10 + i * _ROW
        dash = {"stroke-dasharray": "6 4"} if line.dashed else {}
        yield element("line", {"x1": _LEFT, "x2": _LEFT + 28, "y1": y, "y2": y, "stroke": colour, "stroke-width": 2, **dash})
        yield _text(line.label, _LEFT + 36, y + 4, "start")


def picture(panels: Sequence[Panel], title: str) -> str:
    """The panels below each other, each with its legend."""
    parts: list[Markup] = []
    top = 0.0
    for panel in panels:
        parts += [*_panel(panel, top), *_legend(panel.lines, top + _HEIGHT)]
        top += _HEIGHT + _ROW * len(panel.lines) + 16
    back = element("rect", {"width": _WIDTH, "height": top, "fill": "#fff"})
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg", "width": _WIDTH, "height": top, "viewBox": f"0 0 {_WIDTH} {top:g}",
        "font-family": "system-ui, sans-serif", "role": "img",
    }  # fmt: skip
    return str(element("svg", attributes, [element("title", {}, [title]), back, *parts])) + "\n"
