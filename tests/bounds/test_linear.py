"""Matrices, factors, copies and per-axis matrices against their matrices written out by numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds.linear import Dense, Diagonal, Kronecker, Permutation, Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import INFINITE
from tests.bounds.operators import NORMS, check_operator, columns
from tests.bounds.truth import exact, norm_from_below

Floats = NDArray[np.float64]
Array = NDArray[np.generic]


def matrix_of(function: Callable[[Floats], Floats], shape: tuple[int, ...]) -> Floats:
    """The matrix of a linear numpy function, from unit vectors (exact: each output is one entry times 1)."""
    size = math.prod(shape)
    return np.stack([np.asarray(function(unit.reshape(shape))).reshape(-1) for unit in np.eye(size)], axis=1)


def dense_cases() -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], str]]:
    yield "2-D right", (4, 3), (5, 4), "right"
    yield "2-D left", (3, 4), (4, 5), "left"
    yield "batch of x", (4, 3), (2, 3, 5, 4), "right"
    yield "batch of x, left", (3, 4), (2, 4, 5), "left"
    yield "vector x", (4, 3), (4,), "right"
    yield "vector x, left", (3, 4), (4,), "left"
    yield "vector weight", (4,), (5, 4), "right"
    yield "vector weight, left", (4,), (4, 5), "left"
    yield "both vectors", (4,), (4,), "right"
    yield "blocks", (3, 4, 2), (3, 5, 4), "right"
    yield "blocks, left", (3, 2, 4), (3, 4, 5), "left"
    yield "stacked", (3, 4, 2), (5, 4), "right"
    yield "stacked, left", (3, 2, 4), (4, 5), "left"
    yield "stacked on an axis of one", (3, 4, 2), (1, 5, 4), "right"
    yield "stacked and blocks", (3, 2, 4, 2), (2, 5, 4), "right"
    yield "stacked and blocks, left", (2, 3, 2, 4), (2, 1, 4, 3), "left"
    yield "axis of one in the weight", (1, 4, 2), (3, 5, 4), "right"
    yield "vector x, batch of weights", (3, 4, 2), (4,), "right"
    yield "vector x, batch of weights, left", (3, 2, 4), (4,), "left"
    yield "single column", (4, 1), (5, 4), "right"


@pytest.mark.parametrize("kind", ["normal", "integers", "uniform"])
@pytest.mark.parametrize(("name", "weight_shape", "shape", "side"), list(dense_cases()), ids=[case[0] for case in dense_cases()])
def test_dense(name: str, weight_shape: tuple[int, ...], shape: tuple[int, ...], side: str, kind: str) -> None:
    rng = np.random.default_rng(len(name))
    weight = rng.standard_normal(weight_shape) if kind == "normal" else rng.integers(-3, 4, weight_shape).astype(np.float32)
    if kind == "uniform":
        weight = np.broadcast_to(np.float32(-0.3), weight_shape)
    operator = Dense(weight, shape, side)
    wide = np.asarray(weight, dtype=np.float64)
    function = (lambda x: x @ wide) if side == "right" else (lambda x: wide @ x)
    assert operator.out_shape == np.shape(function(np.zeros(shape)))
    check_operator(operator, matrix_of(function, shape), tight=1e-9)


def test_dense_refuses_shapes_that_do_not_multiply_and_counts_bad_weights() -> None:
    for weight, shape, side in (((4, 3), (5, 5), "right"), ((4, 3), (4, 5), "left"), ((2, 4, 3), (3, 5, 4), "right")):
        with pytest.raises(ValueError):
            Dense(np.zeros(weight), shape, side)
    weight = np.ones((4, 3))
    weight[0, 0], weight[2, 1] = math.nan, -math.inf
    for norm in NORMS:
        found = Dense(weight, (5, 4)).norm(norm)
        assert found.upper == INFINITE and found.evidence == {"nonfinite": 2}
    assert Dense(np.zeros((0, 3)), (5, 0)).norm("l2").upper.is_zero


def test_many_blocks_skip_factorisations_but_not_the_largest() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((60, 5, 4)) * rng.uniform(0.1, 1, (60, 1, 1))
    operator = Dense(weight, (60, 2, 5))
    true = max(norm_from_below(block, "l2") for block in weight)
    assert true <= exact(operator.norm("l2").upper) <= true * (1 + Fraction(1, 10**9))
    huge = weight * 1e300
    assert exact(Dense(huge, (60, 2, 5)).norm("l2").upper) >= true * Fraction(1e300) * (1 - Fraction(1, 10**14))


def diagonal_cases() -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    yield (), (2, 3)
    yield (3,), (2, 3)
    yield (2, 1), (2, 3)
    yield (2, 3), (2, 3)
    yield (4, 1, 1), (2, 4, 3, 2)
    yield (2, 3), (3,)
    yield (2, 3), (1, 3)
    yield (2, 3), ()
    yield (4, 2, 3), (2, 1)
    yield (2, 1, 3), (4, 1)
    yield (5, 1), (1, 4)
    yield (1, 1), (3,)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("scale_shape", "shape"), list(diagonal_cases()))
def test_diagonal(scale_shape: tuple[int, ...], shape: tuple[int, ...], spread: bool) -> None:
    rng = np.random.default_rng(2)
    for draw in (rng.standard_normal, lambda s: rng.integers(-2, 3, s).astype(float)):
        scale = np.asarray(draw(scale_shape))
        given = np.broadcast_to(scale, np.broadcast_shapes(scale_shape, shape)) if spread else scale
        operator = Diagonal(given, shape)
        assert operator.out_shape == np.broadcast_shapes(scale_shape, shape)
        check_operator(operator, matrix_of(lambda x, scale=scale: x * scale, shape), tight=1e-14)


def test_diagonal_that_only_copies() -> None:
    """A scalar given in the output's shape: the copies count, though the factor varies along no axis."""
    for out, shape in (((5, 4), (4,)), ((5, 4), (1, 4)), ((2, 3, 4), (3, 1)), ((2, 3), ())):
        operator = Diagonal(np.broadcast_to(-2.0, out), shape)
        assert operator.out_shape == out
        check_operator(operator, matrix_of(lambda x, out=out: np.broadcast_to(-2.0 * x, out), shape), tight=1e-14)


