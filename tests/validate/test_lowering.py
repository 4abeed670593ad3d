"""Compound operators spelled in standard nodes compute what onnxruntime computes for the operator itself, and have derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph
from lipaudit.validate.adjoints import jvp, spelled, vjp
from lipaudit.validate.exact import Evaluator
from lipaudit.validate.lowering import LOWERINGS, lower
from tests.validate.small import graph_of

RNG = np.random.default_rng(3)
MS = "com.microsoft"
INTEGER = {"x": TensorProto.UINT8, "z": TensorProto.UINT8}


def _n(*shape: int) -> np.ndarray:
    return (0.5 * RNG.standard_normal(shape)).astype(np.float32)


def _q(*shape: int, signed: bool = False) -> np.ndarray:
    return RNG.integers(-100, 100, shape).astype(np.int8) if signed else RNG.integers(0, 255, shape).astype(np.uint8)


@dataclass(frozen=True)
class One:
    """A node ``op`` with inputs named in order ("" is omitted); those in ``given`` are free, the others are stored."""

    op: str
    inputs: Sequence[str]
    given: Mapping[str, Sequence[int]]
    stored: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ("y",)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    domain: str = MS
    types: Mapping[str, int] = field(default_factory=dict)
    steps: float = 0.0
    opset: int = 18

    def graph(self) -> Graph:
        node = helper.make_node(self.op, list(self.inputs), list(self.outputs), domain=self.domain, name="one", **self.attrs)
        domains = [self.domain] if self.domain else []
        shown = [name for name in self.outputs if name]
        return graph_of([node], self.given, shown, self.stored, types=self.types, domains=domains, opset=self.opset)


def _lstm(**attrs: Any) -> One:
    count = 2 if attrs.get("direction") == "bidirectional" else 1
    names = ["x", "w", "r", "b", "", "h", "c", "p"]
    stored = {"w": _n(count, 20, 3), "r": _n(count, 20, 5), "b": _n(count, 40), "p": _n(count, 15)}
    given = {"x": [4, 2, 3], "h": [count, 2, 5], "c": [count, 2, 5]}
    return One("LSTM", names, given, stored, ("y", "hn", "cn"), {"hidden_size": 5, **attrs}, "")


def _gru(**attrs: Any) -> One:
    stored = {"w": _n(1, 15, 3), "r": _n(1, 15, 5), "b": _n(1, 30)}
    return One("GRU", ["x", "w", "r", "b", "", "h"], {"x": [4, 2, 3], "h": [1, 2, 5]}, stored, ("y", "hn"), {"hidden_size": 5, **attrs}, "")


def _body(kind: str) -> Any:
    def info(name: str, dtype: int, shape: Sequence[int]) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)

    if kind == "Loop":
        nodes = [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Cast", ["i"], ["fi"], to=1),
            helper.make_node("Mul", ["s", "outer"], ["m"]),
            helper.make_node("Add", ["m", "fi"], ["a"]),
            helper.make_node("Tanh", ["a"], ["t"]),
            helper.make_node("Mul", ["t", "t"], ["sq"]),
        ]
        ins = [info("i", 7, []), info("go", 9, []), info("s", 1, [2, 3])]
        return helper.make_graph(nodes, "body", ins, [info("on", 9, []), info("t", 1, [2, 3]), info("sq", 1, [2, 3])])
    nodes = [helper.make_node("Add", ["s", "e"], ["a"]), helper.make_node("Sigmoid", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["o"])]
    return helper.make_graph(nodes, "body", [info("s", 1, [3]), info("e", 1, [3])], [info("t", 1, [3]), info("o", 1, [3])])


def _attention(**attrs: Any) -> One:
    past = attrs.pop("past", True)
    stored = {"w": _n(6, 18), "b": _n(18), "mask": np.array([[1, 1, 0, 1, 1, 1] if past else [1, 1, 0, 1]], dtype=np.int32)}
    # onnxruntime takes one of the two.
    if past:
        given = {"x": [1, 4, 6], "past": [2, 1, 2, 2, 3]}
        return One("Attention", ["x", "w", "b", "mask", "past"], given, stored, ("y", "present"), {"num_heads": 2, **attrs})
    given = {"x": [1, 4, 6], "bias": [1, 2, 4, 4]}
    return One("Attention", ["x", "w", "b", "mask", "", "bias"], given, stored, ("y",), {"num_heads": 2, **attrs})


def _heads(**attrs: Any) -> One:
    names = ["q", "k", "v", "b", "mask", "bias", "pk", "pv"]
    stored = {"b": _n(18), "mask": np.array([[1, 1, 0, 1, 1]], dtype=np.int32)}
    given = {"q": [1, 4, 6], "k": [1, 3, 6], "v": [1, 3, 6], "bias": [1, 2, 4, 5], "pk": [1, 2, 2, 3], "pv": [1, 2, 2, 3]}
    return One("MultiHeadAttention", names, given, stored, ("y", "k2", "v2"), {"num_heads": 2, **attrs})


def _grouped(past: int, **attrs: Any) -> One:
    rotary = bool(attrs.get("do_rotary"))
    names = ["q", "k", "v", "pk", "pv", "lengths", "total", *(["cos", "sin"] if rotary else [])]
    stored: dict[str, Any] = {"lengths": np.array([past + 3], dtype=np.int32), "total": np.array(past + 4, dtype=np.int32)}
    if rotary:
        angle = RNG.uniform(0, 3, (past + 4, 8))
        stored |= {"cos": np.cos(angle), "sin": np.sin(angle)}
    given = {"q": [1, 4, 64], "k": [1, 4, 32], "v": [1, 4, 32], "pk": [1, 2, past, 16], "pv": [1, 2, past, 16]}
    return One("GroupQueryAttention", names, given, stored, ("y", "k2", "v2"), {"num_heads": 4, "kv_num_heads": 2, **attrs})


def _qlinear(op: str, second: bool = False, shape: Sequence[int] = (1, 2, 4, 4), **attrs: Any) -> One:
    stored: dict[str, Any] = {"xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.03), "yz": np.uint8(100)}
    names = ["x", "xs", "xz", "ys", "yz"]
    if second:
        stored |= {"w": _q(*shape), "ws": np.float32(0.03), "wz": np.uint8(127)}
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    return One(op, names, {"x": shape}, stored, attrs=attrs, types=INTEGER, steps=1.0)


QCONV = {"xs": np.float32(0.02), "xz": np.uint8(120), "w": _q(3, 2, 3, 3, signed=True), "ws": np.full(3, 0.01, np.float32),
         "wz": np.zeros(3, np.int8), "ys": np.float32(0.05), "yz": np.uint8(100), "b": np.array([40, -30, 5], np.int32)}  # fmt: skip
CONV = {"w": _n(3, 2, 3, 3), "b": _n(3)}
PACKED = {"w": _q(6, 2, 8), "s": np.abs(_n(12)), "z": np.full(6, 0x79, np.uint8)}

CASES = {
    "LSTM": _lstm(), "LSTM reverse": _lstm(direction="reverse"), "LSTM both": _lstm(direction="bidirectional"),
    "LSTM relu": _lstm(activations=["Sigmoid", "Relu", "Softsign"]),
    "GRU": _gru(), "GRU after": _gru(linear_before_reset=1), "GRU old": One(**{**vars(_gru()), "opset": 11}),
    "RNN": One("RNN", ["x", "w", "r"], {"x": [4, 2, 3]}, {"w": _n(1, 5, 3), "r": _n(1, 5, 5)}, ("y",), {"hidden_size": 5}, ""),
    "DynamicQuantizeLSTM": One(
        "DynamicQuantizeLSTM", ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"], {"x": [3, 2, 3]},
        {"w": _q(1, 3, 16), "r": _q(1, 4, 16), "b": _n(1, 32), "ws": np.float32([0.006]), "wz": np.uint8([128]), "rs": np.float32([0.004]),
         "rz": np.uint8([127])}, ("y",), {"hidden_size": 4}, steps=0.02),
    "Loop": One("Loop", ["n", "", "x"], {"x": [2, 3], "outer": [2, 3]}, {"n": np.array(3)}, ("y", "all"), {"body": _body("Loop")}, ""),
    "Scan": One("Scan", ["s", "x"], {"s": [3], "x": [4, 3]}, {}, ("y", "all"), {"body": _body("Scan"), "num_scan_inputs": 1}, ""),
    "Scan backwards": One(
        "Scan", ["s", "x"], {"s": [3], "x": [3, 4]}, {}, ("y", "all"), {"body": _body("Scan"), "num_scan_inputs": 1,
        "scan_input_axes": [1], "scan_input_directions": [1], "scan_output_axes": [1], "scan_output_directions": [1]}, ""),
    "Attention": _attention(), "Attention causal": _attention(unidirectional=1, scale=0.7),
    "Attention biased": _attention(past=False),
    "MultiHeadAttention": _heads(),
    "GroupQueryAttention": _grouped(0), "GroupQueryAttention rotated": _grouped(0, do_rotary=1, softcap=3.0),
    "GroupQueryAttention window": _grouped(0, local_window_size=2),
    "BiasGelu": One("BiasGelu", ["x", "b"], {"x": [2, 5]}, {"b": _n(5)}),
    "FastGelu": One("FastGelu", ["x", "b"], {"x": [2, 5]}, {"b": _n(5)}), "Gelu": One("Gelu", ["x"], {"x": [2, 5]}),
    "QuickGelu": One("QuickGelu", ["x"], {"x": [2, 5]}, attrs={"alpha": 1.5}),
    "FusedConv": One("FusedConv", ["x", "w", "b", "z"], {"x": [1, 2, 5, 5], "z": [1, 3, 5, 5]}, CONV,
                     attrs={"activation": "LeakyRelu", "activation_params": [0.2], "kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "FusedConv clip": One("FusedConv", ["x", "w", "b"], {"x": [1, 2, 5, 5]}, CONV,
                          attrs={"activation": "Clip", "activation_params": [-0.5, 0.5], "kernel_shape": [3, 3]}),
    "NhwcConv": One("NhwcConv", ["x", "w", "b"], {"x": [1, 5, 5, 2]}, CONV, attrs={"kernel_shape": [3, 3], "strides": [2, 2]}),
    "NhwcFusedConv": One("NhwcFusedConv", ["x", "w", "b"], {"x": [1, 5, 5, 2]}, CONV, attrs={"activation": "Relu", "kernel_shape": [3, 3]}),
    "FusedGemm": One("FusedGemm", ["x", "w", "b"], {"x": [2, 4]}, {"w": _n(3, 4), "b": _n(3)},
                     attrs={"activation": "Tanh", "transB": 1, "alpha": 0.5}),
    "FusedMatMul": One("FusedMatMul", ["x", "w"], {"x": [2, 4, 3], "w": [5, 4]}, attrs={"transA": 1, "transB": 1, "alpha": 0.5}),
    "TransposeMatMul": One("TransposeMatMul", ["x", "w"], {"x": [2, 4, 3]}, {"w": _n(4, 5)}, attrs={"transA": 1}),
    "RotaryEmbedding": One("RotaryEmbedding", ["x", "p", "cos", "sin"], {"x": [1, 3, 8]},
                           {"p": np.array([[2, 0, 1]]), "cos": _n(5, 2), "sin": _n(5, 2)}, attrs={"num_heads": 2}),
    "RotaryEmbedding pairs": One("RotaryEmbedding", ["x", "p", "cos", "sin"], {"x": [1, 2, 3, 4]},
                                 {"p": np.array([1]), "cos": _n(5, 2), "sin": _n(5, 2)}, attrs={"interleaved": 1}),
    "SkipLayerNormalization": One("SkipLayerNormalization", ["x", "s", "g", "b", "c"], {"x": [1, 3, 6], "s": [1, 3, 6]},
                                  {"g": _n(6), "b": _n(6), "c": _n(6)}, ("y", "", "", "sum"), {"epsilon": 1e-5}),
    "SkipSimplifiedLayerNormalization": One("SkipSimplifiedLayerNormalization", ["x", "s", "g"], {"x": [1, 3, 6], "s": [1, 3, 6]},
                                            {"g": _n(6)}, attrs={"epsilon": 1e-5}, opset=11),
    "QLinearConv": One("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], {"x": [1, 2, 5, 5]}, QCONV, domain="",
                       attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, types=INTEGER, steps=1.0),
    "ms QLinearConv": One("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], {"x": [1, 2, 5, 5]}, QCONV,
                          attrs={"kernel_shape": [3, 3]}, types=INTEGER, steps=1.0),
    "QLinearMatMul": One("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], {"x": [3, 4]},
                         {"xs": np.float32(0.02), "xz": np.uint8(120), "w": _q(4, 5), "ws": np.float32(0.02), "wz": np.uint8(130),
                          "ys": np.float32(0.06), "yz": np.uint8(128)}, domain="", types=INTEGER, steps=1.0),
    "QGemm": One("QGemm", ["x", "xs", "xz", "w", "ws", "wz", "c", "ys", "yz"], {"x": [3, 4]},
                 {"xs": np.float32(0.02), "xz": np.uint8(120), "w": _q(5, 4), "ws": np.float32(0.02), "wz": np.uint8(130),
                  "c": np.arange(5, dtype=np.int32) * 40, "ys": np.float32(0.06), "yz": np.uint8(128)},
                 attrs={"transB": 1}, types=INTEGER, steps=1.0),
    "QLinearAdd": _qlinear("QLinearAdd", True), "QLinearMul": _qlinear("QLinearMul", True),
    "QLinearSigmoid": _qlinear("QLinearSigmoid"), "QLinearLeakyRelu": _qlinear("QLinearLeakyRelu", alpha=0.1),
    "QLinearAveragePool": _qlinear("QLinearAveragePool", kernel_shape=[2, 2]),
    "QLinearGlobalAveragePool": _qlinear("QLinearGlobalAveragePool"), "QLinearSoftmax": _qlinear("QLinearSoftmax", shape=(2, 6), opset=13),
    "QLinearConcat": One("QLinearConcat", ["ys", "yz", "x", "xs", "xz", "z", "zs", "zz"], {"x": [2, 3], "z": [2, 3]},
                         {"xs": np.float32(0.02), "xz": np.uint8(120), "zs": np.float32(0.03), "zz": np.uint8(99),
                          "ys": np.float32(0.05), "yz": np.uint8(110)}, attrs={"axis": 1}, types=INTEGER, steps=1.0),
    "QuantizeLinear": One("QuantizeLinear", ["x", "s", "z"], {"x": [2, 3]}, {"s": np.float32(0.1), "z": np.uint8(7)}, steps=1.0),
    "DequantizeLinear": One("DequantizeLinear", ["x", "s", "z"], {"x": [2, 3]}, {"s": np.float32(0.1), "z": np.uint8(7)}, types=INTEGER),
    "DynamicQuantizeMatMul": One("DynamicQuantizeMatMul", ["x", "w", "s", "z", "b"], {"x": [2, 4]},
                                 {"w": _q(4, 5), "s": np.float32([0.02]), "z": np.uint8([130]), "b": _n(5)}, steps=1e-3),
    "MatMulNBits": One("MatMulNBits", ["x", "w", "s", "z"], {"x": [3, 30]}, PACKED,
                       attrs={"bits": 4, "N": 6, "K": 30, "block_size": 16}),
}  # fmt: skip
NO_DERIVATIVE = {"QuantizeLinear"}
# onnxruntime has kernels of these for some processors only.
NO_KERNEL = {"NhwcConv", "NhwcFusedConv"}


def _draw(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    feeds = {}
    for value in graph.inputs:
        assert value.shape is not None
        free = rng.standard_normal(value.shape) if value.is_float else rng.integers(60, 180, value.shape)
        feeds[value.name] = free.astype(value.dtype)
    return feeds


def _never(node: Any) -> bool:
    return f"{node.domain or 'ai.onnx'}::{node.op}" not in LOWERINGS


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_KERNEL])
def test_same_numbers_as_the_operator(name: str) -> None:
    case = CASES[name]
    graph = case.graph()
    lowered = lower(graph, _never)
    assert lowered.reasons == {}
    assert all(_never(node) for node in lowered.graph.nodes)
    feeds = _draw(graph)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_model(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(graph.outputs)
    wanted = dict(zip(names, session.run(names, feeds), strict=True))
    found = Evaluator(lowered.graph).run(feeds, names)
    for output in names:
        off = np.abs(found[output].astype(np.float64) - wanted[output].astype(np.float64))
        assert off.max() <= 2e-6 * max(1.0, float(np.abs(wanted[output]).max())) + case.steps, output


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.steps and name not in NO_DERIVATIVE])
def test_both_derivatives_of_the_spelled_graph(name: str) -> None:
    graph = CASES[name].graph()
    sources = [value.name for value in graph.inputs if value.is_float]
    if not sources:
        sources = [value.name for value in graph.inputs]
    lowered = spelled(graph, sources, graph.outputs, {}).graph
    outputs = [output for output in dict.fromkeys(graph.outputs) if lowered.value(output).is_float]
    assert any(jvp(lowered, sources, outputs).results)
    assert any(vjp(lowered, sources, outputs).results)


@pytest.mark.parametrize("name", sorted(NO_KERNEL))
def test_channels_last_is_the_same_convolution_of_transposed_images(name: str) -> None:
    case = CASES[name]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("FusedConv", ["t", "w", "b"], ["c"], domain=MS, **case.attrs),
        helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = graph_of(nodes, case.given, ["y"], case.stored, domains=[MS])
    feeds = _draw(graph)
    (wanted,) = onnxruntime.InferenceSession(to_model(graph).SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], feeds)
    found = Evaluator(lower(case.graph(), _never).graph).run(feeds, ["y"])["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_graph_without_compound_operators_is_returned_as_it_is() -> None:
    graph = graph_of([helper.make_node("Tanh", ["x"], ["y"])], {"x": [3]}, ["y"])
    assert lower(graph, _never).graph is graph


def test_why_a_node_stays() -> None:
    case = _lstm(clip=1.0)
    assert "clip" in lower(case.graph(), _never).reasons["one"]


def test_a_condition_on_a_fixed_input_takes_its_branch() -> None:
    def branch(op: str) -> Any:
        out = helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, [3])
        return helper.make_graph([helper.make_node(op, ["x"], [f"{op}_y"])], op, [], [out])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Tanh"), else_branch=branch("Neg"))
    graph = graph_of([node], {"x": [3], "c": []}, ["y"], types={"c": TensorProto.BOOL})
    for condition, op in ((True, "Tanh"), (False, "Neg")):
        found = spelled(graph, ["x"], ["y"], {"c": np.array(condition)}).graph
        assert [node.op for node in found.nodes if node.op != "Identity"] == [op]
    open_graph = spelled(graph, ["x"], ["y"], {}).graph
    assert [node.op for node in open_graph.nodes] == ["If"]
