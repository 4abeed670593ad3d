"""Slopes and ranges on intervals are proved from the formula, for every scalar entry; what is 1 % too small is refuted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lipaudit.bounds.ball import Ball
from lipaudit.operators.law import Law
from lipaudit.operators.proof import prove_range_on, prove_slope_on
from lipaudit.operators.step_proof import prove_steps
from tests.rules.entries import CATALOGUE, SCALAR, is_step, laws, named
from tests.rules.test_local_slopes import intervals
from tests.rules.test_proofs import LAWS as PROVED
from tests.rules.test_proofs import key

LAWS = [pytest.param(kind, law, id=named(kind, attributes)) for kind, attributes, law in laws()]
SMOOTH = list({key(param.values[1]): param for param in LAWS if not is_step(param.values[1])}.values())
STEPS = [param for param in LAWS if is_step(param.values[1])]
# Said without a formula: x -> -1 - x (or 2^n - 1 - x) of whole numbers, an isometry.
WITHOUT_FORMULA = {"ai.onnx::BitwiseNot"}


def test_no_scalar_entry_is_without_a_proof() -> None:
    """Each entry, at the settings that it lists, is among the smooth laws that are proved on all reals and here, or among the steps."""
    assert {param.values[0] for param in LAWS} == set(SCALAR) - WITHOUT_FORMULA
    assert {key(param.values[1]) for param in PROVED} == {key(param.values[1]) for param in (*SMOOTH, *STEPS)}
    for kind in set(SCALAR) - WITHOUT_FORMULA:
        entry = CATALOGUE.entries[kind]
        listed = [law for of, _, law in laws() if of == kind]
        # Another formula of a case is proved where a sample has it.
        cases = {entry.formula, *(case.formula for case in entry.case if case.formula and not case.refuse)} - {None}
        assert len({law.formula.text for law in listed if law.formula}) >= len(cases), kind


def special(law: Law) -> list[float]:
    return sorted({point.floats()[0] for point in (*law.turns, *law.kinks, *law.extrema, *law.jump_at)} | {0.0})


def boxes(law: Law) -> list[tuple[float, float]]:
    """Around and beside every place where something changes, of all sizes; points; tails; the whole line but for its ends."""
    lo, hi = law.domain.floats() if law.domain is not None else (-math.inf, math.inf)
    found: list[tuple[float, float]] = []
    for p in special(law):
        for size in (1e-12, 1e-6, 1e-2, 1.0):
            found += [(p - size, p + size), (p, p + size), (p - size, p)]
        found += [(p, math.inf), (-math.inf, p), (np.nextafter(p, -math.inf), np.nextafter(p, math.inf)), (p, p)]
    found += [(-1e300, 1e300), (1e4, 1e300), (-1e300, -1e4), (5.0, 700.0), (-700.0, -5.0), (40.0, math.inf), (-math.inf, -40.0)]
    found += [(1e-300, 1e-299), (-1e-299, 1e-300), (3.0, 3.0), *intervals(law, np.random.default_rng(5), 8)]
    return sorted({(max(float(a), lo), min(float(b), hi)) for a, b in found if max(a, lo) <= min(b, hi)})


def enclosed(law: Law, lo: float, hi: float) -> Ball:
    low, high = (float(np.ravel(end)[0]) for end in law.enclose(np.asarray([lo]), np.asarray([hi])))
    return Ball.between(low, high)


@pytest.mark.parametrize(("kind", "law"), SMOOTH)
def test_slope_and_range_on_intervals_are_proved(kind: str, law: Law) -> None:
    wrong: list[Any] = []
    for lo, hi in boxes(law):
        wrong += [("slope", lo, hi, *prove_slope_on(law, lo, hi, law.slope_on(lo, hi)))]
        wrong += [("range", lo, hi, *prove_range_on(law, lo, hi, enclosed(law, lo, hi)))]
    assert [found for found in wrong if len(found) > 3] == []


@pytest.mark.parametrize(("kind", "law"), SMOOTH)
def test_an_interval_1_percent_too_small_is_refuted(kind: str, law: Law) -> None:
    """Both ends of both intervals, on neighbourhoods that hold one place where something changes."""
    lo, hi = law.domain.floats() if law.domain is not None else (-math.inf, math.inf)
    tried = 0
    for p in (*special(law), 2.0):
        for a, b in ((p - 0.6, p + 0.7), (p - 1e-3, p + 1e-2)):
            a, b = max(a, lo), min(b, hi)
            if not a < b:
                continue
            for stated, prove in ((law.slope_on(a, b), prove_slope_on), (enclosed(law, a, b), prove_range_on)):
                if not stated.is_finite or (law.turns and kind == "lipaudit::Gelu"):  # known up to the constants that a file stores
                    continue
                for end, other in ((stated.largest(), stated.least()), (stated.least(), stated.largest())):
                    width = end - other
                    size = (end if width.is_zero else width) * Ball.of("0.01")
                    if float(size.magnitude()) < 2.0**-200:
                        continue
                    moved = (end - size).hull(other)
                    if end.inside(moved):
                        continue
                    tried += 1
                    assert next(prove(law, a, b, moved), None) is not None, (a, b, stated, moved)
    assert tried or law.slope.is_zero or kind == "lipaudit::Gelu" or not law.formula


@pytest.mark.parametrize(("kind", "law"), SMOOTH)
def test_a_turn_or_an_extremum_that_is_forgotten_is_refuted(kind: str, law: Law) -> None:
    for name, prove in (("turns", prove_slope_on), ("extrema", prove_range_on)):
        points: tuple[Ball, ...] = getattr(law, name)
        for i, point in enumerate(points):
            p = point.floats()[0]
            others = (*law.kinks, *law.jump_at, *points[:i], *points[i + 1 :])
            order = 2 if name == "turns" else 1
            terms = law.jet(point, order + 1).terms
            if any(point.meets(other) for other in others) or not terms[order].meets(Ball.of(0)) or terms[order + 1].is_zero:
                continue  # a family lists what only some of its members have
            a, b = p - 0.01, p + 0.02
            if any(other.meets(Ball.between(a, b)) for other in others):
                continue
            forgetful = replace(law, **{name: (*points[:i], *points[i + 1 :])})
            stated = forgetful.slope_on(a, b) if name == "turns" else enclosed(forgetful, a, b)
            assert next(prove(law, a, b, stated), None) is not None, (name, p)


@pytest.mark.parametrize(("kind", "law"), STEPS)
def test_steps_are_proved_and_smaller_ones_are_not(kind: str, law: Law) -> None:
    assert law.jump is not None
    assert list(prove_steps(law)) == []
    assert list(prove_steps(replace(law, jump=law.jump * Ball.of("0.99")))) != []
    if not law.slope.is_zero:
        assert list(prove_steps(replace(law, slope=law.slope * Ball.of("0.99")))) != []
