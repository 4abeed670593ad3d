"""Rounding allowances of compositions: leaves that err as much as they may, and norms of what came out that have no reserve."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import formed, half
from lipaudit.bounds.chain import Product
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.entries import entries_norm
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.operator import VerifiedNorm
from lipaudit.bounds.scalar import Lower, Norm, Upper
from lipaudit.bounds.summed import Sum
from tests.bounds.truth import exact, spectral_from_below
from tests.bounds.worst import UNIT, gamma

Floats = NDArray[np.float64]


def bare(matrix: Floats, norm: Norm, slack: float = 0.0) -> VerifiedNorm:
    """The l2 norm without any reserve."""
    return VerifiedNorm(Upper(spectral_from_below(matrix)), Lower(0), "bare")


class Hostile(Dense):
    """Products that are too small by gamma_k, forwards and backwards (all entries and vectors are non-negative)."""

    def apply(self, x: Floats) -> Floats:
        return super().apply(x) * (1 - 0.99 * gamma(self.terms))

    def adjoint(self, y: Floats) -> Floats:
        return super().adjoint(y) * (1 - 0.99 * gamma(self.terms))


def test_formed_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formed, "dense_norm", bare)
    halves = np.full((64, 64), 0.5)  # norm 32
    for operator, true in (
        (Product([Hostile(halves, (1, 64)), Hostile(halves, (1, 64))]), 1024),
        (Sum([Hostile(halves, (1, 64)), Hostile(halves, (1, 64))]), 64),
    ):
        found = formed.formed_norm(operator, "l2", 0.0)
        assert found is not None and true <= exact(found.upper) <= true * (1 + Fraction(1, 10**10))


def test_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    exactly = Diagonal.entries

    def hostile(self: Diagonal, *, magnitude: bool) -> Any:
        return exactly(self, magnitude=magnitude) * (1 if magnitude else 1 - UNIT)

    monkeypatch.setattr(Diagonal, "entries", hostile)
    operator = Product([Diagonal(np.full(4, 1.0), (4,)) for _ in range(40)])
    for norm in ("l1", "l2", "linf"):
        found = entries_norm(operator, norm)
        assert found is not None and 1 <= exact(found.upper) <= 1 + Fraction(1, 10**12)


def test_half_tori(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines that are all too small; at frequency 0, where a kernel of one sign peaks, every entry then is."""
    weight = np.random.default_rng(0).integers(1, 9, (2, 2, 3, 3)).astype(float)
    operator = Convolution(weight, (4, 6), pads=((1, 1), (1, 1)))
    true = spectral_from_below(half._placed(weight.sum(axis=3).transpose(0, 2, 1), operator.window[0]))
    exactly = half.cosines
    monkeypatch.setattr(half, "dense_norm", bare)
    monkeypatch.setattr(half, "cosines", lambda turns, size: exactly(turns, size) - 15 * UNIT)
    found = half.half_torus(operator._matrix, operator.window, 0.0, (0, 0))
    assert found is not None and Fraction(true) <= exact(found[0]) <= Fraction(true) * (1 + Fraction(1, 10**12))
