"""Truncated Taylor series with balls as coefficients: a function and its derivatives at once.

Coefficient k is ``f^(k)(x) / k!``. Over a ball of x each coefficient contains its values at all points of the ball; where
a piecewise function changes its piece inside, the hull of the coefficients of both pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lipaudit.bounds.ball import Ball

__all__ = ["Jet"]

_ZERO = Ball.of(0)
_ONE = Ball.of(1)


@dataclass(frozen=True, slots=True)
class Jet:
    """Coefficients from order 0 on; operands of one operation have the same order."""

    terms: tuple[Ball, ...]

    @classmethod
    def constant(cls, value: Ball, order: int) -> Jet:
        """A number: all derivatives are 0."""
        return cls((value, *(_ZERO for _ in range(order))))

    @classmethod
    def variable(cls, value: Ball, order: int) -> Jet:
        """The identity at ``value``."""
        return cls((value, _ONE, *(_ZERO for _ in range(order - 1)))) if order else cls((value,))

    @property
    def order(self) -> int:
        """Highest derivative that is kept."""
        return len(self.terms) - 1

    def _like(self, number: int) -> Jet:
        return Jet.constant(Ball.of(number), self.order)

    def _shorter(self) -> Jet:
        return Jet(self.terms[:-1])

    def __neg__(self) -> Jet:
        return Jet(tuple(-term for term in self.terms))

    def __add__(self, other: Jet) -> Jet:
        return Jet(tuple(a + b for a, b in zip(self.terms, other.terms, strict=True)))

    def __sub__(self, other: Jet) -> Jet:
        return Jet(tuple(a - b for a, b in zip(self.terms, other.terms, strict=True)))

    def __mul__(self, other: Jet) -> Jet:
        return Jet(tuple(_convolved(self.terms, other.terms, n) for n in range(len(self.terms))))

    def __truediv__(self, other: Jet) -> Jet:
        quotient: list[Ball] = []
        for n, term in enumerate(self.terms):
            for k in range(1, n + 1):
                term = term - other.terms[k] * quotient[n - k]
            quotient.append(term / other.terms[0])
        return Jet(tuple(quotient))

    def __pow__(self, exponent: int) -> Jet:
        if exponent < 0:
            return (self**-exponent).reciprocal()
        if exponent == 0:
            return self._like(1)
        return self._composed(self.terms[0] ** exponent, lambda x: x._like(exponent) * x ** (exponent - 1))

    def _composed(self, value: Ball, derivative: Callable[[Jet], Jet]) -> Jet:
        """``g(x)`` from g at the point and its derivative: ``n y_n = sum_k k x_k (g'(x))_(n-k)``."""
        if not self.order:
            return Jet((value,))
        slope = derivative(self._shorter()).terms
        moved = tuple(Ball.of(k) * self.terms[k] for k in range(1, len(self.terms)))
        rest = (_convolved(slope, moved, n - 1) / Ball.of(n) for n in range(1, len(self.terms)))
        return Jet((value, *rest))

    def reciprocal(self) -> Jet:
        """1/x."""
        return self._composed(self.terms[0].reciprocal(), lambda x: -((x**2).reciprocal()))

    def power(self, exponent: Ball) -> Jet:
        """``x**c`` of x >= 0."""
        lower = exponent - _ONE
        return self._composed(self.terms[0].power(exponent), lambda x: Jet.constant(exponent, x.order) * x.power(lower))

    def __abs__(self) -> Jet:
        return Jet.select(self, -self, self)

    def maximum(self, other: Jet) -> Jet:
        """max(x, y)."""
        return Jet((self.terms[0].maximum(other.terms[0]), *Jet.select(self - other, other, self).terms[1:]))

    def minimum(self, other: Jet) -> Jet:
        """min(x, y)."""
        return Jet((self.terms[0].minimum(other.terms[0]), *Jet.select(self - other, self, other).terms[1:]))

    @staticmethod
    def select(test: Jet, negative: Jet, positive: Jet) -> Jet:
        """As :meth:`Ball.select`: inside one piece its coefficients, across the border the hull."""
        pairs = zip(negative.terms, positive.terms, strict=True)
        return Jet(tuple(Ball.select(test.terms[0], a, b) for a, b in pairs))

    def exp(self) -> Jet:
        """e**x."""
        return self._composed(self.terms[0].exp(), lambda x: x.exp())

    def log(self) -> Jet:
        """Natural logarithm."""
        return self._composed(self.terms[0].log(), lambda x: x.reciprocal())

    def sqrt(self) -> Jet:
        """Square root."""
        return self._composed(self.terms[0].sqrt(), lambda x: (x._like(2) * x.sqrt()).reciprocal())

    def tanh(self) -> Jet:
        """Hyperbolic tangent."""
        return self._composed(self.terms[0].tanh(), lambda x: x._like(1) - x.tanh() ** 2)

    def erf(self) -> Jet:
        """Error function."""
        factor = Ball.of(2) / Ball.pi().sqrt()
        return self._composed(self.terms[0].erf(), lambda x: Jet.constant(factor, x.order) * (-(x**2)).exp())

    def erfc(self) -> Jet:
        """1 - erf(x)."""
        factor = -(Ball.of(2) / Ball.pi().sqrt())
        return self._composed(self.terms[0].erfc(), lambda x: Jet.constant(factor, x.order) * (-(x**2)).exp())

    def sigmoid(self) -> Jet:
        """1/(1 + e**-x)."""
        return self._composed(self.terms[0].sigmoid(), lambda x: x.sigmoid() * (-x).sigmoid())

    def softplus(self) -> Jet:
        """log(1 + e**x)."""
        return self._composed(self.terms[0].softplus(), lambda x: x.sigmoid())

    def sinh(self) -> Jet:
        """Hyperbolic sine."""
        return self._composed(self.terms[0].sinh(), lambda x: x.cosh())

    def cosh(self) -> Jet:
        """Hyperbolic cosine."""
        return self._composed(self.terms[0].cosh(), lambda x: x.sinh())

    def asinh(self) -> Jet:
        """Inverse hyperbolic sine."""
        return self._composed(self.terms[0].asinh(), lambda x: (x**2 + x._like(1)).sqrt().reciprocal())

    def acosh(self) -> Jet:
        """Inverse hyperbolic cosine."""
        return self._composed(self.terms[0].acosh(), lambda x: (x**2 - x._like(1)).sqrt().reciprocal())

    def atanh(self) -> Jet:
        """Inverse hyperbolic tangent."""
        return self._composed(self.terms[0].atanh(), lambda x: (x._like(1) - x**2).reciprocal())

    def atan(self) -> Jet:
        """Inverse tangent."""
        return self._composed(self.terms[0].atan(), lambda x: (x**2 + x._like(1)).reciprocal())

    def asin(self) -> Jet:
        """Inverse sine."""
        return self._composed(self.terms[0].asin(), lambda x: (x._like(1) - x**2).sqrt().reciprocal())

    def acos(self) -> Jet:
        """Inverse cosine."""
        return self._composed(self.terms[0].acos(), lambda x: -((x._like(1) - x**2).sqrt().reciprocal()))

    def sin(self) -> Jet:
        """Sine."""
        return self._composed(self.terms[0].sin(), lambda x: x.cos())

    def cos(self) -> Jet:
        """Cosine."""
        return self._composed(self.terms[0].cos(), lambda x: -x.sin())

    def tan(self) -> Jet:
        """Tangent."""
        return self._composed(self.terms[0].tan(), lambda x: x._like(1) + x.tan() ** 2)

    def sign(self) -> Jet:
        """-1, 0 or 1: flat between its jumps."""
        return Jet.constant(self.terms[0].sign(), self.order)

    def floor(self) -> Jet:
        """Largest integer not above x: flat between its jumps."""
        return Jet.constant(self.terms[0].floor(), self.order)

    def ceil(self) -> Jet:
        """Least integer not below x: flat between its jumps."""
        return Jet.constant(self.terms[0].ceil(), self.order)

    def round(self) -> Jet:
        """A nearest integer: flat between its jumps."""
        return Jet.constant(self.terms[0].round(), self.order)


def _convolved(a: Sequence[Ball], b: Sequence[Ball], n: int) -> Ball:
    """``sum_k a_k b_(n-k)``."""
    total = a[0] * b[n]
    for k in range(1, n + 1):
        total = total + a[k] * b[n - k]
    return total
