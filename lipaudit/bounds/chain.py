"""Consecutive linear operators as one.

:func:`compose` folds what folds exactly up to rounding (factors per channel into a convolution, factors into a matrix, two matrices into
their product) and multiplies the norms of the rest; a composition that is small enough is formed as one matrix. Methods:
"folded: ..." (a norm with the rounding of the fold added), "product of norms", "formed chain: ...".

Convolutions in a row are *not* merged by their symbols: with padding in between, the crop between the two does not commute (a kernel
and its inverse have product symbol 1, the padded composition does not have norm 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.dense import gamma
from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.formed import formed_norm
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper
from lipaudit.bounds.selection import Permutation

__all__ = ["Folded", "Product", "compose", "is_identity", "mixed_norms", "unfolded", "usual"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

PRODUCT_WORK = 2e10
PRODUCT_SIZE = 2e7
"""Two matrices are multiplied if that takes at most this many flops and the product has at most this many entries."""

_ROUND = Upper(2.0**-53)
_TINY = Upper.from_dyadic(1, -900)


class Folded(LinearOperator):
    """An operator that is known up to rounding: ``D (A + E) D'`` with E small and D, D' within ``relative`` of the identity.

    Parameters
    ----------
    base
        A, computed in floating point.
    absolute
        Upper bounds of the norms of E, in fact of |E|.
    relative
        Upper bound of the relative error of all diagonal factors together.
    terms
        Roundings per output element of ``apply``, against the *exact* operator ...
    size
        ... relative to this operator of magnitudes (of a product C = AB it is |A||B|: cancellation in C hides its error).
    """

    def __init__(
        self, base: LinearOperator, absolute: Mapping[Norm, Upper], relative: Upper, terms: int, size: LinearOperator | None = None
    ) -> None:
        self.base = base
        self._size = size
        self.in_shape, self.out_shape = base.in_shape, base.out_shape
        self.absolute, self.relative = dict(absolute), relative
        self._terms = terms

    def apply(self, x: Floats) -> Floats:
        """Of the computed operator."""
        return self.base.apply(x)

    def adjoint(self, y: Floats) -> Floats:
        """Of the computed operator."""
        return self.base.adjoint(y)

    def magnitude(self) -> LinearOperator:
        """Entrywise at least the magnitude of the exact operator, up to ``terms`` roundings."""
        return self.base.magnitude() if self._size is None else self._size

    @property
    def terms(self) -> int:
        """As given."""
        return self._terms

    def without(self, axis: int) -> Folded | None:
        """Of the computed operator; the errors act alike, too."""
        base = self.base.without(axis)
        size = None if self._size is None else self._size.without(axis)
        if base is None or (size is None and self._size is not None):
            return None
        return Folded(base, self.absolute, self.relative, self._terms, size)

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """``(||A|| + ||E||)(1 + relative)``."""
        found = self.base.norm(norm, slack)
        upper = (found.upper + self.absolute[norm]) * (ONE + self.relative)
        lower = (float(found.lower) - float(self.absolute[norm])) * (1 - float(self.relative)) * (1 - 2.0**-50)
        evidence = {**found.evidence, "fold": {"absolute": self.absolute[norm].decimal(3), "relative": self.relative.decimal(3)}}
        return VerifiedNorm(upper, Lower(max(0.0, lower)), f"folded: {found.method}", evidence)


class Product(LinearOperator):
    """Operators one after the other, the first applied first."""

    def __init__(self, factors: Sequence[LinearOperator]) -> None:
        self.factors = tuple(factors)
        for before, after in pairwise(self.factors):
            if before.out_shape != after.in_shape:
                raise ValueError(f"an output of shape {before.out_shape} does not fit an input of shape {after.in_shape}")
        self.in_shape, self.out_shape = self.factors[0].in_shape, self.factors[-1].out_shape

    def apply(self, x: Floats) -> Floats:
        """All in turn."""
        for factor in self.factors:
            x = factor.apply(x)
        return x

    def adjoint(self, y: Floats) -> Floats:
        """All transposes, last first."""
        for factor in reversed(self.factors):
            y = factor.adjoint(y)
        return y

    def magnitude(self) -> Product:
        """Product of the magnitudes: entrywise at least the magnitude of the product."""
        return Product([factor.magnitude() for factor in self.factors])

    @property
    def terms(self) -> int:
        """Roundings add up along the chain: (1 + gamma_j)(1 + gamma_k) <= 1 + gamma_(j+k)."""
        return sum(factor.terms + 1 for factor in self.factors)

    def without(self, axis: int) -> Product | None:
        """Of all factors; where their ranks differ, one number does not name one axis."""
        if any(len(shape) != len(self.in_shape) for factor in self.factors for shape in (factor.in_shape, factor.out_shape)):
            return None
        found = [factor.without(axis) for factor in self.factors]
        kept = [factor for factor in found if factor is not None]
        return Product(kept) if len(kept) == len(found) else None

    def entries(self, *, magnitude: bool) -> Any | None:
        """The product of those of the factors."""
        total = self.factors[0].entries(magnitude=magnitude)
        for factor in self.factors[1:]:
            other = None if total is None else factor.entries(magnitude=magnitude)
            total = None if other is None else other @ total
        return total

    def leaves(self) -> list[LinearOperator]:
        """Of all factors."""
        return [leaf for factor in self.factors for leaf in factor.leaves()]

    def spread(self, norm: Norm) -> Upper:
        """Product of the norms of the magnitudes."""
        return math.prod((factor.spread(norm) for factor in self.factors), start=ONE)

    def underflow(self) -> Floats:
        """What underflows in one factor is amplified by the later ones."""
        amount = self.factors[0].underflow()
        for factor in self.factors[1:]:
            amount = factor.magnitude().apply(np.broadcast_to(amount, factor.in_shape)) * (1 + (factor.terms + 8) * 2.0**-52)
            amount = amount + factor.underflow()
        return amount

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Product of the norms, or the norm of the formed matrix if that is affordable and smaller."""
        found = [factor.norm(norm, slack) for factor in self.factors]
        for item in found:
            if "nonfinite" in item.evidence:
                return item
        upper = ONE
        for item in found:
            if item.upper.is_zero:
                return VerifiedNorm(ZERO, Lower(0), "product of norms", {"factors": [part.method for part in found]})
            upper = upper * item.upper
        plain = VerifiedNorm(upper, Lower(0), "product of norms", {"factors": [part.method for part in found]})
        if not upper.is_finite or sum(not isinstance(factor, Permutation) for factor in self.factors) < 2:
            return plain
        formed = formed_norm(self, norm, slack)
        return formed if formed is not None and formed.upper < upper else plain


