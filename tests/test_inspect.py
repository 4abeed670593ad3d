"""``lipaudit inspect``: the tree, folded runs, and the answer to --why."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipaudit.errors import ModelError, UsageError
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.inspect import inspect_text
from lipaudit.topology import recognise

SAMPLES = Path(__file__).resolve().parent.parent / "samples" / "models"
NAMES = sorted(path.name for path in SAMPLES.glob("*.onnx"))


def show(name: str, why: str | None = None) -> str:
    return inspect_text(str(SAMPLES / name), dims={}, why=why)


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_shown_and_every_node_can_be_asked_for(name: str) -> None:
    text = show(name)
    assert text.splitlines()[0].endswith(("region", "regions"))
    assert text == show(name)
    nodes = [node.name for node in load(str(SAMPLES / name)).graph.nodes]
    for node in (nodes[0], nodes[len(nodes) // 2], nodes[-1]):
        assert show(name, node).startswith(f"node {node}: ")


def test_blocks_and_operators_are_in_the_tree() -> None:
    text = show("residual_cnn.onnx")
    assert text.count(":residual") == 3
    assert "shortcut=projection" in text and "GlobalAveragePool, Flatten, Gemm" in text
    text = show("prenorm_transformer.onnx")
    assert "kind=dot heads=4 head_dim=8" in text
    assert "3 x affine-chain" in text  # query, key and value look the same
    assert "2 x lipaudit::Attention" in text


def test_children_are_indented_below_their_parents() -> None:
    lines = show("residual_cnn.onnx").splitlines()
    depth = {line.split()[0]: len(line) - len(line.lstrip()) for line in lines if line and " node" in line}
    assert depth["model"] == 0 and depth["stem"] == 2 and depth["branch"] == 4


def test_why_names_the_regions_around_a_node_and_the_fused_node_it_went_into() -> None:
    topology = recognise(simplify(load(str(SAMPLES / "prenorm_transformer.onnx")).graph))
    fused = next(node for node in topology.graph.nodes if node.op == "Attention")
    text = show("prenorm_transformer.onnx", fused.covers[0])
    assert f"recognised as part of lipaudit::Attention {fused.name}" in " ".join(text.split())
    assert "model/stack-1/layer-1" in text and "attention-core" in text


def test_why_takes_a_region_a_value_or_a_node_that_was_simplified_away() -> None:
    assert "model/stem" in show("residual_cnn.onnx", "model/stem")
    assert show("mlp.onnx", "logits").startswith("node /layers.3/Gemm: ")  # the Identity behind it is gone
    assert "not in the simplified graph" in show("mlp.onnx", "/logits")


@pytest.mark.parametrize("name", NAMES)
def test_every_refusal_is_printed_for_its_node(name: str) -> None:
    topology = recognise(simplify(load(str(SAMPLES / name)).graph))
    covered = {node for fused in topology.graph.nodes if len(fused.covers) > 1 for node in fused.covers}
    for refusal in topology.refusals:
        if refusal.node not in covered:
            assert " ".join(refusal.reason.split()) in " ".join(show(name, refusal.node).split())


def test_an_unknown_node_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="model/stem"):
        show("residual_cnn.onnx", "model/stm")
    with pytest.raises(UsageError, match="neither a node nor a region"):
        show("residual_cnn.onnx", "\x1b" * 20_000)


def test_a_missing_file_is_an_error_of_the_model() -> None:
    with pytest.raises(ModelError):
        inspect_text("no/such/file.onnx", dims={}, why=None)
