"""Matrices that were computed in doubles, with a bound of what the computation lost.

``Enclosed(A, e)`` stands for any matrix B with ``||B - A||_F <= e``; its norm is at most the verified norm of A plus e. Errors of
products and sums follow the usual model ``|fl(sum a_i b_i) - sum a_i b_i| <= gamma_k sum |a_i b_i|``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm, gamma
from lipaudit.bounds.scalar import INFINITE, ZERO, Upper
from lipaudit.operators.range import widen

__all__ = ["Enclosed", "frobenius", "stacked"]

Floats = NDArray[np.float64]

_TINY = Upper.from_dyadic(1, -900)


def frobenius(array: Floats) -> Upper:
    """Upper bound of the Frobenius norm; infinite if an element is not finite."""
    top = float(np.max(np.abs(array), initial=0.0))
    if top == 0.0:
        return ZERO
    if not np.isfinite(top):
        return INFINITE
    scaled = np.asarray(array, dtype=np.float64) / top
    # Squares below 1e-300 of the largest do not matter beside its 1.
    return Upper(widen(float(np.sqrt(np.sum(scaled * scaled))), scaled.size + 8)) * Upper(top)


@dataclass(frozen=True, eq=False)
class Enclosed:
    """``array`` [rows, columns] in float64, off by at most ``error`` in Frobenius norm."""

    array: Floats
    error: Upper = ZERO

    def __post_init__(self) -> None:
        """Weights may be stored in narrower types, in which no product may be taken: widened here, whoever forgot it."""
        if self.array.dtype != np.float64:
            object.__setattr__(self, "array", np.asarray(self.array, dtype=np.float64))

    def norm(self) -> Upper:
        """Upper bound of the spectral norm."""
        if self.array.size == 0:
            return self.error
        return dense_norm(self.array, "l2").upper + self.error

    def estimate(self) -> float:
        """The spectral norm up to a few digits (for parameters that may have any value)."""
        small = self.array @ self.array.T if self.array.shape[0] <= self.array.shape[1] else self.array.T @ self.array
        if small.size == 0 or not np.all(np.isfinite(small)):
            return 0.0
        return float(np.sqrt(max(0.0, float(np.linalg.eigvalsh(small)[-1]))))

    def frobenius(self) -> Upper:
        """Upper bound of the Frobenius norm."""
        return frobenius(self.array) + self.error

    def times(self, right: Enclosed) -> Enclosed:
        """The product."""
        inner = self.array.shape[1]
        own, other = frobenius(self.array), frobenius(right.array)
        product = self.array @ right.array
        rounding = gamma(inner + 2) * own * other + _TINY * Upper(max(1, product.size * inner))
        return Enclosed(product, rounding + self.error * (other + right.error) + own * right.error)

    def scaled(self, factor: Upper) -> Enclosed:
        """Times a number: the double ``float(factor)`` stands for it (the caller may choose the number)."""
        value = float(factor)
        product = self.array * value
        return Enclosed(product, self.error * Upper(value) + frobenius(product) * Upper(2.0**-52) + _TINY * Upper(max(1, product.size)))

    def rows(self, factors: Floats) -> Enclosed:
        """Times ``diag(factors)`` from the left."""
        product = self.array * factors[:, None]
        carried = self.error * Upper(float(np.max(np.abs(factors), initial=0.0)))
        return Enclosed(product, carried + frobenius(product) * Upper(2.0**-52) + _TINY * Upper(max(1, product.size)))

    def columns(self, factors: Floats, *, centred: bool) -> Enclosed:
        """Times ``diag(factors)`` from the right, then (``centred``) times ``P``, which subtracts the mean of each row."""
        width = self.array.shape[1]
        product = self.array * factors
        size = frobenius(product)
        carried = self.error * Upper(float(np.max(np.abs(factors), initial=0.0)))
        error = carried + size * Upper(2.0**-52) + _TINY * Upper(max(1, product.size))
        if not centred or width == 0:
            return Enclosed(product, error)
        # |mean| <= |row|_2 / sqrt(width): the means, copied along the row, are no longer than the row.
        return Enclosed(product - product.mean(axis=1, keepdims=True), error + gamma(width + 8) * size * Upper(2))


def stacked(parts: Sequence[Enclosed]) -> Enclosed:
    """The matrices one above the other."""
    total = ZERO
    for part in parts:
        total = total + part.error * part.error
    return Enclosed(np.vstack([part.array for part in parts]), total.sqrt())
