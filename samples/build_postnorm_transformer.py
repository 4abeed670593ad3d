"""A post-norm transformer with a causal mask, everything spelled out as older exporters do.

LayerNormalization from ReduceMean, Pow, Sqrt and Div, GELU by tanh, the mask as a constant added to the logits. The
recogniser must find the same regions as in the pre-norm sample; read operator by operator, the cube in GELU and the
division by a root have no finite constant at all. The first attention sees the raw input: it is bounded only on a box
(``--input x=-3:3``), the second one, behind a normalization, always.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import save
from transformer import Transformer

BLOCKS = 2


def build() -> onnx.ModelProto:
    """Return the model."""
    net = Transformer("postnorm_transformer", 404, width=24, heads=3, tokens=6)
    x = net.input("x", ["batch", net.tokens, net.width])
    future = np.triu(np.ones((net.tokens, net.tokens), bool), 1)
    mask = net.weight("mask", np.where(future, np.finfo(np.float32).min, 0.0).astype(np.float32))
    for i in range(BLOCKS):
        scope = f"blocks.{i}"
        x = net.node("Add", x, net.attention(x, f"{scope}.attn", mask), scope=f"{scope}.join1")
        x = net.spelled_norm(x, f"{scope}.norm1")
        y = net.gelu_tanh(net.widen(x, f"{scope}.mlp"), f"{scope}.mlp.act")
        x = net.node("Add", x, net.narrow(y, f"{scope}.mlp"), scope=f"{scope}.join2")
        x = net.spelled_norm(x, f"{scope}.norm2")
    net.output(x, "hidden", ["batch", net.tokens, net.width])
    return net.model()


if __name__ == "__main__":
    print(save(build()))
