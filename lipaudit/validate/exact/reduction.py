"""Reductions, softmax, pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from lipaudit.validate.exact.call import Array, Call, NotExact, Operator
from lipaudit.validate.exact.windows import pooling_window

__all__ = ["OPERATORS", "reduction_axes", "softmax_axes"]


def reduction_axes(call: Call, first_input_version: int) -> tuple[int, ...] | None:
    """Axes of a reduction as non-negative ints; None means that it is the identity."""
    x = call.x()
    axes = call.ints("axes", 1 if call.version >= first_input_version else None)
    if not axes:
        return None if call.site.attr("noop_with_empty_axes", 0) else tuple(range(x.ndim))
    return tuple(sorted(a % x.ndim for a in axes))


def _reduce(function: Callable[[Array, tuple[int, ...], bool], Array], first_input_version: int = 18) -> Operator:
    def run(call: Call) -> Array:
        axes = reduction_axes(call, first_input_version)
        if axes is None:
            return call.x()
        return function(call.x(), axes, bool(call.site.attr("keepdims", 1)))

    return run


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    top = x.max(axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.log(np.exp(x - top).sum(axis=axes, keepdims=True)) + top
    return total if keep else total.squeeze(axes)


def softmax_axes(version: int, axis: int, rank: int) -> tuple[int, ...]:
    """Axes that one softmax runs over: all from ``axis`` on before version 13, ``axis`` alone since."""
    axis %= max(rank, 1)
    return (axis,) if version >= 13 else tuple(range(axis, rank))


def _softmax(call: Call) -> Array:
    x = call.x()
    axes = softmax_axes(call.version, call.site.attr("axis", -1 if call.version >= 13 else 1), x.ndim)
    shifted = np.exp(x - x.max(axis=axes, keepdims=True))
    return shifted / shifted.sum(axis=axes, keepdims=True)


def _log_softmax(call: Call) -> Array:
    x = call.x()
    axes = softmax_axes(call.version, call.site.attr("axis", -1 if call.version >= 13 else 1), x.ndim)
    return x - _log_sum_exp(x, axes, True)


def _max_pool(call: Call) -> Array | tuple[Array, ...]:
    x = call.x()
    window, _ = pooling_window(call.site, x.shape[2:])
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = np.pad(x, [(0, 0), (0, 0), *window.pads()], constant_values=lowest)
    taps = [padded[(slice(None), slice(None), *cut)] for _, cut in window.taps()]
    result = taps[0].copy()
    for piece in taps[1:]:
        np.maximum(result, piece, out=result)
    if len(call.site.node.outputs) < 2 or not call.site.node.outputs[1]:
        return result
    if call.site.attr("storage_order", 0):
        raise NotExact("MaxPool with column-major Indices")
    places = np.pad(np.arange(x.size).reshape(x.shape), [(0, 0), (0, 0), *window.pads()], constant_values=-1)
    indices = np.full(result.shape, -1, dtype=np.int64)
    for (_, cut), piece in zip(window.taps(), taps, strict=True):
        seen = places[(slice(None), slice(None), *cut)]
        indices = np.where((indices < 0) & (piece == result) & (seen >= 0), seen, indices)
    return result, indices


def _average_pool(call: Call) -> Array:
    x = call.x()
    window, declared_after = pooling_window(call.site, x.shape[2:])
    padded = np.pad(x, [(0, 0), (0, 0), *window.pads()])
    result = np.zeros((*x.shape[:2], *window.out), dtype=x.dtype)
    for _, cut in window.taps():
        result += padded[(slice(None), slice(None), *cut)]
    count_pad = bool(call.site.attr("count_include_pad", 0))
    return result / window.counts(count_pad=count_pad, declared_after=declared_after)


def _global(function: Callable[..., Array]) -> Operator:
    def run(call: Call) -> Array:
        x = call.x()
        return function(x, axis=tuple(range(2, x.ndim)), keepdims=True)

    return run


def _cumulative_sum(call: Call) -> Array:
    x, axis = call.x(0), int(np.asarray(call.x(1)).reshape(-1)[0])
    backwards = bool(call.site.attr("reverse", 0))
    y = np.flip(x, axis) if backwards else x
    total = np.cumsum(y, axis=axis)
    if call.site.attr("exclusive", 0):
        total = total - y
    return np.flip(total, axis) if backwards else total


def _mean(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return x.sum(axis=axes, keepdims=keep) / prod(x.shape[a] for a in axes)


def _norm_of_all(call: Call) -> Array:
    x, p = call.x(), float(call.site.attr("p", 2))
    return (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p)


OPERATORS: Mapping[str, Operator] = {
    "AveragePool": _average_pool,
    "CumSum": _cumulative_sum,
    "GlobalAveragePool": _global(np.mean),
    "GlobalLpPool": _norm_of_all,
    "GlobalMaxPool": _global(np.max),
    "LogSoftmax": _log_softmax,
    "MaxPool": _max_pool,
    "ReduceL1": _reduce(lambda x, a, k: np.abs(x).sum(axis=a, keepdims=k)),
    "ReduceL2": _reduce(lambda x, a, k: np.sqrt((x * x).sum(axis=a, keepdims=k))),
    "ReduceLogSum": _reduce(lambda x, a, k: np.log(x.sum(axis=a, keepdims=k))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(lambda x, a, k: x.max(axis=a, keepdims=k)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(lambda x, a, k: x.min(axis=a, keepdims=k)),
    "ReduceProd": _reduce(lambda x, a, k: x.prod(axis=a, keepdims=k)),
    "ReduceSum": _reduce(lambda x, a, k: x.sum(axis=a, keepdims=k), 13),
    "ReduceSumSquare": _reduce(lambda x, a, k: (x * x).sum(axis=a, keepdims=k)),
    "Softmax": _softmax,
}
