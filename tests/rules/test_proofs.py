"""Every scalar entry is proved from its formula; and a slope, range, jump or turn that is 1 % off is refuted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lipaudit.bounds.ball import Ball
from lipaudit.operators.elements import Elements
from lipaudit.operators.law import Law
from lipaudit.operators.proof import prove, prove_contraction, prove_range, prove_slope
from tests.rules.entries import CATALOGUE, is_step, laws, named, number


def key(law: Law) -> str:
    """Equal for entries that say the same."""
    assert law.formula is not None
    return repr(
        (law.formula.text, {**law.names}, *(getattr(law, name) for name in Law.__dataclass_fields__ if name not in ("formula", "names")))
    )


LAWS = [pytest.param(kind, law, id=named(kind, attributes)) for kind, attributes, law in laws()]
SMOOTH = [param for param in LAWS if not is_step(param.values[1])]
# Of a family whose members differ by a scale, one is enough: |f(x)| <= |x| scales.
CONTRACTING = list(
    {param.values[1].formula.text: param for param in reversed(SMOOTH) if CATALOGUE.entries[param.values[0]].contracts}.values()
)
# The ends of the interval of cubic terms where the slopes of a spelled-out GELU are claimed: proved, but not sharp there.
SLACK = [param for param in SMOOTH if param.values[0] == "lipaudit::Gelu" and "b" in param.values[1].names and "0.79" not in param.id]
SHARP = [param for param in SMOOTH if param not in SLACK]
JUMPING = [param for param in LAWS if param.values[1].jump is not None]

_proved: dict[str, list[str]] = {}


@pytest.mark.parametrize(("kind", "law"), SMOOTH)
def test_slope_range_turns_and_limits_are_proved(kind: str, law: Law) -> None:
    found = _proved.get(key(law))
    if found is None:
        found = _proved[key(law)] = list(prove(law))
    assert found == []


@pytest.mark.parametrize(("kind", "law"), CONTRACTING)
def test_contractions_are_proved(kind: str, law: Law) -> None:
    assert list(prove_contraction(law)) == []


def shrunk(stated: Ball, upper: bool) -> Ball | None:
    """The interval without its outermost 1 % at one end (of 1 where it is 0); None if that end is infinite."""
    end = stated.largest() if upper else stated.least()
    if not end.is_finite:
        return None
    step = abs(end) * Ball.of("0.01")
    if end.is_zero:
        other = stated.least() if upper else stated.largest()
        step = abs(other) * Ball.of("0.01") if other.is_finite else Ball.of("0.01")
    moved = end - step if upper else end + step
    least, largest = (stated.least(), moved) if upper else (moved, stated.largest())
    return None if largest.below(least) else least.hull(largest)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("kind", "law"), SHARP)
def test_a_slope_1_percent_too_small_is_refuted(kind: str, law: Law, upper: bool) -> None:
    slope = shrunk(law.slope, upper)
    if slope is None and law.slope.is_finite:
        slope = law.slope * Ball.of("0.99")  # one number
    if slope is None or law.slope.is_zero:
        return
    assert next(prove_slope(replace(law, slope=slope)), None) is not None


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("kind", "law"), SHARP)
def test_a_range_1_percent_too_small_is_refuted(kind: str, law: Law, upper: bool) -> None:
    values = shrunk(law.range, upper)
    if values is None:
        return
    assert next(prove_range(replace(law, range=values)), None) is not None


@pytest.mark.parametrize(("kind", "law"), list({key(param.values[1]): param for param in SHARP}.values()))
def test_a_missing_turn_or_extremum_is_refuted(kind: str, law: Law) -> None:
    for name in ("turns", "extrema"):
        points: tuple[Ball, ...] = getattr(law, name)
        for i, point in enumerate(points):
            if name == "extrema" and any(point.meets(other) for other in (*law.kinks, *law.jump_at, *points[:i], *points[i + 1 :])):
                continue  # listed more than once: generous, not wrong
            if name == "turns" and any(point.meets(other) for other in law.kinks):
                continue
            if _is_superfluous(law, name, point):
                continue
            mutant = replace(law, **{name: (*points[:i], *points[i + 1 :])})
            found = prove_slope(mutant) if name == "turns" else prove_range(mutant)
            assert next(found, None) is not None, (name, point)


def _is_superfluous(law: Law, name: str, point: Ball) -> bool:
    """Some families list a point that only some of their members have (an extremum that a negative alpha makes)."""
    order = 2 if name == "turns" else 1
    terms: Any = law.jet(point, order + 1).terms
    return not terms[order].meets(Ball.of(0)) or terms[order + 1].is_zero


@pytest.mark.parametrize(("kind", "law"), JUMPING)
def test_jumps_are_enough_and_not_1_percent_less(kind: str, law: Law) -> None:
    """``|f(x) - f(y)| - L |x - y|`` over points close to every jump, in doubles whose values are exact here."""
    assert law.formula is not None
    assert law.jump is not None
    jump, slope = float(law.jump.magnitude()), float(law.slope.magnitude())
    places = [place.floats()[0] for place in law.jump_at] or [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    near = [p + d for p in places for d in (-1.0, -(2.0**-20), 0.0, 2.0**-20, 1.0)] + list(np.arange(-4, 4.25, 0.25))
    x = np.asarray(near)
    below, above = (law.values(_shifted(x, side)) for side in (-1, 1))
    worst = 0.0
    for first in (below, above):
        for second in (below, above):
            for a, b in ((first.lo, second.hi), (first.hi, second.lo)):
                worst = max(worst, float(np.max(np.abs(a[:, None] - b[None]) - slope * np.abs(x[:, None] - x[None]))))
    assert worst <= jump + 2.0**-19, "a jump is larger than stated"
    if jump > 0:
        assert worst >= 0.995 * jump, "the stated jump is larger than any"


def _shifted(x: Any, side: int) -> Any:

    return Elements.points(x + side * 2.0**-30)


def test_slopes_of_a_spelled_out_gelu_hold_between_the_sampled_cubic_terms() -> None:
    """The tanh form in u = a x with g = b/a^3: bounds that the entry uses for every g in [0.06, 0.08].

    |d/dg f'(u)| <= 0.42 for all u, and for each small interval of g the turn and the extremum lie where the entry says.
    """
    nominal = Ball.of("0.044715") * Ball.pi() / Ball.of(2)
    cells = np.linspace(-8, 8, 16001)
    u = Elements(cells[:-1], cells[1:])
    one, two, three, four = (Elements.constant(Ball.of(n)) for n in (1, 2, 3, 4))
    for low in np.arange(60, 80):
        g = Elements(np.asarray(low / 1000), np.asarray((low + 1) / 1000))
        v = u + g * u**3
        flat = one - v.tanh() ** 2
        moves = u**3 * flat * (four - two * u * (one + three * g * u**2) * v.tanh()) / two
        assert float(np.max(np.abs([moves.lo, moves.hi]))) <= 0.42
    # Beyond 8: u^3 sech^2(v) (4 + 2 u (1 + 3 g u^2)) / 2 with sech^2(v) <= 4 e^(-2 v) and v >= u + 0.06 u^3 is less than 1e-20.
    far = Ball.of(8)
    assert (far**6 * Ball.of(4) * (-(Ball.of(2) * (far + Ball.of("0.06") * far**3))).exp()).below(Ball.of("1e-20"))
    # q has the sign of f'', p that of f': the zero of each lies between its ends for every distance d = |g - nominal|.
    ends = np.geomspace(1e-10, 0.0103, 1500)
    d, least, largest = Elements(ends[:-1], ends[1:]), *(Elements.constant(nominal) for _ in range(2))
    for side in (least - d, largest + d):
        signs: dict[str, list[float]] = {"q": [], "p": []}
        for way in (-1, 1):
            turn = Elements.constant(number("1.13180244805117394034(1)")) + Elements.constant(Ball.of("1.2") * Ball.of(way)) * d
            w, t = one + three * side * turn**2, (turn + side * turn**3).tanh()
            signs["q"].append(_common_sign(one + two * three * side * turn**2 - turn * w**2 * t))
            dip = Elements.constant(number("-0.60037735127023230357(1)")) + Elements.constant(Ball.of("0.6") * Ball.of(way)) * d
            w, t = one + three * side * dip**2, (dip + side * dip**3).tanh()
            signs["p"].append(_common_sign(one + t + dip * w * (one - t**2)))
        assert signs == {"q": [1.0, -1.0], "p": [-1.0, 1.0]}
    # The least value moves by at most |d/dg| = u^4 sech^2(v) / 2 at the extremum, which stays within 0.6 * 0.0103 of its place.
    dip, g = Elements(np.asarray(-0.607), np.asarray(-0.594)), Elements(np.asarray(0.06), np.asarray(0.08))
    assert float((dip**4 * (one - (dip + g * dip**3).tanh() ** 2) / two).hi) <= 0.06


def _common_sign(x: Elements) -> float:
    if np.all(x.lo > 0):
        return 1.0
    return -1.0 if np.all(x.hi < 0) else 0.0
