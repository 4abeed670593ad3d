"""Normalizations in inference form, and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lipaudit.validate.exact.call import Array, Call, NotExact, Operator

__all__ = ["ATTENTION_ATTRIBUTES", "OPERATORS", "standardise"]


def _channels(v: Array, rank: int) -> Array:
    return v.reshape(-1, *(1,) * (rank - 2))


def _batch(call: Call) -> Array:
    if call.site.attr("training_mode", 0):
        raise NotExact("BatchNormalization in training mode")
    x = call.x()
    # Stored statistics always: the momentum attribute says nothing about inference.
    scale, bias, mean, variance = (_channels(call.x(i), x.ndim) for i in (1, 2, 3, 4))
    slope = scale / np.sqrt(variance + call.site.attr("epsilon", 1e-5))
    return x * slope + (bias - mean * slope)


def standardise(x: Array, axes: tuple[int, ...], epsilon: float, *, centre: bool = True) -> tuple[Array, Array, Array]:
    """``(x - mean) / sqrt(mean of squares + epsilon)`` with the mean and the reciprocal root."""
    mean = x.mean(axis=axes, keepdims=True) if centre else np.zeros((1,) * x.ndim)
    moved = x - mean
    inverse = 1.0 / np.sqrt((moved * moved).mean(axis=axes, keepdims=True) + epsilon)
    return moved * inverse, mean, inverse


def _layer(call: Call) -> Array | tuple[Array, ...]:
    x, scale, bias = call.x(0), call.x(1), call.optional(2)
    axes = tuple(range(call.site.attr("axis", -1) % x.ndim, x.ndim))
    unit, mean, inverse = standardise(x, axes, call.site.attr("epsilon", 1e-5))
    y = unit * scale + (0.0 if bias is None else bias)
    return (y, mean, inverse)[: max(1, len(call.site.node.outputs))]


def _rms(call: Call) -> Array:
    x, scale = call.x(0), call.x(1)
    axes = tuple(range(call.site.attr("axis", -1) % x.ndim, x.ndim))
    return standardise(x, axes, call.site.attr("epsilon", 1e-5), centre=False)[0] * scale


def _instance(call: Call) -> Array:
    x = call.x()
    unit, _, _ = standardise(x, tuple(range(2, x.ndim)), call.site.attr("epsilon", 1e-5))
    return unit * _channels(call.x(1), x.ndim) + _channels(call.x(2), x.ndim)


def _group(call: Call) -> Array:
    x, scale, bias = call.x(0), call.x(1), call.x(2)
    groups = call.site.attr("num_groups")
    unit, _, _ = standardise(x.reshape(x.shape[0], groups, -1), (2,), call.site.attr("epsilon", 1e-5))
    if scale.size == groups and scale.size != x.shape[1]:
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    return unit.reshape(x.shape) * _channels(scale, x.ndim) + _channels(bias, x.ndim)


def _lrn(call: Call) -> Array:
    x, size = call.x(), call.site.attr("size")
    alpha, beta, k = call.site.attr("alpha", 1e-4), call.site.attr("beta", 0.75), call.site.attr("bias", 1.0)
    square = x * x
    left, right = (size - 1) // 2, size - 1 - (size - 1) // 2
    padded = np.pad(square, [(0, 0), (left, right), *[(0, 0)] * (x.ndim - 2)])
    total = sum((padded[:, i : i + x.shape[1]] for i in range(size)), np.zeros(()))
    return x / (k + alpha / size * total) ** beta


def _lp(call: Call) -> Array:
    x, axis, p = call.x(), call.site.attr("axis", -1), call.site.attr("p", 2)
    norm = np.abs(x).sum(axis=axis, keepdims=True) if p == 1 else np.sqrt((x * x).sum(axis=axis, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)


ATTENTION_ATTRIBUTES = frozenset(
    {"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"}
)


def _attention(call: Call) -> Array:
    """ai.onnx Attention without past and without a third output (opset 23 / 24)."""
    q, k, v, mask = call.x(0), call.x(1), call.x(2), call.optional(3)
    if any(x is not None for x in call.xs[4:]) or any(call.site.node.outputs[1:]):
        raise NotExact("Attention with past keys, lengths or extra outputs")
    unknown = set(call.site.node.attrs) - ATTENTION_ATTRIBUTES
    if unknown:
        raise NotExact(f"Attention with {sorted(unknown)[0]}")
    flat = q.ndim == 3
    if flat:
        heads, kv_heads = call.site.attr("q_num_heads"), call.site.attr("kv_num_heads")
        q = q.reshape(*q.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        k, v = (t.reshape(*t.shape[:2], kv_heads, -1).transpose(0, 2, 1, 3) for t in (k, v))
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = np.repeat(k, repeat, axis=1), np.repeat(v, repeat, axis=1)
    scale = call.site.attr("scale")
    scores = np.matmul(q, k.swapaxes(-1, -2)) * (scale or 1 / math.sqrt(q.shape[-1]))
    softcap = call.site.attr("softcap", 0.0)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if call.site.attr("is_causal", 0):
        allowed = np.tril(np.ones(scores.shape[-2:], dtype=np.bool_))
        scores = np.where(allowed, scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + mask
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    # A row where everything is masked gives zeros.
    total = weights.sum(axis=-1, keepdims=True)
    y = np.matmul(weights / np.where(total == 0, 1.0, total), v)
    return y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1) if flat else y


OPERATORS: Mapping[str, Operator] = {
    "Attention": _attention,
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LRN": _lrn,
    "LayerNormalization": _layer,
    "LpNormalization": _lp,
    "RMSNormalization": _rms,
}
