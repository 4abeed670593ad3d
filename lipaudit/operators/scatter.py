"""ScatterElements, ScatterND (and Scatter, the former name): elements of a tensor replaced or increased at constant places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, combine, dual
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown, scaled
from lipaudit.operators.broadcast import add_flows, stack_flows
from lipaudit.operators.flow import Flow, flatten
from lipaudit.operators.outputs import finite_or
from lipaudit.operators.range import Range, down, up, widen

__all__ = ["Scatter"]

Integers = NDArray[np.int64]


class Scatter(Rule):
    """``y = data`` with ``updates`` written (or combined) at ``indices``.

    reduction none: each output element copies one element of data or updates, so both have gain 1 (data 0 where all is
    overwritten) and join like Concat, whatever the order in which duplicates are written. add: data 1, updates
    ``1, sqrt(m), m`` with m = most updates of one cell. max, min: as Max, 1 each.
    mul: a cell is the product of data and its m updates; a block of one row, ``prod |u|`` for data and ``|x| prod_{l != j} |u_l|`` for
    update j, taken at the ends of the ranges.
    """

    def _reduction(self, site: Site) -> str:
        return str(site.attr("reduction", "none"))

    def _cells(self, site: Site) -> Integers | None:
        """Flat index into data of every update (shape of ``updates``); None if the indices are not constant."""
        constant = site.constant(1)
        if constant is None:
            return None
        indices = np.asarray(constant.array()).astype(np.int64)
        shape = site.shape(0)
        positions = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        if site.node.op == "ScatterND":
            depth = indices.shape[-1]
            lengths = np.asarray(shape[:depth], dtype=np.int64)
            if indices.size and (np.any(indices >= lengths) or np.any(indices < -lengths)):
                return None
            return positions[tuple(np.moveaxis(indices, -1, 0))].reshape(site.shape(2))
        axis = int(site.attr("axis", 0)) % len(shape)
        if indices.size and (int(np.max(indices)) >= shape[axis] or int(np.min(indices)) < -shape[axis]):
            return None
        region = tuple(slice(None) if k == axis else slice(n) for k, n in enumerate(indices.shape))
        return np.take_along_axis(positions[region], indices % max(shape[axis], 1), axis=axis)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Hull of what may stand in a cell; sums for ``add``."""
        data, updates = xs[0], xs[2]
        assert data is not None and updates is not None
        shape, reduction, cells = site.out_shape(), self._reduction(site), self._cells(site)
        integral = data.integral and updates.integral
        low, high = data.full()
        if cells is None:
            if reduction in ("add", "mul"):
                return (self._anywhere(shape, reduction, data, updates),)
            if updates.size == 0:
                return (data,)
            return (Range(shape, np.minimum(low, np.min(updates.lo)), np.maximum(high, np.max(updates.hi)), integral=integral),)
        lo, hi = low.copy().ravel(), high.copy().ravel()
        new_lo, new_hi = (np.ascontiguousarray(end).ravel() for end in updates.full())
        at = cells.ravel()
        if reduction in ("add", "mul"):
            ends = (lo, hi)
            join_one = interval.add if reduction == "add" else interval.multiply
            for cell, a, b in zip(at.tolist(), new_lo.tolist(), new_hi.tolist(), strict=True):
                one = join_one((np.asarray(ends[0][cell]), np.asarray(ends[1][cell])), (np.asarray(a), np.asarray(b)))
                ends[0][cell], ends[1][cell] = float(one[0]), float(one[1])
        else:
            if reduction == "none":
                lo[at], hi[at] = np.inf, -np.inf
            join: Any = {"none": (np.minimum, np.maximum), "max": (np.maximum, np.maximum), "min": (np.minimum, np.minimum)}[reduction]
            join[0].at(lo, at, new_lo)
            join[1].at(hi, at, new_hi)
        return (Range(shape, lo.reshape(shape), hi.reshape(shape), integral=integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        reduction, cells = self._reduction(site), self._cells(site)
        if i == 1:
            return self._jump(site, norm, xs)
        if reduction == "mul":
            return self._factor(site, i, norm, xs, cells)
        if i == 0:
            overwritten = reduction == "none" and cells is not None and np.unique(cells).size == math.prod(site.shape(0))
            return Finite(ZERO if overwritten else ONE, method="selection")
        if reduction != "add":
            return Finite(ONE if math.prod(site.shape(2)) else ZERO, method="selection")
        count = math.prod(site.shape(2))
        most = count if cells is None else (int(np.max(np.bincount(cells.ravel()))) if cells.size else 0)
        if not most:
            return Finite(ZERO, method="no updates")
        return Finite({"l1": ONE, "l2": Upper(most).sqrt(), "linf": Upper(most)}[norm], method="sum", evidence={"updates": most})

    @staticmethod
    def _anywhere(shape: tuple[int, ...], reduction: str, data: Range, updates: Range) -> Range:
        """Sums and products where any number of updates may meet in a cell."""
        count, size = updates.size, updates.magnitude()
        if reduction == "add":
            reach = widen(count * size, count + 2) if count else 0.0
            return Range(shape, down(data.lo - reach), up(data.hi + reach)) if count else data
        top = Upper(data.magnitude())
        for _ in range(count if size > 1 else 0):
            top = top * Upper(size)
        end = float(top)
        return Range(shape, np.asarray(-end), np.asarray(end))

    def _factor(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None], cells: Integers | None) -> Gain:
        """Of a product: norms of the rows of the class, cell by cell."""
        data, updates = xs[0], xs[2]
        assert data is not None and updates is not None
        if cells is None:
            return Unknown("which factors meet in a cell depends on the source")
        factors: dict[int, list[Upper]] = {}
        sizes = np.broadcast_to(updates.magnitudes(), updates.shape).ravel()
        for cell, size in zip(cells.ravel().tolist(), sizes.tolist(), strict=True):
            factors.setdefault(cell, []).append(Upper(size))
        untouched = len(factors) < math.prod(site.shape(0))
        slope = ONE if untouched and i == 0 else ZERO
        values = np.broadcast_to(data.magnitudes(), data.shape).ravel()
        for cell, own in factors.items():
            before = [ONE]
            for factor in own:
                before.append(before[-1] * factor)
            if i == 0:
                slope = max(slope, before[-1])
                continue
            after, row = Upper(float(values[cell])), list[Upper]()
            for k in reversed(range(len(own))):
                row.append(before[k] * after)
                after = after * own[k]
            slope = max(slope, combine(row, dual(norm)))
        return finite_or(slope, "the factors of a product are not bounded", "product of the other factors")

    def _jump(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        diameter = self.range(site, xs)[0].total_diameter(norm)
        if diameter.is_finite:
            return Finite(ZERO, diameter, method="jump between places")
        return Unbounded("the places depend on the source and the values are not bounded")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""

        def part(i: int) -> list[Flow]:
            flow, gain = flows[i], gains[i]
            return [scaled(site, flatten(flow, norm), gain, norm)] if flow is not None and gain is not None else []

        values, places = [*part(0), *part(2)], part(1)
        if self._reduction(site) in ("none", "max", "min") and len(values) > 1:
            values = [stack_flows(values, norm)]
        return (add_flows([*values, *places], norm),)
