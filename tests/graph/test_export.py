"""A graph that was exported runs, in float32 and in float64, with taps, fills and subgraphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lipaudit.errors import ModelError
from lipaudit.graph import export
from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Constant
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from tests.graph.running import feed, model, session, simplified, write

N = helper.make_node
W = np.random.default_rng(3).standard_normal((3, 3)).astype(np.float32)


def test_taps_come_after_the_outputs(tmp_path: Path) -> None:
    graph = simplified(model([N("MatMul", ["x", "w"], ["h"]), N("Relu", ["h"], ["y"])], {"x": [1, 3]}, ["y"], {"w": W}), tmp_path)
    built = session(to_model(graph, taps=("h", "y")))
    assert [output.name for output in built.get_outputs()] == ["y", "h"]
    outputs = built.run(None, feed(graph))
    np.testing.assert_array_equal(np.maximum(outputs[1], 0), outputs[0])


def test_fills_are_small_in_the_file(tmp_path: Path) -> None:
    nodes = [N("ConstantOfShape", ["s"], ["c"]), N("Add", ["x", "c"], ["y"])]
    graph = simplified(model(nodes, {"x": [1, 1000]}, ["y"], {"s": np.array([1000, 1000])}), tmp_path)
    proto = to_model(graph)
    assert proto.ByteSize() < 2000
    assert session(proto).run(None, feed(graph))[0].shape == (1000, 1000)


def test_an_exported_graph_loads_again_as_itself(tmp_path: Path) -> None:
    nodes = [N("Conv", ["x", "k"], ["h"], pads=[1, 1, 1, 1], auto_pad="NOTSET"), N("Clip", ["h", "", "hi"], ["y"])]
    constants = {"k": np.ones((2, 1, 3, 3), np.float32), "hi": np.float32(6)}
    graph = simplified(model(nodes, {"x": [1, 1, 5, 5]}, ["y"], constants), tmp_path)
    again = load(write(to_model(graph), tmp_path, "again.onnx")).graph
    assert [(n.name, n.op, n.inputs, n.outputs, n.version, n.attrs) for n in again.nodes] == [
        (n.name, n.op, n.inputs, n.outputs, n.version, n.attrs) for n in graph.nodes
    ]


def test_everything_is_double(tmp_path: Path) -> None:
    nodes = [
        N("MatMul", ["x", "w"], ["h"]), N("Cast", ["h"], ["c"], to=TensorProto.FLOAT16), N("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        N("ConstantOfShape", ["s"], ["f"]), N("Add", ["d", "f"], ["y"]),
    ]  # fmt: skip
    graph = simplified(model(nodes, {"x": [1, 3]}, ["y"], {"w": W, "s": np.array([3])}), tmp_path)
    x = np.random.default_rng(0).standard_normal((1, 3))
    (y,) = session(to_model(graph, double=True)).run(None, {"x": x})
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, x @ W.astype(np.float64), rtol=1e-14)


def test_inputs_that_cannot_be_double_keep_their_type(tmp_path: Path) -> None:
    nodes = [N("Resize", ["x", "", "scales"], ["h"], mode="nearest"), N("Mul", ["h", "scales"], ["y"])]
    proto = model(nodes, {"x": [1, 1, 2, 4]}, ["y"], {"scales": np.array([1, 1, 2, 1], np.float32)})
    double = to_model(simplified(proto, tmp_path), double=True)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(double, strict_mode=True))
    from onnx.reference import ReferenceEvaluator

    x = np.random.default_rng(0).standard_normal((1, 1, 2, 4))
    y = np.asarray(ReferenceEvaluator(double).run(None, {"x": x})[0])
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, np.repeat(x, 2, axis=2) * np.array([1.0, 1.0, 2.0, 1.0]))


def test_subgraphs_are_double_too(tmp_path: Path) -> None:
    branch = [
        helper.make_graph([N(op, ["x", "w"], [out])], out, [], [helper.make_tensor_value_info(out, 1, None)])
        for op, out in (("Mul", "t"), ("Add", "e"))
    ]
    nodes = [N("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1])]
    proto = model(nodes, {"x": [3], "c": []}, ["y"], {"w": W[0]}, types={"c": TensorProto.BOOL})
    built = session(to_model(simplified(proto, tmp_path), double=True))
    x = np.array([1.0, 2.0, 1 / 3])
    for condition, expected in ((True, x * W[0].astype(np.float64)), (False, x + W[0].astype(np.float64))):
        np.testing.assert_array_equal(built.run(None, {"x": x, "c": np.array(condition)})[0], expected)


def test_weights_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "EMBEDDED_BYTES", 1000)
    weights = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    graph = simplified(model([N("MatMul", ["x", "w"], ["y"])], {"x": [1, 20]}, ["y"], {"w": weights}), tmp_path)
    with pytest.raises(ModelError, match="1,600 bytes"):
        to_model(graph)

    def external(constant: Constant) -> tuple[str, int, int]:
        (tmp_path / "data").write_bytes(constant.array().tobytes())
        return "data", 0, 1600

    again = simplify(load(write(to_model(graph, external=external), tmp_path)).graph)
    np.testing.assert_array_equal(again.constants["w"].array(), weights)
