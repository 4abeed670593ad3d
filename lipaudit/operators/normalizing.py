"""Normalizing operators: what they share. Each operator says how it groups and scales (:class:`Plan`); range and gain follow.

``y = g * z + b`` with z a normalized group (``operators.radial``). Gain from x: ``||G P|| / s0`` in l2, ``max|g|`` times the
l1/linf constant; from a moving scale: ``max|z_k|`` times the copies; from a moving bias: the copies.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.interval import Interval, add, multiply
from lipaudit.operators.outputs import SeveralOutputs, finite_or, jointly
from lipaudit.operators.parts import Part, factors
from lipaudit.operators.radial import Radial, Spread, centred_scale_norm, spread
from lipaudit.operators.range import Range, reals, up, widen

__all__ = ["Normalizing", "Plan", "affine_operand"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one node normalizes.

    Attributes
    ----------
    core
        The normalization of one group.
    x
        Range of what is normalized.
    shape, axes
        The shape of x, possibly regrouped; a group runs over ``axes`` of it.
    scale, bias
        Element intervals that broadcast to ``shape``; None where absent.
    x_inputs
        Inputs that are normalized (their sum, where there are several).
    scale_input, bias_input
        Positions of the affine parameters (-1: none).
    """

    core: Radial
    x: Range
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    scale: Interval | None = None
    bias: Interval | None = None
    x_inputs: tuple[int, ...] = (0,)
    scale_input: int = -1
    bias_input: int = -1

    @property
    def spread(self) -> Spread:
        """Bounds of ``|Px|`` per group from the box and, where groups are rows, from the row norm."""
        found = spread(self.x, self.shape, self.axes, self.core.centred)
        if self.axes == (len(self.shape) - 1,) and self.shape == self.x.shape:
            return Spread(found.floor, min(found.largest, self.x.row_norm()))
        return found

    @property
    def top(self) -> float:
        """Upper bound of ``max|g|``."""
        return 1.0 if self.scale is None else float(np.max(np.maximum(np.abs(self.scale[0]), np.abs(self.scale[1])), initial=0.0))

    @property
    def scale_norm(self) -> float:
        """Upper bound of ``||G P||`` over all groups."""
        top = self.top
        if not self.core.centred or self.scale is None or self.core.n < 2:
            return top
        lo, hi = np.broadcast_arrays(*self.scale)
        if not np.array_equal(lo, hi) or lo.ndim > len(self.shape):
            return top
        lo = lo.reshape((1,) * (len(self.shape) - lo.ndim) + lo.shape)
        sizes = tuple(self.shape[axis] if axis in self.axes else lo.shape[axis] for axis in range(lo.ndim))
        groups = math.prod(size for axis, size in enumerate(sizes) if axis not in self.axes)
        if groups > 64 or all(lo.shape[axis] == 1 for axis in self.axes):
            return top
        rows = np.moveaxis(np.broadcast_to(lo, sizes), self.axes, range(-len(self.axes), 0)).reshape(groups, -1)
        return min(top, max(centred_scale_norm(row) for row in rows))


def affine_operand(x: Range | None, shape: tuple[int, ...]) -> Interval | None:
    """Element intervals of a scale or bias, reshaped to ``shape`` (0-d where all its elements share one interval)."""
    if x is None:
        return None
    lo, hi = np.broadcast_arrays(x.lo, x.hi)
    if lo.size == 1:
        return lo.reshape(()), hi.reshape(())
    return np.broadcast_to(lo, x.shape).reshape(shape), np.broadcast_to(hi, x.shape).reshape(shape)


