"""DynamicQuantizeLSTM: an emulation in float64 that onnxruntime agrees with, and pairs that straddle its rounding."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from lipaudit.bounds.scalar import Norm
from tests.pipeline import certificate, make_model

Floats = NDArray[np.float64]
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")
ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
T, B, D, H = 3, 2, 3, 4
RNG = np.random.default_rng(11)
W = RNG.integers(0, 255, size=(1, D, 4 * H)).astype(np.uint8)
R = RNG.integers(0, 255, size=(1, H, 4 * H)).astype(np.uint8)
ZERO = np.array([128], dtype=np.uint8)
W_SCALE, R_SCALE = np.array([0.006], dtype=np.float32), np.array([0.004], dtype=np.float32)
BIAS = RNG.normal(size=(1, 8 * H)).astype(np.float32)
MODEL = make_model(
    [
        helper.make_node(
            "DynamicQuantizeLSTM",
            ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"],
            ["y", "yh", "yc"],
            domain="com.microsoft",
            hidden_size=H,
        )
    ],
    {"x": (T, B, D)},
    ["y", "yh", "yc"],
    {"w": W, "r": R, "b": BIAS, "ws": W_SCALE, "wz": ZERO, "rs": R_SCALE, "rz": ZERO},
    domains={"com.microsoft": 1},
)


def rounded(x: Floats) -> Floats:
    lo, hi = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = (hi - lo) / 255
    if scale == 0:
        return np.zeros_like(x)
    zero = np.clip(np.rint(-lo / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def run(x: Floats) -> list[Floats]:
    """One direction, gates in the order i, o, f, c."""
    w = (W[0].astype(np.float64) - 128) * float(W_SCALE[0])
    r = (R[0].astype(np.float64) - 128) * float(R_SCALE[0])
    bias = BIAS[0, : 4 * H].astype(np.float64) + BIAS[0, 4 * H :]
    from_x = rounded(x) @ w + bias
    h, c = np.zeros((B, H)), np.zeros((B, H))
    steps = []
    for t in range(T):
        i, o, f, g = np.split(from_x[t] + rounded(h) @ r, 4, axis=1)
        i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        steps.append(h)
    return [np.stack(steps)[:, None], h[None], c[None]]


def test_the_emulation_is_what_onnxruntime_computes() -> None:
    session = onnxruntime.InferenceSession(MODEL.SerializeToString(), providers=["CPUExecutionProvider"])
    x = RNG.uniform(-1, 1, size=(T, B, D)).astype(np.float32)
    for found, mine in zip(session.run(None, {"x": x}), run(x.astype(np.float64)), strict=True):
        np.testing.assert_allclose(np.asarray(found), mine, atol=5e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_no_pair_beats_the_bound(norm: Norm) -> None:
    found = certificate(MODEL, norm, ["x=-1:1"])
    assert found.headline.status == "finite"
    matrix = [found.matrix["x", name] for name in ("y", "yh", "yc")]
    for k in range(300):
        x = RNG.uniform(-1, 1, size=(T, B, D))
        if k % 2:
            x.flat[0], x.flat[1] = -1.0, 1.0
            x.flat[2:] = (RNG.integers(-100, 100, size=x.size - 2) + 0.5) * 2 / 255
        y = np.clip(x + RNG.choice([1e-9, -1e-9, 1e-2, 0.5], size=x.shape) * (np.abs(x) < 1), -1, 1)
        moved = float(np.linalg.norm((x - y).ravel(), ORDER[norm]))
        for bound, one, two in zip(matrix, run(x), run(y), strict=True):
            change = float(np.linalg.norm((one - two).ravel(), ORDER[norm]))
            assert change <= float(bound.slope) * moved + float(bound.offset)


def test_without_a_box_the_rounding_of_x_has_no_bound() -> None:
    found = certificate(MODEL).headline
    assert found.status == "unbounded" and any("give the input a box" in reason.reason for reason in found.reasons)
