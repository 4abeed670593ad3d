"""MatMul and Gemm: with a constant operand one linear map, with two moving operands bilinear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import uniform_value
from lipaudit.bounds.linear import Dense
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ZERO, Norm, Upper, repeat_factor
from lipaudit.graph.ir import Constant
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.interval import Interval
from lipaudit.operators.linear import LinearRule, constant_norm, matrix_norm, norm_gain, stored_values, weight_array
from lipaudit.operators.parts import Part, product
from lipaudit.operators.range import Range, reals, widen

__all__ = ["Gemm", "MatMul"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Rows of a weight that are converted in one piece: bounds the memory, not the result.
_ROWS = 2048


@dataclass(frozen=True, slots=True)
class _Operand:
    """One factor as matrices: shape [.., rows, columns], its range, and whether each matrix is read once per output batch."""

    shape: tuple[int, ...]
    range: Range

    @property
    def batch(self) -> tuple[int, ...]:
        """Leading axes."""
        return self.shape[:-2]

    def magnitudes(self) -> Floats:
        """Largest ``|x|`` per element at full shape (a view where they are uniform)."""
        values = self.range.magnitudes()
        return np.broadcast_to(values.reshape(_stretch(values.shape, self.range.shape, self.shape)) if values.ndim else values, self.shape)


def _stretch(array: tuple[int, ...], own: tuple[int, ...], matrix: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an array that broadcasts to ``own`` once ``own`` was turned into ``matrix`` by adding an axis of length 1."""
    full = (1,) * (len(own) - len(array)) + array
    if len(own) == 1:
        return (1, *full) if matrix[-1] == own[0] and matrix[-2] == 1 else (*full, 1)
    return full


