"""Attention of several entries: each entry's bound is above what a search finds and below the partition calculus, in every spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from lipaudit.certify import Certificate, RegionBound
from tests.certify.blocks import jacobian
from tests.certify.decoders import Decoder
from tests.pipeline import certificate

Array = NDArray[Any]

CASES: list[dict[str, Any]] = [
    {"cross": True},
    {"cross": True, "heads": 1, "kv_heads": 1},
    {"cross": True, "heads": 4, "kv_heads": 4, "head": 1, "width": 4},
    {"cross": True, "tokens": 1, "others": 1},
    {"cross": True, "scale": 30.0},
    {"values_only": True, "others": 3},
    {"cross": True, "form": "onnx", "kv_heads": 1},
    {"cross": True, "form": "multi-head"},
    {"past": 3},
    {"past": 3, "causal": True},
    {"past": 2, "turned_cache": True},
    {"past": 3, "scale": 20.0, "tokens": 1},
    {"past": 3, "form": "onnx", "kv_heads": 1, "causal": True},
    {"past": 3, "form": "multi-head", "causal": True},
    {"past": 3, "form": "grouped", "head": 8, "kv_heads": 1, "causal": True},
    {"past": 3, "form": "grouped", "head": 16, "heads": 4, "kv_heads": 2, "causal": True, "rotary": True},
]
BOXES = ("past_k=-1:1", "past_v=-2:2")


def _name(case: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in case.items())


def _certified(block: Decoder) -> Certificate:
    return certificate(block.model(), boxes=BOXES if block.past else ())


def _region(found: Certificate) -> RegionBound:
    return next(bound for bound in found.regions.values() if bound.region.kind == "attention" and len(bound.region.entries) > 1)


def _slopes(bound: RegionBound) -> dict[str, float]:
    """By what the entry is: "x", "m", "past_k", "past_v"."""
    names = {"layernormalization_0": "x", "layernormalization_1": "m", "transpose_11": "past_k"}
    return {names.get(entry.value, entry.value): float(entry.bound.slope) for entry in bound.entries}


def _points(block: Decoder, rng: np.random.Generator, inside: bool) -> list[dict[str, Array]]:
    """Entries of the region: random, equal rows, clusters far apart, caches at their corners."""
    found: list[dict[str, Array]] = []
    for size in (1e-2, 0.5, 100.0):
        for kind in range(3):
            given: dict[str, Array] = {}
            for name, shape in block.shapes.items():
                if name in ("x", "m"):
                    rows = size * rng.standard_normal(shape)
                    if kind == 1:
                        rows = rows[:, :1] + 1e-3 * rows
                    elif kind == 2:
                        rows = rows[:, :1] * np.where(rng.random((1, shape[1], 1)) < 0.5, -1.0, 1.0) + 1e-3 * rows
                    given[name] = rows if inside else block.normalized(rows)
                else:
                    top = 1.0 if name == "past_k" else 2.0
                    given[name] = top * (np.sign(rng.standard_normal(shape)) if kind else rng.uniform(-1, 1, shape))
            found.append(given)
    return found


def _gains(run: Callable[[dict[str, Array]], Array], given: dict[str, Array]) -> tuple[dict[str, float], float]:
    """Spectral norms of the Jacobian from each entry, and from all."""
    parts = {name: jacobian(lambda value, name=name: run({**given, name: value}), given[name]) for name in given}
    whole = np.concatenate(list(parts.values()), axis=1)
    return {name: float(np.linalg.norm(part, 2)) for name, part in parts.items()}, float(np.linalg.norm(whole, 2))


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_each_entry_by_itself(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    for seed in range(2):
        block = Decoder(seed, **case)
        x = {name: rng.uniform(-1, 1, shape) for name, shape in block.shapes.items()}
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(block.model().SerializeToString(), options)
        given = session.run(["y"], {name: value.astype(np.float32) for name, value in x.items()})[0]
        assert np.allclose(given, block({name: value.astype(np.float32).astype(float) for name, value in x.items()}), atol=1e-4)
        bound = _region(_certified(block))
        with monkeypatch.context() as patch:
            patch.setattr("lipaudit.certify.gains.entry_gain", lambda *_: None)
            plain = _region(_certified(block))
        slopes, naive = _slopes(bound), _slopes(plain)
        assert set(slopes) == set(block.shapes) and bound.joint.status == "finite"
        assert all(slopes[name] <= naive[name] for name in slopes)
        assert any(slopes[name] < 0.95 * naive[name] for name in slopes) or block.tokens == 1 or block.heads == 1
        assert float(bound.joint.slope) <= float(plain.joint.slope)
        inside = "x" in bound.region.entries  # the normalization is a part of the region
        for point in _points(block, rng, inside):
            gains, joint = _gains(block if inside else block.attention, point)
            assert all(gains[name] <= slopes[name] for name in gains), (gains, slopes)
            assert joint <= float(bound.joint.slope)


def test_the_values_alone_are_exact() -> None:
    """All queries attend one key: ``||W_O W_V|| sqrt(n_q)`` is reached to one percent, so a constant smaller by that would be wrong."""
    block = Decoder(3, values_only=True, bare=True, others=3, heads=1, kv_heads=1, head=8, scale=60.0)
    bound = next(item for item in _certified(block).regions.values() if item.region.kind == "attention")
    slope = next(float(entry.bound.slope) for entry in bound.entries if entry.value == "m")
    rng = np.random.default_rng(1)
    best = 0.0
    for _ in range(60):
        row = rng.standard_normal(8)
        x = np.stack([row, row + 1e-3, rng.standard_normal(8)])[None]
        x[0, 2] = x[0, 0] if rng.random() < 0.5 else x[0, 2]
        best = max(best, _gains(block, {"x": x, "m": rng.standard_normal((1, 3, 8))})[0]["m"])
    top = float(np.linalg.norm(block.w["wv"].astype(float) @ block.w["wo"].astype(float), 2)) * np.sqrt(3)
    assert 0.99 * slope <= top <= slope
    assert 0.99 * top <= best


def test_a_cache_that_nothing_bounds_has_no_constant() -> None:
    bound = _region(certificate(Decoder(0, past=3).model()))
    assert bound.joint.status == "unbounded"
    assert bound.joint.reasons


def test_a_bypass_is_no_attention_of_its_entries() -> None:
    """What is added to the scores from the same entry is outside of the form: the method must not speak."""
    from onnx import helper

    block = Decoder(0, cross=True, heads=1, kv_heads=1)
    model = block.model()
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    scores = softmax.input[0]
    at = list(model.graph.node).index(softmax)
    extra = helper.make_node("ReduceMean", ["layernormalization_1"], ["level"], name="level", keepdims=1)
    added = helper.make_node("Add", [scores, "level"], ["lifted"], name="lifted")
    softmax.input[0] = "lifted"
    model.graph.node.insert(at, extra)
    model.graph.node.insert(at + 1, added)
    found = certificate(model)
    for bound in found.regions.values():
        assert not any(
            entry.bound.method.startswith("attention: weighted") for entry in bound.entries if entry.value == "layernormalization_1"
        )
