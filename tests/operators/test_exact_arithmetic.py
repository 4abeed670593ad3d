"""Hand-derived constants of sums, products, selections by masks; three norms each: (l1, l2, linf)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lipaudit.operators.base import Finite, Unbounded, Unknown
from lipaudit.operators.range import Range
from tests.operators.onenode import NORMS, Moving, One

R2, R3, R5, R6 = (math.sqrt(k) for k in (2, 3, 5, 6))


def near(found: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    """Not below the constant (as a double), and not visibly above."""
    for a, b in zip(found, wanted, strict=True):
        assert b * (1 - 2e-16) <= a <= b * (1 + 1e-12), (found, wanted)


def joint(one: One) -> tuple[float, ...]:
    return tuple(float(one.joint(norm)[0]) for norm in NORMS)


def same(shape: tuple[int, ...], lo: float = -math.inf, hi: float = math.inf) -> list[Moving]:
    return [Moving(shape, lo, hi, "x"), Moving(shape, lo, hi, "x")]


def test_broadcast_add() -> None:
    one = One("Add", [Moving((3, 2)), Moving((2,))])
    near(one.slopes(0), (1, 1, 1))
    near(one.slopes(1), (3, R3, 1))
    near(One("Add", [Moving((2, 1)), Moving((1, 3))]).slopes(0), (3, R3, 1))
    near(One("Sub", [Moving((3, 2)), Moving((2,))]).slopes(1), (3, R3, 1))
    near(joint(One("Sub", [Moving((2,)), np.ones(2)])), (1, 1, 1))


def test_legacy_broadcast_at_axis() -> None:
    attrs = {"broadcast": 1, "axis": 1}
    one = One("Add", [Moving((2, 3, 4)), Moving((3,))], attrs, opset=6, shapes=((2, 3, 4),))
    near(one.slopes(1), (8, math.sqrt(8), 1))
    product = One("Mul", [Moving((2, 3, 2)), np.array([1.0, -5.0, 2.0])], attrs, opset=6, shapes=((2, 3, 2),))
    near(product.slopes(0), (5, 5, 5))
    reverse = One("Mul", [np.array([[3.0, 4.0], [0.0, 1.0]]), Moving((2,))], {"broadcast": 1, "axis": 0}, opset=6, shapes=((2, 2),))
    near(reverse.slopes(1), (7, 5, 4))


def test_one_variable_twice() -> None:
    near(joint(One("Add", same((3,)))), (2, 2, 2))
    near(joint(One("Sub", same((3,)))), (0, 0, 0))
    near(joint(One("Max", same((3,)))), (1, 1, 1))
    near(joint(One("Sum", [*same((3,)), Moving((3,), name="x")])), (3, 3, 3))
    near(joint(One("Mean", [*same((3,)), Moving((3,), name="x")])), (1, 1, 1))
    near(joint(One("Mul", same((3,), -1, 2))), (4, 4, 4))
    near(joint(One("Div", same((3,), 1, 2))), (0, 0, 0))
    near(joint(One("Concat", same((3,)), {"axis": 0})), (2, R2, 1))


def test_two_sources_are_joined_by_the_dual_norm() -> None:
    near(joint(One("Add", [Moving((3,)), Moving((3,))])), (1, R2, 2))
    near(joint(One("Concat", [Moving((3,)), Moving((2,))], {"axis": 0})), (1, 1, 1))
    near(joint(One("Mean", [Moving((3,)), Moving((3,))])), (0.5, R2 / 2, 1))


def test_products() -> None:
    near(One("Mul", [Moving((1,)), np.array([3.0, -4.0])]).slopes(0), (7, 5, 4))
    near(One("Mul", [Moving((2,)), np.array(-4.0)]).slopes(0), (4, 4, 4))
    near(One("Mul", [Moving((2, 1), -1, 2), Moving((1, 3), -1, 1)]).slopes(1), (4, 2 * R2, 2))
    assert isinstance(One("Mul", [Moving((2,)), Moving((2,))]).gain(0), Unbounded)
    assert isinstance(One("Mul", [Moving((2,)), np.array([np.inf, 1.0])]).gain(0), Unknown)


def test_quotients() -> None:
    near(One("Div", [Moving((2,)), np.array([0.5, -4.0])]).slopes(0), (2, 2, 2))
    near(One("Div", [Moving((2,), -3, 1), Moving((2,), 0.5, 4)]).slopes(1), (12, 12, 12))
    near(One("Div", [Moving((1,)), np.array([1.0, 0.5])]).slopes(0), (3, R5, 2))
    assert isinstance(One("Div", [Moving((2,)), Moving((2,), -1, 1)]).gain(0), Unbounded)
    assert isinstance(One("Div", [Moving((2,)), np.array([0.0, 1.0])]).gain(0), Unknown)


def test_remainder() -> None:
    found = One("Mod", [Moving((4,)), np.array(3.0)], {"fmod": 1}).gain(0)
    assert isinstance(found, Finite)
    near((float(found.slope), float(found.offset)), (1, 6))
    near(One("Mod", [Moving((4,), -2, 2), np.array(3.0)], {"fmod": 1}).slopes(0), (1, 1, 1))


def test_extrema() -> None:
    near(One("Max", [Moving((2, 3)), Moving((1, 3))]).slopes(1), (2, R2, 1))
    near(One("Min", [Moving((2, 3)), Moving((1, 3))]).slopes(1), (2, R2, 1))
    never = One("Max", [Moving((3,), 2, 5), Moving((3,), -1, 1)])
    assert never.slopes(1) == (0.0, 0.0, 0.0)
    near(joint(never), (1, 1, 1))
    assert One("Min", [Moving((3,), -1, 1), Moving((3,), 2, 5)]).slopes(1) == (0.0, 0.0, 0.0)


def test_fixed_mask() -> None:
    mask = np.array([True, False, True])
    near(One("Where", [mask, Moving((1,)), Moving((3,))]).slopes(1), (2, R2, 1))
    assert One("Where", [np.ones(3, bool), Moving((3,)), Moving((3,))]).slope(2) == 0.0
    near(joint(One("Where", [mask, *same((3,))])), (1, 1, 1))
    masked = One("Where", [mask, np.array(-np.inf), Moving((3,))])
    near(masked.slopes(2), (1, 1, 1))


def test_mask_from_the_source_jumps() -> None:
    one = One("Where", [Moving((4,), 0, 1), Moving((4,), -1, 1), Moving((4,), 2, 3)])
    found = one.gain(0)
    assert isinstance(found, Finite) and float(found.slope) == 0
    near((float(found.offset),), (8,))
    assert isinstance(One("Where", [Moving((4,), 0, 1), Moving((4,)), Moving((4,))]).gain(0), Unbounded)


@pytest.mark.parametrize("norm", NORMS)
def test_row_norms(norm: str) -> None:
    one = One("Add", [Moving((1, 2, 4), -1, 1), np.full((1, 2, 4), 3.0)])
    assert one.rule.range(one.site, one.ranges)[0].row_norm() >= math.hypot(4, 4, 4, 4)
    product = One("Mul", [Moving((2, 4), -1, 1), np.array([2.0, 0, 0, 0])])
    assert 2 <= product.rule.range(product.site, product.ranges)[0].row_norm() <= 2.0001


def test_large_constants_are_read_element_by_element() -> None:
    """Their ranges arrive as smallest and largest element; a divisor of both signs still has no 0."""
    constant = np.where(np.arange(70000) % 2 == 0, 2.0, -4.0)
    one = One("Div", [Moving((70000,)), constant], shapes=((70000,),))
    summary = Range((70000,), np.asarray(-4.0), np.asarray(2.0))
    found = one.rule.gain(one.site, 0, "l2", [one.ranges[0], summary])
    assert isinstance(found, Finite) and float(found.slope) == 0.5
