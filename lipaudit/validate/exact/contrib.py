"""Operators of the com.microsoft domain that have a simple meaning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lipaudit.validate.exact.call import Array, Call, Operator
from lipaudit.validate.exact.elementwise import gelu_erf, gelu_tanh, sigmoid
from lipaudit.validate.exact.normalization import standardise
from lipaudit.validate.exact.recurrent import dynamic_quantize_lstm

__all__ = ["OPERATORS"]


def _with_bias(call: Call) -> Array:
    bias = call.optional(1)
    return call.x() if bias is None else call.x() + bias


def _quick_gelu(call: Call) -> Array:
    x = call.x()
    return x * sigmoid(call.site.attr("alpha", 1.702) * x)


def _fused_matmul(call: Call) -> Array:
    a, b = call.x(0), call.x(1)
    a = a.swapaxes(-1, -2) if call.site.attr("transA", 0) and a.ndim > 1 else a
    b = b.swapaxes(-1, -2) if call.site.attr("transB", 0) and b.ndim > 1 else b
    return call.site.attr("alpha", 1.0) * np.matmul(a, b)


def _skip_layer(call: Call, *, centre: bool) -> tuple[Array, ...]:
    total = call.x(0) + call.x(1)
    extra = call.optional(4 if centre else 3)
    total = total if extra is None else total + extra
    unit, mean, inverse = standardise(total, (total.ndim - 1,), call.site.attr("epsilon", 1e-12 if centre else 1e-6), centre=centre)
    beta = call.optional(3) if centre else None
    y = unit * call.x(2) + (0.0 if beta is None else beta)
    return (y, mean, inverse, total)[: max(1, len(call.site.node.outputs))]


OPERATORS: Mapping[str, Operator] = {
    "BiasGelu": lambda call: gelu_erf(_with_bias(call)),
    "DynamicQuantizeLSTM": dynamic_quantize_lstm,
    "FastGelu": lambda call: gelu_tanh(_with_bias(call)),
    "FusedMatMul": _fused_matmul,
    "Gelu": lambda call: gelu_erf(call.x()),
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": lambda call: _skip_layer(call, centre=True),
    "SkipSimplifiedLayerNormalization": lambda call: _skip_layer(call, centre=False),
}
