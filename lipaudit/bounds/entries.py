"""Compositions of factors and copies by their entries: rotations by position, differences of neighbours, masks.

Such a matrix A has few entries in a row, whatever its size. With E the error of computing them, ``|E| <= gamma_k M`` entry by entry for the
same composition M of the magnitudes and k roundings, and any inner products of length n ::

    ||A||_2^2 = || A'A ||_2 <= || |A'A| ||_inf <= || fl(A'A) ||_inf + gamma_(n + 3k + 16) ||M||_1 ||M||_inf

as ``|A'A - fl(A'A)| <= (gamma_n (1 + gamma_k)^2 + 2 gamma_k + gamma_k^2) M'M``. Exact where A'A is diagonal, as that of rotations is; never
above the square of ``sqrt(l1 * linf)`` up to rounding. l1 and linf are the largest sums of ``|fl(A)| + gamma_k M``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipaudit.bounds.dense import gamma
from lipaudit.bounds.formed import GROWTH, TINY, amplification
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ONE, Lower, Norm, Upper

__all__ = ["entries_norm"]

MOST = 1 << 21
"""Largest number of inputs and of outputs of what is looked at entry by entry."""


def entries_norm(operator: LinearOperator, norm: Norm) -> VerifiedNorm | None:
    """A bound from the entries; None unless all leaves are factors and copies of moderate size."""
    leaves = operator.leaves()
    if max(math.prod(shape) for leaf in leaves for shape in (leaf.in_shape, leaf.out_shape)) > MOST:
        return None
    matrix, sizes = operator.entries(magnitude=False), operator.entries(magnitude=True)
    if matrix is None or sizes is None or not sizes.nnz or not amplification(leaves) <= GROWTH:
        return None
    k = operator.terms + 4 * len(leaves)
    lost = TINY * Upper(max(matrix.shape))  # what underflows in one row or column
    rows, columns = _largest_sum(sizes, 1) + lost, _largest_sum(sizes, 0) + lost
    if norm != "l2":
        top, spread = (_largest_sum(matrix, 0), columns) if norm == "l1" else (_largest_sum(matrix, 1), rows)
        return VerifiedNorm(top + gamma(k) * spread + lost, Lower(0), "sums of entries")
    length = int(np.max(np.diff(matrix.tocsc().indptr), initial=0))
    square = _largest_sum(matrix.T @ matrix, 1) + gamma(length + 3 * k + 16) * rows * columns
    # Where entries are off by e, a row of A'A is off by n e columns + e m rows + n m e^2, and its products underflow, too.
    return VerifiedNorm((square + lost * (rows + columns + lost + ONE)).sqrt(), Lower(0), "linf norm of A'A by entries")


def _largest_sum(matrix: Any, axis: int) -> Upper:
    """Largest sum of magnitudes along an axis, rounded up: n terms of one sign sum to within gamma_n."""
    sizes = abs(matrix).tocsr() if axis == 1 else abs(matrix).tocsc()
    sums = np.asarray(sizes.sum(axis=axis)).ravel()
    error = gamma(int(np.max(np.diff(sizes.indptr), initial=0)) + 2)
    return Upper(float(np.max(sums, initial=0.0))) * (ONE + error + error)
