"""Quantised operators as a real operator between DequantizeLinear and QuantizeLinear: y = Q(f(D(x_1), ..)).

The real operator is the one that the documentation of the quantised one names (QLinearConv and QLinearMatMul in the ONNX specification,
the others in ONNX Runtime's docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS"]


def _real(e: Emitter, site: Site, at: int, axis: int = 0) -> str:
    """The real value of operand ``at``, whose scale and zero point follow it."""
    names = [name for name in site.node.inputs[at : at + 3] if name]
    constant = site.constant(at + 1)
    if constant is None:
        raise NotLowered(f"{site.node.op} with a computed scale")
    return e.add("DequantizeLinear", *names, axis=axis if e.opset >= 13 and constant.size > 1 else None)


def _quantised(e: Emitter, site: Site, y: str, at: int) -> str:
    """``y`` with the scale and zero point that are inputs ``at`` and ``at + 1``."""
    return e.add("QuantizeLinear", y, *[name for name in site.node.inputs[at : at + 2] if name])


_WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _window(site: Site) -> dict[str, object]:
    return {name: site.node.attrs[name] for name in _WINDOW if name in site.node.attrs}


def _conv(e: Emitter, site: Site) -> Sequence[str]:
    """x, s, z, w, s, z, s_y, z_y, bias (in steps of s_x s_w)."""
    if site.attr("channels_last", 0):
        raise NotLowered("QLinearConv on channels-last images")
    inputs = [_real(e, site, 0), _real(e, site, 3)]
    if site.has(8):
        stored = [site.constant(i) for i in (8, 1, 4)]
        if any(constant is None for constant in stored):
            raise NotLowered("QLinearConv with a computed bias")
        bias, x, w = (constant.float64() for constant in stored if constant is not None)
        inputs.append(e.floats(bias * x.reshape(-1) * w.reshape(-1)))
    return [_quantised(e, site, e.add("Conv", *inputs, **_window(site)), 6)]


def _matmul(e: Emitter, site: Site) -> Sequence[str]:
    return [_quantised(e, site, e.add("MatMul", _real(e, site, 0), _real(e, site, 3, 1)), 6)]


def _gemm(e: Emitter, site: Site) -> Sequence[str]:
    """A, s, z, B, s, z, C (in steps of s_A s_B), s_y, z_y; without the last two the result is real."""
    trans_b = int(site.attr("transB", 0))
    inputs = [_real(e, site, 0), _real(e, site, 3, 0 if trans_b else 1)]
    alpha = float(site.attr("alpha", 1.0))
    if site.has(6):
        stored = [site.constant(i) for i in (6, 1, 4)]
        if any(constant is None for constant in stored):
            raise NotLowered("QGemm with a computed bias")
        bias, a, b = (constant.float64() for constant in stored if constant is not None)
        inputs.append(e.floats(bias * a.reshape(-1) * b.reshape(-1) * alpha))
    y = e.add("Gemm", *inputs, alpha=alpha, transA=int(site.attr("transA", 0)), transB=trans_b)
    return [_quantised(e, site, y, 7) if site.has(7) else y]


def _binary(op: str) -> Lowering:
    return lambda e, site: [_quantised(e, site, e.add(op, _real(e, site, 0), _real(e, site, 3)), 6)]


def _unary(op: str, *attributes: str) -> Lowering:
    def lower(e: Emitter, site: Site) -> Sequence[str]:
        attrs = {name: site.attr(name) for name in attributes if site.attr(name) is not None}
        return [_quantised(e, site, e.add(op, _real(e, site, 0), **attrs), 3)]

    return lower


def _pool(op: str) -> Lowering:
    def lower(e: Emitter, site: Site) -> Sequence[str]:
        if site.attr("channels_last", 0):
            raise NotLowered(f"{site.node.op} on channels-last images")
        return [_quantised(e, site, e.add(op, _real(e, site, 0), **_window(site)), 3)]

    return lower


def _softmax(e: Emitter, site: Site) -> Sequence[str]:
    rank = len(site.shape(0))
    axis = int(site.attr("axis", -1)) % rank
    # The attribute `opset` says whose Softmax is meant; they agree on the last axis.
    if axis != rank - 1:
        raise NotLowered("QLinearSoftmax along another axis than the last")
    return [_quantised(e, site, e.add("Softmax", _real(e, site, 0), axis=axis), 3)]


def _concat(e: Emitter, site: Site) -> Sequence[str]:
    """s_y, z_y, then the triples."""
    parts = [_real(e, site, i) for i in range(2, len(site.node.inputs), 3)]
    return [_quantised(e, site, e.concat(parts, int(site.attr("axis"))), 0)]


def _mean(e: Emitter, site: Site) -> Sequence[str]:
    axes, keep = tuple(int(a) for a in site.attr("axes") or range(len(site.shape(0)))), int(site.attr("keepdims", 1))
    x = _real(e, site, 0)
    y = e.add("ReduceMean", x, e.ints(*axes), keepdims=keep) if e.opset >= 18 else e.add("ReduceMean", x, axes=axes, keepdims=keep)
    return [_quantised(e, site, y, 3)]


def _where(e: Emitter, site: Site) -> Sequence[str]:
    """condition, X, s, z, Y, s, z, s_y, z_y."""
    return [_quantised(e, site, e.add("Where", site.node.inputs[0], _real(e, site, 1), _real(e, site, 4)), 7)]


def _dynamic_matmul(e: Emitter, site: Site) -> Sequence[str]:
    """``DynamicQuantizeMatMul``: A, B, s_B, z_B, bias."""
    stored = [site.constant(i) for i in (1, 2)]
    zero = site.constant(3)
    if any(constant is None for constant in stored) or (zero is None and site.has(3)):
        raise NotLowered("DynamicQuantizeMatMul with a computed weight")
    weight, scale = (constant.float64() for constant in stored if constant is not None)
    real = e.floats((weight - (zero.float64() if zero is not None else 0.0)) * scale)
    q, s, z = e.several("DynamicQuantizeLinear", [site.node.inputs[0]], 3)
    y = e.add("MatMul", e.add("DequantizeLinear", q, s, z), real)
    return [e.add("Add", y, site.node.inputs[4]) if site.has(4) else y]


def _same(op: str) -> Lowering:
    """ONNX Runtime's QuantizeLinear and DequantizeLinear, which are the standard ones for 8 bits."""

    def lower(e: Emitter, site: Site) -> Sequence[str]:
        constant = site.constant(1)
        axis = int(site.attr("axis", 1)) if e.opset >= 13 and constant is not None and constant.size > 1 else None
        return [e.add(op, *[name for name in site.node.inputs if name], axis=axis)]

    return lower


