"""Slopes and ranges on intervals, attacked at 40 digits: no secant is steeper, no value lies outside, and both are sharp."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest

from lipaudit.bounds.ball import Ball
from lipaudit.operators.base import Site
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.elementwise import Scalar
from lipaudit.operators.law import Law
from lipaudit.operators.range import Range
from tests.rules.entries import CATALOGUE, is_step, laws, named, site_of

mpmath.mp.dps = 40
LAWS = [pytest.param(kind, attributes, law, id=named(kind, attributes)) for kind, attributes, law in laws()]
SMOOTH = [param for param in LAWS if not is_step(param.values[2])]


def value(law: Law, x: float) -> tuple[Any, Any]:
    """f(x) from both sides, at 40 digits (equal but for a jump at x)."""
    ball = law.jet(Ball.of(x), 0).terms[0]
    return digits(ball.lo), digits(ball.hi)


def digits(end: Any) -> Any:
    """An end of a ball, exactly (128 bits fit into 40 digits)."""
    if not end.is_finite():
        return mpmath.inf if end > 0 else -mpmath.inf
    mantissa, exponent = (int(part) for part in end.man_exp())
    return mpmath.ldexp(mpmath.mpf(mantissa), exponent)


def intervals(law: Law, rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Random intervals of all sizes, many at or around a turn, kink or extremum, within the domain."""
    special = [p.floats()[0] for p in (*law.turns, *law.kinks, *law.extrema)] or [0.0]
    lo, hi = law.domain.floats() if law.domain is not None else (-math.inf, math.inf)
    found: list[tuple[float, float]] = []
    while len(found) < count:
        centre = rng.choice(special) if rng.random() < 0.6 else rng.uniform(-12, 12)
        size = 10.0 ** rng.uniform(-6, 1)
        a = centre - (0.0 if rng.random() < 0.2 else size * rng.random())
        b = centre + (0.0 if rng.random() < 0.2 else size * rng.random())
        a, b = max(a, lo), min(b, hi)
        if a < b:
            found.append((float(a), float(b)))
    return found


@pytest.mark.parametrize(("kind", "attributes", "law"), SMOOTH)
def test_no_secant_is_steeper_than_the_local_slope(kind: str, attributes: dict[str, Any], law: Law) -> None:
    rng = np.random.default_rng(len(kind))
    for a, b in intervals(law, rng, 25):
        if any(True for _ in law.inside(law.jump_at, Ball.between(a, b))):
            continue
        slope = law.slope_on(a, b)
        assert slope.inside(law.slope)
        x, y = sorted(rng.uniform(a, b, 2)) if rng.random() < 0.7 else (a, b)
        if not x < y:
            continue
        (first, _), (last, _) = value(law, float(x)), value(law, float(y))
        if mpmath.isinf(first) or mpmath.isinf(last):
            assert not slope.is_finite
            continue
        if any(True for _ in law.inside(law.poles, Ball.between(float(x), float(y)))):
            assert not slope.is_finite
            continue
        secant = (last - first) / (mpmath.mpf(float(y)) - mpmath.mpf(float(x)))
        error = mpmath.mpf(10) ** -30 * (1 + abs(first) + abs(last)) / (mpmath.mpf(float(y)) - mpmath.mpf(float(x)))
        assert digits(slope.lo) - error <= secant <= digits(slope.hi) + error, (a, b, float(x), float(y))


@pytest.mark.parametrize(("kind", "attributes", "law"), SMOOTH)
def test_local_slope_is_attained(kind: str, attributes: dict[str, Any], law: Law) -> None:
    """On a fine grid the derivative comes within 1 % of the claimed largest magnitude."""
    rng = np.random.default_rng(1 + len(kind))
    for a, b in intervals(law, rng, 6):
        slope = law.slope_on(a, b)
        if not slope.is_finite or kind == "lipaudit::Gelu":
            continue
        size = float(slope.magnitude())
        inside = [p.floats()[0] for p in (*law.turns, *law.kinks) if a <= p.floats()[0] <= b]
        grid = sorted({a, b, *np.linspace(a, b, 30).tolist(), *inside})
        seen = max(float(law.jet(Ball.of(x), 1).terms[1].magnitude()) for x in grid)
        assert seen >= 0.99 * size - 1e-80


