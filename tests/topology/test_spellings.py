"""The same network in other spellings: the same kinds and numbers of regions, and the same bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from lipaudit.certify import certify
from lipaudit.certify.domain import Domain
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import Topology
from lipaudit.topology.laws import check, walk
from tests.pipeline import topology
from tests.topology.networks import ATTENTIONS, NETWORKS, network
from tests.topology.rewriting import REWRITES, ROUNDED, rewritten

ALL = (*NETWORKS, *ATTENTIONS)
SPECIAL = ("MLP with a GELU", "layer normalization", "attention, linear, spelling 4", "choices", "group normalization", "classifier")
TOGETHER = (
    ("order of sums", "order of products", "quotient as product", "square as product", "product as Gemm", "Cast", "product as Einsum"),
    ("Reshape and back", "difference as sum", "weight transposed", "divisor as factor", "root as power", "choice by the opposite"),
)
"""Rewrites one after the other: the bound is computed for each of these."""
# What a swap of spellings cannot change; chains and joins are what is left over.
UNNAMED = frozenset({"model", "chain", "affine-chain", "affine-block", "join", "other", "concat"})
ROUNDING = 1e-9
"""Relative: sums run in another order, and a verified norm of W is not that of W' to the last digit."""
STORED = 1e-6
"""Relative: 1/c was rounded to float32, in every layer."""


def named(found: Topology) -> Counter[str]:
    return Counter(region.kind for region in walk(found.root) if region.kind not in UNNAMED)


def upper(found: Topology, norm: str = "l2") -> float | None:
    headline = certify(found, Catalogue.load(), Domain({}), norm).headline  # type: ignore[arg-type]
    return float(headline.slope) if headline.status == "finite" else None


def spelling(found: Topology) -> list[object]:
    """What is computed, without names: where this is equal, so is the bound (the wiring is checked once more by TOGETHER)."""
    graph = found.graph
    return [
        (node.kind, sorted(map(repr, node.attrs.items())), [graph.value(name).shape for name in node.inputs if name])
        for node in graph.nodes
    ]


@dataclass(frozen=True)
class Plain:
    """A network as it was written."""

    model: onnx.ModelProto
    topology: Topology
    kinds: Counter[str]
    upper: float | None


def plain(model: onnx.ModelProto) -> Plain:
    found = topology(model)
    check(found)
    return Plain(model, found, named(found), upper(found))


def wrong(one: Plain, *rewrites: str, certified: bool = True) -> tuple[int, object]:
    """Places that were rewritten, and what differs then: None, or the two findings."""
    other, places = rewritten(one.model, *rewrites)
    if not places:
        return 0, None
    found = topology(other)
    check(found)
    kinds = named(found)
    if kinds != one.kinds:
        return places, (rewrites, dict(kinds), dict(one.kinds))
    if not certified or (spelling(found) == spelling(one.topology) and len(rewrites) == 1):
        return places, None
    bound = upper(found)
    tolerance = STORED if any(rewrite in ROUNDED for rewrite in rewrites) else ROUNDING
    if bound is None or one.upper is None:
        return places, None if bound is one.upper else (rewrites, bound, one.upper)
    return places, None if abs(bound - one.upper) <= tolerance * one.upper else (rewrites, bound, one.upper)


@pytest.mark.parametrize("name", ALL)
def test_every_spelling_of_a_network(name: str) -> None:
    model, kinds = network(name)
    one = plain(model)
    assert {kind: one.kinds[kind] for kind in kinds} == dict(kinds), one.kinds
    found = [wrong(one, rewrite) for rewrite in REWRITES] + [wrong(one, *rewrites) for rewrites in TOGETHER]
    assert sum(places > 0 for places, _ in found) >= 9
    assert not [difference for _, difference in found if difference is not None]


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "llama", "convnext", "sdpa_rmsnorm"])
def test_every_spelling_of_a_real_export(models: Path, name: str) -> None:
    """The trees for each rewrite alone, trees and bounds for several at once."""
    one = plain(onnx.load(models / "exports" / f"{name}.dyn18.onnx"))
    found = [wrong(one, rewrite, certified=False) for rewrite in REWRITES] + [wrong(one, *rewrites) for rewrites in TOGETHER]
    assert sum(places > 0 for places, _ in found) >= 12
    assert not [difference for _, difference in found if difference is not None]


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewrite_keeps_the_function(rewrite: str) -> None:
    """In onnxruntime, on the networks to which it applies; each applies somewhere."""
    rng = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    applied = 0
    for name in (*ALL[::3], *SPECIAL):
        model, _ = network(name)
        other, places = rewritten(model, rewrite)
        if not places or applied >= 4:
            continue
        applied += 1
        x = rng.standard_normal([d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]).astype(np.float32)
        results = [onnxruntime.InferenceSession(m.SerializeToString(), options).run(None, {"x": x})[0] for m in (model, other)]
        np.testing.assert_allclose(results[1], results[0], rtol=2e-5, atol=2e-6, err_msg=name)
    assert applied
