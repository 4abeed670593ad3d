"""Operators without a rule are replaced by what defines them, and the function stays the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, parser
from onnx.reference import ReferenceEvaluator

from lipaudit.errors import ModelError
from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph, Node
from lipaudit.graph.limits import Limits
from lipaudit.graph.load import load
from lipaudit.graph.simplify import Operators, simplify

HEAD = '<ir_version: 10, opset_import: ["": 20, "my.domain": 1]>\n'


def model(text: str, head: str = HEAD) -> ModelProto:
    return parser.parse_model(head + text)


def simplified(proto: ModelProto, operators: Operators, limits: Limits | None = None) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        graph = load(str(path)).graph
        return simplify(graph, operators=operators, limits=limits) if limits else simplify(graph, operators=operators)


def without(*ops: str) -> Operators:
    return Operators(has_rule=lambda node: node.op not in ops)


def same(proto: ModelProto, graph: Graph, *inputs: np.ndarray) -> None:
    names = [value.name for value in proto.graph.input]
    given = dict(zip(names, inputs, strict=True))
    for one, two in zip(ReferenceEvaluator(proto).run(None, given), ReferenceEvaluator(to_model(graph)).run(None, given), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("Gelu", "Gelu(x)"),
        ("Gelu", 'Gelu <approximate = "tanh"> (x)'),
        ("Elu", "Elu <alpha = 0.5> (x)"),
        ("Elu", "Elu(x)"),
        ("Softmax", "Softmax <axis = 0> (x)"),
        ("LogSoftmax", "LogSoftmax(x)"),
        ("MeanVarianceNormalization", "MeanVarianceNormalization <axes = [0, 1]> (x)"),
        ("ReduceL1", "ReduceL1 <keepdims = 0> (x)"),
        ("HardSwish", "HardSwish(x)"),
        ("ThresholdedRelu", "ThresholdedRelu <alpha = 0.3> (x)"),
    ],
)
def test_a_body_of_onnx_is_the_operator(op: str, call: str) -> None:
    proto = model(
        f"g (float[3,4] x) => (float[N,M] y) {{ y = {call} }}" if op != "ReduceL1" else f"g (float[3,4] x) => (float y) {{ y = {call} }}"
    )
    graph = simplified(proto, without(op))
    assert all(node.op != op for node in graph.nodes)
    assert all(set(node.covers) == {f"{op}_0"} for node in graph.nodes)
    same(proto, graph, np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4))


def test_a_body_that_depends_on_types_and_omitted_outputs() -> None:
    text = """g (float[3,5] x, int64[3] t) => (float y) { y = SoftmaxCrossEntropyLoss <reduction = "sum"> (x, t) }"""
    proto = model(text)
    graph = simplified(proto, without("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"))
    assert not {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"} & {node.op for node in graph.nodes}
    same(proto, graph, np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32), np.array([0, 4, 2]))


def test_operators_with_a_rule_stay() -> None:
    graph = simplified(model("g (float[3] x) => (float[3] y) { y = Gelu(x) }"), Operators())
    assert [node.op for node in graph.nodes] == ["Gelu"]


def test_names_do_not_collide() -> None:
    """The same operator twice, and an outer value with the name of an inner one."""
    proto = model("g (float[3] x) => (float[3] y) { X__1 = Gelu(x)  a = Relu(X__1)  y = Gelu(a) }")
    graph = simplified(proto, without("Gelu"))
    names = [name for node in graph.nodes for name in node.outputs]
    assert len(set(names)) == len(names) and len({node.name for node in graph.nodes}) == len(graph.nodes)
    same(proto, graph, np.array([-1.0, 0.5, 2.0], dtype=np.float32))


def test_a_body_inside_a_branch() -> None:
    text = """g (float[3] x, bool k) => (float[3] y) {
      y = If (k) <then_branch = a () => (float[3] u) { u = Gelu(x) }, else_branch = b () => (float[3] v) { v = Relu(x) }>
    }"""
    proto = model(text)
    graph = simplified(proto, without("Gelu"))
    assert all(node.op != "Gelu" for part in (graph, *graph.subgraphs()) for node in part.nodes)
    for taken in (True, False):
        same(proto, graph, np.array([-1.0, 0.5, 2.0], dtype=np.float32), np.array(taken))


def test_a_body_that_inference_rejects_is_left_alone() -> None:
    # The body of AffineGrid-20 gives Range a tensor of one element where it wants a scalar.
    proto = model("g (float[2,2,3] x, int64[4] s) => (float[N,H,W,C] y) { y = AffineGrid(x, s) }")
    graph = simplified(proto, without("AffineGrid"))
    assert [node.op for node in graph.nodes] == ["AffineGrid"]


TWICE = parser.parse_function("""<domain: "my.domain", opset_import: ["": 20]>
Twice <by: float = 2.0> (x, shift) => (y, z) {
  b = Constant <value_float: float = @by> ()
  m = Mul(x, b)
  y = Add(m, shift)
  z = Neg(x)
}""")


def given(function: onnx.FunctionProto) -> Operators:
    def asked(node: Node) -> onnx.FunctionProto | None:
        return function if node.kind == "my.domain::Twice" else None

    return Operators(function=asked)


def test_a_function_of_the_caller_with_its_defaults() -> None:
    text = """g (float[3] x, float[3] s) => (float[3] y, float[3] z) {
      y, z0 = my.domain.Twice(x, s)  y1, z1 = my.domain.Twice <by = 3.0> (x, s)  z = Add(z0, y1)
    }"""
    graph = simplified(model(text), given(TWICE))
    x, s = np.array([1.0, -2.0, 0.5], dtype=np.float32), np.array([0.0, 1.0, 2.0], dtype=np.float32)
    y, z = ReferenceEvaluator(to_model(graph)).run(None, {"x": x, "s": s})
    np.testing.assert_array_equal(y, 2 * x + s)
    np.testing.assert_array_equal(z, -x + 3 * x + s)


def test_a_function_that_does_not_fit_names_the_node() -> None:
    text = "g (float[3] x) => (float[3] y) { y = my.domain.Twice(x, x, x) }"
    with pytest.raises(ModelError, match="Twice_0"):
        simplified(model(text), given(TWICE))


def test_a_function_that_calls_itself_ends_with_an_error() -> None:
    endless = parser.parse_function("""<domain: "my.domain", opset_import: ["": 20, "my.domain": 1]>
    Twice (x) => (y) { a = my.domain.Twice(x)  y = Neg(a) }""")
    with pytest.raises(ModelError, match="expand to more than"):
        simplified(model("g (float[3] x) => (float[3] y) { y = my.domain.Twice(x) }"), given(endless), Limits(nodes=100))


def test_shapes_go_on_behind_an_operator_like_its_input() -> None:
    proto = model("g (float[3,4] x) => (y) { a = my.domain.Odd(x)  y = Relu(a) }")
    assert simplified(proto, Operators()).value("y").shape is None
    assert simplified(proto, Operators(like={"my.domain::Odd": 0})).value("y").shape == (3, 4)


def test_a_body_newer_than_the_model_is_exported_at_its_opset() -> None:
    head = '<ir_version: 7, opset_import: ["": 9, "my.domain": 1]>\n'
    rounding = parser.parse_function("""<domain: "my.domain", opset_import: ["": 13]>
    Twice (x) => (y) { y = Round(x) }""")
    graph = simplified(model("g (float[2,3] x) => (float[2,3] y) { a = my.domain.Twice(x)  y = Softmax(a) }", head), given(rounding))
    exported = to_model(graph)
    onnx.checker.check_model(exported)
    x = np.array([[0.4, 1.6, 2.2], [0.5, 1.5, -0.6]], dtype=np.float32)
    (found,) = ReferenceEvaluator(exported).run(None, {"x": x})
    r = np.exp(np.rint(x))
    np.testing.assert_allclose(found, r / r.sum(axis=1, keepdims=True), rtol=1e-6)
