"""Products with weights: MatMul, Gemm, Einsum, convolutions by gathered windows (BLAS does the work)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lipaudit.validate.exact.call import Array, Call, Operator
from lipaudit.validate.exact.windows import Window, convolution_window, transposed_window

__all__ = ["OPERATORS"]

# What is gathered of a convolution's input at a time.
_SLAB_BYTES = 1 << 20


def _matmul(call: Call) -> Array:
    a, b = call.x(0), call.x(1)
    fill = call.fill(1)
    if fill is not None and b.ndim == 2:
        # All columns of a uniform matrix are equal: the row sums say everything, nothing is materialised.
        sums = a.sum(axis=-1, keepdims=True) * fill
        return np.broadcast_to(sums, (*a.shape[:-1], b.shape[-1]))
    return np.matmul(a, b)


def _gemm(call: Call) -> Array:
    a, b, c = call.x(0), call.x(1), call.optional(2)
    a = a.T if call.site.attr("transA", 0) else a
    fill = call.fill(1)
    trans = call.site.attr("transB", 0)
    if fill is not None:
        product = np.broadcast_to(a.sum(axis=-1, keepdims=True) * fill, (a.shape[0], b.shape[0] if trans else b.shape[1]))
    else:
        product = a @ (b.T if trans else b)
    alpha, beta = call.site.attr("alpha", 1.0), call.site.attr("beta", 1.0)
    result = product if alpha == 1.0 else alpha * product
    return result if c is None else result + (c if beta == 1.0 else beta * c)


def _einsum(call: Call) -> Array:
    return np.einsum(call.site.attr("equation"), *[x for x in call.xs if x is not None], optimize=True)


def _conv(call: Call) -> Array:
    x, w, bias = call.x(0), call.x(1), call.optional(2)
    groups = call.site.attr("group", 1)
    window = convolution_window(call.site, x.shape[2:], w.shape[2:])
    padded = np.pad(x, [(0, 0), (0, 0), *window.pads()])
    n, channels = x.shape[:2]
    out_channels, per_group = w.shape[:2]
    fill = call.fill(1)
    if fill is not None:
        grouped = padded.reshape(n, groups, per_group, *padded.shape[2:]).sum(axis=2)
        total = sum((grouped[(slice(None), slice(None), *cut)] for _, cut in window.taps()), np.zeros(()))
        result = np.repeat(total * fill, out_channels // groups, axis=1) if groups > 1 else _spread(total * fill, out_channels)
    elif per_group == 1 and groups == channels:
        result = np.zeros((n, out_channels, *window.out), dtype=x.dtype)
        repeat = out_channels // groups
        for tap, cut in window.taps():
            piece = padded[(slice(None), slice(None), *cut)]
            piece = np.repeat(piece, repeat, axis=1) if repeat > 1 else piece
            result += piece * w[(slice(None), 0, *tap)].reshape(-1, *(1,) * len(window.out))
    else:
        result = _gathered(padded, w, groups, window)
    return result if bias is None else result + bias.reshape(-1, *(1,) * len(window.out))


def _gathered(padded: Array, w: Array, groups: int, window: Window) -> Array:
    """Convolution as one product a slab of output rows: what the windows see is gathered for as many rows as fit into the cache."""
    n, channels = padded.shape[:2]
    steps = padded.strides[2:]
    along = tuple(step * stride for step, stride in zip(steps, window.strides, strict=True))
    within = tuple(step * dilation for step, dilation in zip(steps, window.dilations, strict=True))
    # All windows without a copy: [n, groups, channels of a group, *kernel, *out]; the pads cover the last window.
    seen = np.lib.stride_tricks.as_strided(
        padded,
        (n, groups, channels // groups, *window.kernel, *window.out),
        (padded.strides[0], padded.strides[1] * (channels // groups), padded.strides[1], *within, *along),
        writeable=False,
    )
    weights = w.reshape(groups, w.shape[0] // groups, -1)
    result = np.empty((n, *weights.shape[:2], *window.out), dtype=padded.dtype)
    row = weights.shape[2] * int(np.prod(window.out[1:])) * padded.itemsize
    rows = max(1, _SLAB_BYTES // max(row, 1))
    first = 3 + len(window.kernel)
    for i in range(n):
        for g in range(groups):
            for start in range(0, window.out[0], rows):
                piece = seen[(i, g, *(slice(None),) * (first - 2), slice(start, start + rows))]
                slab = result[i, g, :, start : start + rows]
                slab[...] = (weights[g] @ piece.reshape(weights.shape[2], -1)).reshape(slab.shape)
    return result.reshape(n, w.shape[0], *window.out)


def _spread(one: Array, channels: int) -> Array:
    """A single channel seen ``channels`` times without copies."""
    return np.broadcast_to(one, (one.shape[0], channels, *one.shape[2:]))


def _conv_transpose(call: Call) -> Array:
    x, w, bias = call.x(0), call.x(1), call.optional(2)
    groups = call.site.attr("group", 1)
    window = transposed_window(call.site, x.shape[2:], w.shape[2:])
    n, channels = x.shape[:2]
    per_group = w.shape[1]
    positions = int(np.prod(x.shape[2:]))
    weights = w.reshape(groups, channels // groups, *w.shape[1:])
    pieces = x.reshape(n, groups, channels // groups, positions)
    spans = [max(s + b + a, (o - 1) * st + (k - 1) * d + 1) for s, b, a, o, st, k, d in zip(
        window.size, window.before, window.after, window.out, window.strides, window.kernel, window.dilations, strict=True)]  # fmt: skip
    full = np.zeros((n, groups * per_group, *spans), dtype=x.dtype)
    for tap, cut in window.taps():
        slab = np.ascontiguousarray(weights[(slice(None), slice(None), slice(None), *tap)].transpose(0, 2, 1))
        full[(slice(None), slice(None), *cut)] += np.matmul(slab, pieces).reshape(n, groups * per_group, *window.out)
    keep = tuple(slice(b, b + s) for b, s in zip(window.before, window.size, strict=True))
    result = full[(slice(None), slice(None), *keep)]
    return result if bias is None else result + bias.reshape(-1, *(1,) * len(window.size))


OPERATORS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
