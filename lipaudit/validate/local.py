"""Local gains at typical inputs, and what extreme value theory makes of them.

The local gain at x is the norm of the Jacobian there: how much a small change of that input is amplified. The largest one over many
inputs follows, in the limit, a generalized extreme value distribution with a finite right end; Weng et al. 2018 (CLEVER, arXiv 1801.10578,
section 4) take that end for the local Lipschitz constant. It is an estimate from a sample, never a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm
from lipaudit.validate.direction import View, worst_direction
from lipaudit.validate.starts import typical

__all__ = ["POINTS", "LocalGains", "extreme_end", "local_gains", "summary"]

POINTS = 64
_QUANTILES = (0.1, 0.5, 0.9, 1.0)
_BATCH = 4
_LEAST_BATCHES = 8
_LEAST_POINTS = 4


@dataclass(frozen=True)
class LocalGains:
    """Gains of the Jacobian at ``points`` inputs.

    Attributes
    ----------
    quantiles
        Gain below which that share of the points lies, by share (0.1, 0.5, 0.9, 1).
    estimate
        Estimated right end of the distribution of the largest local gain; None if there are too few points or the fit has no end.
    batches
        Largest gains of batches that the estimate was fitted to.
    """

    points: int
    quantiles: dict[str, float]
    estimate: float | None
    batches: int

    def facts(self) -> dict[str, float | None]:
        """Facts of the model, in decades."""
        logs = {share: round(math.log10(gain), 3) if gain > 0 else None for share, gain in self.quantiles.items()}
        low, high = logs["0.1"], logs["0.9"]
        return {
            "gain_log10": logs["0.5"],
            "gain_high_log10": high,
            "gain_max_log10": logs["1"],
            "gain_spread": None if low is None or high is None else round(high - low, 3),
        }


def local_gains(view: View, norm: Norm, points: int, seed: Sequence[int], found: list[float]) -> None:
    """Append the gain of the Jacobian at ``points`` typical inputs (the given ones first) to ``found``.

    Raises
    ------
    OutOfTime
        At the limit; ``found`` keeps what is there.
    """
    rng = np.random.default_rng(list(seed))
    for point in typical(view.engine.problem, rng, points):
        state = view.engine.state(point)
        if np.isfinite(view.value(state)).all():
            found.append(worst_direction(view, state, norm, rng, rounds=4, probes=4).gain)


def summary(gains: Sequence[float]) -> LocalGains | None:
    """Quantiles and estimate; None for too few points."""
    if len(gains) < _LEAST_POINTS:
        return None
    seen = np.asarray(gains, dtype=np.float64)
    quantiles = {f"{share:g}": _digits(float(np.quantile(seen, share))) for share in _QUANTILES}
    whole = len(seen) - len(seen) % _BATCH
    maxima = seen[:whole].reshape(-1, _BATCH).max(axis=1)
    end = extreme_end(maxima) if len(maxima) >= _LEAST_BATCHES else None
    return LocalGains(len(seen), quantiles, None if end is None else _digits(max(end, float(seen.max()))), len(maxima))


def _digits(x: float) -> float:
    """Three digits: a sample is not worth more."""
    return float(f"{x:.3g}")


def extreme_end(maxima: NDArray[np.float64]) -> float | None:
    """Right end of the generalized extreme value distribution fitted to ``maxima``; None if the fitted one has none.

    Fitted by L-moments: Hosking, Wallis, Wood 1985, Technometrics 27, equations 12 to 14 (their k is positive where an end exists).
    """
    x = np.sort(np.asarray(maxima, dtype=np.float64))
    n = len(x)
    if n < 3 or not np.isfinite(x).all() or x[-1] <= 0:
        return None
    scale = x[-1]
    x = x / scale
    i = np.arange(1, n + 1)
    b0 = float(x.mean())
    b1 = float(((i - 1) / (n - 1) * x).mean())
    b2 = float(((i - 1) * (i - 2) / ((n - 1) * (n - 2)) * x).mean())
    spread, skew = 2 * b1 - b0, 6 * b2 - 6 * b1 + b0
    if spread <= 1e-12:
        return float(scale)  # all maxima agree
    c = (2 * b1 - b0) / (3 * b2 - b0) - math.log(2) / math.log(3) if 3 * b2 > b0 else math.nan
    k = 7.8590 * c + 2.9554 * c * c
    # Outside of the range in which the approximation was derived, or without an end.
    if not (1e-3 < k < 1.5) or abs(skew / spread) >= 1:
        return None
    alpha = spread * k / (math.gamma(1 + k) * (1 - 2.0**-k))
    location = b0 + alpha * (math.gamma(1 + k) - 1) / k
    return float(scale * (location + alpha / k))