def compose(operators: Sequence[LinearOperator]) -> LinearOperator:
    """One operator for a chain, the first applied first; a single operator is returned as it is.

    Raises ``ValueError`` for an empty chain and for shapes that do not fit.
    """
    if not operators:
        raise ValueError("an empty chain has no shape")
    flat: list[LinearOperator] = []
    for operator in operators:
        flat.extend(operator.factors if isinstance(operator, Product) else (operator,))
    for before, after in pairwise(flat):
        if before.out_shape != after.in_shape:
            raise ValueError(f"an output of shape {before.out_shape} does not fit an input of shape {after.in_shape}")
    done: list[LinearOperator] = []
    for operator in flat:
        current = operator
        while done:
            joined = _join(done[-1], current)
            if joined is None:
                break
            done.pop()
            current = joined
        done.append(current)
    return done[0] if len(done) == 1 else Product(done)


def _join(first: LinearOperator, second: LinearOperator) -> LinearOperator | None:
    """The two as one operator where that is cheap and sound, else None."""
    if is_identity(first):
        return second
    if is_identity(second):
        return first
    if isinstance(second, Diagonal):
        return _scale(first, second, inputs=False)
    if isinstance(first, Diagonal):
        return _scale(second, first, inputs=True)
    return _multiply(first, second)


def is_identity(operator: LinearOperator) -> bool:
    """A permutation that leaves everything in its place."""
    return isinstance(operator, Permutation) and operator.reshapes and operator.in_shape == operator.out_shape


@dataclass(frozen=True, slots=True)
class Unfolded:
    """What a (folded) operator is made of: see :class:`Folded`; an operator that is no fold is its own base, without errors."""

    base: LinearOperator
    absolute: Mapping[Norm, Upper]
    relative: Upper
    terms: int


def unfolded(operator: LinearOperator) -> Unfolded:
    """Base, errors and roundings."""
    if isinstance(operator, Folded):
        return Unfolded(operator.base, operator.absolute, operator.relative, operator.terms)
    return Unfolded(operator, {"l1": ZERO, "l2": ZERO, "linf": ZERO}, ZERO, operator.terms)


