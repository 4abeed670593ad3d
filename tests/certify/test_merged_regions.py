"""Gated products and products behind a normalization, against searched Jacobians and the exact constant of the norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.certify.blocks import Gated, ascend
from tests.certify.test_attention_regions import _name, _paths_only, _slope
from tests.pipeline import certificate, make_model

_GATES: list[dict[str, Any]] = [
    {},
    {"act": "Sigmoid"},
    {"act": "Tanh", "scale": 20.0},
    {"act": "Relu"},
    {"act": ""},
    {"project": False},
    {"tokens": 1, "hidden": 1},
    {"epsilon": 1.0, "scale": 0.1},
]


@pytest.mark.parametrize("case", _GATES, ids=_name)
def test_no_jacobian_of_a_gated_product_exceeds_the_bound(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    for seed in range(2):
        block = Gated(seed, **case)
        model = block.model()
        found = certificate(model)
        certified = _slope(found)
        assert certified <= _paths_only(model, monkeypatch)
        inner = [item.joint for item in found.regions.values() if item.joint.method.startswith("gated product")]
        shape = (1, block.tokens, block.width)
        for size in (1e-2, 0.3, 3.0):
            x = size * rng.standard_normal(shape)
            assert ascend(block, x, rng, 15) <= certified
            assert ascend(block, 1 + 0.1 * x, rng, 10) <= certified
            if inner and block.project:
                assert ascend(block.gate, block.normalized(x), rng, 0) <= max(float(bound.slope) for bound in inner)


def test_a_gate_without_a_domain_is_unbounded_and_on_a_box_is_not() -> None:
    block = Gated(3, norm="")
    model = block.model()
    assert certificate(model).headline.status == "unbounded"
    certified = _slope(certificate(model, boxes=["x=-1:1"]))
    rng = np.random.default_rng(3)
    for _ in range(10):
        x = np.where(rng.random((1, block.tokens, block.width)) < 0.5, -1.0, 1.0)
        assert ascend(block, x, rng, 0) <= certified


def test_the_gated_rule_beats_the_sum_of_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gated(0, width=32, hidden=64).model()
    assert 2 * _slope(certificate(model)) <= _paths_only(model, monkeypatch)


def test_a_product_behind_a_normalization_has_its_exact_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    # A large common part of the weight, which the subtraction of the mean removes.
    weight = np.float32(rng.standard_normal((8, 8)) + 5.0)
    scale = np.float32(1 + 0.9 * rng.random(8))
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["e"], axis=-1, epsilon=0.25),
        helper.make_node("MatMul", ["e", "w"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1, 3, 8]}, ["y"], {"w": weight, "g": scale})
    centred = (scale[:, None].astype(float) * weight.astype(float)).T @ (np.eye(8) - 1 / 8)
    exact = np.linalg.norm(centred, 2) / 0.5
    certified = _slope(certificate(model))
    assert exact <= certified <= exact * (1 + 1e-5)
    assert 1.2 * certified < _paths_only(model, monkeypatch)


def test_a_token_of_the_normalized_rows() -> None:
    """Selections before the product are followed; a row that is read twice is not."""
    rng = np.random.default_rng(5)
    w, g = np.float32(rng.standard_normal((4, 3))), np.float32(1 + rng.random(4))
    for rows in ([1], [0, 2], [1, 1]):
        nodes = [
            helper.make_node("LayerNormalization", ["x", "g"], ["e"], axis=-1, epsilon=0.25),
            helper.make_node("Gather", ["e", "rows"], ["t"], axis=1),
            helper.make_node("MatMul", ["t", "w"], ["y"]),
        ]
        model = make_model(nodes, {"x": [1, 3, 4]}, ["y"], {"w": w, "g": g, "rows": np.array(rows)})
        merged = (g[:, None].astype(float) * w.astype(float)).T @ (np.eye(4) - 1 / 4)
        exact = np.linalg.norm(merged, 2) / 0.5 * (np.sqrt(2) if rows == [1, 1] else 1)
        assert exact <= _slope(certificate(model))
