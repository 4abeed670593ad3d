"""Heads with ``W_K' W_Q`` multiplied out: sharp where the two cancel, never below the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lipaudit.certify import Certificate
from tests.certify.blocks import Attention, ascend
from tests.pipeline import certificate


def _bound(found: Certificate) -> tuple[float, str]:
    bound = next(item for item in found.regions.values() if item.region.kind == "attention").joint
    return float(bound.slope), bound.method


def _apart(seed: int, **case: Any) -> Attention:
    """Queries in the first half of every head, keys in the second: all scores are the same."""
    block = Attention(seed, **case)
    half = np.arange(block.heads * block.head) % block.head < block.head // 2
    for name, kept in (("wq", half), ("bq", half), ("wk", ~half), ("bk", ~half)):
        block.weights[name] = block.weights[name] * kept.astype(np.float32)
    return block


@pytest.mark.parametrize("case", [{}, {"norm": "rms"}, {"mask": "causal"}, {"heads": 1}, {"batch": 2}])
def test_scores_that_cancel_cost_nothing(case: dict[str, Any]) -> None:
    """What is left are the values: the bound falls to that of ``W_O W_V`` and of the column sums."""
    block = _apart(0, width=8, **case)
    slope, method = _bound(certificate(block.model()))
    assert "merged with keys" in method
    w = block.weights
    wide = np.sqrt(block.tokens) * np.linalg.norm(w["wv"].astype(float), 2) * np.linalg.norm(w["wo"].astype(float), 2)
    assert slope <= wide * 1.01
    rng = np.random.default_rng(1)
    x = rng.standard_normal((block.batch, block.tokens, block.width))
    assert ascend(block.attention, block.normalized(x), rng, 0) <= slope


_CASES: list[dict[str, Any]] = [
    {"heads": 1}, {"heads": 1, "scale": 20.0}, {"heads": 1, "norm": "rms", "tokens": 2}, {"heads": 1, "tokens": 1}, {"heads": 3, "head": 1},
    {"kv_heads": 1}, {"mask": "finite"}, {"mask": "padded"}, {"project": False}, {"width": 1, "heads": 1, "norm": "rms", "head": 2},
    {"batch": 2, "packed": True}, {"scale": 1e-3, "tokens": 7},
]  # fmt: skip


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_no_jacobian_on_the_ball_of_the_rows_exceeds_the_bound(case: dict[str, Any]) -> None:
    """The climb stays among what the normalization can give, constant rows and rows of two clusters included."""
    rng = np.random.default_rng(2)
    for seed in range(3):
        block = Attention(seed, **case)
        slope, method = _bound(certificate(block.model()))
        assert method.startswith("attention: ")
        for size in (1e-3, 0.3, 5.0, 300.0):
            x = size * rng.standard_normal((block.batch, block.tokens, block.width))
            x = np.where(rng.random(x.shape[:2])[..., None] < 0.5, x, -x[:, :1])
            assert ascend(block.attention, block.normalized(x), rng, 0) <= slope


@pytest.mark.parametrize("seed", range(4))
def test_a_box_without_a_normalization(seed: int) -> None:
    """Rows in a ball about 0: keys and values at its far ends, queries between them."""
    rng = np.random.default_rng(seed)
    block = Attention(seed, norm="", heads=1, width=3, head=2)
    slope, _ = _bound(certificate(block.model(), boxes=["x=-1:1"]))
    for _ in range(20):
        corner = np.sign(rng.standard_normal(3))
        rows = np.where(rng.random((1, block.tokens, 1)) < 0.5, corner, -corner) * rng.choice([1.0, 0.999, 0.1], size=(1, block.tokens, 1))
        assert ascend(block.attention, rows, rng, 0) <= slope