def test_diagonal_with_uncertain_factors() -> None:
    scale, relative = np.array([1.0, -2.0, 0.5]), 1e-3
    operator = Diagonal(scale, (4, 3), relative)
    for norm in NORMS:
        assert exact(operator.norm(norm).upper) >= 2 * (1 + Fraction(relative))
        assert exact(operator.norm(norm).lower) <= 2 * (1 - Fraction(relative))
    low, high = operator.enclose(np.full((4, 3), -1.0), np.full((4, 3), 2.0))
    assert np.all(high[:, 0] >= 2 * (1 + relative)) and np.all(low[:, 1] <= -4 * (1 + relative))
    assert Diagonal(np.array([1.0, math.nan]), (2,)).norm("l2").evidence == {"nonfinite": 1}


def test_axis_factors() -> None:
    assert Diagonal(np.ones((4, 1, 1)), (2, 4, 3, 3)).axis_factors(1) is not None
    assert Diagonal(np.array(2.0), (2, 4)).axis_factors(1).tolist() == [2.0] * 4
    assert Diagonal(np.ones((4, 3, 1)), (2, 4, 3, 3)).axis_factors(1) is None
    assert Diagonal(np.ones((4, 1)), (1, 3)).axis_factors(1) is None


def selections() -> Iterator[tuple[str, tuple[int, ...], Callable[[Array], Array]]]:
    yield "slice", (4, 5), lambda x: x[1:, ::-2]
    yield "gather", (5, 2), lambda x: x[[0, 3, 3, -1, -2]]
    yield "tile", (2, 3), lambda x: np.tile(x, (2, 3))
    yield "expand", (2, 1, 3), lambda x: np.broadcast_to(x, (4, 2, 5, 3))
    yield "pad reflect", (2, 5), lambda x: np.pad(x, ((0, 0), (2, 3)), mode="reflect")
    yield "pad zero", (2, 3), lambda x: np.pad(x + 1, ((1, 0), (2, 1))) - 1
    yield "nothing", (2, 3), lambda x: x[2:]
    yield "transpose", (2, 3, 4), lambda x: x.transpose(2, 0, 1)


@pytest.mark.parametrize(("name", "shape", "function"), list(selections()), ids=[name for name, _, _ in selections()])
def test_selection(name: str, shape: tuple[int, ...], function: Callable[[Array], Array]) -> None:
    operator = Selection.from_numpy(shape, function)
    index = function(np.arange(math.prod(shape)).reshape(shape)).reshape(-1)
    matrix = np.zeros((index.size, math.prod(shape)))
    for row, k in enumerate(index):
        if k >= 0:
            matrix[row, k] = 1
    if index.size == 0:
        assert all(operator.norm(norm).upper.is_zero for norm in NORMS)
        return
    check_operator(operator, matrix, tight=1e-14)


