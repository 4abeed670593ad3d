"""Linear maps with quantised weights: the real rule with the dequantised weight, then the rounding of the output, if any."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.grid import grid_of
from lipaudit.operators.parts import Part, matrix
from lipaudit.operators.range import Range, reals

__all__ = [
    "ConvInteger", "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul", "quantised_range", "rounding", "scale_ends", "shifted",
    "shifted_reach",
]  # fmt: skip

Floats = NDArray[np.float64]
_INT32 = float(2**31 - 1)


def rounding(site: Site, norm: Norm) -> Upper:
    """Offset of the output's rounding: one gap per element; 0 for a real output."""
    out = site.outputs[0]
    grid = grid_of(out.dtype) if out is not None else None
    if grid is None:
        return ZERO
    return Upper(grid.gap) * repeat_factor(math.prod(site.out_shape()), norm)


def quantised_range(site: Site) -> Range:
    """All values of the output's type."""
    out = site.outputs[0]
    grid = grid_of(out.dtype) if out is not None else None
    if grid is None:
        return reals(site.out_shape())
    return Range(site.out_shape(), np.asarray(grid.lo), np.asarray(grid.hi), integral=grid.integral)


def scale_ends(site: Site, i: int) -> tuple[Lower, Upper] | Unknown:
    """Smallest and largest stored scale at input ``i`` (1 where it is omitted)."""
    if not site.has(i):
        return Lower(1), ONE
    constant = site.constant(i)
    if constant is None:
        return Unknown("a scale that is not a stored constant has no rule here")
    values = constant.float64()
    if values.size == 0 or not (np.all(values > 0) and np.all(np.isfinite(values))):
        return Unknown("a quantisation scale is not positive")
    return Lower(float(np.min(values))), Upper(float(np.max(values)))


def shifted(site: Site, xs: Sequence[Range | None], i: int, zero: int, axis_last: bool) -> Floats | Unknown | None:
    """Stored operand ``i`` minus its stored zero point, exact in float64, a fresh array; None if the operand is not stored."""
    constant = site.constant(i)
    if constant is None:
        return None
    values = constant.array().astype(np.float64)
    if not site.has(zero):
        return values
    stored = site.constant(zero)
    if stored is None:
        return Unknown("a zero point that is not a stored constant has no rule here")
    z = stored.float64()
    if z.size == 1:
        values -= z.reshape(())
        return values
    if z.ndim == 1:
        z = z if axis_last else z.reshape(-1, *((1,) * (values.ndim - 1)))
    try:
        values -= np.broadcast_to(z, values.shape)
        return values
    except ValueError:
        return Unknown(f"a zero point of shape {stored.shape} does not fit a weight of shape {constant.shape}")


def shifted_reach(site: Site, xs: Sequence[Range | None], i: int, zero: int) -> float:
    """Largest ``|operand - zero point|`` that the ranges allow."""
    x = xs[i] if i < len(xs) else None
    z = xs[zero] if zero < len(xs) else None
    if x is None:
        return math.inf
    lo, hi = float(np.min(x.lo, initial=0.0)), float(np.max(x.hi, initial=0.0))
    if z is None:
        return max(abs(lo), abs(hi))
    z_lo, z_hi = float(np.min(z.lo)), float(np.max(z.hi))
    return max(abs(lo - z_hi), abs(hi - z_lo), abs(lo - z_lo), abs(hi - z_hi))


