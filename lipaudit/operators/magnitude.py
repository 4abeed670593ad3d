"""The recognised length ``m = sqrt(x_1^2 + .. + x_k^2 + e)``, element by element, over k values or k disjoint slices of one value.

``m`` is the Euclidean length of ``(x_1, .., x_k, sqrt e)``, so two of them differ by at most ``|(dx_1, .., dx_k)|`` (reverse triangle
inequality), on all reals and for every ``e >= 0``; attained along x. Over all elements: in l2 ``|dm| <= sqrt(sum_i |dx_i|^2)``; in l1,
since a length is at most the sum of its parts, ``|dm| <= sum_i |dx_i|``; in linf ``|dm| <= sqrt(k) max_i |dx_i|``. A flow adds what
independent sources do, so that parts from different sources cost more than parts from one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import ONE, Norm, Upper
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.flow import Flow, flatten, total
from lipaudit.operators.range import Range, down, up

__all__ = ["Magnitude"]


class Magnitude(Rule):
    """Inputs: the parts, or one value with its slices ``begins`` of length ``count`` along ``axis``. Attribute ``epsilon`` >= 0."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Roots of the sums of squares of the intervals."""
        shape = site.out_shape()
        low, high = np.zeros(shape), np.zeros(shape)
        epsilon = float(site.attr("epsilon", 0.0))
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for x in xs:
            if x is None:
                parts.append((np.array(-np.inf), np.array(np.inf)))
                continue
            lo, hi = (np.broadcast_to(end, x.shape) for end in (x.lo, x.hi))
            axis, count = int(site.attr("axis", -1)), int(site.attr("count", 0))
            begins = tuple(site.attr("begins", ()) or ())
            for begin in begins or (0,):
                at = tuple(slice(begin, begin + count) if begins and k == axis else slice(None) for k in range(len(x.shape)))
                parts.append((lo[at], hi[at]))
        with np.errstate(over="ignore"):
            for lo, hi in parts:
                least = np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(np.abs(lo), np.abs(hi)))
                low = low + down(least * least)
                high = high + up(np.maximum(np.abs(lo), np.abs(hi)) ** 2)
            slack = (len(parts) + 4) * 2.0**-52
            low = np.maximum(0.0, np.sqrt(np.maximum(low + epsilon, 0.0)) * (1 - slack) - 1e-150)
            high = np.sqrt(high + epsilon) * (1 + slack) + 1e-150
        return (Range(shape, low, high),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """1 for each part by itself; for the value of which all parts are slices ``sqrt(k)`` in linf."""
        parts = len(tuple(site.attr("begins", ()) or ()))
        if i >= len(site.inputs):
            return Unknown("there is no such part")
        return Finite(Upper(parts).sqrt() if norm == "linf" and parts else ONE, method="length of a vector")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """The parts side by side: ``sqrt(sum |dx_i|^2)`` in l2 (Minkowski, column by column)."""
        moved = [flatten(flow, norm) for flow in flows if flow is not None]
        if len(moved) < 2 or len(site.inputs) != len(flows):
            return super().flow(site, flows, gains, norm)
        rows = tuple(row for flow in moved for row in flow.rows)
        beside = flatten(Flow(rows, reasons=tuple(dict.fromkeys(reason for flow in moved for reason in flow.reasons))), norm)
        found = beside.scaled(Upper(len(moved)).sqrt() if norm == "linf" else ONE)
        apart = total(moved)
        return (apart if apart.gain(norm) < found.gain(norm) and apart.offset(norm) <= found.offset(norm) else found,)
