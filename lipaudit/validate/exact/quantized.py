"""Quantization: step functions, evaluated as the standard says (round half to even, saturate)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lipaudit.validate.exact.call import Array, Call, NotExact, Operator

__all__ = ["OPERATORS"]


def _along(v: Array, x: Array, axis: int) -> Array:
    """A scale or zero point, shaped so that it broadcasts along ``axis`` of ``x``."""
    if v.ndim == 0 or v.size == 1:
        return v.reshape(())
    if v.ndim == 1:
        return v.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    raise NotExact("blocked quantization")


def _quantize(call: Call) -> Array:
    x, zero = call.x(0), call.optional(2)
    axis = call.site.attr("axis", 1)
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    if dtype.kind not in "iu":
        raise NotExact(f"QuantizeLinear to {dtype.name}")
    limits = np.iinfo(dtype)
    steps = np.round(x / _along(call.x(1), x, axis)) + (0 if zero is None else _along(zero, x, axis).astype(np.float64))
    return np.clip(steps, limits.min, limits.max).astype(dtype)


def _dequantize(call: Call) -> Array:
    x, zero, axis = call.x(0), call.optional(2), call.site.attr("axis", 1)
    steps = x.astype(call.floating)
    if zero is not None:
        steps = steps - _along(zero, x, axis).astype(call.floating)
    return steps * _along(call.x(1), x, axis)


def _dynamic(call: Call) -> tuple[Array, Array, Array]:
    x = call.x()
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255 or 1.0
    zero = np.clip(np.round(-low / scale), 0, 255)
    steps = np.clip(np.round(x / scale) + zero, 0, 255).astype(np.uint8)
    return steps, call.floating.type(scale), np.uint8(zero)  # pyright: ignore[reportReturnType]


def _matmul_integer(call: Call) -> Array:
    a, b = call.x(0).astype(np.int64), call.x(1).astype(np.int64)
    for i, zero in ((0, call.optional(2)), (1, call.optional(3))):
        if zero is None:
            continue
        if zero.size > 1 and i == 0:
            zero = zero.reshape(-1, 1)
        a, b = (a - zero.astype(np.int64), b) if i == 0 else (a, b - zero.astype(np.int64))
    return np.matmul(a, b).astype(np.int32)


OPERATORS: Mapping[str, Operator] = {
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _matmul_integer,
    "QuantizeLinear": _quantize,
}
