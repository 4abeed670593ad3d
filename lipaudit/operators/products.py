"""Products of many elements of one tensor: Det and CumProd. Their slopes grow with the input, so a range is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.range import Range, reals, widen

__all__ = ["CumProd", "Det"]

Floats = NDArray[np.float64]

# Longer axes have no matrix.
_SIDE = 2048


class Det(Rule):
    """The gradient is the cofactor matrix C; matrices of a batch are independent.

    l2: ``|C|_F <= sqrt(n) (|A|_F^2 / n)^((n - 1)/2)`` (singular values; Maclaurin). l1: the largest cofactor, at most the product of
    the n - 1 largest rows of A (Hadamard). linf: ``sum |C| <= n |C|_F``, and ``sum |a|`` for n = 2.
    """

    def _rows(self, x: Range) -> tuple[Upper, list[Upper]]:
        """Frobenius norm, and norms of the rows, the largest first (over the batch)."""
        n = x.shape[-1]
        sizes = np.broadcast_to(x.magnitudes(), x.shape).reshape(-1, n, n)
        lifted = np.where((sizes > 0) & (sizes < 1e-150), 1e-150, sizes)
        with np.errstate(over="ignore"):
            squares = np.sum(lifted * lifted, axis=2)
            total = Upper(widen(float(np.max(squares.sum(axis=1))), n * n + 1)).sqrt()
            ordered = -np.sort(-squares, axis=1)
        rows = [Upper(widen(float(value), n + 1)).sqrt() for value in ordered.max(axis=0)]
        return total, rows

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """``|det A| <= prod |row|`` (Hadamard)."""
        x = xs[0]
        if x is None or x.size == 0 or not x.is_bounded:
            return (reals(site.out_shape()),)
        top = ONE
        for row in self._rows(x)[1]:
            top = top * row
        end = np.asarray(float(top))
        return (Range(site.out_shape(), -end, end),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        x = xs[0]
        assert x is not None
        n = x.shape[-1] if x.shape else 0
        if x.size == 0:
            return Finite(ZERO, method="empty")
        if n == 1:
            return Finite(ONE, method="the element itself")
        if not x.is_bounded:
            return Unbounded(f"a determinant of {n} x {n} elements that are not bounded on the domain")
        frobenius, rows = self._rows(x)
        power = frobenius ** (n - 1)
        gradient = (Upper(n) * power * power * Upper(f"1/{n}") ** (n - 1)).sqrt()
        if norm == "l2":
            return Finite(gradient, method="norm of the cofactors")
        if norm == "linf":
            slope = Upper(n) * gradient
            if n == 2:
                sums = np.broadcast_to(x.magnitudes(), x.shape).reshape(-1, 4).sum(axis=1)
                slope = min(slope, Upper(widen(float(np.max(sums)), 5)))
            return Finite(slope, method="sum of the cofactors")
        largest = ONE
        for row in rows[: n - 1]:
            largest = largest * row
        if n == 2:
            largest = min(largest, Upper(x.magnitude()))
        return Finite(largest, method="largest cofactor")


class CumProd(Rule):
    """Running products along an axis: ``|dy_i/dx_j| <= J_ij = prod of |x_l|, l != j, over the factors of y_i``; the norm of J.

    The largest ``|x_l|`` over all other axes is used for each l.
    """

    def _axis(self, site: Site) -> int | None:
        constant = site.constant(1)
        return None if constant is None else int(np.asarray(constant.array()).ravel()[0]) % len(site.shape(0))

    def _sizes(self, site: Site, x: Range, axis: int) -> Floats:
        """Largest magnitude at each place of the axis, in the order of multiplication."""
        full = np.moveaxis(np.broadcast_to(x.magnitudes(), x.shape), axis, 0).reshape(x.shape[axis], -1)
        sizes = full.max(axis=1)
        return sizes[::-1] if site.attr("reverse", 0) else sizes

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Between plus and minus the products of the magnitudes; not below 0 for non-negative factors."""
        x, axis, shape = xs[0], self._axis(site), site.out_shape()
        if x is None or axis is None or x.size == 0 or not x.is_bounded:
            return (reals(shape),)
        n = x.shape[axis]
        with np.errstate(over="ignore"):
            products = np.cumprod(self._sizes(site, x, axis)) * (1 + (n + 4) * 2.0**-52) + 1e-300
        top = max(float(np.max(products)), 1.0 if site.attr("exclusive", 0) else 0.0)
        low = 0.0 if bool(np.all(x.lo >= 0)) else -top
        return (Range(shape, np.asarray(low), np.asarray(top), integral=x.integral and top < 2.0**53),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        x, axis = xs[0], self._axis(site)
        if i or axis is None:
            return Unknown("the axis depends on the source" if i else "the axis is not constant")
        assert x is not None
        n = x.shape[axis]
        if x.size == 0 or (n == 1 and site.attr("exclusive", 0)):
            return Finite(ZERO, method="no factor")
        if n > _SIDE:
            return Unknown("the axis is too long for a matrix")
        sizes = self._sizes(site, x, axis)
        if site.attr("exclusive", 0):
            sizes = sizes[:-1]  # the first output is 1 and the last factor is never used
        if len(sizes) > 1 and not np.all(np.isfinite(sizes)):
            return Unbounded("a product of elements that are not bounded on the domain")
        matrix = _gradients(sizes)
        if not np.all(np.isfinite(matrix)):
            return Unbounded("a product of so many elements overflows")
        return Finite(dense_norm(matrix, norm).upper, method="norm of the largest gradients")


def _gradients(sizes: Floats) -> Floats:
    """J, rounded up: row i, column j <= i: the product of the sizes of 0..i without j."""
    n = len(sizes)
    matrix = np.zeros((n, n))
    with np.errstate(over="ignore"):
        before = np.concatenate([[1.0], np.cumprod(sizes[:-1])])
        for j in range(n):
            after = np.concatenate([[1.0], np.cumprod(sizes[j + 1 :])])
            matrix[j:, j] = before[j] * after
        if np.all(sizes == 1):
            return matrix
        raised = np.nextafter(matrix * (1 + (n + 4) * 2.0**-52) + 1e-300, np.inf)
        return np.where(matrix > 0, raised, np.tri(n) * 1e-300)
