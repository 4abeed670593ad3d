"""Reductions over axes: sums, means, extrema, norms, products; global pooling is a reduction over all image axes.

Groups of one reduction are disjoint, so the gain is the largest of the gains of single groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, Norm, Upper, dual
from lipaudit.operators import interval
from lipaudit.operators.arithmetic import group_norm
from lipaudit.operators.averages import reduced_mean, reduction_operator
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown, scaled
from lipaudit.operators.flow import Flow
from lipaudit.operators.interval import Interval
from lipaudit.operators.range import Range, down, reals, up, widen

__all__ = ["Reduction"]

Floats = NDArray[np.float64]

# numpy's exp and log are within a few units in the last place; this relative allowance is 64 times that.
_SLACK = 2.0**-44


def _powers(k: int, norm: Norm) -> Upper:
    """Norm of the row ``(1, .., 1)`` of length k as a map: 1, sqrt(k), k."""
    return {"l1": ONE, "l2": Upper(k).sqrt(), "linf": Upper(k)}[norm]


class Reduction(Rule):
    """ReduceSum, Mean, Max, Min, L1, L2, SumSquare, LogSum, LogSumExp, Prod; Global{Average,Max,Lp}Pool.

    Gains in (l1, l2, linf), k elements a group: Sum, L1: ``1, sqrt k, k``; Mean: that over k; Max, Min, LogSumExp (gradient is a
    softmax): 1, 1, 1; L2: ``1, 1, sqrt k``; SumSquare: twice the largest ``max|x|, |x|_2, |x|_1``; LogSum with ``sum x >= S > 0``:
    ``(1, sqrt k, k)/S``; Prod: the gradient ``prod_{l != j} |x_l|`` in the dual norm.
    """

    def _name(self, site: Site) -> str:
        names = {"GlobalAveragePool": "Mean", "GlobalMaxPool": "Max", "GlobalLpPool": "Lp"}
        return names.get(site.node.op, site.node.op.removeprefix("Reduce"))

    def axes(self, site: Site) -> tuple[int, ...] | None:
        """Reduced axes: attribute or constant input by version; None if they are not constant."""
        rank = len(site.shape(0))
        if site.node.op.startswith("Global"):
            return tuple(range(2, rank))
        given: list[int] = []
        if "axes" in site.node.attrs:
            given = [int(axis) for axis in site.node.attrs["axes"]]
        elif site.has(1):
            constant = site.constant(1)
            if constant is None:
                return None
            given = [int(axis) for axis in np.asarray(constant.array()).ravel()]
        if given:
            return tuple(sorted({axis % rank for axis in given}))
        return () if site.attr("noop_with_empty_axes", 0) else tuple(range(rank))

    def _keepdims(self, site: Site) -> bool:
        return bool(site.attr("keepdims", 1))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Interval arithmetic over each group; rows survive where the last axis is not reduced."""
        x, shape, axes = xs[0], site.out_shape(), self.axes(site)
        if x is None or axes is None or x.size == 0:
            return (reals(shape),)
        name = self._name(site)
        lo, hi = x.full()
        ends = _RANGES[name]((lo, hi), axes, x.size // max(1, math.prod(shape))) if name in _RANGES else None
        if ends is None:
            return (reals(shape),)
        found = Range(shape, ends[0].reshape(shape), ends[1].reshape(shape), integral=x.integral and name in ("Max", "Min"))
        last = len(x.shape) - 1
        if name in ("Mean", "Sum") and last >= 0 and last not in axes:
            factor = 1.0 if name == "Mean" else float(math.prod(x.shape[axis] for axis in axes))
            samples = 0 not in axes and len(shape) >= 2
            row = widen(factor * x.row, 2) if x.row else 0.0
            spread = widen(factor * x.diameter, 2) if samples and x.diameter else (0.0 if samples else math.inf)
            return (found.replace(row=row, diameter=spread, zero_mean=x.zero_mean),)
        return (found,)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            return Unknown("the axes depend on the source")
        axes, x = self.axes(site), xs[0]
        if axes is None:
            return Unknown("the axes are not constant")
        shape = site.shape(0)
        k = math.prod(shape[axis] for axis in axes)
        if k == 0 or math.prod(shape) == 0:
            return Finite(Upper(0), method="nothing to reduce")
        name = self._name(site)
        if name in ("Sum", "L1"):
            return Finite(_powers(k, norm), method="sum", evidence={"terms": k})
        if name == "Mean":
            return Finite(reduced_mean(k, norm), method="mean", evidence={"terms": k})
        if name in ("Max", "Min", "LogSumExp"):
            return Finite(ONE, method="1-Lipschitz in every norm")
        if name == "L2":
            return Finite(Upper(k).sqrt() if norm == "linf" else ONE, method="norm")
        if name == "Lp":
            return self._lp(site, k, norm)
        assert x is not None
        return self._on_range(name, x, axes, k, norm)

    def _lp(self, site: Site, k: int, norm: Norm) -> Gain:
        """P >= 1: ``1, k^max(0, 1/P - 1/2), k^(1/P)``."""
        p = float(site.attr("p", 2))
        if p < 1:
            return Unknown(f"p = {p:g} is not a norm")
        exponent = {"l1": 0.0, "l2": max(0.0, 1 / p - 0.5), "linf": 1 / p}[norm]
        return Finite(Upper(widen(float(k) ** exponent, 64) if exponent else 1.0), method="norm of a group")

    def _on_range(self, name: str, x: Range, axes: tuple[int, ...], k: int, norm: Norm) -> Gain:
        """The operators whose slope grows with the input."""
        if name == "LogSum":
            smallest = float(np.min(interval.total(x.full(), axes)[0]))
            if not smallest > 0:
                return Unbounded("logarithm of a sum that can be as small as 0")
            slope = _powers(k, norm) * Upper(float(up(1 / smallest)))
            return Finite(slope, method="reciprocal of the smallest sum")
        magnitudes = x.magnitudes()
        if name == "SumSquare":
            slope = 2 * group_norm(magnitudes, x.shape, axes, dual(norm))
            if norm == "l2" and axes == (len(x.shape) - 1,):
                slope = min(slope, 2 * x.row_norm())
        elif name == "Prod":
            slope = _product_slope(np.broadcast_to(magnitudes, x.shape), axes, norm)
        else:
            return Unknown(f"no rule for {name}")
        if not math.isfinite(slope):
            return Unbounded("its input is not bounded on the domain")
        return Finite(Upper(slope), method="largest gradient")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        name, axes = self._name(site), self.axes(site)
        if i or name not in ("Sum", "Mean") or axes is None or math.prod(site.shape(0)) == 0:
            return None
        return reduction_operator(site.shape(0), site.out_shape(), axes, mean=name == "Mean")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, gain, axes = flows[0], gains[0], self.axes(site)
        if flow is None or gain is None or axes is None or len(flow.rows) == 1 or flow.axis in axes:
            return super().flow(site, flows, gains, norm)
        axis = flow.axis if self._keepdims(site) else flow.axis - sum(a < flow.axis for a in axes)
        return (scaled(site, replace(flow, axis=axis), gain, norm, keep_parts=True),)


def _absolute(x: Interval) -> Interval:
    low = np.where((x[0] <= 0) & (x[1] >= 0), 0.0, np.minimum(np.abs(x[0]), np.abs(x[1])))
    return low, np.maximum(np.abs(x[0]), np.abs(x[1]))


def _sum(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    return interval.total(x, axes)


def _mean(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    count = np.asarray(float(max(k, 1)))
    return interval.divide(interval.total(x, axes), (count, count))


def _clipped(x: Interval) -> Interval:
    return np.maximum(x[0], 0.0), x[1]


def _largest(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    return np.max(x[0], axis=axes, keepdims=True), np.max(x[1], axis=axes, keepdims=True)


def _smallest(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    return np.min(x[0], axis=axes, keepdims=True), np.min(x[1], axis=axes, keepdims=True)


def _l1(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    return _clipped(interval.total(_absolute(x), axes))


def _sum_square(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    return _clipped(interval.total(interval.square(x), axes))


def _l2(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    lo, hi = _sum_square(x, axes, k)
    return np.maximum(down(np.sqrt(lo)), 0.0), up(np.sqrt(hi))


def _log_sum(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    lo, hi = interval.total(x, axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.log(np.maximum(lo, 0.0)), np.where(hi > 0, np.log(np.maximum(hi, 0.0)), np.inf)
    return low - np.abs(low) * _SLACK - 1e-300, high + np.abs(high) * _SLACK + 1e-300


def _log_sum_exp(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    """Monotone in every element; evaluated about the largest one, with an allowance for exp, sum and log."""
    ends: list[Floats] = []
    for end, sign in zip(x, (-1.0, 1.0), strict=True):
        top = np.max(end, axis=axes, keepdims=True)
        finite = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            value = np.where(np.isfinite(top), finite + np.log(np.sum(np.exp(end - finite), axis=axes, keepdims=True)), top)
            ends.append(value + sign * ((k + 8) * _SLACK + np.where(np.isfinite(value), np.abs(value), 0.0) * _SLACK))
    return ends[0], ends[1]


def _prod(x: Interval, axes: tuple[int, ...], k: int) -> Interval:
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.prod(_absolute(x)[1], axis=axes, keepdims=True)
        size = np.where(np.isnan(size), np.inf, size * (1 + (k + 4) * 2.0**-52) + 1e-300)
    return np.where(np.all(x[0] >= 0, axis=axes, keepdims=True), 0.0, -size), size


_RANGES: dict[str, Callable[[Interval, tuple[int, ...], int], Interval]] = {
    "Sum": _sum,
    "Mean": _mean,
    "Max": _largest,
    "Min": _smallest,
    "L1": _l1,
    "L2": _l2,
    "SumSquare": _sum_square,
    "LogSum": _log_sum,
    "LogSumExp": _log_sum_exp,
    "Prod": _prod,
}


def _product_slope(magnitudes: Floats, axes: tuple[int, ...], norm: Norm) -> float:
    """Largest dual norm of ``(prod_{l != j} X_l)_j`` over the groups."""
    kept = [axis for axis in range(magnitudes.ndim) if axis not in axes]
    groups = np.transpose(magnitudes, (*kept, *axes)).reshape(math.prod(magnitudes.shape[axis] for axis in kept), -1)
    k = groups.shape[1]
    ones = np.ones((groups.shape[0], 1))
    with np.errstate(over="ignore", invalid="ignore"):
        before = np.concatenate([ones, np.cumprod(groups[:, :-1], axis=1)], axis=1)
        after = np.concatenate([np.cumprod(groups[:, :0:-1], axis=1)[:, ::-1], ones], axis=1)
        gradient = before * after * (1 + (k + 4) * 2.0**-52) + 1e-300
    if not np.all(np.isfinite(gradient)):
        return math.inf
    return group_norm(gradient, gradient.shape, (1,), dual(norm))
