"""A small U-shaped network with Split and Concat.

Down by MaxPool, up by ConvTranspose, a skip connection by Concat; in the middle the channels are split, treated apart and
joined again. Split followed by Concat must cost nothing: the pieces are independent, so their gains do not add up. The
skip is the opposite case: both inputs of that Concat depend on the same value.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, rng, save


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(909), Builder("unet")

    def conv(x: str, cin: int, cout: int, kernel: int, scope: str) -> str:
        weight = random.standard_normal((cout, cin, kernel, kernel)) * np.sqrt(0.8 / (cin * kernel * kernel))
        bias = b.weight(f"{scope}.bias", (0.05 * random.standard_normal(cout)).astype(np.float32))
        pad = kernel // 2
        return b.node("Conv", x, b.weight(f"{scope}.weight", weight.astype(np.float32)), bias, scope=scope, pads=[pad] * 4)

    x = b.input("image", ["batch", 1, 16, 16])
    skip = b.node("Relu", conv(x, 1, 4, 3, "down"), scope="down")
    y = b.node("MaxPool", skip, scope="down", kernel_shape=[2, 2], strides=[2, 2])
    left, right = b.nodes_of("Split", y, scope="middle", outputs=2, axis=1, num_outputs=2)
    left = b.node("Relu", conv(left, 2, 4, 3, "middle.left"), scope="middle.left")
    right = b.node("Tanh", conv(right, 2, 4, 1, "middle.right"), scope="middle.right")
    y = b.node("Concat", left, right, scope="middle", axis=1)
    up = (random.standard_normal((8, 4, 2, 2)) * 0.3).astype(np.float32)
    y = b.node("ConvTranspose", y, b.weight("up.weight", up), scope="up", kernel_shape=[2, 2], strides=[2, 2])
    y = b.node("Concat", skip, y, scope="up", axis=1)
    y = b.node("Relu", conv(y, 8, 4, 3, "up.conv"), scope="up.conv")
    b.output(b.node("Sigmoid", conv(y, 4, 1, 1, "head"), scope="head"), "mask", ["batch", 1, 16, 16])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
