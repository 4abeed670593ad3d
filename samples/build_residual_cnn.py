"""A residual convolutional network with BatchNormalization still in the graph.

Three blocks: two with an identity shortcut, one with a projected shortcut (1 x 1 convolution, stride 2). Shows residual
regions (shortcut and branch), the folding of BatchNormalization into the convolution before it, strided convolution
norms and a globally pooled head.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, rng, save


class Net(Builder):
    """The layers of a residual network, as methods."""

    def __init__(self) -> None:
        super().__init__("residual_cnn")
        self.random = rng(202)

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int, scope: str) -> str:
        """Convolution without bias, as before a BatchNormalization."""
        weight = self.random.standard_normal((cout, cin, kernel, kernel)) * np.sqrt(1.0 / (cin * kernel * kernel))
        pad = kernel // 2
        name = self.weight(f"{scope}.weight", weight.astype(np.float32))
        return self.node("Conv", x, name, scope=scope, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4)

    def norm(self, x: str, channels: int, scope: str) -> str:
        """BatchNormalization with statistics as training leaves them."""
        random = self.random
        values = {
            "scale": random.uniform(0.5, 1.2, channels),
            "bias": 0.2 * random.standard_normal(channels),
            "mean": 0.1 * random.standard_normal(channels),
            "var": random.uniform(0.4, 1.5, channels),
        }
        names = [self.weight(f"{scope}.{key}", value.astype(np.float32)) for key, value in values.items()]
        return self.node("BatchNormalization", x, *names, scope=scope, epsilon=1e-5)

    def block(self, x: str, cin: int, cout: int, stride: int, scope: str) -> str:
        """Return relu(shortcut(x) + branch(x))."""
        y = self.norm(self.conv(x, cin, cout, 3, stride, f"{scope}.conv1"), cout, f"{scope}.bn1")
        y = self.node("Relu", y, scope=scope)
        y = self.norm(self.conv(y, cout, cout, 3, 1, f"{scope}.conv2"), cout, f"{scope}.bn2")
        if stride != 1 or cin != cout:
            x = self.norm(self.conv(x, cin, cout, 1, stride, f"{scope}.down"), cout, f"{scope}.down.bn")
        return self.node("Relu", self.node("Add", y, x, scope=scope), scope=scope)


def build() -> onnx.ModelProto:
    """Return the model."""
    net = Net()
    x = net.input("image", ["batch", 3, 16, 16])
    x = net.node("Relu", net.norm(net.conv(x, 3, 8, 3, 1, "stem"), 8, "stem.bn"), scope="stem")
    x = net.block(x, 8, 8, 1, "layer1.0")
    x = net.block(x, 8, 16, 2, "layer2.0")
    x = net.block(x, 16, 16, 1, "layer2.1")
    x = net.node("Flatten", net.node("GlobalAveragePool", x), axis=1)
    weight = 0.3 * net.random.standard_normal((5, 16))
    x = net.gemm(x, weight.astype(np.float32), np.zeros(5, np.float32), "fc")
    net.output(x, "logits", ["batch", 5])
    return net.model()


if __name__ == "__main__":
    print(save(build()))