class _Product(LinearRule):
    """What MatMul and Gemm share: two factors ``X [.., n, k]`` and ``Y [.., k, m]``.

    ``|XY - X'Y'|`` by midpoints (``lipaudit.operators.arithmetic.Mul``). Left multiplication sees the matrix norm, right
    multiplication that of the transpose: gain of X is ``|Y|_2``, the largest row sum (l1), the largest column sum (linf) of Y; of Y
    it is ``|X|_2``, the largest column sum (l1), the largest row sum (linf) of X. An operand that is shared by B batches sees the
    other one stacked along its kept axis: ``sqrt(sum |Y_b|_2^2)``, sums of row sums, the largest column sum.
    """

    def _bilinear(self, site: Site, i: int, norm: Norm, own: _Operand, other: _Operand, out_batch: tuple[int, ...]) -> Gain:
        sizes = other.magnitudes()
        if sizes.size == 0 or math.prod(own.shape) == 0:
            return Finite(ZERO, method="empty")
        with np.errstate(over="ignore", invalid="ignore"):
            by_row, by_column = sizes.sum(axis=-1).max(axis=-1), sizes.sum(axis=-2).max(axis=-1)
            rows, columns = other.shape[-2:]
            terms = rows * columns + 4
            if norm == "l2":
                frobenius = _frobenius(sizes)
                mixed = np.sqrt(by_row * by_column)
                found = np.minimum(frobenius, mixed)
                if other.shape[-1] == (other.range.shape or (1,))[-1]:
                    found = np.minimum(found, math.sqrt(rows) * (1 + 2.0**-50) * other.range.row_norm())
            elif norm == "l1":
                # X meets Y from the right (rows of Y), Y meets X from the left (columns of X).
                found = by_row if i == 0 else by_column
            else:
                found = by_column if i == 0 else by_row
        found = _over_copies(np.broadcast_to(found, other.batch), own.batch, out_batch, norm)
        if not math.isfinite(found):
            name = site.node.inputs[1 - i]
            reason = f"product with {name!r}, which is not bounded on the domain"
            return Unbounded(reason) if site.moving[1 - i] else Unknown(f"{name!r} is not constant and not bounded")
        return Finite(Upper(widen(found, terms)), method="norm of the other factor on its range")

    def _product_range(self, x: _Operand, y: _Operand, out: tuple[int, ...], shape: tuple[int, ...]) -> Range:
        """Midpoint and radius of each element; a row of XY is at most ``row(X) |Y|_2``."""
        k, m = x.shape[-1], y.shape[-1]
        row = math.inf
        if shape and shape[-1] == m and x.shape[-1] == (x.range.shape or (1,))[-1]:
            sizes = y.magnitudes()
            with np.errstate(over="ignore", invalid="ignore"):
                frobenius = _frobenius(sizes).max(initial=0.0)
                by_row, by_column = sizes.sum(axis=-1).max(axis=-1, initial=0.0), sizes.sum(axis=-2).max(axis=-1, initial=0.0)
                mixed = np.sqrt(by_row * by_column).max(initial=0.0)
                norm = min(float(frobenius), float(mixed))
            norm = widen(norm, k * m + 4)
            row = 0.0 if norm == 0 else widen(x.range.row_norm() * norm, 2)
        if not (x.range.is_bounded and y.range.is_bounded):
            return Range(shape, np.asarray(-row), np.asarray(row), row=row) if math.isfinite(row) else reals(shape)
        if x.range.lo.ndim == x.range.hi.ndim == y.range.lo.ndim == y.range.hi.ndim == 0:
            one = interval.multiply((x.range.lo, x.range.hi), (y.range.lo, y.range.hi))
            lo, hi = (np.asarray(float(end) * k * (1 + np.sign(float(end)) * s * 2.0**-50)) for end, s in zip(one, (-1, 1), strict=True))
            return Range(shape, np.maximum(lo, -row), np.minimum(hi, row), row=row)
        (xc, xr), (yc, yr) = _centred(x), _centred(y)
        with np.errstate(over="ignore", invalid="ignore"):
            centre = xc @ yc
            radius = np.abs(xc) @ yr + xr @ (np.abs(yc) + yr)
            rounding = ((k + 8) * 2.0**-52) * (np.abs(xc) @ np.abs(yc) + radius)
            radius = radius + rounding + k * 2.0**-1020
        lo, hi = (np.broadcast_to(end, out).reshape(shape) for end in (centre - radius, centre + radius))
        lo, hi = np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi)
        return Range(shape, np.maximum(lo, -row), np.minimum(hi, row), row=row)


def _frobenius(sizes: Floats) -> Floats:
    """Frobenius norm of each matrix; elements too small to be squared are raised first."""
    raised = np.maximum(sizes, 1e-150) if np.any((sizes > 0) & (sizes < 1e-150)) else sizes
    return np.sqrt((raised * raised).sum(axis=(-2, -1)))


def _over_copies(per_matrix: Floats, own: tuple[int, ...], out: tuple[int, ...], norm: Norm) -> float:
    """From one number per matrix of the other factor to one for all: combine over the batch axes along which own is copied.

    ``per_matrix`` has the batch shape of the other factor.
    """
    full = np.broadcast_to(per_matrix, out)
    aligned = (1,) * (len(out) - len(own)) + own
    copied = tuple(axis for axis, (a, b) in enumerate(zip(aligned, out, strict=True)) if a != b)
    if full.size == 0:
        return 0.0
    if norm == "linf" or not copied:
        return float(full.max())
    with np.errstate(over="ignore"):
        if norm == "l1":
            return widen(float(full.sum(axis=copied).max()), full.size)
        return widen(float(np.sqrt((full * full).sum(axis=copied)).max()), full.size)


def _centred(operand: _Operand) -> tuple[Floats, Floats]:
    lo, hi = (np.broadcast_to(end, operand.range.shape).reshape(operand.shape) for end in (operand.range.lo, operand.range.hi))
    centre = lo / 2 + hi / 2
    radius = np.maximum(hi - centre, centre - lo)
    return centre, np.where(radius > 0, np.nextafter(radius * (1 + 2.0**-51), np.inf), 0.0)


