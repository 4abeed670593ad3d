"""Chains as one operator: folds, products of norms, formed matrices; traps that must not be merged."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import formed as formed_module
from lipaudit.bounds.chain import Folded, Product, compose
from lipaudit.bounds.conv import Convolution, TransposedConvolution
from lipaudit.bounds.linear import Dense, Diagonal, Kronecker, Permutation, Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import INFINITE
from tests.bounds.operators import NORMS, check_operator, columns
from tests.bounds.truth import exact, norm_from_below

Floats = NDArray[np.float64]
RNG = np.random.default_rng(0)


def integers(*shape: int) -> Floats:
    return RNG.integers(-3, 4, shape).astype(float)


def chains() -> dict[str, list[LinearOperator]]:
    """Small integer operators, so that the product of their matrices is exact."""
    pads = ((1, 1), (1, 1))
    conv = Convolution(integers(3, 2, 3, 3), (4, 3), pads=pads)
    return {
        "conv, batch norm": [conv, Diagonal(integers(3, 1, 1), (1, 3, 4, 3))],
        "batch norm, conv": [Diagonal(integers(2, 1, 1), (1, 2, 4, 3)), conv],
        "conv between factors": [Diagonal(integers(2, 1, 1), (1, 2, 4, 3)), conv, Diagonal(integers(3, 1, 1), (1, 3, 4, 3))],
        "grouped conv, factors": [
            Diagonal(integers(4, 1), (1, 4, 5)),
            Convolution(integers(6, 2, 3), (5,), groups=2),
            Diagonal(integers(6, 1), (1, 6, 3)),
        ],
        "two convs with padding": [conv, Convolution(integers(2, 3, 3, 3), (4, 3), pads=pads)],
        "matrices": [Dense(integers(4, 3), (5, 4)), Dense(integers(3, 6), (5, 3))],
        "three matrices from the left": [Dense(integers(s, t), (t, 3), "left") for s, t in ((3, 4), (5, 3), (2, 5))],
        "matrices with factors": [
            Diagonal(integers(4), (5, 4)),
            Dense(integers(4, 3), (5, 4)),
            Diagonal(integers(3), (5, 3)),
            Dense(integers(3, 2), (5, 3)),
        ],
        "factors of rows, left": [
            Diagonal(integers(4, 1), (4, 2)),
            Dense(integers(3, 4), (4, 2), "left"),
            Diagonal(integers(3, 1), (3, 2)),
        ],
        "mixed sides": [Dense(integers(4, 3), (5, 4)), Dense(integers(2, 5), (5, 3), "left")],
        "reshapes": [Permutation((2, 6), (3, 4)), Permutation((3, 4), (3, 4)), Dense(integers(4, 3), (3, 4)), Permutation((3, 3), (9,))],
        "pool after conv": [conv, Kronecker([(2, np.ones((2, 4))), (3, np.ones((1, 3)))], (1, 3, 4, 3))],
        "gather and factors": [Selection.from_numpy((4, 2), lambda x: x[[0, 0, 3]]), Diagonal(integers(3, 2), (3, 2))],
        "scalars": [Diagonal(np.array(3.0), (4,)), Diagonal(np.array(-2.0), (4,))],
        "element factors after conv": [conv, Diagonal(integers(3, 4, 3), (1, 3, 4, 3))],
        "transposed": [TransposedConvolution(integers(2, 3, 2), (4,), (8,), strides=(2,)), Diagonal(integers(3, 1), (1, 3, 8))],
        "broadcasting factor": [Dense(integers(4, 3), (4,)), Diagonal(integers(2, 3), (3,))],
        "uniform conv, factors": [Convolution(np.full((2, 2, 3), 2.0), (5,)), Diagonal(integers(2, 1), (1, 2, 3))],
    }


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("name", list(chains()))
def test_chains_against_their_matrix(name: str, formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not formed:
        monkeypatch.setattr(formed_module, "FORM_SIDE", 0)
    operators = chains()[name]
    matrix = columns(operators[0])
    for operator in operators[1:]:
        matrix = columns(operator) @ matrix
    composed = compose(operators)
    check_operator(composed, matrix, tight=1e-9 if formed else None, exact_sides=False)
    plain = math.prod(float(operator.norm("l2").upper) for operator in operators)
    assert float(composed.norm("l2").upper) <= plain * (1 + 1e-6)


def test_what_is_folded() -> None:
    found = {name: compose(operators) for name, operators in chains().items()}
    for name in (
        "conv, batch norm",
        "batch norm, conv",
        "conv between factors",
        "grouped conv, factors",
        "matrices",
        "matrices with factors",
    ):
        assert isinstance(found[name], Folded), name
    for name in ("two convs with padding", "mixed sides", "element factors after conv", "gather and factors"):
        assert isinstance(found[name], Product), name
    single = Dense(integers(2, 3), (4, 2))
    assert compose([single]) is single
    assert compose([Permutation((4, 2), (4, 2)), single]) is single


def test_padded_kernel_and_its_inverse_are_not_the_identity() -> None:
    """The symbols multiply to 1; the padded composition does not have norm 1."""
    first = Convolution(np.array([[[1.0, 0.5]]]), (3,), pads=((1, 0),))
    inverse = Convolution(np.array([[[1.0, -2.0, 4.0, -8.0]]]), (3,), pads=((0, 3),))
    composed = compose([first, inverse])
    true = norm_from_below(columns(inverse) @ columns(first), "l2")
    assert float(true) > 1.5
    assert exact(composed.norm("l2").upper) >= true


@pytest.mark.parametrize("formed", [True, False])
def test_rounded_folds_stay_above_exact_products(formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors and entries with full mantissas: against products in rational arithmetic."""
    if not formed:
        monkeypatch.setattr(formed_module, "FORM_SIDE", 0)
    rng = np.random.default_rng(1)
    for _ in range(25):
        a, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
        scale = rng.standard_normal(4)
        exact_product = [
            [sum(Fraction(a[i, k]) * Fraction(scale[k]) * Fraction(b[k, j]) for k in range(4)) for j in range(2)] for i in range(3)
        ]
        composed = compose([Dense(a, (1, 3)), Diagonal(scale, (1, 4)), Dense(b, (1, 4))])
        rows = max(sum(abs(v) for v in row) for row in exact_product)
        cols = max(sum(abs(row[j]) for row in exact_product) for j in range(2))
        assert exact(composed.norm("l1").upper) >= rows  # x @ W: rows of W are columns of the map
        assert exact(composed.norm("linf").upper) >= cols
        square = sum(v * v for row in exact_product for v in row)
        assert exact(composed.norm("l2").upper) ** 2 * 2 >= square
        x = rng.standard_normal(3)
        low, high = composed.enclose(x[None], x[None])
        for j in range(2):
            value = sum(Fraction(x[i]) * exact_product[i][j] for i in range(3))
            assert Fraction(low[0, j]) <= value <= Fraction(high[0, j])


