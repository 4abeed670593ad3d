"""Softmax family: exact constants, local constants on boxes, ranges, all versions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lipaudit.bounds.scalar import Norm
from lipaudit.operators.base import Finite
from tests.operators.structured import NORMS, OneNode, attained, box, holds, inside, jacobian, norm_of, points, size_of


def rows(x: Any, axes: tuple[int, ...], log: bool) -> Any:
    shifted = x - np.max(x.real, axis=axes, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=axes, keepdims=True)
    return shifted - np.log(total) if log else e / total


CASES = [
    ((2,), {"axis": -1}, 13, (0,)),
    ((3, 4), {"axis": -1}, 13, (1,)),
    ((3, 4), {"axis": 0}, 13, (0,)),
    ((2, 3, 2), {}, 11, (1, 2)),
    ((2, 3, 2), {"axis": 2}, 11, (2,)),
    ((1, 5), {}, 1, (1,)),
    ((4, 1), {"axis": -1}, 13, (1,)),
]
BOXES = [(-math.inf, math.inf), (-1.0, 1.0), (-0.01, 0.02), (-30.0, 30.0), (-2000.0, 2000.0)]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("shape", "attrs", "version", "axes"), CASES)
def test_certificate_and_range_hold_on_uniform_boxes(op: str, shape: Any, attrs: Any, version: int, axes: Any) -> None:
    rng = np.random.default_rng(1)
    for lo, hi in BOXES:
        one = OneNode(op, [box(shape, lo, hi)], [shape], attrs, version=version)
        certified = {norm: one.slope(0, norm) for norm in NORMS}
        claimed = one.range()[0]
        for x in points(one.ranges[0], rng, 9, 5.0):
            y = rows(x, axes, op == "LogSoftmax")
            inside(y, claimed)
            matrix = jacobian(lambda v: rows(v, axes, op == "LogSoftmax"), x)
            for norm in NORMS:
                holds(certified[norm], norm_of(matrix, norm))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_certificate_holds_on_uneven_boxes(op: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        n = int(rng.integers(2, 7))
        centre = rng.standard_normal((2, n)) * 10.0 ** rng.uniform(-1, 1.5)
        half = np.abs(rng.standard_normal((2, n))) * 10.0 ** rng.uniform(-3, 1)
        one = OneNode(op, [box((2, n), centre - half, centre + half)], [(2, n)], {"axis": -1}, version=13)
        certified = {norm: one.slope(0, norm) for norm in NORMS}
        claimed = one.range()[0]
        for x in points(one.ranges[0], rng, 9, 1e9):
            inside(rows(x, (1,), op == "LogSoftmax"), claimed)
            matrix = jacobian(lambda v: rows(v, (1,), op == "LogSoftmax"), x)
            for norm in NORMS:
                holds(certified[norm], norm_of(matrix, norm))


def test_probability_intervals_are_attained() -> None:
    lo, hi = np.array([[2.0, 0.0, -1.0]]), np.array([[3.0, 1.0, 4.0]])
    claimed = OneNode("Softmax", [box((1, 3), lo, hi)], [(1, 3)], {"axis": -1}, version=13).range()[0]
    for i in range(3):
        for own, other, end in ((hi, lo, claimed.hi), (lo, hi, claimed.lo)):
            x = other.copy()
            x[0, i] = own[0, i]
            assert abs(rows(x, (1,), False)[0, i] - end[0, i]) < 1e-11


def test_local_constant_of_a_dominant_logit_is_attained() -> None:
    one = OneNode("Softmax", [box((1, 2), [[2.0, 0.0]], [[3.0, 1.0]])], [(1, 2)], {"axis": -1}, version=13)
    matrix = jacobian(lambda v: rows(v, (1,), False), np.array([[2.0, 1.0]]))
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(matrix, norm), 1 - 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_half_is_attained_by_two_equal_logits(norm: Norm) -> None:
    one = OneNode("Softmax", [box((3, 2))], [(3, 2)], {"axis": -1}, version=13)
    assert one.slope(0, norm) == 0.5
    attained(one.slope(0, norm), norm_of(jacobian(lambda v: rows(v, (1,), False), np.zeros((3, 2))), norm))


def test_constants_of_log_softmax_are_approached() -> None:
    one = OneNode("LogSoftmax", [box((1, 5))], [(1, 5)], {"axis": -1}, version=13)
    matrix = jacobian(lambda v: rows(v, (1,), True), np.array([[40.0, 0.0, 0.0, 0.0, 0.0]]))
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(matrix, norm))


def test_masked_logits_are_allowed() -> None:
    one = OneNode("Softmax", [box((1, 3), [[-math.inf, 0.0, 0.0]], [[-math.inf, 1.0, 1.0]])], [(1, 3)], {"axis": -1}, version=13)
    claimed = one.range()[0]
    assert claimed.hi[0, 0] == 0 and claimed.lo[0, 1] > 0.26
    only = OneNode("Softmax", [box((1, 2), [[-math.inf, -5.0]], [[-math.inf, 5.0]])], [(1, 2)], {"axis": -1}, version=13)
    assert only.slope() < 1e-6
    dead = OneNode("Softmax", [box((1, 2), -math.inf, -math.inf)], [(1, 2)], {"axis": -1}, version=13)
    assert dead.slope() <= 0.5


def test_extreme_boxes_never_promise_too_much() -> None:
    one = OneNode("Softmax", [box((1, 2), [[-1e308, 0.0]], [[1e308, 0.0]])], [(1, 2)], {"axis": -1}, version=13)
    assert one.slope() == 0.5
    far = OneNode("Softmax", [box((1, 2), [[-760.0, 0.0]], [[-750.0, 0.0]])], [(1, 2)], {"axis": -1}, version=13)
    assert far.range()[0].hi[0, 0] > 0  # e^-750 is not 0


@pytest.mark.parametrize(("shape", "axes", "attrs", "version"), [((4, 3), (1,), {"axis": -1}, 13), ((2, 2, 3), (1, 2), {}, 11)])
def test_hardmax_jumps_as_far_as_certified(shape: Any, axes: Any, attrs: Any, version: int) -> None:
    one = OneNode("Hardmax", [box(shape)], [shape], attrs, version=version)
    count = math.prod(shape) // math.prod(shape[axis] for axis in axes)

    def hard(x: Any) -> Any:
        flat = x.reshape(count, -1)
        return np.eye(flat.shape[1])[flat.argmax(axis=1)].reshape(shape)

    up, down = np.zeros(shape), np.zeros(shape)
    up.reshape(count, -1)[:, 0] = 1e-9
    down.reshape(count, -1)[:, 1] = 1e-9
    for norm in NORMS:
        found = one.gain(0, norm)
        assert isinstance(found, Finite) and found.slope.is_zero
        attained(float(found.offset), size_of(hard(up) - hard(down), norm) * (1 - 1e-12))
        inside(hard(up), one.range()[0])
