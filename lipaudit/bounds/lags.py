"""Gram matrices of a convolution's symbol as trigonometric polynomials, and what is known of their rounding errors.

``G(w) = K(w) K(w)*`` has the coefficients ``Gamma_delta = sum_tau P_(tau+delta) P_tau'``. With S = Gamma + Gamma' and
D = Gamma - Gamma' over one of each pair of lags +-delta, ``G(w) = Gamma_0 + sum (S cos(delta.w) + i D sin(delta.w))``. They are
computed once; then the Gram matrices of many frequencies are one real matrix product. With L the length of the inner products of the
lags, n that of this product, kappa the error of the cosines in units of 2^-53 and Q = sum |P_tau| ::

    ||fl(G) - G|| <= sqrt(2) gamma_(L + n + kappa + 2) ||Q||^2 + 2^-900

since the moduli of all Gamma add up to at most Q Q'. In float32, from the coefficients rounded to float32, another such term comes on
top, with u = 2^-24, the length n + 5 (one more rounding of each coefficient, two of each cosine, and two to spare) and 2^-90.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import UNDERFLOW, gamma
from lipaudit.bounds.kernels import chemv, dgemm, dsyrk, zhemv
from lipaudit.bounds.lanczos import largest
from lipaudit.bounds.packed import Packing, packing
from lipaudit.bounds.scalar import ONE, Upper
from lipaudit.bounds.sums import largest_row_sum
from lipaudit.bounds.torus import COSINE, Torus

__all__ = ["Lags", "Peak"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

CHUNK = 1 << 22
"""Bytes of Gram matrices in float32 that are held at a time (twice that in float64): they stay in the cache until they are factorised."""

WHOLE = 48
"""Up to this order eigenvectors come from LAPACK; above, from Lanczos."""


@dataclass(frozen=True, slots=True)
class Peak:
    """A high point of the symbol: frequency (radians per axis), block (group), squared norm there and its unit vector [c]."""

    frequency: Floats
    group: int
    value: float
    vector: Complexes


class Lags:
    """The Gram matrices G(w) = K(w) K(w)* of a block symbol as trigonometric polynomials.

    Parameters
    ----------
    taps
        float64 [groups, c, n_1, .., n_d, L]: tap tau of each group as a c x L matrix with c <= L (transposed if need be, which
        leaves the norm as it is), largest magnitude in [1/2, 1).
    """

    lags: Ints
    """[lags, d]: zero first, then one of each pair."""
    table: Floats
    """[2 lags - 1, groups, 2 size]: packed coefficients, real and imaginary parts interleaved, of the cosines and of the sines."""

    def __init__(self, taps: Floats) -> None:
        self.groups, self.side, *counts, self.long = taps.shape
        self.counts = tuple(int(n) for n in counts)
        ranges = [range(-(n - 1), n) for n in self.counts]
        zero = (0,) * len(self.counts)
        self.lags = np.array([lag for lag in itertools.product(*ranges) if lag >= zero], dtype=np.int64)
        self.packing: Packing = packing(self.side)
        self.table = np.zeros((2 * len(self.lags) - 1, self.groups, 2 * self.packing.size))
        even, odd = self.table[: len(self.lags), :, 0::2], self.table[len(self.lags) :, :, 1::2]
        large = self.groups == 1 and self.side > WHOLE
        blocks = np.ascontiguousarray(np.moveaxis(taps[0], 0, -2)) if large else np.empty(0)
        for k, lag in enumerate(self.lags.tolist()):
            product = _tall_product(taps, blocks, lag) if large else _product(taps, lag)
            if not any(lag):
                even[k] = self.packing.pack(product)
                continue
            one, other = self.packing.pack(product), self.packing.pack(product.swapaxes(-1, -2))
            np.add(one, other, out=even[k])
            np.subtract(one, other, out=odd[k - 1])
        total = np.abs(taps).sum(axis=tuple(range(2, 2 + len(self.counts))))
        self.square = max(self._square(matrix) for matrix in total)
        self.length = math.prod(self.counts) * self.long

    def _square(self, total: Floats) -> Upper:
        """``||Q||^2``, Q = sum |P_tau| (computed with one gamma more)."""
        inner = gamma(math.prod(self.counts) + 2) + gamma(self.long + self.side)
        frobenius = Upper(float(np.sum(total * total))) * (ONE + gamma(2 * total.size + 8))
        mixed = largest_row_sum(total, 0) * largest_row_sum(total, 1)
        return (min(frobenius, mixed) + UNDERFLOW) * (ONE + inner) * (ONE + inner)

    @property
    def error(self) -> Upper:
        """Bound of the spectral norm of the error of every Gram matrix."""
        k = self.length + len(self.table) + COSINE + 2
        return Upper(2).sqrt() * gamma(k) * self.square + UNDERFLOW

    @cached_property
    def single_error(self) -> float:
        """The same for the Gram matrices in float32, against those of exact arithmetic."""
        k = len(self.table) + 5
        unit = k * 2.0**-24 / (1 - k * 2.0**-24)
        return (1.4143 * unit * float(self.square) + float(self.error) + 2.0**-90) * (1 + 1e-9)

    def allowance(self, t: float) -> Upper:
        """What is to be added to a t that a factorisation in float64 proved."""
        k = 2 * self.side + 8
        root = Upper(2).sqrt() * gamma(k)
        phi = root * (ONE + Upper(2) * root)  # x/(1-x) <= x(1+2x) for x <= 1/2
        # The diagonal of tI - fl(G) is at most t + ||fl(G) - G||.
        return (Upper(t) + self.error) * (Upper(2.0**-53) + phi * Upper(self.side)) + self.error

    @cached_property
    def single(self) -> Singles:
        """``table`` in float32."""
        return self.table.astype(np.float32)

    def grams(self, waves: Floats) -> Complexes:
        """*Negated* packed Gram matrices for rows of ``Torus.waves``: [points, groups, size]."""
        out = -waves @ self.table.reshape(len(self.table), -1)
        return out.reshape(len(waves), -1, 2 * self.packing.size).view(np.complex128)

    def single_grams(self, waves: Floats) -> NDArray[np.complex64]:
        """The same in float32, [points * groups, size]."""
        out = (-waves).astype(np.float32) @ self.single.reshape(len(self.table), -1)
        return out.reshape(-1, 2 * self.packing.size).view(np.complex64)

    def chunk(self) -> int:
        """Frequencies whose Gram matrices fit in a chunk."""
        return max(1, CHUNK // (8 * self.groups * self.packing.size))

    def peaks(self, count: int = 4) -> list[Peak]:
        """High points of the symbol over a coarse grid, in plain floats, highest first."""
        least = 8 if self.side <= 128 else 6
        sizes = tuple(1 if n == 1 else max(least, 2 * n) if len(self.counts) < 3 else 6 for n in self.counts)
        torus = Torus(sizes, (0,) * len(sizes))
        points = torus.frequencies()
        rng = np.random.default_rng(0)
        found: list[tuple[float, int, int, Complexes]] = []
        step = max(1, self.chunk() // 2)
        for at in range(0, len(points), step):
            waves = torus.waves(points[at : at + step], self.lags)
            packed = -self.single_grams(waves)
            start = rng.standard_normal((len(packed), self.side)).astype(np.complex64)
            values = _powers(self.packing, packed, start, count)
            for k in np.argsort(-values, kind="stable")[:count]:
                f, g = divmod(int(k), self.groups)
                found.append((float(values[k]), at + f, g, start[k].astype(np.complex128)))
        found.sort(key=lambda item: -item[0])
        turn = 2 * np.pi / np.array(torus.sizes)
        return [Peak(points[f] * turn, g, value, vector) for value, f, g, vector in found[:count]]

    def polynomials(self, peaks: Sequence[Peak]) -> Floats:
        """Coefficients of ``x* G(w) x`` for the vectors of peaks, in the order of ``Torus.waves``: [2 lags - 1, peaks]."""
        row, column = self.packing.entries()
        twice = np.where(row == column, 1.0, 2.0)
        out = np.empty((len(self.table), len(peaks)))
        for k, peak in enumerate(peaks):
            outer = twice * peak.vector[row].conj() * peak.vector[column]
            # Re(z G) = Re z Re G - Im z Im G.
            out[:, k] = self.table[:, peak.group] @ outer.conj().view(np.float64)
        return out

    def scores(self, torus: Torus, points: Ints, polynomials: Floats) -> Floats:
        """Largest value of the polynomials at every point: a lower estimate of the squared norm there."""
        out = np.empty(len(points))
        for at in range(0, len(points), 1 << 15):
            out[at : at + (1 << 15)] = (torus.waves(points[at : at + (1 << 15)], self.lags) @ polynomials).max(axis=1)
        return out

    def ritz(self, negated: Complexes | NDArray[np.complex64], slack: float = 1e-6) -> tuple[float, Complexes]:
        """Largest eigenvalue of the Gram matrix whose packed negative is given (in either precision), and its unit vector."""
        if self.side <= WHOLE:
            values, vectors = np.linalg.eigh(self.packing.full(negated))
            return float(-values[0]), vectors[:, 0].astype(np.complex128)
        gram = self.packing.lower(negated)
        if slack < 1e-9 and gram.dtype == np.complex128:
            return largest(lambda x: zhemv(-1.0, gram, x, lower=1), self.side, dtype=np.complex128, steps=60, tolerance=slack / 4)
        single = gram.astype(np.complex64, copy=False)
        _, x = largest(
            lambda x: chemv(-1.0, single, x, lower=1),
            self.side,
            dtype=np.complex64,
            steps=60,
            tolerance=max(slack / 4, 2e-7),
            residual=math.sqrt(slack),
        )
        vector = x.astype(np.complex128)
        vector = vector / np.linalg.norm(vector)
        return float(np.real(np.vdot(vector, zhemv(-1.0, gram, vector, lower=1)))), vector


def _product(taps: Floats, lag: Sequence[int]) -> Floats:
    """``Gamma_lag`` of all groups."""
    groups, side, *counts, _ = taps.shape
    ahead = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(lag, counts, strict=True))
    behind = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(lag, counts, strict=True))
    a = taps[(slice(None), slice(None), *ahead)].reshape(groups, side, -1)
    b = taps[(slice(None), slice(None), *behind)].reshape(groups, side, -1)
    return a @ b.transpose(0, 2, 1)


def _tall_product(taps: Floats, blocks: Floats, lag: Sequence[int]) -> Floats:
    """The same for one group with large matrices, without copies of the taps; ``blocks`` has the taps first."""
    side = taps.shape[1]
    if not any(lag):
        lower = dsyrk(1.0, taps[0].reshape(side, -1).T, trans=1, lower=1)
        return (lower + np.tril(lower, -1).T)[None]
    total = np.zeros((side, side), order="F")
    for place in itertools.product(*(range(max(0, -d), n - max(0, d)) for n, d in zip(blocks.shape[:-2], lag, strict=True))):
        ahead = blocks[tuple(p + d for p, d in zip(place, lag, strict=True))]
        # The transpose of a C-ordered matrix is Fortran-ordered: no copies.
        total = dgemm(1.0, ahead.T, blocks[place].T, beta=1.0, c=total, trans_a=1, overwrite_c=1)
    return total[None]


def _powers(packing: Packing, grams: NDArray[np.complex64], x: NDArray[np.complex64], count: int) -> Floats:
    """Power iteration on packed matrices [k, size] from vectors [k, c], in place; the sizes reached. Those that lag behind are given up."""
    kept = np.arange(len(grams))
    sizes = np.zeros(len(grams))
    large = packing.order > WHOLE
    stack = packing.lower(grams) if large else packing.full(grams)
    for steps in (3, 3, 4):
        for _ in range(steps):
            if large:
                image = np.stack([chemv(1.0, stack[k], x[k], lower=1) for k in kept])
            else:
                image = (stack[kept] @ x[kept][..., None])[..., 0]
            size = np.maximum(np.linalg.norm(image, axis=-1), 1e-30)
            sizes[kept], x[kept] = size, image / size[:, None]
        kept = kept[np.argsort(-sizes[kept], kind="stable")[: max(2 * count, len(kept) // 3)]]
    return sizes