class MatMul(_Product):
    """NumPy's matrix product; 1-D operands get an axis of length 1 that is dropped again."""

    def operator(self, site: Site) -> LinearOperator | str:
        """The linear map, or why there is none."""
        i = next((j for j, moves in enumerate(site.moving) if moves), 0)
        constant = site.constant(1 - i)
        if constant is None:
            return f"{site.node.inputs[1 - i]!r} is not constant"
        return dense(constant, site.shape(i), site.out_shape(), "right" if i == 0 else "left")

    def _operands(self, site: Site, xs: Sequence[Range | None]) -> tuple[_Operand, _Operand, tuple[int, ...]]:
        x, y = xs[0], xs[1]
        assert x is not None and y is not None
        a = (1, *x.shape) if len(x.shape) == 1 else x.shape
        b = (*y.shape, 1) if len(y.shape) == 1 else y.shape
        return _Operand(a, x), _Operand(b, y), np.broadcast_shapes(a[:-2], b[:-2])

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Through the constant operand as a linear map, or by midpoint and radius."""
        i = 0 if site.constant(1) is not None else 1
        x = xs[i]
        if site.constant(1 - i) is not None and x is not None:
            return (self._constant_range(site, i, x),)
        a, b, batch = self._operands(site, xs)
        return (self._product_range(a, b, (*batch, a.shape[-2], b.shape[-1]), site.out_shape()),)

    def _constant_range(self, site: Site, i: int, x: Range) -> Range:
        constant = site.constant(1 - i)
        assert constant is not None
        operator = dense(constant, site.shape(i), site.out_shape(), "right" if i == 0 else "left")
        if isinstance(operator, str):
            return reals(site.out_shape())
        found = self.image(site, operator, x)
        return by_rows(found, x, constant, stored_values(constant)) if i == 0 and len(constant.shape) == 2 else found

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        constant = site.constant(1 - i)
        if constant is not None:
            operator = dense(constant, site.shape(i), site.out_shape(), "right" if i == 0 else "left")
            if not isinstance(operator, str):
                plain = len(constant.shape) == 2 and math.prod(site.shape(i)) > 0
                known = _of_matrix(constant, i, norm) if plain else constant_norm(constant, operator, norm)
                return norm_gain(known, norm, site.node.inputs[1 - i], site.node.name)
        a, b, batch = self._operands(site, xs)
        own, other = (a, b) if i == 0 else (b, a)
        return self._bilinear(site, i, norm, own, other, batch)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The stored operand."""
        constant = next((found for found in site.constants[:2] if found is not None), None)
        return () if constant is None or not constant.shape else product(constant, self.operator(site))

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        constant = site.constant(1 - i)
        if constant is None:
            return None
        operator = dense(constant, site.shape(i), site.out_shape(), "right" if i == 0 else "left")
        return None if isinstance(operator, str) else operator


def dense(constant: Constant, shape: tuple[int, ...], out: tuple[int, ...], side: str) -> LinearOperator | str:
    """``x @ W`` or ``W @ x`` as an operator; a sentence if the shapes do not fit."""
    try:
        operator = Dense(stored_values(constant), shape, side="right" if side == "right" else "left")
    except ValueError as error:
        return str(error)
    return operator if operator.out_shape == out else "the output shape does not follow from the operands"


def _of_matrix(constant: Constant, i: int, norm: Norm, *, transposed: bool = False) -> VerifiedNorm:
    """Norm of ``x -> x W`` (i = 0: the transpose of W acts on rows) or ``x -> W x`` (i = 1)."""
    return matrix_norm(constant, norm, transposed=transposed != (i == 0))


