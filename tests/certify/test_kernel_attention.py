"""Attention of every kind: recognised, finite behind a normalization, never below a searched Jacobian, below the rules of its nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lipaudit.topology.laws import check
from tests.certify.blocks import ascend
from tests.certify.kernels import KINDS, Kernel
from tests.pipeline import certificate, topology

_FUSED = {"sigmoid": "PairAttention", "relu": "PairAttention", "linear": "LinearAttention", "l2": "L2Attention"}

_MORE: list[tuple[str, dict[str, Any]]] = [
    *(("linear", {"spelling": k, "features": f}) for k in range(5) for f in ("elu", "relu")),
    *((kind, {"biased": True}) for kind in ("sigmoid", "relu", "cosine", "capped")),
]
_SHAPES: list[dict[str, Any]] = [{}, {"tokens": 1}, {"heads": 1}, {"heads": 6}, {"width": 2, "heads": 2}, {"scale": 30.0}, {"tokens": 9}]


def _twin_is_the_model(block: Kernel, rng: np.random.Generator) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    x = rng.standard_normal((1, block.tokens, block.width)).astype(np.float32)
    given = ort.InferenceSession(block.model().SerializeToString(), options).run(None, {"x": x})[0]
    assert np.allclose(given, block(x.astype(float)), atol=1e-4)


@pytest.mark.parametrize(("kind", "case"), [*((kind, {}) for kind in KINDS), *_MORE])
def test_recognised_in_every_spelling(kind: str, case: dict[str, Any]) -> None:
    block = Kernel(0, kind, **case)
    _twin_is_the_model(block, np.random.default_rng(0))
    found = topology(block.model())
    check(found)
    fused = [node.op for node in found.graph.nodes if node.domain == "lipaudit"]
    wanted = _FUSED.get(kind, "" if kind == "capped after a mask" else "Attention")
    assert fused.count(wanted) == (1 if wanted else 0), (fused, found.refusals)


@pytest.mark.parametrize(("kind", "case"), [*((kind, case) for kind in KINDS for case in _SHAPES), *_MORE])
def test_no_jacobian_exceeds_the_bound(kind: str, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    if kind == "linear" and case.get("scale"):
        case = {"scale": 3.0}  # beyond that exp(x) - 1 + 1 cannot be told from 0 in doubles
    block = Kernel(1, kind, **case)
    found = certificate(block.model())
    assert found.headline.status == "finite", found.headline.reasons
    certified = float(found.headline.slope)
    blocks = [item for item in found.regions.values() if item.region.kind == "attention"]
    inner = [float(item.joint.slope) for item in blocks if item.region.entries == ("layernormalization_0",)]
    assert len(inner) == (kind not in ("l2", "capped after a mask"))  # an entry of its own; no region of this kind
    for size in (1e-2, 0.5, 20.0):
        x = size * rng.standard_normal((1, block.tokens, block.width))
        assert ascend(block, x, rng, 8) <= certified
        assert ascend(block, np.ones_like(x) + 0.1 * x, rng, 4) <= certified
        for slope in inner:
            assert ascend(block.attention, block.normalized(x), rng, 0) <= slope


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("kind", ["sigmoid", "relu", "linear"])
def test_the_node_rules_on_a_box_in_every_norm(kind: str, norm: Any) -> None:
    rng = np.random.default_rng(2)
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    for case in ({}, {"features": "relu"}, {"tokens": 1, "heads": 1}, {"biased": kind != "linear"}):
        block = Kernel(2, kind, norm=False, width=4, tokens=3 if "tokens" not in case else 1, heads=case.get("heads", 2), **{
            key: value for key, value in case.items() if key not in ("tokens", "heads")
        })  # fmt: skip
        found = certificate(block.model(), norm, boxes=["x=-1:1"])
        assert found.headline.status == "finite", found.headline.reasons
        for _ in range(15):
            x = rng.uniform(-1, 1, (1, block.tokens, block.width))
            x = np.sign(x) if rng.random() < 0.5 else x
            j = ascend(block, x, rng, 0, lambda m: float(np.linalg.norm(m, order)))
            assert j <= float(found.headline.slope)


@pytest.mark.parametrize("kind", ["sigmoid", "relu", "linear", "cosine values"])
def test_as_a_whole_below_the_rules_of_the_nodes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Kernel(3, kind, width=16, heads=4, tokens=8).model()
    whole = float(certificate(model).headline.slope)
    with monkeypatch.context() as patch:
        patch.setattr("lipaudit.topology.fuse.PATTERNS", {})
        plain = certificate(model).headline.slope
    assert 2 * whole < float(plain)


@pytest.mark.parametrize("kind", ["sigmoid", "relu", "linear", "cosine"])
def test_on_all_reals(kind: str) -> None:
    """Without a normalization only values that are normalized too leave a constant."""
    assert certificate(Kernel(4, kind, norm=False).model()).headline.status == "unbounded"
    assert certificate(Kernel(4, "cosine values", norm=False).model()).headline.status == "finite"


def test_features_that_may_vanish_have_no_constant() -> None:
    block = Kernel(5, "linear", features="relu")
    assert certificate(block.model()).headline.status == "finite"
    model = Kernel(5, "linear", features="elu", norm=False).model()
    assert certificate(model).headline.status == "unbounded"
    assert certificate(model, boxes=["x=-1:1"]).headline.status == "finite"