def usual(values: Floats) -> bool:
    """Whether all nonzero magnitudes are so moderate that no product over- or underflows."""
    sizes = np.abs(values[values != 0])
    return bool(np.all(np.isfinite(values))) and (sizes.size == 0 or (float(sizes.min()) > 2.0**-300 and float(sizes.max()) < 2.0**300))


def _scale(operator: LinearOperator, diagonal: Diagonal, *, inputs: bool) -> LinearOperator | None:
    """``diagonal`` folded into a convolution or matrix that comes before (``inputs=False``) or after it."""
    own = unfolded(operator)
    base, absolute, relative, terms = own.base, own.absolute, own.relative, own.terms
    scaled = _scaled(base, diagonal, inputs=inputs)
    if scaled is None:
        return None
    top = Upper(float(np.max(np.abs(diagonal.scale), initial=0.0)))
    error = Upper(diagonal.relative_error)
    rounding: dict[Norm, Upper] = mixed_norms(scaled.magnitude())
    errors: dict[Norm, Upper] = {key: value * top * (ONE + relative) + rounding[key] * _ROUND * Upper(2) for key, value in absolute.items()}
    relative = relative + error + relative * error
    size = None
    if isinstance(operator, Folded):
        pair = (diagonal.magnitude(), operator.magnitude())
        size = Product(pair if inputs else pair[::-1])
    return Folded(scaled, errors, relative, terms + 2 * diagonal.terms + 2, size)


def _scaled(base: LinearOperator, diagonal: Diagonal, *, inputs: bool) -> LinearOperator | None:
    if isinstance(base, Convolution) and base.fill is None:
        factors = diagonal.axis_factors(1)
        if factors is None or not usual(factors) or not usual(np.asarray(base.weight, dtype=np.float64)):
            return None
        return base.scaled(factors, inputs=inputs)
    if isinstance(base, Dense) and base.weight.ndim == 2 and len(base.in_shape) > 1:
        right = base.side == "right"
        factors = diagonal.axis_factors(len(base.in_shape) - (1 if right else 2))
        weight = np.asarray(base.weight, dtype=np.float64)
        if factors is None or not usual(factors) or not usual(weight) or weight.size > PRODUCT_SIZE:
            return None
        rows = inputs == right  # x @ W: the rows of W belong to the inputs; W @ x: its columns do
        return Dense(weight * (factors[:, None] if rows else factors), base.in_shape, base.side)
    return None


def mixed_norms(magnitude: LinearOperator) -> dict[Norm, Upper]:
    """Bounds of the norms of an operator of magnitudes."""
    l1, linf = magnitude.norm("l1").upper, magnitude.norm("linf").upper
    return {"l1": l1, "l2": (l1 * linf).sqrt(), "linf": linf}


def _multiply(first: LinearOperator, second: LinearOperator) -> LinearOperator | None:
    """Two matrices on the same side as their product; each may already carry an error."""
    one, two = unfolded(first), unfolded(second)
    a, b = one.base, two.base
    if not (isinstance(a, Dense) and isinstance(b, Dense)) or a.side != b.side or a.weight.ndim != 2 or b.weight.ndim != 2:
        return None
    if len(a.in_shape) < 2 or not one.relative.is_zero or not two.relative.is_zero:
        return None  # an uncertain factor between the two does not move outside
    right = a.side == "right"
    left_shape, right_shape = (a.weight.shape, b.weight.shape) if right else (b.weight.shape, a.weight.shape)
    rows, inner, columns = left_shape[0], left_shape[1], right_shape[1]
    if rows * columns > PRODUCT_SIZE or 2.0 * rows * inner * columns > PRODUCT_WORK:
        return None
    x, y = np.asarray(a.weight, dtype=np.float64), np.asarray(b.weight, dtype=np.float64)
    if not usual(x) or not usual(y):
        return None
    product = Dense(x @ y if right else y @ x, a.in_shape, a.side)
    mixed_a, mixed_b = mixed_norms(a.magnitude()), mixed_norms(b.magnitude())
    absolute: dict[Norm, Upper] = {}
    for key in one.absolute:
        size_a, size_b = mixed_a[key], mixed_b[key]
        carried = one.absolute[key] * (size_b + two.absolute[key]) + size_a * two.absolute[key]
        absolute[key] = carried + gamma(inner + 2) * size_a * size_b + _TINY
    size = Product([first.magnitude(), second.magnitude()])
    return Folded(product, absolute, ZERO, 2 * (one.terms + two.terms) + 4, size)
