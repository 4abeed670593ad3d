"""Proof of what a scalar entry claims, from its formula alone: slopes, range, turns, extrema, limits.

Cut the real line at the turns and kinks. On each piece f'' is shown to have one sign, by evaluating Taylor coefficients over
intervals and bisecting; so f' is monotone there, and its hull is that of its values at the cuts. Close to a turn, where f''
has no sign to show, f''' has: f'' is monotone, and its sign at both ends of the piece decides. Likewise f between its extrema.
Far out, where a derivative is within :data:`~lipaudit.operators.law.CUSHION` of its limit, nothing else is asked. The line
ends at the largest double.

Evaluation is rigorous (outward rounding, 128 bits, more where that leaves a sign open), so no problem found is a proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lipaudit.bounds.ball import Ball, precision
from lipaudit.operators.formula import parse
from lipaudit.operators.law import CUSHION, Law

__all__ = ["prove", "prove_contraction", "prove_range", "prove_range_on", "prove_slope", "prove_slope_on"]

_ZERO = Ball.of(0)
_GAP = Ball.between(-(2.0**-60), 2.0**-60)
_END = 1023  # the largest double lies below 2**1024
_FINE = 700
_NOTHING = Ball.between(-CUSHION, CUSHION)
_FLAT = _NOTHING * Ball.of(2) ** -20


@dataclass(frozen=True, slots=True)
class _Cut:
    """A place where the piece ends: ``at`` as stated, ``gap`` what the pieces beside it leave out."""

    at: Ball
    gap: Ball
    changes: bool
    """Whether the sign may change here."""
    infinite: bool = False
    """A pole, or an end of the domain: the function may be infinite."""


def prove(law: Law) -> Iterator[str]:
    """What is not true of ``law`` (or could not be shown); nothing if all of it is proved. Quick to find what is far off."""
    yield from prove_slope(law)
    yield from prove_range(law)


def prove_slope(law: Law) -> Iterator[str]:
    """What is not true of slope, turns, kinks and slope limits."""
    yield from _monotone(law, 2, _slope_cuts(law), law.slope, law.slope_limits, "slope")


def prove_range(law: Law) -> Iterator[str]:
    """What is not true of range, extrema and limits."""
    yield from _monotone(law, 1, _range_cuts(law), law.range, law.limits, "range")


def prove_slope_on(law: Law, lo: float, hi: float, stated: Ball) -> Iterator[str]:
    """Nothing if f' of ``law`` lies in ``stated`` on [lo, hi] (its slopes from both sides at a kink), else what could not be shown.

    Of a law of which :func:`prove_slope` finds nothing wrong: f' is monotone between turns, kinks, jumps and poles. So its values at the
    ends of the interval and over those places within it are shown to lie in ``stated``. The ends may be infinite; where ``stated``
    is all that is proved for all reals nothing is asked.
    """
    if not law.slope.inside(stated):
        yield from _on(law, 2, _slope_cuts(replace(law, period=None)), (lo, hi), stated, (law.slope, law.slope_limits))


def prove_range_on(law: Law, lo: float, hi: float, stated: Ball) -> Iterator[str]:
    """Nothing if f of ``law`` lies in ``stated`` on [lo, hi]; as :func:`prove_slope_on`, of what :func:`prove_range` proves."""
    if not law.range.inside(stated):
        yield from _on(law, 1, _range_cuts(replace(law, period=None)), (lo, hi), stated, (law.range, law.limits))


def _slope_cuts(law: Law) -> list[_Cut]:
    pointed = [(point, True, False) for point in law.turns]
    pointed += [(point, False, False) for point in (*law.kinks, *law.jump_at)]
    return _cuts(law, pointed)


def _range_cuts(law: Law) -> list[_Cut]:
    listed = [(point, True, False) for point in law.extrema]
    listed += [(point, False, True) for point in law.jump_at]
    listed += [(point, False, False) for point in law.kinks if not any(point.meets(other[0]) for other in listed)]
    return _cuts(law, listed, exact_changes=False)


def _on(
    law: Law,
    k: int,
    cuts: list[_Cut],
    ends: tuple[float, float],
    stated: Ball,
    everywhere: tuple[Ball, tuple[Ball, Ball] | None],
) -> Iterator[str]:
    """Coefficient k-1 is within ``stated`` at both ends, or towards them, and over all cuts inside: so it is between, where it is monotone.

    ``everywhere`` holds what is proved of it on all reals, and its limits. A tail counts as flat where the coefficient is within 2^-20
    cushions of its limit, hence within 2^-19 of its value at an end in there: less than the cushion that a statement of a tail has.
    """
    whole, limits = everywhere
    borders = () if law.domain is None else law.domain.floats()
    # More digits than ``stated`` was computed with: what is not within is not so by rounding.
    with precision(_FINE):
        for cut in _repeated(law, cuts, ends):
            if not _stays_near(law, k - 1, replace(cut, gap=cut.gap.meet(Ball.between(*ends))), stated, whole):
                yield f"at {cut.at}: not within [{stated.lo}, {stated.hi}]"
        for side, end in enumerate(ends):
            if end in borders:
                continue  # a cut
            value = _coefficient(law, k - 1, Ball.of(end)) if math.isfinite(end) else whole if limits is None else limits[side]
            if not value.meet(whole).inside(stated):
                yield f"at {end}: not within [{stated.lo}, {stated.hi}]"


def _stays_near(law: Law, k: int, cut: _Cut, stated: Ball, whole: Ball) -> bool:
    """Coefficient k lies in ``stated`` over the gap of a cut, by Taylor's formula of order 2 about the place itself, where it may be flat.

    Or on both sides of an exact place (a kink) by its sign there and its values at the ends.
    """
    if _stays(law, k, cut, stated):
        return True
    sides = [cut.gap.meet(Ball.between(-math.inf, cut.at)), cut.gap.meet(Ball.between(cut.at, math.inf))] if cut.gap.meets(cut.at) else []
    if sides and all(
        _definite(_coefficient(law, k + 1, side)) is not None
        and all(_coefficient(law, k, end).meet(whole).inside(stated) for end in (side.least(), side.largest()))
        for side in sides
    ):
        return True
    way = cut.gap - cut.at
    around, terms = law.jet(cut.at, k + 1).terms, law.jet(cut.gap.hull(cut.at), k + 2).terms
    value = around[k] + Ball.of(k + 1) * around[k + 1] * way + Ball.of((k + 1) * (k + 2) // 2) * terms[k + 2] * way**2
    return value.meet(whole).inside(stated)


def _repeated(law: Law, cuts: list[_Cut], ends: tuple[float, float]) -> list[_Cut]:
    """The cuts (of one period) that meet an interval, of every period."""
    if law.period is not None:
        p = law.period.floats()[0]
        shifts = range(math.floor(ends[0] / p) - 2, math.ceil(ends[1] / p) + 3)
        cuts = [replace(cut, at=cut.at + law.period * Ball.of(n), gap=cut.gap + law.period * Ball.of(n)) for n in shifts for cut in cuts]
    return [cut for cut in cuts if cut.gap.meets(Ball.between(*ends))]


def prove_contraction(law: Law) -> Iterator[str]:
    """Nothing if ``|f(x)| <= |x| (1 + 2**-60)`` for all x, else what could not be shown."""
    assert law.formula is not None
    if law.slope.inside(Ball.between(-1, 1)) and law.jump is None:
        if not law.jet(_ZERO, 0).terms[0].is_zero:
            yield "f(0) is not 0"
        return
    text = law.formula.text
    for sign, shown in (("-", "f(x) <= |x|"), ("+", "f(x) >= -|x|")):
        above = replace(law, formula=parse(f"abs(x)*(1 + 2^-60) {sign} ({text})"), extrema=(), jump_at=(), poles=())
        corners = [(Ball.of(0), True, False), *((point, False, False) for point in (*law.kinks, *law.jump_at))]
        for problem in _one_sign(above, 0, _cuts(above, corners, exact_changes=False), 1):
            yield f"{shown}: {problem}"


def _cuts(law: Law, points: Sequence[tuple[Ball, bool, bool]], exact_changes: bool = True) -> list[_Cut]:
    """Cuts in order: (point, leave a gap, may change the sign even without a gap)."""
    found = [_Cut(point, point + _GAP if gap else point, gap or changes or exact_changes) for point, gap, changes in points]
    found += [_Cut(pole, pole + _GAP, True, True) for pole in law.poles]
    if law.domain is not None:
        found += [_Cut(end, end, True, True) for end in (law.domain.least(), law.domain.largest()) if end.is_finite]
    if law.period is not None:
        found += [replace(cut, at=cut.at + law.period, gap=cut.gap + law.period) for cut in found]
    found.sort(key=lambda cut: cut.at.floats())
    merged: list[_Cut] = []
    for cut in found:
        if merged and merged[-1].gap.meets(cut.gap):
            last = merged.pop()
            cut = _Cut(last.at.hull(cut.at), last.gap.hull(cut.gap), last.changes or cut.changes, last.infinite or cut.infinite)
        merged.append(cut)
    return merged


def _monotone(law: Law, k: int, cuts: list[_Cut], stated: Ball, limits: tuple[Ball, Ball] | None, name: str) -> Iterator[str]:
    """Coefficient k has one sign on each piece, and coefficient k-1 lies in ``stated`` at all ends of pieces."""
    for cut in cuts:
        if not _stays(law, k - 1, cut, stated):
            yield f"{name} at {cut.at} is not within [{stated.lo}, {stated.hi}]"
    signs: list[int | None] = []
    for piece in range(len(cuts) + 1):
        if law.period is not None and piece in (0, len(cuts)):
            continue
        lo = cuts[piece - 1].gap.largest() if piece else None
        hi = cuts[piece].gap.least() if piece < len(cuts) else None
        if _beyond_domain(law, lo, hi):
            continue
        sign, flat = _sign_of_piece(law, k, lo, hi, limits)
        signs.append(sign)
        if sign is None:
            yield f"{name}: not monotone {_between(lo, hi)}"
        if lo is None:
            yield from _at_end(law, k - 1, False, 0 if flat else sign, stated, limits, name)
        if hi is None:
            yield from _at_end(law, k - 1, True, 0 if flat else sign, stated, limits, name)
        if piece and lo is not None and not cuts[piece - 1].changes and len(signs) > 1:
            before, after = signs[-2], signs[-1]
            if before is not None and after is not None and before * after < 0:
                yield f"{name}: an extremum at {cuts[piece - 1].at} is not listed"


def _one_sign(law: Law, k: int, cuts: list[_Cut], wanted: int) -> Iterator[str]:
    for piece in range(len(cuts) + 1):
        if law.period is not None and piece in (0, len(cuts)):
            continue
        lo = cuts[piece - 1].gap.largest() if piece else None
        hi = cuts[piece].gap.least() if piece < len(cuts) else None
        sign, _ = _sign_of_piece(law, k, lo, hi, None)
        if sign is None or sign * wanted < 0:
            yield f"fails {_between(lo, hi)}"


def _between(lo: Ball | None, hi: Ball | None) -> str:
    return f"between {'-inf' if lo is None else lo} and {'inf' if hi is None else hi}"


def _beyond_domain(law: Law, lo: Ball | None, hi: Ball | None) -> bool:
    if law.domain is None:
        return False
    return (lo is None and law.domain.least().is_finite) or (hi is None and law.domain.largest().is_finite)


def _coefficient(law: Law, k: int, x: Ball) -> Ball:
    return law.jet(x, k).terms[k]


def _stays(law: Law, k: int, cut: _Cut, stated: Ball) -> bool:
    """Coefficient k lies in ``stated`` over the gap of a cut."""
    if cut.infinite:
        x = cut.at.hull(cut.gap) if cut.gap.lo != cut.gap.hi else cut.at
        return _inside(law, k, x, stated, 0) or _coefficient(law, k, x).meet(stated).meets(stated)
    return _inside(law, k, cut.gap, stated, 10)


def _inside(law: Law, k: int, x: Ball, stated: Ball, depth: int) -> bool:
    """Coefficient k lies in ``stated`` over ``x``: directly, by Taylor's formula of order 2, or on both halves."""
    terms = law.jet(x, k + 2).terms
    if terms[k].inside(stated):
        return True
    if bool(x.lo == x.hi):
        return False
    middle = x.middle()
    way, around = x - middle, law.jet(middle, k + 1).terms
    linear = Ball.of(k + 1) * around[k + 1] * way
    square = Ball.of((k + 1) * (k + 2) // 2) * terms[k + 2] * way**2
    if (around[k] + linear + square).inside(stated):
        return True
    if not depth:
        return False
    return _inside(law, k, x.least().hull(middle), stated, depth - 1) and _inside(law, k, middle.hull(x.largest()), stated, depth - 1)


def _sign_of_piece(law: Law, k: int, lo: Ball | None, hi: Ball | None, limits: tuple[Ball, Ball] | None) -> tuple[int | None, bool]:
    """Sign of coefficient k between two points (None: the end of the line), and whether the far part is merely flat."""
    if lo is not None and hi is not None:
        return _sign(law, k, lo, hi), False
    if lo is None and hi is None:
        left, flat_left = _sign_of_piece(law, k, None, _ZERO, limits)
        right, flat_right = _sign_of_piece(law, k, _ZERO, None, limits)
        return _joined([left, right]), flat_left or flat_right
    side = 1 if hi is None else -1
    start = lo if lo is not None else hi
    assert start is not None
    reach = 3
    while not (Ball.of(2**reach) - abs(start)).lo > 1:
        reach += 1
    near = Ball.of(side * 2**reach)
    signs = [_sign(law, k, start, near) if side > 0 else _sign(law, k, near, start)]
    flat = False
    while reach < _END and signs[-1] is not None:
        after = min(2 * reach, _END)
        sign, flat = _far_sign(law, k, side, reach, after, limits)
        signs.append(sign)
        reach = after
    return _joined(signs), flat


def _far_sign(law: Law, k: int, side: int, start: int, stop: int, limits: tuple[Ball, Ball] | None) -> tuple[int | None, bool]:
    """Sign between the powers of two ``start`` and ``stop``, halving the range of exponents; and whether it ends flat."""
    cell = Ball.between(side * 2**start, side * 2**stop)
    sign = _definite(_coefficient(law, k, cell))
    if sign is not None:
        return sign, False
    with precision(_FINE):
        if _is_flat(law, k, cell, side, limits):
            return 0, True
    if stop - start <= 1:
        return _bisected(law, k, cell.least(), cell.largest(), 12), False
    middle = (start + stop) // 2
    first, _ = _far_sign(law, k, side, start, middle, limits)
    if first is None:
        return None, False
    last, flat = _far_sign(law, k, side, middle, stop, limits)
    return _joined([first, last]), flat


def _is_flat(law: Law, k: int, cell: Ball, side: int, limits: tuple[Ball, Ball] | None) -> bool:
    """Coefficient k-1 is as good as its limit (for k = 0: the coefficient is as good as 0)."""
    if k == 0:
        return _coefficient(law, 0, cell).inside(_FLAT)
    limit = None if limits is None else limits[1 if side > 0 else 0]
    return limit is not None and limit.is_finite and (_coefficient(law, k - 1, cell) - limit).inside(_FLAT)


def _sign(law: Law, k: int, lo: Ball, hi: Ball) -> int | None:
    """Sign (0: identically zero) of coefficient k on [lo, hi], None if it changes or stays open."""
    return _bisected(law, k, lo, hi, 22) if lo.below(hi) else 0


def _bisected(law: Law, k: int, lo: Ball, hi: Ball, depth: int) -> int | None:
    sign = _tried(law, k, lo, hi)
    if sign is None and depth % 4 == 0 and (hi - lo).hi < 1:
        with precision(_FINE):
            sign = _tried(law, k, lo, hi)
    if sign is not None or not depth:
        return sign
    middle = lo.hull(hi).middle()
    left = _bisected(law, k, lo, middle, depth - 1)
    return None if left is None else _joined([left, _bisected(law, k, middle, hi, depth - 1)])


def _tried(law: Law, k: int, lo: Ball, hi: Ball) -> int | None:
    """The sign without bisection: of the coefficient, or by the sign of its derivative and its signs at both ends."""
    terms = law.jet(lo.hull(hi), k + 1).terms
    sign = _definite(terms[k])
    if sign is not None:
        return sign
    middle = lo.hull(hi).middle()
    around = _coefficient(law, k, middle) + Ball.of(k + 1) * terms[k + 1] * (lo.hull(hi) - middle)
    if (sign := _definite(around)) is not None or _definite(terms[k + 1]) is None:
        return sign
    first, last = _definite(_coefficient(law, k, lo)), _definite(_coefficient(law, k, hi))
    return None if first is None or last is None else _joined([first, last])


def _definite(value: Ball) -> int | None:
    if value.is_zero:
        return 0
    if value.lo >= 0:
        return 1
    return -1 if value.hi <= 0 else None


def _joined(signs: Sequence[int | None]) -> int | None:
    """The common sign of neighbouring pieces; None if one is open or two differ."""
    found = 0
    for sign in signs:
        if sign is None or sign * found < 0:
            return None
        found = sign or found
    return found


def _at_end(
    law: Law, k: int, right: bool, direction: int | None, stated: Ball, limits: tuple[Ball, Ball] | None, name: str
) -> Iterator[str]:
    """The stated limit lies where a monotone function is going, and within what is stated for all reals."""
    where = "inf" if right else "-inf"
    if limits is None:
        return
    limit = limits[1 if right else 0]
    if not limit.inside(stated):
        yield f"{name}: the limit at {where} is not within [{stated.lo}, {stated.hi}]"
    with precision(_FINE):
        last = _coefficient(law, k, Ball.of(2**_END if right else -(2**_END)))
    if not last.inside(stated) and not (last + _NOTHING).meets(stated):
        yield f"{name} near {where} is not within [{stated.lo}, {stated.hi}]"
    rises = (direction or 0) * (1 if right else -1)  # towards the end of the line
    below, above = not (limit + _NOTHING).below(last), not last.below(limit - _NOTHING)
    if not ((below if rises >= 0 else True) and (above if rises <= 0 else True)):
        yield f"{name}: {limit} is not the limit at {where}"
