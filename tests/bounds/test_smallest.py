"""Smallest singular values from below, against 200-bit arithmetic and matrices whose value is known exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import flint
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import hadamard, hilbert

from lipaudit.bounds.conv import Convolution, TransposedConvolution
from lipaudit.bounds.linear import Dense, Diagonal
from lipaudit.bounds.smallest import smallest_dense, smallest_singular_value
from tests.bounds.truth import exact, exact_gram, semidefinite

Floats = NDArray[np.float64]


def semidefinite_above(square: Fraction, matrix: Floats) -> bool:
    """Whether W'W - square I (smaller side) is positive semidefinite, by exact elimination."""
    gram = exact_gram(matrix)
    return semidefinite([[value - (square if i == j else 0) for j, value in enumerate(row)] for i, row in enumerate(gram)])


def rotation(rng: np.random.Generator, n: int) -> Floats:
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def families() -> Iterator[tuple[str, Floats, bool]]:
    """Name, matrix, and whether a value must be found (well conditioned)."""
    rng = np.random.default_rng(11)
    yield "normal", rng.standard_normal((9, 6)), True
    yield "wide", rng.standard_normal((5, 9)), True
    yield "square", rng.standard_normal((8, 8)), True
    yield "hilbert 4", hilbert(4), True
    yield "hilbert 8", hilbert(8), False
    yield "hilbert 12", hilbert(12), False
    yield "graded rows", rng.standard_normal((7, 7)) * 10.0 ** -np.arange(7)[:, None], False
    yield "graded far", rng.standard_normal((6, 6)) * 10.0 ** (-60.0 * np.arange(6))[:, None], False
    clustered = np.concatenate([np.full(5, 1.0), 1e-3 * (1 + 1e-14 * np.arange(5))])
    yield "clustered at the bottom", rotation(rng, 10) @ np.diag(clustered) @ rotation(rng, 10), True
    yield "hadamard", hadamard(8).astype(float), True
    yield "identity", np.eye(7), True
    yield "tiny", rng.standard_normal((6, 4)) * 2.0**-1040, False
    yield "small", rng.standard_normal((6, 4)) * 1e-200, True
    yield "huge", rng.standard_normal((6, 4)) * 1e300, True
    yield "integers", rng.integers(-4, 5, (7, 5)).astype(float), True
    yield "near the resolution", np.diag([1.0, 1.0, 3e-7]), False
    yield "below the resolution", np.diag([1.0, 1.0, 1e-12]), False
    yield "column", rng.standard_normal((6, 1)), True


@pytest.mark.parametrize(("name", "matrix", "found"), list(families()), ids=[name for name, _, _ in families()])
def test_never_above_the_exact_value(name: str, matrix: Floats, found: bool) -> None:
    value = smallest_dense(matrix)
    assert not found or value is not None
    if value is None:
        return
    low = exact(value)
    assert low > 0
    assert semidefinite_above(low * low, matrix)
    if found:
        assert not semidefinite_above(low * low * Fraction(1001, 1000), matrix)  # and within a thousandth of it


def test_a_twentieth_of_a_percent_more_would_be_refuted_in_200_bits() -> None:
    """The same by eigenvalue enclosures of an independent library."""
    rng = np.random.default_rng(5)
    before, flint.ctx.prec = flint.ctx.prec, 200
    try:
        for shape in ((6, 6), (10, 4), (3, 12)):
            matrix = rng.standard_normal(shape)
            small = matrix if shape[0] <= shape[1] else matrix.T
            exactly = flint.arb_mat([[flint.arb(float(v)) for v in row] for row in small])
            gram = flint.acb_mat(exactly * exactly.transpose())
            least = min((value.real for value in gram.eig()), key=float).sqrt()
            value = smallest_dense(matrix)
            assert value is not None
            pair = value.dyadic()
            assert pair is not None
            proved = flint.arb(pair[0]) * flint.arb(2) ** pair[1]
            assert proved <= least
            assert proved >= least * flint.arb("0.9995")
    finally:
        flint.ctx.prec = before


def singular() -> Iterator[tuple[str, Floats]]:
    rng = np.random.default_rng(12)
    a = rng.integers(-3, 4, (8, 3)).astype(float)
    yield "rank three", a @ rng.integers(-3, 4, (3, 6))
    yield "repeated column", np.column_stack([a, a[:, 0]])
    yield "zero column", np.column_stack([a, np.zeros(8)])
    yield "uniform", np.broadcast_to(np.float64(0.3), (4, 5))
    yield "zero", np.zeros((4, 4))
    yield "rank one, no integers", np.outer(rng.standard_normal(30), rng.standard_normal(20))


@pytest.mark.parametrize(("name", "matrix"), list(singular()), ids=[name for name, _ in singular()])
def test_singular_matrices_have_none(name: str, matrix: Floats) -> None:
    assert smallest_dense(matrix) is None


def test_many_small_integer_matrices() -> None:
    rng = np.random.default_rng(13)
    known = 0
    for _ in range(300):
        shape = rng.integers(1, 6, 2)
        matrix = rng.integers(-3, 4, shape).astype(np.float32)
        value = smallest_dense(matrix)
        if value is not None:
            known += 1
            assert semidefinite_above(exact(value) ** 2, matrix.astype(float))
    assert known > 150


def test_operators() -> None:
    rng = np.random.default_rng(14)
    blocks = rng.standard_normal((3, 4, 2))
    value = smallest_singular_value(Dense(blocks, (3, 5, 4)))
    assert value is not None and all(semidefinite_above(exact(value) ** 2, block) for block in blocks)
    diagonal = smallest_singular_value(Diagonal(np.array([3.0, -0.5, 2.0]), (4, 3)))
    assert diagonal is not None and float(diagonal) <= 0.5 <= float(diagonal) * (1 + 1e-14)
    with_zero = smallest_singular_value(Diagonal(np.array([3.0, 0.0]), (2,)))
    assert with_zero is not None and with_zero.is_zero
    assert smallest_singular_value(Diagonal(np.array([[3.0], [1.0]]), (1, 2))) is None  # copies
    assert smallest_singular_value(Diagonal(np.array([3.0, math.nan]), (2,))) is None
    for groups in (1, 2):
        conv = Convolution(rng.standard_normal((4, 4 // groups, 3)), (5,), pads=((1, 1),), groups=groups)
        found = smallest_singular_value(conv)
        for group in range(groups):
            if found is not None:
                assert semidefinite_above(exact(found) ** 2, conv.matrix(group))
    single = Convolution(rng.standard_normal((3, 3, 1, 1)), (40, 40))
    found = smallest_singular_value(single)
    assert found is not None and semidefinite_above(exact(found) ** 2, single.weight.reshape(3, 3))
    strided = Convolution(rng.standard_normal((4, 3, 1)), (4,), strides=(2,))
    assert smallest_singular_value(strided) is None  # pixels between the taps are not read: no injection, and no surjection
    spread = TransposedConvolution(rng.standard_normal((2, 3, 2)), (4,), (8,), strides=(2,))
    found = smallest_singular_value(spread)
    assert found is not None and semidefinite_above(exact(found) ** 2, spread.base.matrix(0))
