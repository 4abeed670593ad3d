"""Matrices given by their entries: sampling of images, sums of windows, transforms of a few points.

Entries may be known only up to an absolute error, which every bound includes.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.operator import VerifiedNorm
from lipaudit.bounds.scalar import ZERO, Lower, Norm, Upper

__all__ = ["Sparse"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_FORMED = 1 << 18
"""Up to this many elements the matrix is formed for its l2 norm."""


class Sparse:
    """A matrix [outputs, inputs] with entries ``values[k]`` at ``(rows[k], columns[k])``; equal places add.

    Parameters
    ----------
    shape
        (outputs, inputs).
    rows, columns
        Places, integer arrays of one length.
    values
        Finite entries in float64.
    error
        Each true entry is within this distance of the stored one.
    """

    def __init__(self, shape: tuple[int, int], rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any], error: float = 0.0) -> None:
        self.shape = shape
        self.rows: Indices = np.asarray(rows, dtype=np.int64).ravel()
        self.columns: Indices = np.asarray(columns, dtype=np.int64).ravel()
        self.values: Floats = np.asarray(values, dtype=np.float64).ravel()
        self.error = float(error)

    @cached_property
    def sizes(self) -> Floats:
        """Upper bounds of the absolute values of the entries."""
        sizes = np.abs(self.values)
        return np.nextafter(sizes + self.error, np.inf) if self.error else sizes

    def _sums(self, places: Indices, count: int) -> float:
        """Largest sum of entry sizes at one place, rounded up (a sum of n terms of one sign is off by less than n units)."""
        if not self.rows.size:
            return 0.0
        sums = np.bincount(places, weights=self.sizes, minlength=count)
        terms = int(np.max(np.bincount(places, minlength=count)))
        top = float(np.max(sums))
        return top if terms == 1 else math.nextafter(top * (1 + (terms + 2) * 2.0**-52), math.inf)

    def matrix(self) -> Floats:
        """All entries, shape [outputs, inputs]."""
        found = np.zeros(self.shape)
        np.add.at(found, (self.rows, self.columns), self.values)
        return found

    def norm(self, norm: Norm) -> VerifiedNorm:
        """l1 and linf: largest sums; l2: at most ``sqrt(l1 * linf)``, and the verified norm of the formed matrix if it is small."""
        outputs, inputs = self.shape
        if not self.rows.size:
            return VerifiedNorm(ZERO, Lower(0), "empty matrix")
        if norm == "l1":
            return VerifiedNorm(Upper(self._sums(self.columns, inputs)), Lower(0), "largest column sum")
        row = Upper(self._sums(self.rows, outputs))
        if norm == "linf":
            return VerifiedNorm(row, Lower(0), "largest row sum")
        mixed = (row * Upper(self._sums(self.columns, inputs))).sqrt()
        if outputs * inputs > _FORMED:
            return VerifiedNorm(mixed, Lower(0), "sqrt(l1 * linf)")
        found = dense_norm(self.matrix(), "l2")
        # What errors of the entries, and of adding equal places, can change: at most its Frobenius norm.
        repeats = int(np.max(np.bincount(self.rows * inputs + self.columns)))
        off = self.error * repeats + (float(np.max(self.sizes)) * repeats * repeats * 2.0**-52 if repeats > 1 else 0.0)
        spare = Upper(off) * Upper(min(self.rows.size, outputs * inputs)).sqrt()
        return min(
            VerifiedNorm(found.upper + spare, Lower(0), found.method),
            VerifiedNorm(mixed, Lower(0), "sqrt(l1 * linf)"),
            key=lambda item: item.upper,
        )
