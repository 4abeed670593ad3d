"""Every element type, stored every way that ONNX has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipaudit.graph.dtypes import dtype_name, elem_type, stored_bytes
from lipaudit.graph.load import load
from tests.graph.running import model, write

N = helper.make_node
TYPES = [number for number in TensorProto.DataType.values() if number not in (TensorProto.UNDEFINED, TensorProto.STRING)]


def _tensor(number: int, *, raw: bool) -> onnx.TensorProto:
    dtype = helper.tensor_dtype_to_np_dtype(number)
    array = np.array([0, 1, 1, 0, 1, 1, 0], dtype=np.float32).astype(dtype).reshape(7, 1)
    tensor = numpy_helper.from_array(array, "w")
    if not raw:
        values = array.reshape(-1).real.astype(np.float32).tolist()
        tensor = helper.make_tensor("w", number, [7, 1], values)
    return tensor


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("number", TYPES, ids=[TensorProto.DataType.Name(number) for number in TYPES])
def test_every_type(tmp_path: Path, number: int, raw: bool) -> None:
    try:
        tensor = _tensor(number, raw=raw)
    except (ValueError, TypeError, KeyError) as error:
        pytest.skip(f"the installed onnx cannot write this: {error}")
    proto = model([N("Relu", ["x"], ["y"])], {"x": [1]}, ["y"])
    proto.graph.initializer.append(tensor)
    constant = load(write(proto, tmp_path)).graph.constants["w"]
    expected = numpy_helper.to_array(tensor)
    assert constant.dtype == dtype_name(number) == str(expected.dtype)
    assert constant.shape == (7, 1)
    np.testing.assert_array_equal(constant.array().astype(np.complex128), expected.astype(np.complex128))


def test_strings(tmp_path: Path) -> None:
    proto = model([N("Relu", ["x"], ["y"])], {"x": [1]}, ["y"])
    proto.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]))
    constant = load(write(proto, tmp_path)).graph.constants["s"]
    assert (constant.dtype, constant.shape) == ("string", (2,))


def test_names_and_numbers_are_inverse() -> None:
    for number in TYPES:
        assert elem_type(dtype_name(number)) == number
    assert dtype_name(999) == ""
    assert elem_type("nonsense") == 0


def test_packed_sizes() -> None:
    assert [stored_bytes("int4", n) for n in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert stored_bytes("uint2", 5) == 2
    assert stored_bytes("float32", 5) == 20


def test_empty_and_scalar(tmp_path: Path) -> None:
    proto = model([N("Relu", ["x"], ["y"])], {"x": [1]}, ["y"], {"e": np.zeros((0, 3), np.float32), "s": np.array(2.5, np.float32)})
    constants = load(write(proto, tmp_path)).graph.constants
    assert constants["e"].array().shape == (0, 3)
    assert constants["s"].array().shape == ()
    assert float(constants["s"].array()) == 2.5
