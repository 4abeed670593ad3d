"""A pre-norm transformer on token ids, with LayerNormalization as one operator and GELU spelled with Erf.

Token ids have no Lipschitz meaning: the source is the output of the embedding lookup, whose range its table bounds.
Attention behind a normalization has bounded inputs, hence a finite constant on all reals. The residual stream runs
through both blocks, and a last normalization stands before the head.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import save
from onnx import TensorProto
from transformer import Transformer

VOCABULARY, BLOCKS, CLASSES = 50, 2, 3


def build() -> onnx.ModelProto:
    """Return the model."""
    net = Transformer("prenorm_transformer", 303, width=32, heads=4, tokens=8)
    ids = net.input("ids", ["batch", net.tokens], TensorProto.INT64)
    table = net.weight("embedding.weight", net.matrix(VOCABULARY, net.width, 6.0))
    x = net.node("Gather", table, ids, scope="embedding", axis=0)
    x = net.node("Add", x, net.weight("positions", net.matrix(net.tokens, net.width, 1.0)), scope="embedding")
    for i in range(BLOCKS):
        scope = f"blocks.{i}"
        y = net.attention(net.fused_norm(x, f"{scope}.norm1"), f"{scope}.attn")
        x = net.node("Add", x, y, scope=f"{scope}.join1")
        y = net.gelu_erf(net.widen(net.fused_norm(x, f"{scope}.norm2"), f"{scope}.mlp"), f"{scope}.mlp.act")
        x = net.node("Add", x, net.narrow(y, f"{scope}.mlp"), scope=f"{scope}.join2")
    x = net.fused_norm(x, "norm")
    first = net.node("Gather", x, net.weight("first", np.array(0, np.int64)), scope="head", axis=1)
    net.output(net.linear(first, net.matrix(net.width, CLASSES, 1.0), net.vector(CLASSES), "head"), "logits", ["batch", CLASSES])
    return net.model()


if __name__ == "__main__":
    print(save(build()))