def _n_bits(e: Emitter, site: Site) -> Sequence[str]:
    """``MatMulNBits``: A, packed B [N, blocks, bytes], scales, zero points; the weight is unpacked now."""
    bits, n, k, block = (int(site.attr(name)) for name in ("bits", "N", "K", "block_size"))
    packed, scales, zeros = (site.constant(i) for i in (1, 2, 3))
    if packed is None or scales is None or (zeros is None and site.has(3)) or bits not in {4, 8} or site.has(4):
        raise NotLowered("MatMulNBits with a computed weight, an index or other bits than 4 and 8")
    blocks = -(-k // block)
    codes = _unpacked(np.asarray(packed.array()).reshape(n, blocks, -1), bits)[:, :, :block].astype(np.float64)
    if zeros is None:
        middle = np.full((n, blocks, 1), 2.0 ** (bits - 1))
    elif zeros.dtype == "uint8":
        middle = _unpacked(np.asarray(zeros.array()).reshape(n, -1), bits)[:, :blocks, None].astype(np.float64)
    else:
        middle = zeros.float64().reshape(n, blocks, 1)
    real = ((codes - middle) * scales.float64().reshape(n, blocks, 1)).reshape(n, -1)[:, :k]
    y = e.add("MatMul", site.node.inputs[0], e.floats(real.T))
    return [e.add("Add", y, site.node.inputs[5]) if site.has(5) else y]


def _unpacked(codes: np.ndarray, bits: int) -> np.ndarray:
    """Nibbles of bytes along the last axis, the low one first."""
    if bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)


LOWERINGS: Mapping[str, Lowering] = {
    "ai.onnx::QLinearConv": _conv,
    "ai.onnx::QLinearMatMul": _matmul,
    "com.microsoft::DequantizeLinear": _same("DequantizeLinear"),
    "com.microsoft::DynamicQuantizeMatMul": _dynamic_matmul,
    "com.microsoft::MatMulNBits": _n_bits,
    "com.microsoft::QGemm": _gemm,
    "com.microsoft::QLinearAdd": _binary("Add"),
    "com.microsoft::QLinearAveragePool": _pool("AveragePool"),
    "com.microsoft::QLinearConcat": _concat,
    "com.microsoft::QLinearConv": _conv,
    "com.microsoft::QLinearGlobalAveragePool": _pool("GlobalAveragePool"),
    "com.microsoft::QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "com.microsoft::QLinearMul": _binary("Mul"),
    "com.microsoft::QLinearReduceMean": _mean,
    "com.microsoft::QLinearSigmoid": _unary("Sigmoid"),
    "com.microsoft::QLinearSoftmax": _softmax,
    "com.microsoft::QLinearWhere": _where,
    "com.microsoft::QuantizeLinear": _same("QuantizeLinear"),
}
