"""Operators that ONNX Runtime's optimiser fuses, as the nodes that they were fused from.

Meanings are those of the operator documentation of ONNX Runtime (docs/ContribOperators.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS", "linear"]

_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "HardSigmoid": ("alpha", "beta"), "HardSwish": (), "LeakyRelu": ("alpha",), "Relu": (), "Sigmoid": (), "Tanh": (),
}  # fmt: skip


def _activated(e: Emitter, site: Site, x: str) -> str:
    name, values = str(site.attr("activation", "")), tuple(site.attr("activation_params") or ())
    if name in {"", "Identity", "None"}:
        return x
    if name == "Clip":
        if len(values) < 2:
            raise NotLowered("Clip without its ends")
        return e.add("Min", e.add("Max", x, e.floats(values[0])), e.floats(values[1]))
    if name not in _ACTIVATIONS:
        raise NotLowered(f"activation {name}")
    return e.add(name, x, **dict(zip(_ACTIVATIONS[name], values, strict=False)))


_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _conv_attributes(site: Site) -> dict[str, object]:
    return {name: site.attr(name) for name in _WINDOW if site.attr(name) is not None}


def _conv(e: Emitter, site: Site) -> Sequence[str]:
    """Conv, plus Z, then an activation."""
    y = e.add("Conv", *[name for name in site.node.inputs[:3] if name], **_conv_attributes(site))
    if site.has(3):
        y = e.add("Add", y, site.node.inputs[3])
    return [_activated(e, site, y)]


def _channels_first(e: Emitter, x: str, rank: int) -> str:
    return e.add("Transpose", x, perm=(0, rank - 1, *range(1, rank - 1)))


def _channels_last(e: Emitter, x: str, rank: int) -> str:
    return e.add("Transpose", x, perm=(0, *range(2, rank), 1))


def _nhwc_conv(e: Emitter, site: Site) -> Sequence[str]:
    """The same on channels-last images; the weight is channels-first."""
    rank = len(site.shape(0))
    names = site.node.inputs
    y = e.add("Conv", _channels_first(e, names[0], rank), *[name for name in names[1:3] if name], **_conv_attributes(site))
    if site.has(3):
        y = e.add("Add", y, _channels_first(e, names[3], rank))
    return [_channels_last(e, _activated(e, site, y), rank)]


def _gemm(e: Emitter, site: Site) -> Sequence[str]:
    attrs = {name: site.attr(name) for name in ("alpha", "beta", "transA", "transB") if site.attr(name) is not None}
    return [_activated(e, site, e.add("Gemm", *[name for name in site.node.inputs if name], **attrs))]


def _matmul(e: Emitter, site: Site) -> Sequence[str]:
    """alpha times the product of operands whose last two axes (or whose first and last but one) are swapped."""
    if site.attr("transBatchA", 0) or site.attr("transBatchB", 0):
        raise NotLowered("FusedMatMul with transposed batches")
    operands: list[str] = []
    for i, flag in enumerate(("transA", "transB")):
        name, rank = site.node.inputs[i], len(site.shape(i))
        turn = bool(site.attr(flag, 0)) and rank > 1
        operands.append(e.add("Transpose", name, perm=(*range(rank - 2), rank - 1, rank - 2)) if turn else name)
    y = e.add("MatMul", *operands)
    alpha = float(site.attr("alpha", 1.0))
    return [y if alpha == 1.0 else e.add("Mul", y, e.floats(alpha))]


def linear(e: Emitter, x: str, weight: str, bias: str) -> str:
    """``x @ weight + bias``; "" is no bias."""
    y = e.add("MatMul", x, weight)
    return e.add("Add", y, bias) if bias else y


def _gelu(e: Emitter, x: str) -> str:
    """x (1 + erf(x / sqrt 2)) / 2."""
    inner = e.add("Erf", e.add("Mul", x, e.floats(math.sqrt(0.5))))
    return e.add("Mul", x, e.add("Add", e.add("Mul", inner, e.floats(0.5)), e.floats(0.5)))


def _fast_gelu(e: Emitter, x: str) -> str:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    k = math.sqrt(2 / math.pi)
    square = e.add("Mul", x, x)
    inner = e.add("Mul", x, e.add("Add", e.add("Mul", square, e.floats(0.044715 * k)), e.floats(k)))
    return e.add("Mul", x, e.add("Add", e.add("Mul", e.add("Tanh", inner), e.floats(0.5)), e.floats(0.5)))


def _biased(e: Emitter, site: Site) -> str:
    x = site.node.inputs[0]
    return e.add("Add", x, site.node.inputs[1]) if site.has(1) else x


def _quick_gelu(e: Emitter, site: Site) -> Sequence[str]:
    x = site.node.inputs[0]
    return [e.add("Mul", x, e.add("Sigmoid", e.add("Mul", x, e.floats(float(site.attr("alpha", 1.702))))))]


def _normalised(e: Emitter, x: str, rank: int, epsilon: float, *, centre: bool) -> tuple[str, str, str]:
    """Standardised rows, their means and reciprocal roots."""
    mean = e.mean(x, rank - 1)
    moved = e.add("Sub", x, mean) if centre else x
    variance = e.mean(e.add("Mul", moved, moved), rank - 1)
    inverse = e.add("Reciprocal", e.add("Sqrt", e.add("Add", variance, e.floats(epsilon))))
    return e.add("Mul", moved, inverse), mean, inverse


def _skip(centre: bool) -> Lowering:
    def lower(e: Emitter, site: Site) -> Sequence[str]:
        """Inputs x, skip, gamma, (beta,) bias; outputs y, mean, reciprocal root, the sum that was normalised."""
        names = site.node.inputs
        total = e.add("Add", names[0], names[1])
        at = 4 if centre else 3
        if site.has(at):
            total = e.add("Add", total, names[at])
        epsilon = float(site.attr("epsilon", 1e-12 if centre else 1e-6))
        unit, mean, inverse = _normalised(e, total, len(site.shape(0)), epsilon, centre=centre)
        y = e.add("Mul", unit, names[2])
        if centre and site.has(3):
            y = e.add("Add", y, names[3])
        return [y, mean, inverse, total][: len(site.node.outputs)]

    return lower


def _simplified(e: Emitter, site: Site) -> Sequence[str]:
    """ONNX Runtime's RMSNormalization, which it registers in the standard domain; outputs y and the reciprocal root."""
    rank = len(site.shape(0))
    if int(site.attr("axis", -1)) % rank != rank - 1:
        raise NotLowered("SimplifiedLayerNormalization over several axes")
    unit, _, inverse = _normalised(e, site.node.inputs[0], rank, float(site.attr("epsilon", 1e-5)), centre=False)
    return [e.add("Mul", unit, site.node.inputs[1]), inverse][: len(site.node.outputs)]


