"""Interval arithmetic on arrays, rounded outward: a pair ``(lo, hi)`` of float64 arrays that broadcast against each other.

Sums and products are correctly rounded by the hardware, so one step to the next double covers the error; sums that are
exact (seen by the error-free transformation TwoSum, Knuth) are not widened.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.range import down, up

__all__ = [
    "Interval", "add", "contains_zero", "divide", "hull", "maximum", "minimum", "multiply", "negative", "reciprocal", "square", "total",
]  # fmt: skip

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]


def _sum(a: Floats, b: Floats, towards: float) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        s = np.asarray(a + b)
        exact = (s - a == b) & (s - b == a)
    return np.where(exact, s, np.where(np.isnan(s), towards, np.nextafter(s, towards)))


def add(a: Interval, b: Interval) -> Interval:
    """``x + y``."""
    return _sum(a[0], b[0], -np.inf), _sum(a[1], b[1], np.inf)


def negative(a: Interval) -> Interval:
    """``-x``."""
    return -a[1], -a[0]


def _products(a: Floats, b: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        p = np.asarray(a * b)
    return np.where(np.isnan(p), 0.0, p)  # 0 times an infinite end: the value itself is finite


def multiply(a: Interval, b: Interval) -> Interval:
    """``x * y`` for independent factors."""
    if _is_number(b, 1.0):
        return _full(a, b)
    if _is_number(a, 1.0):
        return _full(b, a)
    return _hull_of_corners([(_products(x, y), (x == 0) | (y == 0)) for x in a for y in b])


def _hull_of_corners(corners: list[tuple[Floats, NDArray[np.bool_]]]) -> Interval:
    """Least and largest corner, each rounded outward unless it is an exact zero (so that signs survive)."""
    lo = np.minimum.reduce(np.broadcast_arrays(*(np.where(zero, 0.0, down(c)) for c, zero in corners)))
    hi = np.maximum.reduce(np.broadcast_arrays(*(np.where(zero, 0.0, up(c)) for c, zero in corners)))
    return np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)


def _is_number(a: Interval, number: float) -> bool:
    return bool(np.all(a[0] == number) and np.all(a[1] == number))


def _full(a: Interval, b: Interval) -> Interval:
    shape = np.broadcast_shapes(a[0].shape, b[0].shape)
    return np.broadcast_to(a[0], shape), np.broadcast_to(a[1], shape)


def square(a: Interval) -> Interval:
    """``x * x`` of one variable."""
    lo, hi = np.abs(a[0]), np.abs(a[1])
    with np.errstate(over="ignore", under="ignore"):
        small, large = np.minimum(lo, hi) ** 2, np.maximum(lo, hi) ** 2
    straddles = (a[0] <= 0) & (a[1] >= 0)
    return np.where(straddles, 0.0, np.maximum(down(small), 0.0)), np.where((lo == 0) & (hi == 0), 0.0, up(large))


def contains_zero(a: Interval) -> bool:
    """True if 0 lies in some interval."""
    return bool(np.any((a[0] <= 0) & (a[1] >= 0)))


def reciprocal(a: Interval) -> Interval:
    """``1 / x``; all reals where 0 lies in the interval."""
    bad = (a[0] <= 0) & (a[1] >= 0)
    with np.errstate(divide="ignore", over="ignore"):
        lo, hi = 1.0 / np.where(bad, 1.0, a[1]), 1.0 / np.where(bad, 1.0, a[0])
    exact_lo, exact_hi = _power_of_two(a[1]), _power_of_two(a[0])
    lo, hi = np.where(exact_lo, lo, down(lo)), np.where(exact_hi, hi, up(hi))
    return np.where(bad, -np.inf, lo), np.where(bad, np.inf, hi)


def _power_of_two(x: Floats) -> NDArray[np.bool_]:
    mantissa, exponent = np.frexp(x)
    return (np.abs(mantissa) == 0.5) & (np.abs(exponent) < 1000)


def divide(a: Interval, b: Interval) -> Interval:
    """``x / y``; all reals where 0 lies in the divisor (unless x is 0)."""
    bad = (b[0] <= 0) & (b[1] >= 0)
    safe = (np.where(bad, 1.0, b[0]), np.where(bad, 1.0, b[1]))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        corners = [(np.nan_to_num(x / y, nan=0.0, posinf=np.inf, neginf=-np.inf), (x == 0) | np.isinf(y)) for x in a for y in safe]
    # inf/inf: another corner is infinite, and the quotient tends to 0 here
    lo, hi = _hull_of_corners(corners)
    return np.where(bad, -np.inf, lo), np.where(bad, np.inf, hi)


def maximum(a: Interval, b: Interval) -> Interval:
    """``max(x, y)``: exact."""
    return np.maximum(a[0], b[0]), np.maximum(a[1], b[1])


def minimum(a: Interval, b: Interval) -> Interval:
    """``min(x, y)``: exact."""
    return np.minimum(a[0], b[0]), np.minimum(a[1], b[1])


def hull(a: Interval, b: Interval) -> Interval:
    """Both of them: exact."""
    return np.minimum(a[0], b[0]), np.maximum(a[1], b[1])


def total(a: Interval, axes: tuple[int, ...], keepdims: bool = True) -> Interval:
    """Sum over ``axes`` (arrays at full shape): float sum widened by ``n u sum|x|`` (Higham 2002, eq. 4.4)."""
    count = int(np.prod([a[0].shape[axis] for axis in axes], dtype=np.int64)) if axes else 1
    ends: list[Floats] = []
    for end, sign in ((a[0], -1.0), (a[1], 1.0)):
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.sum(end, axis=axes, keepdims=keepdims)
            error = np.sum(np.abs(end), axis=axes, keepdims=keepdims) * ((count + 4) * 2.0**-52)
            end = value + sign * error
        exact = (error == 0) | (count == 1)
        end = np.where(exact, value, np.nextafter(np.where(np.isnan(end), sign * np.inf, end), sign * np.inf))
        ends.append(np.asarray(end, dtype=np.float64))
    return ends[0], ends[1]
