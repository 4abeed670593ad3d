"""A bound of a symbol over *all* frequencies, whatever the size of the image, by cells that are halved where it is large.

Let M = sup ||K(w)||, attained at w0, and g any frequency. For unit vectors with ``Re(e^(i a) y* K(w0) x) = M`` the function
``Re(e^(i a) y* K(w0 + s (g - w0)) x)``, its taps centred, is real on the real line, of exponential type
``sigma = sum (n_axis - 1)/2 |g - w0|_axis``, and at most M, which it attains at s = 0. Hence it is at least ``M cos(sigma s)`` for
``|sigma s| <= pi`` (R. Duffin, A. Schaeffer, Bull. AMS 44, 1938; for grids: H. Ehlich, K. Zeller, Math. Z. 86, 1964), and at s = 1 ::

    ||K(g)|| >= M cos(theta),    theta = sum (n_axis - 1)/2 h_axis

for the centre g of the cell of half-widths h that holds w0. So ``||K(g)||^2 <= t cos(theta)^2`` at the centres of cells that cover all
frequencies proves M^2 <= t. Cells that do not pass are divided; only the smallest ones raise t. As ||K(-w)|| = ||K(w)|| for real
kernels, half of the cells will do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.lags import Lags
from lipaudit.bounds.scalar import Lower, Upper
from lipaudit.bounds.sweep import Sweep, Swept
from lipaudit.bounds.torus import Torus

__all__ = ["cells", "everywhere"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVELS = 3
"""Sizes of cells: each half as wide as the one before. The smallest cost 1.4e-4 of the norm in two dimensions."""

FLAT = 0.25
"""Share of the cells beyond which dividing them does not pay."""


def cells(counts: Sequence[int]) -> tuple[int, ...]:
    """Cells per axis at the first level: 48 (n - 1)."""
    return tuple(48 * (n - 1) if n > 1 else 1 for n in counts)


def _shrinkage(counts: Sequence[int], level: int) -> Fraction:
    """A lower bound of ``cos(theta)^2`` at a level: 1 - theta^2, with 22/7 for pi."""
    theta = sum((Fraction(n - 1, 2) * Fraction(22, 7) / size for n, size in zip(counts, cells(counts), strict=True)), Fraction(0))
    return 1 - (theta / 2**level) ** 2


def _torus(counts: Sequence[int], level: int) -> Torus:
    """The uniform grid on which the centres of a level lie."""
    return Torus(tuple(1 if size == 1 else size * _fineness(level) for size in cells(counts)), (0,) * len(counts))


def _fineness(level: int) -> int:
    """Points of a level's grid for each cell of the first: the centres of a level are half the width of its cells off those before."""
    return 1 if level == 0 else 2 ** (level + 1)


def _divided(points: Ints, counts: Sequence[int], level: int) -> Ints:
    """Centres of the halves (along every axis of more than one tap) of the cells around the ``points`` of a level, on the next grid."""
    steps = [(0,) if n == 1 else (-1, 1) for n in counts]
    factor = np.array([1 if n == 1 else _fineness(level + 1) // _fineness(level) for n in counts])
    children = (points * factor)[:, None, :] + np.array(list(itertools.product(*steps)))[None]
    return children.reshape(-1, points.shape[1])


def everywhere(lags: Lags, polynomials: Floats, slack: float) -> Swept | None:
    """Prove a bound of ``||K(w)||^2`` for all frequencies and groups; None for symbols too flat for this, or if a proof fails."""
    torus = _torus(lags.counts, 0)
    points = torus.frequencies()
    scores = lags.scores(torus, points, polynomials)
    top = float(np.max(scores))
    if np.count_nonzero(scores > top * float(_shrinkage(lags.counts, 0))) > FLAT * len(points):
        return None
    points = points[np.argsort(-scores, kind="stable")]
    run = Sweep(lags, torus, slack)
    run.start(points, top)
    if not (math.isfinite(run.t) and run.t > 0):
        return None
    smallest = float(_shrinkage(lags.counts, LEVELS - 1))
    target, square, visited = run.t / smallest, Upper(0), 0
    for level in range(LEVELS):
        shrinkage = _shrinkage(lags.counts, level)
        run.torus, run.t = _torus(lags.counts, level), target * float(shrinkage)
        visited += len(points)
        left = np.ones((len(points), lags.groups), dtype=np.bool_)
        if level < LEVELS - 1:
            left = run.refuted(points, left)
            points, before = _divided(points[left.any(axis=1)], lags.counts, level), len(points)
            if len(points) > max(before, 4096):
                return None
        else:
            if run.by_single:
                left = run.open(points, run.open(points, left, raising=True), raising=False)
            if not run.prove(points, left):
                return None
        square = max(square, (Upper(run.t) + lags.allowance(run.t)) / Lower(shrinkage))
    evidence = {
        "t": run.t.hex(),
        "cells": list(cells(lags.counts)),
        "levels": LEVELS,
        "raises": run.raises,
        "frequencies": visited,
        "factor": (Upper(1) / Lower(_shrinkage(lags.counts, LEVELS - 1))).sqrt().decimal(8),
    }
    return Swept(square, evidence, run.peak)
