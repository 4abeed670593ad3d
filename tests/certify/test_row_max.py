"""The largest-row norm: one token costs no square root of their number, and no Jacobian exceeds what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import lipaudit
from lipaudit.bounds.scalar import Upper
from lipaudit.certify import Certificate
from lipaudit.certify.row_max import RowGain
from lipaudit.report.sentences import holds_for
from tests.certify.blocks import Attention, ascend, jacobian
from tests.pipeline import certificate, make_model

Array = NDArray[Any]


def _headed(block: Attention, head: str) -> onnx.ModelProto:
    """The block followed by a head: "first" token, "mean" of the tokens, "sum" of the tokens, "last two", or "all" of them."""
    model = block.model()
    model.graph.output[0].name = "z"
    nodes = {
        "first": [helper.make_node("Gather", ["y", "zero"], ["z"], axis=1)],
        "mean": [helper.make_node("ReduceMean", ["y", "one"], ["z"], keepdims=0)],
        "sum": [helper.make_node("ReduceSum", ["y", "one"], ["z"], keepdims=0)],
        "last two": [helper.make_node("Slice", ["y", "two", "end", "one"], ["z"])],
        "all": [helper.make_node("Identity", ["y"], ["z"])],
    }[head]
    model.graph.node.extend(nodes)
    stored = {"zero": np.array(0), "one": np.array([1]), "two": np.array([-2]), "end": np.array([2**31 - 1])}
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.int64), name) for name, value in stored.items())
    return model


def _pick(head: str, y: Array) -> Array:
    return {"first": y[:, 0], "mean": y.mean(axis=1), "sum": y.sum(axis=1), "last two": y[:, -2:], "all": y}[head]


def _rules(found: Certificate) -> list[dict[str, Any]]:
    return [step.evidence for step in found.steps if step.rule.startswith("gains to the largest row beside")]


@pytest.mark.parametrize("head", ["first", "mean", "sum", "last two", "all"])
@pytest.mark.parametrize("case", [{}, {"residual": True, "mask": "causal"}, {"rope": True, "width": 8}, {"kv_heads": 1}])
def test_no_jacobian_exceeds_the_bound(head: str, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    block = Attention(2, tokens=5, **case)
    certified = float(certificate(_headed(block, head)).headline.slope)
    for size in (1e-2, 0.3, 3.0):
        x = size * rng.standard_normal((1, block.tokens, block.width))
        assert ascend(lambda x: _pick(head, block(x)), x, rng, 10) <= certified
        assert ascend(lambda x: _pick(head, block(x)), 1 + 0.1 * x, rng, 5) <= certified


def test_rows_alone() -> None:
    """The gain of an attention in the largest-row norm on both sides, by the sum of the blocks of its Jacobian."""
    rng = np.random.default_rng(4)
    block = Attention(2, tokens=4)
    found = certificate(block.model())
    from lipaudit.certify.methods import Workspace, proposals

    seen: list[float] = []

    def look(work: Workspace, region: Any, behind: bool = False) -> list[Any]:
        offers = proposals(work, region, behind=behind)
        if region.kind == "attention" and not behind:
            seen.extend(float(item.row_max) for item in offers if item.row_max is not None)
        return offers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipaudit.certify.gains.proposals", look)
        found = certificate(block.model())
    assert found.headline.status == "finite" and seen
    for size in (0.1, 1.0, 10.0):
        rows = block.normalized(size * rng.standard_normal((1, 4, 6)))
        j = jacobian(block.attention, rows).reshape(4, 6, 4, 6)
        # A lower bound of the norm: random directions with all rows of length 1.
        for _ in range(200):
            d = rng.standard_normal((4, 6))
            d /= np.linalg.norm(d, axis=1, keepdims=True)
            moved = np.einsum("iajb,jb->ia", j, d)
            assert np.linalg.norm(moved, axis=1).max() <= min(seen)


def test_one_token_costs_the_same_in_every_length() -> None:
    slopes = [float(certificate(_headed(Attention(6, tokens=n, residual=True), "first")).headline.slope) for n in (64, 128, 256)]
    assert slopes[0] == slopes[1] == slopes[2]
    found = certificate(_headed(Attention(6, tokens=128, residual=True), "first"))
    assert any("every sequence length" in evidence["tokens"] for evidence in _rules(found))
    assert found.headline.method == "largest rows, which holds for every sequence length"
    whole = certificate(_headed(Attention(6, tokens=128, residual=True), "all"))
    assert float(whole.headline.slope) > 2 * slopes[0]
    assert not any("every sequence length" in evidence["tokens"] for evidence in _rules(whole))
    assert "every" not in whole.headline.method


def test_a_sum_of_tokens_counts_them() -> None:
    mean, total = (float(certificate(_headed(Attention(6, tokens=64), head)).headline.slope) for head in ("mean", "sum"))
    assert total > 7 * mean


def test_maps_of_rows_and_others() -> None:
    """A mixture of features of different tokens restarts: it is not a map of rows."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    w = np.float32(np.ones((12, 1)))
    model = make_model(nodes, {"x": [1, 4, 3]}, ["y"], {"w": w, "flat": np.array([1, 12])})
    assert np.sqrt(12) <= float(certificate(model).headline.slope) < np.sqrt(12) * (1 + 1e-6)


def test_closing() -> None:
    one = RowGain(Upper(10), Upper(2), free=False, row_free=True)
    assert one.closed((1, 4, 8)) == RowGain(Upper(4), Upper(2), free=False, row_free=True)
    assert one.closed((1, 1, 8)) == RowGain(Upper(2), Upper(2), free=True, row_free=True)
    assert RowGain(Upper(1), Upper(2), free=False).closed((1, 4, 8)) == RowGain(Upper(1), Upper(1), free=False, row_free=False)
    assert one.closed(None) == one


@pytest.mark.parametrize("head", ["first", "all"])
def test_the_report_names_the_rule(head: str, tmp_path: Path) -> None:
    path = tmp_path / "block.onnx"
    onnx.save(_headed(Attention(6, tokens=64, residual=True), head), path)
    text = " ".join(holds_for(lipaudit.audit(path, measure=False)))
    assert ("every sequence length" in text) is (head == "first")
    assert ("the rule largest rows" in text) is (head == "first")


@pytest.mark.parametrize("before", ["Sqrt", "Exp"])
@pytest.mark.parametrize("added", [False, True])
def test_no_gain_behind_an_unbounded_one(before: str, added: bool) -> None:
    """What reaches the attention has no constant, so neither has the sum: an unknown gain is not a gain of zero."""
    model = Attention(2, tokens=5).model()
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["h" if name == "x" else name for name in node.input]
    nodes = [helper.make_node("Abs", ["x"], ["size"]), helper.make_node(before, ["size"], ["h"]), *graph.node]
    if added:
        nodes.append(helper.make_node("Add", ["y", "x"], ["z"]))
        graph.output[0].name = "z"
    del graph.node[:]
    graph.node.extend(nodes)
    assert certificate(model).headline.status == "unbounded"


def test_rows_of_another_source_beside_each_other() -> None:
    """A value that one source does not reach is not moved by it, whatever reads it."""
    model = Attention(2, tokens=5).model()
    model.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2, 6]) for name in "uv")
    model.graph.node.extend([helper.make_node("Concat", ["u", "v"], ["w"], axis=1), helper.make_node("Concat", ["y", "w"], ["z"], axis=1)])
    model.graph.output[0].name = "z"
    found = certificate(model)
    assert found.matrix["u", "z"].slope == Upper(1)
    assert found.headline.slope >= found.matrix["x", "z"].slope
