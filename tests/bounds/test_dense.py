"""Verified norms of matrices against exact rational arithmetic, closed forms and adversarial families."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.linalg import hadamard, hilbert, svdvals

from lipaudit.bounds import dense
from lipaudit.bounds.dense import dense_norm, fill_norm, vector_norm
from lipaudit.bounds.operator import VerifiedNorm
from lipaudit.bounds.scalar import INFINITE, Norm
from lipaudit.bounds.sums import exact_sum, largest_row_sum
from tests.bounds.truth import (
    dominates,
    exact,
    exact_gram,
    exact_sums,
    gram_polynomial,
    largest_eigenvalue_at_most,
    spectral_from_below,
)

Floats = NDArray[np.float64]
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")


def check(matrix: Floats, slack: float, excess: float | None = None) -> VerifiedNorm:
    """Upper and lower against exact elimination (the Gram matrix is small); ``excess`` bounds the relative excess."""
    found = dense_norm(matrix, "l2", slack)
    gram = exact_gram(matrix)
    upper, lower = exact(found.upper), exact(found.lower)
    assert dominates(upper * upper, gram), (found, matrix.shape)
    assert lower == 0 or not dominates(lower * lower * (1 - Fraction(2) ** -200), gram)
    if excess is not None:
        shrunk = upper / (1 + Fraction(excess))
        assert not dominates(shrunk * shrunk, gram), (float(found.upper), excess, found.method)
    return found


def families() -> Iterator[tuple[str, Floats]]:
    rng = np.random.default_rng(0)
    n = 8
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    yield "hilbert", hilbert(n)
    yield "clustered", q @ np.diag(1 - 1e-14 * np.arange(n)) @ q.T
    yield "clustered top", q @ np.diag([1, 1 - 1e-12, 1 - 2e-12, 0.5, 0.3, 0.1, 1e-3, 1e-9]) @ q
    yield "orthogonal", q
    yield "rank one", np.outer(rng.standard_normal(n), rng.standard_normal(n))
    yield "repeated columns", np.repeat(rng.standard_normal((n, 2)), 4, axis=1)
    yield "nearly repeated columns", np.repeat(rng.standard_normal((n, 2)), 4, axis=1) + 1e-13 * rng.standard_normal((n, n))
    yield "hadamard", hadamard(n).astype(float)
    yield "kahan", np.triu(np.full((n, n), -0.9), 1) + np.diag(0.4 ** np.arange(n))
    yield "graded up", rng.standard_normal((n, n)) * 10.0 ** np.linspace(-300, 300, n)
    yield "graded both", rng.standard_normal((n, n)) * 10.0 ** np.linspace(-150, 150, n) * 10.0 ** np.linspace(150, -150, n)[:, None]
    yield "huge", rng.uniform(-1, 1, (n, n)) * 1.7e308
    yield "3e307", rng.standard_normal((n, n)) * 1e307
    yield "small", rng.standard_normal((n, n)) * 1e-308
    yield "denormal", np.round(rng.standard_normal((n, n)) * 100) * 5e-324
    yield "one denormal", np.diag([5e-324] + [0.0] * (n - 1))
    yield "integers", rng.integers(-9, 10, (n, n)).astype(float)
    yield "wide", rng.standard_normal((3, 12))
    yield "tall", rng.standard_normal((12, 3))
    yield "diagonal", np.diag(np.arange(1.0, n + 1))
    yield "one entry", np.eye(n)[:, :1] @ np.eye(n)[:1] * 3.25
    yield "1xn", rng.standard_normal((1, 9))
    yield "nx1", rng.standard_normal((9, 1))
    yield "1x1", np.array([[-0.1]])
    yield "zero", np.zeros((4, 5))
    yield "start orthogonal", np.outer(np.array([1.0, -1.0] * 4), np.array([1.0, -1.0] * 4)) + 1e-3 * np.eye(n)
    yield "circulant", np.stack([np.roll(np.array([3.0, -1, 0.5, 0, 0, 0, 0, 2]), k) for k in range(n)])
    yield "cancelling gram", np.array([[1.0, 1.0], [2.0**-27, -(2.0**-27)]])


@pytest.mark.parametrize("slack", [1e-6, 0.0])
@pytest.mark.parametrize(("name", "matrix"), list(families()), ids=[name for name, _ in families()])
def test_adversarial_families_against_exact_arithmetic(name: str, matrix: Floats, slack: float) -> None:
    found = check(matrix, slack, None if name == "zero" else 1e-11)
    if name == "zero":
        assert found.upper.is_zero
        return
    denormal = "denormal" in name or name == "small"
    assert float(found.lower.sqrt() / found.upper.sqrt()) > (0 if denormal else 1 - 1e-11)


def test_integer_matrices_against_exact_arithmetic() -> None:
    """3000 of them: small entries (often singular, often with repeated singular values), permutations and signs among them."""
    rng = np.random.default_rng(1)
    tight = Fraction(1, 10**11)
    for k in range(3000):
        m, n = (int(size) for size in rng.integers(1, 9, 2))
        size = (1, 3, 9, 1000)[k % 4]
        matrix = rng.integers(-size, size + 1, (m, n)).astype(float)
        if k % 5 == 0:
            matrix[:, -1] = matrix[:, 0]
        found = dense_norm(matrix, "l2", 0.0 if k % 2 else 1e-6)
        polynomial = gram_polynomial(matrix)
        upper, lower = exact(found.upper), exact(found.lower)
        assert largest_eigenvalue_at_most(upper * upper, polynomial), (k, matrix, found)
        if not matrix.any():
            assert upper == 0
            continue
        assert not largest_eigenvalue_at_most((upper / (1 + tight)) ** 2, polynomial), (k, matrix, found)
        assert not largest_eigenvalue_at_most(lower * lower * (1 - Fraction(2) ** -200), polynomial), (k, matrix, found)
        assert lower >= upper * (1 - tight)


def test_first_factorisation_succeeds_on_the_weights_of_the_samples(samples: Path) -> None:
    """On at least 95 % of those that need one: matrices as they are, convolutions as they are and by output channels."""
    tries: list[int] = []
    for path in sorted(samples.glob("*.onnx")):
        for item in onnx.load(path).graph.initializer:
            array = numpy_helper.to_array(item)
            if array.ndim < 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
                continue
            found = dense_norm(array.reshape(array.shape[0], -1), "l2")
            if found.method == "verified Cholesky":
                tries.append(found.evidence["tries"])
    assert len(tries) >= 50
    assert tries.count(1) >= 0.95 * len(tries), tries


@pytest.mark.parametrize("n", [2, 3, 10, 64, 65, 130, 200])
def test_slack_zero_is_met_to_rounding(n: int) -> None:
    """At most 1e-11 above the norm for n up to 200, and never a failure."""
    rng = np.random.default_rng(n)
    unit = np.linalg.qr(rng.standard_normal((n, n)))[0]
    clustered = unit * (1 - 1e-13 * np.arange(n))
    for matrix in (rng.standard_normal((n, n)), rng.standard_normal((n, 3 * n)), clustered, np.exp(rng.standard_normal((n, n)) * 5)):
        found = dense_norm(matrix, "l2", 0.0)
        true = spectral_from_below(matrix)
        assert Fraction(true) <= exact(found.upper) <= Fraction(true) * (1 + Fraction(1, 10**11)), found


@pytest.mark.parametrize("shape", [(70, 70), (200, 90), (90, 200), (130, 129)])
@pytest.mark.parametrize("slack", [1e-6, 1e-3, 0.0])
def test_larger_matrices_are_tight(shape: tuple[int, int], slack: float) -> None:
    for seed in range(3):
        matrix = np.random.default_rng(seed).standard_normal(shape)
        found = dense_norm(matrix, "l2", slack)
        true = spectral_from_below(matrix)
        assert exact(found.upper) >= Fraction(true)
        assert float(found.upper) <= true * (1 + max(1.01 * slack, 1e-11))
        assert float(found.lower) <= svdvals(matrix)[0] * (1 + 1e-14)
        assert float(found.lower) >= true * (1 - max(slack, 1e-11))


@pytest.mark.parametrize("make", ["identity", "clustered", "orthogonal", "ones plus noise", "rank one"])
def test_large_clustered_spectra(make: str) -> None:
    rng = np.random.default_rng(2)
    n = 150
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    matrix = {
        "identity": np.eye(n),
        "clustered": q * (1 - 1e-9 * np.arange(n)),
        "orthogonal": q,
        "ones plus noise": np.ones((n, n)) + 1e-8 * rng.standard_normal((n, n)),
        "rank one": np.outer(rng.standard_normal(n), rng.standard_normal(n)),
    }[make]
    found = dense_norm(matrix, "l2")
    assert exact(found.upper) >= Fraction(spectral_from_below(matrix))
    assert float(found.upper) <= svdvals(matrix)[0] * (1 + 1.1e-6)


def test_known_norms_are_exact() -> None:
    assert exact(dense_norm(np.eye(7), "l2").upper) == 1
    assert exact(dense_norm(np.eye(300)[np.random.default_rng(0).permutation(300)][:200], "l2").upper) == 1
    assert exact(dense_norm(np.full((4, 9), -0.5), "l2").upper) == 3
    assert exact(dense_norm(np.ones((1, 16), dtype=np.float32), "l2").upper) == 4
    assert exact(dense_norm(np.array([[3.0], [4.0]]), "l2").upper) == 5
    assert [exact(dense_norm(np.array([[1.0, -2.0], [3.0, 4.0]]), norm).upper) for norm in ("l1", "linf")] == [6, 7]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8])
def test_narrow_types_are_exact_in_float64(dtype: type) -> None:
    values = np.random.default_rng(3).integers(-8, 9, (6, 5)).astype(dtype)
    wide = values.astype(np.float64)
    for norm in NORMS:
        assert dense_norm(values, norm).upper == dense_norm(wide, norm).upper


def test_memory_order_does_not_matter_and_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(4).standard_normal((90, 70)).astype(np.float32)
    true = Fraction(spectral_from_below(matrix.astype(np.float64)))
    monkeypatch.setattr(dense, "BLOCK", 1000)
    for view in (matrix, matrix.T, np.asfortranarray(matrix), matrix[::-1], np.repeat(matrix, 2, axis=1)[:, ::2]):
        found = dense_norm(view, "l2")
        assert true <= exact(found.upper) <= true * (1 + Fraction(2, 10**6))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_weights_are_counted_not_raised(bad: float) -> None:
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        matrix = np.ones((5, 4), dtype=dtype)
        matrix[1, 2] = matrix[4, 0] = bad
        matrix[0, 0] = 2
        for norm in NORMS:
            found = dense_norm(matrix, norm)
            assert found.upper == INFINITE and found.lower.is_zero
            assert found.method == "non-finite weight" and found.evidence == {"nonfinite": 2}
    assert dense_norm(np.broadcast_to(np.float32(bad), (3, 4)), "l2").evidence == {"nonfinite": 12}


def test_fallback_without_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "SIDE_LIMIT", 4)
    for seed in range(5):
        matrix = np.random.default_rng(seed).standard_normal((8, 9)) * 10.0 ** (100 * (seed - 2))
        found = dense_norm(matrix, "l2")
        assert found.method in ("Frobenius norm", "sqrt(l1 * linf)")
        assert dominates(exact(found.upper) ** 2, exact_gram(matrix))
        assert found.lower.is_zero or not dominates(exact(found.lower) ** 2, exact_gram(matrix))


def test_failed_estimates_cost_time_not_soundness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the estimate of the largest eigenvalue: zero, tiny, far too large or NaN."""
    matrix = np.random.default_rng(5).standard_normal((9, 9))
    for guess in (0.0, 1e-300, 1e-3, 1e6, math.nan):
        monkeypatch.setattr(dense, "_estimate", lambda gram, slack, guess=guess: (guess, np.zeros(len(gram))))
        found = dense_norm(matrix, "l2")
        assert dominates(exact(found.upper) ** 2, exact_gram(matrix))


