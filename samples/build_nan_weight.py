"""One weight is not a number, as after a training step that overflowed: ``LIP401 nonfinite-weight`` fires.

What it touches is not a number either, so nothing can be certified or measured behind it, and the report says which
tensor it is.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, decaying, rng, save


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(1313), Builder("nan_weight")
    x = b.input("x", ["batch", 8])
    x = b.node("Relu", b.gemm(x, decaying(random, 12, 8, norm=1.5), np.zeros(12, np.float32), "fc1"), scope="fc1")
    broken = decaying(random, 4, 12, norm=1.5)
    broken[2, 5] = np.nan
    b.output(b.gemm(x, broken, np.zeros(4, np.float32), "fc2"), "y", ["batch", 4])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
