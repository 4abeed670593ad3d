"""Proof of ``max ||K(w)||^2 <= t`` over the frequencies of a torus: one Cholesky factorisation of tI - G(w) each.

In float64, with c the order of G and phi = sqrt(2) gamma_(2c+8) / (1 - sqrt(2) gamma_(2c+8)) (each real and imaginary part of a complex
inner product is a real one of twice the length; as in ``dense.py``) ::

    max ||K||^2 <= t (1 + u + c phi) + ||fl(G) - G||

Most frequencies lie some way below the largest one, and a factorisation in float32 of t'I - G, t' < t, proves them at half the cost.
Its a priori bound c phi would be far too large there. But the bound from which that follows is tested afterwards: the computed
factor L of a real matrix B satisfies |L L' - B| <= gamma_(c+1) |L| |L|' entry by entry (Higham, Accuracy and Stability, 2nd ed.,
theorem 10.3). For a complex one, with M = |Re L| + |Im L|, the errors of the real and of the imaginary part of an entry are at most
gamma_(2c+8) times two sums of products that together make the entry of M M'; hence B >= -gamma_(2c+8) ||M M'||, and the largest row
sum of M M' is read off L. With gamma in units of 2^-24 ::

    ||K(w)||^2 <= t' (1 + 2^-22) + gamma_(2c+8) ||M M'||_inf + ||fl32(G) - G|| + 2^-90

A frequency for which the right-hand side is at most t is proved; all others are factorised in float64. What underflows in float32 is
below c^2 2^-120, as the largest entry of the taps is in [1/2, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.kernels import cpftrf, zpftrf
from lipaudit.bounds.lags import CHUNK, Lags, Peak
from lipaudit.bounds.scalar import Upper
from lipaudit.bounds.torus import Torus

__all__ = ["Sweep", "Swept", "accepts_single", "scalar_sweep", "sweep"]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Singles = NDArray[np.complex64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

SINGLE_SIDE = (48, 2048)
"""Orders for which frequencies are tried in float32 first: below it costs as much, above it proves too little."""

_RAISES = 2000
_WORTH = 2e-3
"""Share of the squared norm that another torus must save for a full sweep of it."""
_FIRST = 8
"""Frequencies in the first chunk: it shows how much room float32 needs."""


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
    count, even = len(lags.lags), lags.table[: len(lags.lags), :, 0]
    step = max(1, 8 * CHUNK // (8 * (lags.groups + 2 * count)))
    for at in range(0, len(points), step):
        cos = torus.waves(points[at : at + step], lags.lags)[:, :count]
        np.maximum(top, (cos @ even).max(axis=0), out=top)
    return top


def sweep(lags: Lags, torus: Torus, polynomials: Floats, slack: float, below: float = math.inf) -> Swept | None:
    """Prove a bound of ``max ||K(w)||^2`` over the frequencies of ``torus`` and all groups; None if that fails.

    Frequencies come in the order of their scores; where a factorisation fails, the eigenvalue *there* raises t, and only
    that frequency is repeated: a proof for a smaller t stays a proof. Given up (None) where t does not get below ``below``.
    """
    points = torus.frequencies()
    scores = lags.scores(torus, points, polynomials)
    points = points[np.argsort(-scores, kind="stable")]
    run = Sweep(lags, torus, slack)
    run.start(points, float(np.max(scores)))
    if not (math.isfinite(run.t) and 0 < run.t < below):
        return None
    left = np.ones((len(points), lags.groups), dtype=np.bool_)
    if run.by_single:
        if below < math.inf and not run.proves_all(points, below * (1 - _WORTH)):
            return None
        left = run.open(points, left, raising=True)
        # Now that t is nearly final, most of those that were refuted for a smaller one are proved.
        left = run.open(points, left, raising=False)
    in_float32 = left.size - int(np.count_nonzero(left))
    if not run.prove(points, left, below):
        return None
    evidence = {
        "t": run.t.hex(),
        "torus": list(torus.sizes),
        "twist": list(torus.twists),
        "raises": run.raises,
        "frequencies": len(points),
        "in_float32": in_float32,
    }
    return Swept(Upper(run.t) + lags.allowance(run.t), evidence, run.peak)


def accepts_single(packed: Singles, order: int) -> bool:
    """Whether the factorisation in float32 of a packed matrix ends without a pivot that is not positive. Leaves the factor in its place."""
    return bool(cpftrf(order, packed, transr="N", uplo="L", overwrite_a=1)[1] == 0)


class Sweep:
    """The state of a sweep: the smallest t that is still to be refuted, and the highest point met."""

    peak: Peak
    t: float

    def __init__(self, lags: Lags, torus: Torus, slack: float) -> None:
        self.lags, self.torus, self.slack = lags, torus, slack
        self.raises = 0
        self.by_single = SINGLE_SIDE[0] <= lags.side <= SINGLE_SIDE[1]
        k = 2 * lags.side + 8
        self.unit = k * 2.0**-24 / (1 - k * 2.0**-24) * (1 + 1e-9)
        self.room = 0.0

    def start(self, points: Ints, score: float) -> None:
        """A first t from the eigenvalues at the two points of the highest scores."""
        grams = self.lags.grams(self.torus.waves(points[:2], self.lags.lags)).reshape(-1, self.lags.packing.size)[:64]
        found = [self.lags.ritz(gram, self.slack) for gram in grams]
        leader = max(range(len(found)), key=lambda k: found[k][0])
        groups = self.lags.groups
        self.peak = Peak(self.torus.angles(points[leader // groups]), leader % groups, *found[leader])
        self.t = max(self.peak.value, score) * (1 + 1.98 * self.slack)
        self.room = 1.2 * (self.lags.single_error / self.t + self.unit * self.lags.side / 6) if self.t > 0 else 0.0

    def singles(self, grams: Singles, t: float) -> Flags:
        """Which of the negated packed matrices [k, size] in float32 are proved to be those of squared norms up to ``t``. Destroys them."""
        lags, packing = self.lags, self.lags.packing
        start = np.float32(t * (1 - self.room))
        if not start > 0:
            return np.zeros(len(grams), dtype=np.bool_)
        grams[:, packing.diagonal] += start
        factored = np.array([accepts_single(gram, lags.side) for gram in grams], dtype=np.bool_)
        with np.errstate(over="ignore", invalid="ignore"):
            # The sums are of float32: their own error is below 1e-3 for every order that comes here.
            square = packing.absolute_square(grams).astype(np.float64) * (1 + 4e-3)
            bound = (float(start) * (1 + 2.0**-22) + self.unit * square + lags.single_error + 2.0**-90) * (1 + 1e-9)
        factored &= np.isfinite(bound)
        if factored.any():
            self.room = 1.1 * (float(np.max(bound[factored])) / float(start) - 1)
        return factored & (bound <= t)

    def parts(self, count: int) -> Iterator[slice]:
        """Chunks of so many frequencies in float32; the first is small, as it shows how much room the proof needs."""
        at, step = 0, min(_FIRST, self.lags.chunk())
        while at < count:
            yield slice(at, min(at + step, count))
            at, step = at + step, self.lags.chunk()

    def proves_all(self, points: Ints, t: float) -> bool:
        """Whether all frequencies are proved for ``t`` in float32; stops at the first one that is not."""
        for part in self.parts(len(points)):
            grams = self.lags.single_grams(self.torus.waves(points[part], self.lags.lags))
            if not self.singles(grams, t).all():
                return False
        return True

    def open(self, points: Ints, left: Flags, *, raising: bool) -> Flags:
        """Which of the frequencies and groups ``left`` [points, groups] float32 does not prove; if ``raising``, they raise t."""
        rows = np.flatnonzero(left.any(axis=1))
        out = np.zeros_like(left)
        for part in self.parts(len(rows)):
            chosen = rows[part]
            grams = self.lags.single_grams(self.torus.waves(points[chosen], self.lags.lags))
            missed = np.flatnonzero(left[chosen].reshape(-1) & ~self.singles(grams.copy(), self.t))
            unproved = np.zeros(len(grams), dtype=np.bool_)
            while raising and len(missed):
                # A little less than the estimate: the final t is for float64 to find.
                value = self.lags.ritz(grams[missed[0]], self.slack)[0] * (1 - 4e-6)
                if not value > self.t:
                    break
                self.t = value
                unproved[missed[0]], missed = True, missed[1:]
                missed = missed[~self.singles(grams[missed], self.t)] if len(missed) else missed
            unproved[missed] = True
            out[chosen] = unproved.reshape(len(chosen), -1)
        return out

    def doubles(self, points: Ints, left: Flags) -> tuple[Complexes, Flags]:
        """The negated matrices [points * groups, size] in float64, and which of them are proved, or not in ``left``."""
        lags, packing = self.lags, self.lags.packing
        original = lags.grams(self.torus.waves(points, lags.lags)).reshape(-1, packing.size)
        wanted, flat = left.reshape(-1), original.copy()
        flat[:, packing.diagonal] += self.t
        factored = ~wanted
        for k in np.flatnonzero(wanted):
            factored[k] = zpftrf(lags.side, flat[k], transr="N", uplo="L", overwrite_a=1)[1] == 0
        # A NaN pivot passes some implementations with info 0.
        factored &= ~wanted | np.isfinite(flat[:, packing.diagonal]).all(axis=1)
        return original, factored

    def refuted(self, points: Ints, left: Flags) -> Flags:
        """Which of the frequencies and groups ``left`` are not proved for t as it is (in float32 alone where that is tried)."""
        if self.by_single:
            return self.open(points, left, raising=False)
        out = np.zeros_like(left)
        for at in range(0, len(points), self.lags.chunk()):
            part = slice(at, at + self.lags.chunk())
            out[part] = ~self.doubles(points[part], left[part])[1].reshape(-1, self.lags.groups)
        return out

    def prove(self, points: Ints, left: Flags, below: float = math.inf) -> bool:
        """Prove all that is ``left`` in float64, raising t where that fails. False if it is hopeless, or t reaches ``below``."""
        rows = np.flatnonzero(left.any(axis=1))
        step = max(1, self.lags.chunk() // 2)
        for at in range(0, len(rows), step):
            chosen, before = rows[at : at + step], self.t
            original, factored = self.doubles(points[chosen], left[chosen])
            for k in np.flatnonzero(~factored):
                f, g = divmod(int(k), self.lags.groups)
                if not self.repeat(original[k], points[chosen[f]], g, before) or self.t >= below:
                    return False
        return True

    def repeat(self, negated: Complexes, point: Ints, group: int, tried: float) -> bool:
        """Prove one frequency and group for which ``tried`` was refuted, from its negated Gram matrix."""
        lags, packing = self.lags, self.lags.packing
        growth = self.slack
        refuted = tried == self.t
        while True:
            if refuted:
                value, vector = lags.ritz(negated, self.slack)
                if value > self.peak.value:
                    self.peak = Peak(self.torus.angles(point), group, value, vector)
                self.t = max(value, self.t) * (1 + 2 * growth)
                self.raises, growth = self.raises + 1, 4 * growth + 1e-12
                if not growth <= 1 or self.raises > _RAISES or not math.isfinite(self.t):
                    return False
            gram = negated.copy()
            gram[packing.diagonal] += self.t
            factor, info = zpftrf(lags.side, gram, transr="N", uplo="L", overwrite_a=1)
            if info == 0 and bool(np.isfinite(factor[packing.diagonal]).all()):
                return True
            refuted = True
