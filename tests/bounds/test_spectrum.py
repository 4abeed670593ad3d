"""Frobenius norms and stable ranks against exact sums."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds.conv import Convolution, TransposedConvolution
from lipaudit.bounds.linear import Dense, Diagonal, Kronecker, Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.spectrum import core_shape, frobenius, stable_rank, sum_of_squares
from tests.bounds.operators import columns
from tests.bounds.truth import exact

RNG = np.random.default_rng(21)


def squares(matrix: NDArray[np.float64]) -> Fraction:
    return sum((Fraction(float(v)) ** 2 for v in matrix.ravel()), Fraction(0))


def check(operator: LinearOperator, copies: int = 1) -> None:
    """Frobenius norm of the whole operator's matrix (``copies`` times the block's), stable rank from its singular values."""
    matrix = columns(operator)
    size = frobenius(operator)
    assert size is not None
    true = squares(matrix)
    low, high = exact(size.lower) ** 2 * copies, exact(size.upper) ** 2 * copies
    assert low <= true <= high
    assert high <= low * (1 + Fraction(1, 10**9)) or true == 0
    rows, inputs = core_shape(operator)
    assert (rows * copies, inputs * copies) == matrix.shape
    rank = stable_rank(operator.norm("l2"), size, (rows, inputs))
    if rank is not None:
        near = np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2 / copies
        assert float(rank.lower) <= near * (1 + 1e-12) and near <= float(rank.upper) * (1 + 1e-12)
        assert 1 <= exact(rank.lower) <= exact(rank.upper) <= min(rows, inputs)


def test_operators() -> None:
    check(Dense(RNG.standard_normal((4, 3)), (5, 4)), copies=5)
    check(Dense(RNG.standard_normal((3, 4)), (4, 5), "left"), copies=5)
    check(Dense(RNG.standard_normal((3, 4, 2)), (3, 1, 4)))
    check(Dense(np.broadcast_to(np.float32(0.3), (4, 3)), (1, 4)))
    check(Diagonal(RNG.standard_normal(3), (2, 3)), copies=2)
    check(Diagonal(RNG.standard_normal((2, 3)), (3,)))
    check(Convolution(RNG.standard_normal((2, 3, 3)), (5,), pads=((1, 1),), batch=2), copies=2)
    check(Convolution(RNG.standard_normal((4, 1, 3, 2)), (5, 4), strides=(2, 1), dilations=(1, 2), pads=((2, 0), (1, 1)), groups=2))
    check(Convolution(np.full((2, 2, 3), -0.7), (4,), pads=((1, 1),)))
    check(TransposedConvolution(RNG.standard_normal((2, 3, 3)), (4,), (9,), strides=(2,)))
    check(Kronecker([(0, RNG.integers(-3, 4, (2, 3)).astype(float))], (3, 4)))
    check(Selection.from_numpy((4, 2), lambda x: x[[0, 3, 3]]))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8])
def test_every_type(dtype: type) -> None:
    values = (RNG.standard_normal((300, 250)) * 3).astype(dtype)
    found = sum_of_squares(values)
    true = squares(values.astype(np.float64))
    assert exact(found.lower) <= true <= exact(found.upper)
    assert exact(found.upper) <= exact(found.lower) * (1 + Fraction(1, 10**10))


def test_extreme_scales() -> None:
    for scale in (2.0**-1060, 1e-200, 1e200, 1e307):
        values = RNG.standard_normal((7, 5)) * scale
        found = sum_of_squares(values)
        assert exact(found.lower) <= squares(values) <= exact(found.upper)
        assert exact(found.upper) <= exact(found.lower) * (1 + Fraction(1, 10**10))
    graded = 10.0 ** np.arange(-300.0, 300.0, 50)
    assert exact(sum_of_squares(graded).lower) <= squares(graded) <= exact(sum_of_squares(graded).upper)
    assert sum_of_squares(np.zeros((3, 0))).upper.is_zero and sum_of_squares(np.zeros((3, 2))).upper.is_zero
    assert math.isfinite(float(sum_of_squares(np.full(5, 5e-324)).upper))


def test_stable_rank_of_extremes() -> None:
    one = Dense(np.outer(RNG.standard_normal(6), RNG.standard_normal(5)), (1, 6))
    size = frobenius(one)
    assert size is not None
    rank = stable_rank(one.norm("l2"), size, core_shape(one))
    assert rank is not None and exact(rank.lower) >= 1 and exact(rank.upper) < 1 + Fraction(1, 10**5)
    zero = Dense(np.zeros((3, 3)), (1, 3))
    nothing = frobenius(zero)
    assert nothing is not None and stable_rank(zero.norm("l2"), nothing, (3, 3)) is None
