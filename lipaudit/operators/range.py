"""Value ranges: element intervals and norms of rows (region-rules: "ranges that carry norms").

A range describes a *convex superset* of what a value can be on the domain: element intervals, rows in a ball about 0,
rows of one sample within a diameter, rows that sum to zero. All fields hold at once. Bounds are doubles, rounded outward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm, Upper, combine, repeat_factor

__all__ = ["Range", "down", "exact", "extent", "reals", "up"]

Floats = NDArray[np.float64]

_FEW = 64


def up(x: Any) -> Floats:
    """One double above ``x``, elementwise: covers one rounding to nearest of a correctly rounded operation."""
    return np.nextafter(np.asarray(x, dtype=np.float64), np.inf)


def down(x: Any) -> Floats:
    """One double below ``x``, elementwise."""
    return np.nextafter(np.asarray(x, dtype=np.float64), -np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """What a value can be.

    Attributes
    ----------
    shape
        Shape of the value (static).
    lo, hi
        Element intervals, float64, of any shape that broadcasts to ``shape`` (0-d: the same for all elements); infinite
        ends are allowed, NaN never. Convention: ``lo <= hi``.
    row
        Every row along the last axis has l2 norm <= row (inf: unknown).
    diameter
        Any two rows of the same sample (all axes but the first) are within this l2 distance (inf: unknown).
    zero_mean
        Every row along the last axis sums to zero.
    integral
        Every element is an integer (booleans are 0 and 1).
    """

    shape: tuple[int, ...]
    lo: Floats
    hi: Floats
    row: float = math.inf
    diameter: float = math.inf
    zero_mean: bool = False
    integral: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_bounded(self) -> bool:
        """Every element has a finite interval."""
        return bool(np.all(np.isfinite(self.lo)) and np.all(np.isfinite(self.hi)))

    @property
    def is_point(self) -> bool:
        """Every element has one possible value."""
        return bool(np.all(self.lo == self.hi)) and self.is_bounded

    def magnitude(self) -> float:
        """Largest possible absolute value of an element (0 for an empty value)."""
        if self.size == 0:
            return 0.0
        return float(max(np.max(np.abs(self.lo)), np.max(np.abs(self.hi))))

    def magnitudes(self) -> Floats:
        """Largest absolute value per element, broadcastable to ``shape``."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    def full(self) -> tuple[Floats, Floats]:
        """``lo`` and ``hi`` at the full shape (views)."""
        return np.broadcast_to(self.lo, self.shape), np.broadcast_to(self.hi, self.shape)

    def row_norm(self) -> float:
        """Upper bound of the l2 norm of every row along the last axis: ``row`` or what the intervals give."""
        width = self.shape[-1] if self.shape else 1
        magnitudes = self.magnitudes()
        if width == 0 or self.size == 0:
            return 0.0
        if magnitudes.ndim and magnitudes.shape[-1] == width and width > 1:
            from_intervals = _root_sum_squares(magnitudes)
        else:
            from_intervals = float(np.max(magnitudes)) * math.sqrt(width)
        return min(self.row, widen(from_intervals, width))

    def row_diameter(self) -> float:
        """Upper bound of the l2 distance of two rows of one sample."""
        width = self.shape[-1] if self.shape else 1
        if self.size == 0:
            return 0.0
        lo, hi = self.lo, self.hi
        spread = _difference(float(np.max(hi)), float(np.min(lo)))
        if lo.ndim and lo.shape[-1] == width and width > 1:
            axes = tuple(range(max(lo.ndim, hi.ndim) - 1))
            with np.errstate(invalid="ignore"):
                columns = np.max(np.broadcast_arrays(hi, lo)[0], axis=axes) - np.min(np.broadcast_arrays(lo, hi)[0], axis=axes)
            from_intervals = _root_sum_squares(columns)
        else:
            from_intervals = spread * math.sqrt(width)
        return min(self.diameter, 2 * self.row_norm(), widen(from_intervals, width))

    def total_diameter(self, norm: Norm) -> Upper:
        """Upper bound of the ``norm`` distance of any two points of the range, flattened: the offset of "no idea"."""
        if self.size == 0:
            return Upper(0)
        lo, hi = self.lo, self.hi
        with np.errstate(invalid="ignore"):
            widths = np.broadcast_arrays(hi, lo)[0] - np.broadcast_arrays(lo, hi)[0]
        widths = np.where(np.isnan(widths), np.inf, widths)  # an element that is infinite at both ends
        copies = self.size // max(widths.size, 1)
        top = Upper(widen(float(np.max(widths)), 1))
        if norm == "linf":
            return top
        if norm == "l1":
            return Upper(widen(float(np.sum(widths)), widths.size)) * Upper(copies)
        by_rows = Upper(2 * self.row) * Upper(max(1, self.size // max(1, self.shape[-1] if self.shape else 1))).sqrt()
        length = Upper(widen(_root_sum_squares(widths.reshape(-1)), widths.size + 1))
        return min(by_rows, length * Upper(copies).sqrt())

    def replace(self, **changes: Any) -> Range:
        """A copy with some fields changed."""
        return replace(self, **changes)


def _root_sum_squares(values: Floats) -> float:
    """Largest l2 norm along the last axis, in binary64; scaled by the largest entry, so that no square underflows to 0."""
    top = float(np.max(np.abs(values))) if values.size else 0.0
    if top == 0.0 or not math.isfinite(top):
        return top
    scaled = values / top
    # Only the row with the largest norm counts, and its norm is at least 1 after scaling: squares that underflow do not matter.
    return float(np.max(np.sqrt(np.sum(scaled * scaled, axis=-1)))) * top


def _difference(high: float, low: float) -> float:
    """``high - low``; infinite where both are the same infinity (not known)."""
    return math.inf if math.isinf(high) and high == low else high - low


def widen(value: float, terms: int) -> float:
    """``value``, a sum of ``terms`` non-negative products in binary64 (or its root), raised above its exact value."""
    if value == 0:
        return value
    return math.nextafter(value * (1.0 + (terms + 4) * 2.0**-52), math.inf)


def extent(widths: Floats, shape: tuple[int, ...], norm: Norm) -> Upper:
    """The ``norm`` of a tensor of ``shape`` with elements ``widths`` (>= 0, broadcastable): exact for a few different ones."""
    size = math.prod(shape)
    if size == 0:
        return Upper(0)
    values, counts = np.unique(widths, return_counts=True)
    if values.size > _FEW:
        return Range(shape, np.asarray(0.0), widths).total_diameter(norm)
    copies = size // widths.size
    return combine((Upper(float(v)) * repeat_factor(int(n) * copies, norm) for v, n in zip(values, counts, strict=True)), norm)


def reals(shape: tuple[int, ...]) -> Range:
    """All real values of ``shape``."""
    return Range(shape, np.asarray(-math.inf), np.asarray(math.inf))


def exact(array: NDArray[Any]) -> Range:
    """The range of a constant."""
    values = np.asarray(array, dtype=np.float64)
    shape = tuple(int(d) for d in values.shape)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and values.size and np.max(np.abs(values)) > 2.0**53:
        return Range(shape, down(values), up(values), integral=True)  # not every int64 is a double
    return Range(shape, values, values, integral=array.dtype.kind in "biu")
