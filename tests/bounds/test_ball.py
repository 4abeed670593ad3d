"""Balls and jets enclose what mpmath computes at 60 digits."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipaudit.bounds.ball import Ball, precision
from lipaudit.bounds.jet import Jet

mpmath.mp.dps = 60

FUNCTIONS: dict[str, Any] = {
    "exp": mpmath.exp, "log": mpmath.log, "sqrt": mpmath.sqrt, "tanh": mpmath.tanh, "erf": mpmath.erf, "erfc": mpmath.erfc,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)), "softplus": lambda x: mpmath.log(1 + mpmath.exp(x)), "sinh": mpmath.sinh,
    "cosh": mpmath.cosh, "asinh": mpmath.asinh, "acosh": mpmath.acosh, "atanh": mpmath.atanh, "atan": mpmath.atan,
    "asin": mpmath.asin, "acos": mpmath.acos, "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan,
    "reciprocal": lambda x: 1 / x,
}  # fmt: skip
DOMAIN = {"log": (0.01, 20), "sqrt": (0.01, 20), "acosh": (1.01, 20), "atanh": (-0.99, 0.99), "asin": (-0.99, 0.99), "acos": (-0.99, 0.99),
          "tan": (-1.5, 1.5), "reciprocal": (0.1, 9.0)}  # fmt: skip


def contains(ball: Ball, x: Any) -> bool:
    """``ball`` widened by the printing error of its own ends contains x."""
    lo, hi = (
        mpmath.mpf(end.str(45, radius=False)) if end.is_finite() else mpmath.mpf("inf") * (1 if end > 0 else -1)
        for end in (ball.lo, ball.hi)
    )
    slack = mpmath.mpf(10) ** -40 * (1 + abs(x))
    return bool(lo - slack <= x <= hi + slack)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_and_its_derivatives(name: str) -> None:
    rng = np.random.default_rng(1)
    lo, hi = DOMAIN.get(name, (-9.0, 9.0))
    for x in rng.uniform(lo, hi, 12):
        jet = getattr(Jet.variable(Ball.of(float(x)), 3), name)()
        expected = mpmath.taylor(FUNCTIONS[name], mpmath.mpf(float(x)), 3)
        for term, exact in zip(jet.terms, expected, strict=True):
            width = float((term.largest() - term.least()).floats()[1])
            assert abs(mpmath.mpf(term.middle().lo.str(45, radius=False)) - exact) <= mpmath.mpf(10) ** -18 * (1 + abs(exact))
            assert width <= 1e-24 * (1 + abs(float(exact)))
        assert contains(getattr(Ball.of(float(x)), name)(), FUNCTIONS[name](mpmath.mpf(float(x))))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_intervals_contain_all_values(name: str) -> None:
    rng = np.random.default_rng(2)
    lo, hi = DOMAIN.get(name, (-9.0, 9.0))
    for _ in range(20):
        a, b = sorted(rng.uniform(lo, hi, 2))
        ball = Ball.between(float(a), float(b))
        image = getattr(ball, name)()
        jet = getattr(Jet.variable(ball, 2), name)()
        for x in [a, b, *rng.uniform(a, b, 5)]:
            assert contains(image, FUNCTIONS[name](mpmath.mpf(float(x))))
            for term, exact in zip(jet.terms, mpmath.taylor(FUNCTIONS[name], mpmath.mpf(float(x)), 2), strict=True):
                assert contains(term, exact)


numbers = st.floats(-1e6, 1e6)


@given(numbers, numbers, numbers, numbers, st.integers(0, 4), st.integers(0, 4))
def test_arithmetic_contains_the_exact_result(a: float, b: float, c: float, d: float, i: int, j: int) -> None:
    x, y = Ball.between(min(a, b), max(a, b)), Ball.between(min(c, d), max(c, d))
    p = min(a, b) + (max(a, b) - min(a, b)) * i / 4
    q = min(c, d) + (max(c, d) - min(c, d)) * j / 4
    p, q = min(max(p, min(a, b)), max(a, b)), min(max(q, min(c, d)), max(c, d))
    u, v = mpmath.mpf(p), mpmath.mpf(q)
    pairs = [
        (x + y, u + v),
        (x - y, u - v),
        (x * y, u * v),
        (abs(x), abs(u)),
        (x**2, u**2),
        (x**3, u**3),
        (x.maximum(y), max(u, v)),
        (x.minimum(y), min(u, v)),
    ]
    pairs.append((Ball.select(x, y, x), v if p < 0 else u))
    if q != 0:
        pairs.append((x / y, u / v))
    for ball, exact in pairs:
        lo, hi = ball.lo, ball.hi
        slack = mpmath.mpf(10) ** -36 * (1 + abs(exact))
        assert not lo.is_finite() or mpmath.mpf(lo.str(60, radius=False)) - slack <= exact
        assert not hi.is_finite() or exact <= mpmath.mpf(hi.str(60, radius=False)) + slack


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_are_exact_and_floats_are_outside(x: float) -> None:
    assert Ball.of(x).floats() == (x, x)
    third = Ball.of(x) / Ball.of(3)
    lo, hi = third.floats()
    assert not third.below(Ball.of(lo))
    assert not Ball.of(hi).below(third)
    assert lo <= hi


def test_infinite_ends_are_limits() -> None:
    inf = Ball.of("inf")
    assert inf.exp().floats()[1] == math.inf
    assert (-inf).exp().floats() == (0.0, 0.0)
    assert inf.tanh().floats() == (1.0, 1.0)
    assert (-inf).erf().floats() == (-1.0, -1.0)
    assert (inf * Ball.of(0)).floats() == (0.0, 0.0)
    assert Ball.between(0, 2).reciprocal().floats() == (0.5, math.inf)
    assert Ball.between(-1, 2).reciprocal().floats() == (-math.inf, math.inf)
    assert Ball.of(0).reciprocal().floats() == (-math.inf, math.inf)
    assert (Ball.of(2) ** 1000).exp().floats()[0] > 1e300
    assert Ball.between(1, 2).tan().floats() == (-math.inf, math.inf)


def test_what_is_certain() -> None:
    x = Ball.between(1, 2)
    assert x.below(Ball.of(3))
    assert not x.below(Ball.of(2))
    assert x.not_above(Ball.of(2))
    assert Ball.of(2).not_above(Ball.of(2))
    assert x.meets(Ball.of(2))
    assert not x.meets(Ball.of("2.0000001"))
    assert x.inside(Ball.between(0, 2))
    assert not x.inside(Ball.between(0, "1.9999999999999999999999"))
    with pytest.raises(TypeError, match="truth value"):
        bool(x)


def test_more_precision_is_narrower() -> None:
    coarse = Ball.of(2).sqrt()
    with precision(500):
        fine = Ball.of(2).sqrt()
        assert (fine.largest() - fine.least()).below(Ball.of(2.0**-490))
    assert Ball.of(2.0**-200).below(coarse.largest() - coarse.least())


def test_pieces_of_a_jet_meet_in_the_hull() -> None:
    x = Jet.variable(Ball.of(0), 1)
    assert abs(x).terms[1].floats() == (-1.0, 1.0)
    right = abs(Jet.variable(Ball.between(0, 1), 1))
    assert right.terms[1].floats() == (1.0, 1.0), "inside one piece only its own slope"
    assert abs(Jet.variable(Ball.between(-1, 0), 1)).terms[1].floats() == (-1.0, -1.0)
