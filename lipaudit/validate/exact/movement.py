"""Operators that move, copy or select elements, and shape arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from lipaudit.graph.ir import Constant
from lipaudit.validate.exact.call import Array, Call, NotExact, Operator

__all__ = ["OPERATORS"]


def _reshape(call: Call) -> Array:
    x = call.x()
    target = list(call.ints("shape", 1 if call.version >= 5 else None) or ())
    if not call.site.attr("allowzero", 0):
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


def _flatten(call: Call) -> Array:
    x, axis = call.x(), call.site.attr("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1) if x.size else x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _squeeze(call: Call) -> Array:
    axes = call.ints("axes", 1 if call.version >= 13 else None)
    return call.x().squeeze(axes if axes is None else tuple(axes))


def _unsqueeze(call: Call) -> Array:
    axes = call.ints("axes", 1 if call.version >= 13 else None) or ()
    return np.expand_dims(call.x(), tuple(axes))


def _transpose(call: Call) -> Array:
    return call.x().transpose(call.ints("perm"))


def _concat(call: Call) -> Array:
    return np.concatenate([x for x in call.xs if x is not None], axis=call.site.attr("axis", 1))


def _split(call: Call) -> tuple[Array, ...]:
    x, axis = call.x(), call.site.attr("axis", 0)
    sizes = call.ints("split", 1 if call.version >= 13 else None)
    count = len(call.site.node.outputs)
    if not sizes:
        whole = x.shape[axis]
        each = -(-whole // count)
        sizes = tuple(min(each, whole - each * i) for i in range(count))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _slice(call: Call) -> Array:
    x = call.x()
    if call.version >= 10:
        starts, ends, axes, steps = (call.ints("", i) for i in (1, 2, 3, 4))
    else:
        starts, ends, axes, steps = call.ints("starts"), call.ints("ends"), call.ints("axes"), None
    starts, ends = starts or (), ends or ()
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            start, end = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
            index[axis] = slice(start, end, step)
        else:
            start = min(max(start + size if start < 0 else start, -1), size - 1)
            stop = min(max(end + size if end < 0 else end, -1), size)
            index[axis] = slice(start, None if stop < 0 else stop, step) if start >= 0 else slice(0, 0)
    return x[tuple(index)]


def _gather(call: Call) -> Array:
    x, indices = call.x(0), call.x(1)
    axis = call.site.attr("axis", 0)
    size = x.shape[axis]
    wrapped = np.where(indices < 0, indices + size, indices)
    return np.take(x, wrapped.astype(np.int64), axis=axis)


def _gather_elements(call: Call) -> Array:
    x, indices, axis = call.x(0), call.x(1), call.site.attr("axis", 0)
    return np.take_along_axis(_crop(x, indices.shape, axis), np.where(indices < 0, indices + x.shape[axis], indices), axis)


def _crop(x: Array, shape: tuple[int, ...], axis: int) -> Array:
    axis %= x.ndim
    return x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(shape))]


def _gather_nd(call: Call) -> Array:
    x, indices, batch = call.x(0), call.x(1), call.site.attr("batch_dims", 0)
    lead = x.shape[:batch]
    flat, where = x.reshape((-1, *x.shape[batch:])), indices.reshape((-1, *indices.shape[batch:]))
    parts = [flat[b][tuple(np.moveaxis(where[b], -1, 0))] for b in range(flat.shape[0])]
    return np.stack(parts).reshape((*lead, *parts[0].shape))


def _put(call: Call, result: Array, places: Any, updates: Array) -> Array:
    """``updates`` at ``places``, combined with what is there by the node's reduction."""
    mode = call.site.attr("reduction", "none")
    if mode == "none":
        result[places] = updates
        return result
    combine = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}.get(mode)
    if combine is None:
        raise NotExact(f"{call.site.node.op} with reduction {mode!r}")
    combine.at(result, places, updates)
    return result


def _scatter_elements(call: Call) -> Array:
    result, indices, updates = call.x(0).copy(), call.x(1), call.x(2)
    axis = call.site.attr("axis", 0)
    where = np.where(indices < 0, indices + result.shape[axis], indices)
    grid = list(np.indices(indices.shape, sparse=True))
    grid[axis] = where
    return _put(call, result, tuple(grid), updates)


def _scatter_nd(call: Call) -> Array:
    result, indices, updates = call.x(0).copy(), call.x(1), call.x(2)
    return _put(call, result, tuple(np.moveaxis(indices, -1, 0)), updates)


