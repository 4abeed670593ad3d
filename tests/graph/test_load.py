"""What loading makes of a legal file."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipaudit.errors import ModelError
from lipaudit.graph import spec
from lipaudit.graph.ir import Constant, Graph
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from tests.graph.running import assert_same_function, model, simplified, write

N = helper.make_node
W = np.arange(12, dtype=np.float32).reshape(3, 4)


def mlp() -> onnx.ModelProto:
    return model([N("MatMul", ["x", "w"], ["h"]), N("Relu", ["h"], ["y"])], {"x": [1, 3]}, ["y"], {"w": W})


def test_plain_gzip_and_stdin_are_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = mlp().SerializeToString()
    plain, packed = tmp_path / "m.onnx", tmp_path / "m.onnx.gz"
    plain.write_bytes(raw)
    packed.write_bytes(gzip.compress(raw))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    for path in (str(plain), str(packed), "-"):
        loaded = load(path)
        assert [node.op for node in loaded.graph.nodes] == ["MatMul", "Relu"]
        np.testing.assert_array_equal(loaded.graph.constants["w"].array(), W)
    assert load(str(plain)).sha256 != load(str(packed)).sha256


def test_the_suffix_does_not_choose_the_parser(tmp_path: Path) -> None:
    for name in ("m.json", "m.textproto", "m"):
        assert load(write(mlp(), tmp_path, name)).nodes == 2


def test_facts_of_the_file(tmp_path: Path) -> None:
    proto = mlp()
    proto.producer_name, proto.producer_version = "maker", "1.2"
    loaded = load(write(proto, tmp_path))
    assert (loaded.ir_version, loaded.producer, loaded.nodes, loaded.parameters) == (8, "maker 1.2", 2, 12)
    assert len(loaded.sha256) == 64


def test_initializers_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    proto = mlp()
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    graph = load(write(proto, tmp_path)).graph
    assert [value.name for value in graph.inputs] == ["x"]


def test_large_payloads_are_views_of_the_file(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
    proto = model([N("MatMul", ["x", "w"], ["y"])], {"x": [1, 300]}, ["y"], {"w": weights})
    constant = load(write(proto, tmp_path)).graph.constants["w"]
    first, second = constant.array(), constant.array()
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(first, weights)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": numpy_helper.from_array(W)}, W),
        ({"value_float": 1.5}, np.array(1.5, np.float32)),
        ({"value_floats": [1.5, 2.0]}, np.array([1.5, 2.0], np.float32)),
        ({"value_int": 7}, np.array(7, np.int64)),
        ({"value_ints": [7, 8]}, np.array([7, 8], np.int64)),
    ],
)
def test_constant_nodes_become_constants(tmp_path: Path, attributes: dict[str, object], expected: np.ndarray) -> None:
    proto = model([N("Constant", [], ["c"], **attributes), N("Identity", ["x"], ["y"])], {"x": [1]}, ["y"])
    constant = load(write(proto, tmp_path)).graph.constants["c"]
    np.testing.assert_array_equal(constant.array(), expected)
    assert (constant.dtype, constant.shape) == (str(expected.dtype), expected.shape)


def test_sparse_constants_become_dense(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "s")
    for indices in (np.array([1, 5]), np.array([[0, 1], [1, 2]])):
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64)), [2, 3])
        proto = model([N("Constant", [], ["c"], sparse_value=sparse), N("Add", ["x", "c"], ["y"])], {"x": [2, 3]}, ["y"])
        array = load(write(proto, tmp_path)).graph.constants["c"].array()
        np.testing.assert_array_equal(array, [[0, 2, 0], [0, 0, 3]])


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    proto = model([N("Relu", ["h"], ["y"]), N("MatMul", ["x", "w"], ["h"])], {"x": [1, 3]}, ["y"], {"w": W})
    assert [node.op for node in load(write(proto, tmp_path)).graph.nodes] == ["MatMul", "Relu"]


def test_nodes_without_a_name_get_one_and_names_are_unique(tmp_path: Path) -> None:
    nodes = [N("Relu", ["x"], ["a"]), N("Relu", ["a"], ["b"], name="same"), N("Relu", ["b"], ["c"], name="same")]
    names = [node.name for node in load(write(model(nodes, {"x": [1]}, ["c"]), tmp_path)).graph.nodes]
    assert names[0] == "Relu_0"
    assert names[1] == "same"
    assert len(set(names)) == 3


def test_versions_are_those_of_the_schema(tmp_path: Path) -> None:
    nodes = [N("Relu", ["x"], ["a"]), N("Gelu", ["a"], ["b"], domain="com.microsoft"), N("Thing", ["b"], ["c"], domain="my.own")]
    versions = [node.version for node in load(write(model(nodes, {"x": [1]}, ["c"], opset=13), tmp_path)).graph.nodes]
    assert versions == [13, 1, 0]


def test_open_dims_are_remembered(tmp_path: Path) -> None:
    proto = model([N("Relu", ["x"], ["y"])], {"x": ["batch", 3, "n"]}, ["y"])
    proto.graph.input[0].type.tensor_type.shape.dim.add()
    graph = load(write(proto, tmp_path)).graph
    assert graph.symbols == {"x": ("batch", 3, "n", "")}
    assert graph.inputs[0].shape is None


def test_subgraphs_are_graphs_with_captures(tmp_path: Path) -> None:
    then = helper.make_graph([N("Mul", ["x", "w"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([N("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    node = N("If", ["c"], ["y"], then_branch=then, else_branch=other)
    proto = model([node], {"c": [], "x": [3]}, ["y"], {"w": np.ones(3, np.float32)}, types={"c": TensorProto.BOOL})
    graph = load(write(proto, tmp_path)).graph
    branch = graph.nodes[0].attrs["then_branch"]
    assert isinstance(branch, Graph)
    assert branch.captures == ("x", "w")
    assert graph.captured_by(graph.nodes[0]) == ("x", "w")
    assert graph.consumers["w"] == (graph.nodes[0],)


def test_functions_are_inlined(tmp_path: Path) -> None:
    function = helper.make_function("my.own", "Twice", ["a"], ["b"], [N("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)], [])
    proto = model(
        [N("Twice", ["x"], ["h"], domain="my.own"), N("Twice", ["h"], ["y"], domain="my.own")], {"x": [3]}, ["y"], functions=[function]
    )
    graph = simplified(proto, tmp_path)
    assert [node.op for node in graph.nodes] == ["Add", "Add"]
    assert_same_function(proto, graph)


def test_a_model_without_nodes(tmp_path: Path) -> None:
    graph = simplified(model([], {"x": ["n"]}, ["w"], {"w": W}), tmp_path)
    assert graph.nodes == ()
    assert graph.outputs == ("w",)


def test_control_characters_in_names(tmp_path: Path) -> None:
    name = "bad\x1b[31m\nname"
    proto = model([N("Relu", ["x"], ["y"], name=name)], {"x": [1]}, ["y"])
    assert load(write(proto, tmp_path)).graph.nodes[0].name == name
    proto = model([N("Relu", ["no\x1bwhere"], ["y"], name=name)], {"x": [1]}, ["y"])
    with pytest.raises(ModelError) as error:
        load(write(proto, tmp_path))
    assert "\x1b" not in error.value.message
    assert "\n" not in error.value.message


def test_attributes_are_plain_values(tmp_path: Path) -> None:
    node = N("Pad", ["x"], ["y"], pads=[0, 1], value=0.5, mode="constant")
    shape = N("ConstantOfShape", ["s"], ["z"], value=numpy_helper.from_array(np.array([2.0], np.float32)))
    proto = model([node, shape], {"x": [3]}, ["y", "z"], {"s": np.array([2])}, opset=10)
    pad, fill = load(write(proto, tmp_path)).graph.nodes
    assert pad.attrs == {"pads": (0, 1), "value": 0.5, "mode": "constant"}
    assert isinstance(fill.attrs["value"], Constant)


def test_spec_holds_after_loading_and_simplifying(tmp_path: Path) -> None:
    graph = load(write(mlp(), tmp_path)).graph
    spec.check(graph)
    spec.check(simplify(graph))