def test_selection_intervals_are_exact_and_lazy() -> None:
    called: list[int] = []

    def index() -> NDArray[np.int64]:
        called.append(1)
        return np.array([[2, -1], [0, 2]])

    operator = Selection((3,), (2, 2), index, 2)
    assert exact(operator.norm("l1").upper) == 2 and not called
    low, high = operator.enclose(np.array([0.1, 0.2, -np.inf]), np.array([0.3, 0.4, np.inf]))
    assert low.tolist() == [[-np.inf, 0.0], [0.1, -np.inf]] and high.tolist() == [[np.inf, 0.0], [0.3, np.inf]]
    assert len(called) == 1
    with pytest.raises(ValueError):
        _ = Selection((3,), (3, 2), index).index


def test_permutation() -> None:
    order = np.random.default_rng(3).permutation(12)
    check_operator(Permutation((3, 4), (2, 6), lambda: order), np.eye(12)[order], tight=1e-14)
    reshape = Permutation((3, 4), (12,))
    check_operator(reshape, np.eye(12), tight=1e-14)
    assert exact(reshape.norm("l2").upper) == exact(reshape.norm("l2").lower) == 1
    with pytest.raises(ValueError):
        Permutation((3, 4), (5,))


def test_kronecker() -> None:
    rng = np.random.default_rng(4)
    for shape, axes in (((3, 4), (0, 1)), ((2, 3, 4), (2, 0)), ((5,), (0,)), ((2, 4, 3), (1,))):
        matrices = [(axis, rng.integers(-3, 4, (int(rng.integers(1, 5)), shape[axis])).astype(float)) for axis in axes]
        full = np.ones((1, 1))
        by_axis = dict(matrices)
        for axis, size in enumerate(shape):
            full = np.kron(full, by_axis.get(axis, np.eye(size)))
        check_operator(Kronecker(matrices, shape), full, tight=1e-10)
    with pytest.raises(ValueError):
        Kronecker([(0, np.ones((2, 4)))], (3,))


def test_means_and_sums() -> None:
    for n in (3, 4, 7):
        mean = Kronecker([(1, np.broadcast_to(np.float64(1 / n), (1, n)))], (2, n), 2.0**-53)
        for norm, factor in zip(NORMS, (Fraction(1, n), None, Fraction(1)), strict=True):
            found = exact(mean.norm(norm).upper)
            assert found >= factor if factor is not None else found * found >= Fraction(1, n)
            assert float(found) <= float(factor or math.sqrt(1 / n)) * (1 + 1e-14)
        low, high = mean.enclose(np.full((2, n), 0.1), np.full((2, n), 0.3))
        assert np.all([Fraction(v) <= Fraction(0.1) for v in low.ravel()]) and np.all([Fraction(v) >= Fraction(0.3) for v in high.ravel()])
    total = Kronecker([(0, np.broadcast_to(np.float64(1), (1, 4)))], (4, 3))
    check_operator(total, np.kron(np.ones((1, 4)), np.eye(3)), tight=1e-14)


def test_overflow_inside_an_enclosure_gives_the_whole_line() -> None:
    operator = Dense(np.array([[0.0, 1e300], [1e300, 1.0]]), (2,))
    for top in (1.7e308, float(np.finfo(np.float64).max)):  # the radius of the second overflows: 0 * inf inside the product
        low, high = operator.enclose(np.array([-top, -top]), np.array([top, top]))
        assert np.all(low == -np.inf) and np.all(high == np.inf)
    for lo, hi in ((1e-310, 2e-310), (-1e-310, 1e-310), (1.1e-310, 1.1e-310), (-1.3e-311, -1.3e-311)):
        low, high = operator.enclose(np.array([lo, lo]), np.array([hi, hi]))
        true = Fraction(1e300) * Fraction(hi)
        assert Fraction(float(high[0])) >= true and Fraction(float(low[0])) <= Fraction(1e300) * Fraction(lo)


def test_operators_agree_with_their_own_columns() -> None:
    operators: list[LinearOperator] = [
        Dense(np.arange(6.0).reshape(2, 3), (4, 2)),
        Diagonal(np.arange(3.0), (2, 3)),
        Selection.from_numpy((4,), lambda x: x[[0, 0, 3]]),
    ]
    for operator in operators:
        matrix = columns(operator)
        assert matrix.shape == (math.prod(operator.out_shape), math.prod(operator.in_shape))
