"""Arrays of intervals: the allowance for library functions is enough, and results contain all values."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest

from lipaudit.bounds.ball import Ball
from lipaudit.operators.elements import ERFC_ULPS, ULPS, Elements
from lipaudit.operators.formula import parse

FUNCTIONS = (
    "exp",
    "log",
    "sqrt",
    "tanh",
    "erf",
    "erfc",
    "sigmoid",
    "softplus",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "atan",
    "asin",
    "acos",
    "sin",
    "cos",
    "tan",
)
LIMITS = {"log": (1e-300, 1e300), "sqrt": (0, 1e300), "acosh": (1, 1e6), "atanh": (-1, 1), "asin": (-1, 1), "acos": (-1, 1),
          "tan": (-1.57, 1.57), "exp": (-745, 709), "sinh": (-700, 700), "cosh": (-700, 700), "erfc": (-6, 26)}  # fmt: skip


def samples(name: str) -> Any:
    rng = np.random.default_rng(7)
    lo, hi = LIMITS.get(name, (-40.0, 40.0))
    small = rng.choice([-1.0, 1.0], 300) * 10.0 ** rng.uniform(-12, 1, 300)
    x = np.concatenate([rng.uniform(max(lo, -50), min(hi, 50), 500), rng.uniform(lo, hi, 300), small, [0.0, 1.0, lo, hi]])
    return np.clip(x, lo, hi)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_point_values_are_enclosed(name: str) -> None:
    x = samples(name)
    found = getattr(Elements.points(x), name)()
    for value, lo, hi in zip(x, found.lo, found.hi, strict=True):
        exact = getattr(Ball.of(float(value)), name)()
        assert not exact.below(Ball.of(float(lo))), (name, value)
        assert not Ball.of(float(hi)).below(exact), (name, value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_library_functions_are_within_half_of_the_allowance(name: str) -> None:
    """Measured error in units in the last place: half of :data:`ULPS` leaves room for other machines."""
    x = samples(name)
    # The centre of the enclosure is what the library returned.
    found = getattr(Elements.points(x), name)()
    worst = 0.0
    for value, lo, hi in zip(x, found.lo, found.hi, strict=True):
        if not (math.isfinite(lo) and math.isfinite(hi)) or lo in (-1.0, 0.0, 1.0) or hi in (1.0, 2.0, -1.0):
            continue  # clamped at an exact end
        computed = lo / 2 + hi / 2
        exact = getattr(Ball.of(float(value)), name)().middle()
        if abs(computed) < 1e-300:
            continue
        error = abs((exact - Ball.of(computed)).floats()[0])
        worst = max(worst, error / math.ulp(abs(computed)))
    assert worst <= (ERFC_ULPS if name == "erfc" else ULPS) / 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_intervals_contain_their_values(name: str) -> None:
    rng = np.random.default_rng(8)
    lo, hi = LIMITS.get(name, (-40.0, 40.0))
    lo, hi = max(lo, -30.0), min(hi, 30.0)
    ends = np.sort(rng.uniform(lo, hi, (60, 2)), axis=1)
    found = getattr(Elements(ends[:, 0], ends[:, 1]), name)()
    for t in rng.random(8):
        x = ends[:, 0] + t * (ends[:, 1] - ends[:, 0])
        inner = getattr(Elements.points(x), name)()
        assert np.all(found.lo <= inner.hi)
        assert np.all(inner.lo <= found.hi)


@pytest.mark.parametrize(
    "text",
    [
        "x^2",
        "x^3",
        "1/x",
        "x*x - x",
        "max(x, 2)",
        "min(x, abs(x))",
        "where(x < 1, x*x, 2*x - 1)",
        "x^(-2)",
        "floor(x)",
        "round(x)",
        "ceil(x)",
        "sign(x)",
    ],
)
def test_formulas_over_balls_and_arrays_agree(text: str) -> None:
    formula = parse(text)
    rng = np.random.default_rng(9)
    ends = np.sort(rng.uniform(-4, 4, (40, 2)), axis=1)
    found = formula.evaluate({"x": Elements(ends[:, 0], ends[:, 1])}, Elements.constant)
    lo, hi = np.broadcast_to(found.lo, 40), np.broadcast_to(found.hi, 40)
    for (a, b), low, high in zip(ends, lo, hi, strict=True):
        for x in (a, b, *rng.uniform(a, b, 4)):
            y = formula.ball({"x": Ball.of(float(x))})
            assert not y.below(Ball.of(float(low))) if math.isfinite(low) else True
            assert not Ball.of(float(high)).below(y) if math.isfinite(high) else True


def test_overflow_and_exact_zeros() -> None:
    big = Elements.points(np.asarray([1e3, -1e3])).exp()
    assert big.lo[0] == np.finfo(float).max and big.hi[0] == np.inf
    assert big.lo[1] == 0.0 and 0 < big.hi[1] < 1e-320
    product = Elements.points(np.asarray(0.0)) * Elements(np.asarray(-np.inf), np.asarray(np.inf))
    assert product.lo == 0.0 and product.hi == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-x^2", -9),
        ("2^3", 8),
        ("1/2/2", 0.25),
        ("1 - 2 - 3", -4),
        ("-2*-3", 6),
        ("max(1, 2, 3)", 3),
        ("where(x > 2, 7, 8)", 7),
        ("1e-1 + .5", 0.6),
        ("x^(-1)", 1 / 3),
    ],
)
def test_parser_follows_the_usual_precedence(text: str, value: float) -> None:
    found = parse(text).ball({"x": Ball.of(3)})
    assert found.floats()[0] - 1e-15 <= value <= found.floats()[1] + 1e-15


def test_uncertain_digits() -> None:
    lo, hi = parse("-1.25(2)").ball({}).floats()
    assert lo <= -1.27 < -1.2699 and hi >= -1.23 > -1.2301
    assert abs(lo + 1.27) < 1e-15 and abs(hi + 1.23) < 1e-15
    assert parse("0(1)").ball({}).floats() == (-1.0, 1.0)


@pytest.mark.parametrize(
    "text", ["", "1 +", "sin x", "f(x)", "x**y", "x**0.5", "1..2", "a.b", "where(x, 1, 2)", "(1", "1)", "max()", "__import__('os')", "x[0]"]
)
def test_parser_refuses_anything_else(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_decimals_are_exact() -> None:
    tenth = parse("0.1").ball({})
    mpmath.mp.dps = 60
    width = (tenth.largest() - tenth.least()).floats()[1]
    assert 0 < width < 1e-38
