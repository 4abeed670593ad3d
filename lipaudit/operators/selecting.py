"""Movement with a pattern of its own: CenterCropPad, Compress, MaxUnpool, Col2Im, TensorScatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper
from lipaudit.bounds.window import Axis
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown, scaled
from lipaudit.operators.broadcast import add_flows, stack_flows
from lipaudit.operators.flow import Flow, flatten
from lipaudit.operators.movement import Movement, integers
from lipaudit.operators.range import Range, reals, widen

__all__ = ["CenterCropPad", "Col2Im", "Compress", "MaxUnpool", "TensorScatter"]

Array = NDArray[Any]


class CenterCropPad(Movement):
    """The middle of each axis, or zeros on both sides: what is cut is ``floor`` of half at the begin."""

    def _axes(self, site: Site) -> tuple[int, ...]:
        rank = len(site.shape(0))
        axes = site.attr("axes")
        return tuple(int(axis) % rank for axis in axes) if axes is not None else tuple(range(rank))

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        if site.constant(1) is None:
            return "the shape is not constant"
        axes = self._axes(site)
        kept = all(a == b for k, (a, b) in enumerate(zip(site.shape(0), site.out_shape(), strict=True)) if k not in axes)
        return None if kept else "the output shape does not follow from the axes"

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        out = np.full(site.out_shape(), fill, dtype=array.dtype)
        places = [self._places(n, o) for n, o in zip(site.shape(0), site.out_shape(), strict=True)]
        out[tuple(place[1] for place in places)] = array[tuple(place[0] for place in places)]
        return out

    @staticmethod
    def _places(n: int, o: int) -> tuple[slice, slice]:
        skip = abs(n - o) // 2
        moved = slice(skip, skip + min(n, o))
        return (moved, slice(0, o)) if n > o else (slice(0, n), moved)

    def has_fill(self, site: Site) -> bool:
        """See the base class."""
        return any(o > n for n, o in zip(site.shape(0), site.out_shape(), strict=True))

    def multiplicity(self, site: Site) -> int:
        """At most one copy."""
        return 1 if math.prod(site.shape(0)) and math.prod(site.out_shape()) else 0

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        n, o = site.shape(0)[axis], site.out_shape()[axis]
        taken, placed = self._places(n, o)
        indices = [-1] * o
        indices[placed] = range(n)[taken]
        return axis, indices

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept: zeros add nothing, what is cut off takes away."""
        return moved.replace(row=x.row)


class Compress(Movement):
    """The slices along one axis (or the elements of the flattened tensor) where a stored condition is true."""

    def _chosen(self, site: Site) -> NDArray[np.int64] | None:
        constant = site.constant(1)
        return None if constant is None else np.flatnonzero(np.asarray(constant.array()))

    def _axis(self, site: Site) -> int | None:
        axis = site.attr("axis")
        return None if axis is None else int(axis) % len(site.shape(0))

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        return "the condition is not constant" if self._chosen(site) is None else None

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        chosen, axis = self._chosen(site), self._axis(site)
        assert chosen is not None
        return array.ravel()[chosen] if axis is None else np.take(array, chosen, axis=axis)

    def multiplicity(self, site: Site) -> int:
        """At most one copy."""
        return 1 if math.prod(site.shape(0)) and math.prod(site.out_shape()) else 0

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        own, chosen = self._axis(site), self._chosen(site)
        if own is None or chosen is None:
            return None
        return axis, chosen.tolist() if axis == own else range(site.shape(0)[axis])

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        axis = self._axis(site)
        if axis is None:
            return moved
        whole = bool(x.shape) and axis != len(x.shape) - 1
        return moved.replace(row=x.row, diameter=x.diameter, zero_mean=x.zero_mean and whole)


