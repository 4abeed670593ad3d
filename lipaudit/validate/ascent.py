"""Pair ascent: both ends of a pair climb the gradient of log|f(x)-f(z)| - log|x-z|.

Every pair is a lower bound by itself, kinks are crossed on the way, and only J'c is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm
from lipaudit.validate.direction import View
from lipaudit.validate.engine import State
from lipaudit.validate.vectors import dual_vector, norm_of

__all__ = ["Pair", "ascend", "pair_gain", "spread"]

Floats = NDArray[np.float64]

# Below this relative distance the quotient of float32 outputs loses its digits.
CLOSEST = 1e-3


@dataclass(frozen=True, slots=True)
class Pair:
    """Two points and the gain that float32 gives them."""

    x: State
    z: State
    gain: float


def spread(view: View, point: Floats, least: float) -> float:
    """The smallest trustworthy distance from ``point`` in l2."""
    return CLOSEST * max(norm_of(point[view.inputs], "l2"), least)


def pair_gain(view: View, x: State, z: State, norm: Norm) -> float:
    """Quotient of the float32 outputs (0 for equal points or values that are not finite)."""
    distance = norm_of((x.point - z.point)[view.inputs], norm)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = norm_of(view.value(x) - view.value(z), norm)
    return difference / distance if distance > 0 and np.isfinite(difference) else 0.0


def ascend(view: View, x: State, z: State, norm: Norm, diameter: float, budget: float) -> Pair:
    """Climb from the pair (x, z) for at most ``budget`` evaluations.

    Steps are normalised, begin at 5 % of ``diameter`` (l2; more than the box for bold first steps), shrink by 0.8 without gain, and end
    after 20 failures in a row.
    """
    engine = view.engine
    best = Pair(x, z, pair_gain(view, x, z, norm))
    step, failures, end = 0.05 * diameter, 0, engine.spent + budget
    gradient = _gradient(view, best, norm)
    while failures < 20 and engine.spent < end and gradient is not None:
        gx, gz = gradient
        x1 = view.move(best.x.point, step * gx)
        z1 = view.move(best.z.point, step * gz)
        gap = (z1 - x1)[view.inputs]
        distance, least = norm_of(gap, "l2"), spread(view, x1, 1e-6 * diameter)
        if distance < least:
            # Too close to measure: keep the direction, stretch the pair.
            direction = gap / distance if distance > 0 else (best.z.point - best.x.point)[view.inputs]
            z1 = view.move(x1, direction * (least / max(norm_of(direction, "l2"), 1e-300)))
        a, b = engine.state(x1), engine.state(z1)
        gain = pair_gain(view, a, b, norm)
        if gain > best.gain:
            improved = gain > best.gain * (1 + 1e-4)
            best = Pair(a, b, gain)
            failures = 0 if improved else failures + 1
            gradient = _gradient(view, best, norm)
        else:
            failures += 1
            step *= 0.8
    return best


def _gradient(view: View, pair: Pair, norm: Norm) -> tuple[Floats, Floats] | None:
    """Normalised ascent directions at both ends (l2), None where the pair has no slope."""
    difference = view.value(pair.x) - view.value(pair.z)
    gap = (pair.x.point - pair.z.point)[view.inputs]
    size, distance = norm_of(difference, norm), norm_of(gap, norm)
    if size == 0 or distance == 0 or not np.isfinite(size):
        return None
    # Scaled by the distance so that tiny outputs do not underflow: only the direction matters.
    cotangent = dual_vector(difference, norm) * (distance / size)
    away = dual_vector(gap, norm)
    gx = view.pull(pair.x, cotangent[None])[0] - away
    gz = -view.pull(pair.z, cotangent[None])[0] + away
    total = float(np.hypot(norm_of(gx, "l2"), norm_of(gz, "l2")))
    if total == 0 or not np.isfinite(total):
        return None
    return gx / total, gz / total
