"""Maps that do the same to every row: their matrix, and what each channel of the result can be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.heads import Path, lines_of, path_of
from lipaudit.certify.methods.layout import Layout
from lipaudit.certify.methods.rows import Rows
from lipaudit.certify.methods.workspace import Workspace

__all__ = ["channel_ends", "row_path"]

Floats = NDArray[np.float64]


def row_path(layout: Layout, width: int) -> tuple[Path, NDArray[np.int64]] | None:
    """The one matrix [channels, width] that acts on every row of the base, and the row that each row of the value reads.

    None where rows mix, where the matrix differs from row to row, or where something was normalized in between.
    """
    if len(layout.terms) != 1 or layout.base.groups or not layout.shape:
        return None
    line = lines_of(layout.reshaped(1, -1, layout.shape[-1]), width)
    path = path_of(line, [0], width) if line is not None else None
    if line is None or path is None or path.turned or path.normalized or float(path.stretch) != 1.0:
        return None
    return path, line.tokens[0]


def channel_ends(work: Workspace, value: str, path: Path, merged: Enclosed, rows: Rows | None) -> tuple[Floats, Floats] | None:
    """Lowest and highest of each channel of ``value``: from its range, and from the ball of the rows that the matrix reads."""
    shape = work.graph.value(value).shape
    known = work.ranges.get(value)
    if not shape:
        return None
    low, high = np.full(shape[-1], -np.inf), np.full(shape[-1], np.inf)
    if known is not None:
        axes = tuple(range(len(shape) - 1))
        lo, hi = known.full()
        low, high = np.min(lo, axis=axes), np.max(hi, axis=axes)
    if rows is not None and rows.radius.is_finite:
        centre, error = rows.centre(path.weight)
        width = merged.array.shape[1]
        lengths = np.sqrt(np.sum(merged.array**2, axis=1)) * (1 + (width + 8) * 2.0**-52) + float(merged.error) + 1e-150
        reach = lengths * float(rows.radius) * (1 + 2.0**-50) + error + path.slack
        middle = path.constant + centre
        reach = reach + 2.0**-50 * np.max(np.abs(middle), axis=0)
        low, high = np.maximum(low, np.min(middle, axis=0) - reach), np.minimum(high, np.max(middle, axis=0) + reach)
    return low, np.maximum(low, high)
