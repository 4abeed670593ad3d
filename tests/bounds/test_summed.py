"""Sums of operators, and what is merged in them, against the sums of their matrices."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import formed as formed_module
from lipaudit.bounds.chain import Folded, Product, compose
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.formed import narrowed
from lipaudit.bounds.linear import Dense, Diagonal, Kronecker, Permutation, Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import INFINITE
from lipaudit.bounds.summed import Sum, add
from tests.bounds.operators import NORMS, check_operator, columns
from tests.bounds.truth import Singular, exact, exact_sums

Floats = NDArray[np.float64]
RNG = np.random.default_rng(50)
MAPS = (1, 4, 5, 3)
"""Shape of the images."""


def integers(*shape: int) -> Floats:
    return RNG.integers(-3, 4, shape).astype(float)


def conv(*kernel: int, groups: int = 1, dilation: int = 1, pad: tuple[int, int] | None = None) -> Convolution:
    """4 to 4 channels, image kept."""
    reach = [dilation * (k - 1) for k in kernel]
    pads = [(pad or (r // 2, r - r // 2)) for r in reach]
    return Convolution(integers(4, 4 // groups, *kernel), MAPS[2:], groups=groups, pads=pads, dilations=(dilation,) * 2)


def identity(shape: tuple[int, ...]) -> Permutation:
    return Permutation(shape, shape)


def sums() -> dict[str, tuple[list[LinearOperator], str]]:
    """Summands with integer entries, and what they become: one "Convolution", one "Dense" matrix, or a "Sum"."""
    mean = Kronecker([(1, np.full((6, 6), 2.0))], (3, 6))
    return {
        "shortcut and convolution": ([identity(MAPS), conv(3, 3)], "Convolution"),
        "3x3, 1x1 and identity": ([conv(3, 3), conv(1, 1), identity(MAPS)], "Convolution"),
        "factors per channel": ([Diagonal(integers(4, 1, 1), MAPS), conv(3, 1)], "Convolution"),
        "depthwise and pointwise": ([conv(3, 3, groups=4), conv(1, 1)], "Convolution"),
        "two and four groups": ([conv(3, 3, groups=2), conv(3, 3, groups=4)], "Convolution"),
        "5x1 and 1x3": ([conv(5, 1), conv(1, 3)], "Convolution"),
        "kernels that begin elsewhere": ([conv(2, 2, pad=(1, 0)), conv(2, 2, pad=(0, 1))], "Convolution"),
        "dilated": ([conv(3, 3, dilation=2), conv(3, 3)], "Convolution"),
        "far dilated": ([conv(3, 3, dilation=5), conv(3, 3, dilation=2)], "Sum"),
        "strided": (
            [Convolution(integers(2, 4, k, k), (6, 6), strides=(2, 2), pads=((p, p),) * 2, outputs=(3, 3)) for k, p in ((3, 1), (1, 0))],
            "Convolution",
        ),
        "differently strided": (
            [Convolution(integers(2, 2, k), (5,), strides=(s,), pads=((p, p),), outputs=(3,)) for k, s, p in ((3, 2, 1), (3, 1, 0))],
            "Sum",
        ),
        "matrix and shortcut": ([identity((3, 5)), Dense(integers(5, 5), (3, 5))], "Dense"),
        "matrix and shortcut from the left": ([Dense(integers(5, 5), (5, 3), "left"), Diagonal(integers(5, 1), (5, 3))], "Dense"),
        "three matrices": ([Dense(integers(5, 4), (3, 5)) for _ in range(3)], "Dense"),
        "matrices on both sides": ([Dense(integers(4, 4), (3, 4)), Dense(integers(3, 3), (3, 4), "left")], "Sum"),
        "mean and shortcut": ([identity((3, 6)), mean], "Sum"),
        "twice the same": ([identity((3, 4)), identity((3, 4))], "Sum"),
        "chains": (
            [compose([Dense(integers(4, 2), (3, 4)), Dense(integers(2, 4), (3, 2))]), Selection.from_numpy((3, 4), lambda x: x[::-1])],
            "Sum",
        ),
        "products inside": ([conv(3, 3), compose([conv(3, 3), conv(1, 3)])], "Sum"),
        "cancelling": ([Dense(np.eye(4), (2, 4)), Dense(-np.eye(4) + np.eye(4)[:, ::-1], (2, 4))], "Dense"),
    }


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("name", list(sums()))
def test_sums_against_their_matrix(name: str, formed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not formed:
        monkeypatch.setattr(formed_module, "FORM_SIDE", 0)
    operators, kind = sums()[name]
    matrix = sum(columns(operator) for operator in operators)
    total = add(operators)
    check_operator(total, matrix, tight=1.1e-6 if formed or kind != "Sum" else None, exact_sides=False)
    check_operator(Sum(operators), matrix, tight=1.1e-6 if formed else None, exact_sides=False)
    base = total.base if isinstance(total, Folded) else total
    assert type(base).__name__ == kind
    plain = sum(float(operator.norm("l2").upper) for operator in operators)
    assert float(total.norm("l2").upper) <= plain * (1 + 1e-6)


def test_merged_sums_stay_above_the_exact_ones() -> None:
    """Entries whose sums round, with uncertain factors: against rational arithmetic."""
    rng = np.random.default_rng(51)
    for _ in range(40):
        a, b = rng.standard_normal((3, 3)), rng.standard_normal((3, 3)) * 10.0 ** rng.integers(-17, 1)
        exactly = [[Fraction(x) + Fraction(y) for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]
        rows = max(sum(abs(v) for v in row) for row in exactly)
        sides = max(sum(abs(row[j]) for row in exactly) for j in range(3))
        total = add([Dense(a, (2, 3), "right"), Dense(b, (2, 3))])
        assert exact(total.norm("l1").upper) >= rows and exact(total.norm("linf").upper) >= sides
        kernel = add([Convolution(a[:, :, None], (4,)), Convolution(b[:, :, None], (4,))])
        assert exact(kernel.norm("linf").upper) >= rows and exact(kernel.norm("l1").upper) >= sides
        scale = 2.0**170  # the truth as integers
        whole = np.array([[float(v) for v in row] for row in exactly])
        assert np.all(np.isfinite(whole * scale))
        assert exact(total.norm("l2").upper) >= exact(Dense(whole, (1, 3)).norm("l2", 0.0).lower) * (1 - Fraction(1, 10**15))


def test_rounded_entries_are_allowed_for() -> None:
    """1 + 2^-53 is rounded to 1: without the allowance the norm would be 1."""
    total = add([Dense(np.eye(3), (2, 3)), Dense(np.eye(3) * 2.0**-53, (2, 3))])
    for norm in NORMS:
        assert exact(total.norm(norm).upper) >= 1 + Fraction(1, 2**53)
    kernel = add([Permutation((1, 2, 4), (1, 2, 4)), Convolution(np.eye(2)[:, :, None] * 2.0**-53, (4,))])
    for norm in NORMS:
        assert exact(kernel.norm(norm).upper) >= 1 + Fraction(1, 2**53)


def test_uncertain_factors_widen_the_sum() -> None:
    relative = 1e-4
    normed = compose([Convolution(np.full((2, 2, 1), 2.0) - np.eye(2)[:, :, None], (4,)), Diagonal(np.ones((2, 1)), (1, 2, 4), relative)])
    total = add([normed, Permutation((1, 2, 4), (1, 2, 4))])
    assert isinstance(total, Folded)
    for norm in NORMS:
        assert exact(total.norm(norm).upper) >= 3 * (1 + Fraction(relative)) + 1 - Fraction(1, 10**12)  # 2 on the diagonal after the join


def test_shortcuts_that_undo_their_branch() -> None:
    """x - mean(x) has norm 1 where the sum of norms is 2; x + A x with A = -I is 0."""
    rows = (7, 40)
    mean = Kronecker([(1, np.full((40, 40), 1 / 40))], rows, 2.0**-53)
    centred = add([Permutation(rows, rows), compose([mean, Diagonal(np.asarray(-1.0), rows)])])
    found = centred.norm("l2")
    assert 1 <= float(found.upper) <= 1 + 1.1e-6 and found.method.startswith("formed chain")
    vanishing = add([Permutation((1, 3, 5), (1, 3, 5)), Convolution(-np.eye(3)[:, :, None], (5,))])
    assert float(vanishing.norm("l2").upper) <= 1e-12


def test_narrowed_operators_have_the_same_norms() -> None:
    """One place stands for all: against the matrix of the whole."""
    shape = (2, 3, 4)
    operators: list[LinearOperator] = [
        Dense(integers(4, 4), shape),
        Dense(integers(3, 3), shape, "left"),
        Diagonal(integers(4), shape),
        Diagonal(integers(3, 1), shape),
        Diagonal(integers(2, 1, 1), shape),
        Diagonal(np.asarray(3.0), shape),
        Kronecker([(1, integers(3, 3))], shape),
        Kronecker([(2, integers(5, 4))], shape),
        Convolution(integers(3, 3, 2), (4,), pads=((1, 0),), batch=2),
        Permutation(shape, shape),
        Permutation(shape, (2, 12)),
        Permutation(shape, shape, lambda: np.arange(24).reshape(3, 2, 4).transpose(1, 0, 2)),
        Permutation(shape, (2, 4, 3), lambda: np.arange(24).reshape(shape).transpose(0, 2, 1)),
        Selection.from_numpy(shape, lambda x: x[:, ::-1]),
        compose([Dense(integers(4, 5), shape), Diagonal(integers(5), (2, 3, 5)), Dense(integers(5, 2), (2, 3, 5))]),
        compose([Kronecker([(1, integers(3, 3))], shape), Diagonal(integers(2, 3, 1), shape)]),
        Sum([Dense(integers(4, 4), shape), Diagonal(integers(3, 1), shape)]),
        Sum([Dense(integers(4, 4), shape), Permutation(shape, shape)]),
        compose([Dense(integers(4, 12), shape), Permutation((2, 3, 12), (2, 36)), Dense(integers(36, 2), (2, 36))]),
    ]
    shortened = 0
    for operator in operators:
        short = narrowed(operator)
        shortened += math.prod(short.in_shape) < math.prod(operator.in_shape)
        whole, part = columns(operator), columns(short)
        for norm in ("l1", "linf"):
            assert exact_sums(whole, norm) == exact_sums(part, norm), operator
        top = exact(Dense(part, (1, len(part))).norm("l2", 0.0).upper)
        assert Singular(whole).largest_at_most(top) and not Singular(whole).largest_at_most(top * (1 - Fraction(1, 10**10)))
    assert shortened >= 14


def rotation(angles: Floats, width: int) -> Sum:
    """Pairs (k, k + width/2) of each row turned by the row's angles, as exporters spell it: ``x cos + (x turned by a quarter) sin``."""
    half = width // 2
    shape = (len(angles), width)
    signs = np.concatenate([-np.ones(half), np.ones(half)])
    cos, sin = (
        np.tile(f(angles[:, None] / 7.0 ** np.arange(half)).astype(np.float32), (1, 2)).astype(np.float64) for f in (np.cos, np.sin)
    )
    turned = compose([Selection.from_numpy(shape, lambda x: np.roll(x, half, axis=1)), Diagonal(signs, shape), Diagonal(sin, shape)])
    return Sum([Diagonal(cos, shape), turned])


