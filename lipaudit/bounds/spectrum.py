"""Frobenius norm and stable rank of linear operators, from both sides.

Sum of squares: ``np.vdot`` of N entries is off by at most gamma_N relatively (N. Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 3.1: all terms have one sign), so short pieces are summed by BLAS and the pieces by ``math.fsum``.
Stable rank: ``||A||_F^2 / ||A||_2^2`` (M. Rudelson, R. Vershynin, Sampling from large matrices, J. ACM 54, 2007); it is at least 1 and
at most the rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.adjoint import Adjoint
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.dense import gamma, uniform_value
from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.kronecker import Kronecker
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ONE, ZERO, Lower, Upper
from lipaudit.bounds.selection import Selection
from lipaudit.bounds.sums import BLOCK

__all__ = ["Interval", "core_shape", "frobenius", "stable_rank", "sum_of_squares"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

_PIECE = 1 << 16
_NOTHING = Upper.from_dyadic(1, -900)


@dataclass(frozen=True, slots=True)
class Interval:
    """A number that certainly lies between ``lower`` and ``upper``."""

    lower: Lower
    upper: Upper

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lower + other.lower, self.upper + other.upper)

    def __mul__(self, other: Interval) -> Interval:
        return Interval(self.lower * other.lower, self.upper * other.upper)

    def sqrt(self) -> Interval:
        """Square root, outward."""
        return Interval(self.lower.sqrt(), self.upper.sqrt())

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """A double >= 0 or an int."""
        return cls(Lower(value), Upper(value))


def core_shape(operator: LinearOperator) -> tuple[int, int]:
    """(outputs, inputs) of the smallest block of which the operator is copies: one sample of a convolution, one row of a product."""
    if isinstance(operator, Adjoint):
        rows, columns = core_shape(operator.base)
        return columns, rows
    if isinstance(operator, Convolution):
        return math.prod(operator.out_shape[1:]), math.prod(operator.in_shape[1:])
    if isinstance(operator, Dense):
        blocks, stacked = operator.blocks()
        return blocks * stacked * operator.width, blocks * operator.inner
    if isinstance(operator, Diagonal) and operator.in_shape == operator.out_shape:
        return operator.scale.size, operator.scale.size
    return math.prod(operator.out_shape), math.prod(operator.in_shape)


def frobenius(operator: LinearOperator) -> Interval | None:
    """Frobenius norm of the block of :func:`core_shape`; None where the operator has no entries to look at.

    The entries must be finite.
    """
    squares = _squares(operator)
    return None if squares is None else squares.sqrt()


def _squares(operator: LinearOperator) -> Interval | None:
    """Sum of the squared entries."""
    if isinstance(operator, Adjoint):
        return _squares(operator.base)
    if isinstance(operator, Convolution):
        return _of_convolution(operator)
    if isinstance(operator, Dense):
        return sum_of_squares(operator.weight)
    if isinstance(operator, Diagonal):
        total = sum_of_squares(operator.scale)
        if operator.in_shape != operator.out_shape:
            total = total * Interval.exactly(math.prod(operator.out_shape) // max(1, operator.scale.size))
        if operator.relative_error:
            low = Lower(max(0.0, (1 - operator.relative_error) * (1 - 2.0**-52)))
            error = Interval(low, ONE + Upper(operator.relative_error))
            total = total * error * error
        return total
    if isinstance(operator, Selection):
        index = operator.index
        return Interval.exactly(int(np.count_nonzero(index >= 0)))
    if isinstance(operator, Kronecker) and not operator.relative_error:
        total = Interval.exactly(math.prod(operator.in_shape) // max(1, math.prod(matrix.shape[1] for _, matrix in operator.matrices)))
        for _, matrix in operator.matrices:
            total = total * sum_of_squares(matrix)
        return total
    return None


def sum_of_squares(array: Array) -> Interval:
    """Sum of the squares of all entries of a finite array of any real dtype whose values are doubles, read in blocks of 32 MB."""
    if array.size == 0:
        return Interval.exactly(0)
    value = uniform_value(array)
    if value is not None:
        each = Interval.exactly(abs(value))
        return each * each * Interval.exactly(array.size)
    exponent = _exponent(array)
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1) if array.flags.f_contiguous else np.ravel(array)
    totals: list[float] = []
    for at in range(0, flat.size, BLOCK):
        block = _scaled(flat[at : at + BLOCK], exponent)
        totals += [float(np.vdot(block[k : k + _PIECE], block[k : k + _PIECE])) for k in range(0, block.size, _PIECE)]
    return _enclosed(math.fsum(totals), min(flat.size, _PIECE), exponent)


def _exponent(array: Array) -> int:
    """A power of two that brings the largest magnitude to [1/2, 1); 0 for types whose squares are ordinary doubles."""
    if array.dtype != np.float64:
        return 0
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1) if array.flags.f_contiguous else np.ravel(array)
    top = max(float(np.max(np.abs(flat[at : at + BLOCK]))) for at in range(0, flat.size, BLOCK))
    return 0 if 2.0**-200 <= top <= 2.0**200 or top == 0.0 else math.frexp(top)[1]


def _scaled(block: Array, exponent: int) -> Floats:
    wide = np.asarray(block, dtype=np.float64)
    return np.ldexp(wide, -exponent) if exponent else wide


def _enclosed(total: float, length: int, exponent: int) -> Interval:
    """A sum of squares of scaled entries, in pieces of at most ``length``, joined by ``fsum``."""
    if total == 0.0:
        return Interval(Lower(0), ZERO if exponent == 0 else _NOTHING)
    error = gamma(length + 2)
    scale = 2 * exponent
    low = Lower(total) / (ONE + error + error)
    return Interval(
        low.minus(_NOTHING) * Lower.from_dyadic(1, scale), (Upper(total) * (ONE + error + error) + _NOTHING) * Upper.from_dyadic(1, scale)
    )


def _of_convolution(operator: Convolution) -> Interval:
    """Each tap as often as it meets a pixel."""
    spans = [[axis.span(tap)[1] for tap in range(axis.kernel)] for axis in operator.window]
    if operator.fill is not None:
        each = Interval.exactly(abs(operator.fill))
        entries = math.prod(operator.weight.shape[:2]) * math.prod(sum(counts) for counts in spans)
        return each * each * Interval.exactly(entries)
    exponent = _exponent(operator.weight)
    rows, taps = operator.weight.shape[0], math.prod(operator.kernel)
    width = operator.weight.shape[1]
    sums: list[Floats] = []
    step = max(1, BLOCK // max(1, width * taps))
    for at in range(0, rows, step):
        block = _scaled(operator.weight[at : at + step], exponent).reshape(-1, taps)
        sums += [np.einsum("ij,ij->j", block[k : k + _PIECE], block[k : k + _PIECE]) for k in range(0, len(block), _PIECE)]
    total = Interval.exactly(0)
    for k, counts in enumerate(np.ndindex(*operator.kernel)):
        met = math.prod(spans[axis][tap] for axis, tap in enumerate(counts))
        if met:
            square = _enclosed(math.fsum(float(part[k]) for part in sums), min(rows * width, _PIECE), exponent)
            total = total + square * Interval.exactly(met)
    return total


def stable_rank(norm: VerifiedNorm, size: Interval, shape: tuple[int, int]) -> Interval | None:
    """``||A||_F^2 / ||A||_2^2`` from both sides, within [1, smaller side]; None for the zero operator and where no norm is known."""
    if not norm.upper.is_finite or norm.upper.is_zero or not size.upper.is_finite:
        return None
    most = min(shape)
    low = max(Lower(1), size.lower * size.lower / (norm.upper * norm.upper))
    high = Upper(most)
    if not norm.lower.is_zero:
        high = min(high, size.upper * size.upper / (norm.lower * norm.lower))
    return Interval(min(low, Lower(most)), max(high, ONE))
