"""The table of linear parts as plain text in 100 columns: a line that says which weight, a line of numbers."""

from __future__ import annotations

import textwrap

from lipaudit.records import WeightRow, Weights
from lipaudit.report.text import count, printable, shorten
from lipaudit.report.weights.cells import HEADINGS, NOTE, cells, shape

__all__ = ["render"]

_WIDTH = 100
_COLUMN = 13
_NAME = 100


def render(weights: Weights, *, colour: bool = False) -> str:
    """Every linear part, in the order of the rows."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if colour else ("", "")
    model = weights.model
    lines = [
        f"{bold}lipaudit {printable(weights.lipaudit)}  {shorten(model.path, _NAME)}{plain}",
        f"{count(len(weights.weights), 'linear part')} with a stored weight, {count(model.parameters, 'parameter')}",
    ]
    lines += [f"pinned {shorten(name, _NAME)} = {size}" for name, size in model.pinned_dims.items()]
    lines += ["", bold + "".join(f"{heading:>{_COLUMN}}" for heading in HEADINGS) + plain]
    for row in weights.weights:
        lines += _row(row, bold, plain)
    lines += ["", *textwrap.wrap(NOTE, _WIDTH)]
    return "\n".join(lines) + "\n"


def _row(row: WeightRow, bold: str, plain: str) -> list[str]:
    what = f"{row.kind} {shape(row.shape)}"
    if row.operator_shape is not None and row.operator_shape not in (row.shape, row.shape[::-1], row.shape * 2):
        what += f" as {shape(row.operator_shape)}"
    method = f", {row.norm.method}" if row.norm.method else ""
    head = f"{bold}{shorten(row.name, _NAME)}{plain}  {shorten(row.node, _NAME)} ({printable(row.op)})"
    found = [head, f"  {what}{method}"]
    if row.reason:
        return [*found, *textwrap.wrap(printable(row.reason), _WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)]
    return [*found, "".join(f"{cell:>{_COLUMN}}" for cell in cells(row))]
