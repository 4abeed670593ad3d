"""Operators along one axis that sort, rank or accumulate: TopK, ArgMax, ArgMin, CumSum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Kronecker
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.flow import Flow, Row
from lipaudit.operators.linear import LinearRule
from lipaudit.operators.range import Range, reals, widen

__all__ = ["ArgExtremum", "CumSum", "TopK"]

Floats = NDArray[np.float64]

# Longer axes have no matrix; their range is bounded by the largest element.
_SIDE = 2048


def _over_axis(x: Range, axis: int, shape: tuple[int, ...]) -> Range:
    """Between the least and the largest of all elements along ``axis``."""
    lo, hi = np.broadcast_arrays(x.lo, x.hi)
    own = axis - (len(x.shape) - lo.ndim)
    if own >= 0 and lo.size:
        lo, hi = lo.min(axis=own, keepdims=True), hi.max(axis=own, keepdims=True)
    return Range(shape, lo, hi, integral=x.integral)


class TopK(Rule):
    """The k largest or smallest along an axis, sorted: sorting is 1-Lipschitz in every norm. Indices jump."""

    def _axis(self, site: Site) -> int:
        return int(site.attr("axis", -1)) % len(site.shape(0))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Values between the ends along the axis, indices 0 .. n - 1."""
        x, axis = xs[0], self._axis(site)
        assert x is not None
        values = _over_axis(x, axis, site.out_shape())
        if axis == len(site.shape(0)) - 1:
            values = values.replace(row=x.row)
        indices = [
            Range(value.shape, np.asarray(0.0), np.asarray(float(max(0, site.shape(0)[axis] - 1))), integral=True)
            for value in site.outputs[1:]
            if value is not None and value.shape is not None
        ]
        return (values, *indices)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        return Unknown("k depends on the source") if i else Finite(ONE, method="sorting")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, gain, axis = flows[0], gains[0], self._axis(site)
        if flow is None or gain is None or any(other is not None for other in flows[1:]):
            return super().flow(site, flows, gains, norm)
        values = scaled(site, flow, gain, norm, keep_parts=flow.axis != axis)
        still = tuple(ZERO for _ in flow.rows[0].gains)
        jump = Upper(max(0, site.shape(0)[axis] - 1)) * repeat_factor(math.prod(site.out_shape()), norm)
        return (values, *(Flow((Row(still, jump),)) for _ in site.outputs[1:]))


class ArgExtremum(Rule):
    """ArgMax, ArgMin: integers 0 .. n - 1 that jump; offset ``(n - 1) R**(1/p)`` with R results."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """0 .. n - 1."""
        return (Range(site.out_shape(), np.asarray(0.0), np.asarray(float(self._last(site))), integral=True),)

    def _last(self, site: Site) -> int:
        shape = site.shape(0)
        return max(0, shape[int(site.attr("axis", 0)) % len(shape)] - 1) if shape else 0

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        jump = Upper(self._last(site)) * repeat_factor(math.prod(site.out_shape()), norm)
        return Finite(ZERO, jump, method="jump between indices")


class CumSum(LinearRule):
    """Running sums of n elements: ``n, 1/(2 sin(pi/(4n + 2))), n``; exclusive: n - 1 for n.

    The inverse of the triangle of ones is bidiagonal; its singular values are known: the largest of the triangle is
    ``1/(2 sin(pi/(4n + 2)))``. Reversing the axis changes nothing.
    """

    def _axis(self, site: Site) -> int | None:
        constant = site.constant(1)
        return None if constant is None else int(np.asarray(constant.array()).ravel()[0]) % len(site.shape(0))

    def operator(self, site: Site) -> LinearOperator | str:
        """The linear map, or why there is none."""
        axis = self._axis(site)
        if axis is None:
            return "the axis is not constant"
        n = site.shape(0)[axis]
        if n > _SIDE:
            return "the axis is too long for a matrix"
        triangle = np.tri(n, k=-1 if site.attr("exclusive", 0) else 0)
        return Kronecker([(axis, triangle.T.copy() if site.attr("reverse", 0) else triangle)], site.shape(0))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """By the matrix, or n times the largest element."""
        x, axis = xs[0], self._axis(site)
        if x is None or axis is None:
            return (reals(site.out_shape()),)
        if site.shape(0)[axis] > _SIDE:
            top = np.asarray(widen(site.shape(0)[axis] * x.magnitude(), site.shape(0)[axis]))
            return (Range(site.out_shape(), -top, top, integral=x.integral),)
        return tuple(replace(found, integral=False) for found in super().range(site, xs))

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        axis = self._axis(site)
        if i or axis is None:
            return Unknown("the axis depends on the source" if i else "the axis is not constant")
        n = site.shape(0)[axis] - (1 if site.attr("exclusive", 0) else 0)
        if n <= 0 or math.prod(site.shape(0)) == 0:
            return Finite(ZERO, method="empty sums")
        if norm != "l2":
            return Finite(Upper(n), method="running sum", evidence={"terms": n})
        return Finite(Upper(widen(1 / (2 * math.sin(math.pi / (4 * n + 2))), 16)), method="running sum", evidence={"terms": n})
