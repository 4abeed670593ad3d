"""Arithmetic, comparisons and casts whose result is determined to the last bit.

Integers, comparisons, and the float operations that IEEE 754 rounds correctly in each type (add, subtract, multiply,
divide, square root, negate, ...). Everything else (powers, exponentials, sums over an axis, whose order is open) is left
to the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.dtypes import dtype_name, numpy_dtype
from lipaudit.graph.ir import Node

__all__ = ["KERNELS", "cast"]

Array = NDArray[Any]
_Inputs = Sequence[Array | None]
_Kernel = Callable[[Node, _Inputs], "Sequence[Array] | None"]

_WIDE = frozenset({"float16", "bfloat16", "float32", "float64"})
_INTEGERS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"})


def _operands(node: Node, inputs: _Inputs) -> tuple[Array, Array]:
    """Both operands, aligned. Before opset 7 the second one is aligned at ``axis``, if ``broadcast`` is set."""
    left, right = inputs[0], inputs[1]
    if left is None or right is None:
        raise ValueError("an operand is left out")
    if node.version < 7 and node.attrs.get("broadcast", 0) and right.ndim:
        axis = int(node.attrs.get("axis", left.ndim - right.ndim))
        axis += left.ndim if axis < 0 else 0
        right = right.reshape(*right.shape, *([1] * (left.ndim - axis - right.ndim)))
    return left, right


def _binary(function: Callable[[Array, Array], Array]) -> _Kernel:
    def kernel(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
        left, right = _operands(node, inputs)
        if left.dtype != right.dtype:
            return None
        with np.errstate(all="ignore"):
            return (np.asarray(function(left, right)),)

    return kernel


def _unary(function: Callable[[Array], Array]) -> _Kernel:
    def kernel(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
        data = inputs[0]
        if data is None:
            raise ValueError("the input is left out")
        with np.errstate(all="ignore"):
            return (np.asarray(function(data)),)

    return kernel


def _divide(left: Array, right: Array) -> Array:
    if left.dtype.kind not in "iu":
        return np.asarray(left / right)
    if np.any(right == 0):
        raise ValueError("integer division by zero")
    # Integer division truncates towards zero; numpy's floors.
    quotient = left // right
    return np.asarray(quotient + ((left % right != 0) & ((left < 0) != (right < 0))).astype(left.dtype))


def _mod(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    left, right = _operands(node, inputs)
    if left.dtype.kind not in "iu" or np.any(right == 0):
        return None
    return (np.asarray(np.fmod(left, right) if node.attrs.get("fmod", 0) else np.mod(left, right)),)


def _fold_left(function: Callable[[Array, Array], Array]) -> _Kernel:
    def kernel(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
        arrays = [array for array in inputs if array is not None]
        if not arrays or (arrays[0].dtype.kind not in "iub" and len(arrays) > 2):
            return None
        result = arrays[0]
        with np.errstate(all="ignore"):
            for array in arrays[1:]:
                result = np.asarray(function(result, array))
        return (result,)

    return kernel


def _power(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    base, exponent = _operands(node, inputs)
    if base.dtype.kind not in "iu" or exponent.dtype.kind not in "iu" or np.any(exponent < 0):
        return None
    return (np.asarray(np.power(base, exponent.astype(base.dtype))),)


def _where(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    condition, yes, no = inputs
    if condition is None or yes is None or no is None or yes.dtype != no.dtype:
        return None
    return (np.where(condition, yes, no),)


def cast(array: Array, dtype: str) -> Array | None:
    """``Cast``, where the result is beyond doubt: not to float8 or narrower, and to integers only in range."""
    source = str(array.dtype)
    if source == dtype:
        return array
    if source not in _WIDE | _INTEGERS or dtype not in _WIDE | _INTEGERS:
        return None
    if source in _WIDE and dtype in _INTEGERS and dtype != "bool":
        info = np.iinfo(dtype)
        wide = np.asarray(array, dtype=np.float64)
        if not (np.all(np.isfinite(wide)) and np.all(wide >= float(info.min)) and np.all(wide < float(info.max))):
            return None
    with np.errstate(all="ignore"):
        return array.astype(numpy_dtype(dtype))


def _cast(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    data, to = inputs[0], node.attrs.get("to")
    if data is None or not isinstance(to, int):
        return None
    result = cast(data, dtype_name(to))
    return None if result is None else (result,)


def _cast_like(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    data, like = inputs[0], inputs[1]
    if data is None or like is None:
        return None
    result = cast(data, str(like.dtype))
    return None if result is None else (result,)


def _range(node: Node, inputs: _Inputs) -> Sequence[Array] | None:
    start, limit, delta = inputs
    if start is None or limit is None or delta is None or start.dtype.kind not in "iu" or int(delta) == 0:
        return None
    return (np.arange(int(start), int(limit), int(delta), dtype=start.dtype),)


def _reciprocal(data: Array) -> Array:
    return np.asarray(np.ones((), dtype=data.dtype) / data)


KERNELS: Mapping[str, _Kernel] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Mod": _mod,
    "Pow": _power,
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Xor": _binary(np.logical_xor),
    "Not": _unary(np.logical_not),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(_reciprocal),
    "Min": _fold_left(np.minimum),
    "Max": _fold_left(np.maximum),
    "Sum": _fold_left(np.add),
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Range": _range,
}