def _pad(call: Call) -> Array:
    x = call.x()
    newer = call.version >= 11
    pads = list(call.ints("pads" if call.version >= 2 else "paddings", 1 if newer else None) or ())
    value = call.optional(2) if newer else call.site.attr("value", 0.0)
    axes = call.ints("", 3)
    axes = tuple(a % x.ndim for a in axes) if axes is not None else tuple(range(x.ndim))
    half = len(pads) // 2
    widths, crops = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[half + i]
        widths[axis] = (max(before, 0), max(after, 0))
        crops[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
    x = x[tuple(crops)]
    mode = call.site.attr("mode", "constant")
    if mode == "constant":
        fill = 0 if value is None else np.asarray(value).reshape(-1)[0]
        return np.pad(x, widths, constant_values=fill)
    if mode == "edge":
        return np.pad(x, widths, mode="edge")
    if mode == "reflect":
        return np.pad(x, widths, mode="reflect")
    if mode == "wrap":
        return np.pad(x, widths, mode="wrap")
    raise NotExact(f"Pad mode {mode!r}")


def _expand(call: Call) -> Array:
    x, shape = call.x(), tuple(int(v) for v in call.x(1))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape))


def _tile(call: Call) -> Array:
    return np.tile(call.x(), call.x(1))


def _shape(call: Call) -> Array:
    return np.array(call.x().shape[call.site.attr("start", 0) : call.site.attr("end")], dtype=np.int64)


def _size(call: Call) -> Array:
    return np.array(call.x().size, dtype=np.int64)


def _constant_of_shape(call: Call) -> Array:
    value = call.site.attr("value")
    fill = value.array().reshape(-1)[0] if isinstance(value, Constant) else np.float32(0)
    if np.asarray(fill).dtype.kind == "f":
        fill = call.floating.type(fill)
    return np.broadcast_to(fill, tuple(int(v) for v in call.x().reshape(-1)))


def _range(call: Call) -> Array:
    return np.arange(call.x(0).item(), call.x(1).item(), call.x(2).item(), dtype=call.x(0).dtype)


def _depth_to_space(call: Call) -> Array:
    x, block = call.x(), call.site.attr("blocksize")
    n, c, h, w = x.shape
    if call.site.attr("mode", "DCR") == "CRD":
        y = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        y = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Array:
    x, block = call.x(), call.site.attr("blocksize")
    if call.site.attr("mode", "DCR") != "DCR":
        raise NotExact("SpaceToDepth in CRD mode")
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


def _trilu(call: Call) -> Array:
    k = call.optional(1)
    offset = 0 if k is None else int(np.asarray(k).reshape(-1)[0])
    return np.triu(call.x(), offset) if call.site.attr("upper", 1) else np.tril(call.x(), offset)


def _one_hot(call: Call) -> Array:
    indices, depth, values = call.x(0).astype(np.int64), int(call.x(1).reshape(-1)[0]), call.x(2)
    axis = call.site.attr("axis", -1)
    hot = np.where(indices < 0, indices + depth, indices)[..., None] == np.arange(depth)
    result = np.where(hot, values[1], values[0])
    return np.moveaxis(result, -1, axis) if axis != -1 else result


def _non_zero(call: Call) -> Array:
    return np.array(np.nonzero(call.x()), dtype=np.int64)


def _arg(largest: bool) -> Operator:
    def run(call: Call) -> Array:
        x, axis = call.x(), call.site.attr("axis", 0)
        if call.site.attr("select_last_index", 0):
            size = x.shape[axis]
            x = np.flip(x, axis)
            found = size - 1 - (np.argmax(x, axis) if largest else np.argmin(x, axis))
        else:
            found = np.argmax(x, axis) if largest else np.argmin(x, axis)
        found = np.asarray(found, dtype=np.int64)
        return np.expand_dims(found, axis) if call.site.attr("keepdims", 1) else found

    return run


def _top_k(call: Call) -> tuple[Array, ...]:
    x, axis = call.x(), call.site.attr("axis", -1)
    k = int(np.asarray(call.x(1)).reshape(-1)[0]) if call.version >= 10 else call.site.attr("k")
    x = x if x.dtype.kind == "f" else x.astype(np.int64)
    key = -x if call.site.attr("largest", 1) else x
    order = np.argsort(key, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


OPERATORS: Mapping[str, Operator] = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