def test_cancelling_product_keeps_its_rounding_error() -> None:
    """W1 W2 = 0 up to rounding: what is left is error, and the bound must not be below the exact product."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        u = rng.standard_normal(6)
        a = np.stack([u, -u], axis=1)  # [6, 2]
        b = np.stack([u[:3] * 0.1 + 1, u[:3] * 0.1 + 1])  # [2, 3], equal rows: a @ b = 0 exactly
        b[1] = np.nextafter(b[1], 2)
        composed = compose([Dense(a, (1, 6)), Dense(b, (1, 2))])
        assert isinstance(composed, Folded)
        product = [[Fraction(a[i, 0]) * Fraction(b[0, j]) + Fraction(a[i, 1]) * Fraction(b[1, j]) for j in range(3)] for i in range(6)]
        frobenius = sum(v * v for row in product for v in row)
        assert exact(composed.norm("l2").upper) ** 2 * 3 >= frobenius
        x = rng.standard_normal(6)
        low, high = composed.enclose(x[None], x[None])
        for j in range(3):
            value = sum(Fraction(x[i]) * product[i][j] for i in range(6))
            assert Fraction(low[0, j]) <= value <= Fraction(high[0, j])


def test_rounded_product_below_the_exact_one() -> None:
    """fl(1 + 2^-60) = 1: only the allowance of the product covers the difference."""
    composed = compose([Dense(np.array([[1.0, 2.0**-60]]), (1, 1)), Dense(np.array([[1.0], [1.0]]), (1, 2))])
    assert isinstance(composed, Folded)
    for norm in NORMS:
        assert exact(composed.norm(norm).upper) >= 1 + Fraction(1, 2**60)


def test_uncertain_factors_widen_the_fold() -> None:
    relative = 1e-4
    conv = Convolution(np.array([[[2.0]], [[-3.0]]]), (4,))
    for norm in NORMS:
        composed = compose([conv, Diagonal(np.array([[0.5], [0.5]]), (1, 2, 4), relative)])
        assert exact(composed.norm(norm).upper) >= exact(conv.norm(norm).lower) / 2 * (1 + Fraction(relative)) * (1 - Fraction(1, 10**12))
    low, high = composed.enclose(np.ones((1, 1, 4)), np.ones((1, 1, 4)))
    assert np.all(low[0, 1] <= -1.5 * (1 + relative)) and np.all(high[0, 0] >= 1 + relative)
    between = compose([conv, Diagonal(np.array(0.5), (1, 2, 4), relative), Convolution(np.array([[[1.0], [1.0]]]), (4,))])
    assert exact(between.norm("linf").upper) >= Fraction(1, 2) * (1 + Fraction(relative))


def test_a_weight_that_is_not_finite_refuses_the_chain() -> None:
    bad = np.array([[1.0, math.nan], [0.0, 1.0]])
    for operators in (
        [Dense(bad, (3, 2)), Dense(np.eye(2), (3, 2))],
        [Dense(np.zeros((2, 2)), (3, 2)), Dense(bad, (3, 2))],
        [Dense(bad, (3, 2)), Diagonal(np.array([1.0, 2.0]), (3, 2))],
    ):
        found = compose(operators).norm("l2")
        assert found.upper == INFINITE and found.evidence["nonfinite"] == 1


def test_extreme_scales_are_not_folded() -> None:
    operators = [
        Dense(np.array([[1e-200, 2e-200]]), (1, 1)),
        Diagonal(np.array([1e-200, 3e-200]), (1, 2)),
        Diagonal(np.array(1e300), (1, 2)),
    ]
    found = compose(operators).norm("linf")
    assert exact(found.upper) >= Fraction(2e-200) * Fraction(3e-200) * Fraction(1e300)


def test_wrong_chains() -> None:
    with pytest.raises(ValueError):
        compose([])
    with pytest.raises(ValueError):
        compose([Dense(np.eye(2), (3, 2)), Dense(np.eye(3), (3, 3))])
