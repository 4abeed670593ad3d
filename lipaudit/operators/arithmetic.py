"""Sums and products of two or more tensors: Add, Sub, Sum, Mean, Mul, Div, Mod."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Diagonal, Permutation
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ZERO, Norm, Upper
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.broadcast import (
    add_flows,
    contributions,
    copied_axes,
    copy_factor,
    occurrences,
    operand,
    operand_diameter,
    operand_rows,
    precise,
    same,
)  # fmt: skip
from lipaudit.operators.flow import Flow
from lipaudit.operators.parts import Part
from lipaudit.operators.range import Range, widen

__all__ = ["Div", "Mod", "Mul", "Sums", "group_norm"]

Floats = NDArray[np.float64]


class Elementwise(Rule):
    """Shared by all operators here: parts survive, contributions of the operands add."""

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        return (add_flows(contributions(site, flows, gains, norm), norm),)


class Sums(Elementwise):
    """Add, Sub, Sum, Mean: ``y = sum_i c_i x_i`` after broadcasting (c = 1; 1, -1; 1..1; 1/n..1/n).

    Gain of x_i is ``|c_i| k**(1/p)``, k the copies that broadcasting makes: exact. Equal names are one variable whose
    coefficients add: Sub(x, x) = 0, Add(x, x) = 2x; the first occurrence carries the whole gain.
    """

    def _coefficient(self, site: Site, i: int) -> Fraction:
        names = site.node.inputs
        if site.node.op == "Mean":
            return Fraction(occurrences(site)[names[i]][1], len(names))
        if site.node.op == "Sub":
            return Fraction(sum(-1 if j else 1 for j, name in enumerate(names) if name == names[i]))
        return Fraction(occurrences(site)[names[i]][1])

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Interval sum; rows add, diameters add (a term that is the same for all rows drops out)."""
        used = [i for i, x in enumerate(xs) if x is not None and same(site, i) == i and self._coefficient(site, i) != 0]
        terms = [(i, precise(site, i, xs[i])) for i in used]
        mean = Fraction(1, len(site.node.inputs)) if site.node.op == "Mean" else Fraction(1)
        shape = site.out_shape()
        sum_: interval.Interval = (np.asarray(0.0), np.asarray(0.0))
        row = diameter = 0.0
        zero_mean = integral = True
        for i, x in terms:
            coefficient = self._coefficient(site, i) / mean  # a small integer
            term = operand(site, i, x)
            if coefficient < 0:
                term = interval.negative(term)
            if abs(coefficient) != 1:
                factor = np.asarray(abs(float(coefficient)))
                term = interval.multiply(term, (factor, factor))
            sum_ = interval.add(sum_, term)
            size = abs(float(coefficient))
            row += size * operand_rows(site, i, x)
            spread = operand_diameter(site, i, x)
            diameter += size * spread if spread > 0 else 0.0
            zero_mean = zero_mean and x.zero_mean and bool(shape) and x.shape[-1:] == shape[-1:]
            integral = integral and x.integral and mean == 1
        if mean != 1:
            divisor = np.asarray(float(len(site.node.inputs)))
            sum_ = interval.divide(sum_, (divisor, divisor))
            row, diameter = row * (float(mean) * (1 + 2.0**-52)), diameter * (float(mean) * (1 + 2.0**-52))
        count = len(terms) + 2
        return (Range(shape, *sum_, row=widen(row, count), diameter=widen(diameter, count), zero_mean=zero_mean, integral=integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        coefficient = abs(self._coefficient(site, i)) if same(site, i) == i else Fraction(0)
        return Finite(Upper(coefficient) * copy_factor(site, i, norm), method="coefficient times copies")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        return self._summand(site, i) if sum(site.moving) == 1 else None

    def summands(self, site: Site) -> Mapping[int, LinearOperator] | None:
        """One multiple of each variable."""
        found = {i: self._summand(site, i) for i, moves in enumerate(site.moving) if moves and same(site, i) == i}
        kept = {i: operator for i, operator in found.items() if operator is not None}
        return kept if len(kept) == len(found) else None

    def _summand(self, site: Site, i: int) -> LinearOperator | None:
        coefficient = self._coefficient(site, i)
        if coefficient == 1 and site.shape(i) == site.out_shape():
            return Permutation(site.shape(i), site.out_shape())
        error = 0.0 if Fraction(float(coefficient)) == coefficient else 2.0**-53
        return _diagonal(site, i, np.asarray(float(coefficient)), error)


def _diagonal(site: Site, i: int, scale: Floats, relative_error: float = 0.0) -> LinearOperator | None:
    """Operand i times ``scale`` (broadcastable to the output); None where older broadcasting does not align at the end."""
    out, own = site.out_shape(), site.shape(i)
    if len(own) < len(out) and own and copied_axes(site, i) and site.node.version < 7:
        return None
    if scale.size == 1 and own == out:
        return Diagonal(scale.reshape(()), own, relative_error)
    return Diagonal(np.broadcast_to(scale, out), own, relative_error)


def group_norm(magnitudes: Floats, shape: tuple[int, ...], axes: tuple[int, ...], norm: Norm) -> float:
    """Largest ``norm`` of the elements of ``magnitudes`` (>= 0, broadcastable to ``shape``) along ``axes``, rounded up."""
    if math.prod(shape) == 0:
        return 0.0
    if norm == "linf" or not axes:
        return float(np.max(magnitudes))
    lined = magnitudes.reshape((1,) * (len(shape) - magnitudes.ndim) + magnitudes.shape)
    present = tuple(axis for axis in axes if lined.shape[axis] == shape[axis])
    repeated = math.prod(shape[axis] for axis in axes if axis not in present)
    count = math.prod(shape[axis] for axis in present)
    with np.errstate(over="ignore"):
        if norm == "l1":
            return widen(float(np.max(np.sum(lined, axis=present))) * repeated, count + 1)
        if np.any((lined > 0) & (lined < 1e-150)):
            lined = np.maximum(lined, 1e-150)  # squares must not underflow
        return widen(math.sqrt(widen(float(np.max(np.sum(lined * lined, axis=present))), count + 1) * repeated), 2)


class Mul(Elementwise):
    """``z = x y`` with broadcasting.

    ``xy - x'y' = (x - x')(y + y')/2 + (x + x')/2 (y - y')`` and midpoints lie in the box, so the gain of x is the largest
    ``|(y at the copies of x_j)|_p``: exact for a constant y. Mul(x, x) has slope 2x, which is what the two contributions add to.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Corners; ``R <= min(R_x max|y|, max|x| R_y)``; the diameter scales with a factor that is common to all rows."""
        x, y = (precise(site, i, x) for i, x in enumerate(xs))
        shape = site.out_shape()
        if site.node.inputs[0] == site.node.inputs[1]:
            lo, hi = interval.square(operand(site, 0, x))
        else:
            lo, hi = interval.multiply(operand(site, 0, x), operand(site, 1, y))
        sizes = (x.magnitude(), y.magnitude())
        rows = (operand_rows(site, 0, x), operand_rows(site, 1, y))
        row = min(_product(rows[0], sizes[1]), _product(sizes[0], rows[1]))
        diameter, zero_mean = math.inf, False
        for i, other in ((0, y), (1, x)):
            j = 1 - i
            if not site.moving[j] and operand_diameter(site, j, other) == 0.0:
                diameter = min(diameter, _product(operand_diameter(site, i, (x, y)[i]), sizes[j]))
            own = (x, y)[i]
            scalar = not other.shape or other.shape[-1] == 1
            if own.zero_mean and own.shape[-1:] == shape[-1:] and shape[-1] > 1 and scalar and site.node.version >= 7:
                zero_mean = True
        integral = x.integral and y.integral and _small(hi, lo)
        return (Range(shape, lo, hi, row=row, diameter=diameter, zero_mean=zero_mean, integral=integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        j = 1 - i
        y = precise(site, j, xs[j])
        lo, hi = operand(site, j, y)
        slope = group_norm(np.maximum(np.abs(lo), np.abs(hi)), site.out_shape(), copied_axes(site, i), norm)
        if norm == "l2" and copied_axes(site, i) == (len(site.out_shape()) - 1,):
            slope = min(slope, operand_rows(site, j, y))
        if math.isfinite(slope):
            return Finite(Upper(slope), method="largest factor", evidence={"factor": site.node.inputs[j]})
        if site.moving[j]:
            return Unbounded(f"product with {site.node.inputs[j]!r}, which is not bounded on the domain")
        return Unknown(f"the factor {site.node.inputs[j]!r} holds values that are not finite")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        constant = site.constant(1 - i)
        if constant is None or site.node.version < 7:
            return None
        scale = np.asarray(constant.fill, dtype=np.float64) if constant.fill is not None else constant.float64()
        return _diagonal(site, i, scale) if np.all(np.isfinite(scale)) else None

    def parts(self, site: Site) -> tuple[Part, ...]:
        """A stored factor of several elements."""
        at = next((k for k in (0, 1) if site.constant(k) is not None), None)
        return () if at is None else _factor_part(site, at, self.linear(site, 1 - at))


def _product(a: float, b: float) -> float:
    """Upper bound of a product of two bounds; 0 times infinity is 0."""
    return 0.0 if a == 0 or b == 0 else widen(a * b, 1)


def _small(hi: Floats, lo: Floats) -> bool:
    return bool(hi.size) and float(max(np.max(np.abs(hi)), np.max(np.abs(lo)))) < 2.0**53


class Div(Elementwise):
    """``z = x / y`` where 0 lies outside the range of y.

    Gain of x: the largest ``|(1/y at the copies of x_j)|_p`` (exact for constant y); of y: derivative ``-x/y**2`` on the box.
    Div(x, x) is the constant 1.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Range of the output."""
        x, y = (precise(site, i, x) for i, x in enumerate(xs))
        shape = site.out_shape()
        if site.node.inputs[0] == site.node.inputs[1]:
            return (Range(shape, np.asarray(1.0), np.asarray(1.0), integral=True),)
        divisor = operand(site, 1, y)
        lo, hi = interval.divide(operand(site, 0, x), divisor)
        if not self._real(site):
            return (Range(shape, np.trunc(lo), np.trunc(hi), integral=True),)
        inverse = interval.reciprocal(divisor)
        size = float(max(np.max(np.abs(inverse[0])), np.max(np.abs(inverse[1])))) if y.size else 0.0
        row = _product(operand_rows(site, 0, x), size)
        diameter = math.inf
        if not site.moving[1] and operand_diameter(site, 1, y) == 0.0:
            diameter = _product(operand_diameter(site, 0, x), size)
        zero_mean = x.zero_mean and x.shape[-1:] == shape[-1:] and (not y.shape or y.shape[-1] == 1) and site.node.version >= 7
        return (Range(shape, lo, hi, row=row, diameter=diameter, zero_mean=zero_mean),)

    def _real(self, site: Site) -> bool:
        output = site.outputs[0]
        return output is None or output.is_float or not output.dtype

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        x, y = (precise(site, i, x) for i, x in enumerate(xs))
        if not self._real(site):
            return Unknown("integer division truncates")
        divisor = operand(site, 1, y)
        if interval.contains_zero(divisor):
            if site.moving[1]:
                return Unbounded(f"division by {site.node.inputs[1]!r}, whose range contains 0")
            return Unknown(f"the divisor {site.node.inputs[1]!r} contains 0")
        if site.node.inputs[0] == site.node.inputs[1]:
            return Finite(ZERO, method="x / x is 1")
        inverse = interval.reciprocal(divisor)
        slopes = np.maximum(np.abs(inverse[0]), np.abs(inverse[1]))
        if i == 1:
            lo, hi = operand(site, 0, x)
            top = (np.asarray(0.0), np.maximum(np.abs(lo), np.abs(hi)))
            slopes = interval.multiply(top, interval.square((np.zeros_like(slopes), slopes)))[1]
        slope = group_norm(slopes, site.out_shape(), copied_axes(site, i), norm)
        if math.isfinite(slope):
            return Finite(Upper(slope), method="largest reciprocal" if i == 0 else "largest |x| / y^2")
        return Unbounded(f"{site.node.inputs[0]!r} is not bounded on the domain") if i else Unknown("a reciprocal overflows")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        constant = site.constant(1)
        if i != 0 or constant is None or site.node.version < 7 or not self._real(site):
            return None
        divisor = np.asarray(constant.fill, dtype=np.float64) if constant.fill is not None else constant.float64()
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            scale = 1.0 / divisor
        if not np.all(np.isfinite(scale)) or np.any(np.abs(scale) < 2.0**-1000):
            return None
        exact = bool(np.all(np.abs(np.frexp(divisor)[0]) == 0.5))
        return _diagonal(site, i, scale, 0.0 if exact else 2.0**-53)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """A stored divisor of several elements."""
        return () if site.constant(1) is None else _factor_part(site, 1, self.linear(site, 0))


def _factor_part(site: Site, at: int, operator: LinearOperator | None) -> tuple[Part, ...]:
    """The stored operand ``at`` of a product or quotient; one number is a factor of the graph, not a weight."""
    constant, out = site.constant(at), site.outputs[0]
    if constant is None or constant.size < 2 or out is None or not out.is_float:
        return ()
    return (Part(constant.name, "diagonal", constant.shape, operator or "the factor is not finite, or not aligned"),)


class Mod(Elementwise):
    """Remainder by a fixed m: jumps by |m|. fmod=1: ``|r(x) - r(y)| <= |x - y| + |m|``; fmod=0: ``<= |m|``.

    fmod=0: both remainders lie in [0, |m|) or both in (-|m|, 0]. fmod=1 truncates towards 0: for x, y of one sign likewise;
    for x >= 0 >= y both remainders are nearer to 0 than x and y. If |x| < |m| throughout, fmod=1 is the identity.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Range of the output."""
        x, m = xs
        assert x is not None and m is not None
        size = np.maximum(*(np.abs(end) for end in operand(site, 1, m)))
        lo, hi = operand(site, 0, x)
        integral = x.integral and m.integral
        if site.attr("fmod", 0):
            low, high = np.maximum(np.minimum(lo, 0.0), -size), np.minimum(np.maximum(hi, 0.0), size)
            return (Range(site.out_shape(), low, high, integral=integral),)
        low, high = operand(site, 1, m)
        return (Range(site.out_shape(), np.minimum(low, 0.0), np.maximum(high, 0.0), integral=integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        x, m = xs
        assert x is not None and m is not None
        if site.moving[1]:
            return Unknown("remainder by a divisor that depends on the source")
        lo, hi = operand(site, 0, x)
        low, high = operand(site, 1, m)
        size = np.maximum(np.abs(low), np.abs(high))
        if interval.contains_zero((low, high)) or not np.all(np.isfinite(size)):
            return Unknown("remainder by a divisor that is 0 or not finite")
        truncates = bool(site.attr("fmod", 0))
        if truncates and np.all(np.maximum(np.abs(lo), np.abs(hi)) < np.minimum(np.abs(low), np.abs(high))):
            return Finite(copy_factor(site, 0, norm), method="identity below the divisor")
        shape = site.out_shape()
        jump = Upper(group_norm(size, shape, tuple(range(len(shape))), norm))
        return Finite(copy_factor(site, 0, norm) if truncates else ZERO, jump, method="jumps by the divisor")
