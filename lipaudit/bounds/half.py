"""Convolutions of two dimensions with zero padding as it is along one axis and a twisted torus along the other.

In the block form of ``torus.py`` for one axis alone, the operator is a corner of one that is phi-circulant along that axis and left as it
is along the other one. A diagonal unitary matrix and a Fourier transform along the axis make that block diagonal, a block for each
frequency w of the torus::

    ||conv|| <= max_w ||T(w)||,    T(w)[i, x] = sum over taps t with s i + d t - p = x of K_t(w),    K_t(w) = sum_tau P_(t, tau) e^(i tau w)

with i and x the places of outputs and pixels along the exact axis. Small images are where that pays: a torus along both axes exceeds the
norm by O(1/H^2) for each of them. ``||A + iB|| = ||[A, -B; B, A]||`` is the verified norm of a real matrix. The entries of A and of B are
off by at most ``gamma_(n + kappa + 2) q``, q the sum of |P_(t, tau)| over the n values of tau and kappa the error of the cosines; those of
A + iB by sqrt(2) times that, and so the norm by at most ``sqrt(2) gamma_(n + kappa + 2) ||Q||`` with the matrix Q of the q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.blocks import block_taps
from lipaudit.bounds.dense import dense_norm, gamma
from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Upper
from lipaudit.bounds.sums import largest_row_sum
from lipaudit.bounds.torus import COSINE, Torus, cosines, sines
from lipaudit.bounds.window import Axis, AxisForm

__all__ = ["half_torus"]

Floats = NDArray[np.float64]

WORK = 4e10
"""Operations up to which it is tried (a second or two)."""

SIDE = 2048
"""Largest smaller side of the real matrices."""

_TINY = Upper.from_dyadic(1, -900)


def half_torus(
    matrix: Floats, window: Sequence[Axis], slack: float, twists: Sequence[int] | None = None
) -> tuple[Upper, dict[str, Any]] | None:
    """A bound of the l2 norm and its evidence; None where it costs too much or does not apply.

    ``matrix`` is the finite kernel [1, o, c, taps] of one group; every axis of the two of ``window`` meets at least one pixel. ``twists``
    (per axis) says which twist alone to try, for example that of the best torus along both axes.
    """
    if len(window) != 2 or matrix.shape[0] != 1:
        return None
    # Exact along the shorter axis: the torus of the longer one is the closer one.
    exact = 0 if window[0].image <= window[1].image else 1
    axis, around = window[exact], window[1 - exact].form()
    if around.count <= 1 or not axis.reachable:
        return None
    whole = AxisForm(tuple(range(axis.kernel)), tuple((tap, 0) for tap in range(axis.kernel)), axis.kernel, (0,), 1, 1, 1)
    rows, columns = axis.outputs * matrix.shape[1], axis.image * len(around.phases) * matrix.shape[2]
    tori = [Torus((around.least,), (twist,)) for twist in ((0, 1) if twists is None else (twists[1 - exact],))]
    small, large = 2 * min(rows, columns), 2 * max(rows, columns)
    work = len(tori) * (around.least / 2 + 1) * small * small * (large + small / 3.0)
    if small > SIDE or work > WORK:
        return None
    forms = [whole, around] if exact == 0 else [around, whole]
    blocks = block_taps(matrix, window, forms)[0]
    blocks = np.swapaxes(blocks, 1, 2) if exact == 1 else blocks  # [o, taps, n, L]
    peak = float(np.max(np.abs(blocks)))
    if peak == 0.0:
        return ZERO, {}
    exponent = math.frexp(peak)[1]
    blocks = np.ldexp(blocks, -exponent)
    n = around.count
    sizes = _placed(np.abs(blocks).sum(axis=2), axis)
    spread = (largest_row_sum(sizes, 0) * largest_row_sum(sizes, 1)).sqrt() * (ONE + gamma(n + 2) + gamma(n + 2))
    error = Upper(2).sqrt() * gamma(n + COSINE + 2) * spread + _TINY
    best, evidence = INFINITE, dict[str, Any]()
    for torus in tori:
        top = _largest(blocks, axis, torus, slack, best)
        if top < best:
            best, evidence = top, {"torus": list(torus.sizes), "twist": list(torus.twists), "exact axis": exact, "exponent": exponent}
    return (best + error) * Upper.from_dyadic(1, exponent), evidence


def _largest(blocks: Floats, axis: Axis, torus: Torus, slack: float, below: Upper) -> Upper:
    """Largest verified norm over the frequencies of a torus; given up where it is not ``below``."""
    top = ZERO
    (size,), (twist,) = torus.sizes, torus.twists
    places = np.arange(blocks.shape[2], dtype=np.int64)
    for point in torus.frequencies()[:, 0]:
        turns = (2 * int(point) + twist) * places % (2 * size)
        real = _placed(np.einsum("otnl,n->otl", blocks, cosines(turns, size)), axis)
        imaginary = _placed(np.einsum("otnl,n->otl", blocks, sines(turns, size)), axis)
        top = max(top, dense_norm(np.block([[real, -imaginary], [imaginary, real]]), "l2", slack).upper)
        if not top < below:
            break
    return top


def _placed(taps: Floats, axis: Axis) -> Floats:
    """The matrix [outputs * o, pixels * L] along one axis of a kernel [o, taps, L]."""
    o, _, length = taps.shape
    full = np.zeros((axis.outputs, o, axis.image, length))
    for tap in range(axis.kernel):
        met = axis.slices(tap)
        if met is not None:
            outputs, pixels = (np.arange(count)[part] for count, part in zip((axis.outputs, axis.image), met, strict=True))
            full[outputs, :, pixels, :] = taps[:, tap]
    return full.reshape(axis.outputs * o, -1)
