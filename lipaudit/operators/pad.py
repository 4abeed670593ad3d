"""Pad: constant, reflect, edge and wrap, in all versions, negative pads included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm, repeat_factor
from lipaudit.operators.base import Finite, Gain, Site, Unknown, scaled
from lipaudit.operators.broadcast import stack_flows
from lipaudit.operators.flow import Flow, flatten
from lipaudit.operators.interval import Interval
from lipaudit.operators.movement import Movement, integers
from lipaudit.operators.range import Range

__all__ = ["Pad"]

Array = NDArray[Any]


class Pad(Movement):
    """Each axis by itself: a list of source indices (-1: the constant), from which copies are counted.

    reflect: an inner element near both ends occurs up to three times; edge: the end ``1 + max(a, b)`` times; wrap: as often as
    ``i mod n`` hits it. Negative pads crop first. A padding value that moves fills k elements: ``k**(1/p)``, beside the data as in Concat.
    """

    def _pads(self, site: Site) -> list[tuple[int, int]] | None:
        rank = len(site.shape(0))
        pads = integers(site, 1, "paddings" if "paddings" in site.node.attrs else "pads")
        if pads is None or (site.has(3) and site.constant(3) is None):
            return None
        axes = [axis % rank for axis in (integers(site, 3, "axes") or [])] or list(range(rank))
        if len(pads) != 2 * len(axes):
            return None
        found = [(0, 0)] * rank
        for k, axis in enumerate(axes):
            found[axis] = (pads[k], pads[k + len(axes)])
        return found

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        pads = self._pads(site)
        if pads is None:
            return "the pads are not constant"
        mode = site.attr("mode", "constant")
        if mode not in ("constant", "reflect", "edge", "wrap"):
            return f"mode {mode!r} is not one that is known"
        for (begin, end), n in zip(pads, site.shape(0), strict=True):
            if mode != "constant" and (min(begin, end) < 0 or (n == 0 and (begin or end))):
                return f"negative or empty pads in mode {mode!r}"
            if begin + end + n < 0:
                return "the pads crop more than there is"
        return None

    def _indices(self, site: Site, axis: int) -> list[int]:
        pads = self._pads(site)
        assert pads is not None
        (begin, end), n = pads[axis], site.shape(0)[axis]
        mode = site.attr("mode", "constant")
        positions = range(-begin, n + end)
        if mode == "edge":
            return [min(max(p, 0), n - 1) for p in positions]
        if mode == "wrap":
            return [p % n for p in positions]
        if mode == "reflect":
            period = 2 * (n - 1)
            return [min(p % period, period - p % period) if period else 0 for p in positions]
        return [p if 0 <= p < n else -1 for p in positions]

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        for axis in range(array.ndim):
            indices = np.asarray(self._indices(site, axis), dtype=np.int64)
            if len(indices) == array.shape[axis] and np.array_equal(indices, np.arange(len(indices))):
                continue
            if array.shape[axis] == 0:
                array = np.zeros((*array.shape[:axis], len(indices), *array.shape[axis + 1 :]), dtype=array.dtype)
                array[...] = fill
                continue
            moved = np.take(array, np.maximum(indices, 0), axis=axis)
            if np.any(indices < 0):
                new = (indices < 0).reshape((-1,) + (1,) * (array.ndim - axis - 1))
                moved = np.where(new, fill.astype(array.dtype), moved)
            array = moved
        return array

    def multiplicity(self, site: Site) -> int:
        """Most copies of one element."""
        copies = 1
        for axis in range(len(site.shape(0))):
            live = [index for index in self._indices(site, axis) if index >= 0]
            copies *= int(np.max(np.bincount(live))) if live else 0
        return copies

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        return axis, self._indices(site, axis)

    def has_fill(self, site: Site) -> bool:
        """See the base class."""
        return any(index < 0 for axis in range(len(site.shape(0))) for index in self._indices(site, axis))

    def fill(self, site: Site, xs: Sequence[Range | None]) -> Interval:
        """See the base class."""
        if "value" in site.node.attrs:
            value = np.asarray(float(site.node.attrs["value"]))
            return value, value
        given = xs[2] if len(xs) > 2 else None
        if given is None:
            return np.asarray(0.0), np.asarray(0.0)
        return np.asarray(float(np.min(given.lo))), np.asarray(float(np.max(given.hi)))

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i != 2:
            return super().gain(site, i, norm, xs)
        problem = self.problem(site)
        if problem is not None:
            return Unknown(problem)
        live = math.prod(sum(index >= 0 for index in self._indices(site, axis)) for axis in range(len(site.shape(0))))
        copies = math.prod(site.out_shape()) - live
        return Finite(repeat_factor(copies, norm), method="copies of the padding value", evidence={"copies": copies})

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """The padding value fills elements of its own."""
        new, gain = (flows[2], gains[2]) if len(flows) > 2 else (None, None)
        if new is None or gain is None:
            return super().flow(site, flows, gains, norm)
        parts = [scaled(site, flatten(new, norm), gain, norm)]
        others = [None if k == 2 else flow for k, flow in enumerate(flows)]
        if any(flow is not None for flow in others):
            parts += super().flow(site, others, [None if k == 2 else found for k, found in enumerate(gains)], norm)
        return (stack_flows(parts, norm),)

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        pads = self._pads(site)
        if not x.shape or pads is None:
            return moved
        new = any(index < 0 for axis in range(len(x.shape)) for index in self._indices(site, axis))
        if not new:
            kept = pads[-1] == (0, 0)
            return moved.replace(row=x.row if kept else math.inf, diameter=x.diameter if kept else math.inf, zero_mean=x.zero_mean and kept)
        constant = site.constant(2)
        given = not site.has(2) or (constant is not None and not np.any(np.asarray(constant.array())))
        zero = site.node.attrs.get("value", 0.0) == 0 and given
        return moved.replace(row=x.row) if zero else moved