def _product_norm(left: bool, other: Floats | float, shapes: tuple[tuple[int, ...], tuple[int, ...]], norm: Norm) -> Upper:
    """Gain of ``A @ B`` from A (``left``) or from B; ``other`` is the other operand, or a bound of its elements."""
    a, b = shapes
    if len(a) < 2 or len(b) < 2:
        a, b = ((1, *a) if len(a) < 2 else a), ((*b, 1) if len(b) < 2 else b)
    lead = np.broadcast_shapes(a[:-2], b[:-2])
    own = a[:-2] if left else b[:-2]
    copies = repeat_factor(math.prod(lead) // max(1, math.prod(own)), norm)
    if isinstance(other, (int, float)):
        # all elements at the bound: a -> a B is the matrix B' (N x K), b -> A b is A (M x K)
        rows, columns = (b[-1], b[-2]) if left else (a[-2], a[-1])
        size = Upper(rows) if norm == "l1" else Upper(columns) if norm == "linf" else Upper(rows * columns).sqrt()
        return copies * size * Upper(other)
    matrices = other.reshape(-1, *(b[-2:] if left else a[-2:]))
    found = [dense_norm(matrix.T if left else matrix, norm).upper for matrix in matrices]
    return copies * max(found, default=ZERO)


class MatMulInteger(Rule):
    """``(A - z_A) @ (B - z_B)`` in int32; inputs A, B, z_A, z_B."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """``K max|A - z_A| max|B - z_B|``."""
        top = self._largest(site, xs)
        return (Range(site.out_shape(), np.asarray(-top), np.asarray(top), integral=True),)

    def _largest(self, site: Site, xs: Sequence[Range | None]) -> float:
        return site.shape(0)[-1] * shifted_reach(site, xs, 0, 2) * shifted_reach(site, xs, 1, 3)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Norm of the other operand; a moving zero point moves its whole operand."""
        if self._largest(site, xs) > _INT32:
            return Unknown("the int32 sum may overflow on this domain")
        left = i in (0, 2)
        other = shifted(site, xs, 1, 3, True) if left else shifted(site, xs, 0, 2, False)
        if isinstance(other, Unknown) or other is None:
            other = float(shifted_reach(site, xs, 1, 3) if left else shifted_reach(site, xs, 0, 2))
        slope = _product_norm(left, other, (site.shape(0), site.shape(1)), norm)
        if i >= 2:
            slope = slope * repeat_factor(math.prod(site.shape(i - 2)) // max(1, math.prod(site.shape(i))), norm)
        return Finite(slope, method="norm of the shifted integer matrix") if slope.is_finite else Unbounded("both operands are unbounded")

    def parts(self, site: Site) -> tuple[Part, ...]:
        """``B - z_B`` where B is stored."""
        return _right_part(site, 1, shifted(site, (), 1, 3, True))


def _right_part(site: Site, at: int, values: Floats | Unknown | None) -> tuple[Part, ...]:
    """The stored right operand ``at`` of a product by its real values, [K, N]."""
    constant = site.constant(at)
    if constant is None or not isinstance(values, np.ndarray) or values.ndim != 2:
        return ()
    return (matrix(constant.name, constant.shape, values),)


def _kernel_part(site: Site, at: int, values: Floats | Unknown | None) -> tuple[Part, ...]:
    """The stored kernel ``at`` by its real values."""
    constant = site.constant(at)
    if constant is None or not isinstance(values, np.ndarray):
        return ()
    operator = _convolution(site, values, 0)
    return (Part(constant.name, "convolution", constant.shape, operator.reason if isinstance(operator, Unknown) else operator),)


def _convolution(site: Site, weight: Floats, x: int) -> Convolution | Unknown:
    """The convolution of a node with inputs ``[N, C, *spatial]`` at position ``x``."""
    image, outputs = site.shape(x)[2:], site.out_shape()[2:]
    rank = len(image)
    if not 1 <= rank <= 3:
        return Unknown(f"a convolution over {rank} axes has no rule")
    strides = tuple(int(s) for s in site.attr("strides", ()) or (1,) * rank)
    dilations = tuple(int(d) for d in site.attr("dilations", ()) or (1,) * rank)
    mode = str(site.attr("auto_pad", "NOTSET"))
    if mode in ("NOTSET", ""):
        flat = tuple(int(p) for p in site.attr("pads", ()) or (0,) * (2 * rank))
        pads = tuple((flat[k], flat[k + rank]) for k in range(rank))
    else:
        pads = tuple(
            _same_pads(n, o, k, s, d, mode) for n, o, k, s, d in zip(image, outputs, weight.shape[2:], strides, dilations, strict=True)
        )
    groups = int(site.attr("group", 1))
    try:
        return Convolution(weight, image, strides=strides, dilations=dilations, pads=pads, groups=groups)
    except ValueError as error:
        return Unknown(str(error))


def _same_pads(n: int, o: int, k: int, s: int, d: int, mode: str) -> tuple[int, int]:
    if mode == "VALID":
        return 0, 0
    total = max(0, (o - 1) * s + (k - 1) * d + 1 - n)
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


class ConvInteger(Rule):
    """``conv(x - z_x, w - z_w)`` in int32; inputs x, w, z_x, z_w."""

    def _largest(self, site: Site, xs: Sequence[Range | None]) -> float:
        return math.prod(site.shape(1)[1:]) * shifted_reach(site, xs, 0, 2) * shifted_reach(site, xs, 1, 3)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Taps times the largest product."""
        top = self._largest(site, xs)
        return (Range(site.out_shape(), np.asarray(-top), np.asarray(top), integral=True),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Verified norm of the shifted integer kernel."""
        if i not in (0, 2):
            return Unknown("a moving kernel of ConvInteger has no rule")
        if self._largest(site, xs) > _INT32:
            return Unknown("the int32 sum may overflow on this domain")
        weight = shifted(site, xs, 1, 3, False)
        if not isinstance(weight, np.ndarray):
            return weight if weight is not None else Unknown("a moving kernel of ConvInteger has no rule")
        operator = _convolution(site, weight, 0)
        if isinstance(operator, Unknown):
            return operator
        found = operator.norm(norm)
        copies = repeat_factor(math.prod(site.shape(0)) // max(1, math.prod(site.shape(2))), norm) if i == 2 else ONE
        return Finite(copies * found.upper, method=found.method, evidence=found.evidence)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """``w - z_w``."""
        return _kernel_part(site, 1, shifted(site, (), 1, 3, False))


class QLinearConv(Rule):
    """Quantised convolution; inputs x, s_x, z_x, w, s_w, z_w, s_y, z_y, bias. Weight scales may be per output channel."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """All values of the output's type."""
        return (quantised_range(site),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """``||W|| s_x / s_y`` with the dequantised W, and one step of the output per element."""
        if i != 0:
            return Unknown("moving weights or scales of QLinearConv have no rule")
        weight, s_x, s_w, s_y = shifted(site, xs, 3, 5, False), scale_ends(site, 1), site.constant(4), scale_ends(site, 6)
        for part in (weight, s_x, s_y, scale_ends(site, 4)):
            if isinstance(part, Unknown):
                return part
        if weight is None or s_w is None or isinstance(weight, Unknown) or isinstance(s_x, Unknown) or isinstance(s_y, Unknown):
            return Unknown("moving weights of QLinearConv have no rule")
        scales = s_w.float64().reshape(-1, *((1,) * (weight.ndim - 1)))  # 9 bits times 24 bits: exact in float64
        operator = _convolution(site, weight * scales, 0)
        if isinstance(operator, Unknown):
            return operator
        found = operator.norm(norm)
        return Finite(found.upper * s_x[1] / s_y[0], rounding(site, norm), method=found.method, evidence=found.evidence)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The dequantised kernel; the scales of input and output are no part of it."""
        weight, scale = shifted(site, (), 3, 5, False), site.constant(4)
        if not isinstance(weight, np.ndarray) or scale is None:
            return ()
        return _kernel_part(site, 3, weight * scale.float64().reshape(-1, *((1,) * (weight.ndim - 1))))


class QLinearMatMul(Rule):
    """Quantised product; inputs a, s_a, z_a, b, s_b, z_b, s_y, z_y."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """All values of the output's type."""
        return (quantised_range(site),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Norm of the other dequantised operand times own scale over s_y, and one step per element."""
        if i not in (0, 3):
            return Unknown("moving scales of QLinearMatMul have no rule")
        left = i == 0
        own, theirs, s_y = scale_ends(site, i + 1), scale_ends(site, 4 if left else 1), scale_ends(site, 6)
        if isinstance(own, Unknown) or isinstance(theirs, Unknown) or isinstance(s_y, Unknown):
            return next(part for part in (own, theirs, s_y) if isinstance(part, Unknown))
        at, scale_at, zero_at = (3, 4, 5) if left else (0, 1, 2)
        other = shifted(site, xs, at, zero_at, left)
        shapes = (site.shape(0), site.shape(3))
        if isinstance(other, np.ndarray):
            scales = site.constant(scale_at)
            assert scales is not None
            values = scales.float64()
            if values.size > 1:
                values = values if left or values.ndim > 1 else values.reshape(-1, 1)
                other, factor = other * np.broadcast_to(values, other.shape), ONE
            else:
                factor = theirs[1]
            slope = _product_norm(left, other, shapes, norm) * factor
        else:
            slope = _product_norm(left, float(shifted_reach(site, xs, at, zero_at)), shapes, norm) * theirs[1]
        if not slope.is_finite:
            return Unbounded("both operands are unbounded")
        return Finite(slope * own[1] / s_y[0], rounding(site, norm), method="norm of the dequantised matrix")

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The dequantised B; the scales of A and of the output are no part of it."""
        weight, scale = shifted(site, (), 3, 5, True), site.constant(4)
        if not isinstance(weight, np.ndarray) or scale is None or np.broadcast_shapes(weight.shape, scale.shape) != weight.shape:
            return ()
        return _right_part(site, 3, weight * scale.float64())


class QGemm(Rule):
    """``alpha (A - z_A) s_A (B - z_B) s_B + C``; inputs A, s_A, z_A, B, s_B, z_B, C, s_y, z_y; a real output without s_y."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """All values of the output's type."""
        return (quantised_range(site),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """With a stored B."""
        s_a, s_b, s_y = scale_ends(site, 1), scale_ends(site, 4), scale_ends(site, 7)
        if isinstance(s_a, Unknown) or isinstance(s_b, Unknown) or isinstance(s_y, Unknown):
            return next(part for part in (s_a, s_b, s_y) if isinstance(part, Unknown))
        transposed = bool(site.attr("transB", 0))
        weight, scales = shifted(site, xs, 3, 5, not transposed), site.constant(4)
        if i != 0 or not isinstance(weight, np.ndarray) or scales is None:
            return Unknown("QGemm has a rule for a moving A and stored B only")
        values = scales.float64()
        if values.size > 1:
            weight = weight * (values.reshape(-1, 1) if transposed else values)
            factor = ONE
        else:
            factor = s_b[1]
        matrix = weight if transposed else np.ascontiguousarray(weight.T)
        alpha = Upper(abs(float(site.attr("alpha", 1.0))))
        slope = dense_norm(matrix, norm).upper * factor * alpha * s_a[1] / s_y[0]
        return Finite(slope, rounding(site, norm), method="norm of the dequantised matrix")

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The dequantised B; alpha and the scales of A and of the output are no part of it."""
        transposed = bool(site.attr("transB", 0))
        weight, scales = shifted(site, (), 3, 5, not transposed), site.constant(4)
        if not isinstance(weight, np.ndarray) or scales is None:
            return ()
        steps = scales.float64()
        real = weight * (steps.reshape(-1, 1) if transposed and steps.size > 1 else steps)
        return _right_part(site, 3, real.T if transposed else real)
