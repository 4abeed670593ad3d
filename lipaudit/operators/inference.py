"""Dropout: the identity in inference, no function at all in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import ONE, ZERO, Norm
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.flow import Flow, Row
from lipaudit.operators.range import Range, reals

__all__ = ["Dropout"]

_RANDOM = "Dropout in training mode is random: not a function"


class Dropout(Rule):
    """Output 0 is the input, output 1 (the mask) is all true.

    Training: before opset 7 unless ``is_test`` is set (its default is 0); never in 7 to 11; from 12 if input 2 is true
    and the ratio (input 1) may be other than 0.
    """

    def _trains(self, site: Site) -> str | None:
        """Why this is not the identity, or None."""
        version = site.node.version
        if 0 < version < 7:
            return None if site.attr("is_test", 0) else _RANDOM + " (is_test is 0)"
        if version < 12 or not site.has(2):
            return None
        mode = site.constant(2)
        if mode is None:
            return "whether Dropout trains is not known before the model runs"
        if not np.any(mode.array()):
            return None
        ratio = site.constant(1)
        return None if ratio is not None and not np.any(ratio.array()) else _RANDOM

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Of the input; in training anything."""
        x = xs[0]
        trains = self._trains(site) is not None
        first = reals(site.out_shape()) if trains or x is None else x
        mask = Range(site.shape(0), np.asarray(0.0 if trains else 1.0), np.asarray(1.0), integral=True)
        return (first, mask)[: len(site.outputs)]

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """1 in the data; the ratio does not matter in inference."""
        reason = self._trains(site)
        if reason is not None:
            return Unknown(reason)
        return Finite(ZERO if i else ONE, method="identity in inference")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Parts survive; the mask does not move."""
        flow, gain = flows[0], gains[0]
        moved = next(found for found in flows if found is not None)
        still = Flow((Row(tuple(ZERO for _ in moved.rows[0].gains)),))
        if self._trains(site) is not None:
            broken = [scaled(site, f, g, norm) for f, g in zip(flows, gains, strict=True) if f is not None and g is not None]
            return tuple(broken[0] for _ in site.outputs)
        first = still if flow is None or gain is None else scaled(site, flow, gain, norm, keep_parts=True)
        return (first, still)[: len(site.outputs)]
