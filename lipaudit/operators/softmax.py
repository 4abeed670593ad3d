"""Softmax, LogSoftmax and Hardmax in all versions: probabilities of one row of logits.

The Jacobian of softmax is ``diag(p) - pp'``; ``u'Ju`` is the variance of u under p, at most a quarter of the squared spread
(Popoviciu), hence 1/2 in l2, and the largest absolute row (= column) sum is ``max 2 p (1 - p) <= 1/2`` in l1 and linf. All
three are attained by two equal logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Norm, Upper
from lipaudit.operators.base import Finite, Gain, Rule, Site
from lipaudit.operators.range import Range, down, up, widen

__all__ = ["Hardmax", "LogSoftmax", "Probabilities", "Softmax", "probabilities"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# numpy's exp and log are within a few units in the last place; this relative allowance is 64 times that.
_SLACK = 2.0**-44


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Element intervals of the softmax of a box of logits; arrays of the logits' interval shape, flattened to rows (-1)."""

    lo: Floats
    hi: Floats

    def steepest(self) -> float:
        """Upper bound of ``2 p (1 - p)`` over all intervals: gain in l1 and linf, and a bound in l2."""
        worst = np.where((self.lo <= 0.5) & (self.hi >= 0.5), 0.25, np.maximum(self.lo * (1 - self.lo), self.hi * (1 - self.hi)))
        return min(0.5, widen(2 * float(np.max(worst, initial=0.0)), 4))

    def largest(self) -> float:
        """Upper bound of every probability."""
        return float(np.max(self.hi, initial=0.0))


def row_axes(site: Site) -> tuple[int, ...]:
    """Axes that make one row of logits: one axis from opset 13 on, before that all axes from ``axis`` on (default 1)."""
    rank = len(site.shape(0))
    if site.node.version and site.node.version < 13:
        axis = int(site.attr("axis", 1))
        return tuple(range(axis + rank if axis < 0 else axis, rank))
    axis = int(site.attr("axis", -1))
    return (axis + rank if axis < 0 else axis,) if rank else ()


def row_length(site: Site) -> int:
    """Logits in one row."""
    return math.prod(site.shape(0)[axis] for axis in row_axes(site))