def by_rows(found: Range, x: Range, constant: Constant, weight: Array, *, transposed: bool = False, factor: float = 1.0) -> Range:
    """Add what the norms of rows say: ``row(xW) <= row(x) |W|_2``, ``|xW|_j <= row(x) |W_j|_2``, ``diameter <= D |W|_2``.

    ``weight`` is the stored matrix (or its transpose) times ``factor`` >= 0.
    """
    known = min(x.row, x.diameter)
    if not math.isfinite(known):
        return found
    each = _column_norms(weight)
    verified = _of_matrix(constant, 0, "l2", transposed=transposed).upper
    if not verified.is_finite or not np.all(np.isfinite(each)):
        return found
    size = float(verified * Upper(factor))
    result = found.replace(diameter=_times(x.diameter, size))
    if not math.isfinite(x.row):
        return result
    bound = each * x.row * (1 + 2.0**-50)
    return result.replace(lo=np.maximum(found.lo, -bound), hi=np.minimum(found.hi, bound), row=_times(x.row, size))


def _times(bound: float, factor: float) -> float:
    """Upper bound of a product; 0 times infinity is 0."""
    return 0.0 if bound == 0 or factor == 0 else widen(bound * factor, 2)


def _column_norms(weight: Array) -> Floats:
    """Upper bounds of the l2 norms of the columns, read in pieces."""
    if uniform_value(weight) is not None:
        return np.asarray(widen(abs(float(weight.flat[0])) * math.sqrt(weight.shape[0]), 4))
    total = np.zeros(weight.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, weight.shape[0], _ROWS):
            piece = np.asarray(weight[start : start + _ROWS], dtype=np.float64)
            total += np.sum(piece * piece, axis=0)
        return np.sqrt(total) * (1 + (weight.shape[0] + 8) * 2.0**-52) + 1e-150


