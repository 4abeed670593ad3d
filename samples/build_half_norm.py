"""A normalization spelled out in float16 whose epsilon of 1e-8 rounds to zero there: ``LIP505 epsilon-lost-in-half`` fires.

The smallest positive float16 is 2^-24, and everything up to 2^-25 becomes 0. A constant row then divides zero by zero.
The file stores the epsilon in float32 and casts it, as mixed-precision converters do.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, rng, save
from onnx import TensorProto

WIDTH = 12


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(1414), Builder("half_norm", opset=17)
    half = TensorProto.FLOAT16
    x = b.node("Cast", b.input("x", ["batch", WIDTH]), scope="norm", to=half)
    centred = b.node("Sub", x, b.node("ReduceMean", x, scope="norm", axes=[-1]), scope="norm")
    variance = b.node("ReduceMean", b.node("Mul", centred, centred, scope="norm"), scope="norm", axes=[-1])
    eps = b.node("Cast", b.scalar("norm.eps", 1e-8), scope="norm.eps", to=half)
    y = b.node("Div", centred, b.node("Sqrt", b.node("Add", variance, eps, scope="norm"), scope="norm"), scope="norm")
    y = b.node("Mul", y, b.weight("norm.weight", random.uniform(0.6, 1.1, WIDTH).astype(np.float16)), scope="norm")
    y = b.node("Add", y, b.weight("norm.bias", (0.1 * random.standard_normal(WIDTH)).astype(np.float16)), scope="norm")
    b.output(b.node("Cast", y, scope="norm.out", to=TensorProto.FLOAT), "y", ["batch", WIDTH])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