def probabilities(x: Range, axes: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Intervals of ``softmax(x)`` along ``axes``, broadcastable to the shape of ``x``, rounded outward.

    ``p_i`` is largest where its own logit is at the upper end and all others are at their lower ends.
    """
    count = math.prod(x.shape[axis] for axis in axes)
    lo, hi = np.broadcast_arrays(x.lo, x.hi)
    missing = len(x.shape) - lo.ndim
    if any(axis >= missing and lo.shape[axis - missing] > 1 for axis in axes):
        if missing or any(lo.shape[axis] != x.shape[axis] for axis in axes):
            lo, hi = x.full()
        return _rows(lo, hi, axes, count)
    with np.errstate(over="ignore", invalid="ignore"):  # all logits of a row share one interval
        spread = np.where(np.isfinite(lo) & np.isfinite(hi), up(hi - lo), np.inf)
        small = 1 / (1 + (count - 1) * np.exp(spread)) if count > 1 else np.ones_like(spread)
        large = 1 / (1 + (count - 1) * np.exp(-spread)) if count > 1 else np.ones_like(spread)
    return np.maximum(small * (1 - _SLACK), 0.0), np.minimum(large * (1 + _SLACK), 1.0)


def _rows(lo: Floats, hi: Floats, axes: tuple[int, ...], count: int) -> tuple[Floats, Floats]:
    """Intervals where every logit of a row has its own interval."""
    slack = (count + 8) * _SLACK
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):

        def others(ends: Floats, own: Floats, largest: bool) -> Floats:
            """Sum over the other logits of ``exp(end_l - own_i)``, from above or from below."""
            top = np.max(ends, axis=axes, keepdims=True)
            reference = np.where(np.isfinite(top), top, 0.0)
            weights = np.exp(np.minimum(ends - reference, 709.0))
            weights = np.where(np.isposinf(ends), np.inf, weights)
            whole = np.sum(weights, axis=axes, keepdims=True)
            rest = whole - weights
            error = slack * whole
            rest = np.where(np.isnan(rest), np.inf if largest else 0.0, rest + error if largest else np.maximum(rest - error, 0.0))
            factor = np.exp(reference - own)
            if largest:
                product = rest * factor  # 0 * inf: the factor overflowed, nothing can be said
                return np.where(np.isnan(product), np.inf, product) * (1 + slack) + 1e-300
            return rest * np.minimum(factor, 1e300) * (1 - slack)

        low = 1 / (1 + others(hi, lo, True))
        high = 1 / (1 + others(lo, hi, False))
    # Without a finite own end the formula says nothing on that side.
    low = np.where(np.isfinite(lo), low, 0.0)
    high = np.where(np.isneginf(hi), 0.0, np.where(np.isposinf(hi), 1.0, high))
    dead = np.all(np.isneginf(hi), axis=axes, keepdims=True)  # a row without any live logit is not a number in floats
    high = np.where(dead, 1.0, high)
    return np.maximum(low * (1 - slack), 0.0), np.minimum(high * (1 + slack), 1.0)


class _RowRule(Rule):
    """Shared: the logits' intervals as probabilities."""

    def _probabilities(self, site: Site, x: Range | None) -> Probabilities:
        if x is None or x.size == 0:
            return Probabilities(np.zeros(1), np.ones(1))
        return Probabilities(*probabilities(x, row_axes(site)))


class Softmax(_RowRule):
    """``e^x / sum e^x``: gain 1/2 in every norm, 0 for rows of one element; less on bounded logits."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Element intervals; rows are probability vectors: norm ``sqrt(max p) <= 1``, distance at most ``sqrt 2``."""
        shape = site.out_shape()
        found = self._probabilities(site, xs[0])
        if xs[0] is None or xs[0].size == 0:
            return (Range(shape, np.asarray(0.0), np.asarray(1.0)),)
        result = Range(shape, found.lo, found.hi)
        if len(shape) - 1 not in row_axes(site):
            return (result,)
        row = min(1.0, float(up(math.sqrt(found.largest()))))
        return (result.replace(row=row, diameter=float(up(math.sqrt(2.0)))),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """l2: ``min(1/2, max p, max 2p(1-p))``; l1, linf: ``max 2p(1-p) <= 1/2``."""
        if row_length(site) <= 1:
            return Finite(ZERO, method="a softmax of one element is constant")
        found = self._probabilities(site, xs[0])
        slope = found.steepest()
        if norm == "l2":
            slope = min(slope, found.largest())
        method = "variance of a probability vector" if slope >= 0.5 else "probabilities on the logit intervals"
        return Finite(Upper(slope), method=method)


class LogSoftmax(_RowRule):
    """``x - log sum e^x``, Jacobian ``I - 1p'``: l2 ``sqrt(n) |p|_2``, linf ``2 (1 - min p)``, l1 ``1 + (n - 2) max p``."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The logarithm of the probabilities: never above 0."""
        shape = site.out_shape()
        if xs[0] is None or xs[0].size == 0:
            return (Range(shape, np.asarray(-math.inf), np.asarray(0.0)),)
        found = self._probabilities(site, xs[0])
        with np.errstate(divide="ignore"):
            lo, hi = np.log(found.lo), np.log(found.hi)
        lo, hi = down(lo - np.abs(lo) * _SLACK), np.minimum(up(hi + np.abs(hi) * _SLACK), 0.0)
        return (Range(shape, np.where(np.isnan(lo), -np.inf, lo), hi),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """sqrt(n), n - 1 and 2 on all reals (n >= 2)."""
        count = row_length(site)
        if count <= 1:
            return Finite(ZERO, method="a log-softmax of one element is constant")
        found = self._probabilities(site, xs[0])
        method = "Jacobian I - 1p'"
        if norm == "l2":
            return Finite((Upper(count) * Upper(min(1.0, found.largest()))).sqrt(), method=method)
        if norm == "l1":
            return Finite(Upper(1) + Upper(count - 2) * Upper(min(1.0, found.largest())), method=method)
        smallest = float(np.min(found.lo, initial=1.0))
        return Finite(Upper(min(2.0, float(up(2 * up(1 - smallest))))), method=method)


class Hardmax(Rule):
    """One-hot of the largest element: it jumps, by ``2 R, sqrt(2 R), 1`` (l1, l2, linf) for R rows, and is flat otherwise."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Elements 0 or 1."""
        alone = row_length(site) == 1
        result = Range(site.out_shape(), np.asarray(1.0 if alone else 0.0), np.asarray(1.0), integral=True)
        if len(site.out_shape()) - 1 in row_axes(site):
            result = result.replace(row=1.0, diameter=float(up(math.sqrt(2.0))))
        return (result,)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Slope 0 with the jump as offset."""
        count = row_length(site)
        if count <= 1:
            return Finite(ZERO, method="a hardmax of one element is constant")
        rows = math.prod(site.shape(0)) // count
        twice = Upper(2 * rows)
        offset = twice if norm == "l1" else twice.sqrt() if norm == "l2" else Upper(1 if rows else 0)
        return Finite(ZERO, offset, method="one element jumps from 0 to 1 and another back")
