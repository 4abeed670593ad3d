"""Pow: a constant exponent, a constant base, or two tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.ball import Ball
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.broadcast import add_flows, contributions, copy_factor, operand
from lipaudit.operators.elements import Elements
from lipaudit.operators.flow import Flow
from lipaudit.operators.interval import Interval, hull
from lipaudit.operators.range import Range, reals

__all__ = ["Pow", "slope_of_power"]

Floats = NDArray[np.float64]

_MOST_EXPONENTS = 64


def slope_of_power(c: float, lo: float, hi: float) -> Ball | Unbounded | Unknown:
    """Hull of ``c x^(c-1)`` on [lo, hi].

    Integer c >= 2: values at both ends, and 0 if it is inside. Negative c: 0 must be outside. Other c: x >= 0 (else NaN), for
    c < 1 x > 0. The derivative is monotone on each side of 0, so ends and 0 are enough.
    """
    if c in (0.0, 1.0):
        return Ball.of(int(c))
    shown = f"[{lo:.6g}, {hi:.6g}]"
    whole = float(c).is_integer() and abs(c) < 2.0**20
    if not whole and lo < 0:
        return Unknown(f"x^{c:g} is not defined on all of {shown}; a fractional exponent needs an input range from 0 on")
    if c < 1 and lo <= 0 <= hi:
        return Unbounded(f"the slope of x^{c:g} is not bounded on {shown}; it needs an input range without 0")
    found: Ball | None = None
    for end in (lo, hi, *((0.0,) if lo < 0 < hi else ())):
        slope = _slope_at(c, end, whole)
        found = slope if found is None else found.hull(slope)
    assert found is not None
    if not found.is_finite:
        return Unbounded(f"the slope of x^{c:g} is not bounded on {shown}; it needs a bounded input range")
    return found


def _slope_at(c: float, x: float, whole: bool) -> Ball:
    if math.isinf(x):
        if c < 1:
            return Ball.of(0)
        sign = -1 if x < 0 and int(c) % 2 == 0 else 1
        return Ball.of("inf") if sign > 0 else -Ball.of("inf")
    factor = Ball.of(c)
    if whole:
        return factor * Ball.of(x) ** (int(c) - 1)
    return factor * Ball.of(x).power(factor - Ball.of(1)) if x > 0 else Ball.of(0)


def _image(x: Interval, c: float) -> Interval:
    """``x^c`` on element intervals."""
    elements = Elements(*x)
    if c == 0.0:
        return np.ones_like(x[0]), np.ones_like(x[1])
    if float(c).is_integer() and abs(c) < 2.0**20:
        found = elements ** int(c)
    elif bool(np.any(x[0] < 0)):
        return np.full_like(x[0], -np.inf), np.full_like(x[1], np.inf)
    else:
        found = elements.power(c)
    return found.lo, found.hi


class Pow(Rule):
    """``z = x^y`` with broadcasting.

    Constant exponent: slope as :func:`slope_of_power`, the largest over the exponents that occur, each on the elements that
    carry it. Constant base C > 0: ``C^y ln C``. Two tensors, x in [a, b], a > 0: ``|y| x^(y-1)`` and ``x^y |ln x|``, largest at the
    corners (both are monotone in y, and in x between the zeros of the exponents, which are taken along).
    """

    def _operands(self, site: Site, xs: Sequence[Range | None]) -> tuple[Interval, Interval] | None:
        x, y = xs[0], xs[1]
        return None if x is None or y is None else (operand(site, 0, x), operand(site, 1, y))

    def _exponents(self, site: Site, x: Interval, y: Interval) -> Iterator[tuple[float, float, float]] | None:
        """(c, lo, hi) for every exponent that occurs, with the hull of x under it; None if it is not a constant."""
        if site.moving[1] or not np.array_equal(y[0], y[1]):
            return None
        values = np.unique(y[0])
        if values.size > _MOST_EXPONENTS or not np.all(np.isfinite(values)):
            return None
        if values.size == 1:
            return iter([(float(values[0]), float(np.min(x[0])), float(np.max(x[1])))])
        exponents = np.broadcast_to(y[0], site.out_shape())
        lo, hi = np.broadcast_to(x[0], site.out_shape()), np.broadcast_to(x[1], site.out_shape())
        return ((float(c), float(np.min(lo[exponents == c])), float(np.max(hi[exponents == c]))) for c in values)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """By exponent, or by corners; ``|x^c| <= X^(c-1) |x|`` carries row norms for c >= 1."""
        shape = site.out_shape()
        both = self._operands(site, xs)
        if both is None or math.prod(shape) == 0:
            return (reals(shape),)
        x, y = both
        constant = self._exponents(site, x, y)
        if constant is None:
            return (self._range_of_corners(shape, x, y),)
        found = list(constant)
        if len(found) == 1:
            lo, hi = _image(x, found[0][0])
        else:
            lo, hi = np.full(shape, -np.inf), np.full(shape, np.inf)
            exponents = np.broadcast_to(y[0], shape)
            for c, _, _ in found:
                low, high = _image(x, c)
                lo, hi = np.where(exponents == c, low, lo), np.where(exponents == c, high, hi)
        return (Range(shape, lo, hi, row=self._row(xs[0], found), integral=self._integral(xs[0], found)),)

    @staticmethod
    def _row(x: Range | None, exponents: list[tuple[float, float, float]]) -> float:
        if x is None or math.isinf(x.row) or len(exponents) > 1 or exponents[0][0] < 1:
            return math.inf
        size, c = x.magnitude(), exponents[0][0]
        if not math.isfinite(size):
            return x.row if c == 1 else math.inf
        return float((Ball.of(size).power(Ball.of(c - 1)).magnitude() if c > 1 else ONE) * Upper(x.row)) if size > 0 else 0.0

    @staticmethod
    def _integral(x: Range | None, exponents: list[tuple[float, float, float]]) -> bool:
        return x is not None and x.integral and all(c >= 0 and c.is_integer() for c, _, _ in exponents)

    @staticmethod
    def _range_of_corners(shape: tuple[int, ...], x: Interval, y: Interval) -> Range:
        if not bool(np.all(x[0] > 0)):
            return reals(shape)
        logs = Elements(*x).log()
        product = logs * Elements(*y)
        found = product.exp()
        lo, hi = hull((found.lo, found.hi), (found.lo, found.hi))
        return Range(shape, lo, hi)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Largest slope times copies."""
        both = self._operands(site, xs)
        if math.prod(site.out_shape()) == 0:
            return Finite(ZERO, method="empty tensor")
        if both is None:
            return Unknown("an operand of Pow has no known range")
        if site.node.inputs[0] == site.node.inputs[1]:
            return Unknown("x^x of one variable has no rule")
        x, y = both
        constant = self._exponents(site, x, y) if i == 0 else None
        if constant is None:
            return self._two_tensors(site, i, norm, x, y)
        largest = ZERO
        for c, lo, hi in constant:
            slope = slope_of_power(c, lo, hi)
            if not isinstance(slope, Ball):
                return slope
            largest = max(largest, slope.magnitude())
        return Finite(largest * copy_factor(site, 0, norm), method="slope c x^(c-1)")

    @staticmethod
    def _two_tensors(site: Site, i: int, norm: Norm, x: Interval, y: Interval) -> Gain:
        lo, hi = float(np.min(x[0])), float(np.max(x[1]))
        if not lo > 0:
            return Unknown(f"x^y with a base in [{lo:.6g}, {hi:.6g}] is not defined for all exponents; it needs a base above 0")
        base, exponent = Ball.between(lo, hi), Ball.between(float(np.min(y[0])), float(np.max(y[1])))
        if not (base.is_finite and exponent.is_finite):
            return Unbounded("x^y needs bounded ranges of base and exponent")
        slope = exponent * (base.log() * (exponent - Ball.of(1))).exp() if i == 0 else (base.log() * exponent).exp() * base.log()
        size = slope.magnitude()
        if not size.is_finite:
            return Unbounded("x^y is too large on these ranges")
        return Finite(size * copy_factor(site, i, norm), method="corners")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Parts survive, contributions add."""
        return (add_flows(contributions(site, flows, gains, norm), norm),)