class Normalizing(SeveralOutputs):
    """Range and gains of ``g * normalized(x) + b``; subclasses give the :class:`Plan`."""

    @abstractmethod
    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """How this node normalizes, or why that is not known."""

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The stored scale."""
        return factors(site, 1)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Element intervals, row norm and diameter of the first output; :meth:`others` gives the remaining ones."""
        plan = self.plan(site, xs)
        if isinstance(plan, Unknown):
            return tuple(reals(value.shape) if value is not None and value.shape is not None else reals(()) for value in site.outputs)
        return (normalized_range(plan, site.out_shape()), *self.other_ranges(site, plan))

    def other_ranges(self, site: Site, plan: Plan) -> tuple[Range, ...]:
        """Ranges of the outputs after the first."""
        return tuple(reals(value.shape) if value is not None and value.shape is not None else reals(()) for value in site.outputs[1:])

    def other_gains(self, site: Site, plan: Plan, norm: Norm) -> tuple[Gain, ...]:
        """Gains from x to the outputs after the first (omitted ones: 0)."""
        unknown = Unknown("the gain of this output is not known")
        return tuple(unknown if value is not None else Finite(ZERO) for value in site.outputs[1:])

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """From the normalized input, the scale or the bias to all outputs."""
        plan = self.plan(site, xs)
        if isinstance(plan, Unknown):
            return plan
        rest = tuple(Finite(ZERO) for _ in site.outputs[1:])
        if i in (plan.scale_input, plan.bias_input):
            size = max(1, math.prod(site.shape(i)))
            factor = repeat_factor(math.prod(plan.shape) // size, norm)
            if i == plan.bias_input:
                return jointly((Finite(factor, method="added bias"), *rest), norm)
            radius = plan.core.radius(plan.spread.largest)
            return jointly((Finite(factor * Upper(plan.core.peak(radius)), method="scale times a normalized group"), *rest), norm)
        if i not in plan.x_inputs:
            return Unknown(f"the gain from input {i} is not known")
        first = normalized_gain(plan, norm)
        if isinstance(first, Finite) and len(plan.x_inputs) > 1:
            size = max(1, math.prod(site.shape(i)))
            factor = repeat_factor(math.prod(plan.shape) // size, norm)
            others = tuple(_times(factor, gain) for gain in self.other_gains(site, plan, norm))
            return jointly((_times(factor, first), *others), norm)
        return jointly((first, *self.other_gains(site, plan, norm)), norm)


def _times(factor: Upper, gain: Gain) -> Gain:
    if isinstance(gain, Finite):
        return Finite(factor * gain.slope, factor * gain.offset, gain.method, gain.evidence)
    return gain


def normalized_gain(plan: Plan, norm: Norm) -> Gain:
    """Gain from x to ``g * z + b``."""
    core = plan.core
    if core.eps < 0 or math.isnan(core.eps):
        return Unknown(f"epsilon is {core.eps}: the root may not exist")
    if core.m == 0:
        return Unknown("the unbiased variance of one element is not defined")
    if core.is_constant:
        return Finite(ZERO, method="a centred group of one element is constant")
    floor = plan.spread.floor
    slope = Upper(plan.scale_norm if norm == "l2" else plan.top) * core.slope(norm, floor)
    what = "the spread" if core.centred else "the norm"
    reason = f"without an epsilon the gain grows like 1/|x|, and {what} of a group can be 0 on this domain"
    if math.isinf(plan.top):
        reason = "the scale is an unbounded activation"
    method = "1/s0 with a floor of the spread on this box" if floor > 0 else "scale / sqrt(eps)" if core.place == "root" else "scale / eps"
    gain = finite_or(slope, reason, method)
    if isinstance(gain, Unbounded):
        return gain
    evidence = {"n": core.n, "eps": core.eps, "place": core.place, "floor": floor, "scale": plan.scale_norm if norm == "l2" else plan.top}
    return Finite(slope, method=method, evidence=evidence)


def normalized_range(plan: Plan, out_shape: tuple[int, ...]) -> Range:
    """Range of ``g * z + b``: intervals from ``|z_k| <= peak``, rows from ``|G z| <= ||G P|| rho``, diameter ``2 rho ||G P||``."""
    core, last = plan.core, len(plan.shape) - 1
    if core.eps < 0 or math.isnan(core.eps) or core.m == 0 or plan.x.size == 0:
        return reals(out_shape)
    radius = core.radius(plan.spread.largest)
    peak = core.peak(radius)
    ball = (np.asarray(-peak), np.asarray(peak))
    lo, hi = ball if plan.scale is None else multiply(plan.scale, ball)
    bias_row = 0.0
    if plan.bias is not None:
        lo, hi = add((lo, hi), plan.bias)
        if plan.bias[0].ndim == 0 or plan.bias[0].shape[-1] in (1, plan.shape[-1]):
            bias_row = Range(plan.shape, *plan.bias).row_norm()
    result = Range(out_shape, *_regrouped(lo, hi, plan.shape, out_shape))
    if last not in plan.axes or not out_shape or plan.shape[-1] != out_shape[-1]:
        return result
    whole_row = plan.axes == (last,)
    scale_norm = plan.scale_norm if whole_row else plan.top
    length = widen(scale_norm * radius, 2)
    result = result.replace(row=widen(length + bias_row, 2))
    if whole_row and plan.shape == out_shape and _same_for_all_rows(plan.scale) and _same_for_all_rows(plan.bias):
        zero = core.centred and _uniform(plan.scale) and _vanishes(plan.bias)
        result = result.replace(diameter=widen(2 * length, 2), zero_mean=zero)
    return result


def _regrouped(lo: Floats, hi: Floats, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Interval:
    lo, hi = np.broadcast_arrays(lo, hi)
    if shape == out_shape or lo.size == 1:
        return (lo.reshape(()), hi.reshape(())) if lo.size == 1 else (lo, hi)
    return np.broadcast_to(lo, shape).reshape(out_shape), np.broadcast_to(hi, shape).reshape(out_shape)


def _same_for_all_rows(operand: Interval | None) -> bool:
    """The operand is one fixed row (a point interval that is the same for every row)."""
    if operand is None:
        return True
    lo, hi = np.broadcast_arrays(*operand)
    return bool(np.array_equal(lo, hi)) and all(size == 1 for size in lo.shape[:-1])


def _uniform(operand: Interval | None) -> bool:
    return operand is None or bool(np.min(operand[0]) == np.max(operand[1]))


def _vanishes(operand: Interval | None) -> bool:
    return operand is None or bool(np.all(operand[0] == 0) and np.all(operand[1] == 0))


def mean_gain(n: int, norm: Norm) -> Upper:
    """Of the mean of n elements: 1/n, 1/sqrt(n), 1 in l1, l2, linf."""
    inverse = Upper(1) / Lower(max(1, n))
    return inverse if norm == "l1" else inverse.sqrt() if norm == "l2" else Upper(1)


def inverse_deviation_gain(core: Radial, norm: Norm, floor: float = 0.0) -> Upper:
    """Of ``1/s``, ``s = sqrt(r^2/n + eps)``, for groups with ``r = |Px| >= floor``: in l2 and l1 ``r/(n s^3)``, sqrt(n) times that in linf.

    It is largest, ``2/(sqrt(27) sqrt(n) eps)``, at ``r^2/n = eps/2`` and decreases from there: a floor beyond that point gives its own
    value.
    """
    if core.is_constant:
        return ZERO
    top = Upper(math.inf)
    if core.eps > 0:
        top = Upper(2) / (Lower(27).sqrt() * Lower(core.n).sqrt() * Lower(core.eps))
    r, n = Lower(floor), Upper(core.n)
    if floor > 0 and r * r / n >= Lower(core.eps):
        inverse = core.inverse_scale(floor)
        top = min(top, Upper(floor) * inverse * inverse * inverse / Lower(core.n))
    return top * n.sqrt() if norm == "linf" else top


def inverse_deviation_range(shape: tuple[int, ...], core: Radial, floor: float = 0.0) -> Range:
    """``1/s`` lies in (0, 1/s0], s0 the least s of groups with ``|Px| >= floor``."""
    top = core.inverse_scale(floor)
    return Range(shape, np.asarray(0.0), np.asarray(float(top)))


def mean_range(shape: tuple[int, ...], x: Range) -> Range:
    """A mean lies between the smallest and the largest element."""
    slack = 2.0**-40 * x.magnitude() if x.is_bounded else 0.0
    return Range(shape, np.asarray(-float(up(-float(np.min(x.lo)) + slack))), up(float(np.max(x.hi)) + slack))
