"""Integer arithmetic on values that were quantised on the fly: rounding is flat almost everywhere, so the slope is that of the real map.

Like the straight-through slope of QuantizeLinear this is a direction to search in, not a derivative; pairs are confirmed by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.adjoints.contraction import correlate, correlate_adjoint
from lipaudit.validate.exact.windows import convolution_window

__all__ = ["RULES"]


def _dynamic(b: Builder, site: Site) -> Local:
    """y = round(x / scale) + zero point: the movement of scale and zero point is left out."""

    def over_scale(t: Maybe) -> Maybe:
        return None if t is None else b.node("Div", t, b.primal(site.node.outputs[1]))

    return Local(lambda ts: [over_scale(ts[0]), None, None], lambda cs: [over_scale(cs[0])])


def _matmul_integer(b: Builder, site: Site) -> Local:
    """(A - a0) (B - b0) for a stored B."""
    stored, zero = site.constant(1), site.constant(3)
    if stored is None or (site.has(3) and zero is None):
        raise NoDerivative("MatMulInteger with a computed second factor")
    shape = site.shape(0)
    if len(stored.shape) != 2 or len(shape) < 2:
        raise NoDerivative("MatMulInteger with batches of weights")
    weight = stored.float64() - (0.0 if zero is None else zero.float64())
    # Constants of equal content are stored once, so both directions may build them.

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.node("MatMul", ts[0], b.constant(weight))]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is not None:
            results[0] = b.node("MatMul", cs[0], b.constant(np.array(weight.T, order="C")))
        return results

    return Local(tangent, adjoint)


def _conv_integer(b: Builder, site: Site) -> Local:
    """Conv of x - x0 with the stored weight w - w0 (w0 of the whole tensor, or of each output channel)."""
    stored, zero = site.constant(1), site.constant(3)
    if stored is None or (site.has(3) and zero is None):
        raise NoDerivative("ConvInteger with a computed weight")
    shape, out = site.shape(0), site.out_shape()
    base = np.zeros(()) if zero is None else zero.float64()
    weight = stored.float64() - (base.reshape(-1, *(1,) * (len(shape) - 1)) if base.size > 1 else base.reshape(()))
    window, group = convolution_window(site, shape[2:], site.shape(1)[2:]), int(site.attr("group", 1))

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else correlate(b, ts[0], b.constant(weight), window, group, shape, out[1])]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is not None:
            results[0] = correlate_adjoint(b, cs[0], b.constant(weight), window, group, out, shape[1])
        return results

    return Local(tangent, adjoint)


RULES: Mapping[str, Rule] = {"ConvInteger": _conv_integer, "DynamicQuantizeLinear": _dynamic, "MatMulInteger": _matmul_integer}
