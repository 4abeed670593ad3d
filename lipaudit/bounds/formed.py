"""Compositions of linear operators written out as one matrix, whose verified norm takes in the rounding of writing it out.

Each column is the image of a unit vector. With k roundings on the way (``terms`` and one for every element that a factor may sum,
forwards or backwards) and the composition |A| of the magnitudes of all leaves, ``|fl(A) - A| <= gamma_k |A|`` entry by entry, so that ::

    ||A|| <= ||fl(A)|| + gamma_k || |A| ||,      || |A| || by products and sums of the exact l1 and linf norms of the leaves

(in l2 by ``sqrt(l1 * linf)``). Where an operator does the same at every place along an axis, ``A = A' (x) I``, it is written out for one
place: ``||A|| = ||A'||`` in all three norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm, gamma
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ONE, Lower, Norm, Upper, dual

__all__ = ["FORM_SIDE", "GROWTH", "TINY", "amplification", "formed_norm", "narrowed"]

Floats = NDArray[np.float64]

FORM_SIDE = 1024
"""A composition is written out if its input or output has at most this many elements (of one place, see above) ..."""

FORM_SIZE = 1 << 22
"""... the matrix at most this many entries ..."""

FORM_WORK = 1e10
"""... and its columns take at most this many operations: products, and 2e5 for the call of each leaf."""

GROWTH = Upper(2.0**100)
"""Largest product of the norms of all leaves, those below 1 left out: what underflows in one (2**-1074) is amplified by no more."""

TINY = Upper.from_dyadic(1, -900)
"""For each entry, what underflows on the way to it."""


def narrowed(operator: LinearOperator) -> LinearOperator:
    """The same operator with length 1 along every axis at whose places it does the same: equal norms."""
    for axis in range(min(len(operator.in_shape), len(operator.out_shape))):
        if operator.in_shape[axis] == operator.out_shape[axis] > 1:
            operator = operator.without(axis) or operator
    return operator


def amplification(leaves: Sequence[LinearOperator]) -> Upper:
    """Upper bound of what all leaves one after the other, or any of them left out, do to the sum or the largest of some elements."""
    total = ONE
    for leaf in leaves:
        total = total * max(ONE, *(leaf.magnitude().norm(side).upper for side in ("l1", "linf")))
    return total


def formed_norm(operator: LinearOperator, norm: Norm, slack: float) -> VerifiedNorm | None:
    """The norm of the matrix, or None where it would be too large or entries are not moderate."""
    operator = narrowed(operator)
    size_in, size_out = math.prod(operator.in_shape), math.prod(operator.out_shape)
    small, leaves = min(size_in, size_out), operator.leaves()
    work = small * sum(2e5 + 2.0 * leaf.terms * math.prod(leaf.out_shape) for leaf in leaves)
    if not 0 < small <= FORM_SIDE or size_in * size_out > FORM_SIZE or work > FORM_WORK:
        return None
    if not amplification(leaves) <= GROWTH:
        return None
    forward = size_in <= size_out
    shape, run = (operator.in_shape, operator.apply) if forward else (operator.out_shape, operator.adjoint)
    matrix = np.empty((small, max(size_in, size_out)))
    unit = np.zeros(small)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for k in range(small):
            unit[k] = 1.0
            matrix[k] = run(unit.reshape(shape)).reshape(-1)
            unit[k] = 0.0
    roundings = operator.terms + sum(math.prod(leaf.in_shape) + math.prod(leaf.out_shape) for leaf in leaves)
    spread: dict[Norm, Upper] = {"l1": operator.spread("l1"), "linf": operator.spread("linf")}
    spread["l2"] = (spread["l1"] * spread["linf"]).sqrt()
    own: Norm = dual(norm) if forward else norm
    found = dense_norm(matrix, own, slack)
    error = gamma(2 * roundings) * spread[norm] + TINY * Upper(matrix.size)
    lower = Lower(max(0.0, (float(found.lower) - float(error)) * (1 - 2.0**-52)))
    return VerifiedNorm(found.upper + error, lower, f"formed chain: {found.method}", {**found.evidence, "error": error.decimal(3)})
