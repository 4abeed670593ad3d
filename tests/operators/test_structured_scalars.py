"""Clip, PRelu, Pow, Cast, comparisons, logic, Dropout: sampled pairs and values never leave what is certified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Upper
from lipaudit.operators.base import Finite, Site, Unbounded, Unknown
from lipaudit.operators.flow import Flow, Reason, Row, identity
from lipaudit.operators.power import slope_of_power
from lipaudit.operators.range import Range
from tests.operators.onenode import CATALOGUE, NORMS, Moving, One, check_pairs, check_range
from tests.operators.structured import OneNode, box

F = np.float64


def arr(*values: float) -> Any:
    return np.asarray(values, dtype=F)


CASES = {
    "clip": One("Clip", [Moving((3, 4), -3, 3), np.asarray(-1.0), np.asarray(0.5)]),
    "clip above": One("Clip", [Moving((3, 4), -3, 3), None, np.asarray(0.5)]),
    "clip crossed": One("Clip", [Moving((3, 4), -3, 3), np.asarray(1.0), np.asarray(-1.0)]),
    "clip saturated": One("Clip", [Moving((3, 4), 2, 3), np.asarray(-1.0), np.asarray(1.0)]),
    "clip moving bounds": One("Clip", [Moving((2, 3), -2, 2), Moving((), -1, 0.5), Moving((), 0, 1)]),
    "prelu": One("PRelu", [Moving((2, 3), -2, 2), arr(0.25, -5.0, 2.0)]),
    "prelu negative": One("PRelu", [Moving((2, 3), -2, -1), arr(0.25, -0.5, 0.125)]),
    "prelu moving": One("PRelu", [Moving((2, 3), -2, 1), Moving((3,), -1, 2)]),
    "square": One("Pow", [Moving((2, 3), -1, 2), np.asarray(2.0)]),
    "cube": One("Pow", [Moving((2, 3), -2, 1), np.asarray(3.0)]),
    "root": One("Pow", [Moving((2, 3), 0.25, 2), np.asarray(0.5)]),
    "inverse root": One("Pow", [Moving((2, 3), 0.25, 2), np.asarray(-0.5)]),
    "three halves": One("Pow", [Moving((2, 3), 0, 2), np.asarray(1.5)]),
    "inverse": One("Pow", [Moving((2, 3), -2, -0.5), np.asarray(-1.0)]),
    "inverse square": One("Pow", [Moving((2, 3), -2, -0.5), np.asarray(-2.0)]),
    "zeroth": One("Pow", [Moving((2, 3), -2, 2), np.asarray(0.0)]),
    "first": One("Pow", [Moving((2, 3), -2, 2), np.asarray(1.0)]),
    "exponents": One("Pow", [Moving((2, 3), 0.5, 2), arr(0.5, 2.0, -1.0)]),
    "base": One("Pow", [np.asarray(2.5), Moving((2, 3), -2, 2)]),
    "base below 1": One("Pow", [arr(0.25, 0.5, 1.0), Moving((2, 3), -2, 2)]),
    "two": One("Pow", [Moving((2, 3), 0.5, 2), Moving((2, 3), -1, 2)]),
    "two broadcast": One("Pow", [Moving((2, 1), 0.5, 2), Moving((3,), -1, 2)]),
    "copied base": One("Pow", [Moving((2, 1), -1, 2), arr(2.0, 3.0, 2.0)]),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs_and_ranges(name: str) -> None:
    one, rng = CASES[name], np.random.default_rng(11)
    check_range(one, one.rule.range(one.site, one.ranges), rng, samples=20)
    check_pairs(one, rng, pairs=20)


@pytest.mark.parametrize("version", [1, 6, 7, 9, 11, 12, 13])
def test_clip_takes_its_bounds_where_the_version_has_them(version: int) -> None:
    attrs = {"min": -1.0, "max": 2.0} if version < 11 else {}
    args = [box((4,), -5, 5)] if version < 11 else [box((4,), -5, 5), np.asarray(-1.0), np.asarray(2.0)]
    found = OneNode("Clip", args, [(4,)], attrs, version=version)
    (image,) = found.range()
    assert (float(image.lo), float(image.hi)) == (-1.0, 2.0)
    assert found.slope() == 1.0
    far = OneNode("Clip", [box((4,), 3, 5), *args[1:]], [(4,)], attrs, version=version)
    assert far.slope() == 0.0


@pytest.mark.parametrize(
    ("c", "lo", "hi", "slope"),
    [
        (2.0, -1, 3, (-2, 6)),
        (3.0, -2, 1, (0, 12)),
        (4.0, -2, 1, (-32, 4)),
        (-1.0, 1, 2, (-1, -0.25)),
        (-2.0, -2, -1, (0.25, 2)),
        (0.5, 0.25, 1, (0.5, 1)),
        (0.0, -1, 1, (0, 0)),
        (1.0, -math.inf, math.inf, (1, 1)),
        (-1.0, 2, math.inf, (-0.25, 0)),
    ],
)
def test_slopes_of_powers(c: float, lo: float, hi: float, slope: tuple[float, float]) -> None:
    found = slope_of_power(c, lo, hi)
    assert not isinstance(found, (Unbounded, Unknown))
    assert found.floats() == pytest.approx(slope, rel=1e-14)
    assert found.floats()[0] <= slope[0] and slope[1] <= found.floats()[1]


@pytest.mark.parametrize(
    ("c", "lo", "hi", "kind"),
    [
        (2.0, -math.inf, 1, Unbounded), (0.5, 0, 1, Unbounded), (0.5, -1, 1, Unknown), (-1.0, -1, 1, Unbounded), (1.5, -1, 1, Unknown),
        (-0.5, 0, 1, Unbounded), (3.0, 0, math.inf, Unbounded),
    ],
)  # fmt: skip
def test_powers_without_a_slope(c: float, lo: float, hi: float, kind: type) -> None:
    assert isinstance(slope_of_power(c, lo, hi), kind)


def test_pow_needs_what_it_needs() -> None:
    assert isinstance(OneNode("Pow", [box((3,)), np.asarray(2.0)], [(3,)], version=15).gain(), Unbounded)
    assert isinstance(OneNode("Pow", [box((3,), -1, 1), np.asarray(0.5)], [(3,)], version=15).gain(), Unknown)
    assert isinstance(OneNode("Pow", [box((3,), -1, 1), box((3,), 0, 1)], [(3,)], version=15).gain(), Unknown)
    assert isinstance(OneNode("Pow", [box((3,), 1, 2), box((3,))], [(3,)], version=15).gain(1), Unbounded)


# Jumps


def truth(op: str, a: Any, b: Any) -> Any:
    table = {
        "Equal": np.equal, "Greater": np.greater, "Less": np.less, "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal,
        "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
    }  # fmt: skip
    return table[op](a, b).astype(F)


@pytest.mark.parametrize("op", ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"])
@pytest.mark.parametrize("integral", [False, True])
def test_comparisons(op: str, integral: bool) -> None:
    """Element by element: ranges that decide, that touch, and that leave it open."""
    lo, hi = arr(-1, 0, 1, 2, 0), arr(0, 1, 2, 3, 0)
    other = arr(0, 0, 0, 2.5, 0)
    node = OneNode(op, [box((5,), lo, hi, integral=integral), other], [(5,)], version=16)
    (image,) = node.range()
    rng = np.random.default_rng(3)
    seen = []
    for _ in range(200):
        x = np.where(rng.random(5) < 0.4, np.where(rng.random(5) < 0.5, lo, hi), rng.uniform(lo, hi))
        seen.append(truth(op, x, other))
    low, high = image.full()
    assert np.all(np.min(seen, axis=0) >= low) and np.all(np.max(seen, axis=0) <= high)
    for norm in NORMS:
        gain = node.gain(0, norm)
        assert isinstance(gain, Finite)
        spread = np.ptp(np.asarray(seen), axis=0)
        assert float(gain.slope) == 0.0
        assert float(gain.offset) >= np.linalg.norm(spread, {"l1": 1, "l2": 2, "linf": np.inf}[norm])


@pytest.mark.parametrize(("op", "value"), [("Equal", 1.0), ("Less", 0.0), ("GreaterOrEqual", 1.0), ("Greater", 0.0), ("LessOrEqual", 1.0)])
def test_a_value_compared_with_itself(op: str, value: float) -> None:
    one = One(op, [Moving((2, 3), name="x"), Moving((2, 3), name="x")])
    (image,) = one.rule.range(one.site, one.ranges)
    assert np.all(image.lo == value) and np.all(image.hi == value)
    gain = one.gain()
    assert isinstance(gain, Finite) and gain.offset == ZERO


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic_is_one_lipschitz_and_decided_by_its_operands(op: str) -> None:
    options: Sequence[tuple[float, float]] = [(0, 0), (1, 1), (0, 1)]
    lo_hi = [(a, b) for a in options for b in options]
    x = box((9,), [a[0] for a, _ in lo_hi], [a[1] for a, _ in lo_hi], integral=True)
    y = box((9,), [b[0] for _, b in lo_hi], [b[1] for _, b in lo_hi], integral=True)
    node = OneNode(op, [x, y], [(9,)], version=7)
    (image,) = node.range()
    rng = np.random.default_rng(4)
    samples = [
        (rng.integers(x.lo.astype(int), x.hi.astype(int) + 1), rng.integers(y.lo.astype(int), y.hi.astype(int) + 1)) for _ in range(100)
    ]
    results = np.asarray([truth(op, a, b) for a, b in samples])
    assert np.array_equal(results.min(axis=0), image.full()[0]) and np.array_equal(results.max(axis=0), image.full()[1])
    for (a, b), (c, d) in pairwise(samples):
        for p in (1, 2, np.inf):
            moved = np.linalg.norm(truth(op, a, b) - truth(op, c, b), p)
            assert moved <= np.linalg.norm((a - c).astype(F), p)
            assert np.linalg.norm(truth(op, c, b) - truth(op, c, d), p) <= np.linalg.norm((b - d).astype(F), p)
    assert node.slope() == 1.0


def flow_through(site: Site, gain: Any, incoming: Flow) -> Flow:
    rule = CATALOGUE.rule(site.node)
    assert rule is not None
    flows = [incoming] + [None] * (len(site.inputs) - 1)
    gains = [gain] + [None] * (len(site.inputs) - 1)
    return rule.flow(site, flows, gains, "l2")[0]


UNDEFINED = Flow((Row((INFINITE,)),), reasons=(Reason("sqrt", "ai.onnx::Sqrt", "unknown", "may be negative"),))
UNBOUNDED = Flow((Row((INFINITE,)),), reasons=(Reason("exp", "ai.onnx::Exp", "unbounded", "no upper end"),))


@pytest.mark.parametrize(
    ("op", "args", "attrs"),
    [
        ("IsNaN", [box((4,), 1, 2)], {}),
        ("IsInf", [box((4,), 1, 2)], {}),
        ("Greater", [box((4,), 1, 2), np.asarray(0.0)], {}),
        ("Equal", [box((4,), 1, 2), np.asarray(0.0)], {}),
        ("Sign", [box((4,), 1, 2)], {}),
        ("Cast", [box((4,), 1, 2)], {"to": 9}),
    ],
)
def test_nan_becomes_a_number_so_no_range_decides_behind_an_unknown(op: str, args: list[Any], attrs: dict[str, Any]) -> None:
    """Greater(Sqrt(x) + 1, 0) is true by the range of the defined values, but NaN compares as false: it jumps."""
    node = OneNode(op, args, [(4,)], attrs, version=13)
    still = flow_through(node.site, node.gain(), identity(1))
    assert still.gain("l2") == ZERO and still.offset("l2") == ZERO
    jumps = flow_through(node.site, node.gain(), UNDEFINED)
    assert jumps.gain("l2") == ZERO
    assert float(jumps.offset("l2")) >= 2.0


def test_a_cast_to_integers_stays_unknown_behind_an_unknown() -> None:
    node = OneNode("Cast", [box((4,), 1.25, 1.5)], [(4,)], {"to": 7}, version=13)
    assert node.slope() == 0.0
    assert not flow_through(node.site, node.gain(), UNDEFINED).gain("l2").is_finite


def test_infinite_values_change_what_isinf_says() -> None:
    node = OneNode("IsInf", [box((4,))], [(4,)], version=20)
    assert float(flow_through(node.site, node.gain(), UNBOUNDED).offset("l2")) == 2.0


@pytest.mark.parametrize("norm", NORMS)
def test_a_comparison_moves_once_however_many_operands_move(norm: Any) -> None:
    node = OneNode("Greater", [box((4,), -1, 1), box((4,), -1, 1)], [(4,)], version=13)
    gains = [node.gain(i, norm) for i in (0, 1)]
    found = node.rule.flow(node.site, [identity(1)] * 2, gains, norm)[0]
    assert float(found.offset(norm)) == {"l1": 4.0, "l2": 2.0, "linf": 1.0}[norm]


# Casts


@pytest.mark.parametrize("to", [1, 10, 11, 16])
def test_casts_between_floats_are_the_identity(to: int) -> None:
    node = OneNode("Cast", [box((4,), row=3.0)], [(4,)], {"to": to}, version=13)
    gain = node.gain()
    assert isinstance(gain, Finite) and gain.slope == ONE and gain.offset == ZERO
    assert node.range()[0].row == 3.0


@pytest.mark.parametrize(
    ("to", "lo", "hi", "fits"),
    [
        (7, -3, 3, True),
        (2, 0, 255.5, True),
        (2, 0, 256, False),
        (3, -128.5, 127, True),
        (3, -129, 0, False),
        (12, -0.5, 3, True),
        (7, -math.inf, 0, False),
    ],
)
def test_casts_to_integers_need_a_range_that_fits(to: int, lo: float, hi: float, fits: bool) -> None:
    node = OneNode("Cast", [box((4,), lo, hi)], [(4,)], {"to": to}, version=13)
    assert isinstance(node.gain(), Finite) == fits


def test_truncation() -> None:
    node = OneNode("Cast", [box((50,), -3.5, 3.5)], [(50,)], {"to": 7}, version=13)
    rng = np.random.default_rng(5)
    (image,) = node.range()
    assert (float(image.lo), float(image.hi)) == (-3.0, 3.0) and image.integral
    for norm in NORMS:
        gain = node.gain(0, norm)
        assert isinstance(gain, Finite)
        p = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
        for scale in (1e-9, 0.1, 3.0):
            x = rng.integers(-3, 4, 50) + rng.choice([-1e-12, 1e-12], 50)
            y = np.clip(x + rng.uniform(-scale, scale, 50), -3.5, 3.5)
            moved = np.linalg.norm(np.trunc(x) - np.trunc(y), p)
            assert moved <= float(gain.slope) * np.linalg.norm(x - y, p) + float(gain.offset)


def test_integers_keep_their_distance() -> None:
    node = OneNode("Cast", [box((4,), -3, 3, integral=True)], [(4,)], {"to": 6}, version=13)
    gain = node.gain()
    assert isinstance(gain, Finite) and gain.slope == ONE and gain.offset == ZERO


@pytest.mark.parametrize("to", [17, 18, 19, 20])
@pytest.mark.parametrize("size", [0.01, 1.0, 7.0, 100.0, 1e6])
def test_casts_to_float8(to: int, size: float) -> None:
    """Rounding to the nearest value of the type, by ml_dtypes: pairs never move more than |x - y| + the largest gap."""
    import ml_dtypes

    from lipaudit.graph.dtypes import dtype_name
    from lipaudit.operators.grid import grid_of

    name = dtype_name(to)
    node = OneNode("Cast", [box((200,), -size, size)], [(200,)], {"to": to}, version=19)
    gain = node.gain(0, "linf")
    assert isinstance(gain, Finite)
    grid = grid_of(name)
    assert grid is not None
    rng = np.random.default_rng(6)
    worst = 0.0
    for spread in (1e-3, 0.05, 1.0):
        x = rng.uniform(-size, size, 4000)
        y = np.clip(x + rng.normal(size=4000) * spread * size * 0.2, -size, size)
        a, b = (np.clip(v, grid.lo, grid.hi).astype(np.float32).astype(getattr(ml_dtypes, name)).astype(F) for v in (x, y))
        excess = np.abs(a - b) - np.abs(x - y)
        worst = max(worst, float(np.max(excess)))
    assert worst <= float(gain.offset)
    if size < grid.hi:
        assert worst >= 0.8 * float(gain.offset)
    (image,) = node.range()
    assert float(image.lo) <= -min(size, grid.hi) * 0.9 and float(image.hi) <= grid.hi


def test_casts_of_strings_are_refused() -> None:
    assert isinstance(OneNode("Cast", [box((4,))], [(4,)], {"to": 8}, version=13).gain(), Unknown)


# Dropout


@pytest.mark.parametrize(("version", "attrs", "mode", "fine"), [
    (1, {}, None, False), (6, {"is_test": 1}, None, True), (6, {}, None, False), (7, {}, None, True), (10, {}, None, True),
    (12, {}, None, True),
    (13, {}, False, True), (13, {}, True, False),
])  # fmt: skip
def test_dropout_by_version(version: int, attrs: dict[str, Any], mode: bool | None, fine: bool) -> None:
    args: list[Any] = [box((4,), -1, 1)] + ([np.asarray(0.5), np.asarray(mode)] if mode is not None else [])
    node = OneNode("Dropout", args, [(4,), (4,)], attrs, version=version)
    gain = node.gain()
    assert isinstance(gain, Finite) == fine
    if fine:
        assert node.slope() == 1.0
        flows = node.rule.flow(node.site, [identity(1), *[None] * (len(args) - 1)], [gain, *[None] * (len(args) - 1)], "l2")
        assert flows[0].gain("l2") == ONE and flows[1].gain("l2") == ZERO
        assert [float(np.max(image.hi)) for image in node.range()] == [1.0, 1.0]
    else:
        assert not np.any(np.isfinite(node.range()[0].lo))


def test_dropout_whose_mode_is_an_input_is_unknown() -> None:
    node = OneNode("Dropout", [box((4,)), np.asarray(0.5), box((), 0, 1)], [(4,)], version=13, still=[2])
    assert isinstance(node.gain(), Unknown)


# Scalar operators with a bias, and parts


@pytest.mark.parametrize("norm", NORMS)
def test_a_moving_bias_pays_for_its_copies(norm: Any) -> None:
    node = OneNode("BiasGelu", [box((2, 3), 0, 3), box((3,), 0, 0.5)], [(2, 3)], domain="com.microsoft")
    gain = node.gain(1, norm)
    assert isinstance(gain, Finite)
    assert float(gain.slope) == pytest.approx(1.12890414518515 * {"l1": 2, "l2": math.sqrt(2), "linf": 1}[norm])


def test_parts_survive_elementwise_maps() -> None:
    node = OneNode("Tanh", [box((6,), 1, 2)], [(6,)], version=13)
    incoming = Flow((Row((Upper(2), ZERO)), Row((ZERO, Upper(3)))), 0, (2, 4))
    found = node.rule.flow(node.site, [incoming], [node.gain()], "l2")[0]
    assert found.sizes == (2, 4)
    assert float(found.gain("l2")) == pytest.approx(3 * 0.41997434161402614)


def test_empty_tensors_do_not_move() -> None:
    empty = Range((0, 4), np.asarray(-math.inf), np.asarray(math.inf))
    for op in ("Exp", "Sqrt", "Tan", "Floor"):
        gain = OneNode(op, [empty], [(0, 4)], version=13).gain()
        assert isinstance(gain, Finite) and gain.slope == ZERO and gain.offset == ZERO
