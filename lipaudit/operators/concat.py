"""Concat and Split: parts of a value put together or taken apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, ZERO, Norm
from lipaudit.operators.base import Finite, Gain, Rule, Site, scaled
from lipaudit.operators.broadcast import root_sum
from lipaudit.operators.flow import Flow, Row, concatenate, pieces
from lipaudit.operators.range import Range

__all__ = ["Concat", "Split"]

Floats = NDArray[np.float64]


class Concat(Rule):
    """Operands side by side: gain 1 from each; the rows of their flows are stacked (dependent branches: ``|(L_i)|_p``)."""

    def _axis(self, site: Site) -> int:
        return int(site.attr("axis", 1 if site.node.version < 4 else 0)) % len(site.out_shape())

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Intervals side by side. Along the features rows grow: ``sqrt(sum R^2)``; else the largest."""
        shape, axis = site.out_shape(), self._axis(site)
        given = [x for x in xs if x is not None and x.size]
        if not given:
            return (Range(shape, np.asarray(0.0), np.asarray(0.0)),)
        integral = all(x.integral for x in given)
        first = given[0]
        if all(x.lo.ndim == 0 and x.hi.ndim == 0 and x.lo == first.lo and x.hi == first.hi for x in given):
            lo, hi = first.lo, first.hi
        else:
            lo, hi = (_side_by_side([getattr(x, end) for x in given], [x.shape for x in given], axis) for end in ("lo", "hi"))
        last = axis == len(shape) - 1
        rows = [x.row_norm() for x in given]
        row = root_sum(rows) if last else max(rows)
        zero_mean = all(x.zero_mean for x in given)
        diameter = math.inf
        if len(shape) >= 2:
            diameters = [x.row_diameter() for x in given]
            if last:
                diameter = root_sum(diameters)
            elif axis == 0 or len(given) == 1:
                diameter = max(diameters)
            else:
                two = sorted(rows)[-2:]
                diameter = max(*diameters, math.nextafter(two[0] + two[1], math.inf))
        return (Range(shape, lo, hi, row=row, diameter=diameter, zero_mean=zero_mean, integral=integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        return Finite(ONE, method="side by side")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        return self._placed(site, i) if sum(site.moving) == 1 else None

    def summands(self, site: Site) -> Mapping[int, LinearOperator] | None:
        """Each operand in its place."""
        names = [name for name, moves in zip(site.node.inputs, site.moving, strict=True) if moves]
        if len(set(names)) < len(names):
            return None
        return {i: self._placed(site, i) for i, moves in enumerate(site.moving) if moves}

    def _placed(self, site: Site, i: int) -> LinearOperator:
        shape, out, axis = site.shape(i), site.out_shape(), self._axis(site)
        start = sum(site.shape(j)[axis] for j in range(i))

        def index() -> NDArray[np.int64]:
            found = np.full(out, -1, dtype=np.int64)
            place = tuple(slice(start, start + shape[axis]) if k == axis else slice(None) for k in range(len(out)))
            found[place] = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
            return found

        return Selection(shape, out, index, 1 if math.prod(shape) else 0)

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        columns = next(len(flow.rows[0].gains) for flow in flows if flow is not None)
        still = Flow((Row(tuple(ZERO for _ in range(columns))),))
        axis = self._axis(site)
        parts, lengths = [], []
        for i, (flow, gain) in enumerate(zip(flows, gains, strict=True)):
            length = site.shape(i)[axis]
            if length == 0 or math.prod(site.shape(i)) == 0:
                continue
            moves = flow is not None and gain is not None
            parts.append(scaled(site, flow, gain, norm, keep_parts=True) if flow is not None and gain is not None and moves else still)
            lengths.append(length)
        if not parts:
            return (still,)
        return (concatenate(parts, lengths, axis, norm),)


def _side_by_side(ends: Sequence[Floats], shapes: Sequence[tuple[int, ...]], axis: int) -> Floats:
    """Concatenate arrays that broadcast to ``shapes``, no larger than needed."""
    rank = len(shapes[0])
    lined = [np.reshape(end, (1,) * (rank - end.ndim) + end.shape) for end in ends]
    common = [max(array.shape[k] for array in lined) for k in range(rank)]
    full = [np.broadcast_to(array, (*common[:axis], shape[axis], *common[axis + 1 :])) for array, shape in zip(lined, shapes, strict=True)]
    return np.concatenate(full, axis=axis)


class Split(Rule):
    """Pieces along one axis; their lengths are read off the outputs. All pieces together: gain 1."""

    def _axis(self, site: Site) -> int:
        return int(site.attr("axis", 0)) % len(site.shape(0))

    def _bounds(self, site: Site) -> list[tuple[int, int]]:
        axis, start, found = self._axis(site), 0, []
        for value in site.outputs:
            length = value.shape[axis] if value is not None and value.shape is not None else 0
            found.append((start, start + length))
            start += length
        return found

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Pieces of the intervals; the norm of a row bounds that of its piece."""
        x, axis = xs[0], self._axis(site)
        assert x is not None
        shape = site.shape(0)
        lo, hi = np.broadcast_arrays(x.lo, x.hi)
        own = axis - (len(shape) - lo.ndim)
        varies = own >= 0 and lo.shape[own] == shape[axis] and shape[axis] > 1
        last = axis == len(shape) - 1
        results: list[Range] = []
        for start, stop in self._bounds(site):
            part = tuple(slice(start, stop) if k == own and varies else slice(None) for k in range(lo.ndim))
            result = Range((*shape[:axis], stop - start, *shape[axis + 1 :]), lo[part], hi[part], row=x.row, diameter=x.diameter)
            results.append(result.replace(zero_mean=x.zero_mean and (not last or stop - start == shape[axis]), integral=x.integral))
        return tuple(results)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        return Finite(ONE if i == 0 else ZERO, method="pieces" if i == 0 else "lengths are static")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        if i or len(site.outputs) != 1:
            return None
        shape = site.shape(0)
        return Selection(shape, shape, lambda: np.arange(math.prod(shape), dtype=np.int64).reshape(shape), 1)

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, axis = flows[0], self._axis(site)
        if flow is None:  # only the lengths depend on the source, and the outputs have static shapes
            return super().flow(site, flows, gains, norm)
        return tuple(pieces(flow, axis, start, stop) for start, stop in self._bounds(site))
