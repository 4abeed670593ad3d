"""Forty layers in a row without a shortcut: ``LIP301 long-run-without-shortcut`` fires.

Every layer is a rotation, so that the certified product stays near 1 and only the missing shortcut is worth a word.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, rng, save

DEPTH, WIDTH = 40, 8


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(1111), Builder("deep_plain")
    x = b.input("x", ["batch", WIDTH])
    for i in range(DEPTH):
        rotation = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0]
        x = b.gemm(x, rotation.astype(np.float32), (0.05 * random.standard_normal(WIDTH)).astype(np.float32), f"layers.{i}")
        x = b.node("LeakyRelu", x, scope=f"layers.{i}", alpha=0.9)
    b.output(x, "y", ["batch", WIDTH])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
