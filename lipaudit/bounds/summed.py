"""Sums of linear operators: residual joins ``x + A x``, parallel branches, differences from a mean.

:func:`add` merges what is of one kind (convolutions whose taps fall on one lattice, with identities and factors per channel among them as
single taps; matrices on one side, with the identity); the rest stays a :class:`Sum`. Its norm is the norm of the matrix where that is small
enough to be written out (:mod:`lipaudit.bounds.formed`), else the sum of the norms.

Merged entries are off by one rounding where two meet, ``|fl(a + b) - (a + b)| <= u |fl(a + b)|``, so that with errors E_A, E_B of the
operands and their uncertain factors D, D' within r of the identity (``|D X D' - X| <= r |X|`` entry by entry) ::

    ||A + B - fl(A + B)|| <= sum over both ( ||E|| (1 + r) + r || |X| || ) + u || |fl(A + B)| ||
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.chain import Folded, is_identity, mixed_norms, unfolded, usual
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.entries import entries_norm
from lipaudit.bounds.formed import formed_norm
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper

__all__ = ["Sum", "add"]

Floats = NDArray[np.float64]

MERGED_SIZE = 1 << 24
"""Largest number of entries of a merged kernel or matrix."""

MERGED_GROWTH = 4
"""A merged kernel may have this many times the entries of the two, no more (branches of far dilations stay apart)."""

FEW = 256
"""Inputs up to which the matrix is formed even where entries gave a bound (for many it takes seconds, and says little more)."""

_ROUND = Upper(2.0**-53)


class Sum(LinearOperator):
    """``y = sum_k A_k x`` for operators of the same shapes."""

    def __init__(self, summands: Sequence[LinearOperator]) -> None:
        self.summands = tuple(summands)
        self.in_shape, self.out_shape = self.summands[0].in_shape, self.summands[0].out_shape
        for summand in self.summands:
            if (summand.in_shape, summand.out_shape) != (self.in_shape, self.out_shape):
                raise ValueError(f"a map of {summand.in_shape} to {summand.out_shape} cannot be added to one of {self.in_shape}")

    def apply(self, x: Floats) -> Floats:
        """Sum of the images."""
        total = self.summands[0].apply(x)
        for summand in self.summands[1:]:
            total = total + summand.apply(x)
        return total

    def adjoint(self, y: Floats) -> Floats:
        """Sum of the transposes."""
        total = self.summands[0].adjoint(y)
        for summand in self.summands[1:]:
            total = total + summand.adjoint(y)
        return total

    def magnitude(self) -> Sum:
        """Sum of the magnitudes: entrywise at least the magnitude of the sum."""
        return Sum([summand.magnitude() for summand in self.summands])

    @property
    def terms(self) -> int:
        """``|fl(sum) - sum| <= gamma_(k + m - 1) sum |A_k||x|`` for m summands of at most k roundings."""
        return max(summand.terms for summand in self.summands) + len(self.summands)

    def without(self, axis: int) -> Sum | None:
        """Of all summands."""
        found = [summand.without(axis) for summand in self.summands]
        kept = [summand for summand in found if summand is not None]
        return Sum(kept) if len(kept) == len(found) else None

    def entries(self, *, magnitude: bool) -> Any | None:
        """The sum of those of the summands."""
        total = self.summands[0].entries(magnitude=magnitude)
        for summand in self.summands[1:]:
            other = None if total is None else summand.entries(magnitude=magnitude)
            total = None if other is None else other + total
        return total

    def leaves(self) -> list[LinearOperator]:
        """Of all summands."""
        return [leaf for summand in self.summands for leaf in summand.leaves()]

    def spread(self, norm: Norm) -> Upper:
        """Sum of the norms of the magnitudes."""
        return sum((summand.spread(norm) for summand in self.summands), start=ZERO)

    def underflow(self) -> Floats:
        """What underflows adds up."""
        return np.asarray(sum(np.broadcast_to(summand.underflow(), self.out_shape) for summand in self.summands))

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """The sum of the norms, or what the entries say, or the norm of the formed matrix: the least."""
        found = [summand.norm(norm, slack) for summand in self.summands]
        for item in found:
            if "nonfinite" in item.evidence:
                return item
        upper = sum((item.upper for item in found), start=ZERO)
        plain = VerifiedNorm(upper, Lower(0), "sum of norms", {"summands": [item.method for item in found]})
        if not upper.is_finite:
            return plain
        offers = [plain, entries_norm(self, norm)]
        if offers[1] is None or math.prod(self.in_shape) <= FEW:
            offers.append(formed_norm(self, norm, slack))
        return min((item for item in offers if item is not None), key=lambda item: item.upper)


def add(operators: Sequence[LinearOperator]) -> LinearOperator:
    """One operator for a sum; a single one is returned as it is.

    Raises ``ValueError`` for an empty sum and for shapes that differ.
    """
    if not operators:
        raise ValueError("an empty sum has no shape")
    done: list[LinearOperator] = []
    for operator in Sum(operators).summands:
        parts = operator.summands if isinstance(operator, Sum) else (operator,)
        for part in parts:
            current, kept = part, []
            for other in done:
                merged = _merged(other, current)
                if merged is None:
                    kept.append(other)
                else:
                    current = merged
            done = [*kept, current]
    return done[0] if len(done) == 1 else Sum(done)


def _merged(a: LinearOperator, b: LinearOperator) -> LinearOperator | None:
    """Two operators of equal shapes as one where they are of one kind, else None."""
    first, second = unfolded(a), unfolded(b)
    base = _kernels(first.base, second.base)
    if base is None:
        base = _matrices(first.base, second.base)
    if base is None:
        return None
    rounding = mixed_norms(base.magnitude())
    absolute: dict[Norm, Upper] = {}
    for key in first.absolute:
        total = rounding[key] * _ROUND * Upper(2)
        for part in (first, second):
            total = total + part.absolute[key] * (ONE + part.relative)
            if not part.relative.is_zero:
                total = total + part.relative * mixed_norms(part.base.magnitude())[key]
        absolute[key] = total
    # |fl(C) x - (A + B) x|: the roundings of C x, of its entries, and those behind the entries of A and B.
    size = Sum([a.magnitude(), b.magnitude()])
    return Folded(base, absolute, ZERO, base.terms + first.terms + second.terms + 4, size)


def _matrices(a: LinearOperator, b: LinearOperator) -> Dense | None:
    """Two matrices on one side, or one and a multiple of the identity."""
    if isinstance(b, Dense):
        a, b = b, a
    if not isinstance(a, Dense) or a.weight.ndim != 2 or len(a.in_shape) < 2 or a.weight.size > MERGED_SIZE:
        return None
    if isinstance(b, Dense):
        if b.side != a.side or b.weight.ndim != 2:
            return None
        other = np.asarray(b.weight, dtype=np.float64)
    else:
        factors = _factors(b, len(a.in_shape) - (1 if a.side == "right" else 2))
        if factors is None:
            return None
        other = np.diag(factors)
    weight = np.asarray(a.weight, dtype=np.float64)
    if not usual(weight) or not usual(other):
        return None
    return Dense(weight + other, a.in_shape, a.side)


def _factors(operator: LinearOperator, axis: int) -> Floats | None:
    """The factors along ``axis`` of the identity or an exact diagonal operator that varies along no other axis."""
    if is_identity(operator):
        return np.ones(operator.in_shape[axis])
    if isinstance(operator, Diagonal) and operator.relative_error == 0.0:
        return operator.axis_factors(axis)
    return None


def _kernels(a: LinearOperator, b: LinearOperator) -> Convolution | None:
    """Two convolutions, or one and factors per channel, as one convolution whose taps are those of both."""
    if not isinstance(a, Convolution):
        a, b = b, a
    if not isinstance(a, Convolution):
        return None
    other = b if isinstance(b, Convolution) else _single_tap(b, a)
    if other is None or any(x.stride != y.stride for x, y in zip(a.window, other.window, strict=True)):
        return None
    offsets = [
        sorted({x.offset(t) for t in range(x.kernel)} | {y.offset(t) for t in range(y.kernel)})
        for x, y in zip(a.window, other.window, strict=True)
    ]
    steps = [math.gcd(*(k - found[0] for k in found)) or 1 for found in offsets]
    kernel = tuple((found[-1] - found[0]) // step + 1 for found, step in zip(offsets, steps, strict=True))
    groups = math.gcd(a.groups, other.groups)
    o, c = a.out_shape[1], a.in_shape[1]
    size = o * (c // groups) * math.prod(kernel)
    if size > min(MERGED_SIZE, MERGED_GROWTH * max(a.weight.size, other.weight.size)):
        return None
    total = np.zeros((o, c // groups, *kernel))
    for part in (a, other):
        weight = np.asarray(part.weight, dtype=np.float64)
        if not usual(weight):
            return None
        places = np.ix_(
            *(
                [(axis.offset(t) - found[0]) // step for t in range(axis.kernel)]
                for axis, found, step in zip(part.window, offsets, steps, strict=True)
            )
        )
        rows, columns = o // part.groups, c // part.groups
        per_group = (c // groups) // columns
        for g in range(part.groups):
            channels = slice((g % per_group) * columns, (g % per_group + 1) * columns)
            block = total[g * rows : (g + 1) * rows, channels]
            block[(slice(None), slice(None), *places)] += weight[g * rows : (g + 1) * rows]
    return Convolution(
        total,
        a.in_shape[2:],
        strides=[axis.stride for axis in a.window],
        dilations=steps,
        pads=[(-found[0], 0) for found in offsets],
        groups=groups,
        batch=a.in_shape[0],
        outputs=a.out_shape[2:],
    )


def _single_tap(operator: LinearOperator, like: Convolution) -> Convolution | None:
    """Factors per channel (or the identity) as a convolution of one tap at offset 0 beside another one of stride 1."""
    if any(axis.stride != 1 for axis in like.window) or operator.in_shape != operator.out_shape:
        return None
    factors = _factors(operator, 1)
    if factors is None:
        return None
    weight = factors.reshape(-1, *(1,) * (len(like.window) + 1))
    return Convolution(weight, like.in_shape[2:], groups=factors.size, batch=like.in_shape[0], outputs=like.out_shape[2:])
