"""Data movement: reshaping, slicing, gathering. Exact for every element type.

References
----------
Onnx operator specifications; the version given at each case is the one that changed the form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.ir import Node

__all__ = ["KERNELS", "VIEWS", "squeezed_axes", "target_shape"]

Array = NDArray[Any]
_Inputs = Sequence[Array | None]


def _data(inputs: _Inputs) -> Array:
    first = inputs[0]
    if first is None:
        raise ValueError("the first input is left out")
    return first


def _list(inputs: _Inputs, index: int) -> list[int] | None:
    """An integer input as a list; None if it is left out."""
    array = inputs[index] if index < len(inputs) else None
    return None if array is None else [int(x) for x in array.reshape(-1)]


def _parameter(node: Node, inputs: _Inputs, index: int, name: str) -> list[int] | None:
    """A parameter that later versions take as an input and earlier ones as an attribute."""
    given = _list(inputs, index)
    if given is None and name in node.attrs:
        given = [int(x) for x in node.attrs[name]]
    return given


def target_shape(shape: tuple[int, ...], target: Sequence[int], *, allow_zero: bool) -> tuple[int, ...]:
    """The static shape that Reshape asks for: 0 copies the dim (unless ``allow_zero``), -1 is what is left."""
    dims = [shape[i] if d == 0 and not allow_zero else d for i, d in enumerate(target)]
    if -1 in dims:
        rest = prod(d for d in dims if d != -1)
        dims[dims.index(-1)] = prod(shape) // rest if rest else 0
    return tuple(dims)


def _identity(node: Node, inputs: _Inputs) -> Sequence[Array]:
    return (_data(inputs),)


def _reshape(node: Node, inputs: _Inputs) -> Sequence[Array]:
    data, target = _data(inputs), _parameter(node, inputs, 1, "shape")
    if target is None:
        raise ValueError("no target shape")
    return (data.reshape(target_shape(data.shape, target, allow_zero=bool(node.attrs.get("allowzero", 0)))),)


def _flatten(node: Node, inputs: _Inputs) -> Sequence[Array]:
    data = _data(inputs)
    axis = int(node.attrs.get("axis", 1))
    axis += data.ndim if axis < 0 else 0
    return (data.reshape(prod(data.shape[:axis]), prod(data.shape[axis:])),)


def _transpose(node: Node, inputs: _Inputs) -> Sequence[Array]:
    return (np.transpose(_data(inputs), node.attrs.get("perm")),)


def squeezed_axes(node: Node, inputs: _Inputs, rank: int) -> tuple[int, ...] | None:
    """Axes of Squeeze or Unsqueeze (attribute until 11, input from 13), non-negative; None if not given."""
    axes = _parameter(node, inputs, 1, "axes")
    return None if axes is None else tuple(axis + rank if axis < 0 else axis for axis in axes)


def _squeeze(node: Node, inputs: _Inputs) -> Sequence[Array]:
    data = _data(inputs)
    return (np.squeeze(data, axis=squeezed_axes(node, inputs, data.ndim)),)


def _unsqueeze(node: Node, inputs: _Inputs) -> Sequence[Array]:
    data = _data(inputs)
    axes = _parameter(node, inputs, 1, "axes")
    if axes is None:
        raise ValueError("no axes")
    return (np.expand_dims(data, tuple(axes)),)


def _expand(node: Node, inputs: _Inputs) -> Sequence[Array]:
    data, target = _data(inputs), _list(inputs, 1)
    if target is None:
        raise ValueError("no target shape")
    return (np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(target))),)


def _slice(node: Node, inputs: _Inputs) -> Sequence[Array]:
    """Slice-1 has attributes, Slice-10 inputs with steps; starts and ends are clamped to the axis."""
    data = _data(inputs)
    starts, ends = _parameter(node, inputs, 1, "starts"), _parameter(node, inputs, 2, "ends")
    if starts is None or ends is None:
        raise ValueError("no starts or ends")
    axes = _parameter(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = _list(inputs, 4) or [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        start += size if start < 0 else 0
        end += size if end < 0 else 0
        if step > 0:
            index[axis] = slice(min(max(start, 0), size), min(max(end, 0), size), step)
        else:
            first, last = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
            index[axis] = slice(first, None if last < 0 else last, step)
    return (data[tuple(index)],)


def _concat(node: Node, inputs: _Inputs) -> Sequence[Array]:
    # Concat-1 has a default axis of 1; from 4 on the attribute is required.
    return (np.concatenate([array for array in inputs if array is not None], axis=int(node.attrs.get("axis", 1))),)


def _gather(node: Node, inputs: _Inputs) -> Sequence[Array]:
    data, indices = _data(inputs), inputs[1]
    if indices is None:
        raise ValueError("no indices")
    axis = int(node.attrs.get("axis", 0))
    if indices.ndim == 0:
        index: list[Any] = [slice(None)] * data.ndim
        index[axis] = int(indices)
        return (np.asarray(data[tuple(index)]),)
    return (np.take(data, indices, axis=axis),)


def _split(node: Node, inputs: _Inputs) -> Sequence[Array]:
    """Sizes: attribute until 11, input from 13; else equal parts (from 18 the last may be smaller)."""
    data = _data(inputs)
    axis = int(node.attrs.get("axis", 0))
    sizes = _parameter(node, inputs, 1, "split")
    if sizes is None:
        parts = int(node.attrs.get("num_outputs", len(node.outputs)))
        each = -(-data.shape[axis] // parts)
        sizes = [max(0, min(each, data.shape[axis] - i * each)) for i in range(parts)]
    if sum(sizes) != data.shape[axis]:
        raise ValueError("split sizes do not add up")
    return tuple(np.split(data, np.cumsum(sizes)[:-1].tolist(), axis=axis))


def _tile(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    repeats = _list(inputs, 1)
    if repeats is None or node.version < 6:  # Tile-1 takes one axis and a count
        return None
    return (np.tile(_data(inputs), repeats),)


KERNELS: Mapping[str, Callable[[Node, _Inputs], Sequence[Array] | None]] = {
    "Identity": _identity,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Slice": _slice,
    "Concat": _concat,
    "Gather": _gather,
    "Split": _split,
    "Tile": _tile,
}

# Reshape and Flatten copy only what is not contiguous, which a second view of a stored tensor rarely is.
VIEWS = frozenset({"Identity", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice", "Split"})
