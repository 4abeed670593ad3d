"""Clip and PRelu: piecewise linear with bounds or slopes that are tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.operators import interval
from lipaudit.operators.arithmetic import group_norm
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded
from lipaudit.operators.broadcast import add_flows, contributions, copied_axes, operand
from lipaudit.operators.flow import Flow
from lipaudit.operators.range import Range, widen

__all__ = ["Clip", "PRelu"]

Floats = NDArray[np.float64]


class Elementwise(Rule):
    """Parts survive, contributions of the operands add."""

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """See the class."""
        return (add_flows(contributions(site, flows, gains, norm), norm),)


class Clip(Elementwise):
    """``y = min(max(x, lo), hi)``; with lo > hi the constant hi.

    In x the slope is 0 or 1: the gain is 1 unless every element saturates on its range. A bound that moves is copied to the n
    elements that it may decide: ``n**(1/p)``, because min and max are 1-Lipschitz in each operand. Bounds are attributes before opset 11.
    """

    def _bounds(self, site: Site, xs: Sequence[Range | None]) -> tuple[interval.Interval, interval.Interval]:
        if site.node.version < 11 and site.node.version:
            # Before opset 6 the defaults are the ends of float32, in the schema of each version.
            lo, hi = float(site.attr("min", -math.inf)), float(site.attr("max", math.inf))
            return (np.asarray(lo), np.asarray(lo)), (np.asarray(hi), np.asarray(hi))
        found: list[interval.Interval] = []
        for i, absent in ((1, -math.inf), (2, math.inf)):
            bound = xs[i] if i < len(xs) else None
            if bound is not None:
                found.append((np.asarray(np.min(bound.lo)), np.asarray(np.max(bound.hi))))
            elif site.has(i):  # there, but nothing is known of it
                found.append((np.asarray(-math.inf), np.asarray(math.inf)))
            else:
                found.append((np.asarray(absent), np.asarray(absent)))
        return found[0], found[1]

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Ends are clipped; rows keep their norm if 0 lies between the bounds, distances always shrink."""
        x = xs[0]
        assert x is not None
        lo, hi = self._bounds(site, xs)
        ends = interval.minimum(interval.maximum((x.lo, x.hi), lo), hi)
        contracts = bool(lo[1] <= 0 <= hi[0])
        fixed = bool(lo[0] == lo[1] and hi[0] == hi[1])
        whole = all(not site.has(i) or (bound := xs[i]) is None or bound.integral for i in (1, 2))
        return (
            Range(
                site.out_shape(),
                *ends,
                row=x.row if contracts else math.inf,
                diameter=x.diameter if fixed else math.inf,
                integral=x.integral and whole and site.node.version >= 11,
            ),
        )

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """1 in x where an element may lie between the bounds; the copy factor in a bound."""
        x = xs[0]
        lo, hi = self._bounds(site, xs)
        if i:
            return Finite(repeat_factor(self._selected(site, i, x, lo, hi), norm), method="selection")
        if x is None:
            return Finite(ONE, method="slope 0 or 1")
        saturated = (x.hi <= lo[0]) | (x.lo >= hi[1]) | (lo[0] >= hi[1])
        return Finite(ZERO if bool(np.all(saturated)) else ONE, method="slope 0 or 1")

    @staticmethod
    def _selected(site: Site, i: int, x: Range | None, lo: interval.Interval, hi: interval.Interval) -> int:
        """How many elements a bound may decide on the range."""
        shape = site.out_shape()
        if x is None:
            return math.prod(shape)
        wins = (x.lo < lo[1]) & (lo[0] < hi[1]) if i == 1 else (np.maximum(x.hi, lo[1]) > hi[0])
        return int(np.count_nonzero(np.broadcast_to(wins, shape)))


class PRelu(Elementwise):
    """``y = x`` for x >= 0, ``s x`` below, s per element (unidirectional broadcasting).

    Gain of x: the largest of 1 (where x may be positive) and |s| (where it may be negative). Gain of s: the largest
    ``|(max(0, -x))|_p`` over the elements that one s feeds.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Positive part as it is, negative part by corners."""
        x, s = operand(site, 0, self._given(site, xs, 0)), operand(site, 1, self._given(site, xs, 1))
        zero = (np.asarray(0.0), np.asarray(0.0))
        above = interval.maximum(x, zero)
        below = interval.multiply(interval.minimum(x, zero), s)
        lo = np.where(x[0] >= 0, above[0], np.where(x[1] <= 0, below[0], np.minimum(above[0], below[0])))
        hi = np.where(x[0] >= 0, above[1], np.where(x[1] <= 0, below[1], np.maximum(above[1], below[1])))
        first = xs[0]
        slope = self._slope(x, s)
        row = math.inf if first is None or math.isinf(first.row) or math.isinf(slope) else widen(first.row * slope, 1)
        return (Range(site.out_shape(), lo, hi, row=row),)

    @staticmethod
    def _given(site: Site, xs: Sequence[Range | None], i: int) -> Range:
        found = xs[i]
        assert found is not None
        return found

    @staticmethod
    def _slope(x: interval.Interval, s: interval.Interval) -> float:
        steepness = np.maximum(np.abs(s[0]), np.abs(s[1]))
        used = np.where(x[0] < 0, steepness, 0.0)
        slope = np.maximum(used, np.where(x[1] > 0, 1.0, 0.0))
        return float(np.max(slope)) if slope.size else 0.0

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constants of the class."""
        x = operand(site, 0, self._given(site, xs, 0))
        if i == 0:
            slope = self._slope(x, operand(site, 1, self._given(site, xs, 1)))
            return Finite(Upper(slope), method="slope 1 or s")
        depth = group_norm(np.maximum(-x[0], 0.0), site.out_shape(), copied_axes(site, 1), norm)
        if not math.isfinite(depth):
            return Unbounded("a slope of PRelu moves and its input has no lower end")
        return Finite(Upper(depth), method="negative inputs of the elements that share a slope")
