"""DequantizeLinear of stored weights: ``(x - zero_point) * scale`` in float32, as the runtime computes it.

References
----------
Onnx DequantizeLinear-10 (one scale), -13 (``axis``), -21 (``block_size``), -23 (``output_dtype``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.dtypes import dtype_name, numpy_dtype
from lipaudit.graph.ir import Node

__all__ = ["KERNELS"]

Array = NDArray[Any]
_Inputs = Sequence[Array | None]


def _aligned(parameter: Array, node: Node, shape: tuple[int, ...]) -> Array:
    """Scale or zero point as an array that broadcasts against the data."""
    if parameter.size == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    axis = int(node.attrs.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    block = int(node.attrs.get("block_size", 0))
    if block and parameter.ndim == len(shape):
        repeated = np.repeat(parameter, block, axis=axis)
        return np.take(repeated, np.arange(shape[axis]), axis=axis)
    if parameter.ndim != 1 or parameter.shape[0] != shape[axis]:
        raise ValueError("scale does not fit the axis")
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _dequantize(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    data, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    if data is None or scale is None or str(scale.dtype) not in ("float32", "float16", "bfloat16"):
        return None
    target = dtype_name(int(node.attrs.get("output_dtype", 0))) or str(scale.dtype)
    if "float" in str(data.dtype):
        steps = data.astype(np.float32)
        if zero is not None:
            steps = steps - _aligned(zero.astype(np.float32), node, data.shape)
    else:
        wide = data.astype(np.int64)
        if zero is not None:
            wide = wide - _aligned(zero.astype(np.int64), node, data.shape)
        steps = wide.astype(np.float32)
    return ((steps * _aligned(scale.astype(np.float32), node, data.shape)).astype(numpy_dtype(target)),)


KERNELS: Mapping[str, Callable[[Node, _Inputs], Sequence[Array] | None]] = {"DequantizeLinear": _dequantize}
