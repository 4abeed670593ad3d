"""Arrays of intervals as numbers of the formula language: vectorised enclosures in float64, rounded outward.

The elementary functions of numpy and scipy are accurate to a few units in the last place; :data:`ULPS` of them are added
(tests/operators/test_elements.py measures the true error).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.ball import Ball
from lipaudit.operators import interval

__all__ = ["ERFC_ULPS", "ULPS", "Elements"]

Floats = NDArray[np.float64]

ULPS = 8
"""Units in the last place that a library function may be off."""

ERFC_ULPS = 4096
"""The same for erfc, whose error grows with x**2 (the square is rounded before the exponential); 430 seen at x = 26."""

_LEAST = 2.0**-1074


def _apply(function: Callable[[Floats], Any], x: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return np.asarray(function(x), dtype=np.float64)


def _lower(value: Floats, least: float, ulps: int = ULPS) -> Floats:
    with np.errstate(all="ignore"):
        moved = np.nextafter(value - (np.abs(value) * (ulps * 2.0**-52) + ulps * _LEAST), -np.inf)
    # An overflow: the value lies above the largest double.
    moved = np.where(value == np.inf, np.finfo(np.float64).max, moved)
    return np.maximum(np.where(np.isnan(moved), -np.inf, moved), least)


def _upper(value: Floats, largest: float, ulps: int = ULPS) -> Floats:
    return np.minimum(-_lower(-value, -np.inf, ulps), largest)


@dataclass(frozen=True, slots=True, eq=False)
class Elements:
    """Intervals [lo, hi], one per element; arrays that broadcast against each other."""

    lo: Floats
    hi: Floats

    @classmethod
    def points(cls, x: Floats) -> Elements:
        """The numbers themselves."""
        return cls(x, x)

    @classmethod
    def constant(cls, ball: Ball) -> Elements:
        """One number for all elements, enclosed by doubles."""
        lo, hi = ball.floats()
        return cls(np.asarray(lo), np.asarray(hi))

    def _pair(self) -> interval.Interval:
        return self.lo, self.hi

    def __neg__(self) -> Elements:
        return Elements(-self.hi, -self.lo)

    def __add__(self, other: Elements) -> Elements:
        return Elements(*interval.add(self._pair(), other._pair()))

    def __sub__(self, other: Elements) -> Elements:
        return self + -other

    def __mul__(self, other: Elements) -> Elements:
        return Elements(*interval.multiply(self._pair(), other._pair()))

    def __truediv__(self, other: Elements) -> Elements:
        return Elements(*interval.divide(self._pair(), other._pair()))

    def __pow__(self, exponent: int) -> Elements:
        if exponent < 0:
            return Elements(*interval.reciprocal((self**-exponent)._pair()))
        if exponent == 0:
            return Elements(np.ones_like(self.lo), np.ones_like(self.hi))
        if exponent % 2:
            return self if exponent == 1 else Elements(_power(self.lo, exponent).lo, _power(self.hi, exponent).hi)
        size = abs(self)
        return Elements(np.maximum(_power(size.lo, exponent).lo, 0.0), _power(size.hi, exponent).hi)

    def power(self, exponent: float) -> Elements:
        """``x**c`` of x >= 0."""
        function: Callable[[Floats], Any] = lambda x: np.power(np.maximum(x, 0.0), exponent)  # noqa: E731
        return self._increasing(function, 0.0) if exponent >= 0 else self._decreasing(function, 0.0)

    def __abs__(self) -> Elements:
        least = np.where((self.lo <= 0) & (self.hi >= 0), 0.0, np.minimum(np.abs(self.lo), np.abs(self.hi)))
        return Elements(least, np.maximum(np.abs(self.lo), np.abs(self.hi)))

    def maximum(self, other: Elements) -> Elements:
        """max(x, y)."""
        return Elements(*interval.maximum(self._pair(), other._pair()))

    def minimum(self, other: Elements) -> Elements:
        """min(x, y)."""
        return Elements(*interval.minimum(self._pair(), other._pair()))

    @staticmethod
    def select(test: Elements, negative: Elements, positive: Elements) -> Elements:
        """``negative`` where the test is < 0, ``positive`` where it is > 0, the hull elsewhere."""
        below, above = test.hi < 0, test.lo > 0
        lo, hi = interval.hull(negative._pair(), positive._pair())
        return Elements(
            np.where(below, negative.lo, np.where(above, positive.lo, lo)),
            np.where(below, negative.hi, np.where(above, positive.hi, hi)),
        )

    def _increasing(self, function: Callable[[Floats], Any], least: float = -np.inf, largest: float = np.inf) -> Elements:
        return Elements(_lower(_apply(function, self.lo), least), _upper(_apply(function, self.hi), largest))

    def _decreasing(self, function: Callable[[Floats], Any], least: float = -np.inf, largest: float = np.inf) -> Elements:
        return Elements(_lower(_apply(function, self.hi), least), _upper(_apply(function, self.lo), largest))

    def exp(self) -> Elements:
        """e**x."""
        return self._increasing(np.exp, 0.0)

    def log(self) -> Elements:
        """Natural logarithm of the positive part."""
        return self._increasing(lambda x: np.log(np.maximum(x, 0.0)))

    def sqrt(self) -> Elements:
        """Square root of the non-negative part."""
        return self._increasing(lambda x: np.sqrt(np.maximum(x, 0.0)), 0.0)

    def tanh(self) -> Elements:
        """Hyperbolic tangent."""
        return self._increasing(np.tanh, -1.0, 1.0)

    def erf(self) -> Elements:
        """Error function."""
        from scipy.special import erf

        return self._increasing(erf, -1.0, 1.0)

    def erfc(self) -> Elements:
        """1 - erf(x)."""
        from scipy.special import erfc

        return Elements(_lower(_apply(erfc, self.hi), 0.0, ERFC_ULPS), _upper(_apply(erfc, self.lo), 2.0, ERFC_ULPS))

    def sigmoid(self) -> Elements:
        """1/(1 + e**-x), by the form that does not cancel on each side of 0."""
        return self._increasing(_sigmoid, 0.0, 1.0)

    def softplus(self) -> Elements:
        """log(1 + e**x)."""
        return self._increasing(lambda x: np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))), 0.0)

    def sinh(self) -> Elements:
        """Hyperbolic sine."""
        return self._increasing(np.sinh)

    def cosh(self) -> Elements:
        """Hyperbolic cosine."""
        return abs(self)._increasing(np.cosh, 1.0)

    def asinh(self) -> Elements:
        """Inverse hyperbolic sine."""
        return self._increasing(np.arcsinh)

    def acosh(self) -> Elements:
        """Inverse hyperbolic cosine of the part above 1."""
        return self._increasing(lambda x: np.arccosh(np.maximum(x, 1.0)), 0.0)

    def atanh(self) -> Elements:
        """Inverse hyperbolic tangent of the part in [-1, 1]."""
        return self._increasing(lambda x: np.arctanh(np.clip(x, -1.0, 1.0)))

    def atan(self) -> Elements:
        """Inverse tangent."""
        return self._increasing(np.arctan)

    def asin(self) -> Elements:
        """Inverse sine of the part in [-1, 1]."""
        return self._increasing(lambda x: np.arcsin(np.clip(x, -1.0, 1.0)))

    def acos(self) -> Elements:
        """Inverse cosine of the part in [-1, 1]."""
        return self._decreasing(lambda x: np.arccos(np.clip(x, -1.0, 1.0)), 0.0)

    def _wave(self, function: Callable[[Floats], Any]) -> Elements:
        """A 1-Lipschitz function with values in [-1, 1]: its value at the lower end, and the width."""
        value = _apply(function, self.lo)
        with np.errstate(all="ignore"):
            width = np.where(self.hi > self.lo, np.nextafter(self.hi - self.lo, np.inf), 0.0)
        lo, hi = _lower(value, -1.0), _upper(value, 1.0)
        lo = np.where(width > 0, np.nextafter(lo - width, -np.inf), lo)
        hi = np.where(width > 0, np.nextafter(hi + width, np.inf), hi)
        return Elements(np.fmax(lo, -1.0), np.fmin(hi, 1.0))

    def sin(self) -> Elements:
        """Sine."""
        return self._wave(np.sin)

    def cos(self) -> Elements:
        """Cosine."""
        return self._wave(np.cos)

    def tan(self) -> Elements:
        """Tangent; all reals where a pole may lie inside (between points less than 1 apart it shows as a decrease)."""
        found = self._increasing(np.tan)
        with np.errstate(all="ignore"):
            crossed = ~((self.hi - self.lo) < 1.0) | (_apply(np.tan, self.lo) > _apply(np.tan, self.hi))
        return Elements(np.where(crossed, -np.inf, found.lo), np.where(crossed, np.inf, found.hi))

    def sign(self) -> Elements:
        """-1, 0 or 1: exact."""
        return Elements(np.sign(self.lo), np.sign(self.hi))

    def floor(self) -> Elements:
        """Largest integer not above x: exact."""
        return Elements(np.floor(self.lo), np.floor(self.hi))

    def ceil(self) -> Elements:
        """Least integer not below x: exact."""
        return Elements(np.ceil(self.lo), np.ceil(self.hi))

    def round(self) -> Elements:
        """Nearest integer, ties to even: exact."""
        return Elements(np.rint(self.lo), np.rint(self.hi))


def _power(x: Floats, exponent: int) -> Elements:
    """A power by the library function; an exact 0 and 1 stay exact."""
    value = _apply(lambda y: y**exponent, x)
    exact = (x == 0) | (x == 1)
    return Elements(np.where(exact, value, _lower(value, -np.inf)), np.where(exact, value, _upper(value, np.inf)))


def _sigmoid(x: Floats) -> Floats:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)
