"""Largest eigenvalue of a positive semidefinite operator, from below, in plain floating point.

An estimate: it only says where to *start* proving an upper bound (``dense.py``, ``sweep.py``), and its vector gives a
rigorous lower bound after one more product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

__all__ = ["largest"]

Vector = NDArray[Any]


def largest(
    product: Callable[[Vector], Vector],
    size: int,
    *,
    dtype: type[np.generic] = np.float64,
    steps: int = 80,
    tolerance: float = 2.5e-7,
    residual: float = 1e-3,
    start: Vector | None = None,
    seed: int = 0,
) -> tuple[float, Vector]:
    """Largest Ritz value and unit Ritz vector of ``product`` (Hermitian, positive semidefinite, ``size`` x ``size``).

    Lanczos with full reorthogonalisation, twice (Parlett 1998, chapter 13), from a seeded random vector: a structured one may be
    orthogonal to the answer. Stops after ``steps`` products, or when the Ritz value has changed by less than
    ``tolerance`` (relative) and the residual is below ``residual`` times it.
    """
    steps = min(steps, size)
    rng = np.random.default_rng(seed)
    real = np.issubdtype(dtype, np.floating)
    draw = rng.standard_normal(size) if real else rng.standard_normal(size) + 1j * rng.standard_normal(size)
    vector: Vector = (draw if start is None else start).astype(dtype)
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0.0:
        vector, norm = draw.astype(dtype), float(np.linalg.norm(draw))
    basis: Vector = np.empty((steps, size), dtype=dtype)
    basis[0] = vector / norm
    diagonal: list[float] = []
    off: list[float] = []
    value, weights = 0.0, np.ones(1)
    # Where the image is rounding noise the space is invariant: its next vector would be noise that is not orthogonal to the others.
    noise = 8 * float(np.finfo(basis.dtype).eps)
    checks = {*range(8, 33, 4), *range(38, steps, 6)}  # an eigenvalue of the tridiagonal matrix costs as much as several steps
    for k in range(steps):
        image = product(basis[k])
        diagonal.append(float(np.real(np.vdot(basis[k], image))))
        if not np.isfinite(diagonal[-1]):
            return value, basis[0]
        for _ in range(2):
            image = image - (basis[: k + 1] @ image.conj()).conj() @ basis[: k + 1]
        beta = float(np.linalg.norm(image))
        # (An infinite length is an overflow: what is known before it has to do.)
        last = k == steps - 1 or not 1e-30 + noise * max(map(abs, diagonal)) < beta < np.inf
        if last or k in checks:
            before = value
            values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(off), select="i", select_range=(k, k))
            value, weights = float(values[0]), vectors[:, 0]
            error = beta * abs(float(weights[-1]))
            if last or (value - before <= tolerance * value and error <= residual * value):
                break
        off.append(beta)
        basis[k + 1] = image / beta
    found = basis[: len(weights)].T @ weights.astype(dtype)
    return value, found / max(float(np.linalg.norm(found)), 1e-30)
