"""What the bounds are checked against: exact rational arithmetic, and rigorous lower values in extended precision."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from flint import fmpq, fmpq_poly, fmpz_mat
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Lower, Norm, Upper

Floats = NDArray[np.float64]


def exact(bound: Upper | Lower) -> Fraction:
    """The exact value of a finite bound."""
    pair = bound.dyadic()
    assert pair is not None
    mantissa, exponent = pair
    return Fraction(mantissa) * Fraction(2) ** exponent


def rounded_up(value: Fraction) -> Fraction:
    """The smallest double that is not below a number in their range."""
    near = float(value)
    return Fraction(near) if Fraction(near) >= value else Fraction(math.nextafter(near, math.inf))


def rational(matrix: Floats) -> list[list[Fraction]]:
    return [[Fraction(float(v)) for v in row] for row in matrix]


def exact_sums(matrix: Floats, norm: Norm) -> Fraction:
    """l1 or linf norm, exactly."""
    rows = np.abs(matrix.T if norm == "l1" else matrix)
    if rows.size == 0:
        return Fraction(0)
    with np.errstate(over="ignore"):
        rough = rows.sum(axis=1)
    near = rows[~(rough < rough.max() * (1 - 1e-9))] if np.isfinite(rough).all() else rows
    return max(sum(map(Fraction, row[row > 0].tolist()), Fraction(0)) for row in np.unique(near, axis=0))


def exact_gram(matrix: Floats) -> list[list[Fraction]]:
    """W W' or W'W, whichever is smaller, exactly."""
    rows = rational(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
    return [[sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0)) for y in rows] for x in rows]


def semidefinite(matrix: list[list[Fraction]]) -> bool:
    """Whether a symmetric matrix is positive semidefinite: exact symmetric elimination."""
    m = [list(row) for row in matrix]
    n = len(m)
    for k in range(n):
        if m[k][k] < 0 or (m[k][k] == 0 and any(m[i][k] != 0 for i in range(k + 1, n))):
            return False
        if m[k][k] == 0:
            continue
        for i in range(k + 1, n):
            factor = m[i][k] / m[k][k]
            if factor:
                for j in range(k + 1, n):
                    m[i][j] -= factor * m[k][j]
    return True


def dominates(square: Fraction, gram: list[list[Fraction]]) -> bool:
    """Whether ``square * I - gram`` is positive semidefinite."""
    return semidefinite([[(square if i == j else Fraction(0)) - value for j, value in enumerate(row)] for i, row in enumerate(gram)])


def largest_eigenvalue_at_most(square: Fraction, polynomial: fmpq_poly) -> bool:
    """Whether no root of a real-rooted monic characteristic polynomial exceeds ``square``, exactly.

    All roots of p(square + y) are <= 0 if and only if no coefficient is negative: the product of factors y - r with r <= 0 has none, and a
    polynomial without negative coefficients has no positive root.
    """
    shifted = polynomial(fmpq_poly([fmpq(square.numerator, square.denominator), 1]))
    return all(coefficient >= 0 for coefficient in shifted.coeffs())


def gram_polynomial(matrix: Floats) -> fmpq_poly:
    """Characteristic polynomial of the Gram matrix of an integer matrix on its smaller side, exactly."""
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    exact_rows = fmpz_mat([[int(v) for v in row] for row in rows])
    return fmpq_poly((exact_rows * exact_rows.transpose()).charpoly())


class Singular:
    """Exact comparisons with the largest and the smallest singular value (of the smaller side) of a matrix of doubles.

    The entries are integers times a power of two; the characteristic polynomial of the integers' Gram matrix is exact.
    """

    def __init__(self, matrix: Floats) -> None:
        rows = rational(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
        scale = max((value.denominator for row in rows for value in row), default=1)
        whole = fmpz_mat([[int(value * scale) for value in row] for row in rows])
        self.side = len(rows)
        self._scale = scale
        self._polynomial = fmpq_poly((whole * whole.transpose()).charpoly())

    def largest_at_most(self, bound: Fraction) -> bool:
        """Whether the largest singular value is at most ``bound`` >= 0."""
        return largest_eigenvalue_at_most((bound * self._scale) ** 2, self._polynomial)

    def smallest_at_least(self, bound: Fraction) -> bool:
        """Whether the smallest singular value is at least ``bound`` >= 0: p(s - y), up to sign, has no negative coefficient."""
        square = (bound * self._scale) ** 2
        mirrored = self._polynomial(fmpq_poly([fmpq(square.numerator, square.denominator), -1]))
        sign = -1 if self.side % 2 else 1
        return all(sign * coefficient >= 0 for coefficient in mirrored.coeffs())


def spectral_from_below(matrix: Floats) -> float:
    """A number that is certainly not above the l2 norm, and within about 1e-15 of it.

    Rayleigh quotient of the top singular vector in extended precision, minus the error bound of its inner products.
    """
    m, n = matrix.shape
    if matrix.size == 0 or not matrix.any():
        return 0.0
    x = np.linalg.svd(matrix, full_matrices=False)[2][0].astype(np.longdouble)
    eps = float(np.finfo(np.longdouble).eps)
    wide = matrix.astype(np.longdouble)
    y = wide @ x
    off = (n + 2) * eps * np.sqrt(np.sum((np.abs(wide) @ np.abs(x)) ** 2))
    value = (np.sqrt(y @ y) - off) / np.sqrt(x @ x) * (1 - 4 * (m + n + 8) * eps)
    return float(np.nextafter(np.float64(value), 0.0))


def norm_from_below(matrix: Floats, norm: Norm) -> Fraction:
    """The norm (l1, linf: exact; l2: rigorous from below)."""
    return Fraction(spectral_from_below(matrix)) if norm == "l2" else exact_sums(matrix, norm)
