"""A plain multilayer perceptron: Gemm and ReLU, four times.

Shows the simplest certificate: the product of the spectral norms of the layers, beside a measured gain well below it,
since ReLU closes half of the directions at every point.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
from builder import Builder, decaying, rng, save

WIDTHS = (16, 32, 32, 32, 4)


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(101), Builder("mlp")
    x = b.input("x", ["batch", WIDTHS[0]])
    last = len(WIDTHS) - 2
    for i, (width, following) in enumerate(pairwise(WIDTHS)):
        weight = decaying(random, following, width, norm=1.7, power=0.4)
        x = b.gemm(x, weight, (0.1 * random.standard_normal(following)).astype(np.float32), f"layers.{i}")
        if i < last:
            x = b.node("Relu", x, scope=f"layers.{i}")
    b.output(x, "logits", ["batch", WIDTHS[-1]])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
