"""Proofs over all frequencies: what float32 may claim, and what it may not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import conv, sweep
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.lags import Lags
from lipaudit.bounds.torus import Torus
from tests.bounds.test_conv import draw, truth
from tests.bounds.truth import exact, spectral_from_below

Floats = NDArray[np.float64]


def scaled(taps: Floats) -> Floats:
    """Largest magnitude in [1/2, 1)."""
    return np.ldexp(taps, -int(np.frexp(np.max(np.abs(taps)))[1]))


def kernels() -> dict[str, Floats]:
    """Block taps [1, c, n, L]: flat, peaked, cancelling, graded, nearly singular symbols."""
    rng = np.random.default_rng(0)
    c = 24
    unit = np.linalg.qr(rng.standard_normal((c, c)))[0]
    plain = rng.standard_normal((1, c, 3, c))
    cancelling = plain.copy()
    cancelling[:, :, 2] = -cancelling[:, :, 0] * (1 + 1e-7)
    clustered = np.zeros((1, c, 2, c))
    clustered[0, :, 0] = unit
    clustered[0, :, 1] = 1e-6 * rng.standard_normal((c, c))
    peaked = np.abs(plain) + 1e-3 * plain
    graded = plain * 10.0 ** np.linspace(0, -12, c)[None, :, None, None]
    rank_one = np.einsum("c,t,l->ctl", rng.standard_normal(c), rng.standard_normal(3), rng.standard_normal(2 * c))[None]
    found = {"plain": plain, "cancelling": cancelling, "clustered": clustered, "peaked": peaked, "graded": graded, "rank one": rank_one}
    return {name: scaled(taps) for name, taps in found.items()}


def largest(taps: Floats, torus: Torus) -> Floats:
    """Squared norm of the symbol at every frequency, in extended precision from the singular vectors, up to 1e-15."""
    found: list[float] = []
    for point in torus.frequencies():
        (angle,) = torus.angles(point)
        wide = taps[0].astype(np.longdouble)
        places = np.arange(wide.shape[1]).astype(np.longdouble) * np.longdouble(angle)
        symbol = np.einsum("ctl,t->cl", wide, np.cos(places)) + 1j * np.einsum("ctl,t->cl", wide, np.sin(places))
        x = np.linalg.svd(symbol.astype(np.complex128))[2][0].conj().astype(np.clongdouble)
        y = symbol @ x
        found.append(float((y.conj() @ y).real / (x.conj() @ x).real))
    return np.array(found)


@pytest.mark.parametrize("name", list(kernels()))
def test_float32_never_claims_too_much(name: str) -> None:
    """Whatever room is given, a frequency is proved only for a t that its squared norm does not exceed."""
    taps = kernels()[name]
    lags, torus = Lags(taps), Torus((9,), (1,))
    true = largest(taps, torus)
    run = sweep.Sweep(lags, torus, 1e-6)
    grams = lags.single_grams(torus.waves(torus.frequencies(), lags.lags))
    claimed = 0
    for factor in (0.5, 0.99, 1 - 1e-4, 1 - 1e-6, 1 - 1e-7, 1 - 1e-9, 1 + 1e-9, 1 + 1e-6, 1 + 1e-4, 1 + 1e-3, 1.01, 1.5):
        for value in np.unique(true):
            for room in (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
                run.room = room
                proved = run.singles(grams.copy(), float(value * factor))
                assert np.all(true[proved] <= value * factor * (1 + 1e-15)), (factor, room)
                claimed += int(proved.sum())
    assert claimed > 100


def test_float32_rounding_of_the_factors_is_allowed_for() -> None:
    """The float32 Gram matrices taken as exact, and a t just below their norm: float32 accepts some, the bound tested afterwards none."""
    wrongly_accepted = 0
    for seed in range(3):
        taps = scaled(np.random.default_rng(seed).standard_normal((1, 160, 2, 160)))
        lags, torus = Lags(taps), Torus((5,), (0,))
        grams = lags.single_grams(torus.waves(torus.frequencies(), lags.lags))
        true = -np.linalg.eigvalsh(lags.packing.full(grams.astype(np.complex128)))[:, 0]
        vars(lags)["single_error"] = 0.0
        run = sweep.Sweep(lags, torus, 1e-6)
        for k, value in enumerate(true):
            for below in np.geomspace(1e-8, 1e-5, 25):
                t = float(value * (1 - below))
                for room in (0.0, 2.5e-7, 4e-7, 1e-6):
                    shifted = grams[k].copy()
                    shifted[lags.packing.diagonal] += np.float32(t * (1 - room))
                    wrongly_accepted += sweep.accepts_single(shifted, lags.side)
                    run.room = room
                    assert not run.singles(grams[k : k + 1].copy(), t)[0]
    assert wrongly_accepted > 0, "the test shows nothing"


def test_float32_rounding_of_the_gram_matrices_is_allowed_for() -> None:
    """Taps that cancel at frequency 0 up to 1e-4: the error of the Gram matrix in float32 is as large as the matrix."""
    wrongly_accepted = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        first = rng.standard_normal((8, 8))
        taps = scaled(np.stack([first, -first + 1e-4 * rng.standard_normal((8, 8))], axis=1)[None])
        lags, torus = Lags(taps), Torus((1,), (0,))
        (true,) = largest(taps, torus)
        grams = lags.single_grams(torus.waves(torus.frequencies(), lags.lags))
        run = sweep.Sweep(lags, torus, 1e-6)
        run.room = 1e-3
        for factor in (0.01, 0.1, 0.5, 0.9, 0.99):
            shifted = grams[0].copy()
            shifted[lags.packing.diagonal] += np.float32(true * factor * (1 - run.room))
            wrongly_accepted += sweep.accepts_single(shifted, lags.side)
            assert not run.singles(grams.copy(), float(true * factor))[0]
            run.room = 1e-3
    assert wrongly_accepted > 0, "the test shows nothing"


@pytest.mark.parametrize("name", list(kernels()))
def test_float32_gram_matrices_err_within_their_bound(name: str) -> None:
    taps = kernels()[name]
    lags, torus = Lags(taps), Torus((9,), (1,))
    waves = torus.waves(torus.frequencies(), lags.lags)
    single = lags.packing.full(lags.single_grams(waves).astype(np.complex128))
    double = lags.packing.full(lags.grams(waves)[:, 0])
    off = np.linalg.norm(single - double, 2, axis=(1, 2)).max()
    assert 0 < off <= lags.single_error
    for k, point in enumerate(torus.frequencies()):
        (angle,) = torus.angles(point)
        symbol = np.einsum("ctl,t->cl", taps[0], np.exp(1j * angle * np.arange(taps.shape[2])))
        assert np.linalg.norm(-double[k] - symbol @ symbol.conj().T, 2) <= float(lags.error) + 64 * 2.0**-53 * float(lags.square)


def test_nan_pivots_and_indefinite_matrices_are_no_proof() -> None:
    taps = kernels()["plain"]
    lags, torus = Lags(taps), Torus((9,), (0,))
    run = sweep.Sweep(lags, torus, 1e-6)
    run.room = 1e-3
    grams = lags.single_grams(torus.waves(torus.frequencies(), lags.lags))
    grams[0, 3], grams[1, lags.packing.diagonal[4]] = np.nan, np.inf
    proved = run.singles(grams, 100 * float(lags.square))
    assert proved.tolist() == [False, False] + [True] * (len(grams) - 2)


def test_random_small_convolutions_through_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders that audits leave to float64, so that dense matrices can tell."""
    monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    monkeypatch.setattr(conv, "HALF_IMAGE", 0)
    monkeypatch.setattr(sweep, "SINGLE_SIDE", (2, 2048))
    rng = np.random.default_rng(21)
    by_single = swept = 0
    for k in range(220):
        weight, options, image = draw(rng, k)
        operator = Convolution(weight, image, **options)
        if 0 in operator.out_shape:
            continue
        found = operator.norm("l2")
        assert exact(found.upper) >= Fraction(spectral_from_below(truth(operator, weight, options)))
        if found.method == "twisted torus":
            swept += 1
            by_single += found.evidence["in_float32"] > 0
    assert swept >= 40 and by_single >= 25


