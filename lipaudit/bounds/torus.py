"""Twisted tori of frequencies on which a convolution with zero padding is bounded.

Block form: ``y_i = sum_tau P_tau X_(i+tau)`` on a box of pixels. If per axis N >= max(inputs - tau_min, outputs + tau_max), the
operator is a corner of a phi-circulant matrix for every phase phi (no pair of pixels wraps onto a wrong tap), and a diagonal
unitary matrix turns that into a circulant one. Hence ::

    ||conv|| <= max { ||K(w)|| : w_axis = (2 pi j + phi)/N, j = 0..N-1 },     K(w) = sum_tau P_tau e^(i tau.w)

phi = 0 and pi keep the conjugate symmetry: half of the frequencies suffice. The maximum is proved in ``sweep.py``.

Context: H. Sedghi, V. Gupta, P. Long, ICLR 2019 (the torus N = image, which is *below* the zero-padded norm at times);
A. Araujo et al., AAAI 2021; B. Delattre et al., ICML 2023 (the padded torus).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, Lower, Upper

__all__ = ["COSINE", "Torus", "candidates", "grid_factor"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COSINE = 16
"""Error of a tabulated cosine or sine, in units of 2^-53 (argument reduced by integers; three roundings and numpy's 4 ulp)."""


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

    def waves(self, points: Ints, lags: Ints) -> Floats:
        """Cosines and sines of lag . frequency, shape [points, 2 lags - 1]: of all lags, then of all but the first (which is 0).

        All angles are integer multiples of pi/M, M = lcm of the sizes: reduced exactly and looked up.
        """
        common = math.lcm(*self.sizes)
        steps = np.array([common // size for size in self.sizes], dtype=np.int64)
        turns = (((2 * points + np.array(self.twists)) * steps) @ lags.T) % (2 * common)
        out = np.empty((len(points), 2 * len(lags) - 1))
        if 2 * common <= turns.size:
            table = np.arange(2 * common, dtype=np.int64)
            out[:, : len(lags)] = cosines(table, common)[turns]
            out[:, len(lags) :] = sines(table, common)[turns[:, 1:]]
        else:
            out[:, : len(lags)] = cosines(turns, common)
            out[:, len(lags) :] = sines(turns[:, 1:], common)
        return out


def cosines(turns: Ints, half: int) -> Floats:
    """cos(pi k / half) with the argument reduced to [0, pi/4] by integers."""
    k = np.abs(turns) % (2 * half)
    k = np.minimum(k, 2 * half - k)  # cos(2 pi - x) = cos x: now 0 <= k <= half
    negative = 2 * k > half
    k = np.where(negative, half - k, k)  # 0 <= k <= half / 2
    by_sine = 4 * k > half
    angle = np.where(by_sine, (half - 2 * k) * (np.pi / 2 / half), k * (np.pi / half))
    value = np.where(by_sine, np.sin(angle), np.cos(angle))
    return np.where(negative, -value, value)


def sines(turns: Ints, half: int) -> Floats:
    """sin(pi k / half) = cos(pi (2k - half) / (2 half))."""
    return cosines(2 * turns - half, 2 * half)


def candidates(least: Sequence[int], counts: Sequence[int]) -> list[Torus]:
    """Twisted tori worth scoring: per axis N or N+1, twisted or not (N only where images are large)."""
    options: list[list[tuple[int, int]]] = []
    for size, count in zip(least, counts, strict=True):
        if count == 1:
            options.append([(1, 0)])  # one tap: the norm does not depend on this frequency
        else:
            options.append([(n, twist) for n in ((size, size + 1) if size <= 40 else (size,)) for twist in (0, 1)])
    return [Torus(tuple(n for n, _ in choice), tuple(twist for _, twist in choice)) for choice in itertools.product(*options)]


def grid_factor(counts: Sequence[int], sizes: Sequence[int]) -> Upper:
    """Supremum of a symbol over all frequencies, relative to its maximum on a uniform grid: product of 1/cos(pi (n-1)/(2N)).

    Source: H. Ehlich, K. Zeller, Math. Z. 86, 1964; several variables: L. Pfister, Y. Bresler 2019. Holds for N > n - 1.
    """
    factor = ONE
    for count, size in zip(counts, sizes, strict=True):
        angle = Fraction(22, 7) * Fraction(count - 1, 2 * size)  # 22/7 > pi, and cos x >= 1 - x^2/2
        factor = factor * (ONE / Lower(1 - angle * angle / 2))
    return factor