class Gemm(_Product):
    """``alpha A' B' + beta C`` with optional transposes; C is broadcast to [n, m]. beta = 0 makes C irrelevant."""

    weight = 1

    def _stored(self, site: Site, i: int) -> Array | str:
        """Constant operand i, transposed as asked."""
        constant = site.constant(i)
        if constant is None:
            return f"{site.node.inputs[i]!r} is not constant"
        weight = weight_array(constant)
        if weight.ndim != 2:
            return "Gemm needs matrices"
        if site.attr("transA" if i == 0 else "transB", 0):
            weight = weight.T
        return weight

    def _matrix(self, site: Site, i: int) -> Array | str:
        """Constant operand i, transposed as asked and times alpha where that is exact in doubles."""
        constant, weight = site.constant(i), self._stored(site, i)
        alpha = float(site.attr("alpha", 1.0))
        if alpha == 1.0 or constant is None or isinstance(weight, str):
            return weight
        if constant.fill is not None:
            value = float(constant.fill) * alpha
            exact = np.float32(constant.fill) == constant.fill and np.float32(alpha) == alpha
            return np.broadcast_to(np.float64(value), weight.shape) if exact else "alpha times the weight is not exact"
        wide = constant.dtype in ("float64", "int64", "uint64", "int32", "uint32")
        if abs(math.frexp(alpha)[0]) == 0.5 or (not wide and float(np.float32(alpha)) == alpha):
            return np.asarray(weight, dtype=np.float64) * alpha  # 24 + 24 bits fit in 53
        return "alpha times the weight is not exact"

    def _side(self, site: Site, i: int) -> LinearOperator | str:
        """The map of operand i, the other one constant."""
        matrix = self._matrix(site, 1 - i)
        if isinstance(matrix, str):
            return matrix
        if site.attr("transA" if i == 0 else "transB", 0):
            return "the moving operand is transposed"
        return Dense(matrix, site.shape(i), side="right" if i == 0 else "left")

    def operator(self, site: Site) -> LinearOperator | str:
        """The linear map, or why there is none."""
        return self._side(site, 1 if site.moving[1] and not site.moving[0] else 0)

    def _operands(self, site: Site, xs: Sequence[Range | None]) -> tuple[_Operand, _Operand]:
        found: list[_Operand] = []
        for i, name in ((0, "transA"), (1, "transB")):
            x = xs[i]
            assert x is not None
            if site.attr(name, 0):
                lo, hi = (np.broadcast_to(end, x.shape).T if end.ndim else end for end in (x.lo, x.hi))
                x = Range((x.shape[1], x.shape[0]), lo, hi)
            found.append(_Operand(x.shape, x))
        return found[0], found[1]

    def bias(self, site: Site, xs: Sequence[Range | None]) -> Interval | None:
        """The constant term."""
        given, beta = xs[2] if len(xs) > 2 else None, float(site.attr("beta", 1.0))
        if given is None or beta == 0:
            return None
        return interval.multiply((given.lo, given.hi), (np.asarray(beta), np.asarray(beta)))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Product, times alpha, plus beta C."""
        shape = site.out_shape()
        i = 0 if site.constant(1) is not None else 1
        x, operator = xs[i], self._side(site, i)
        if x is not None and not isinstance(operator, str):
            found = self.image(site, operator, x)
            matrix, constant = self._matrix(site, 1 - i), site.constant(1)
            if i == 0 and not isinstance(matrix, str) and constant is not None:
                alpha = abs(float(site.attr("alpha", 1.0)))
                found = by_rows(found, x, constant, matrix, transposed=bool(site.attr("transB", 0)), factor=alpha)
        else:
            a, b = self._operands(site, xs)
            found = self._product_range(a, b, shape, shape)
            alpha = float(site.attr("alpha", 1.0))
            if alpha != 1.0:
                lo, hi = interval.multiply((found.lo, found.hi), (np.asarray(alpha), np.asarray(alpha)))
                found = Range(shape, lo, hi, row=widen(abs(alpha) * found.row, 2) if alpha and found.row else 0.0)
        bias = self.bias(site, xs)
        if bias is None:
            return (found,)
        lo, hi = interval.add((found.lo, found.hi), bias)
        return (Range(shape, lo, hi, row=self._shifted(found, bias, site), diameter=math.inf),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        shape = site.out_shape()
        if i == 2:
            size = math.prod(site.shape(2))
            beta = Upper(abs(float(site.attr("beta", 1.0))))
            return Finite(beta * repeat_factor(math.prod(shape) // size if size else 0, norm), method="copies of C")
        alpha = Upper(abs(float(site.attr("alpha", 1.0))))
        matrix, constant = self._stored(site, 1 - i), site.constant(1 - i)
        if not isinstance(matrix, str):
            if math.prod(site.shape(i)) == 0 or constant is None:
                return Finite(ZERO, method="empty")
            known = _of_matrix(constant, i, norm, transposed=bool(site.attr("transB" if i == 0 else "transA", 0)))
            found = norm_gain(known, norm, site.node.inputs[1 - i], site.node.name)
        else:
            a, b = self._operands(site, xs)
            own, other = (a, b) if i == 0 else (b, a)
            found = self._bilinear(site, i, norm, own, other, ())
        return replace(found, slope=alpha * found.slope) if isinstance(found, Finite) else found

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The stored operand, times alpha."""
        at = next((i for i in (1, 0) if site.constant(i) is not None), None)
        constant = None if at is None else site.constant(at)
        if at is None or constant is None or len(constant.shape) != 2:
            return ()
        matrix = self._matrix(site, at)
        moved = bool(site.attr("transB" if at == 0 else "transA", 0))
        own = site.shape(1 - at)[::-1] if moved else site.shape(1 - at)
        operator = matrix if isinstance(matrix, str) else Dense(matrix, own, side="right" if at == 1 else "left")
        if float(site.attr("alpha", 1.0)) == 1.0:
            return product(constant, operator, transposed=bool(site.attr("transB" if at == 1 else "transA", 0)))
        return (Part(constant.name, "matrix", constant.shape, operator),)

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        if i > 1:
            return None
        found = self._side(site, i)
        return None if isinstance(found, str) or site.moving[1 - i] else found