class MaxUnpool(Rule):
    """Each element goes to the place that its index names; the rest is 0. At most one copy of each element: gain 1.

    Indices from the source (those of the MaxPool before it) jump by the diameter of the output.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The elements, or 0."""
        x = xs[0]
        assert x is not None
        if x.size == 0:
            return (Range(site.out_shape(), np.asarray(0.0), np.asarray(0.0)),)
        lo, hi = min(0.0, float(np.min(x.lo))), max(0.0, float(np.max(x.hi)))
        return (Range(site.out_shape(), np.asarray(lo), np.asarray(hi), integral=x.integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i > 1:
            return Unknown("the output shape depends on the source")
        if i == 0:
            return Finite(ONE if math.prod(site.shape(0)) else ZERO, method="selection")
        # Two outputs differ at most where one of them has an element: twice as many places as elements.
        found = self.range(site, xs)[0]
        places = min(2 * math.prod(site.shape(0)), math.prod(site.out_shape()))
        jump = Range((places,), found.lo, found.hi).total_diameter(norm)
        if not jump.is_finite:
            return Unbounded("the indices depend on the source and the values are not bounded")
        return Finite(ZERO, jump, method="jump between places")


class Col2Im(Rule):
    """Sums of the blocks that overlap a pixel: with m blocks over the most covered pixel ``1, sqrt(m), m``, exact.

    Each element goes to at most one pixel, so the rows of the matrix are orthogonal.
    """

    def _axes(self, site: Site) -> tuple[Axis, ...] | str:
        image, block = integers(site, 1, ""), integers(site, 2, "")
        if image is None or block is None:
            return "image_shape or block_shape is not constant"
        rank = len(image)
        strides = [int(x) for x in site.attr("strides") or (1,) * rank]
        dilations = [int(x) for x in site.attr("dilations") or (1,) * rank]
        pads = [int(x) for x in site.attr("pads") or (0,) * (2 * rank)]
        if (
            not len(block) == len(strides) == len(dilations) == rank
            or len(pads) != 2 * rank
            or min((*block, *strides, *dilations), default=1) < 1
        ):
            return "block_shape, strides, dilations or pads do not fit the image"
        found: list[Axis] = []
        for k in range(rank):
            outputs = (image[k] + pads[k] + pads[k + rank] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1
            if outputs < 1:
                return "the blocks are larger than the image"
            found.append(Axis(block[k], image[k], outputs, strides[k], dilations[k], pads[k]))
        fits = math.prod(axis.outputs for axis in found) == site.shape(0)[-1] and tuple(image) == site.out_shape()[2:]
        return tuple(found) if fits else "the shapes do not follow from the blocks"

    @staticmethod
    def _covers(axis: Axis) -> NDArray[np.int64]:
        """How many blocks cover each pixel of one axis."""
        return np.asarray(axis.matrix().sum(axis=0), dtype=np.int64)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """As many elements as blocks cover the pixel."""
        x, axes, shape = xs[0], self._axes(site), site.out_shape()
        assert x is not None
        if isinstance(axes, str) or x.size == 0:
            return (reals(shape),)
        lo, hi = float(np.min(x.lo)), float(np.max(x.hi))
        counts = [self._covers(axis) for axis in axes]
        ends = [math.prod(int(count.min()) for count in counts), math.prod(int(count.max()) for count in counts)]
        low = min(0.0 if n == 0 else lo if n == 1 else -widen(-n * lo, n) if lo < 0 else n * lo * (1 - n * 2.0**-52) for n in ends)
        high = max(0.0 if n == 0 else hi if n == 1 else widen(n * hi, n) if hi > 0 else n * hi * (1 - n * 2.0**-52) for n in ends)
        return (Range(shape, np.asarray(low), np.asarray(high), integral=x.integral and max(abs(low), abs(high)) < 2.0**53),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        axes = self._axes(site)
        if i:
            return Unknown("the shape of the image depends on the source")
        if isinstance(axes, str):
            return Unknown(axes)
        m = math.prod(int(self._covers(axis).max(initial=0)) for axis in axes)
        if m == 0 or math.prod(site.shape(0)) == 0:
            return Finite(ZERO, method="no block meets the image")
        return Finite({"l1": ONE, "l2": Upper(m).sqrt(), "linf": Upper(m)}[norm], method="overlap of blocks", evidence={"blocks": m})

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Samples are independent of each other."""
        flow, gain = flows[0], gains[0]
        if flow is None or gain is None or any(other is not None for other in flows[1:]):
            return super().flow(site, flows, gains, norm)
        return (scaled(site, flow, gain, norm, keep_parts=flow.axis == 0),)


class TensorScatter(Rule):
    """``update`` written into ``past_cache`` along an axis, at an index per sample: each output copies one element.

    Both have gain 1 (the cache 0 where all of it is overwritten) and join like Concat. Indices from the source jump.
    """

    def _lengths(self, site: Site) -> tuple[int, int]:
        axis = int(site.attr("axis", -2)) % len(site.shape(0))
        return site.shape(0)[axis], site.shape(1)[axis]

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Hull of both."""
        past, update = xs[0], xs[1]
        assert past is not None and update is not None
        if update.size == 0 or past.size == 0:
            return (past,)
        integral = past.integral and update.integral
        lo, hi = np.minimum(past.lo, np.min(update.lo)), np.maximum(past.hi, np.max(update.hi))
        row = math.inf
        if int(site.attr("axis", -2)) % len(past.shape) != len(past.shape) - 1:
            row = max(past.row, update.row)
        return (Range(site.out_shape(), lo, hi, row=row, integral=integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        whole, own = self._lengths(site)
        if i == 2:
            jump = self.range(site, xs)[0].total_diameter(norm)
            if jump.is_finite:
                return Finite(ZERO, jump, method="jump between places")
            return Unbounded("the places depend on the source and the values are not bounded")
        live = own < whole if i == 0 else own > 0
        return Finite(ONE if live and math.prod(site.shape(i)) else ZERO, method="selection")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Cache and update fill disjoint places."""

        def part(i: int) -> list[Flow]:
            flow, gain = (flows[i], gains[i]) if i < len(flows) else (None, None)
            return [scaled(site, flatten(flow, norm), gain, norm)] if flow is not None and gain is not None else []

        values, places = [*part(0), *part(1)], part(2)
        if len(values) > 1:
            values = [stack_flows(values, norm)]
        return (add_flows([*values, *places], norm),)
