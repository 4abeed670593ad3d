"""Exact largest row sums of absolute values: the l1 and linf norms of matrices.

Source: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 4.2: a sum of k terms in any order has
relative error at most gamma_(k-1) if the terms have one sign. That singles out the few rows that can be the largest; they are
then summed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Upper

__all__ = ["exact_sum", "largest_row_sum", "largest_sum"]

Array = NDArray[np.generic]
Floats = NDArray[np.float64]

BLOCK = 1 << 22
"""Elements that are converted to float64 at a time (32 MB)."""

EXACT_WORK = 1 << 19
"""Elements that are summed one by one in Python; beyond it candidates are told apart by compensated sums first."""

_LARGE = 2.0**900
_UNIT = 2.0**-53


def exact_sum(values: Iterable[float]) -> Upper:
    """Sum of non-negative finite doubles: the exact value rounded up to a double (or exact beyond the doubles)."""
    terms = [float(v) for v in values]
    try:
        total = math.fsum(terms)
        excess = math.fsum([*terms, -total])
    except OverflowError:
        scaled = math.fsum(term * 2.0**-100 for term in terms)
        return Upper(math.nextafter(scaled, math.inf)) * Upper.from_dyadic(1, 100)
    if not math.isfinite(total):
        scaled = math.fsum(term * 2.0**-100 for term in terms)
        return Upper(math.nextafter(scaled, math.inf)) * Upper.from_dyadic(1, 100)
    # fsum rounds to nearest, and a difference that it calls 0 is exactly 0.
    return Upper(total if excess <= 0 else math.nextafter(total, math.inf))


def _compensated(magnitudes: Floats) -> tuple[Floats, Floats]:
    """Row sums as unevaluated pairs (Ogita, Rump and Oishi 2005, Sum2: relative error of the pair gamma_k^2)."""
    high = np.zeros(magnitudes.shape[0])
    low = np.zeros(magnitudes.shape[0])
    for column in np.ascontiguousarray(magnitudes.T):
        total = high + column
        part = total - high
        low += (high - (total - part)) + (column - part)
        high = total
    return high, low


def largest_sum(rows: int, length: int, sums: Callable[[], Floats], pick: Callable[[NDArray[np.intp]], Floats]) -> Upper:
    """Largest of ``rows`` sums of ``length`` magnitudes each.

    ``sums()`` gives them in binary64, in any order; ``pick(indices)`` gives the magnitudes of some rows, shape
    [len(indices), length]. The result is the exact value rounded up.
    """
    if rows == 0 or length == 0:
        return ZERO
    with np.errstate(over="ignore"):
        rough = sums()
    top = float(np.max(rough))
    if top == 0.0:
        return ZERO
    if top > _LARGE:
        candidates = np.flatnonzero(~(rough < _LARGE / 2))
        return max(exact_sum(pick(candidates[i : i + 1])[0]) for i in range(len(candidates)))
    width = (2 * length + 4) * _UNIT
    candidates = np.flatnonzero(rough >= top * (1 - 4 * width))
    if candidates.size * length > EXACT_WORK:
        return _by_pairs(candidates, length, pick)
    return max(exact_sum(row) for row in pick(candidates))


def _by_pairs(candidates: NDArray[np.intp], length: int, pick: Callable[[NDArray[np.intp]], Floats]) -> Upper:
    """The same for many candidates: the largest compensated pair is summed exactly, the others exceed it by rounding at most."""
    step = max(1, BLOCK // length)
    gamma = Upper(length * 2.0**-52)
    best = ZERO
    for at in range(0, candidates.size, step):
        chosen = candidates[at : at + step]
        high, low = _compensated(pick(chosen))
        total = high + low
        leader = int(np.lexsort((low - (total - high), total))[-1])
        spare = gamma * gamma * Upper(4 * float(total[leader]))
        best = max(best, exact_sum(pick(chosen[leader : leader + 1])[0]) + spare)
    return best


def largest_row_sum(matrix: Array, axis: int = 1) -> Upper:
    """Largest sum of absolute values along ``axis`` of a finite matrix [m, n], exact and rounded up.

    ``axis=1`` is the linf norm of the matrix, ``axis=0`` its l1 norm. Any real dtype whose values are doubles.
    """
    view = matrix if axis == 1 else matrix.T
    rows, length = view.shape

    def sums() -> Floats:
        out = np.zeros(rows)
        if axis == 1:
            step = max(1, BLOCK // max(1, length))
            for at in range(0, rows, step):
                out[at : at + step] = np.abs(view[at : at + step].astype(np.float64)).sum(axis=1)
            return out
        step = max(1, BLOCK // max(1, rows))
        for at in range(0, length, step):
            out += np.abs(matrix[at : at + step].astype(np.float64)).sum(axis=0)
        return out

    def pick(indices: NDArray[np.intp]) -> Floats:
        return np.abs(view[indices].astype(np.float64))

    return largest_sum(rows, length, sums, pick)
