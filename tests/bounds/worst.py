"""Arithmetic that errs as much as its model allows, in the direction that does most harm.

Real BLAS and LAPACK err far less than their proved bounds, so that a bound whose allowance is too small passes every test that runs them.
These stand-ins return what a *legal* but hostile implementation could return: each error is the whole of the bound that its theorem grants,
up to ``share``, with the sign that makes a matrix look definite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from lipaudit.bounds.packed import packing

Floats = NDArray[np.float64]
Array = NDArray[Any]
UNIT, SINGLE = 2.0**-53, 2.0**-24


def gamma(k: int, unit: float = UNIT) -> float:
    return k * unit / (1 - k * unit)


class HostileCholesky:
    """``dpotrf`` whose factor belongs to ``B + D``, ``|D_ij| <= phi d_i d_j`` with d_i = sqrt(b_ii): here ``D = share phi d d'``."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, matrix: Floats, *, lower: int, clean: int, overwrite_a: int) -> tuple[Floats, int]:
        n = matrix.shape[0]
        g = gamma(n + 3)
        root = np.sqrt(np.diagonal(matrix))
        full = np.tril(matrix) + np.tril(matrix, -1).T
        return lapack.dpotrf(full + self.share * g / (1 - g) * np.outer(root, root), lower=1)


class HostileGram:
    """``dsyrk`` that is off by ``sign * share gamma_m |W|'|W|`` (its one use here is a whole product)."""

    def __init__(self, share: float, sign: int) -> None:
        self.share, self.sign = share, sign

    def __call__(self, alpha: float, a: Floats, *, trans: int, lower: int) -> Floats:
        wide = a if trans == 0 else a.T  # [n, m]
        off = self.sign * self.share * gamma(wide.shape[1])
        return np.asfortranarray(np.tril(wide @ wide.T + off * (np.abs(wide) @ np.abs(wide).T)))


class HostilePacked:
    """``zpftrf`` or ``cpftrf`` whose factor belongs to ``B + D`` with ``D = share * bound``, and comes back in the same layout.

    ``entrywise``: the a posteriori bound ``gamma_(2c+8) M M'`` of the factor itself, M = |Re L| + |Im L|; else the a priori one,
    ``phi sqrt(b_ii b_jj)`` with phi from sqrt(2) gamma_(2c+8).
    """

    def __init__(self, share: float, unit: float, *, entrywise: bool) -> None:
        self.share, self.unit, self.entrywise = share, unit, entrywise

    def __call__(self, order: int, packed: Array, *, transr: str, uplo: str, overwrite_a: int) -> tuple[Array, int]:
        layout = packing(order)
        full = layout.full(packed.astype(np.complex128))
        k = 2 * order + 8
        if self.entrywise:
            factor = self._consistent(full, self.share * gamma(k, self.unit))
        else:
            g = np.sqrt(2) * gamma(k, self.unit)
            root = np.sqrt(np.diagonal(full).real)
            factor = _cholesky(full + self.share * g / (1 - g) * np.outer(root, root))
        if factor is None:
            return packed, 1
        lower = np.tril(factor)
        packed[...] = layout.pack(lower + np.tril(lower, -1).conj().T).astype(packed.dtype)
        return packed, 0

    @staticmethod
    def _consistent(matrix: Array, error: float) -> Array | None:
        """L with ``L L' = B + error M M'`` for its own M, by iteration from above; None if there is none."""
        ridge = max(0.0, -float(np.linalg.eigvalsh(matrix)[0])) + 2 * error * float(np.max(np.diagonal(matrix).real))
        factor = _cholesky(matrix + ridge * np.eye(len(matrix)))
        for _ in range(8):
            if factor is None:
                return None
            moduli = np.abs(factor.real) + np.abs(factor.imag)
            factor = _cholesky(matrix + error * (moduli @ moduli.T))
        return factor


def _cholesky(matrix: Array) -> Array | None:
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