@pytest.mark.parametrize(("kind", "attributes", "law"), LAWS)
def test_values_lie_in_the_range_and_the_range_is_sharp(kind: str, attributes: dict[str, Any], law: Law) -> None:
    rng = np.random.default_rng(2 + len(kind))
    boxes = intervals(law, rng, 25)
    lo, hi = np.asarray([a for a, _ in boxes]), np.asarray([b for _, b in boxes])
    low, high = law.enclose(lo, hi)
    low, high = np.broadcast_to(low, lo.shape), np.broadcast_to(high, hi.shape)
    places = [p.floats()[0] for p in (*law.extrema, *law.jump_at)]
    for i, (a, b) in enumerate(boxes):
        if any(True for _ in law.inside(law.poles, Ball.between(a, b))):
            assert low[i] == -math.inf and high[i] == math.inf
            continue
        grid = [a, b, *rng.uniform(a, b, 6).tolist(), *[p for p in places if a <= p <= b]]
        seen = [end for x in grid for end in value(law, float(x))]
        assert mpmath.mpf(float(low[i])) <= min(seen)
        assert max(seen) <= mpmath.mpf(float(high[i]))
        if law.period is None and kind != "lipaudit::Gelu":  # whose extremum is known up to the stored constants
            for claimed, end, sign in ((low[i], min(seen), 1), (high[i], max(seen), -1)):
                slack = 1e-12 * (1 + abs(float(end)))
                assert float(claimed) == float(end) or sign * (float(end) - float(claimed)) <= slack


@pytest.mark.parametrize("lo", [-math.inf, -3.0, 0.5])
@pytest.mark.parametrize("hi", [-1.0, 2.0, math.inf])
@pytest.mark.parametrize(("kind", "attributes", "law"), SMOOTH)
def test_half_lines(kind: str, attributes: dict[str, Any], law: Law, lo: float, hi: float) -> None:
    """Slopes and values at points of a half-line lie in what is claimed for it."""
    if lo > hi or law.leaves_domain(lo, hi):
        return
    slope = law.slope_on(lo, hi)
    low, high = law.enclose(np.asarray([lo]), np.asarray([hi]))
    low, high = np.broadcast_to(low, (1,)), np.broadcast_to(high, (1,))
    for x in (-700.0, -40.0, -3.0, -2.0, -1.0, 0.5, 1.0, 2.0, 40.0, 700.0):
        if not lo <= x <= hi or any(True for _ in law.inside(law.poles, Ball.between(lo, hi))):
            continue
        if not any(True for _ in law.inside((*law.kinks, *law.jump_at), Ball.of(x))):
            derivative = law.jet(Ball.of(x), 1).terms[1]
            assert derivative.meets(slope), x
        first, last = value(law, x)
        assert float(low[0]) <= last and first <= float(high[0])


def scalar_site(kind: str, attributes: dict[str, Any]) -> tuple[Scalar, Site]:
    entry = CATALOGUE.entries[kind]
    from lipaudit.operators.entry import Argument, Check

    site, _ = site_of(entry, Check(inputs=[Argument(shape=(3, 4))], outputs=[[3, 4]], attrs=attributes))
    rule = Catalogue.load().rule(site.node)
    assert isinstance(rule, Scalar)
    return rule, site


@pytest.mark.parametrize(("kind", "attributes", "law"), LAWS)
def test_row_norms_and_diameters(kind: str, attributes: dict[str, Any], law: Law) -> None:
    """Rows of length up to R about 0, and within D of each other, stay within what the range of the output says."""
    rule, site = scalar_site(kind, attributes)
    rng = np.random.default_rng(3 + len(kind))
    for scale in (0.1, 1.0, 5.0):
        x = rng.uniform(-1, 1, (40, 3, 4)) * scale
        if law.domain is not None:
            x = np.clip(x, *law.domain.floats())
        rows = x.reshape(-1, 4)
        radius = float(np.max(np.linalg.norm(rows, axis=1))) * (1 + 1e-12)
        spread = max(float(np.linalg.norm(a - b)) for sample in x for a in sample for b in sample) * (1 + 1e-12)
        for given in (Range((3, 4), np.asarray(x.min()), np.asarray(x.max()), row=radius, diameter=spread),
                      Range((3, 4), np.asarray(-math.inf), np.asarray(math.inf), row=radius, diameter=spread)):  # fmt: skip
            (found,) = rule.range(site, [given])
            y = law.values(_points(x))
            middle = np.where(np.isfinite(y.lo) & np.isfinite(y.hi), y.lo / 2 + y.hi / 2, 0.0)
            rows_of = np.linalg.norm(middle.reshape(-1, 4), axis=1)
            assert float(np.max(rows_of)) <= found.row * (1 + 1e-12) + 1e-12
            if law.jump is None:
                gaps = max(float(np.linalg.norm(a - b)) for sample in middle for a in sample for b in sample)
                assert gaps <= found.diameter * (1 + 1e-12) + 1e-12


def _points(x: Any) -> Any:
    from lipaudit.operators.elements import Elements

    return Elements.points(x)
