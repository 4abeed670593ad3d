"""Verified spectral norm of zero-padded convolutions by a twisted torus.

Block form: ``y_i = sum_tau P_tau X_(i+tau)`` on a box of pixels. If per axis N >= max(inputs - tau_min, outputs + tau_max), the
operator is a corner of a phi-circulant matrix for every phase phi (no pair of pixels wraps onto a wrong tap), and a diagonal
unitary matrix turns that into a circulant one. Hence ::

    ||conv|| <= max { ||K(w)|| : w_axis = (2 pi j + phi)/N, j = 0..N-1 },     K(w) = sum_tau P_tau e^(i tau.w)

phi = 0 and pi keep the conjugate symmetry: half of the frequencies suffice. Each ``||K(w)||^2 <= t`` is *proved* by a complex
Cholesky factorisation of tI - G(w), where the Gram matrix G = K K* is a trigonometric polynomial in w whose coefficients
(lags) are computed once. Allowance, with c the size of G, L the length of the inner products of the lags, n_d their number, Q = sum |P_tau|
and kappa ulps for the cosines ::

    max ||K||^2 <= t (1 + u + c phi_c) + sqrt(2) gamma_(L + n_d + kappa + 1) ||Q||^2 + 2^-900

Context: H. Sedghi, V. Gupta, P. Long, ICLR 2019 (the torus N = image, which is *below* the zero-padded norm at times);
A. Araujo et al., AAAI 2021; B. Delattre et al., ICML 2023 (the padded torus).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import UNDERFLOW, gamma
from lipaudit.bounds.kernels import zpotrf
from lipaudit.bounds.lanczos import largest
from lipaudit.bounds.scalar import ONE, Lower, Upper
from lipaudit.bounds.sums import largest_row_sum

__all__ = ["Lags", "Peak", "Torus", "candidates", "sweep"]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

CHUNK = 1 << 26
"""Bytes of Gram matrices that are held at a time."""

_COSINE = 16
"""Error of a tabulated cosine or sine, in units of 2^-53 (argument reduced by integers; three roundings and numpy's 4 ulp)."""

_BATCHED = 40
_STACK = 256
"""Up to size _BATCHED, _STACK factorisations in one call are faster than one call each."""


@dataclass(frozen=True, slots=True)
class Torus:
    """Per axis its size N and twist (0: phi = 0, 1: phi = pi)."""

    sizes: tuple[int, ...]
    twists: tuple[int, ...]

    def frequencies(self) -> Ints:
        """One frequency j [dim] of every conjugate pair, shape [count, dim]; conj. partners are -j (phi = 0) and -1-j (phi = pi)."""
        index = np.arange(math.prod(self.sizes), dtype=np.int64)
        points = np.stack(np.unravel_index(index, self.sizes), axis=1).astype(np.int64)
        sizes, twists = np.array(self.sizes), np.array(self.twists)
        partner = (-points - twists) % sizes
        flat = np.ravel_multi_index(tuple(partner.T), self.sizes)
        return points[index <= flat]

    def angles(self, point: Ints) -> Floats:
        """The frequency j in radians per axis."""
        return np.pi * (2 * point + np.array(self.twists)) / np.array(self.sizes)

    def waves(self, points: Ints, lags: Ints) -> tuple[Floats, Floats]:
        """cos and sin of lag . frequency, shape [points, lags].

        All angles are integer multiples of pi/M, M = lcm of the sizes: reduced exactly and looked up.
        """
        common = math.lcm(*self.sizes)
        steps = np.array([common // size for size in self.sizes], dtype=np.int64)
        numerators = (2 * points + np.array(self.twists)) * steps
        turns = (numerators @ lags.T) % (2 * common)
        return _cosines(turns, common), _cosines(turns - common // 2, common) if common % 2 == 0 else _sines(turns, common)


def _cosines(turns: Ints, half: int) -> Floats:
    """cos(pi k / half) with the argument reduced to [0, pi/4] by integers."""
    k = np.abs(turns) % (2 * half)
    k = np.minimum(k, 2 * half - k)  # cos(2 pi - x) = cos x: now 0 <= k <= half
    negative = 2 * k > half
    k = np.where(negative, half - k, k)  # 0 <= k <= half / 2
    by_sine = 4 * k > half
    angle = np.where(by_sine, (half - 2 * k) * (np.pi / 2 / half), k * (np.pi / half))
    value = np.where(by_sine, np.sin(angle), np.cos(angle))
    return np.where(negative, -value, value)


def _sines(turns: Ints, half: int) -> Floats:
    """sin(pi k / half) = cos(pi (2k - half) / (2 half))."""
    return _cosines(2 * turns - half, 2 * half)


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
        leaves the norm as it is), largest magnitude in [2^-40, 2^41].
    """

    def __init__(self, taps: Floats) -> None:
        self.groups, self.side, *counts, self.long = taps.shape
        self.counts = tuple(int(n) for n in counts)
        ranges = [range(-(n - 1), n) for n in self.counts]
        zero = (0,) * len(self.counts)
        self.lags = np.array([lag for lag in itertools.product(*ranges) if lag >= zero], dtype=np.int64)
        shape = (self.groups, self.side, self.side)
        even = np.empty((len(self.lags), *shape))
        odd = np.empty((len(self.lags), *shape))
        for k, lag in enumerate(self.lags.tolist()):
            ahead = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(lag, self.counts, strict=True))
            behind = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(lag, self.counts, strict=True))
            a = taps[(slice(None), slice(None), *ahead)].reshape(self.groups, self.side, -1)
            b = taps[(slice(None), slice(None), *behind)].reshape(self.groups, self.side, -1)
            product = a @ b.transpose(0, 2, 1)
            if not any(lag):
                even[k], odd[k] = product, 0.0
            else:
                swapped = product.transpose(0, 2, 1)
                np.add(product, swapped, out=even[k])
                np.subtract(product, swapped, out=odd[k])
        self.even, self.odd = even.reshape(len(self.lags), -1), odd.reshape(len(self.lags), -1)
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
        k = self.length + len(self.lags) + _COSINE + 2
        return Upper(2).sqrt() * gamma(k) * self.square + UNDERFLOW

    def allowance(self, t: float) -> Upper:
        """What is to be added to a proved t."""
        k = 2 * self.side + 8
        root = Upper(2).sqrt() * gamma(k)
        phi = root * (ONE + Upper(2) * root)  # x/(1-x) <= x(1+2x) for x <= 1/2
        return Upper(t) * (Upper(2.0**-53) + phi * Upper(self.side)) + self.error

    def grams(self, cos: Floats, sin: Floats) -> Complexes:
        """*Negated* Gram matrices, C order: [points, groups, c, c]."""
        shape = (cos.shape[0], self.groups, self.side, self.side)
        out = np.empty(shape, dtype=np.complex128)
        np.negative((cos @ self.even).reshape(shape), out=out.real)
        np.negative((sin @ self.odd).reshape(shape), out=out.imag)
        return out

    def chunk(self) -> int:
        """Frequencies whose Gram matrices fit in a chunk (the real and imaginary products are held too)."""
        return max(1, CHUNK // (32 * self.groups * self.side * self.side))

    def peaks(self, count: int = 4) -> list[Peak]:
        """High points of the symbol over a coarse grid, in plain floats, highest first."""
        torus = Torus(tuple(1 if n == 1 else max(8, 2 * n) if len(self.counts) < 3 else 6 for n in self.counts), (0,) * len(self.counts))
        points = torus.frequencies()
        rng = np.random.default_rng(0)
        found: list[tuple[float, int, int, Complexes]] = []
        for at in range(0, len(points), self.chunk()):
            part = points[at : at + self.chunk()]
            grams = -self.grams(*torus.waves(part, self.lags)).astype(np.complex64)
            x = rng.standard_normal((*grams.shape[:3], 1)).astype(np.complex64)
            size = np.ones(grams.shape[:2])
            for _ in range(10):
                x = grams @ x
                size = np.maximum(np.linalg.norm(x[..., 0], axis=-1), 1e-30)
                x = x / size[..., None, None]
            best = np.argsort(size, axis=None)[::-1][:count]
            for flat in best:
                f, g = np.unravel_index(int(flat), size.shape)
                found.append((float(size[f, g]), at + int(f), int(g), x[f, g, :, 0].astype(np.complex128)))
        found.sort(key=lambda item: -item[0])
        turn = 2 * np.pi / np.array(torus.sizes)
        return [Peak(points[f] * turn, g, value, vector) for value, f, g, vector in found[:count]]

    def polynomial(self, peak: Peak) -> tuple[Floats, Floats]:
        """Coefficients of ``x* G(w) x`` for the vector of ``peak``: of the cosines and of the sines."""
        outer = np.outer(peak.vector.conj(), peak.vector).reshape(-1)
        size = self.side * self.side
        part = slice(peak.group * size, (peak.group + 1) * size)
        return self.even[:, part] @ outer.real, -(self.odd[:, part] @ outer.imag)

    def polynomials(self, peaks: Sequence[Peak]) -> tuple[Floats, Floats]:
        """Of several peaks, as columns."""
        found = [self.polynomial(peak) for peak in peaks]
        return np.stack([c for c, _ in found], axis=1), np.stack([s for _, s in found], axis=1)

    def scores(self, torus: Torus, points: Ints, polynomials: tuple[Floats, Floats]) -> Floats:
        """Largest value of the polynomials at every point: a lower estimate of the squared norm there."""
        cosine, sine = polynomials
        out = np.empty(len(points))
        for at in range(0, len(points), 1 << 16):
            cos, sin = torus.waves(points[at : at + (1 << 16)], self.lags)
            out[at : at + (1 << 16)] = (cos @ cosine + sin @ sine).max(axis=1)
        return out

    def ritz(self, negated: Complexes) -> tuple[float, Complexes]:
        """Largest eigenvalue of the Gram matrix ``-negated`` [c, c] and its unit vector, in plain floats."""
        if self.side <= 48:
            values, vectors = np.linalg.eigh(negated)
            return float(-values[0]), vectors[:, 0]
        return largest(lambda x: -(negated @ x), self.side, dtype=np.complex128, steps=60)


def candidates(least: Sequence[int], counts: Sequence[int]) -> list[Torus]:
    """Twisted tori worth scoring: per axis N or N+1, twisted or not (N only where images are large)."""
    options: list[list[tuple[int, int]]] = []
    for size, count in zip(least, counts, strict=True):
        if count == 1:
            options.append([(1, 0)])  # one tap: the norm does not depend on this frequency
        else:
            options.append([(n, twist) for n in ((size, size + 1) if size <= 40 else (size,)) for twist in (0, 1)])
    return [Torus(tuple(n for n, _ in choice), tuple(twist for _, twist in choice)) for choice in itertools.product(*options)]


@dataclass(frozen=True, slots=True)
class Swept:
    """A proved bound of the squared norm of the symbol on a torus, and the highest point that was met."""

    square: Upper
    evidence: dict[str, Any]
    peak: Peak


def scalar_sweep(lags: Lags, torus: Torus) -> Floats:
    """c = 1: largest value of the symbol per group, in floats (error at most ``lags.error``), vectorised."""
    points = torus.frequencies()
    top = np.zeros(lags.groups)
    step = max(1, CHUNK // (8 * (lags.groups + 2 * len(lags.lags))))
    for at in range(0, len(points), step):
        cos, _ = torus.waves(points[at : at + step], lags.lags)
        np.maximum(top, (cos @ lags.even).max(axis=0), out=top)
    return top


def sweep(lags: Lags, torus: Torus, polynomials: tuple[Floats, Floats], slack: float) -> Swept | None:
    """Prove a bound of ``max ||K(w)||^2`` over the frequencies of ``torus`` and all groups; None if that fails.

    Frequencies come in the order of their scores; where a factorisation fails, the eigenvalue *there* raises t, and only
    that frequency is repeated: a proof for a smaller t stays a proof.
    """
    points = torus.frequencies()
    scores = lags.scores(torus, points, polynomials)
    points = points[np.argsort(-scores, kind="stable")]
    groups = lags.groups
    top = lags.grams(*torus.waves(points[:2], lags.lags)).reshape(-1, lags.side, lags.side)[:64]
    found = [lags.ritz(gram) for gram in top]
    leader = max(range(len(found)), key=lambda k: found[k][0])
    peak = Peak(torus.angles(points[leader // groups]), leader % groups, *found[leader])
    t = max(peak.value, float(np.max(scores))) * (1 + 2 * slack)
    if not (math.isfinite(t) and t > 0):
        return None
    raises, proved = 0, False
    for at in range(0, len(points), lags.chunk()):
        negated = lags.grams(*torus.waves(points[at : at + lags.chunk()], lags.lags)).reshape(-1, lags.side, lags.side)
        diagonals = np.ascontiguousarray(np.diagonal(negated, axis1=1, axis2=2).real)
        stack = _STACK if lags.side <= _BATCHED else 1
        for k in range(len(negated)):
            if stack > 1 and k % stack == 0:
                proved = _stack_factors(negated[k : k + stack], diagonals[k : k + stack], t)
            if stack > 1 and proved:
                continue
            growth = slack
            while not _factors(negated[k], diagonals[k], t):
                np.fill_diagonal(negated[k], diagonals[k])
                value, vector = lags.ritz(negated[k])
                if value > peak.value:
                    peak = Peak(torus.angles(points[at + k // groups]), k % groups, value, vector)
                t = max(value, t) * (1 + 2 * growth)
                raises, growth = raises + 1, 4 * growth + 1e-12
                if growth > 1 or raises > 2000:
                    return None
    evidence = {"t": t.hex(), "torus": list(torus.sizes), "twist": list(torus.twists), "raises": raises, "frequencies": len(points)}
    return Swept(Upper(t) + lags.allowance(t), evidence, peak)


def _stack_factors(negated: Complexes, diagonals: Floats, t: float) -> bool:
    """Whether all factorisations of tI - G succeed, in one call. Leaves ``negated`` as it is but for its diagonals."""
    shifted = t + diagonals
    if not np.all(shifted > 0):
        return False
    side = negated.shape[1]
    negated[:, range(side), range(side)] = shifted
    try:
        factor = np.linalg.cholesky(negated)
    except np.linalg.LinAlgError:
        return False
    return bool(np.all(np.isfinite(np.diagonal(factor, axis1=1, axis2=2).real)))


def _factors(negated: Complexes, diagonal: Floats, t: float) -> bool:
    """Whether the Cholesky factorisation of tI - G succeeds (one triangle of ``negated`` is kept)."""
    shifted = t + diagonal
    if not np.all(shifted > 0):
        return False
    np.fill_diagonal(negated, shifted)
    # The transpose of a C-ordered Hermitian matrix is its conjugate in Fortran order: no reordering is needed.
    factor, info = zpotrf(negated.T, lower=1, clean=0, overwrite_a=0)
    return info == 0 and bool(np.all(np.isfinite(np.real(np.diagonal(factor)))))


def grid_factor(counts: Sequence[int], sizes: Sequence[int]) -> Upper:
    """Supremum of a symbol over all frequencies, relative to its maximum on a uniform grid: product of 1/cos(pi (n-1)/(2N)).

    Source: H. Ehlich, K. Zeller, Math. Z. 86, 1964; several variables: L. Pfister, Y. Bresler 2019. Holds for N > n - 1.
    """
    factor = ONE
    for count, size in zip(counts, sizes, strict=True):
        angle = Fraction(22, 7) * Fraction(count - 1, 2 * size)  # 22/7 > pi, and cos x >= 1 - x^2/2
        factor = factor * (ONE / Lower(1 - angle * angle / 2))
    return factor
