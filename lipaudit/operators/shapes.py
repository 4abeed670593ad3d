"""Operators that read shapes or parameters only: their values do not move with a source."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import ZERO, Norm, Upper, repeat_factor
from lipaudit.graph.ir import Constant
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.range import Range, exact, reals

__all__ = ["ConstantOfShape", "EyeLike", "OneHot", "RangeOp", "Shape", "StoredConstant", "Window"]


class Shape(Rule):
    """Shape and Size: constant for static shapes."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The shape itself (from version 15: the axes start..end)."""
        shape = site.shape(0)
        if site.node.op == "Size":
            return (exact(np.asarray(math.prod(shape), dtype=np.int64)),)
        end = site.attr("end")
        return (exact(np.asarray(shape[slice(int(site.attr("start", 0)), None if end is None else int(end))], dtype=np.int64)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        return Finite(ZERO, method="reads the shape only")


class EyeLike(Shape):
    """Ones on a diagonal."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Elements 0 and 1."""
        return (Range(site.out_shape(), np.asarray(0.0), np.asarray(1.0), row=1.0, integral=True),)


class ConstantOfShape(Rule):
    """One value in a shape; the shape must not depend on the source."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The stored value (default 0)."""
        stored = site.attr("value")
        value = np.asarray(stored.array()).ravel()[0] if stored is not None else 0.0
        end = np.asarray(float(value))
        return (Range(site.out_shape(), end, end, integral=float(end).is_integer()),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        return Unknown("the shape depends on the source")


class RangeOp(Rule):
    """Range(start, limit, delta): elements between start and limit."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """``start + k delta`` for k below the static length, when start and delta are known."""
        start, delta = xs[0], xs[2]
        shape = site.out_shape()
        if start is None or delta is None or not (start.is_point and delta.is_point and start.integral and delta.integral):
            return (reals(shape),)
        return (exact(float(start.lo.ravel()[0]) + float(delta.lo.ravel()[0]) * np.arange(math.prod(shape))).replace(integral=True),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        return Unknown("the shape depends on the source")


class Window(RangeOp):
    """Window functions and MelWeightMatrix: tables of numbers that only their parameters decide."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Windows and triangles lie in [0, 1]; cosine sums may miss it by their rounding."""
        return (Range(site.out_shape(), np.asarray(-(2.0**-20)), np.asarray(1 + 2.0**-20)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Edges and rate are rounded to bins, so the triangles jump; sizes decide the shape."""
        if site.node.op != "MelWeightMatrix" or i < 2:
            return super().gain(site, i, norm, xs)
        length, rate, lower, upper = (xs[k] for k in range(1, 5))
        if length is None or rate is None or lower is None or upper is None or not float(np.min(rate.lo)) > 0:
            return Unknown("the sampling rate may be 0 or negative")
        last = (float(np.max(length.hi)) + 1) * float(np.max(upper.hi)) / float(np.min(rate.lo))
        if not (float(np.min(lower.lo)) >= 0 and last < site.out_shape()[0]):
            return Unknown("a triangle may begin below bin 0 or end beyond the last bin, where it is not defined")
        return Finite(ZERO, self.range(site, xs)[0].total_diameter(norm), method="jump between bins")


class StoredConstant(Rule):
    """Constant: the stored value. Loading replaces the nodes that hold a tensor."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The stored number or numbers."""
        found = next((value for name, value in site.node.attrs.items() if name.startswith("value")), None)
        if isinstance(found, Constant) and found.dtype not in ("string", ""):
            return (exact(np.asarray(found.array())),)
        numbers = found if isinstance(found, tuple) else (found,)
        if all(isinstance(number, (int, float)) for number in numbers) and found is not None:
            return (exact(np.asarray(found)),)
        return (reals(site.out_shape()),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """It has no input."""
        return Finite(ZERO, method="constant")


class OneHot(Rule):
    """Rows of two values (off, on): ``on`` at the index, ``off`` elsewhere.

    With N indices and depth D, ``on`` occurs at most N times, ``off`` at most N D times (an index out of range hits nothing).
    Indices from the source jump by the diameter of the output.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Between the two values."""
        values = xs[2]
        assert values is not None
        lo, hi = float(np.min(values.lo)), float(np.max(values.hi))
        return (Range(site.out_shape(), np.asarray(lo), np.asarray(hi), integral=values.integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        shape = site.out_shape()
        if i == 2:
            return Finite(repeat_factor(math.prod(shape), norm), method="copies")
        if i == 1:
            return Unknown("the depth depends on the source")
        values = xs[2]
        assert values is not None
        size = float(np.max(values.hi)) - float(np.min(values.lo))
        if not math.isfinite(size):
            return Unbounded("the values are not bounded")
        # Each index changes at most two elements of its row.
        changed = min(2 * math.prod(site.shape(0)), math.prod(shape))
        return Finite(ZERO, Upper(math.nextafter(size, math.inf)) * repeat_factor(changed, norm), method="jump between the two values")
