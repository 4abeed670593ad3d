"""DequantizeLinear of stored weights: ``(x - zero_point) * scale`` in float32, as the runtime computes it.

References
----------
Onnx DequantizeLinear-10 (one scale), -13 (``axis``), -21 (``block_size``), -23 (``output_dtype``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.dtypes import dtype_name, numpy_dtype
from lipaudit.graph.ir import Node

__all__ = ["KERNELS"]

Array = NDArray[Any]
_Inputs = Sequence[Array | None]


BLOCK = 1 << 20
"""Elements that are dequantised at a time: nothing as large as the result is held beside it."""


def _aligned(parameter: Array, node: Node, shape: tuple[int, ...], rows: slice) -> Array:
    """Scale or zero point as an array that broadcasts against the ``rows`` (along the first axis) of the data."""
    if parameter.size == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    axis = int(node.attrs.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    block = int(node.attrs.get("block_size", 0))
    if block and parameter.ndim == len(shape):
        if any(n != (-(-size // block) if k == axis else size) for k, (n, size) in enumerate(zip(parameter.shape, shape, strict=True))):
            raise ValueError("scale does not fit the blocks")
        places = np.arange(shape[axis]) // block
        return np.take(parameter, places[rows], axis=0) if axis == 0 else np.take(parameter[rows], places, axis=axis)
    if parameter.ndim != 1 or parameter.shape[0] != shape[axis]:
        raise ValueError("scale does not fit the axis")
    return (parameter[rows] if axis == 0 else parameter).reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _dequantize(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    data, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    if data is None or scale is None or str(scale.dtype) not in ("float32", "float16", "bfloat16"):
        return None
    target = numpy_dtype(dtype_name(int(node.attrs.get("output_dtype", 0))) or str(scale.dtype))
    # Differences of integers are exact in int64; those of narrow floats are taken in float32.
    wide = np.float32 if "float" in str(data.dtype) else np.int64
    out = np.empty(data.shape, dtype=target)
    lined, source = np.atleast_1d(out), np.atleast_1d(data)
    step = max(1, BLOCK // max(1, prod(source.shape[1:])))
    for at in range(0, source.shape[0], step):
        rows = slice(at, at + step)
        steps = source[rows].astype(wide)
        if zero is not None:
            steps = steps - _aligned(zero.astype(wide), node, data.shape, rows)
        lined[rows] = (steps.astype(np.float32) * _aligned(scale.astype(np.float32), node, data.shape, rows)).astype(target)
    return (out,)


KERNELS: Mapping[str, Callable[[Node, _Inputs], Sequence[Array] | None]] = {"DequantizeLinear": _dequantize}
