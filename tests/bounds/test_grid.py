"""Bounds for all frequencies: cells that cover them, and suprema between the grid points."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import grid, sweep
from lipaudit.bounds.grid import everywhere
from lipaudit.bounds.lags import Lags
from tests.bounds.test_sweep import scaled
from tests.bounds.truth import exact

Floats = NDArray[np.float64]


def at(taps: Floats, frequencies: Floats) -> float:
    """Largest squared norm of the symbol at some frequencies [k, d], rounded down by 1e-13."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in taps.shape[2:-1]), indexing="ij"), axis=-1).reshape(-1, frequencies.shape[1])
    flat = taps[0].reshape(taps.shape[1], -1, taps.shape[-1])
    symbols = np.einsum("ft,ctl->fcl", np.exp(1j * frequencies @ places.T), flat)
    return float(np.max(np.linalg.svd(symbols, compute_uv=False)[:, 0])) ** 2 * (1 - 1e-13)


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.371])
@pytest.mark.parametrize("dim", [1, 2])
def test_suprema_between_the_grid_points(dim: int, shift: float, single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modulated smooth kernels peak where they are told to: at a point of the grid, or at any place between two."""
    monkeypatch.setattr(sweep, "SINGLE_SIDE", (2, 2048) if single else (3000, 3001))
    rng = np.random.default_rng(dim)
    c = 4
    frequency = 2 * np.pi * (11 + shift) / 96
    wave = np.array([1.0, 2.0, 1.0]) * np.cos(frequency * np.arange(-1, 2))
    smooth = wave if dim == 1 else wave[:, None] * wave
    mix = rng.standard_normal((c, c))
    taps = np.einsum("...,cl->c...l", smooth, mix) + 1e-3 * rng.standard_normal((c, *(3,) * dim, c))
    taps = scaled(taps[None])
    lags = Lags(taps)
    found = everywhere(lags, lags.polynomials(lags.peaks()), 1e-6)
    assert found is not None
    axis = np.linspace(-np.pi, np.pi, 20001 if dim == 1 else 401)
    points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    sampled = at(taps, points)
    local = found.peak.frequency + np.stack(np.meshgrid(*[np.linspace(-0.03, 0.03, 41)] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    sampled = max(sampled, at(taps, local))
    assert exact(found.square) >= Fraction(sampled)
    assert float(found.square) <= sampled * (1 + 7e-4)


def test_cosines_are_covered() -> None:
    for counts in ((2,), (3,), (7, 3), (3, 3, 3), (1, 5)):
        for level in range(grid.LEVELS):
            theta = sum((n - 1) / 2 * math.pi / size / 2**level for n, size in zip(counts, grid.cells(counts), strict=True) if n > 1)
            assert 0 < theta < math.pi / 2
            assert float(grid._shrinkage(counts, level)) <= math.cos(theta) ** 2


@pytest.mark.parametrize("counts", [(3,), (2, 3), (1, 3)])
def test_divided_cells_tile_their_parents(counts: tuple[int, ...]) -> None:
    sizes = grid.cells(counts)
    points = grid._torus(counts, 0).frequencies()
    for level in range(grid.LEVELS - 1):
        parents = grid._torus(counts, level).angles(points)
        points = grid._divided(points, counts, level)
        children = grid._torus(counts, level + 1).angles(points).reshape(len(parents), -1, len(counts))
        half = np.array([0.0 if n == 1 else np.pi / size / 2 ** (level + 1) for n, size in zip(counts, sizes, strict=True)])
        offsets = children - parents[:, None]
        np.testing.assert_allclose(np.abs(offsets), np.broadcast_to(half, offsets.shape), atol=1e-12)
        assert len(np.unique(np.round(np.sign(offsets[0])), axis=0)) == 2 ** sum(n > 1 for n in counts)


def test_flat_symbols_are_left_to_the_plain_grid() -> None:
    rng = np.random.default_rng(3)
    unit = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    taps = np.zeros((1, 6, 3, 6))
    taps[0, :, 1] = unit
    taps[0, :, 0] = 1e-5 * rng.standard_normal((6, 6))
    lags = Lags(scaled(taps))
    assert everywhere(lags, lags.polynomials(lags.peaks()), 1e-6) is None
