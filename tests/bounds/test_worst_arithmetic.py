"""The rounding allowances against arithmetic that uses all of them: no bound is beaten, and a few per cent less would be."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import dense, smallest, sweep
from lipaudit.bounds.below import witnessed
from lipaudit.bounds.lags import Lags
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.scalar import ZERO, Lower, Upper
from lipaudit.bounds.spectrum import sum_of_squares
from lipaudit.bounds.torus import Torus
from tests.bounds.truth import exact
from tests.bounds.worst import SINGLE, UNIT, HostileCholesky, HostileGram, HostilePacked, gamma

Floats = NDArray[np.float64]
LEGAL = 0.9999
"""Share of the allowance that the hostile arithmetic may use (its own rounding needs the rest)."""


def dense_claims(shape: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the claims for a matrix of halves hold: its squared norm is m n / 4, its Gram matrix and its errors share one direction."""
    monkeypatch.setattr(dense, "dsyrk", HostileGram(share, -1))
    monkeypatch.setattr(dense, "dpotrf", HostileCholesky(share))
    scaled = dense._Scaled(np.full(shape, 0.5), 0)
    true = Fraction(shape[0] * shape[1], 4)
    square = Upper(float(np.trace(scaled.gram()))) * (Upper(1) + dense.gamma(2 * sum(shape)) * Upper(2)) + dense.UNDERFLOW
    m, n = scaled.m, scaled.n
    held: list[bool] = []
    for part in np.linspace(0, 1.2, 121):
        estimate = float(true) * (1 - part * (n * (n + 3) + m) * UNIT)
        proved = dense._verify(scaled, scaled.gram(), estimate, 0.0, square, tries=1)
        if proved is not None:
            held.append(Fraction(proved[0]) + exact(proved[1]) >= true)
    return held


