"""Hand-derived constants of data movement; three norms each: (l1, l2, linf)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lipaudit.operators.base import Finite, Unbounded, Unknown
from tests.operators.onenode import NORMS, Moving, One, norm_of
from tests.operators.test_exact_arithmetic import near

R2, R3 = math.sqrt(2), math.sqrt(3)


def i64(*values: Any) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def x(*shape: int) -> Moving:
    return Moving(shape)


def times(m: int) -> tuple[float, float, float]:
    return float(m), math.sqrt(m), float(min(m, 1))


CASES = [
    (One("Gather", [x(4), i64(0, -4, 1)]), 2),
    (One("Gather", [x(4, 3), i64([0, 1], [0, 0])], {"axis": 1}), 3),
    (One("GatherElements", [x(2, 2), i64([0, 0], [0, 1])]), 2),
    (One("GatherElements", [x(2, 2), i64([0, 0, -2, 1], [1, 0, 1, 0])], {"axis": 1}), 3),
    (One("GatherND", [x(2, 2), i64([0], [0], [1])]), 2),
    (One("GatherND", [x(2, 3), i64([0], [1])], {"batch_dims": 1}), 1),
    (One("Expand", [x(1, 2), i64(3, 4, 2)]), 12),
    (One("Tile", [x(2, 3), i64(2, 3)]), 6),
    (One("Slice", [x(5), i64(-1), i64(-6), i64(0), i64(-2)]), 1),
    (One("Slice", [x(5), i64(3), i64(3)]), 0),
    (One("Transpose", [x(2, 3, 4)], {"perm": [2, 0, 1]}), 1),
    (One("Reshape", [x(2, 6), i64(3, -1)]), 1),
    (One("Trilu", [x(3, 3)]), 1),
    (One("Trilu", [x(2, 2), np.array(5, dtype=np.int64)]), 0),
    (One("DepthToSpace", [x(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}), 1),
    (One("DepthToSpace", [x(1, 8, 2, 3)], {"blocksize": 2}), 1),
    (One("SpaceToDepth", [x(1, 2, 4, 6)], {"blocksize": 2}), 1),
    (One("Pad", [x(3), i64(2, 2)], {"mode": "reflect"}), 3),
    (One("Pad", [x(4), i64(1, 1)], {"mode": "reflect"}), 2),
    (One("Pad", [x(4), i64(2, 1)], {"mode": "reflect"}), 3),
    (One("Pad", [x(3), i64(1, 2)], {"mode": "edge"}), 3),
    (One("Pad", [x(1), i64(1, 2)], {"mode": "edge"}), 4),
    (One("Pad", [x(3), i64(2, 2)], {"mode": "wrap"}), 3),
    (One("Pad", [x(3), i64(2, 2)]), 1),
    (One("Pad", [x(3, 3), i64(1, 1, 1, 1)], {"mode": "edge"}), 4),
    (One("ReverseSequence", [x(3, 2), i64(2, 3)]), 1),
    (One("Split", [x(5), i64(2, 3)], outputs=2), 1),
]


@pytest.mark.parametrize(("one", "copies"), CASES, ids=[f"{k}-{one.op}" for k, (one, _) in enumerate(CASES)])
def test_copies(one: One, copies: int) -> None:
    near(one.slopes(0), times(copies))
    near(tuple(float(one.joint(norm)[0]) for norm in NORMS), times(copies))
    matrix = one.jacobian("x0")
    if one.outputs == 1:
        for norm in NORMS:
            assert one.slope(0, norm) >= norm_of(matrix, norm)
        operator = one.rule.linear(one.site, 0)
        if operator is not None:
            image = operator.apply(np.arange(math.prod(operator.in_shape), dtype=np.float64).reshape(operator.in_shape) + 1)
            flat = (np.arange(matrix.shape[1]) + 1) @ matrix.T
            assert operator.out_shape == one.site.out_shape()
            np.testing.assert_array_equal(image.ravel(), flat)


def test_old_versions() -> None:
    old = One("Slice", [x(6)], {"starts": [1], "ends": [100], "axes": [0]}, opset=9)
    near(old.slopes(0), (1, 1, 1))
    assert old.site.out_shape() == (5,)
    near(One("Pad", [x(3)], {"pads": [1, 2], "mode": "edge"}, opset=9).slopes(0), (3, R3, 1))
    near(One("Squeeze", [x(1, 3)], {"axes": [0]}, opset=11).slopes(0), (1, 1, 1))
    near(One("Concat", [x(2, 3), x(2, 3)], {}, opset=1, shapes=((2, 6),)).slopes(1), (1, 1, 1))


def test_split_and_concat_of_parts_are_free() -> None:
    """Concat of the two halves of one value that is cut in two: rows of the identity."""
    one = One("Concat", [x(2), x(3)], {"axis": 0})
    near(tuple(float(one.joint(norm)[0]) for norm in NORMS), (1, 1, 1))
    split = One("Split", [x(5), i64(2, 3)], outputs=2)
    near(tuple(float(split.through({"x0": (0, (2, 3))}, norm)[0]) for norm in NORMS), (1, 1, 1))


@pytest.mark.parametrize(
    ("one", "cut"),
    [
        (One("Transpose", [x(2, 5)]), (1, (2, 3))),
        (One("Reshape", [x(2, 5, 3), i64(2, 5, 3, 1)]), (1, (2, 3))),
        (One("Reshape", [x(2, 6), i64(2, 3, 2)]), (1, (2, 4))),
        (One("Slice", [x(5), i64(1), i64(4)]), (0, (2, 3))),
        (One("Slice", [x(5), i64(-1), i64(-6), i64(0), i64(-1)]), (0, (2, 3))),
        (One("Pad", [x(5), i64(1, 2)]), (0, (2, 3))),
        (One("Relu", [x(5)]), (0, (2, 3))),
        (One("MaxPool", [x(1, 4, 3)], {"kernel_shape": [1]}), (1, (1, 3))),
        (One("ReduceMax", [x(4, 3), i64(1)], {"keepdims": 0}), (0, (1, 3))),
        (One("TopK", [x(4, 3), i64(2)], outputs=2), (0, (1, 3))),
        (One("Gather", [x(4, 3), i64(1, 2)]), (1, (1, 2))),
        (One("Mul", [x(4, 3), np.array([1.0, -1.0, 1.0])]), (1, (1, 2))),
    ],
    ids=lambda value: value.op if isinstance(value, One) else None,
)
def test_parts_survive(one: One, cut: tuple[int, tuple[int, ...]]) -> None:
    """A cut value keeps its parts: the gain stays 1 instead of growing to 2^(1/p) in the dual norm."""
    near(tuple(float(one.through({"x0": cut}, norm)[0]) for norm in NORMS), (1, 1, 1))


def test_parts_with_copies() -> None:
    tiled = One("Tile", [x(4), i64(3)])
    near(tuple(float(tiled.through({"x0": (0, (1, 3))}, norm)[0]) for norm in NORMS), (3, R3, 1))
    gathered = One("Gather", [x(4), i64(0, 0, 3)])
    near(tuple(float(gathered.through({"x0": (0, (2, 2))}, norm)[0]) for norm in NORMS), (2, R2, 1))
    scalar = One("Gather", [x(4), np.array(2, dtype=np.int64)])
    near(tuple(float(scalar.through({"x0": (0, (2, 2))}, norm)[0]) for norm in NORMS), (1, 1, 1))


def test_indices_from_the_source_jump() -> None:
    one = One("Gather", [np.array([0.0, 3.0, 5.0]), Moving((2,), 0, 2)], shapes=((2,),))
    found = one.gain(1, "l1")
    assert isinstance(found, Finite) and found.slope.is_zero
    near((float(found.offset),), (10,))
    free = One("Gather", [Moving((3,)), Moving((2,), 0, 2)], shapes=((2,),))
    assert isinstance(free.gain(1), Unbounded)
    assert isinstance(One("Reshape", [x(4), Moving((1,))], shapes=((4,),)).gain(1), Unknown)


def test_embedding_lookup() -> None:
    table = np.array([[3.0, 4.0], [0.0, 1.0], [-6.0, 0.0]])
    one = One("Gather", [table, Moving((1, 5), 0, 2)], shapes=((1, 5, 2),))
    found = one.rule.range(one.site, one.ranges)[0]
    np.testing.assert_array_equal(found.lo, [-6, 0])
    np.testing.assert_array_equal(found.hi, [3, 4])
    assert 6 <= found.row <= 6 * (1 + 1e-12)
    assert np.linalg.norm(table[0] - table[2]) <= found.row_diameter() <= 2 * 6 * (1 + 1e-12)


def test_scatter() -> None:
    data, updates = x(4), x(2)
    near(One("ScatterElements", [data, i64(1, 2), updates]).slopes(0), (1, 1, 1))
    near(One("ScatterElements", [data, i64(1, 1), updates]).slopes(2), (1, 1, 1))
    added = One("ScatterElements", [data, i64(1, 1), updates], {"reduction": "add"})
    near(added.slopes(2), (1, R2, 2))
    near(One("ScatterND", [x(2, 2), i64([0], [1]), x(2, 2)]).slopes(0), (0, 0, 0))
    joined = One("ScatterND", [x(3), i64([1]), x(1)])
    near(tuple(float(joined.joint(norm)[0]) for norm in NORMS), (1, R2, 2))
    assert isinstance(One("ScatterND", [x(3), i64([1]), x(1)], {"reduction": "mul"}).gain(0), Unbounded)


def test_shapes_do_not_move() -> None:
    assert One("Shape", [x(2, 3)]).slope() == 0
    found = One("Shape", [x(2, 3)], {"start": 1})
    np.testing.assert_array_equal(found.rule.range(found.site, found.ranges)[0].lo, [3])
    assert One("Size", [x(2, 3)]).slope() == 0
    assert One("EyeLike", [x(2, 3)]).slope() == 0


def test_infinite_fill_and_infinite_tables() -> None:
    padded = One("Pad", [Moving((2,), 0, 1), i64(1, 1), np.array(-np.inf)])
    np.testing.assert_array_equal(padded.rule.range(padded.site, padded.ranges)[0].lo, [-np.inf, 0, 0, -np.inf])
    masked = One("Gather", [np.array([0.0, -np.inf]), Moving((2,), 0, 1)], shapes=((2,),))
    assert isinstance(masked.gain(1), Unbounded)
