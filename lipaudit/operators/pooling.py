"""MaxPool, AveragePool and LpPool: overlapping windows repeat elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.bounds.window import Axis
from lipaudit.operators.averages import AxisMatrix, average_gain, average_operator, axis_matrix
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.flow import Flow, Row
from lipaudit.operators.linear import LinearRule
from lipaudit.operators.range import Range, reals, widen
from lipaudit.operators.spatial import Window, windows

__all__ = ["AveragePool", "LpPool", "MaxPool"]

Floats = NDArray[np.float64]


def _channelwise(site: Site, flow: Flow, gain: Gain, norm: Norm) -> Flow | None:
    """The flow through a map of each sample and channel by itself, if it is cut along one of these axes."""
    return scaled(site, flow, gain, norm, keep_parts=True) if len(flow.rows) > 1 and flow.axis < 2 else None


class MaxPool(Rule):
    """Largest element of each window: ``m, sqrt m, 1`` with m the most windows that hold one element: exact (1 without overlap).

    The second output (indices) jumps by less than the number of elements.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Largest lower and upper ends of each window."""
        x, shape = xs[0], site.out_shape()
        found = windows(site)
        last = np.asarray(float(math.prod(site.shape(0))))
        indices = [value.shape for value in site.outputs[1:2] if value is not None and value.shape is not None]
        second = [Range(indexed, np.asarray(0.0), last, integral=True) for indexed in indices]
        if x is None or isinstance(found, str):
            return (reals(shape), *second)
        lo, hi = np.broadcast_arrays(x.lo, x.hi)
        axes = found.axes(site.shape(0)[2:], shape[2:])
        if any(not np.all(axis.matrix().sum(axis=1)) for axis in axes):
            return (reals(shape), *second)  # a window without any element
        if lo.ndim and any(size > 1 for size in lo.shape[-len(axes) :]):
            lo, hi = (_largest(np.broadcast_to(end, x.shape), axes, shape) for end in (lo, hi))
        return (Range(shape, lo, hi, integral=x.integral), *second)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        found = windows(site)
        if isinstance(found, str):
            return Unknown(found)
        overlap = found.overlap(site.shape(0)[2:], site.out_shape()[2:])
        return Finite(repeat_factor(overlap, norm), method="overlap of windows", evidence={"windows": overlap})

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, gain = flows[0], gains[0]
        assert flow is not None and gain is not None
        values = _channelwise(site, flow, gain, norm) or super().flow(site, flows, gains, norm)[0]
        if len(site.outputs) == 1:
            return (values,)
        size = math.prod(site.shape(0))
        jump = Upper(size) * repeat_factor(math.prod(site.out_shape()), norm)
        still = tuple(ZERO for _ in flow.rows[0].gains)
        return values, Flow((Row(still, jump),))


def _largest(array: Floats, axes: Sequence[Axis], shape: tuple[int, ...]) -> Floats:
    """Maximum over windows, one image axis after the other (a window is a product of taps)."""
    for k, axis in enumerate(axes):
        at = k + 2
        outputs = np.full((*array.shape[:at], axis.outputs, *array.shape[at + 1 :]), -np.inf)
        for tap in range(axis.kernel):
            met = axis.slices(tap)
            if met is not None:
                out, seen = ((slice(None),) * at + (part,) for part in met)
                outputs[out] = np.maximum(outputs[out], array[seen])
        array = outputs
    return array.reshape(shape)


class AveragePool(LinearRule):
    """Mean of each window: a matrix per axis (Kronecker product), rows ``1/c``; gain is the product of their norms.

    ``count_include_pad=0``: c = taps inside the image (the gain can exceed 1: n = 2, k = 2, pad 1: ``sqrt 1.5`` in l2); ``=1``: taps inside
    image and pads, never the overhang of ceil_mode.
    """

    def _matrices(self, site: Site) -> list[AxisMatrix] | str:
        found = windows(site)
        if isinstance(found, str):
            return found
        image, outputs = site.shape(0)[2:], site.out_shape()[2:]
        include = bool(site.attr("count_include_pad", 0))
        matrices: list[AxisMatrix] = []
        for k, axis in enumerate(found.axes(image, outputs)):
            counts = _inside_pads(axis, found, k) if include else axis.matrix().sum(axis=1).astype(int)
            if np.any(counts == 0):
                return "a window holds no element"
            matrices.append(axis_matrix(axis, counts.tolist(), k + 2))
        return matrices

    def operator(self, site: Site) -> LinearOperator | str:
        """The linear map, or why there is none."""
        matrices = self._matrices(site)
        return matrices if isinstance(matrices, str) else average_operator(matrices, site.shape(0))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """An average lies between the ends; padded zeros count where they are included."""
        x = xs[0]
        uniform = x is not None and x.lo.ndim == 0 and x.hi.ndim == 0
        if x is not None and uniform and not isinstance(self._matrices(site), str):
            pads = bool(site.attr("count_include_pad", 0))
            lo, hi = (np.minimum(x.lo, 0.0), np.maximum(x.hi, 0.0)) if pads else (x.lo, x.hi)
            return (Range(site.out_shape(), np.asarray(lo), np.asarray(hi)),)
        return super().range(site, xs)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        matrices = self._matrices(site)
        return Unknown(matrices) if isinstance(matrices, str) else average_gain(matrices, norm)

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, gain = flows[0], gains[0]
        assert flow is not None and gain is not None
        kept = _channelwise(site, flow, gain, norm)
        return (kept,) if kept is not None else super().flow(site, flows, gains, norm)


def _inside_pads(axis: Axis, found: Window, k: int) -> NDArray[np.int64]:
    begin, end = found.pads[k]
    taps = axis.stride * np.arange(axis.outputs)[:, None] + axis.dilation * np.arange(axis.kernel) - axis.begin
    return np.sum((taps >= -begin) & (taps < axis.image + end), axis=1)


class LpPool(Rule):
    """``(sum |x|^P)^(1/P)`` of each window, P >= 1, k taps, m windows over one element: ``m, sqrt(m) k^max(0, 1/P - 1/2), k^(1/P)``.

    A P-norm of k numbers moves by at most ``|dx|_P``, which is ``<= k^max(0, 1/P - 1/p) |dx|_p``.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Between 0 and ``k^(1/P) max|x|``."""
        x = xs[0]
        size = x.magnitude() if x is not None else math.inf
        found = windows(site)
        p = float(site.attr("p", 2))
        taps = math.prod(found.kernel) if isinstance(found, Window) else 1
        top = widen(size * float(taps) ** (1 / p), 64) if p >= 1 and isinstance(found, Window) else math.inf
        return (Range(site.out_shape(), np.asarray(0.0), np.asarray(top)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        found = windows(site)
        if isinstance(found, str):
            return Unknown(found)
        p = float(site.attr("p", 2))
        if p < 1:
            return Unknown(f"p = {p:g} is not a norm")
        overlap = found.overlap(site.shape(0)[2:], site.out_shape()[2:])
        exponent = {"l1": 0.0, "l2": max(0.0, 1 / p - 0.5), "linf": 1 / p}[norm]
        spread = Upper(widen(float(math.prod(found.kernel)) ** exponent, 64)) if exponent else ONE
        return Finite(repeat_factor(overlap, norm) * spread, method="norm of each window")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, gain = flows[0], gains[0]
        assert flow is not None and gain is not None
        kept = _channelwise(site, flow, gain, norm)
        return (kept,) if kept is not None else super().flow(site, flows, gains, norm)
