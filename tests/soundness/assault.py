"""Pairs of points in a box that may move the outputs most, for functions of many variables at a fixed number of evaluations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.soundness.adversary import Pair, pair
from tests.soundness.backend import Function

__all__ = ["assault"]

Floats = NDArray[np.float64]


def assault(f: Function, norm: str, rng: np.random.Generator, *, points: int, columns: int) -> Iterator[Pair]:
    """Around ``points`` base points: the worst direction of ``columns`` sampled columns of the Jacobian, far and near; corners; random."""
    for k in range(points):
        x = _base(f, rng, k)
        y = f.evaluate(x)
        if not np.all(np.isfinite(y)):
            continue
        for z in (*_along(f, x, y, norm, rng, columns), *_far(f, x, rng)):
            z = np.clip(z, f.lo, f.hi)
            fz = f.evaluate(z)
            if fz.shape == y.shape:
                yield pair(y, fz, x, z, norm, f.error)


def _base(f: Function, rng: np.random.Generator, k: int) -> Floats:
    """The given inputs, then corners and inner points; on all reals, ever larger points."""
    if k == 0:
        return np.clip(np.nan_to_num(f.centre), f.lo, f.hi)
    width = _width(f)
    if k % 2 and np.all(np.isfinite(f.lo)):
        return np.where(rng.random(f.centre.size) < 0.5, f.lo, f.hi)
    return np.clip(np.nan_to_num(f.centre) + (rng.random(f.centre.size) - 0.5) * width * 2.0 ** rng.integers(-6, 1), f.lo, f.hi)


def _width(f: Function) -> Floats:
    return np.where(np.isfinite(f.hi - f.lo), f.hi - f.lo, 4.0)


def _along(f: Function, x: Floats, y: Floats, norm: str, rng: np.random.Generator, columns: int) -> Iterator[Floats]:
    """Steps along the direction that the sampled part of the Jacobian stretches most in ``norm``."""
    if not x.size:
        return
    width = _width(f)
    picked = rng.permutation(x.size)[:columns]
    jacobian = np.zeros((y.size, picked.size))
    for j, i in enumerate(picked):
        step = 1e-7 * max(float(width[i]), 1e-3) * (1 if x[i] < (f.lo[i] + f.hi[i]) / 2 or not np.isfinite(f.lo[i]) else -1)
        z = x.copy()
        z[i] += step
        fz = f.evaluate(z)
        if fz.shape == y.shape and z[i] != x[i]:
            jacobian[:, j] = np.nan_to_num((fz - y) / (z[i] - x[i]), posinf=0.0, neginf=0.0)
    if not np.any(jacobian):
        return
    direction = np.zeros(x.size)
    direction[picked] = _worst(jacobian, norm)
    largest = float(np.max(np.abs(direction)))
    reach = float(np.max(width))
    for length in (1e-5, 1e-2, 1.0):
        yield x + direction / largest * length * reach
    yield x - direction / largest * reach


def _worst(jacobian: Floats, norm: str) -> Floats:
    if norm == "l2":
        return np.linalg.svd(jacobian, full_matrices=False)[2][0]
    if norm == "l1":
        unit = np.zeros(jacobian.shape[1])
        unit[int(np.argmax(np.abs(jacobian).sum(axis=0)))] = 1.0
        return unit
    return np.sign(jacobian[int(np.argmax(np.abs(jacobian).sum(axis=1)))]) + 1e-12


def _far(f: Function, x: Floats, rng: np.random.Generator) -> Iterator[Floats]:
    """The opposite corner, a random point, one coordinate alone, and a tiny random step."""
    width = _width(f)
    yield np.where(x > (f.lo + f.hi) / 2, f.lo, f.hi) if np.all(np.isfinite(f.lo)) else -x
    yield x + (rng.random(x.size) - 0.5) * width
    if x.size:
        z = x.copy()
        i = int(rng.integers(x.size))
        z[i] += width[i] * (1 if rng.random() < 0.5 else -1)
        yield z
    yield x + (rng.random(x.size) - 0.5) * width * 1e-6
