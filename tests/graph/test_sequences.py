"""Sequences at constant places become plain tensors: the same function, value for value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from lipaudit.graph.export import to_model
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify


def i64(name: str, value: Any) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(value, dtype=np.int64), name)


node = helper.make_node


def body() -> onnx.GraphProto:
    """Of an element of each of two sequences and a tensor, with a value from outside and a constant of its own: a product, a sum."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b", "t", "product", "total")]
    nodes = [node("Mul", ["a", "b"], ["m"]), node("Add", ["m", "outer"], ["product"]), node("Sub", ["b", "own"], ["s"]),
             node("Add", ["s", "t"], ["total"])]  # fmt: skip
    own = onnx.numpy_helper.from_array(np.float32(0.5), "own")
    return helper.make_graph(nodes, "body", info[:3], info[3:], [own])


CASES: dict[str, tuple[list[Any], list[Any], int]] = {
    "a body over the elements of two sequences": (
        [
            node("Tanh", ["x"], ["outer_x"]),
            node("ReduceMax", ["outer_x"], ["outer"], keepdims=0),
            node("SplitToSequence", ["x"], ["q"], axis=0, keepdims=0),
            node("SplitToSequence", ["outer_x"], ["r"], axis=0, keepdims=0),
            node("SequenceMap", ["q", "r", "outer"], ["u", "v"], body=body()),
            node("ConcatFromSequence", ["u"], ["c"], axis=0, new_axis=1),
            node("SequenceAt", ["v", "p"], ["w"]),
            node("Add", ["c", "w"], ["y"]),
        ],
        [i64("p", 1)],
        17,
    ),
    "parts of equal length": (
        [node("SplitToSequence", ["x", "s"], ["q"], axis=1), node("SequenceAt", ["q", "p"], ["a"]), node("Relu", ["a"], ["y"])],
        [i64("s", 4), i64("p", -1)],
        12,
    ),
    "parts of stated lengths": (
        [node("SplitToSequence", ["x", "s"], ["q"], axis=1), node("SequenceAt", ["q", "p"], ["a"]), node("Relu", ["a"], ["y"])],
        [i64("s", [2, 4]), i64("p", 1)],
        17,
    ),
    "single rows, one erased, stacked": (
        [
            node("SplitToSequence", ["x"], ["q"], axis=0, keepdims=0),
            node("SequenceErase", ["q", "p"], ["r"]),
            node("ConcatFromSequence", ["r"], ["y"], axis=-1, new_axis=1),
        ],
        [i64("p", 1)],
        17,
    ),
    "inserted at the front and at the end, counted": (
        [
            node("Relu", ["x"], ["r"]),
            node("SequenceEmpty", [], ["e"]),
            node("SequenceInsert", ["e", "r"], ["q"]),
            node("SequenceInsert", ["q", "x", "p"], ["v"]),
            node("SequenceInsert", ["v", "x"], ["w"]),
            node("SequenceLength", ["w"], ["n"]),
            node("Cast", ["n"], ["nf"], to=1),
            node("ConcatFromSequence", ["w"], ["c"], axis=0),
            node("Mul", ["c", "nf"], ["y"]),
        ],
        [i64("p", 0)],
        17,
    ),
    "optional": (
        [
            node("Optional", ["x"], ["o"]),
            node("OptionalHasElement", ["o"], ["h"]),
            node("Cast", ["h"], ["hf"], to=1),
            node("OptionalGetElement", ["o"], ["e"]),
            node("Add", ["e", "hf"], ["y"]),
        ],
        [],
        18,
    ),
}


def model(nodes: list[Any], stored: list[Any], opset: int) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("name", CASES)
def test_same_function_without_sequences(name: str, tmp_path: Path) -> None:
    built = model(*CASES[name])
    onnx.save(built, tmp_path / "m.onnx")
    graph = simplify(load(str(tmp_path / "m.onnx")).graph)
    assert not any("Sequence" in n.op or "Optional" in n.op for n in graph.nodes)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    runs: list[Any] = []
    for each in (built, to_model(graph)):
        runs += InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(*runs)


def test_unknown_places_stay(tmp_path: Path) -> None:
    """The position is an input: nothing is replaced, and the pass ends."""
    built = model([node("SplitToSequence", ["x"], ["q"], axis=0), node("SequenceAt", ["q", "p"], ["y"])], [], 17)
    built.graph.input.append(helper.make_tensor_value_info("p", TensorProto.INT64, []))
    onnx.save(built, tmp_path / "m.onnx")
    graph = simplify(load(str(tmp_path / "m.onnx")).graph)
    assert [n.op for n in graph.nodes] == ["SplitToSequence", "SequenceAt"]