def test_rotations_by_their_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formed_module, "FORM_SIDE", 0)
    small = rotation(np.arange(3.0), 4)
    check_operator(small, columns(Sum(small.summands)), tight=1e-6, exact_sides=False)
    large = rotation(np.arange(2000.0), 64)
    for norm, top in (("l2", 1 + 2e-7), ("l1", 2**0.5 * (1 + 2e-7)), ("linf", 2**0.5 * (1 + 2e-7))):
        assert 1 - 1e-6 <= float(large.norm(norm).upper) <= top
    assert large.norm("l2").method == "linf norm of A'A by entries"


def test_entries_of_random_compositions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors with full mantissas, copies, sums of products: against exact sums over the rationals."""
    monkeypatch.setattr(formed_module, "FORM_SIDE", 0)
    rng = np.random.default_rng(52)

    def rational_matrix(operator: LinearOperator) -> list[list[Fraction]]:
        if isinstance(operator, Sum):
            parts = [rational_matrix(part) for part in operator.summands]
            return [[sum(values, Fraction(0)) for values in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
        if isinstance(operator, Product):
            total = rational_matrix(operator.factors[0])
            for factor in operator.factors[1:]:
                left = rational_matrix(factor)
                total = [
                    [sum((a * b for a, b in zip(row, col, strict=True)), Fraction(0)) for col in zip(*total, strict=True)] for row in left
                ]
            return total
        return [[Fraction(v) for v in row] for row in columns(operator).tolist()]

    for _ in range(30):
        shape = (5,)
        picks = [rng.integers(0, 5, 5) for _ in range(3)]
        factors = [rng.standard_normal(5) * 10.0 ** rng.integers(-3, 3) for _ in range(4)]
        first = Sum(
            [Diagonal(factors[0], shape), Product([Selection.from_numpy(shape, lambda x, p=picks[0]: x[p]), Diagonal(factors[1], shape)])]
        )
        second = Sum([Product([first, Diagonal(factors[2], shape), Selection.from_numpy(shape, lambda x, p=picks[1]: x[p])]), first])
        truth = rational_matrix(second)
        linf = max(sum(abs(v) for v in row) for row in truth)
        l1 = max(sum(abs(row[j]) for row in truth) for j in range(5))
        assert linf <= exact(second.norm("linf").upper) <= linf * (1 + Fraction(1, 10**9))
        assert exact(second.norm("l1").upper) >= l1
        x = [Fraction(float(v)) for v in rng.standard_normal(5)]
        image = [sum(a * b for a, b in zip(row, x, strict=True)) for row in truth]
        assert sum(v * v for v in image) <= exact(second.norm("l2").upper) ** 2 * sum(v * v for v in x)
        found = second.norm("l2")
        assert float(found.upper) >= np.linalg.norm(np.array(truth, dtype=float), 2) * (1 - 1e-13)


def test_bad_sums() -> None:
    with pytest.raises(ValueError):
        add([])
    with pytest.raises(ValueError):
        add([Dense(np.eye(3), (2, 3)), Dense(np.eye(3), (1, 3))])
    bad = np.array([[1.0, math.nan], [0.0, 1.0]])
    for others in ([Dense(np.eye(2), (3, 2))], [Permutation((3, 2), (3, 2))], [Kronecker([(0, np.eye(3))], (3, 2))]):
        found = add([Dense(bad, (3, 2)), *others]).norm("l2")
        assert found.upper == INFINITE and found.evidence["nonfinite"] == 1


def test_extreme_scales_are_not_merged() -> None:
    total = add([Dense(np.array([[1e-310]]), (1, 1)), Dense(np.array([[1e305]]), (1, 1))])
    assert isinstance(total, Sum)
    assert exact(total.norm("linf").upper) >= Fraction(1e305) + Fraction(1e-310)


@pytest.mark.parametrize("size", [3, 300])
def test_what_underflows_on_the_way_is_not_lost(size: int) -> None:
    """Twelve factors 2^-100 and twelve 2^100 are 1 together, and 0 in floating point: ``I + 1`` has norm 2."""
    factors = [Diagonal(np.full(size, scale), (size,)) for scale in [2.0**-100] * 12 + [2.0**100] * 12]
    operator = Sum([Permutation((size,), (size,)), Product(factors)])
    assert float(operator.apply(np.ones(size))[0]) == 1.0
    for norm in NORMS:
        assert float(operator.norm(norm).upper) >= 2.0
        assert float(Product([*factors, Dense(np.ones((size, size)), (size,), "right")]).norm(norm).upper) >= 1.0
