"""NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss: a weighted choice of one class per position, then none, sum or mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, combine
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.broadcast import precise
from lipaudit.operators.outputs import SeveralOutputs, jointly
from lipaudit.operators.range import Range, reals, up, widen
from lipaudit.operators.softmax import Probabilities, probabilities

__all__ = ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights of the positions: known one by one, or only how large each can be."""

    largest: float
    count: int
    known: Floats | None

    def gain(self, reduction: str, norm: Norm) -> Upper | Unknown:
        """Gain of ``-sum_i w_i x_i`` (mean: over ``sum w``) from the chosen x_i; of the vector of terms for "none"."""
        top = Upper(self.largest)
        if reduction == "none":
            return top
        if self.known is None:
            if reduction == "sum":
                return top * {"l1": ONE, "l2": Upper(self.count).sqrt(), "linf": Upper(self.count)}[norm]
            return ONE  # shares of a whole
        total = float(np.sum(self.known))
        n = self.known.size
        square = widen(float(np.sum(np.maximum(self.known, 1e-150 * (self.known > 0)) ** 2)), n + 1) if np.any(self.known) else 0.0
        found = {"l1": top, "l2": Upper(square).sqrt(), "linf": Upper(widen(total, n + 1))}[norm]
        if reduction == "sum":
            return found
        if total <= 0:
            return Unknown("all weights are 0: the mean is not defined")
        if norm == "linf":
            return ONE
        return found / Lower(total * (1 - (n + 2) * 2.0**-52))


def _weights(site: Site, xs: Sequence[Range | None]) -> _Weights | Unknown:
    """The weights of the positions; equal ones of a plain mean are exact."""
    shape = site.shape(1)
    count = math.prod(shape)
    ignored = site.attr("ignore_index")
    target = site.constant(1)
    by_class: Floats | None = None
    if site.has(2):
        given = precise(site, 2, xs[2])
        if not given.is_bounded or np.any(given.lo < 0):
            return Unknown("the class weights are not known to be at least 0")
        by_class = np.broadcast_to(given.hi, given.shape)
        if not given.is_point:
            target = None
    largest = 1.0 if by_class is None else float(np.max(by_class, initial=0.0))
    if target is not None:
        labels = np.asarray(target.array()).astype(np.int64).ravel()
        known = np.ones(count) if by_class is None else by_class[np.clip(labels, 0, len(by_class) - 1)].astype(np.float64)
        if ignored is not None:
            known = np.where(labels == int(ignored), 0.0, known)
        return _Weights(float(np.max(known, initial=0.0)), count, known)
    if by_class is None and ignored is None:
        return _Weights(1.0, count, np.ones(count))
    return _Weights(largest, count, None)


class NegativeLogLikelihoodLoss(Rule):
    """``-w_t x_t`` per position: none ``max w`` in every norm; sum ``max w, |w|_2, sum w``; mean: those over ``sum w``.

    Without stored targets each share of a mean is at most 1. Targets and weights may not depend on the source.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Weighted elements, 0 for ignored positions."""
        x, weights = xs[0], _weights(site, xs)
        if x is None or isinstance(weights, Unknown) or x.size == 0:
            return (reals(site.out_shape()),)
        reduction = str(site.attr("reduction", "mean"))
        factor = {"none": weights.largest, "sum": widen(weights.largest * weights.count, 2), "mean": 1.0}[reduction]
        low, high = min(0.0, -float(np.max(x.hi))), max(0.0, -float(np.min(x.lo)))
        ends = [-widen(-low * factor, 2) if low < 0 and factor else 0.0, widen(high * factor, 2) if high > 0 and factor else 0.0]
        return (Range(site.out_shape(), np.asarray(ends[0]), np.asarray(ends[1])),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            return Unknown("the targets or the weights depend on the source")
        weights = _weights(site, xs)
        if isinstance(weights, Unknown):
            return weights
        found = weights.gain(str(site.attr("reduction", "mean")), norm)
        return found if isinstance(found, Unknown) else Finite(found, method="weights of the chosen elements")


class SoftmaxCrossEntropyLoss(SeveralOutputs):
    """The loss of ``log softmax``: gradient ``w (p - e_t)`` per position, of size at most w, ``sqrt(2) w``, 2 w (largest, l2, sum).

    The second output is the log-softmax over axis 1 with C classes: ``max(1, C - 1), sqrt(C), 2``. Bounded scores give less, by
    the intervals of their probabilities.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """``0 <= -log p <= log C + spread`` of the scores."""
        x, weights = xs[0], _weights(site, xs)
        assert x is not None
        spread = float(np.max(x.hi)) - float(np.min(x.lo)) if x.size else 0.0
        classes = site.shape(0)[1]
        top = widen(math.log(classes) + spread, 8) if math.isfinite(spread) and classes > 1 else (math.inf if classes > 1 else 0.0)
        second = [Range(v.shape, np.asarray(-top), np.asarray(0.0)) for v in site.outputs[1:] if v is not None and v.shape is not None]
        if isinstance(weights, Unknown):
            return (reals(site.out_shape()), *second)
        reduction = str(site.attr("reduction", "mean"))
        factor = {"none": weights.largest, "sum": widen(weights.largest * weights.count, 2), "mean": 1.0}[reduction]
        high = widen(top * factor, 2) if top and factor else 0.0
        return (Range(site.out_shape(), np.asarray(0.0), np.asarray(high)), *second)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            return Unknown("the labels or the weights depend on the source")
        weights = _weights(site, xs)
        if isinstance(weights, Unknown):
            return weights
        found = weights.gain(str(site.attr("reduction", "mean")), norm)
        if isinstance(found, Unknown):
            return found
        classes, x = site.shape(0)[1], xs[0]
        if classes == 1:
            return Finite(ZERO, method="one class: the loss is 0")
        assert x is not None
        p = Probabilities(*probabilities(x, (1,))) if x.size else Probabilities(np.zeros(1), np.ones(1))
        rest = Upper(min(1.0, float(up(1 - float(np.min(p.lo, initial=1.0))))))  # 1 - p of the chosen class
        top = Upper(min(1.0, p.largest()))
        softmax = {"l1": ONE + Upper(classes - 2) * top, "l2": (Upper(classes) * top).sqrt(), "linf": Upper(2) * rest}[norm]
        # |p - e_t|: the others sum to 1 - p_t, and their squares to at most (1 - p_t) max p.
        own = {"l1": max(rest, top), "l2": (rest * (rest + min(rest, top))).sqrt(), "linf": Upper(2) * rest}[norm]
        loss = Finite(found * min(own, softmax), method="gradient w (p - e)")
        if len(site.outputs) == 1 or site.outputs[1] is None:
            return loss
        joint = jointly([loss, Finite(softmax, method="log-softmax")], norm)
        assert isinstance(joint, Finite)
        return replace(joint, slope=min(joint.slope, softmax * combine([ONE, found], norm)))
