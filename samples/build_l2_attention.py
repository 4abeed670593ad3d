"""L2 self-attention with tied queries and keys: finite on all reals.

The logits are ``-|W x_i - W x_j|^2 / sqrt(d)`` and the values are a linear map of the same ``W x_j`` (Kim, Papamakarios
and Mnih 2021, arXiv 2006.04710, section 3.3). Far-away rows lose their weight exponentially, so the gain stays bounded where dot-product
attention's does not.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from builder import Builder, decaying, rng, save

TOKENS, WIDTH, HEAD = 6, 16, 8


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(606), Builder("l2_attention", opset=17)
    x = b.input("x", ["batch", TOKENS, WIDTH])
    q = b.linear(x, decaying(random, WIDTH, HEAD, norm=1.0, power=0.3), None, "attn.qk")
    # |q_i - q_j|^2 = |q_i|^2 + |q_j|^2 - 2 q_i.q_j
    squares = b.node("ReduceSum", b.node("Mul", q, q, scope="attn"), b.weight("axes", np.array([-1], np.int64)), scope="attn")
    across = b.node("Transpose", squares, scope="attn", perm=(0, 2, 1))
    products = b.node("MatMul", q, b.node("Transpose", q, scope="attn", perm=(0, 2, 1)), scope="attn")
    distances = b.node("Add", squares, across, scope="attn")
    distances = b.node("Sub", distances, b.node("Mul", products, b.scalar("two", 2.0), scope="attn"), scope="attn")
    logits = b.node("Mul", distances, b.scalar("scale", -1.0 / math.sqrt(HEAD)), scope="attn")
    weights = b.node("Softmax", logits, scope="attn", axis=-1)
    values = b.linear(q, decaying(random, HEAD, HEAD, norm=1.0, power=0.3), None, "attn.v")
    y = b.node("MatMul", weights, values, scope="attn")
    y = b.linear(
        y, decaying(random, HEAD, WIDTH, norm=1.0, power=0.3), (0.1 * random.standard_normal(WIDTH)).astype(np.float32), "attn.out"
    )
    b.output(y, "y", ["batch", TOKENS, WIDTH])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
