"""Trees of real models: as many blocks as the architecture has, in every exporter's spelling."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.topology import Topology, recognise
from lipaudit.topology.laws import check, walk
from tests.conftest import models_folder
from tests.topology.spelled import check_same_function

# residual blocks, attentions, MLPs, normalization leaves
TABLE = {
    "exports/resnet18.dyn18": (8, 0, 0, 0),
    "exports/resnet18.dyn23": (8, 0, 0, 0),
    "exports/resnet18.legacy17": (8, 0, 0, 0),
    "exports/resnet18_qdq_perch": (8, 0, 0, 0),
    "exports/resnet18_qoperator": (8, 0, 0, 0),
    "exports/resnet50_external": (16, 0, 0, 0),
    "light_resnet50": (16, 0, 0, 53),
    "cifar10_resnet_2b": (2, 0, 1, 0),
    "sri_resnet_a": (3, 0, 1, 0),
    "exports/mobilenetv2.dyn18": (10, 0, 0, 0),
    "exports/vit.dyn18": (6, 3, 3, 7),
    "exports/vit.dyn23": (6, 3, 3, 7),
    "exports/vit.legacy17": (6, 3, 3, 7),
    "vnn_vit_ibp_3_3_8": (6, 3, 3, 7),
    "exports/bert.dyn18": (4, 2, 2, 5),
    "exports/bert.dyn23": (4, 2, 2, 5),
    "exports/bert.legacy17": (4, 2, 2, 5),
    "exports/bert_dynint8": (4, 2, 2, 5),
    "exports/bert_ortfused": (4, 2, 2, 5),
    "minilm_l3_fp32": (6, 3, 3, 7),
    "exports/gpt2.dyn18": (4, 2, 2, 5),
    "exports/gpt2.dyn23": (4, 2, 2, 5),
    "exports/gpt2.legacy17": (4, 2, 2, 5),
    "genai_gpt2_fp32": (10, 5, 5, 10),
    "exports/llama.dyn18": (4, 2, 2, 5),
    "exports/llama.dyn23": (4, 2, 2, 5),
    "exports/llama.legacy17": (4, 2, 2, 5),
    "exports/sdpa_rmsnorm.dyn18": (2, 1, 1, 2),
    "exports/sdpa_rmsnorm.dyn23": (2, 1, 1, 2),
    "exports/convnext.dyn18": (5, 0, 5, 10),
    "exports/convnext.dyn23": (5, 0, 5, 10),
    "exports/convnext.legacy17": (5, 0, 5, 10),
    "exports/convnext_fp16": (5, 0, 5, 10),
}


@lru_cache(maxsize=64)
def topology_of(path: Path) -> Topology:
    return recognise(simplify(load(str(path)).graph))


@pytest.mark.parametrize("name", TABLE)
def test_blocks(models: Path, name: str) -> None:
    topology = topology_of(models / f"{name}.onnx")
    check(topology)
    kinds = [region.kind for region in walk(topology.root)]
    found = tuple(kinds.count(kind) for kind in ("residual", "attention", "mlp", "normalization"))
    assert found == TABLE[name]


def _names() -> list[str]:
    folder = models_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx")) if folder is not None else []


@pytest.mark.parametrize("name", _names() or [pytest.param("", marks=pytest.mark.skip(reason="no folder of real models"))])
def test_the_law_holds(models: Path, name: str) -> None:
    """Also on graphs of which nothing is recognised."""
    check(topology_of(models / name))


FUSED = [
    "exports/vit.legacy17", "exports/bert.dyn18", "exports/gpt2.legacy17", "exports/llama.legacy17", "exports/llama.dyn18",
    "exports/sdpa_rmsnorm.dyn18", "exports/convnext_fp16", "exports/unet_gn_silu.dyn18",
]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fused_nodes_compute_the_same_function(models: Path, name: str) -> None:
    check_same_function(topology_of(models / f"{name}.onnx"), scale=1.0, trials=1)


@pytest.mark.parametrize("architecture", ["resnet18", "vit", "gpt2", "bert", "llama", "convnext", "sdpa_rmsnorm"])
def test_exporters_give_the_same_blocks(models: Path, architecture: str) -> None:
    """The sequence of blocks, their shortcuts and their nesting, whatever wrote the file."""
    trees = {}
    for path in sorted((models / "exports").glob(f"{architecture}.*.onnx")):
        regions = walk(topology_of(path).root)
        chosen = ("residual", "attention", "attention-core", "mlp", "normalization", "activation", "stack")
        trees[path.name] = [
            (region.kind, region.facts.get("shortcut"), region.path.count("/")) for region in regions if region.kind in chosen
        ]
    first, *others = trees.values()
    assert others and all(tree == first for tree in others), {name: len(tree) for name, tree in trees.items()}


def test_residual_facts_of_transformers(models: Path) -> None:
    positions = {
        "exports/vit.dyn18": "pre",
        "exports/llama.dyn18": "pre",
        "exports/bert.dyn18": "post",
        "exports/bert_ortfused": "post",
        "genai_gpt2_fp32": "pre",
    }
    for name, position in positions.items():
        blocks = [region for region in walk(topology_of(models / f"{name}.onnx").root) if region.kind == "residual"]
        found = {block.facts["residual"]["norm_position"] for block in blocks}
        assert position in found and found <= {position, "none"}, (name, found)


def test_attention_facts(models: Path) -> None:
    expected = {
        "exports/vit.dyn18": (4, 16),
        "exports/vit.dyn23": (4, 16),
        "exports/llama.legacy17": (8, 8),
        "genai_gpt2_fp32": (4, 8),
        "minilm_l3_fp32": (12, 32),
    }
    for name, shape in expected.items():
        for region in walk(topology_of(models / f"{name}.onnx").root):
            if region.kind == "attention":
                facts = region.facts["attention"]
                assert (facts["heads"], facts["head_dim"]) == shape, name
                assert facts["scale_ratio"] == pytest.approx(1.0, rel=1e-5) and facts["kind"] == "dot" and facts["serial"] == 1
