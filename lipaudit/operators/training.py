"""BatchNormalization in training mode: statistics of the batch itself, and the running ones that it updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import ZERO, Lower, Norm, Upper
from lipaudit.operators.base import Finite, Gain, Site, Unknown
from lipaudit.operators.normalizing import Normalizing, Plan, affine_operand, mean_gain, mean_range
from lipaudit.operators.outputs import finite_or, jointly
from lipaudit.operators.radial import Radial
from lipaudit.operators.range import Range, reals

__all__ = ["BatchStatistics"]


class BatchStatistics(Normalizing):
    """``y = g (x - mean) / sqrt(var + eps) + b`` with mean and variance over all axes but the channel: a group of n elements a channel.

    From version 14 on, outputs 1 and 2 are ``momentum * running + (1 - momentum) * statistic``. The mean moves by ``1/n, 1/sqrt n, 1``
    times x; the variance ``|Px|^2/n`` by ``2 |Px|_q / n``, q the dual norm, with ``|Px| <= r`` from the ranges. Older versions have other
    outputs after the first (refused where they are used).
    """

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """Groups are the channels, over samples and positions."""
        version = site.node.version
        if 0 < version < 14 and any(value is not None for value in site.outputs[1:]):
            return Unknown("the running statistics of BatchNormalization before version 14 have no rule")
        if 0 < version < 9 and not site.attr("spatial", 1):
            return Unknown("training mode with statistics per position (spatial=0) has no rule")
        x = xs[0] if xs[0] is not None else reals(site.shape(0))
        axes = tuple(axis for axis in range(len(x.shape)) if axis != 1)
        n = math.prod(x.shape[axis] for axis in axes)
        channel = (x.shape[1],) + (1,) * (len(x.shape) - 2)
        core = Radial(True, n, n, float(site.attr("epsilon", 1e-5)))
        scale, bias = affine_operand(xs[1], channel), affine_operand(xs[2], channel)
        return Plan(core, x, x.shape, axes, scale, bias, scale_input=1, bias_input=2)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Of the running statistics: the share that is kept; of the rest see the base class."""
        plan = self.plan(site, xs)
        if isinstance(plan, Unknown) or i < 3:
            return plan if isinstance(plan, Unknown) else super().gain(site, i, norm, xs)
        kept = Upper(abs(float(site.attr("momentum", 0.9))))
        parts = [
            Finite(kept if value is not None and k == i - 3 else ZERO, method="kept share") for k, value in enumerate(site.outputs[1:3])
        ]
        return jointly((Finite(ZERO), *parts), norm)

    def other_gains(self, site: Site, plan: Plan, norm: Norm) -> tuple[Gain, ...]:
        """From x to the running mean and the running variance."""
        share = Upper(abs(1 - float(site.attr("momentum", 0.9)))) * Upper(1 + 2.0**-50)
        n, largest = Lower(max(1, plan.core.n)), Upper(plan.spread.largest)
        variance = Upper(2) * largest / (n.sqrt() if norm == "linf" else n)
        why = "the variance of an input that is not bounded moves without a bound"
        gains = (
            Finite(share * mean_gain(plan.core.n, norm), method="mean of the batch"),
            finite_or(share * (ZERO if plan.core.is_constant else variance), why, "variance of the batch"),
        )
        return tuple(gain if value is not None else Finite(ZERO) for gain, value in zip(gains, site.outputs[1:3], strict=False))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The running statistics lie in the hull of what they mix, for a momentum in [0, 1]."""
        first, *rest = super().range(site, xs)
        plan = self.plan(site, xs)
        momentum = float(site.attr("momentum", 0.9))
        if isinstance(plan, Unknown) or not rest or not 0 <= momentum <= 1 or plan.x.size == 0:
            return (first, *rest)
        top = float(Upper(plan.spread.largest) * Upper(plan.spread.largest) / Lower(max(1, plan.core.n)))
        statistics = (mean_range(rest[0].shape, plan.x), Range(rest[0].shape, np.asarray(0.0), np.asarray(top)))
        mixed = [self._mixed(xs[3 + k], statistics[k], found.shape) for k, found in enumerate(rest[:2])]
        return (first, *mixed)

    @staticmethod
    def _mixed(running: Range | None, statistic: Range, shape: tuple[int, ...]) -> Range:
        if running is None or running.size == 0:
            return reals(shape)
        lo, hi = np.minimum(running.lo, statistic.lo), np.maximum(running.hi, statistic.hi)
        slack = 2.0**-48 * max(float(np.max(np.abs(lo))), float(np.max(np.abs(hi)))) if np.all(np.isfinite(lo) & np.isfinite(hi)) else 0.0
        return Range(shape, lo - slack, hi + slack)