def test_the_wrong_one_of_two_close_eigenvalues_costs_one_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate that found the second largest value, four millionths below: the slack that was asked is met all the same."""
    rng = np.random.default_rng(10)
    n = 120
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    values = np.concatenate([[1.0, 1 - 2e-6], np.linspace(0.98, 0.1, n - 2)])
    matrix = left * values @ right
    monkeypatch.setattr(dense, "_estimate", lambda gram, slack: (float(values[1] ** 2), right[1]))
    found = dense_norm(matrix, "l2")
    assert found.evidence["tries"] == 2
    assert exact(found.upper) >= Fraction(spectral_from_below(matrix))
    assert float(found.upper) <= float(found.lower) * (1 + 1e-6)


def test_an_indefinite_matrix_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates a little too small: every diagonal entry is positive, only the factorisation can tell."""
    for n in (2, 3, 9):
        matrix = np.eye(n) + 0.9 * (np.ones((n, n)) - np.eye(n))
        true = float(svdvals(matrix)[0]) ** 2
        for factor in (0.6, 0.9, 0.999, 1 - 1e-9):
            start = np.eye(n)[0]
            monkeypatch.setattr(dense, "_estimate", lambda gram, slack, guess=factor * true, x=start: (guess, x))
            found = dense_norm(matrix, "l2")
            assert dominates(exact(found.upper) ** 2, exact_gram(matrix))
            gram = np.tril(matrix.T @ matrix)
            assert not dense.factors(np.asfortranarray(gram), factor * true)


