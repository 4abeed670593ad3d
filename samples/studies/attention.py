"""Kinds of self-attention against the size of their input.

Kim, Papamakarios, Mnih 2021 (arXiv 2006.04710): dot-product attention is not Lipschitz, L2 attention is. Qi et al. 2023 (LipsFormer,
arXiv 2304.09856): cosine similarity attention.
"""

from __future__ import annotations

import importlib
import math

import numpy as np
import onnx
from builder import Builder, rng
from numpy.typing import NDArray

from studies.study import Line, Outcome, Panel, Study, audited, slope

__all__ = ["run"]

_TOKENS, _WIDTH = 6, 16


def _dot(normalised: bool) -> onnx.ModelProto:
    random, b = rng(808), Builder("dot", opset=18)
    x = b.input("x", [1, _TOKENS, _WIDTH])
    y = x
    if normalised:
        ones, zeros = b.weight("norm.weight", np.ones(_WIDTH, np.float32)), b.weight("norm.bias", np.zeros(_WIDTH, np.float32))
        y = b.node("LayerNormalization", x, ones, zeros, scope="norm", axis=-1, epsilon=1e-5)
    q, k, v = (b.linear(y, (random.standard_normal((_WIDTH, _WIDTH)) / math.sqrt(_WIDTH)).astype(np.float32), None, part) for part in "qkv")
    logits = b.node("MatMul", q, b.node("Transpose", k, scope="attn", perm=(0, 2, 1)), scope="attn")
    logits = b.node("Mul", logits, b.scalar("scale", 1 / math.sqrt(_WIDTH)), scope="attn")
    y = b.node("MatMul", b.node("Softmax", logits, scope="attn", axis=-1), v, scope="attn")
    b.output(y, "y", [1, _TOKENS, _WIDTH])
    return b.model()


def _one_zero_row(scale: float) -> NDArray[np.float32]:
    """Points of the box whose first row is zero: all its logits are equal there, and its weights move the most."""
    points = rng(809).uniform(-scale, scale, (8, 1, _TOKENS, _WIDTH)).astype(np.float32)
    points[:, :, 0] = 0.0
    return points


def run(fast: bool = False) -> Study:
    """Measure; ``fast`` takes fewer input sizes."""
    scales = (4, 128) if fast else (1, 4, 16, 64, 256)
    models = {
        "dot product": _dot(False),
        "L2, tied": importlib.import_module("build_l2_attention").build(),
        "cosine, eps 0.01": importlib.import_module("build_cosine_attention").build(),
        "dot product behind LayerNormalization": _dot(True),
    }
    rows: list[list[str]] = []
    lines: list[Line] = []
    measured: dict[str, list[float]] = {}
    everywhere: dict[str, float | None] = {}
    for kind, model in models.items():
        everywhere[kind] = audited(model, measure=False).certified.log10
        for scale in scales:
            audit = audited(model, boxes={"x": (-scale, scale)}, inputs={"x": _one_zero_row(scale)})
            below, above = audit.measured.log10, audit.certified.log10
            assert below is not None and above is not None
            measured.setdefault(kind, []).append(below)
            whole = everywhere[kind]
            rows.append([kind, str(scale), f"{above:.2f}", f"{below:.2f}", "unbounded" if whole is None else f"{whole:.2f}"])
        lines.append(Line(kind, list(zip(scales, measured[kind], strict=True))))
    logs = [math.log10(scale) for scale in scales]
    dot, rest = "dot product", [kind for kind in models if kind != "dot product"]
    growth = {kind: slope(logs, found) for kind, found in measured.items()}
    outcomes = [
        Outcome(
            f"The gain of dot-product attention grows like the size of its input to the power {growth[dot]:.2f} (no certificate "
            "exists on all reals).",
            1.2 < growth[dot] < 2.3 and everywhere[dot] is None,
        ),
        *(
            Outcome(
                f"{kind}: at most 10^{everywhere[kind] or math.nan:.2f} on all reals; measured growth {growth[kind]:+.2f}.",
                everywhere[kind] is not None and growth[kind] < 0.35,
            )
            for kind in rest
        ),
    ]
    return Study(
        "attention", "Kinds of attention against the size of the input",
        f"One attention layer, {_TOKENS} rows of width {_WIDTH}, inputs in [-s, s]; log10 of the gain.",
        ("kind", "s", "certified on the box", "measured on the box", "certified on all reals"), rows,
        [Panel("Measured gain on [-s, s]", "s", "log10 gain", lines)], outcomes,
    )  # fmt: skip
