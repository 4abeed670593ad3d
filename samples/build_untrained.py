"""A freshly initialised network with residual blocks, exported before its checkpoint was loaded.

The weights are independent Gaussian entries with He's variance, so every spectrum ends where noise would end:
``LIP405 weights-look-untrained`` fires.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, rng, save

WIDTH, BLOCKS = 40, 5


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(1212), Builder("untrained")

    def layer(x: str, scope: str) -> str:
        weight = random.standard_normal((WIDTH, WIDTH)) * np.sqrt(2.0 / WIDTH)
        return b.gemm(x, weight.astype(np.float32), np.zeros(WIDTH, np.float32), scope)

    x = b.input("x", ["batch", WIDTH])
    for i in range(BLOCKS):
        y = b.node("Relu", layer(x, f"blocks.{i}.fc1"), scope=f"blocks.{i}")
        x = b.node("Add", x, layer(y, f"blocks.{i}.fc2"), scope=f"blocks.{i}")
    b.output(x, "y", ["batch", WIDTH])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
