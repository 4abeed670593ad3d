"""Proof of slope and jump of functions of whole numbers (floor, ceil, round, sign) from their formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from lipaudit.bounds.ball import Ball
from lipaudit.operators.law import Law

__all__ = ["prove_steps"]


def prove_steps(law: Law) -> Iterator[str]:
    """Nothing if ``|f(x) - f(y)| <= L |x - y| + J`` for a function of period 1 but for ``L x``, with slope L and jump J.

    With r(x) = f(x) - L x, ``|f(x) - f(y) - L (x - y)| = |r(x) - r(y)|`` is at most the width of the hull of r. Cells that hold no
    place of a jump are evaluated with their exact ends, the places (multiples of 1/2) as points; beside each a gap of d is left, over
    which r moves by at most L d from its value at the end of the cell. So the width is within 2 L d of what is computed, for every d.
    """
    assert law.formula is not None and law.jump is not None
    slope = law.slope
    whole = slope.is_zero  # the values are few, and the same on both sides of 0
    places = [Ball.of(n) * Ball.of("0.5") for n in (range(-4, 5) if whole else range(3))]
    if not whole and not (law.jet(Ball.of(1), 0).terms[0] - law.jet(Ball.of(0), 0).terms[0] - slope).is_zero:
        yield f"a period moves it by other than {slope}"
    for order in (20, 60, 100):
        gap = Ball.of(2) ** -order
        cells = [*places, *((a + gap).hull(b - gap) for a, b in itertools.pairwise(places))]
        if whole:
            cells += [Ball.between(-math.inf, -2), Ball.between(2, math.inf)]
        rests = [_rest(law, cell) for cell in cells]
        hull = rests[0]
        for rest in rests[1:]:
            hull = hull.hull(rest)
        width = hull.largest() - hull.least()
        if not (width - law.jump - Ball.of(2) * slope * gap).hi <= 0:
            yield f"values are {width} apart but for the slope, the jump is {law.jump}"


def _rest(law: Law, cell: Ball) -> Ball:
    """f(x) - L x over a cell where f is constant, or f = L x but for a constant: from both ends."""
    if law.slope.is_zero:
        return law.jet(cell, 0).terms[0]
    whole = law.jet(cell, 0).terms[0]
    return (whole - law.slope * cell.least()).hull(whole - law.slope * cell.largest())
