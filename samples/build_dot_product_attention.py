"""Dot-product self-attention alone, with nothing before it that bounds its input.

It has no Lipschitz constant on all reals: its gain grows with the square of the input's scale (Kim, Papamakarios and
Mnih 2021, arXiv 2006.04710). On a box (``--input x=-1:1``) there is one. Compare with the l2_attention and
cosine_attention samples, which have one everywhere.
"""

from __future__ import annotations

import onnx
from builder import save
from transformer import Transformer


def build() -> onnx.ModelProto:
    """Return the model."""
    net = Transformer("dot_product_attention", 505, width=16, heads=2, tokens=6)
    x = net.input("x", ["batch", net.tokens, net.width])
    net.output(net.attention(x, "attn"), "y", ["batch", net.tokens, net.width])
    return net.model()


if __name__ == "__main__":
    print(save(build()))
