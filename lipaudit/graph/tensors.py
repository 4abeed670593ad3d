"""Stored tensors become :class:`~lipaudit.graph.ir.Constant` objects that view the file.

Payloads in ``raw_data`` are views of the model's bytes, external ones are views of a map; nothing is copied. Packed
types (4, 2 and 6 bits) and the typed fields (``float_data`` and its siblings) have no such view and are unpacked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, numpy_helper

from lipaudit.errors import ModelError
from lipaudit.graph.dtypes import PACKED_BITS, dtype_name, elem_type, numpy_dtype, stored_bytes
from lipaudit.graph.external import ExternalFiles
from lipaudit.graph.ir import Constant

__all__ = ["MAX_ELEMENTS", "TensorReader", "checked_shape"]

Array = NDArray[Any]

# No index of a tensor this large fits the arithmetic of any runtime; it is a damaged or hostile file.
MAX_ELEMENTS = 1 << 48


def checked_shape(dims: tuple[int, ...], what: str, where: str) -> tuple[int, ...]:
    """The dims themselves, if none is negative and their product is a sensible number of elements.

    Raises
    ------
    ModelError
        Otherwise, naming ``what``.
    """
    if any(d < 0 for d in dims):
        raise ModelError(f"{what} has a negative dimension: {list(dims)}", where=where)
    if prod(dims) > MAX_ELEMENTS or any(d > MAX_ELEMENTS for d in dims):
        raise ModelError(f"{what} has impossible dimensions: {list(dims)}", where=where)
    return dims


@dataclass(frozen=True)
class TensorReader:
    """Reads the tensors of one model.

    Parameters
    ----------
    path
        The model file, for messages.
    data
        Its bytes.
    files
        Its external data.
    """

    path: str
    data: bytes
    files: ExternalFiles

    def constant(self, tensor: TensorProto, name: str, source: str, payload: tuple[int, int] | None = None) -> Constant:
        """A stored tensor.

        Parameters
        ----------
        tensor
            The proto; its payload may have been cut out.
        name
            Value name of the result.
        source
            For messages ("initializer", "Constant node").
        payload
            (offset, length) of the raw payload in ``data``, if it was cut out.

        Raises
        ------
        ModelError
            If type, shape and payload do not fit each other.
        """
        dtype = dtype_name(tensor.data_type)
        if not dtype:
            raise ModelError(f"tensor {name!r} has the unknown element type {tensor.data_type}", where=self.path)
        shape = checked_shape(tuple(tensor.dims), f"tensor {name!r}", self.path)
        if tensor.HasField("segment"):
            raise ModelError(f"tensor {name!r} is stored in segments, which is not supported", where=self.path)
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if any(isinstance(text, bytes) for pair in entries.items() for text in pair):
                raise ModelError(f"tensor {name!r}: its external data is not described in valid UTF-8", where=self.path)
            if dtype == "string":
                raise ModelError(f"tensor {name!r}: strings cannot be external data", where=self.path)
            view = self.files.view(entries, stored_bytes(dtype, prod(shape)), name)
            return self._viewed(name, dtype, shape, view, f"external data {entries.get('location', '')}")
        if payload is not None:
            offset, length = payload
            return self._viewed(name, dtype, shape, memoryview(self.data)[offset : offset + length], source)
        if tensor.HasField("raw_data"):
            return self._viewed(name, dtype, shape, memoryview(tensor.raw_data), source)
        return self._typed(tensor, name, dtype, shape, source)

    def _viewed(self, name: str, dtype: str, shape: tuple[int, ...], raw: memoryview, source: str) -> Constant:
        if dtype == "string":
            raise ModelError(f"tensor {name!r}: strings cannot be raw data", where=self.path)
        expected = stored_bytes(dtype, prod(shape))
        if len(raw) != expected:
            raise ModelError(
                f"tensor {name!r} of type {dtype} and shape {list(shape)} needs {expected} bytes but {len(raw)} are stored", where=self.path
            )
        load = _packed_loader(raw, dtype, shape) if dtype in PACKED_BITS else _view_loader(raw, dtype, shape)
        return Constant(name, dtype, shape, load, source=source)

    def _typed(self, tensor: TensorProto, name: str, dtype: str, shape: tuple[int, ...], source: str) -> Constant:
        if prod(shape) and not tensor.ByteSize():
            raise ModelError(f"tensor {name!r} of shape {list(shape)} holds no data", where=self.path)
        stored = max(
            len(field)
            for field in (
                tensor.float_data,
                tensor.int32_data,
                tensor.int64_data,
                tensor.double_data,
                tensor.uint64_data,
                tensor.string_data,
            )
        )
        # At most one element a stored number (packed types: up to four). Without this check a small file could ask for a huge array.
        if prod(shape) > 4 * stored:
            message = f"tensor {name!r} of shape {list(shape)} needs {prod(shape)} elements but {stored} are stored"
            raise ModelError(message, where=self.path)
        try:
            array = np.asarray(numpy_helper.to_array(tensor)).reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelError(f"tensor {name!r} of type {dtype} and shape {list(shape)} is malformed: {error}", where=self.path) from None
        return Constant(name, dtype, shape, lambda: array, source=source)

    def sparse(self, tensor: SparseTensorProto, name: str, source: str, max_bytes: int) -> Constant:
        """A sparse tensor, made dense when it is read.

        Raises
        ------
        ModelError
            If it is malformed, or larger than ``max_bytes`` when dense.
        """
        shape = checked_shape(tuple(tensor.dims), f"sparse tensor {name!r}", self.path)
        values = self.constant(tensor.values, name, source)
        indices = self.constant(tensor.indices, name, source)
        if stored_bytes(values.dtype, prod(shape)) > max_bytes:
            raise ModelError(f"sparse tensor {name!r} of shape {list(shape)} is too large to be made dense", where=self.path)
        flat = indices.array()
        if indices.dtype != "int64" or len(values.shape) != 1 or flat.shape[:1] != values.shape:
            raise ModelError(f"sparse tensor {name!r} has values and indices that do not fit each other", where=self.path)
        if flat.ndim == 2 and flat.shape[1] == len(shape):
            inside = bool(np.all((flat >= 0) & (flat < np.asarray(shape, dtype=np.int64))))
            flat = np.ravel_multi_index(tuple(flat.T), shape) if inside and flat.size else np.zeros(0, np.int64)
            valid = inside
        else:
            valid = flat.ndim == 1 and bool(np.all((flat >= 0) & (flat < prod(shape))))
        if not valid:
            raise ModelError(f"sparse tensor {name!r} has an index outside its shape {list(shape)}", where=self.path)

        def load() -> Array:
            dense = np.zeros(prod(shape), dtype=numpy_dtype(values.dtype))
            dense[flat] = values.array()
            return dense.reshape(shape)

        return Constant(name, values.dtype, shape, load, source=source)


def _view_loader(raw: memoryview, dtype: str, shape: tuple[int, ...]) -> Callable[[], Array]:
    def load() -> Array:
        if not len(raw):
            return np.zeros(shape, dtype=numpy_dtype(dtype))
        return np.frombuffer(raw, dtype=numpy_dtype(dtype)).reshape(shape)

    return load


# Elements that are unpacked at a time; a multiple of 12, so that such a piece ends with a byte whatever the type.
_PIECE = 12 << 17


def _packed_loader(raw: memoryview, dtype: str, shape: tuple[int, ...]) -> Callable[[], Array]:
    bits = PACKED_BITS[dtype]

    def load() -> Array:
        out = np.empty(prod(shape), dtype=numpy_dtype(dtype))
        for at in range(0, out.size, _PIECE):
            count = min(_PIECE, out.size - at)
            piece = bytes(raw[at * bits // 8 : ((at + count) * bits + 7) // 8])
            out[at : at + count] = numpy_helper.to_array(TensorProto(data_type=elem_type(dtype), dims=[count], raw_data=piece))
        return out.reshape(shape)

    return load
