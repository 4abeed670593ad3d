"""Attention operators of ONNX Runtime as products and a softmax: projections inside, caches, grouped heads.

Meanings are those of the operator documentation of ONNX Runtime (docs/ContribOperators.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered
from lipaudit.validate.lowering.fused import linear, rotated

__all__ = ["LOWERINGS"]

_LOWEST = float(np.finfo(np.float32).min)


def _split_heads(e: Emitter, x: str, batch: int, rows: int, heads: int) -> str:
    """``[batch, rows, heads * d]`` to ``[batch, heads, rows, d]``."""
    return e.add("Transpose", e.reshape(x, batch, rows, heads, -1), perm=(0, 2, 1, 3))


def _merged(e: Emitter, x: str, batch: int, rows: int) -> str:
    return e.reshape(e.add("Transpose", x, perm=(0, 2, 1, 3)), batch, rows, -1)


def _repeated(e: Emitter, x: str, shape: tuple[int, ...], times: int) -> str:
    """Each head of ``x`` (``shape`` = [batch, heads, rows, d]) ``times`` times in a row."""
    if times == 1:
        return x
    batch, heads, rows, d = shape
    spread = e.concat([e.reshape(x, batch, heads, 1, rows, d)] * times, 2)
    return e.reshape(spread, batch, heads * times, rows, d)


def _causal(rows: int, past: int, window: int = -1) -> np.ndarray:
    """True where query ``i`` (``past`` keys stand before the first) may not see key ``j``."""
    distance = np.arange(rows)[:, None] + past - np.arange(rows + past)[None, :]
    return (distance < 0) | ((distance >= window) if window > 0 else False)


def _core(e: Emitter, q: str, k: str, v: str, scale: float, biases: Sequence[str], softcap: float = 0.0) -> str:
    """Softmax(q k' scale + biases) v on ``[batch, heads, rows, d]``."""
    scores = e.add("MatMul", e.add("Mul", q, e.floats(scale)), e.add("Transpose", k, perm=(0, 1, 3, 2)))
    if softcap:
        scores = e.add("Mul", e.add("Tanh", e.add("Mul", scores, e.floats(1 / softcap))), e.floats(softcap))
    for bias in biases:
        scores = e.add("Add", scores, bias)
    return e.add("MatMul", e.add("Softmax", scores, axis=3 if e.opset < 13 else -1), v)


def _padding(e: Emitter, site: Site, i: int, lowest: float) -> list[str]:
    """Input ``i``, 1 for keys that count and 0 for others, as a bias of the scores."""
    if not site.has(i):
        return []
    shape = site.shape(i)
    if len(shape) not in {2, 3}:
        raise NotLowered(f"{site.node.op} with a mask of rank {len(shape)}")
    counts = e.add("Cast", site.node.inputs[i], to=e.float_type)
    bias = e.add("Mul", e.add("Sub", e.floats(1.0), counts), e.floats(lowest))
    return [e.reshape(bias, shape[0], 1, *((1, shape[1]) if len(shape) == 2 else shape[1:]))]


def _packed(e: Emitter, site: Site) -> Sequence[str]:
    """``Attention``: x, weights [in, q + k + v], bias, mask, past [2, batch, heads, rows, d], bias of the scores, past length."""
    if site.attr("do_rotary", 0) or site.has(6) or site.attr("past_present_share_buffer", 0):
        raise NotLowered("Attention with rotation inside or a shared buffer")
    names = site.node.inputs
    return _projected(e, site, linear(e, names[0], names[1], names[2] if site.has(2) else ""), 3, 4, 5)


def _quantised(e: Emitter, site: Site) -> Sequence[str]:
    """``QAttention``: x, weights, bias, s_x, s_W, mask, z_x, z_W, past; the same on real values."""
    if site.attr("do_rotary", 0) or site.attr("past_present_share_buffer", 0):
        raise NotLowered("QAttention with rotation inside or a shared buffer")
    stored = [site.constant(i) for i in (1, 3, 4)]
    zeros = [site.constant(i) for i in (6, 7)]
    if any(c is None for c in stored) or any(c is None and site.has(i) for c, i in zip(zeros, (6, 7), strict=True)):
        raise NotLowered("QAttention with computed weights, scales or zero points")
    weight, _, scale = (constant.float64() for constant in stored if constant is not None)
    real = (weight - (0.0 if zeros[1] is None else zeros[1].float64())) * scale
    names = site.node.inputs
    x = e.add("DequantizeLinear", names[0], names[3], *([names[6]] if site.has(6) else []))
    return _projected(e, site, linear(e, x, e.floats(real), names[2] if site.has(2) else ""), 5, 8, len(names))


def _projected(e: Emitter, site: Site, projections: str, mask: int, cache: int, bias: int) -> Sequence[str]:
    """Attention among the parts of ``projections`` [batch, rows, q + k + v]; the mask, the past and a bias are those inputs."""
    names, heads = site.node.inputs, int(site.attr("num_heads"))
    batch, rows, _ = site.shape(0)
    total = site.shape(1)[1]
    sizes = [int(size) for size in site.attr("qkv_hidden_sizes") or (total // 3,) * 3]
    parts = e.split(projections, 2, sizes)
    q, k, v = (_split_heads(e, part, batch, rows, heads) for part in parts)
    past = 0
    if site.has(cache):
        past = site.shape(cache)[3]
        old = [e.reshape(half, *site.shape(cache)[1:]) for half in e.split(names[cache], 0, [1, 1])]
        k, v = (e.concat([before, now], 2) for before, now in zip(old, (k, v), strict=True))
    lowest = float(site.attr("mask_filter_value", -10000.0))
    biases = _padding(e, site, mask, lowest)
    if site.attr("unidirectional", 0):
        biases.append(e.floats(np.where(_causal(rows, past), lowest, 0.0)))
    if site.has(bias):
        biases.append(names[bias])
    y = _core(e, q, k, v, float(site.attr("scale") or 0.0) or 1 / math.sqrt(sizes[0] // heads), biases)
    outputs = [_merged(e, y, batch, rows)]
    if len(site.node.outputs) > 1:
        shape = (1, batch, heads, past + rows, sizes[1] // heads)
        outputs.append(e.concat([e.reshape(part, *shape) for part in (k, v)], 0))
    return outputs


def _multi_head(e: Emitter, site: Site) -> Sequence[str]:
    """``MultiHeadAttention``: query, key, value [batch, rows, heads * d], one bias for the three, mask, bias of the scores, past."""
    names, heads = site.node.inputs, int(site.attr("num_heads"))
    if any(site.has(i) for i in range(8, len(names))) or not (site.has(1) and site.has(2)):
        raise NotLowered("MultiHeadAttention with packed operands or past lengths")
    shapes = [site.shape(i) for i in range(3)]
    if any(len(shape) != 3 for shape in shapes):
        raise NotLowered("MultiHeadAttention with operands of rank 4 or 5")
    batch, rows, width = shapes[0]
    operands = list(names[:3])
    if site.has(3):
        bias = e.split(names[3], 0, [width, shapes[1][2], shapes[2][2]])
        operands = [e.add("Add", x, b) for x, b in zip(operands, bias, strict=True)]
    q, k, v = (_split_heads(e, x, batch, shape[1], heads) for x, shape in zip(operands, shapes, strict=True))
    past = 0
    if site.has(6) and site.has(7):
        past = site.shape(6)[2]
        k, v = e.concat([names[6], k], 2), e.concat([names[7], v], 2)
    lowest = float(site.attr("mask_filter_value", -10000.0))
    biases = _padding(e, site, 4, lowest)
    if site.attr("unidirectional", 0):
        biases.append(e.floats(np.where(_causal(rows, past), lowest, 0.0)))
    if site.has(5):
        biases.append(names[5])
    y = _core(e, q, k, v, float(site.attr("scale") or 0.0) or 1 / math.sqrt(width // heads), biases)
    return [_merged(e, y, batch, rows), k, v][: len(site.node.outputs)]


def _grouped(e: Emitter, site: Site) -> Sequence[str]:
    """``GroupQueryAttention``: always causal; query, key, value, past, lengths, tables of the rotation.

    The lengths of the keys are stored numbers, or those of full sequences: other values are another function.
    """
    names = site.node.inputs
    heads, groups = int(site.attr("num_heads")), int(site.attr("kv_num_heads"))
    if any(site.has(i) for i in range(9, len(names))) or not (site.has(1) and site.has(2)) or site.attr("smooth_softmax", 0):
        raise NotLowered("GroupQueryAttention with packed operands, positions, biases or sinks")
    batch, rows, width = site.shape(0)
    d = width // heads
    past = site.shape(3)[2] if site.has(3) else 0
    lengths = site.constant(5)
    if lengths is None or not np.all(np.asarray(lengths.array()) == past + rows - 1):
        raise NotLowered("GroupQueryAttention with computed or partial lengths")
    q = _split_heads(e, names[0], batch, rows, heads)
    k, v = (_split_heads(e, name, batch, rows, groups) for name in names[1:3])
    if site.attr("do_rotary", 0):
        half = site.shape(7)[1]
        at = e.constant(np.arange(past, past + rows, dtype=np.int64))
        cos, sin = (e.reshape(e.add("Gather", names[i], at, axis=0), 1, 1, rows, half) for i in (7, 8))
        turned = bool(site.attr("rotary_interleaved", 0))
        q = rotated(e, q, (batch, heads, rows, d), half, cos, sin, interleaved=turned)
        k = rotated(e, k, (batch, groups, rows, d), half, cos, sin, interleaved=turned)
    if past:
        k, v = e.concat([names[3], k], 2), e.concat([names[4], v], 2)
    shape = (batch, groups, past + rows, d)
    wide_k, wide_v = (_repeated(e, x, shape, heads // groups) for x in (k, v))
    hidden = e.floats(np.where(_causal(rows, past, int(site.attr("local_window_size", -1))), _LOWEST, 0.0))
    y = _core(e, q, wide_k, wide_v, float(site.attr("scale") or 0.0) or 1 / math.sqrt(d), [hidden], float(site.attr("softcap", 0.0) or 0.0))
    return [_merged(e, y, batch, rows), k, v][: len(site.node.outputs)]


LOWERINGS: Mapping[str, Lowering] = {
    "com.microsoft::Attention": _packed,
    "com.microsoft::GroupQueryAttention": _grouped,
    "com.microsoft::MultiHeadAttention": _multi_head,
    "com.microsoft::QAttention": _quantised,
}
