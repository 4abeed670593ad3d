"""Tied L2 attention is bounded on all reals: Lambert's bound from both sides, Jacobians searched at every scale."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from lipaudit.operators.l2_attention import mean_logit
from tests.certify.blocks import ascend, jacobian, softmax
from tests.pipeline import certificate

_SAMPLES = Path(__file__).parents[2] / "samples" / "models"


@pytest.mark.parametrize("keys", [1, 2, 3, 5, 17, 100, 10**4, 10**7])
def test_lambert(keys: int) -> None:
    k = mean_logit(keys)
    if keys == 1:
        assert k == 0
        return
    # The supremum of sum P_j w_j is attained at equal w = k + 1, and is k itself.
    w = k + 1
    attained = (keys - 1) * w * math.exp(-w) / (1 + (keys - 1) * math.exp(-w))
    assert attained <= k <= attained * (1 + 1e-9)


def test_mean_logits_stay_below() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        keys = int(rng.integers(2, 12))
        w = np.concatenate([[0.0], rng.exponential(rng.choice([0.3, 1.0, 3.0]), keys - 1) + rng.uniform(0, 3)])
        p = np.exp(-w) / np.exp(-w).sum()
        assert float(p @ w) <= mean_logit(keys)


def test_the_sample_is_finite_and_holds() -> None:
    model = onnx.load(_SAMPLES / "l2_attention.onnx")
    w = {item.name: onnx.numpy_helper.to_array(item).astype(float) for item in model.graph.initializer}
    found = certificate(model).headline
    assert found.status == "finite"
    tokens, width = 6, 16

    def twin(x: NDArray[np.complex128]) -> NDArray[np.complex128]:
        q = x[0] @ w["attn.qk.weight"]
        distances = ((q[:, None, :] - q[None, :, :]) ** 2).sum(axis=-1)
        return np.asarray(softmax(distances * w["scale"]) @ (q @ w["attn.v.weight"]) @ w["attn.out.weight"])

    rng = np.random.default_rng(1)
    for size in (1e-3, 0.3, 1.0, 3.0, 10.0, 1e3):
        assert ascend(twin, size * rng.standard_normal((1, tokens, width)), rng, 10) <= float(found.slope)
    for norm in ("l1", "linf"):
        bound = float(certificate(model, norm).headline.slope)
        for size in (0.3, 3.0):
            j = np.abs(jacobian(twin, size * rng.standard_normal((1, tokens, width))))
            assert float(j.sum(axis=0 if norm == "l1" else 1).max()) <= bound
