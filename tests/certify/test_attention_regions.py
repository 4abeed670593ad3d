"""Attention blocks as wholes: never below what a search of Jacobians finds, never above the partition calculus, and much below it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lipaudit.certify import Certificate
from tests.certify.blocks import Attention, ascend
from tests.pipeline import certificate

_CASES: list[dict[str, Any]] = [
    {},
    {"norm": "rms"},
    {"rope": True, "width": 8},
    {"packed": True, "mask": "causal"},
    {"kv_heads": 1},
    {"rope": True, "kv_heads": 1, "width": 8, "norm": "rms"},
    {"qk_norm": True},
    {"qk_norm": True, "rope": True, "width": 8},
    {"mask": "causal"},
    {"mask": "finite"},
    {"mask": "padded"},
    {"tokens": 1},
    {"tokens": 2, "heads": 1},
    {"heads": 6, "head": 1},
    {"width": 1, "heads": 1, "norm": "rms", "head": 2},
    {"scale": 30.0},
    {"scale": 1e-3},
    {"epsilon": 1.0, "scale": 3.0},
    {"residual": True},
    {"project": False},
    {"batch": 2, "rope": True, "width": 8, "kv_heads": 1},
    {"batch": 3, "packed": True, "tokens": 2},
]


def _name(case: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in case.items()) or "plain"


def _slope(found: Certificate) -> float:
    assert found.headline.status == "finite"
    return float(found.headline.slope)


def _paths_only(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, **more: Any) -> float:
    """The headline without any method but the partition calculus."""
    with monkeypatch.context() as patch:
        patch.setattr("lipaudit.certify.methods._METHODS", ())
        return _slope(certificate(model, **more))


@pytest.mark.parametrize("case", _CASES, ids=_name)
def test_no_jacobian_exceeds_the_bound(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    for seed in range(2):
        block = Attention(seed, **case)
        model = block.model()
        x = rng.standard_normal((block.batch, block.tokens, block.width))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        given = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x.astype(np.float32)})[0]
        assert np.allclose(given, block(x.astype(np.float32).astype(float)), atol=1e-4)  # the twin is the model
        certified = _slope(certificate(model))
        assert certified <= _paths_only(model, monkeypatch)
        for size in (1e-2, 0.3, 3.0):
            assert ascend(block, size * rng.standard_normal(x.shape), rng, 12) <= certified
            # Nearly constant rows, where the normalization is steepest, that differ a little between tokens.
            level = np.ones_like(x) + 0.1 * size * rng.standard_normal(x.shape)
            assert ascend(block, level, rng, 8) <= certified


@pytest.mark.parametrize("case", [{}, {"rope": True, "width": 8}, {"kv_heads": 1}, {"mask": "causal"}], ids=_name)
def test_the_attention_alone_on_what_a_normalization_gives(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(6)
    block = Attention(3, **case)
    found = certificate(block.model())
    bound = next(item for item in found.regions.values() if item.region.kind == "attention").joint
    assert bound.method.startswith("attention: ")
    for size in (0.1, 1.0, 100.0):
        rows = block.normalized(size * rng.standard_normal((1, block.tokens, block.width)))
        assert ascend(block.attention, rows, rng, 0) <= float(bound.slope)


@pytest.mark.parametrize("norm", ["", "layer"])
def test_a_box_instead_of_a_normalization(norm: str) -> None:
    rng = np.random.default_rng(7)
    block = Attention(4, norm=norm)
    certified = _slope(certificate(block.model(), boxes=["x=-1:1"]))
    for _ in range(6):
        x = np.where(rng.random((1, block.tokens, block.width)) < 0.5, -1.0, 1.0)
        assert ascend(block, x, rng, 0) <= certified
        assert ascend(block, rng.uniform(-1, 1, x.shape), rng, 0) <= certified


def test_on_all_reals_a_bare_attention_has_no_constant() -> None:
    assert certificate(Attention(0, norm="").model()).headline.status == "unbounded"


@pytest.mark.parametrize("rope", [False, True])
def test_a_block_of_width_64_with_8_heads_is_ten_times_below_the_rules_of_its_nodes(rope: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Attention(0, tokens=16, width=64, heads=8, rope=rope, residual=True, epsilon=1e-5)
    model = block.model()
    assert 10 * _slope(certificate(model)) <= _paths_only(model, monkeypatch)


def test_spellings_of_one_block_agree() -> None:
    plain, packed = (_slope(certificate(Attention(9, packed=packed).model())) for packed in (False, True))
    assert abs(plain - packed) <= 1e-5 * plain


@pytest.mark.parametrize(("form", "case"), [("onnx", {}), ("onnx", {"kv_heads": 1}), ("multi-head", {}), ("packed", {})])
def test_operators_and_spelled_forms_agree(form: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    block = Attention(9, form=form, **case)
    model = block.model()
    x = rng.standard_normal((1, block.tokens, block.width)).astype(np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    given = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]
    assert np.allclose(given, block(x.astype(float)), atol=1e-4)
    found = certificate(model)
    plain, own = _slope(certificate(Attention(9, **case).model())), _slope(found)
    assert abs(plain - own) <= 1e-5 * plain
    assert 2 * own < _paths_only(model, monkeypatch)
    assert ascend(block, 0.1 * x.astype(float), rng, 20) <= own


def test_methods_are_steps_of_the_derivation() -> None:
    found = certificate(Attention(0).model())
    rules = [step.rule for step in found.steps if step.id <= (found.headline.step or 0)]
    assert any(rule.startswith("attention as a whole: ") and "W G P" in rule for rule in rules)