def _rotary(e: Emitter, site: Site) -> Sequence[str]:
    """``com.microsoft::RotaryEmbedding``: inputs x, positions, tables of cosines and sines [positions, half]."""
    if site.attr("is_packed_batching", 0) or float(site.attr("scale", 1.0) or 1.0) != 1.0:
        raise NotLowered("RotaryEmbedding with packed batches or a scale")
    shape, table = site.shape(0), site.shape(2)
    interleaved, heads = bool(site.attr("interleaved", 0)), int(site.attr("num_heads", 0) or 0)
    half = table[1]
    if len(shape) == 3:
        heads = heads or shape[2] // (2 * half)
        x = e.add("Transpose", e.reshape(site.node.inputs[0], shape[0], shape[1], heads, -1), perm=(0, 2, 1, 3))
        batch, length, width = shape[0], shape[1], shape[2] // heads
    else:
        x = site.node.inputs[0]
        batch, heads, length, width = shape
    positions = site.node.inputs[1]
    if math.prod(site.shape(1)) == 1:
        positions = e.add("Add", e.reshape(positions, 1, 1), e.constant(np.arange(length, dtype=np.int64)[None]))
        batch_of = 1
    else:
        batch_of = batch
    cos, sin = (e.reshape(e.add("Gather", site.node.inputs[i], positions, axis=0), batch_of, 1, length, half) for i in (2, 3))
    y = rotated(e, x, (batch, heads, length, width), half, cos, sin, interleaved=interleaved)
    return [y if len(shape) == 4 else e.reshape(e.add("Transpose", y, perm=(0, 2, 1, 3)), *shape)]


def rotated(e: Emitter, x: str, shape: tuple[int, ...], half: int, cos: str, sin: str, *, interleaved: bool) -> str:
    """Pairs of the first ``2 * half`` features of ``x`` (``shape`` = [batch, heads, rows, width]) turned by the tables, which broadcast."""
    width = shape[3]
    turned, *rest = e.split(x, 3, [2 * half, width - 2 * half]) if width > 2 * half else [x]
    if interleaved:
        pairs = e.reshape(turned, *shape[:3], half, 2)
        a, b = (e.reshape(part, *shape[:3], half) for part in e.split(pairs, 4, [1, 1]))
    else:
        a, b = e.split(turned, 3, [half, half])
    first = e.add("Sub", e.add("Mul", a, cos), e.add("Mul", b, sin))
    second = e.add("Add", e.add("Mul", a, sin), e.add("Mul", b, cos))
    if interleaved:
        columns = [e.reshape(part, *shape[:3], half, 1) for part in (first, second)]
        y = e.reshape(e.concat(columns, 4), *shape[:3], 2 * half)
    else:
        y = e.concat([first, second], 3)
    return e.concat([y, *rest], 3)


LOWERINGS: Mapping[str, Lowering] = {
    "ai.onnx::SimplifiedLayerNormalization": _simplified,
    "com.microsoft::BiasGelu": lambda e, site: [_gelu(e, _biased(e, site))],
    "com.microsoft::FastGelu": lambda e, site: [_fast_gelu(e, _biased(e, site))],
    "com.microsoft::FusedConv": _conv,
    "com.microsoft::FusedGemm": _gemm,
    "com.microsoft::FusedMatMul": _matmul,
    "com.microsoft::Gelu": lambda e, site: [_gelu(e, site.node.inputs[0])],
    "com.microsoft::NhwcConv": _nhwc_conv,
    "com.microsoft::NhwcFusedConv": _nhwc_conv,
    "com.microsoft::QuickGelu": _quick_gelu,
    "com.microsoft::RotaryEmbedding": _rotary,
    "com.microsoft::SkipLayerNormalization": _skip(True),
    "com.microsoft::SkipSimplifiedLayerNormalization": _skip(False),
    "com.microsoft::TransposeMatMul": _matmul,
}
