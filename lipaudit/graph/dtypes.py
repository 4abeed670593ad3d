"""Names of element types: ONNX enumeration <-> the spelling of numpy and ml_dtypes used in :class:`~lipaudit.graph.ir.Value`."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper

__all__ = ["DOUBLE", "PACKED_BITS", "dtype_name", "elem_type", "numpy_dtype", "stored_bytes"]

DOUBLE = int(TensorProto.DOUBLE)

# Types that raw_data stores several to a byte (onnx.proto, comment of TensorProto.raw_data): bits per element.
PACKED_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2, "float6_e2m3fn": 6, "float6_e3m2fn": 6}


@cache
def _tables() -> tuple[dict[int, str], dict[str, int]]:
    names: dict[int, str] = {}
    for number in TensorProto.DataType.values():
        if number == TensorProto.UNDEFINED:
            continue
        names[number] = "string" if number == TensorProto.STRING else str(helper.tensor_dtype_to_np_dtype(number))
    return names, {name: number for number, name in names.items()}


def dtype_name(elem: int) -> str:
    """The name of an ONNX element type; "" for UNDEFINED and for numbers that ONNX does not know."""
    return _tables()[0].get(elem, "")


def elem_type(name: str) -> int:
    """The ONNX number of a dtype name; 0 (UNDEFINED) if there is none."""
    return _tables()[1].get(name, 0)


@cache
def numpy_dtype(name: str) -> np.dtype:
    """The numpy (or ml_dtypes) dtype of a name; strings are objects.

    Raises
    ------
    KeyError
        If ONNX has no such type.
    """
    return np.dtype(helper.tensor_dtype_to_np_dtype(_tables()[1][name]))


def stored_bytes(name: str, elements: int) -> int:
    """Bytes that ``raw_data`` (or an external file) must hold for that many elements."""
    bits = PACKED_BITS.get(name)
    return (elements * bits + 7) // 8 if bits else elements * numpy_dtype(name).itemsize
