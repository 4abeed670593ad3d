"""Operators whose output elements each come from one of several tensors: Max, Min, Where."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Norm, Upper, repeat_factor
from lipaudit.operators import interval
from lipaudit.operators.arithmetic import group_norm
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, scaled
from lipaudit.operators.broadcast import (
    add_flows,
    aligned_shape,
    contributions,
    copied_axes,
    copy_factor,
    operand,
    operand_diameter,
    operand_rows,
    root_sum,
    same,
    stack_flows,
)  # fmt: skip
from lipaudit.operators.flow import Flow
from lipaudit.operators.range import Range, widen

__all__ = ["Extremum", "Where"]

Floats = NDArray[np.float64]


class Extremum(Rule):
    """Max and Min of k tensors: ``|dy_e| <= max_i |dx_i,e|``, so operands join like the rows of Concat.

    Gain of x_i is ``m**(1/p)``, m the most copies of one of its elements that may win on the ranges (``hi_i > max_j lo_j``). Equal
    names are one variable: Max(x, x) = x.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Extremum of the ends; a row is at most the root of the sum of squares of the rows."""
        terms = [(i, x) for i, x in enumerate(xs) if x is not None and same(site, i) == i]
        join = interval.maximum if site.node.op == "Max" else interval.minimum
        ends = operand(site, *terms[0])
        for i, x in terms[1:]:
            ends = join(ends, operand(site, i, x))
        row = root_sum([operand_rows(site, i, x) for i, x in terms])
        diameter = sum(operand_diameter(site, i, x) for i, x in terms)
        integral = all(x.integral for _, x in terms)
        return (Range(site.out_shape(), *ends, row=row, diameter=widen(diameter, len(terms)), integral=integral),)

    def _wins(self, site: Site, i: int, xs: Sequence[Range | None]) -> NDArray[np.bool_]:
        """Elements of the output (broadcastable) that operand ``i`` may decide: not those where another one is never below it."""
        own = xs[i]
        assert own is not None
        sign = 1.0 if site.node.op == "Max" else -1.0

        def ends(j: int, x: Range) -> interval.Interval:
            return operand(site, j, x) if sign > 0 else interval.negative(operand(site, j, x))

        top = ends(i, own)[1]
        floor = np.asarray(-np.inf)
        for j, x in enumerate(xs):
            if x is not None and same(site, j) != same(site, i):
                floor = np.maximum(floor, ends(j, x)[0])
        return np.asarray((top > floor) | np.isneginf(floor))

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if same(site, i) != i:
            return Finite(ZERO, method="counted at its first occurrence")
        wins = self._wins(site, i, xs)
        if not np.any(wins):
            return Finite(ZERO, method="never selected on the range")
        copies = np.sum(np.broadcast_to(wins, site.out_shape()), axis=copied_axes(site, i))
        return Finite(repeat_factor(int(np.max(copies)), norm), method="selection")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        return (stack_flows(contributions(site, flows, gains, norm), norm),)


class Where(Rule):
    """``z = c ? x : y``.

    Mask independent of the source: x and y reach disjoint elements, like Concat; gain of x is ``m**(1/p)``, m the most often
    that one element of x is chosen. Mask from the source: where it may switch, the output jumps by at most ``sup|x - y|``:
    offset ``|(sup|x_e - y_e|)_e|_p`` charged to the mask, on top of the joined (x, y). Where(c, x, x) = x.
    """

    def _mask(self, site: Site, xs: Sequence[Range | None]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Where the mask may be true, and where it may be false (broadcastable to the output)."""
        mask = xs[0]
        assert mask is not None
        lo, hi = operand(site, 0, mask)
        return ~((lo == 0) & (hi == 0)), (lo <= 0) & (hi >= 0)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Hull of what may be chosen; a row mixes the two rows unless the mask is constant along it."""
        x, y = xs[1], xs[2]
        assert x is not None and y is not None
        true, false = self._mask(site, xs)
        a, b = operand(site, 1, x), operand(site, 2, y)
        lo, hi = interval.hull(a, b)
        lo, hi = np.where(~false, a[0], np.where(~true, b[0], lo)), np.where(~false, a[1], np.where(~true, b[1], hi))
        rows = [operand_rows(site, 1, x) if np.any(true) else 0.0, operand_rows(site, 2, y) if np.any(false) else 0.0]
        aligned = aligned_shape(site, 0)
        row = max(rows) if not aligned or aligned[-1] == 1 else root_sum(rows)
        diameter = math.inf
        if not np.any(false):
            diameter = operand_diameter(site, 1, x)
        elif not np.any(true):
            diameter = operand_diameter(site, 2, y)
        return (Range(site.out_shape(), lo, hi, row=row, diameter=diameter, integral=x.integral and y.integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        true, false = self._mask(site, xs)
        shape = site.out_shape()
        if site.node.inputs[1] == site.node.inputs[2]:
            return Finite(copy_factor(site, i, norm) if i == 1 else ZERO, method="both branches are one variable")
        if i:
            chosen = (true if i == 1 else false).astype(np.float64)
            return Finite(Upper(group_norm(chosen, shape, copied_axes(site, i), norm)), method="selection")
        switching = true & false
        if not np.any(switching):
            return Finite(ZERO, method="mask decided by the range")
        x, y = xs[1], xs[2]
        assert x is not None and y is not None
        difference = interval.add(operand(site, 1, x), interval.negative(operand(site, 2, y)))
        size = np.where(switching, np.maximum(np.abs(difference[0]), np.abs(difference[1])), 0.0)
        jump = group_norm(size, shape, tuple(range(len(shape))), norm)
        if not math.isfinite(jump):
            return Unbounded("the mask depends on the source and its branches differ by an unbounded amount")
        return Finite(ZERO, Upper(jump), method="jump between the branches")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        branches = contributions(site, (None, *flows[1:]), gains, norm)
        joint = [stack_flows(branches, norm)] if branches else []
        if flows[0] is not None and gains[0] is not None:
            gain = gains[0]
            if not (isinstance(gain, Finite) and gain.slope.is_zero and gain.offset.is_zero) or not joint:
                joint.append(scaled(site, flows[0], gain, norm))
        return (add_flows(joint, norm),)
