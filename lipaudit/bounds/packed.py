"""Hermitian matrices in LAPACK's rectangular full packed format: half of the memory, factorised at full speed.

Layout of order n (transr = N, uplo = L; F. Gustavson, J. Wasniewski, J. Dongarra, J. Langou, ACM TOMS 37, 2010), as an array
``P`` [columns, rows] in C order with ``columns = (n + 1) // 2`` and ``rows = n + 1`` (n even) or ``n`` (n odd): the lower trapezoid of
the first ``columns`` columns of the matrix, and in the triangle left free the trailing block, conjugate transposed. The format is
linear over the reals, so that packing the coefficients of a matrix polynomial packs its values. Factors come in the same layout.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Packing", "packing"]

Array = NDArray[Any]
Indices = NDArray[np.intp]


class Packing:
    """The layout for one order."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.columns = (order + 1) // 2
        self.rows = order + 1 - order % 2
        self.size = self.columns * self.rows
        half, shift = order // 2, 1 - order % 2
        first, second = np.arange(self.columns), np.arange(half)
        self.diagonal: Indices = np.concatenate([first * self.rows + first + shift, (second + 1 - shift) * self.rows + second])
        """Places of the diagonal entries, in order."""
        self._shift = shift
        self._free = (slice(1 - shift, None), slice(0, half))
        self._mask = np.tri(half, dtype=np.bool_)

    def pack(self, matrix: Array) -> Array:
        """Packed form [.., size] of [.., n, n]: the real or imaginary part of Hermitian matrices, or these themselves."""
        turned = np.swapaxes(matrix, -1, -2)
        out = np.empty((*matrix.shape[:-2], self.columns, self.rows), dtype=matrix.dtype)
        # In the free triangle conj(G[columns + q, columns + p]) is G[columns + p, columns + q].
        out[..., self._shift :] = turned[..., : self.columns, :]
        free = out[(..., *self._free)]
        np.copyto(free, turned[..., self.columns :, self.columns :], where=self._mask)
        return out.reshape(*matrix.shape[:-2], self.size)

    def lower(self, packed: Array) -> Array:
        """Hermitian matrices [.., n, n] of which only the lower triangle counts, each in Fortran order."""
        parts = packed.reshape(*packed.shape[:-1], self.columns, self.rows)
        turned = np.empty((*packed.shape[:-1], self.order, self.order), dtype=packed.dtype)
        turned[..., self.columns :, : self.columns] = 0
        turned[..., : self.columns, :] = parts[..., self._shift :]
        turned[..., self.columns :, self.columns :] = np.swapaxes(parts[(..., *self._free)].conj(), -1, -2)
        return np.swapaxes(turned, -1, -2)

    def full(self, packed: Array) -> Array:
        """Hermitian matrices [.., n, n]."""
        lower = np.tril(self.lower(packed))
        return lower + np.swapaxes(np.tril(lower, -1).conj(), -1, -2)

    def entries(self) -> tuple[Indices, Indices]:
        """Row and column of the matrix entry at every packed place."""
        row, column = np.indices((self.order, self.order))
        return self.pack(row), self.pack(column)

    def absolute_square(self, factors: Array) -> Array:
        """Bound of ``||M M'||`` with M = |Re L| + |Im L| for packed triangular factors [.., size], complex: shape [..], within rounding.

        The norm of a symmetric non-negative matrix is at most its largest row sum, here the largest entry of ``M (M' 1)``.
        """
        parts = np.abs(factors.view(np.float32 if factors.dtype == np.complex64 else np.float64))
        moduli = (parts[..., 0::2] + parts[..., 1::2]).reshape(*factors.shape[:-1], self.columns, self.rows)
        trailing = np.where(self._mask, moduli[(..., *self._free)], 0)
        moduli[(..., *self._free)] -= trailing  # exact: what is left is the trapezoid of the first columns
        first = np.matmul(moduli.sum(axis=-1)[..., None, :], moduli)[..., 0, self._shift :]
        first[..., self.columns :] += np.matmul(trailing, trailing.sum(axis=-2)[..., None])[..., 0]
        return first.max(axis=-1)


@lru_cache(maxsize=16)
def packing(order: int) -> Packing:
    """The layout for an order, made once."""
    return Packing(order)
