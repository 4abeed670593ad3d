"""Comparisons, logic and IsNaN / IsInf: results are 0 and 1, so they jump, and only where the ranges leave them open.

NaN compares as false. Where an operand may be NaN for some inputs (its flow carries an "unknown"), no range decides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Norm, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site
from lipaudit.operators.broadcast import add_flows, contributions, copy_factor, operand
from lipaudit.operators.flow import Flow, Row, may_be_undefined, merged
from lipaudit.operators.range import Range, extent

__all__ = ["Comparison", "Logical", "NotFinite"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class _Truth(Rule):
    """A result of zeros and ones: per element certainly true, certainly false, or open."""

    @abstractmethod
    def decided(self, site: Site, xs: Sequence[Range | None]) -> tuple[Mask, Mask]:
        """Where the result is certainly true, and where certainly false (broadcastable to the output)."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """1, 0, or [0, 1]."""
        true, false = self.decided(site, xs)
        return (Range(site.out_shape(), np.where(true, 1.0, 0.0), np.where(false, 0.0, 1.0), integral=True),)

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """At most the whole of it changes, whatever the operands do: ``(0, n**(1/p))``."""
        moving = [flow for flow in flows if flow is not None]
        still = tuple(ZERO for _ in moving[0].rows[0].gains)
        reasons = merged([flow.reasons for flow in moving])
        size = int(np.prod(site.out_shape(), dtype=np.int64))
        everything = Row(still, repeat_factor(size, norm))
        if any(may_be_undefined(flow) for flow in moving):
            return (Flow((everything,), reasons=reasons),)
        own = max((gain.offset for gain in gains if isinstance(gain, Finite)), default=ZERO)
        return (self._moved(site, flows, gains, norm, Row(still, own), everything),)

    def _moved(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm, own: Row, everything: Row) -> Flow:
        """Flow where no operand may be NaN: by default ``own``, the offset of the open elements, once for all operands."""
        return Flow((own,))


def _offset(site: Site, true: Mask, false: Mask, norm: Norm) -> Gain:
    """(0, 1 per open element)."""
    return Finite(ZERO, extent(np.where(true | false, 0.0, 1.0), site.out_shape(), norm), "open comparisons")


class Comparison(_Truth):
    """Equal, Greater, Less, GreaterOrEqual, LessOrEqual: (0, 1 for each element that the ranges leave open)."""

    def decided(self, site: Site, xs: Sequence[Range | None]) -> tuple[Mask, Mask]:
        """By the ends of both operands; equal names are one variable."""
        x, y = xs[0], xs[1]
        op = site.node.op
        if site.node.inputs[0] == site.node.inputs[1]:
            same = np.asarray(op in ("Equal", "GreaterOrEqual", "LessOrEqual"))
            return same, ~same
        if x is None or y is None:
            return np.asarray(False), np.asarray(False)
        a, b = operand(site, 0, x), operand(site, 1, y)
        below, above = a[1] < b[0], a[0] > b[1]
        at_most, at_least = a[1] <= b[0], a[0] >= b[1]
        point = (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0]) & np.isfinite(a[0])
        results = {
            "Equal": (point, below | above),
            "Greater": (above, at_most),
            "Less": (below, at_least),
            "GreaterOrEqual": (at_least, below),
            "LessOrEqual": (at_most, above),
        }
        return results[op]

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """(0, 1 per open element), the same for both operands."""
        return _offset(site, *self.decided(site, xs), norm)


class Logical(_Truth):
    """And, Or, Xor of zeros and ones: each is 1-Lipschitz in each operand, so the operands' own offsets are carried."""

    def decided(self, site: Site, xs: Sequence[Range | None]) -> tuple[Mask, Mask]:
        """By the operands that are decided."""
        x, y = xs[0], xs[1]
        if x is None or y is None:
            return np.asarray(False), np.asarray(False)
        a, b = operand(site, 0, x), operand(site, 1, y)
        op = site.node.op
        if op == "And":
            return (a[0] >= 1) & (b[0] >= 1), (a[1] <= 0) | (b[1] <= 0)
        if op == "Or":
            return (a[0] >= 1) | (b[0] >= 1), (a[1] <= 0) & (b[1] <= 0)
        known = ((a[0] >= 1) | (a[1] <= 0)) & ((b[0] >= 1) | (b[1] <= 0))
        unequal = (a[0] >= 1) != (b[0] >= 1)
        return known & unequal, known & ~unequal

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """1 times the copies that broadcasting makes; 0 where nothing is open."""
        true, false = self.decided(site, xs)
        if bool(np.all(true | false)):
            return Finite(ZERO, method="decided by the ranges")
        return Finite(copy_factor(site, i, norm), method="1-Lipschitz on zeros and ones")

    def _moved(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm, own: Row, everything: Row) -> Flow:
        flow = add_flows(contributions(site, flows, gains, norm), norm)
        if all(gain.is_zero for row in flow.rows for gain in row.gains) and everything.offset < flow.offset(norm):
            return flow.single(everything)
        finite = all(gain.is_finite for row in flow.rows for gain in row.gains) and flow.offset(norm).is_finite
        return flow if finite else flow.single(everything)


class NotFinite(_Truth):
    """IsNaN, IsInf: false on the real numbers.

    The range is [0, 1] all the same: a value that does not depend on the source may be NaN or infinite (a mask, the softmax of a
    row that is masked everywhere), and so may one whose own gain is not known; only then can the result move.
    """

    def decided(self, site: Site, xs: Sequence[Range | None]) -> tuple[Mask, Mask]:
        """Nothing: see the class."""
        return np.asarray(False), np.asarray(False)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """A real value does not change its kind."""
        return Finite(ZERO, method="false on the real numbers")

    def _moved(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm, own: Row, everything: Row) -> Flow:
        finite = all(gain.is_finite for flow in flows if flow is not None for row in flow.rows for gain in row.gains)
        return Flow((own if finite else everything,))