def test_large_orders_by_float32_against_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbol of order 56 on 6 x 6 pixels: bound by the torus, against the matrix itself."""
    monkeypatch.setattr(conv, "HALF_IMAGE", 0)
    weight = np.random.default_rng(22).standard_normal((56, 56, 3, 3))
    operator = Convolution(weight, (6, 6), pads=((1, 1), (1, 1)))
    found = operator._by_symbol(1e-6, operator._sums("linf"))
    assert found.evidence["in_float32"] >= 0.7 * found.evidence["frequencies"]
    reached = float(np.linalg.svd(operator.matrix(), compute_uv=False)[0])
    assert float(found.upper) >= reached * (1 - 1e-13)
    assert float(found.lower) <= reached * (1 + 1e-13)


def test_another_torus_is_given_up_unless_it_is_better() -> None:
    taps = kernels()["plain"]
    lags, torus = Lags(taps), Torus((9,), (1,))
    polynomials = lags.polynomials(lags.peaks())
    found = sweep.sweep(lags, torus, polynomials, 1e-6)
    assert found is not None
    square = float(found.square)
    assert sweep.sweep(lags, torus, polynomials, 1e-6, square * (1 - 1e-5)) is None
    again = sweep.sweep(lags, torus, polynomials, 1e-6, square * 1.01)
    assert again is not None and again.square <= found.square