@pytest.mark.parametrize("shape", [(200, 200), (20000, 12), (40, 900)])
def test_dense_norms(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    held = dense_claims(shape, LEGAL, monkeypatch)
    assert held and all(held)
    # The part of the diagonal that the factorisation does not see is 1/n of the allowance.
    illegal = 1.02 if shape[0] > 9999 else 1.01 + 1.5 / min(shape)
    assert not all(dense_claims(shape, illegal, monkeypatch)), "less of an allowance would do: the test shows nothing"


def smallest_claims(n: int, share: float, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """G = I - (1 - 2^-10)/n 11' (n a power of two): its smallest eigenvalue is 2^-10, along the diagonal's square roots."""
    monkeypatch.setattr(smallest, "dpotrf", HostileCholesky(share))
    true = Fraction(1, 1024)
    held: list[bool] = []
    for part in np.linspace(0, 1.2, 121):
        gram = np.eye(n) - float((1 - true) / n)
        s = float(true) + part * n * (n + 3) * UNIT
        proved = smallest._prove(np.asfortranarray(gram), s, 1, ZERO)
        if proved is not None:
            held.append(exact(proved) <= true)
    return held


def test_smallest_singular_values_by_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    held = smallest_claims(256, LEGAL, monkeypatch)
    assert held and all(held)
    assert not all(smallest_claims(256, 1.02, monkeypatch)), "the test shows nothing"


def singular_claims(m: int, share: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many values are claimed for [1, -1] in m rows, which is singular: the errors of the Gram matrix add up along (1, 1)."""
    monkeypatch.setattr(smallest, "dsyrk", HostileGram(share, 1))
    matrix = np.stack([np.full(m, 0.5), np.full(m, -0.5)], axis=1)
    blocks = smallest._Blocks(matrix)
    square = Upper(float(np.trace(blocks.gram()))) * (Upper(1) + dense.gamma(2 * m + 4) * Upper(2))
    values = np.linspace(0.1, 1.1, 200) * m * gamma(m)
    return sum(smallest._prove(blocks.gram(), float(s), m, square) is not None for s in values)


def test_smallest_singular_values_by_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert singular_claims(1000, LEGAL, monkeypatch) == 0
    assert singular_claims(1000, 1.03, monkeypatch) > 0, "the test shows nothing"


def rank_one(c: int, long: int = 0) -> tuple[Lags, Torus, Fraction]:
    """One tap of c x long halves (c x c if 0): the symbol's squared norm is c long / 4 at the only frequency."""
    lags = Lags(np.full((1, c, 1, long or c), 0.5))
    return lags, Torus((1,), (0,)), Fraction(c * (long or c), 4)


def sweep_claims(c: int, long: int, share: float, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    lags, torus, true = rank_one(c, long)
    monkeypatch.setattr(sweep, "zpftrf", HostilePacked(share, UNIT, entrywise=False))
    # Coefficients: inner products of that length; the polynomial: one term, a cosine known to 16 units, two roundings to spare.
    off = share * 2**0.5 * gamma(long + 1 + 16 + 2) * float(true) / c
    exactly = lags.grams
    monkeypatch.setattr(lags, "grams", lambda waves: exactly(waves) + lags.packing.pack(np.full((c, c), off)))
    run = sweep.Sweep(lags, torus, 1e-6)
    points = torus.frequencies()
    held: list[bool] = []
    for part in np.linspace(0, 1.3, 101):
        run.t = float(true) * (1 - part * float(lags.allowance(float(true))) / float(true))
        if run.doubles(points, np.ones((1, 1), dtype=np.bool_))[1].all():
            held.append(Fraction(run.t) + exact(lags.allowance(run.t)) >= true)
    return held


@pytest.mark.parametrize(("c", "long", "legal", "illegal"), [(128, 128, LEGAL, 1.03), (2, 4, 0.93, 1.6), (4, 4000, 0.999, 1.02)])
def test_symbols_in_float64(c: int, long: int, legal: float, illegal: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large orders: the factorisation; few channels: cosines and sums; long inner products: the coefficients."""
    held = sweep_claims(c, long, legal, monkeypatch)
    assert held and all(held)
    monkeypatch.undo()
    assert not all(sweep_claims(c, long, illegal, monkeypatch)), "the test shows nothing"


def single_claims(c: int, share: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many t below the squared norm float32 proves, its Gram matrix being exact."""
    lags, torus, true = rank_one(c)
    vars(lags)["single_error"] = 0.0
    monkeypatch.setattr(sweep, "cpftrf", HostilePacked(share, SINGLE, entrywise=True))
    grams = lags.single_grams(torus.waves(torus.frequencies(), lags.lags))
    run = sweep.Sweep(lags, torus, 1e-6)
    claimed = 0
    for below in np.geomspace(1e-7, 1e-3, 25):
        for room in (2.5e-7, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4):
            run.room = room
            claimed += bool(run.singles(grams.copy(), float(true) * (1 - below))[0])
    return claimed


def test_symbols_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor of a matrix that is off by all of gamma M M': without the term that is read off the factor, most claims are wrong."""
    assert single_claims(96, LEGAL, monkeypatch) == 0
    assert single_claims(96, 3.0, monkeypatch) > 0, "the test shows nothing"


def test_a_factor_with_a_nan_pivot_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some implementations pass a NaN pivot with info 0: in the sweep, and where a frequency is repeated."""
    lags, torus, true = rank_one(4)

    def careless(order: int, packed: NDArray[Any], **_: object) -> tuple[NDArray[Any], int]:
        packed[lags.packing.diagonal[order - 1]] = np.nan
        return packed, 0

    monkeypatch.setattr(sweep, "zpftrf", careless)
    run = sweep.Sweep(lags, torus, 1e-6)
    points, left = torus.frequencies(), np.ones((1, 1), dtype=np.bool_)
    run.start(points, float(true))
    original, factored = run.doubles(points, left)
    assert not factored.any()
    assert not run.repeat(original[0], points[0], 0, 0.0)
    assert not run.prove(points, left)
    monkeypatch.undo()
    assert run.prove(points, left)


class HostileProduct(Dense):
    """``A x`` off by all of gamma_k |A||x|, upward."""

    def apply(self, x: Floats) -> Floats:
        return super().apply(x) * (1 + LEGAL * gamma(self.terms))  # all entries and x are of one sign


def test_lower_values() -> None:
    for k in (3, 100, 5000):
        matrix = np.full((k, 7), 0.5)
        operator = HostileProduct(matrix, (1, k))
        found = witnessed(operator, np.ones((1, k)), Upper(7 * k).sqrt() * Upper(0.5))
        assert exact(found) ** 2 <= Fraction(7 * k, 4)
        assert exact(found) ** 2 >= Fraction(7 * k, 4) * (1 - Fraction(1, 10**10))


def test_lower_values_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    image = dense._Scaled.image
    monkeypatch.setattr(dense._Scaled, "image", lambda self, x: image(self, x) * (1 + LEGAL * gamma(self.n)))
    for shape in ((5, 3), (80, 70), (3000, 9)):
        scaled = dense._Scaled(np.full(shape, 0.5), 0)
        true = Fraction(shape[0] * shape[1], 4)
        rigorous, _ = dense._from_below(scaled, np.ones(min(shape)), float(true) ** 0.5)
        assert Fraction(rigorous) ** 2 <= true


@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_of_squares(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    product = np.vdot
    monkeypatch.setattr(np, "vdot", lambda x, y: product(x, y) * (1 + sign * LEGAL * gamma(np.size(x))))
    for shape in ((3,), (70, 30), (1 << 16,), (300, 400)):
        values = np.full(shape, 0.5)
        values.flat[0] = 0.25
        true = Fraction(values.size - 1, 4) + Fraction(1, 16)
        found = sum_of_squares(values)
        assert exact(found.lower) <= true <= exact(found.upper)


def test_nothing_is_proved_for_what_is_not_a_number() -> None:
    gram = np.asfortranarray(np.eye(3))
    gram[1, 1] = np.nan
    assert not dense.factors(gram.copy(order="F"), 4.0)
    assert smallest._prove(gram.copy(order="F"), 0.5, 3, Upper(3)) is None
    assert Lower(0).is_zero
