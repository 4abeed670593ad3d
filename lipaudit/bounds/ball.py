"""Real numbers known up to an interval with exact dyadic ends: the arithmetic that slopes are evaluated and proved in.

Ends are 128-bit (more inside :func:`precision`) and rounded outward, so every result contains every value that the
operation takes on the operands, as far as it is defined there. An infinite end means "not bounded", or the limit itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from lipaudit.bounds.scalar import Number, Upper, arb, ctx, enclose, outward

__all__ = ["Ball", "precision"]

_INF: Any = arb("inf")
_ZERO: Any = arb(0)
# exp of more than this has an exponent that Arb no longer represents; below it, monotony gives a bound.
_LARGE: Any = arb(2) ** 40


@contextmanager
def precision(bits: int) -> Generator[None, None, None]:
    """Evaluate with more bits. Process-wide: for proofs, not inside threads."""
    before = ctx.prec
    ctx.prec = bits
    try:
        yield
    finally:
        ctx.prec = before


def _times(a: Any, b: Any) -> Any:
    """Product of two exact ends; 0 times an infinite end is 0, because the value itself is finite."""
    return _ZERO if a == 0 or b == 0 else a * b


class Ball:
    """The closed interval [lo, hi]. Immutable."""

    __slots__ = ("hi", "lo")

    def __init__(self, lo: Any, hi: Any) -> None:
        self.lo: Any = -_INF if lo.is_nan() else lo.lower()
        self.hi: Any = _INF if hi.is_nan() else hi.upper()

    @classmethod
    def of(cls, x: Number) -> Ball:
        """The least ball around a number: exact for ints and doubles, outward for decimals and fractions."""
        value = enclose(x)
        return cls(value, value)

    @classmethod
    def between(cls, lo: Number | Ball, hi: Number | Ball) -> Ball:
        """The hull of two numbers."""
        first, last = (x if isinstance(x, Ball) else Ball.of(x) for x in (lo, hi))
        return first.hull(last)

    @classmethod
    def pi(cls) -> Ball:
        """Half the circumference of the unit circle."""
        return cls(arb.pi(), arb.pi())

    def __repr__(self) -> str:
        return f"Ball({self.lo.mid().str(20, radius=False)}, {self.hi.mid().str(20, radius=False)})"

    # Questions: each is true only if it is certain.

    def __bool__(self) -> bool:
        raise TypeError("a ball has no truth value; ask what is certain")

    @property
    def is_finite(self) -> bool:
        """Both ends are finite."""
        return bool(self.lo.is_finite() and self.hi.is_finite())

    @property
    def is_zero(self) -> bool:
        """Exactly 0."""
        return bool(self.lo == 0 and self.hi == 0)

    def below(self, other: Ball) -> bool:
        """Every point lies strictly below every point of ``other``."""
        return bool(self.hi < other.lo)

    def not_above(self, other: Ball) -> bool:
        """Every point is <= every point of ``other``."""
        return bool(self.hi <= other.lo) or (bool(self.lo == other.lo) and bool(self.hi == self.lo) and bool(other.hi == self.hi))

    def inside(self, other: Ball) -> bool:
        """Contained in ``other``."""
        return bool(other.lo <= self.lo and self.hi <= other.hi)

    def meets(self, other: Ball) -> bool:
        """Shares a point with ``other``."""
        return not (self.below(other) or other.below(self))

    # Ends

    def floats(self) -> tuple[float, float]:
        """Doubles outside (or at) the ends."""
        return _end(self.lo, up=False), _end(self.hi, up=True)

    def least(self) -> Ball:
        """The lower end as a point."""
        return Ball(self.lo, self.lo)

    def largest(self) -> Ball:
        """The upper end as a point."""
        return Ball(self.hi, self.hi)

    def middle(self) -> Ball:
        """A point inside, exact and near the middle (finite balls)."""
        mid = ((self.lo + self.hi) / 2).mid()
        return Ball(mid, mid)

    def magnitude(self) -> Upper:
        """Largest absolute value."""
        return Upper.above(abs(self).hi)

    def hull(self, other: Ball) -> Ball:
        """Both of them and what lies between."""
        return Ball(other.lo if other.lo < self.lo else self.lo, other.hi if other.hi > self.hi else self.hi)

    def meet(self, other: Ball) -> Ball:
        """Intersection of two balls that both contain the same number."""
        return Ball(other.lo if other.lo > self.lo else self.lo, other.hi if other.hi < self.hi else self.hi)

    # Arithmetic

    def __neg__(self) -> Ball:
        return Ball(-self.hi, -self.lo)

    def __add__(self, other: Ball) -> Ball:
        return Ball(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, other: Ball) -> Ball:
        return Ball(self.lo - other.hi, self.hi - other.lo)

    def __mul__(self, other: Ball) -> Ball:
        if self.lo >= 0:
            if other.lo >= 0:
                return Ball(_times(self.lo, other.lo), _times(self.hi, other.hi))
            if other.hi <= 0:
                return Ball(_times(self.hi, other.lo), _times(self.lo, other.hi))
            return Ball(_times(self.hi, other.lo), _times(self.hi, other.hi))
        if self.hi <= 0:
            return -((-self) * other)
        if other.lo >= 0 or other.hi <= 0:
            return other * self
        first = Ball(_times(self.lo, other.hi), _times(self.lo, other.lo))
        return first.hull(Ball(_times(self.hi, other.lo), _times(self.hi, other.hi)))

    def __truediv__(self, other: Ball) -> Ball:
        if other.hi < 0:
            return -(self / -other)
        if not other.lo > 0:
            return self * other.reciprocal()
        least, largest = (other.hi if self.lo >= 0 else other.lo), (other.lo if self.hi >= 0 else other.hi)
        return Ball(_quotient(self.lo, least), _quotient(self.hi, largest))

    def reciprocal(self) -> Ball:
        """1/x; one-sided where 0 is an end, all reals where it is inside or the only point."""
        if self.lo > 0 or self.hi < 0:
            return Ball(_inverse(self.hi), _inverse(self.lo))
        if self.lo == 0 and self.hi > 0:
            return Ball(_inverse(self.hi), _INF)
        if self.hi == 0 and self.lo < 0:
            return Ball(-_INF, _inverse(self.lo))
        return Ball(-_INF, _INF)

    def __pow__(self, exponent: int) -> Ball:
        if exponent < 0:
            return (self**-exponent).reciprocal()
        if exponent % 2 == 0:
            size = abs(self)
            return Ball(size.lo**exponent, size.hi**exponent)
        return Ball(self.lo**exponent, self.hi**exponent)

    def power(self, exponent: Ball) -> Ball:
        """``x**c`` of x >= 0."""
        return (self.log() * exponent).exp()

    def __abs__(self) -> Ball:
        if self.lo >= 0:
            return self
        if self.hi <= 0:
            return -self
        return Ball(_ZERO, -self.lo if -self.lo > self.hi else self.hi)

    def maximum(self, other: Ball) -> Ball:
        """max(x, y)."""
        return Ball(other.lo if other.lo > self.lo else self.lo, other.hi if other.hi > self.hi else self.hi)

    def minimum(self, other: Ball) -> Ball:
        """min(x, y)."""
        return -((-self).maximum(-other))

    @staticmethod
    def select(test: Ball, negative: Ball, positive: Ball) -> Ball:
        """``negative`` where the test is < 0, ``positive`` where it is > 0, the hull where it may be both or is 0."""
        if test.hi <= 0 and test.lo < 0:
            return negative
        if test.lo >= 0 and test.hi > 0:
            return positive
        return negative.hull(positive)

    # Functions

    def _increasing(self, function: Callable[[Any], Any], least: float, largest: float) -> Ball:
        """Ends through an increasing function with values in [least, largest]."""
        floor, ceiling = arb(least), arb(largest)

        def at(end: Any) -> Any:
            value = function(end)
            if value.is_nan() and not end.is_finite():
                return ceiling if end > 0 else floor
            return value

        lo, hi = at(self.lo), at(self.hi)
        if not lo.is_finite() and self.lo > _LARGE:
            lo = function(_LARGE)
        if not hi.is_finite() and self.hi < -_LARGE:
            hi = function(-_LARGE)
        lo = floor if lo.is_nan() or lo.lower() < floor else lo
        hi = ceiling if hi.is_nan() or hi.upper() > ceiling else hi
        return Ball(lo, hi)

    def exp(self) -> Ball:
        """e**x."""
        return self._increasing(lambda x: x.exp(), 0.0, math.inf)

    def log(self) -> Ball:
        """Natural logarithm on the part of the ball where it is defined."""
        hi = self.hi.log() if self.hi > 0 else -_INF
        return Ball(self.lo.log() if self.lo > 0 else -_INF, hi)

    def sqrt(self) -> Ball:
        """Square root on the part of the ball where it is defined."""
        return Ball(self.lo.sqrt() if self.lo > 0 else _ZERO, self.hi.sqrt() if self.hi > 0 else _ZERO)

    def tanh(self) -> Ball:
        """Hyperbolic tangent."""
        return self._increasing(lambda x: x.tanh(), -1.0, 1.0)

    def erf(self) -> Ball:
        """Error function."""
        return self._increasing(lambda x: x.erf(), -1.0, 1.0)

    def erfc(self) -> Ball:
        """1 - erf(x)."""
        return (-self)._increasing(lambda x: (-x).erfc(), 0.0, 2.0)

    def sigmoid(self) -> Ball:
        """1/(1 + e**-x)."""
        one = Ball.of(1)
        return Ball((one / (one + (-self.least()).exp())).lo, (one / (one + (-self.largest()).exp())).hi)

    def softplus(self) -> Ball:
        """log(1 + e**x)."""
        return Ball(_softplus(self.least()).lo, _softplus(self.largest()).hi)

    def sinh(self) -> Ball:
        """Hyperbolic sine."""
        return self._increasing(lambda x: x.sinh(), -math.inf, math.inf)

    def cosh(self) -> Ball:
        """Hyperbolic cosine."""
        return abs(self)._increasing(lambda x: x.cosh(), 1.0, math.inf)

    def asinh(self) -> Ball:
        """Inverse hyperbolic sine."""
        return self._increasing(lambda x: x.asinh(), -math.inf, math.inf)

    def acosh(self) -> Ball:
        """Inverse hyperbolic cosine on the part of the ball where it is defined."""
        return self.maximum(Ball.of(1))._increasing(lambda x: x.acosh(), 0.0, math.inf)

    def atanh(self) -> Ball:
        """Inverse hyperbolic tangent on the part of the ball where it is defined."""
        return self._clamped()._increasing(lambda x: x.atanh(), -math.inf, math.inf)

    def atan(self) -> Ball:
        """Inverse tangent."""
        return self._increasing(lambda x: x.atan(), -math.inf, math.inf)

    def asin(self) -> Ball:
        """Inverse sine on the part of the ball where it is defined."""
        return self._clamped()._increasing(lambda x: x.asin(), -math.inf, math.inf)

    def acos(self) -> Ball:
        """Inverse cosine on the part of the ball where it is defined."""
        return (-self._clamped())._increasing(lambda x: (-x).acos(), 0.0, math.inf)

    def _clamped(self) -> Ball:
        return self.maximum(Ball.of(-1)).minimum(Ball.of(1))

    def _both(self) -> Any:
        """An Arb ball around the whole interval."""
        return self.lo.union(self.hi)

    def sin(self) -> Ball:
        """Sine."""
        return _wave(self._both().sin()) if self.is_finite else Ball.between(-1, 1)

    def cos(self) -> Ball:
        """Cosine."""
        return _wave(self._both().cos()) if self.is_finite else Ball.between(-1, 1)

    def tan(self) -> Ball:
        """Tangent; all reals if a pole may lie inside."""
        branch = (self / Ball.pi() + Ball.of(0.5)).floor()
        if self.is_finite and branch.lo == branch.hi:
            return Ball(self.lo.tan(), self.hi.tan())
        return Ball(-_INF, _INF)

    def sign(self) -> Ball:
        """-1, 0 or 1; the hull where undecided."""
        return Ball(self.lo.sgn(), self.hi.sgn())

    def floor(self) -> Ball:
        """Largest integer not above x."""
        return Ball(self.lo.floor(), self.hi.floor())

    def ceil(self) -> Ball:
        """Least integer not below x."""
        return Ball(self.lo.ceil(), self.hi.ceil())

    def round(self) -> Ball:
        """A nearest integer; at a tie the hull of both."""
        half = arb(0.5)
        return Ball((self.lo - half).ceil(), (self.hi + half).floor())


def _quotient(a: Any, b: Any) -> Any:
    """Of exact ends, b > 0; 0 for an infinite divisor, because the quotient tends there."""
    return a / b if b.is_finite() else _ZERO


def _inverse(end: Any) -> Any:
    return 1 / end if end.is_finite() else _ZERO


def _wave(value: Any) -> Ball:
    return Ball(value, value).meet(Ball.between(-1, 1))


def _softplus(x: Ball) -> Ball:
    one = Ball.of(1)
    return x + (one + (-x).exp()).log() if x.lo > 0 else (one + x.exp()).log()


def _end(value: Any, *, up: bool) -> float:
    if value.is_finite():
        size = outward(abs(value), up == bool(value >= 0))
        return size if value >= 0 else -size
    return math.inf if value > 0 else -math.inf
