"""Maps that act on each axis by its own matrix of rational numbers: averages and interpolation (Kronecker products).

``|A (x) B|_p = |A|_p |B|_p`` in every norm, so gains multiply over the axes. Entries are exact rationals; l1 and linf norms are
exact sums; l2 is the largest row norm without overlap, else at most ``sqrt(l1 * linf)`` and at most the verified norm of the matrix in
doubles plus what rounding its entries can change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.chain import compose
from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.linear import Kronecker, Permutation
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, Norm, Upper
from lipaudit.bounds.window import Axis
from lipaudit.operators.base import Finite, Gain

__all__ = ["AxisMatrix", "average_gain", "average_operator", "axis_matrix", "reduced_mean", "reduction_operator"]

Floats = NDArray[np.float64]

# Beyond this side the l2 norm of an axis is bounded by sqrt(l1 * linf) alone.
_SIDE = 2048


@dataclass(frozen=True)
class AxisMatrix:
    """The matrix of one axis: for each output the weights of the inputs that it reads."""

    axis: int
    inputs: int
    rows: tuple[Mapping[int, Fraction], ...]

    @property
    def is_exact(self) -> bool:
        """Every entry is a double."""
        return all(Fraction(float(weight)) == weight for weight in {w for row in self.rows for w in row.values()})

    def matrix(self) -> Floats:
        """Entries rounded to nearest: shape [outputs, inputs]."""
        found = np.zeros((len(self.rows), self.inputs))
        for o, row in enumerate(self.rows):
            for i, weight in row.items():
                found[o, i] = float(weight)
        return found

    def norm(self, norm: Norm) -> Upper:
        """Upper bound of the norm; l1 and linf are exact."""
        largest_row = max((sum((abs(w) for w in row.values()), Fraction(0)) for row in self.rows), default=Fraction(0))
        columns: dict[int, Fraction] = {}
        for row in self.rows:
            for i, weight in row.items():
                columns[i] = columns.get(i, Fraction(0)) + abs(weight)
        largest_column = max(columns.values(), default=Fraction(0))
        if norm != "l2":
            return Upper(largest_column if norm == "l1" else largest_row)
        if sum(len(row) for row in self.rows) == len(columns):  # no input is read twice: rows are orthogonal
            return Upper(max((sum((w * w for w in row.values()), Fraction(0)) for row in self.rows), default=Fraction(0))).sqrt()
        mixed = Upper(largest_row * largest_column).sqrt()
        if max(self.inputs, len(self.rows)) > _SIDE:
            return mixed
        verified = dense_norm(self.matrix(), "l2", 1e-12).upper
        # |A - fl(A)| <= 2^-53 |A| entrywise, hence in norm at most 2^-53 times the norm of |A|.
        return min(mixed, verified if self.is_exact else verified + Upper(2.0**-53) * mixed)


def axis_matrix(axis: Axis, counts: Sequence[int], at: int = 0) -> AxisMatrix:
    """Averages over the windows of one image axis: output o weighs its taps ``1/counts[o]``. ``at``: axis of the tensor."""
    rows: list[Mapping[int, Fraction]] = []
    for o, count in enumerate(counts):
        taps = [axis.stride * o + axis.offset(tap) for tap in range(axis.kernel)]
        rows.append({i: Fraction(1, count) for i in taps if 0 <= i < axis.image})
    return AxisMatrix(at, axis.image, tuple(rows))


def average_gain(matrices: Sequence[AxisMatrix], norm: Norm) -> Gain:
    """Product of the norms of the axes."""
    slope = ONE
    for matrix in matrices:
        slope = slope * matrix.norm(norm)
    return Finite(slope, method="Kronecker product of axis matrices", evidence={"axes": [m.norm(norm).decimal(17) for m in matrices]})


def average_operator(matrices: Sequence[AxisMatrix], shape: tuple[int, ...]) -> LinearOperator:
    """The map in doubles, with the relative error of entries that had to be rounded."""
    error = 0.0 if all(matrix.is_exact for matrix in matrices) else 2.0**-53
    return Kronecker([(matrix.axis, matrix.matrix()) for matrix in matrices], shape, error)


def reduction_operator(shape: tuple[int, ...], out: tuple[int, ...], axes: tuple[int, ...], *, mean: bool) -> LinearOperator:
    """Sum or mean over ``axes``: all-ones rows, ``1/k`` in one of them; without the reduced axes if ``out`` lacks them."""
    k = math.prod(shape[axis] for axis in axes)
    entries = [np.float64(1.0) for _ in axes]
    if mean and entries:
        entries[0] = np.float64(1.0 / k)
    error = 0.0 if not mean or k & (k - 1) == 0 else 2.0**-53
    rows = [(axis, np.broadcast_to(entry, (1, shape[axis]))) for axis, entry in zip(axes, entries, strict=True)]
    operator = Kronecker(rows, shape, error)
    return operator if operator.out_shape == out else compose([operator, Permutation(operator.out_shape, out)])


def reduced_mean(k: int, norm: Norm) -> Upper:
    """Gain of the mean of k elements: ``1/k, 1/sqrt k, 1``."""
    if norm == "linf":
        return ONE
    return Upper(Fraction(1, k)) if norm == "l1" else Upper(Fraction(1, k)).sqrt()
