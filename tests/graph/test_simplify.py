"""Each pass keeps the function: the graph runs in onnxruntime before and after, to the last bit unless said otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipaudit.errors import ModelError, UsageError
from lipaudit.graph.ir import Graph
from lipaudit.graph.limits import Limits
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from tests.graph.running import assert_same_function, model, simplified, write

N = helper.make_node
RNG = np.random.default_rng(7)
W = RNG.standard_normal((4, 6)).astype(np.float32)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


# ---- pin


def test_first_axes_are_one_and_others_have_defaults(tmp_path: Path) -> None:
    nodes = [N("Relu", ["x"], ["y"]), N("Relu", ["s"], ["z"])]
    proto = model(nodes, {"x": ["n", 3, "h", "w"], "s": ["n", "t", 5]}, ["y", "z"])
    graph = simplified(proto, tmp_path)
    assert graph.value("y").shape == (1, 3, 64, 64)
    assert graph.value("z").shape == (1, 8, 5)
    assert graph.pinned == {"n": 1, "h": 64, "w": 64, "t": 8}


def test_sizes_by_symbol_and_by_place(tmp_path: Path) -> None:
    proto = model([N("Relu", ["x"], ["y"])], {"x": ["n", "t", "t"]}, ["y"])
    assert simplified(proto, tmp_path, {"t": 5}).value("y").shape == (1, 5, 5)
    graph = simplified(proto, tmp_path, {"x[0]": 2, "x[2]": 7})
    assert graph.value("y").shape == (2, 8, 7)
    assert graph.pinned == {"x[0]": 2, "t": 8, "x[2]": 7}


def test_anonymous_dims_are_pinned_by_place(tmp_path: Path) -> None:
    proto = model([N("Relu", ["x"], ["y"])], {"x": [2, 3]}, ["y"])
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.Clear()
    assert simplified(proto, tmp_path).pinned == {"x[0]": 1, "x[1]": 8}
    assert simplified(proto, tmp_path, {"x[1]": 4}).value("y").shape == (1, 4)


def test_a_cache_of_past_tokens(tmp_path: Path) -> None:
    inputs = {"ids": ["batch", "seq"], "past": ["batch", "past_seq", 4], "mask": ["batch", "total_seq"]}
    graph = simplified(model([N("Relu", ["mask"], ["y"])], inputs, ["y"]), tmp_path)
    assert graph.pinned["total_seq"] == graph.pinned["seq"] + graph.pinned["past_seq"]


def test_unknown_or_impossible_dims_are_usage_errors(tmp_path: Path) -> None:
    proto = model([N("Relu", ["x"], ["y"])], {"x": ["n", 3]}, ["y"])
    for dims in ({"m": 1}, {"x[1]": 4}, {"x": 4}, {"n": 0}, {"n": -1}):
        with pytest.raises(UsageError, match=next(iter(dims)).replace("[", r"\[")):
            simplified(proto, tmp_path, dims)


def test_larger_defaults_are_tried_when_inference_finds_a_contradiction(tmp_path: Path) -> None:
    nodes = [N("Conv", ["x", "w"], ["y"], kernel_shape=[20])]
    graph = simplified(model(nodes, {"x": ["n", 1, "t"]}, ["y"], {"w": np.ones((2, 1, 20), np.float32)}), tmp_path)
    assert graph.pinned["t"] == 64
    nodes = [N("Pad", ["x", "p"], ["y"], mode="reflect")]
    graph = simplified(model(nodes, {"x": ["n", "t"]}, ["y"], {"p": np.array([0, 64, 0, 64])}), tmp_path)
    assert graph.pinned["t"] == 512


# ---- shape arithmetic and folding


def test_shape_arithmetic_disappears(tmp_path: Path) -> None:
    nodes = [
        N("Shape", ["x"], ["s"]), N("Gather", ["s", "i0"], ["b"]), N("Unsqueeze", ["b", "ax"], ["b1"]),
        N("Concat", ["b1", "m1", "two"], ["t"], axis=0), N("Reshape", ["x", "t"], ["r"]),
        N("Shape", ["r"], ["s2"]), N("Slice", ["s2", "ax", "two"], ["h"]), N("ConstantOfShape", ["h"], ["c"]),
        N("Shape", ["c"], ["s3"]), N("Size", ["x"], ["n"]), N("Cast", ["n"], ["nf"], to=TensorProto.FLOAT),
        N("Unsqueeze", ["c", "two"], ["cu"]), N("Add", ["r", "cu"], ["a"]), N("Mul", ["a", "nf"], ["y"]),
    ]  # fmt: skip
    constants = {"i0": np.array(0), "ax": np.array([0]), "m1": np.array([-1]), "two": np.array([2])}
    proto = model(nodes, {"x": ["n", 6]}, ["y"], constants)
    graph = simplified(proto, tmp_path, {"n": 3})
    assert ops(graph) == ["Reshape", "Add", "Mul"]
    assert graph.value("r").shape == (3, 3, 2)
    assert_same_function(proto, graph)


def test_weights_behind_movement_are_views(tmp_path: Path) -> None:
    nodes = [N("Identity", ["w"], ["a"]), N("Transpose", ["a"], ["b"]), N("MatMul", ["x", "b"], ["y"])]
    proto = model(nodes, {"x": [2, 6]}, ["y"], {"w": W})
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["MatMul"]
    np.testing.assert_array_equal(graph.constants["b"].array(), W.T)
    assert not graph.constants["b"].array().flags.owndata
    assert_same_function(proto, graph, rtol=1e-6)


@pytest.mark.parametrize("form", ["tensor", "axis", "block"])
def test_dequantized_weights(tmp_path: Path, form: str) -> None:
    weights = RNG.integers(-128, 128, (4, 6)).astype(np.int8)
    scale, zero, attrs = {
        "tensor": (np.float32(0.1), np.int8(3), {}),
        "axis": (np.array([0.1, 0.2, 0.3, 0.4], np.float32), np.array([1, 2, 3, -4], np.int8), {"axis": 0}),
        "block": (RNG.random((2, 6)).astype(np.float32), np.ones((2, 6), np.int8), {"axis": 0, "block_size": 2}),
    }[form]
    attributes: dict[str, Any] = attrs
    nodes = [N("DequantizeLinear", ["q", "s", "z"], ["w"], **attributes), N("Add", ["x", "w"], ["y"])]
    proto = model(nodes, {"x": [4, 6]}, ["y"], {"q": weights, "s": scale, "z": zero}, opset=21)
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Add"]
    assert_same_function(proto, graph)


def test_float_constants_are_folded_as_the_runtime_rounds_them(tmp_path: Path) -> None:
    nodes = [
        N("Sqrt", ["a"], ["b"]), N("Div", ["w", "b"], ["c"]), N("Exp", ["c"], ["d"]), N("Softmax", ["d"], ["e"]),
        N("MatMul", ["e", "v"], ["f"]), N("Add", ["x", "f"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"x": [4, 3]}, ["y"], {"a": np.float32(64.3), "w": W, "v": RNG.standard_normal((6, 3)).astype(np.float32)})
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Add"]
    assert_same_function(proto, graph, rtol=1e-6)


def test_uniform_weights_are_never_materialised(tmp_path: Path) -> None:
    one = numpy_helper.from_array(np.array([0.25], np.float32))
    nodes = [
        N("ConstantOfShape", ["s"], ["a"], value=one), N("Unsqueeze", ["a", "ax"], ["b"]), N("Transpose", ["b"], ["c"], perm=[2, 0, 1]),
        N("Reshape", ["c", "t"], ["d"]), N("Mul", ["d", "two"], ["e"]), N("Cast", ["e"], ["f"], to=TensorProto.FLOAT),
        N("MatMul", ["x", "f"], ["y"]),
    ]  # fmt: skip
    constants = {"s": np.array([3000, 50]), "ax": np.array([0]), "t": np.array([50, 3000]), "two": np.float32(2)}
    proto = model(nodes, {"x": [1, 50]}, ["y"], constants)
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["MatMul"]
    constant = graph.constants["f"]
    assert (constant.fill, constant.shape, constant.dtype) == (0.5, (50, 3000), "float32")
    assert constant.array().strides == (0, 0)
    assert_same_function(proto, graph)


def test_results_over_the_budget_are_computed_when_read(tmp_path: Path) -> None:
    weights = RNG.integers(-128, 128, (64, 64)).astype(np.int8)
    nodes = [N("DequantizeLinear", ["q", "s"], ["w"]), N("MatMul", ["x", "w"], ["y"])]
    path = write(model(nodes, {"x": [1, 64]}, ["y"], {"q": weights, "s": np.float32(0.5)}), tmp_path)
    graph = simplify(load(path).graph, limits=Limits(fold_bytes=1000))
    assert ops(graph) == ["MatMul"]
    first, second = graph.constants["w"].array(), graph.constants["w"].array()
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, weights.astype(np.float32) / 2)


def test_random_nodes_are_never_folded(tmp_path: Path) -> None:
    nodes = [
        N("RandomNormal", [], ["r"], shape=[3]), N("RandomUniformLike", ["w"], ["u"]), N("Bernoulli", ["w"], ["b"]),
        N("Add", ["r", "u"], ["a"]), N("Add", ["a", "b"], ["c"]), N("Add", ["x", "c"], ["y"]),
    ]  # fmt: skip
    graph = simplified(model(nodes, {"x": [3]}, ["y"], {"w": np.full(3, 0.5, np.float32)}), tmp_path)
    assert ops(graph) == ["RandomNormal", "RandomUniformLike", "Bernoulli", "Add", "Add", "Add"]


@pytest.mark.parametrize(
    ("op", "attributes", "arrays"),
    [
        ("Slice", {}, [W, np.array([-1, 5]), np.array([-10, -100]), np.array([0, 1]), np.array([-1, -2])]),
        ("Slice", {}, [W, np.array([1]), np.array([2**62])]),
        ("Gather", {"axis": 1}, [W, np.array([[0, -1], [2, 2]])]),
        ("Gather", {"axis": 0}, [W, np.array(-1)]),
        ("Split", {"axis": 1}, [W, np.array([2, 4])]),
        ("Tile", {}, [W, np.array([2, 1])]),
        ("Expand", {}, [W[:1], np.array([2, 3, 1])]),
        ("Squeeze", {}, [W[None, :, None], np.array([0, -2])]),
        ("Unsqueeze", {}, [W, np.array([0, -1])]),
        ("Flatten", {"axis": 2}, [np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)]),
        ("Flatten", {"axis": -1}, [np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)]),
        ("Reshape", {}, [np.arange(24.0, dtype=np.float32).reshape(2, 3, 4), np.array([0, -1])]),
        ("Reshape", {"allowzero": 1}, [np.zeros((0, 3), np.float32), np.array([3, 0])]),
        ("Concat", {"axis": -1}, [W, W[:, :2]]),
        ("Div", {}, [np.array([-7, 7, -8, 8]), np.array([2, -2, 3, 3])]),
        ("Mod", {}, [np.array([-7, 7, -8]), np.array([3, -3, 3])]),
        ("Mod", {"fmod": 1}, [np.array([-7, 7, -8]), np.array([3, -3, 3])]),
        ("Pow", {}, [np.array([2, -3]), np.array([3, 2])]),
        ("Range", {}, [np.array(10), np.array(0), np.array(-3)]),
        ("Range", {}, [np.float32(0), np.float32(1), np.float32(0.1)]),
        ("Where", {}, [np.array([True, False]), np.array([[1.0, 2.0]], np.float32), np.float32(5)]),
        ("Min", {}, [W, -W, np.float32(0)]),
        ("Cast", {"to": TensorProto.INT32}, [np.array([-1.7, 1.7, 3e5], np.float32)]),
        ("Cast", {"to": TensorProto.FLOAT16}, [np.array([1e-8, 1.0002, 7e4], np.float32)]),
        ("Cast", {"to": TensorProto.BOOL}, [np.array([0.0, -0.5], np.float32)]),
        ("Equal", {}, [np.array([1, 2]), np.array([[1], [2]])]),
        ("CumSum", {}, [W, np.array(1)]),
        ("NonZero", {}, [np.array([[1, 0], [0, 3]])]),
        ("Trilu", {"upper": 0}, [W]),
        ("ScatterND", {}, [W, np.array([[1]]), np.zeros((1, 6), np.float32)]),
        ("GatherND", {}, [W, np.array([[1, 2], [0, 0]])]),
        ("ReduceSum", {"keepdims": 0}, [W, np.array([1])]),
        ("ReduceProd", {"keepdims": 0}, [np.array([2, 3])]),
        ("Cos", {}, [W]),
        ("Conv", {}, [RNG.standard_normal((1, 2, 5, 5)).astype(np.float32), RNG.standard_normal((3, 2, 3, 3)).astype(np.float32)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folding_gives_what_the_runtime_gives(tmp_path: Path, op: str, attributes: dict[str, Any], arrays: list[Any]) -> None:
    names = [f"c{index}" for index in range(len(arrays))]
    outputs = ["o0", "o1"] if op == "Split" else ["o0"]
    nodes = [N(op, names, outputs, **attributes), *(N("Identity", [name], [f"y{name}"]) for name in outputs), N("Relu", ["x"], ["y"])]
    proto = model(nodes, {"x": [1]}, [*(f"y{name}" for name in outputs), "y"], dict(zip(names, arrays, strict=True)))
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Relu"]
    assert_same_function(proto, graph)


def test_old_broadcasting_is_aligned_at_the_axis(tmp_path: Path) -> None:
    # Add-6: broadcast=1, axis=0 aligns (4,) with the rows of (4, 6). No runtime at hand runs it, so the truth is written out.
    nodes = [N("Add", ["w", "b"], ["c"], broadcast=1, axis=0), N("Relu", ["x"], ["r"]), N("Add", ["r", "c"], ["y"])]
    bias = np.arange(4, dtype=np.float32)
    graph = simplified(model(nodes, {"x": [4, 6]}, ["y"], {"w": W, "b": bias}, opset=6), tmp_path)
    np.testing.assert_array_equal(graph.constants["c"].array(), W + bias[:, None])


# ---- branches and loops


def _branch(nodes: list[Any], output: str, constants: dict[str, np.ndarray] | None = None) -> Any:
    stored = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], stored)


@pytest.mark.parametrize("condition", [True, False])
def test_a_decided_if_is_its_branch(tmp_path: Path, condition: bool) -> None:
    # Both branches use the names of the outer graph for values of their own, and read an outer value.
    then = _branch([N("Mul", ["h", "k"], ["t"]), N("Neg", ["t"], ["o"])], "o", {"k": np.float32(3)})
    other = _branch([N("Add", ["h", "k"], ["t"]), N("Abs", ["t"], ["o"])], "o", {"k": np.float32(5)})
    nodes = [
        N("Relu", ["x"], ["h"]), N("Shape", ["x"], ["s"]), N("Size", ["s"], ["r"]), N("Equal", ["r", "two"], ["c"]),
        N("If", ["c"], ["i"], name="if", then_branch=then, else_branch=other), N("Mul", ["i", "i"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"x": [3, 2] if condition else [3]}, ["y"], {"two": np.array(2)})
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Relu", *(["Mul", "Neg"] if condition else ["Add", "Abs"]), "Mul"]
    assert_same_function(proto, graph)


def test_names_of_an_inlined_branch_do_not_clash(tmp_path: Path) -> None:
    first = _branch([N("Mul", ["x", "k"], ["o"], name="n")], "o", {"k": np.float32(3)})
    second = _branch([N("Add", ["x", "k"], ["o"], name="n")], "o", {"k": np.float32(5)})
    nodes = [
        N("If", ["c"], ["a"], name="if_1", then_branch=first, else_branch=second),
        N("If", ["d"], ["b"], name="if_2", then_branch=first, else_branch=second),
        N("Sub", ["a", "b"], ["y"], name="n"),
    ]
    proto = model(nodes, {"x": [3]}, ["y"], {"c": np.array(True), "d": np.array(False)})
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Mul", "Add", "Sub"]
    assert len({node.name for node in graph.nodes}) == 3
    assert_same_function(proto, graph)


def test_an_open_if_keeps_simplified_branches(tmp_path: Path) -> None:
    then = _branch([N("Shape", ["x"], ["s"]), N("Expand", ["k", "s"], ["e"]), N("Add", ["h", "e"], ["o"])], "o", {"k": np.float32([3.0])})
    other = _branch([N("Identity", ["h"], ["o"])], "o")
    nodes = [N("Identity", ["x"], ["h0"]), N("Dropout", ["h0"], ["h"]), N("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    proto = model(nodes, {"x": [3], "c": []}, ["y"], types={"c": TensorProto.BOOL})
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["If"]
    inner = graph.nodes[0].attrs["then_branch"]
    assert ops(inner) == ["Add"]
    assert inner.captures == ("x",)
    assert graph.value("y").shape == (3,)
    assert_same_function(proto, graph)


def _loop(body_nodes: list[Any], state: list[int | str], trips: int) -> Any:
    body = helper.make_graph(
        [N("Identity", ["cond"], ["go"]), *body_nodes],
        "body",
        [
            helper.make_tensor_value_info("iter", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("seen", TensorProto.FLOAT, None),
        ],
    )
    nodes = [N("Loop", ["m", "", "x"], ["y", "all"], body=body)]
    return model(nodes, {"x": state}, ["y", "all"], {"m": np.array(trips)})


def test_loops_have_invariant_types(tmp_path: Path) -> None:
    proto = _loop([N("Tanh", ["state"], ["next"]), N("Neg", ["state"], ["seen"])], [2, 3], 4)
    graph = simplified(proto, tmp_path)
    assert graph.value("y").shape == (2, 3)
    assert graph.value("all").shape == (4, 2, 3)
    assert graph.nodes[0].attrs["body"].value("next").shape == (2, 3)
    assert_same_function(proto, graph)


def test_a_loop_that_grows_its_state_has_no_static_shape(tmp_path: Path) -> None:
    proto = _loop([N("Concat", ["state", "state"], ["next"], axis=0), N("ReduceSum", ["state"], ["seen"])], [2, 3], 3)
    graph = simplified(proto, tmp_path)
    assert graph.value("y").shape is None
    assert graph.nodes[0].attrs["body"].value("next").shape is None
    assert_same_function(proto, graph, rtol=1e-6)


def test_scan(tmp_path: Path) -> None:
    body = helper.make_graph(
        [N("Add", ["s", "e"], ["t"]), N("Identity", ["t"], ["o"])],
        "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("s", "e")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("t", "o")],
    )
    proto = model([N("Scan", ["a", "x"], ["y", "z"], body=body, num_scan_inputs=1)], {"a": [3], "x": [5, 3]}, ["y", "z"])
    graph = simplified(proto, tmp_path)
    assert (graph.value("y").shape, graph.value("z").shape) == ((3,), (5, 3))
    assert_same_function(proto, graph)


# ---- bypass and dead


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (N("Identity", ["h"], ["i"]), {}),
        (N("Dropout", ["h"], ["i"]), {}),
        (N("Dropout", ["h", "r", "t"], ["i"]), {"r": np.float32(0.5), "t": np.array(False)}),
        (N("Cast", ["h"], ["i"], to=TensorProto.FLOAT), {}),
        (N("Reshape", ["h", "s"], ["i"]), {"s": np.array([2, -1])}),
        (N("Flatten", ["h"], ["i"]), {}),
        (N("Expand", ["h", "s"], ["i"]), {"s": np.array([2, 1])}),
        (N("Slice", ["h", "a", "b"], ["i"]), {"a": np.array([0, 0]), "b": np.array([9, 9])}),
        (N("Transpose", ["h"], ["i"], perm=[0, 1]), {}),
        (N("Pad", ["h", "p"], ["i"]), {"p": np.zeros(4, np.int64)}),
        (N("Concat", ["h"], ["i"], axis=1), {}),
        (N("Sum", ["h"], ["i"]), {}),
        (N("Tile", ["h", "p"], ["i"]), {"p": np.ones(2, np.int64)}),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else "",
)
def test_nodes_that_do_nothing(tmp_path: Path, node: Any, constants: dict[str, np.ndarray]) -> None:
    inner = model([N("Relu", ["x"], ["h"]), node, N("Neg", ["i"], ["y"])], {"x": [2, 3]}, ["y"], constants)
    graph = simplified(inner, tmp_path)
    assert ops(graph) == ["Relu", "Neg"]
    assert_same_function(inner, graph)
    last = model([N("Relu", ["x"], ["h"]), node], {"x": [2, 3]}, ["i"], constants)
    graph = simplified(last, tmp_path)
    assert ops(graph) == ["Relu"]
    assert graph.nodes[0].outputs == ("i",)
    assert_same_function(last, graph)


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (N("Transpose", ["h"], ["i"]), {}),
        (N("Slice", ["h", "a", "b", "c", "d"], ["i"]),
         {"a": np.array([-1]), "b": np.array([-9]), "c": np.array([0]), "d": np.array([-1])}),
        (N("Reshape", ["h", "s"], ["i"]), {"s": np.array([1, 4])}),
        (N("Pad", ["h", "p"], ["i"]), {"p": np.array([1, 0, -1, 0])}),
        (N("Cast", ["h"], ["i"], to=TensorProto.FLOAT16), {}),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else "",
)  # fmt: skip
def test_nodes_that_only_look_idle_stay(tmp_path: Path, node: Any, constants: dict[str, np.ndarray]) -> None:
    proto = model([N("Relu", ["x"], ["h"]), node, N("Neg", ["i"], ["y"])], {"x": [2, 2]}, ["y"], constants)
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Relu", node.op_type, "Neg"]
    assert_same_function(proto, graph)


def test_dropout_that_may_drop_stays(tmp_path: Path) -> None:
    training = model([N("Dropout", ["x", "r", "t"], ["y"])], {"x": [3]}, ["y"], {"r": np.float32(0.5), "t": np.array(True)})
    assert ops(simplified(training, tmp_path)) == ["Dropout"]
    old = model([N("Dropout", ["x"], ["h"]), N("Relu", ["h"], ["y"])], {"x": [3]}, ["y"], opset=6)
    assert ops(simplified(old, tmp_path)) == ["Dropout", "Relu"]
    tested = model([N("Dropout", ["x"], ["h"], is_test=1), N("Relu", ["h"], ["y"])], {"x": [3]}, ["y"], opset=6)
    assert ops(simplified(tested, tmp_path)) == ["Relu"]
    masked = model([N("Dropout", ["x"], ["h", "m"]), N("Relu", ["h"], ["y"])], {"x": [3]}, ["y", "m"], opset=13)
    assert ops(simplified(masked, tmp_path)) == ["Dropout", "Relu"]


def test_outputs_that_cannot_be_renamed_keep_an_identity(tmp_path: Path) -> None:
    nodes = [N("Identity", ["x"], ["a"]), N("Relu", ["x"], ["h"]), N("Dropout", ["h"], ["b"]), N("Identity", ["h"], ["c"])]
    proto = model(nodes, {"x": [3]}, ["a", "h", "b", "c", "w"], {"w": W})
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Identity", "Relu", "Identity", "Identity"]
    assert graph.outputs == ("a", "h", "b", "c", "w")
    assert_same_function(proto, graph)


def test_chains_of_idle_nodes_and_two_outputs(tmp_path: Path) -> None:
    nodes = [
        N("Relu", ["x"], ["h"]), N("Identity", ["h"], ["i"]), N("Dropout", ["i"], ["j"]), N("Identity", ["j"], ["a"]),
        N("Identity", ["i"], ["b"]), N("Neg", ["j"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"x": [3]}, ["a", "b", "y"])
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Relu", "Identity", "Neg"]
    assert_same_function(proto, graph)


def test_dead_nodes_and_constants(tmp_path: Path) -> None:
    nodes = [N("Relu", ["x"], ["y"]), N("Neg", ["u"], ["d"]), N("MatMul", ["d", "w"], ["e"])]
    proto = model(nodes, {"x": [3], "u": [1, 4]}, ["y"], {"w": W})
    graph = simplified(proto, tmp_path)
    assert ops(graph) == ["Relu"]
    assert not graph.constants
    assert [value.name for value in graph.inputs] == ["x", "u"]
    assert_same_function(proto, graph)


# ---- types


def test_contrib_operators_have_types(tmp_path: Path) -> None:
    ms = {"domain": "com.microsoft"}
    nodes = [
        N("FusedMatMul", ["x", "w"], ["a"], transB=1, **ms), N("SkipLayerNormalization", ["a", "a", "g", "b"], ["c"], **ms),
        N("FastGelu", ["c"], ["y"], **ms),
    ]  # fmt: skip
    constants = {"w": RNG.standard_normal((6, 4)).astype(np.float32), "g": np.ones(6, np.float32), "b": np.zeros(6, np.float32)}
    proto = model(nodes, {"x": ["n", 5, 4]}, ["y"], constants)
    graph = simplified(proto, tmp_path, {"n": 2})
    assert [graph.value(name).shape for name in ("a", "c", "y")] == [(2, 5, 6)] * 3
    assert_same_function(proto, graph)


def test_shapes_that_depend_on_data_are_unknown(tmp_path: Path) -> None:
    nodes = [N("NonZero", ["x"], ["i"]), N("Cast", ["i"], ["y"], to=TensorProto.FLOAT), N("Reshape", ["x", "s"], ["z"])]
    proto = model(nodes, {"x": [3], "s": [2]}, ["y", "z"], types={"s": TensorProto.INT64})
    graph = simplified(proto, tmp_path)
    assert graph.value("y").shape is None
    assert graph.value("z").shape is None
    assert graph.value("y").dtype == "float32"


def test_unknown_operators_stay_and_are_untyped(tmp_path: Path) -> None:
    nodes = [N("Thing", ["x", "w"], ["h"], domain="my.own"), N("Relu", ["h"], ["y"])]
    graph = simplified(model(nodes, {"x": [3]}, ["y"], {"w": W}), tmp_path)
    assert ops(graph) == ["Thing", "Relu"]
    assert graph.value("y").shape is None


def test_a_contradiction_names_the_node(tmp_path: Path) -> None:
    nodes = [N("Add", ["x", "w"], ["y"], name="adder")]
    with pytest.raises(ModelError, match="'adder' \\(Add\\) does not fit its inputs"):
        simplified(model(nodes, {"x": [5, 5]}, ["y"], {"w": W}), tmp_path)
