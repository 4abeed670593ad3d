"""One matrix per axis: average pooling, linear and cubic resizing, means and sums over axes.

``||A (x) B|| = ||A|| ||B||`` in all three norms, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm, nonfinite, refused, uniform_value
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ONE, Lower, Norm, Upper

__all__ = ["Kronecker"]

Floats = NDArray[np.float64]


class Kronecker(LinearOperator):
    """Applies ``matrix`` [out, in] along ``axis``, for each pair of ``matrices``; other axes stay.

    ``relative_error`` bounds how far each true entry is from the stored double, relatively (2**-53 for rounded quotients
    like 1/9; 0 if the entries are exact). An axis that becomes 1 long stays.
    """

    def __init__(self, matrices: Sequence[tuple[int, Floats]], in_shape: Sequence[int], relative_error: float = 0.0) -> None:
        self.in_shape = tuple(int(n) for n in in_shape)
        self.matrices = tuple((axis % max(1, len(self.in_shape)), matrix) for axis, matrix in matrices)
        self.relative_error = float(relative_error)
        out = list(self.in_shape)
        for axis, matrix in self.matrices:
            if matrix.ndim != 2 or matrix.shape[1] != out[axis]:
                raise ValueError(f"a matrix of shape {matrix.shape} does not act on axis {axis} of {self.in_shape}")
            out[axis] = matrix.shape[0]
        self.out_shape = tuple(int(n) for n in out)

    def apply(self, x: Floats) -> Floats:
        """Axis by axis."""
        y = np.asarray(x, dtype=np.float64)
        for axis, matrix in self.matrices:
            y = _along(y, axis, matrix)
        return y

    def adjoint(self, y: Floats) -> Floats:
        """Axis by axis with the transposed matrices, last first."""
        x = np.asarray(y, dtype=np.float64)
        for axis, matrix in reversed(self.matrices):
            x = _along(x, axis, matrix.T)
        return x

    def magnitude(self) -> Kronecker:
        """Of the absolute entries."""
        matrices: list[tuple[int, Floats]] = []
        for axis, matrix in self.matrices:
            value = uniform_value(matrix)
            matrices.append((axis, np.abs(matrix) if value is None else np.broadcast_to(np.float64(abs(value)), matrix.shape)))
        return Kronecker(matrices, self.in_shape, self.relative_error)

    def without(self, axis: int) -> Kronecker | None:
        """An axis that has no matrix."""
        if any(at == axis for at, _ in self.matrices):
            return None
        return Kronecker(self.matrices, (*self.in_shape[:axis], 1, *self.in_shape[axis + 1 :]), self.relative_error)

    @property
    def terms(self) -> int:
        """Products along the axes: each stage multiplies the error bound of the one before."""
        spare = math.ceil(self.relative_error * 2.0**53)
        return 1 + sum(_row_terms(matrix) + spare for _, matrix in self.matrices)

    def underflow(self) -> Floats:
        """As for one product, amplified by the later stages."""
        rows = [float(np.abs(matrix).sum(axis=1).max(initial=0.0)) for _, matrix in self.matrices]
        return np.asarray(self.terms * 2.0**-1020 * math.prod(max(1.0, row) for row in rows))

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Product of the verified norms of the matrices."""
        if math.prod(self.in_shape) == 0 or math.prod(self.out_shape) == 0:
            return VerifiedNorm(Upper(0), Lower(0), "empty")
        upper, lower, methods = ONE, Lower(1), []
        for _, matrix in self.matrices:
            bad = nonfinite(matrix)
            if bad:
                return refused(bad)
            found = dense_norm(matrix, norm, slack)
            spread = found.upper
            if self.relative_error and norm == "l2":
                spread = (dense_norm(matrix, "l1").upper * dense_norm(matrix, "linf").upper).sqrt()
            off = Upper(self.relative_error) * spread
            upper = upper * (found.upper + off)
            lower = lower * Lower(max(0.0, (float(found.lower) - float(off)) * (1 - 2.0**-52)))
            methods.append(found.method)
        return VerifiedNorm(upper, lower, "product over axes", {"axes": [axis for axis, _ in self.matrices], "methods": methods})


def _along(x: Floats, axis: int, matrix: Floats) -> Floats:
    """``matrix`` times ``x`` along ``axis``."""
    value = uniform_value(matrix)
    if value is not None:
        total = value * x.sum(axis=axis, keepdims=True)
        return np.repeat(total, matrix.shape[0], axis=axis)
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


def _row_terms(matrix: Floats) -> int:
    """Most nonzero entries of a row (products with 0 are exact)."""
    if uniform_value(matrix) is not None:
        return matrix.shape[1] + 1
    return int(np.count_nonzero(matrix, axis=1).max(initial=0)) + 1
