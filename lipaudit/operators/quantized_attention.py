"""QAttention: ``com.microsoft::Attention`` on dequantised inputs and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lipaudit.bounds.scalar import Norm, Upper
from lipaudit.graph.ir import Constant
from lipaudit.operators import interval
from lipaudit.operators.attention_contrib import PackedAttention
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.outputs import PerOutput, SeveralOutputs
from lipaudit.operators.parts import Part, matrix
from lipaudit.operators.range import Range, reals

__all__ = ["QAttention"]


class QAttention(SeveralOutputs):
    """Inputs x, W, bias, s_x, s_W, mask, z_x, z_W, past: the real rule for ``s_x (x - z_x)``, ``s_W (W - z_W)``, times s_x.

    Integers are reals here; the output is real, so nothing is rounded again.
    """

    def _plain(self) -> Rule:
        return PackedAttention("com.microsoft::Attention", {})

    def _parts(self, site: Site, xs: Sequence[Range | None]) -> tuple[Site, list[Range | None], float] | Unknown:
        """Site and ranges of the real operator, and the scale of x."""

        def stored(i: int, default: float | None = None) -> np.ndarray | None:
            constant = site.constant(i)
            if constant is not None:
                return constant.float64()
            return None if site.has(i) or default is None else np.asarray(default)

        scale, weight_scale, zero, weight_zero, weight = stored(3), stored(4), stored(6, 0.0), stored(7, 0.0), stored(1)
        x = xs[0]
        if scale is None or weight_scale is None or zero is None or weight_zero is None or weight is None or x is None:
            return Unknown("weights, scales and zero points must be stored constants")
        if scale.size != 1 or zero.size != 1 or not float(scale.ravel()[0]) > 0:
            return Unknown("the scale of the input is not one positive number")
        s, z = (np.asarray(float(array.ravel()[0])) for array in (scale, zero))
        lo, hi = interval.multiply(interval.add((x.lo, x.hi), (-z, -z)), (s, s))
        real = (weight - weight_zero) * weight_scale  # 9 bits times 24: exact
        slots = (0, 1, 2, 5, 8)
        names = tuple(site.node.inputs[i] if i < len(site.inputs) else "" for i in slots)
        values = tuple(site.inputs[i] if i < len(site.inputs) else None for i in slots)
        constants = tuple(Constant.of(names[1], real) if i == 1 else site.constant(i) for i in slots)
        moving = tuple(site.moving[i] if i < len(site.inputs) else False for i in slots)
        node = site.node.renamed(op="Attention", inputs=names)
        ranges = [Range(x.shape, lo, hi), None, *(xs[i] if i < len(xs) else None for i in slots[2:])]
        return replace(site, node=node, inputs=values, constants=constants, moving=moving), ranges, float(s)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The dequantised projections to Q, K and V side by side."""
        stored = [site.constant(i) for i in (1, 4, 7)]
        if stored[0] is None or stored[1] is None or (site.has(7) and stored[2] is None):
            return ()
        zero = 0.0 if stored[2] is None else stored[2].float64()
        return (matrix(stored[0].name, stored[0].shape, (stored[0].float64() - zero) * stored[1].float64()),)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Of the real operator."""
        parts = self._parts(site, xs)
        if isinstance(parts, Unknown):
            return tuple(reals(value.shape if value is not None and value.shape is not None else ()) for value in site.outputs)
        return self._plain().range(parts[0], parts[1])

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Of the real operator, times the scale of x."""
        parts = self._parts(site, xs)
        if isinstance(parts, Unknown):
            return parts
        if i not in (0, 8):
            return Unknown("moving weights, scales, zero points or masks have no rule")
        own, ranges, scale = parts
        found = self._plain().gain(own, 0 if i == 0 else 4, norm, ranges)
        if i or not isinstance(found, Finite):
            return found
        factor = Upper(scale)
        if isinstance(found, PerOutput):
            outputs = tuple(replace(each, slope=each.slope * factor, offset=each.offset * factor) for each in found.outputs)
            return replace(found, slope=found.slope * factor, offset=found.offset * factor, outputs=outputs)
        return replace(found, slope=found.slope * factor)
