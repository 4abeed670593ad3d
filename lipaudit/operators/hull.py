"""Ranges of a value that is one of several, and inclusion of ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import INFINITE, Norm, Upper
from lipaudit.operators.range import Floats, Range, extent, up

__all__ = ["distance", "hull", "within"]


def hull(ranges: Sequence[Range]) -> Range:
    """Contains every one of ``ranges`` (of one shape, at least one): intervals, balls of rows and diameters are convex sets."""
    first = ranges[0]
    lo, hi = first.lo, first.hi
    for other in ranges[1:]:
        lo, hi = np.minimum(lo, other.lo), np.maximum(hi, other.hi)
    return Range(
        first.shape,
        lo,
        hi,
        row=max(x.row_norm() for x in ranges),
        diameter=max(x.row_diameter() for x in ranges),
        zero_mean=all(x.zero_mean for x in ranges),
        integral=all(x.integral for x in ranges),
    )


def within(inner: Range, outer: Range) -> bool:
    """True if it is certain that every value of ``inner`` is one of ``outer``."""
    if inner.shape != outer.shape or (outer.zero_mean and not inner.zero_mean) or (outer.integral and not inner.integral):
        return False
    if not (np.all(outer.lo <= inner.lo) and np.all(inner.hi <= outer.hi)):
        return False
    return (inner.row_norm() <= outer.row or outer.row == np.inf) and (inner.row_diameter() <= outer.diameter or outer.diameter == np.inf)


def distance(a: Range, b: Range, norm: Norm) -> Upper:
    """Upper bound of the ``norm`` of x - y, x of ``a`` and y of ``b``; infinite where the ranges do not say."""
    if a.shape != b.shape:
        return INFINITE
    with np.errstate(invalid="ignore", over="ignore"):
        widths: Floats = np.maximum(up(a.hi - b.lo), up(b.hi - a.lo))
        # A difference of exactly nothing stays nothing.
        widths = np.where((a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo) & np.isfinite(a.lo), 0.0, np.abs(widths))
    widths = np.where(np.isnan(widths), np.inf, widths)
    return extent(widths, a.shape, norm)
