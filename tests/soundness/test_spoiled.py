"""What has no constant, or jumps, in front of a network must show in the certificate of the whole, whatever recognised block comes next.

``N(s(x) + x)`` and ``(N(s(x)), x)`` for every sample network ``N`` and a map ``s`` that is not Lipschitz on all reals, or jumps: what is
not known of one path must not be lost where another path is known.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.conftest import ROOT
from tests.pipeline import certificate

# The one with a NaN weight is refused before it is certified.
SAMPLES = sorted(path for path in (ROOT / "samples" / "models").glob("*.onnx") if path.stem != "nan_weight")
STEEP = {"Sqrt": ["Abs", "Sqrt"], "Reciprocal": ["Reciprocal"]}
JUMPS = {"Sign": ["Sign"]}


def spoiled(path: Path, ops: list[str], around: str) -> onnx.ModelProto:
    """The model behind ``ops``: "sum", with the input added to what they give, or "beside", with the input among the outputs."""
    model = onnx.load(path)
    graph = model.graph
    entry = graph.input[0].name
    if graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:  # tokens: what the table gives is the source
        entry = next(node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[1] == entry)
    place = next((k + 1 for k, node in enumerate(graph.node) if entry in node.output), 0)
    first = [helper.make_node(op, [entry if k == 0 else f"spoiled{k - 1}"], [f"spoiled{k}"]) for k, op in enumerate(ops)]
    last = f"spoiled{len(ops) - 1}"
    if around == "sum":
        first.append(helper.make_node("Sum", [last, entry], ["spoiled"]))
        last = "spoiled"
    nodes = list(graph.node)
    for node in nodes[place:]:
        node.input[:] = [last if name == entry else name for name in node.input]
    nodes[place:place] = first
    if around == "beside":
        seen = [*(value.name for value in graph.output), entry]
        nodes.extend(helper.make_node("Flatten", [name], [f"flat {name}"], axis=0) for name in seen)
        nodes.append(helper.make_node("Concat", [f"flat {name}" for name in seen], ["both"], axis=1))
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("both", TensorProto.FLOAT, None))
    del graph.node[:]
    graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("around", ["sum", "beside"])
@pytest.mark.parametrize("path", SAMPLES, ids=[path.stem for path in SAMPLES])
@pytest.mark.parametrize("ops", STEEP.values(), ids=STEEP)
def test_no_constant(path: Path, ops: list[str], around: str) -> None:
    assert certificate(spoiled(path, ops, around)).headline.status != "finite"


@pytest.mark.parametrize("around", ["sum", "beside"])
@pytest.mark.parametrize("path", SAMPLES, ids=[path.stem for path in SAMPLES])
@pytest.mark.parametrize("ops", JUMPS.values(), ids=JUMPS)
def test_jump(path: Path, ops: list[str], around: str) -> None:
    found = certificate(spoiled(path, ops, around)).headline
    assert found.status != "finite" or not found.offset.is_zero