def test_evidence_lets_a_checker_factorise_again() -> None:
    matrix = np.random.default_rng(6).standard_normal((100, 80)) * 1e60
    found = dense_norm(matrix, "l2")
    t, exponent = float.fromhex(found.evidence["t"]), found.evidence["exponent"]
    scaled = np.ldexp(matrix, -exponent)
    np.linalg.cholesky(t * np.eye(80) - scaled.T @ scaled)
    total = Fraction(t) * (1 + Fraction(found.evidence["allowance"])) * Fraction(4) ** exponent
    assert exact(found.upper) ** 2 <= total * (1 + Fraction(1, 10**30))


def test_fill_norms() -> None:
    for norm in NORMS:
        for shape in ((3, 5), (1, 1), (64, 2)):
            value = -0.3
            found = fill_norm(value, shape, norm)
            m, n = shape
            square = {"l1": m * m, "l2": m * n, "linf": n * n}[norm] * Fraction(value) ** 2
            assert exact(found.lower) ** 2 <= square <= exact(found.upper) ** 2 <= square * (1 + Fraction(1, 2**100))
    huge = np.broadcast_to(np.float32(1), (10**6, 10**6))
    assert exact(dense_norm(huge, "l2").upper) == 10**6


def test_empty_matrices_and_wrong_ranks() -> None:
    for shape in ((0, 3), (3, 0), (0, 0)):
        assert all(dense_norm(np.zeros(shape), norm).upper.is_zero for norm in NORMS)
    with pytest.raises(ValueError):
        dense_norm(np.zeros(3), "l2")


