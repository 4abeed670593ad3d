"""A network in which much went wrong; it runs, and several guidelines fire on it.

- ``LIP202``: the epsilon of a BatchNormalization is 0.8, meant as its momentum.
- ``LIP203``: a BatchNormalization has trained scales, but the statistics of a fresh layer.
- ``LIP201``: a LayerNormalization over a single element, whose output is its bias whatever comes in.
- ``LIP302``: the last weights of a residual branch are all zero: the branch adds nothing.
- ``LIP502``: a softmax spelled as Exp over ReduceSum, without its maximum subtracted.
- ``LIP601``: a softmax of a softmax.
- ``LIP501``: a logarithm of a softmax.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, decaying, rng, save

CHANNELS, CLASSES = 8, 6


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(1010), Builder("unstable")

    def conv(x: str, cin: int, weight: float, scope: str) -> str:
        values = decaying(random, CHANNELS, cin * 9, norm=weight, power=0.5).reshape(CHANNELS, cin, 3, 3)
        bias = b.weight(f"{scope}.bias", np.zeros(CHANNELS, np.float32))
        return b.node("Conv", x, b.weight(f"{scope}.weight", values), bias, scope=scope, pads=[1, 1, 1, 1])

    def norm(x: str, scope: str, epsilon: float, *, fresh: bool) -> str:
        size = CHANNELS
        values = {
            "scale": random.uniform(0.5, 1.5, size),
            "bias": 0.2 * random.standard_normal(size),
            "mean": np.zeros(size) if fresh else 0.3 * random.standard_normal(size),
            "var": np.ones(size) if fresh else random.uniform(0.3, 2.0, size),
        }
        names = [b.weight(f"{scope}.{key}", value.astype(np.float32)) for key, value in values.items()]
        return b.node("BatchNormalization", x, *names, scope=scope, epsilon=epsilon)

    def linear(x: str, rows: int, cols: int, scope: str) -> str:
        return b.linear(x, decaying(random, rows, cols, norm=2.0), (0.1 * random.standard_normal(cols)).astype(np.float32), scope)

    x = b.input("image", ["batch", 1, 8, 8])
    x = b.node("Relu", norm(conv(x, 1, 2.0, "conv1"), "bn1", 0.8, fresh=False), scope="conv1")
    # The ReLU keeps this convolution and the normalization after it apart: folded, a fresh normalization is invisible.
    x = b.node("Relu", norm(b.node("Relu", conv(x, CHANNELS, 2.0, "conv2"), scope="conv2"), "bn2", 1e-5, fresh=True), scope="bn2")
    branch = conv(b.node("Relu", conv(x, CHANNELS, 1.0, "block.conv1"), scope="block"), CHANNELS, 0.0, "block.conv2")
    x = b.node("Add", x, branch, scope="block")
    features = b.node("Flatten", b.node("GlobalAveragePool", x), axis=1)

    gate = linear(features, CHANNELS, 1, "gate")
    one = (b.weight("gate.norm.weight", np.ones(1, np.float32)), b.weight("gate.norm.bias", np.full(1, 0.7, np.float32)))
    gate = b.node("LayerNormalization", gate, *one, scope="gate.norm", axis=-1, epsilon=1e-5)
    features = b.node("Mul", features, gate, scope="gate")

    raised = b.node("Exp", linear(features, CHANNELS, CLASSES, "route"), scope="route")
    total = b.node("ReduceSum", raised, b.weight("axes", np.array([1], np.int64)), scope="route", keepdims=1)
    route = b.node("Div", raised, total, scope="route")

    logits = linear(features, CHANNELS, CLASSES, "head")
    flat = b.node("Softmax", b.node("Softmax", logits, scope="head", axis=-1), scope="head", axis=-1)
    logs = b.node("Log", b.node("Softmax", logits, scope="loss", axis=-1), scope="loss")
    b.output(route, "route", ["batch", CLASSES])
    b.output(flat, "probabilities", ["batch", CLASSES])
    b.output(logs, "log_probabilities", ["batch", CLASSES])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
