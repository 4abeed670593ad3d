"""A group normalization whose statistics are computed in float16 with an epsilon of 1e-8: ``LIP505 epsilon-lost-in-half`` fires.

The smallest positive float16 is 2^-24, and everything up to 2^-25 becomes 0. In a runtime that
computes the statistics in float16, as the attribute ``stash_type`` asks, a constant group then divides zero by zero.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, rng, save
from onnx import TensorProto

CHANNELS, LENGTH, GROUPS = 12, 6, 3


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(1414), Builder("half_norm", opset=21)
    half = TensorProto.FLOAT16
    x = b.node("Cast", b.input("x", ["batch", CHANNELS, LENGTH]), scope="norm", to=half)
    weight = b.weight("norm.weight", random.uniform(0.6, 1.1, CHANNELS).astype(np.float16))
    bias = b.weight("norm.bias", (0.1 * random.standard_normal(CHANNELS)).astype(np.float16))
    y = b.node("GroupNormalization", x, weight, bias, scope="norm", epsilon=1e-8, num_groups=GROUPS, stash_type=half)
    b.output(b.node("Cast", y, scope="norm.out", to=TensorProto.FLOAT), "y", ["batch", CHANNELS, LENGTH])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