def test_vector_norms_are_within_an_ulp() -> None:
    rng = np.random.default_rng(7)
    for scale in (1.0, 1e-300, 1e300, 5e-324):
        for _ in range(30):
            values = rng.integers(-9, 10, 7) * scale if scale < 1e-310 else rng.standard_normal(7) * scale
            square = sum((Fraction(float(v)) ** 2 for v in values), Fraction(0))
            found = vector_norm(values)
            assert exact(found.lower) ** 2 <= square <= exact(found.upper) ** 2
            assert exact(found.upper) ** 2 <= square * (1 + Fraction(1, 2**49))


def test_sums_equal_the_exact_value_rounded_up() -> None:
    rng = np.random.default_rng(8)
    for k in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 40, 2))
        matrix = rng.standard_normal(shape) * 10.0 ** rng.uniform(-20, 20, shape)
        if k % 3 == 0:
            matrix = np.sign(matrix) * np.round(np.abs(matrix) % 7)
        matrix = matrix.astype(np.float32) if k % 2 else matrix
        for axis, norm in ((0, "l1"), (1, "linf")):
            true = exact_sums(matrix.astype(np.float64), norm)
            found = exact(largest_row_sum(matrix, axis))
            assert true <= found <= max(true, Fraction(math.nextafter(float(true), math.inf)))


def test_sums_of_many_tied_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipaudit.bounds import sums

    monkeypatch.setattr(sums, "EXACT_WORK", 16)
    rng = np.random.default_rng(9)
    row = rng.standard_normal(50)
    matrix = np.stack([rng.permutation(row) for _ in range(40)])
    true = exact_sums(matrix, "linf")
    found = exact(largest_row_sum(matrix, 1))
    assert true <= found <= true * (1 + Fraction(1, 2**52))


def test_sums_that_overflow_doubles() -> None:
    matrix = np.full((3, 5), 1.7e308)
    matrix[1, 1] = 1.6e308
    for axis, norm in ((0, "l1"), (1, "linf")):
        true = exact_sums(matrix, norm)
        assert true <= exact(largest_row_sum(matrix, axis)) <= true * (1 + Fraction(1, 2**50))
    assert exact(exact_sum([0.1] * 10)) >= sum([Fraction(0.1)] * 10)
