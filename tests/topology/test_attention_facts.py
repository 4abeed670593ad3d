"""What attention regions are called: shared heads, caches, cross-attention, rotation, and what is added to the scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipaudit.topology import Topology
from lipaudit.topology.laws import walk
from tests.certify.blocks import Attention
from tests.certify.decoders import Decoder
from tests.pipeline import topology
from tests.topology.test_models import topology_of


def facts(found: Topology) -> list[Mapping[str, Any]]:
    return [region.facts["attention"] for region in walk(found.root) if region.kind == "attention"]


def chosen(found: Topology, *names: str) -> list[Any]:
    (only,) = facts(found)
    return [only[name] for name in names]


@pytest.mark.parametrize(("kv_heads", "expected"), [(0, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize("rope", [False, True])
def test_shared_heads_spelled_out(kv_heads: int, expected: int, rope: bool) -> None:
    block = Attention(0, width=16, heads=4, kv_heads=kv_heads, rope=rope)
    assert chosen(topology(block.model()), "heads", "kv_heads", "rotary", "cached", "cross") == [4, expected, rope, False, False]


@pytest.mark.parametrize("form", ["onnx", "multi-head", "packed"])
def test_shared_heads_of_operators(form: str) -> None:
    block = Attention(0, width=16, heads=4, kv_heads=2 if form == "onnx" else 0, form=form)
    assert chosen(topology(block.model()), "heads", "kv_heads") == [4, 2 if form == "onnx" else 4]


@pytest.mark.parametrize("form", ["spelled", "onnx", "multi-head", "grouped"])
def test_caches(form: str) -> None:
    found = topology(Decoder(0, past=3, form=form, head=8, causal=True, rotary=form == "grouped").model())
    assert chosen(found, "kind", "heads", "cached", "cross", "rotary") == ["dot", 2, True, False, form == "grouped"]
    assert chosen(found, "causal") == [form != "spelled"]  # new queries against old and new keys: a mask that is not square


@pytest.mark.parametrize("form", ["spelled", "onnx", "multi-head"])
def test_cross_attention(form: str) -> None:
    assert chosen(topology(Decoder(0, cross=True, form=form).model()), "cached", "cross") == [False, True]


N = 5
DISTANCE = np.arange(N)[None, :] - np.arange(N)[:, None]
SLOPES = 2.0 ** -np.arange(1, 3)[:, None, None]
LATER = np.where(DISTANCE > 0, -np.inf, 0.0)
RANDOM = np.random.default_rng(0).standard_normal((2, N, N))
BIASES = {
    "alibi": -SLOPES * np.abs(DISTANCE) + LATER,
    "alibi, as one row": SLOPES * np.arange(N)[None, None, :] + LATER,
    "alibi, not masked": SLOPES * DISTANCE,
    "relative": RANDOM[:, 0][:, DISTANCE % N] + LATER,
    "relative, with a kink": -SLOPES * np.abs(DISTANCE),
    "absolute": RANDOM,
    "mask": LATER,
    "mask, finite": np.where(np.arange(N) > 2, -1e9, 0.0)[None, :] + 0 * DISTANCE,
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name: str) -> None:
    block = Attention(0, tokens=N, width=8, heads=2, mask="causal")
    block.bias = np.asarray(BIASES[name], np.float32)
    (bias,) = chosen(topology(block.model()), "bias")
    assert bias == ("none" if name == "mask" else name.split(",")[0])  # a mask that is causal and nothing else is a property, no bias


def test_moving_and_unknown_biases(models: Path) -> None:
    for name, expected in (("bert.dyn18", {"unknown", "mask", "none"}), ("llama.dyn18", {"mask", "none", "unknown"})):
        assert {fact["bias"] for fact in facts(topology_of(models / "exports" / f"{name}.onnx"))} <= expected


def test_real_models(models: Path) -> None:
    llama = facts(topology_of(models / "exports" / "llama.dyn18.onnx"))
    assert all(fact["rotary"] and fact["kv_heads"] == 2 and fact["heads"] == 8 and not fact["cross"] for fact in llama)
    assert all(fact["cached"] for fact in facts(topology_of(models / "genai_gpt2_fp32.onnx")))
    assert not any(fact["rotary"] or fact["cached"] or fact["cross"] for fact in facts(topology_of(models / "exports" / "vit.dyn18.onnx")))
