"""Scaled cosine similarity attention: finite on all reals, thanks to the epsilon under the root.

Queries, keys and values are divided by ``sqrt(|.|^2 + eps)``, the logits are ``tau`` times their cosines, the output is
``nu`` times the mixed values (Qi et al. 2023, LipsFormer, arXiv 2304.09856). Without the epsilon the gain at zero would
be unbounded.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, decaying, rng, save

TOKENS, WIDTH, HEAD = 6, 16, 8
TAU, NU, EPSILON = 4.0, 1.0, 1e-2


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(707), Builder("cosine_attention")
    x = b.input("x", ["batch", TOKENS, WIDTH])
    axes, eps = b.weight("axes", np.array([-1], np.int64)), b.scalar("eps", EPSILON)
    unit: dict[str, str] = {}
    for part in "qkv":
        scope = f"attn.{part}"
        p = b.linear(x, decaying(random, WIDTH, HEAD, norm=1.2, power=0.3), None, scope)
        squares = b.node("ReduceSum", b.node("Mul", p, p, scope=scope), axes, scope=scope, keepdims=1)
        length = b.node("Sqrt", b.node("Add", squares, eps, scope=scope), scope=scope)
        unit[part] = b.node("Div", p, length, scope=scope)
    k = b.node("Transpose", unit["k"], scope="attn", perm=(0, 2, 1))
    logits = b.node("Mul", b.node("MatMul", unit["q"], k, scope="attn"), b.scalar("tau", TAU), scope="attn")
    y = b.node("MatMul", b.node("Softmax", logits, scope="attn", axis=-1), unit["v"], scope="attn")
    y = b.node("Mul", y, b.scalar("nu", NU), scope="attn")
    y = b.linear(y, decaying(random, HEAD, WIDTH, norm=1.0, power=0.3), None, "attn.out")
    b.output(y, "y", ["batch", TOKENS, WIDTH])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
