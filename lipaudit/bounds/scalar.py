"""Certified scalars: upper and lower bounds with directed rounding and an unlimited exponent.

The only file that imports flint (``ball.py`` takes ``arb`` and ``ctx`` from here). :class:`Upper` and :class:`Lower` are
different types: the sum or product of two uppers is an upper (all quantities here are >= 0), an upper cannot be mixed with
a lower, ``bool()`` raises, and text is rounded outward. Values are stored as *exact* dyadic numbers (the outer end of an Arb
ball), so comparisons are decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import total_ordering
from numbers import Integral
from typing import Literal, Self

from flint import arb, ctx, fmpq, fmpz  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["INFINITE", "ONE", "ZERO", "Lower", "Norm", "Upper", "combine", "dual", "matrix_norm", "repeat_factor"]

Norm = Literal["l1", "l2", "linf"]
"""The vector norm on both sides of a map; values are flattened."""

# Process-wide on purpose and set once (flint has no per-thread precision); 128 bits leave 75 guard bits over doubles.
ctx.prec = 128

# Up to this binary or decimal exponent decimals are computed with integers, exactly.
_EXACT_EXPONENT = 5000

Number = float | int | Fraction | str


def enclose(x: Number) -> arb:
    """An Arb ball that contains ``x``; doubles, ints are exact, fractions and decimal strings are enclosed."""
    if isinstance(x, str):
        if "/" in x:
            top, bottom = x.split("/")
            return enclose(top.strip()) / enclose(bottom.strip())
        return arb(x)
    if isinstance(x, Fraction):
        return arb(fmpq(fmpz(x.numerator), fmpz(x.denominator)))
    if isinstance(x, Integral):  # numpy integers too: float() would round those beyond 2**53 to nearest
        return arb(fmpz(int(x)))
    return arb(float(x))


def _floor_int(x: arb) -> int:
    """The integer floor of the midpoint of ``x`` (only a starting guess for decimal exponents)."""
    mantissa, exponent = (int(part) for part in x.floor().mid().man_exp())
    return mantissa << exponent if exponent >= 0 else mantissa >> -exponent


def _scaled_integer(value: arb, power: int, up: bool) -> int:
    """``value * 10**power`` rounded to an integer in one direction; exact for all but astronomical exponents."""
    mantissa, exponent = (int(part) for part in value.man_exp())
    if abs(exponent) <= _EXACT_EXPONENT and abs(power) <= _EXACT_EXPONENT:
        exact = Fraction(mantissa) * Fraction(2) ** exponent * Fraction(10) ** power
        return math.ceil(exact) if up else math.floor(exact)
    scaled = value * arb(10) ** power
    rounded = scaled.upper().ceil().upper() if up else scaled.lower().floor().lower()
    mantissa, exponent = (int(part) for part in rounded.man_exp())
    return mantissa << exponent if exponent >= 0 else (-(-mantissa >> -exponent) if up else mantissa >> -exponent)


def _decimal(value: arb, digits: int, up: bool) -> str:
    """``value`` (exact, > 0) as ``d.ddde+xx``, rounded up or down to ``digits`` significant digits."""
    k = _floor_int(value.log() / arb(10).log())
    q = 0
    for _ in range(3):
        q = _scaled_integer(value, digits - 1 - k, up)
        if q > 10**digits or (q == 10**digits and not up):
            k += 1
        elif q < 10 ** (digits - 1):
            k -= 1
        else:
            break
    if q == 10**digits:
        q, k = q // 10, k + 1
    text = str(q)
    return f"{text[0]}.{text[1:]}e{k:+03d}" if digits > 1 else f"{text}e{k:+03d}"


class _Bound:
    """Shared behaviour of the two directions: an exact non-negative dyadic, or +inf."""

    __slots__ = ("_value",)
    _up: bool = True

    def __init__(self, x: Number) -> None:
        self._set(enclose(x))

    def _set(self, ball: arb) -> None:
        if ball.is_nan():
            raise ValueError("a bound cannot be NaN")
        value = ball.upper() if self._up else ball.lower()
        if self._up and value < 0:
            # Clipping to 0 would turn a forgotten abs() into a certified zero.
            raise ValueError(f"an upper bound of a non-negative quantity cannot be {value}")
        if not self._up and value > 0 and not value.is_finite():
            raise ValueError("a lower bound must be finite")
        self._value = arb(0) if value < 0 else value

    @classmethod
    def _of(cls, ball: arb) -> Self:
        bound = cls.__new__(cls)
        bound._set(ball)
        return bound

    @classmethod
    def from_dyadic(cls, mantissa: int, exponent: int) -> Self:
        """The exact value ``mantissa * 2**exponent`` (rounded outward if the mantissa has more than 128 bits)."""
        return cls._of(arb(fmpz(mantissa)) * arb(2) ** exponent)

    def __bool__(self) -> bool:
        raise TypeError("a bound has no truth value; compare it")

    def __hash__(self) -> int:
        return hash((type(self), self.dyadic()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return bool(self._value == other._value) or (not self.is_finite and not other.is_finite)

    def __lt__(self, other: Self) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self._value < other._value)

    @property
    def is_finite(self) -> bool:
        """False only for +inf."""
        return bool(self._value.is_finite())

    @property
    def is_zero(self) -> bool:
        """True for an exact 0."""
        return bool(self._value == 0)

    def dyadic(self) -> tuple[int, int] | None:
        """``(m, e)`` with value ``m * 2**e`` exactly; None for +inf."""
        if not self.is_finite:
            return None
        mantissa, exponent = self._value.man_exp()
        return int(mantissa), int(exponent)

    def decimal(self, digits: int = 5) -> str:
        """Decimal text on the safe side (``digits`` significant digits); ``"0"`` and ``"inf"`` for the extremes."""
        if not self.is_finite:
            return "inf"
        return "0" if self.is_zero else _decimal(self._value, digits, self._up)

    def log10(self) -> float:
        """log10, rounded outward to a double; -inf for 0."""
        if not self.is_finite:
            return math.inf
        if self.is_zero:
            return -math.inf
        return outward(self._value.log() / arb(10).log(), self._up)

    def __float__(self) -> float:
        """The nearest double on the safe side (inf if it does not fit)."""
        if not self.is_finite:
            return math.inf
        return outward(self._value, self._up)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.decimal(8)})"


def outward(ball: arb, up: bool) -> float:
    """A double >= (``up``) or <= every point of ``ball``."""
    end = ball.upper() if up else ball.lower()
    value = float(end)
    while math.isfinite(value) and (arb(value) < end if up else arb(value) > end):
        value = math.nextafter(value, math.inf if up else -math.inf)
    if math.isinf(value) and not up:
        return math.nextafter(math.inf, 0.0)
    return value


@total_ordering
class Upper(_Bound):
    """A number that is certainly not below the quantity it bounds. Domain [0, inf]."""

    __slots__ = ()
    _up = True

    @classmethod
    def above(cls, end: arb) -> Upper:
        """The bound with the upper end of an Arb ball as its value."""
        return cls._of(end)

    def __add__(self, other: Upper) -> Upper:
        _same(other, Upper)
        return Upper._of(self._value + other._value) if self.is_finite and other.is_finite else INFINITE

    def __mul__(self, other: Upper) -> Upper:
        """Product; 0 times anything is 0: a zero gain means that the value does not move at all."""
        _same(other, Upper)
        if self.is_zero or other.is_zero:
            return ZERO
        return Upper._of(self._value * other._value) if self.is_finite and other.is_finite else INFINITE

    def __truediv__(self, other: Lower) -> Upper:
        """Quotient of an upper by a *lower* bound of the divisor."""
        _same(other, Lower)
        if self.is_zero:
            return ZERO
        if other.is_zero or not self.is_finite:
            return INFINITE
        return Upper._of(self._value / other._value)

    def __pow__(self, exponent: int) -> Upper:
        """Power with an exponent >= 0 (a reciprocal needs a lower bound of the base)."""
        if exponent < 0:
            raise ValueError("a negative power of an upper bound is not an upper bound")
        return Upper._of(self._value**exponent) if self.is_finite else (ONE if exponent == 0 else INFINITE)

    def sqrt(self) -> Upper:
        """Square root, rounded up."""
        return Upper._of(self._value.sqrt()) if self.is_finite else INFINITE

    def as_lower(self) -> Lower:
        """The stored number itself as a lower bound *of that number*: for algorithms in which it is a free parameter."""
        return Lower._of(self._value)

    def exp(self) -> Upper:
        """e to this power, rounded up."""
        return Upper._of(self._value.exp()) if self.is_finite else INFINITE


@total_ordering
class Lower(_Bound):
    """A number that is certainly not above the quantity it bounds. Domain [0, inf)."""

    __slots__ = ()
    _up = False

    def __add__(self, other: Lower) -> Lower:
        _same(other, Lower)
        return Lower._of(self._value + other._value)

    def __mul__(self, other: Lower) -> Lower:
        _same(other, Lower)
        return Lower._of(self._value * other._value)

    def __truediv__(self, other: Upper) -> Lower:
        """Quotient of a lower by an *upper* bound of the divisor."""
        _same(other, Upper)
        return Lower._of(self._value / other._value) if other.is_finite else Lower(0)

    def sqrt(self) -> Lower:
        """Square root, rounded down."""
        return Lower._of(self._value.sqrt())

    def minus(self, upper: Upper) -> Lower:
        """A lower bound of the difference, 0 where that is negative."""
        return Lower._of(self._value - upper._value) if upper.is_finite else Lower(0)

    def exceeds(self, upper: Upper) -> bool:
        """True if this lower bound lies above ``upper``: one of the two is wrong."""
        return upper.is_finite and bool(self._value > upper._value)


def _same(other: object, kind: type[_Bound]) -> None:
    if type(other) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(other).__name__}")


ZERO = Upper(0)
ONE = Upper(1)
INFINITE = Upper(math.inf)


def dual(norm: Norm) -> Norm:
    """The dual norm: l1 and linf swap, l2 stays."""
    swapped: dict[Norm, Norm] = {"l1": "linf", "l2": "l2", "linf": "l1"}
    return swapped[norm]


def combine(parts: Iterable[Upper], norm: Norm) -> Upper:
    """The ``norm`` of a vector of uppers: sum, root of the sum of squares, or maximum (0 for an empty one)."""
    items = [part for part in parts if not part.is_zero]
    if not items:
        return ZERO
    if len(items) == 1:
        return items[0]
    if norm == "linf":
        return max(items)
    total = ZERO
    for item in items:
        total = total + (item * item if norm == "l2" else item)
    return total.sqrt() if norm == "l2" else total


def repeat_factor(copies: int, norm: Norm) -> Upper:
    """Gain of copying every element ``copies`` times: k, sqrt(k), 1 for l1, l2, linf (0 copies: 0)."""
    if copies == 0:
        return ZERO
    if norm == "linf":
        return ONE
    return Upper(copies) if norm == "l1" else Upper(copies).sqrt()


def matrix_norm(rows: Sequence[Sequence[Upper]], norm: Norm) -> Upper:
    """Norm of a non-negative matrix, induced by ``norm`` on both sides, rounded up.

    l1: largest column sum; linf: largest row sum; l2: Collatz-Wielandt, ``sqrt(max_i (G'G u)_i / u_i)`` for the positive
    vector ``u`` that a few power steps give, but never more than ``sqrt(l1 * linf)``.
    """
    if not rows or not rows[0]:
        return ZERO
    columns = list(zip(*rows, strict=True))
    if len(columns) == 1:
        return combine(columns[0], norm)
    if len(rows) == 1:
        return combine(rows[0], dual(norm))
    largest_column = max(combine(column, "l1") for column in columns)
    largest_row = max(combine(row, "l1") for row in rows)
    if norm == "l1":
        return largest_column
    if norm == "linf":
        return largest_row
    simple = (largest_column * largest_row).sqrt()
    if not simple.is_finite or simple.is_zero:
        return simple
    return min(simple, _collatz_wielandt(rows, columns))


def _collatz_wielandt(rows: Sequence[Sequence[Upper]], columns: Sequence[Sequence[Upper]]) -> Upper:
    """Upper bound of the spectral norm of a finite non-negative matrix (Perron-Frobenius)."""

    def gram(u: list[Upper]) -> list[Upper]:
        image = [combine([g * x for g, x in zip(row, u, strict=True)], "l1") for row in rows]
        return [combine([g * y for g, y in zip(column, image, strict=True)], "l1") for column in columns]

    u = [ONE] * len(columns)
    for _ in range(12):
        image = gram(u)
        top = max(image)
        # A floor keeps u positive where a column is (almost) zero: any positive u is valid.
        scale = top.as_lower()
        u = [max(x / scale, Upper(2.0**-40)) for x in image]
    image = gram(u)
    ratio = max(y / x.as_lower() for y, x in zip(image, u, strict=True))
    return ratio.sqrt()
