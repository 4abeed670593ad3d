"""The parts of a transformer in the spellings that exporters write; the two transformer samples share them."""

from __future__ import annotations

import math

import numpy as np
from builder import Array, Builder, decaying, rng

__all__ = ["Transformer"]


class Transformer(Builder):
    """A builder that knows attention, normalization and the feed-forward part.

    Parameters
    ----------
    name
        Name of the graph.
    seed
        Seed of the weights.
    width, heads, tokens
        Size of a row, number of heads, length of the sequence.
    """

    def __init__(self, name: str, seed: int, *, width: int, heads: int, tokens: int, opset: int = 17) -> None:
        super().__init__(name, opset=opset)
        self.random = rng(seed)
        self.width, self.heads, self.tokens = width, heads, tokens
        self.head = width // heads

    def matrix(self, rows: int, cols: int, norm: float) -> Array:
        """A weight matrix (in x out) with the spectrum of a trained one."""
        return decaying(self.random, rows, cols, norm=norm, power=0.5)

    def vector(self, size: int, scale: float = 0.05) -> Array:
        """A bias."""
        return (scale * self.random.standard_normal(size)).astype(np.float32)

    def gains(self) -> Array:
        """Scales of a normalization."""
        return self.random.uniform(0.6, 1.1, self.width).astype(np.float32)

    def fused_norm(self, x: str, scope: str) -> str:
        """LayerNormalization as one operator."""
        scale, bias = self.weight(f"{scope}.weight", self.gains()), self.weight(f"{scope}.bias", self.vector(self.width))
        return self.node("LayerNormalization", x, scale, bias, scope=scope, axis=-1, epsilon=1e-5)

    def spelled_norm(self, x: str, scope: str) -> str:
        """LayerNormalization from ReduceMean, Pow and Sqrt, as exports below opset 17 have it."""
        centred = self.node("Sub", x, self.node("ReduceMean", x, scope=scope, axes=[-1]), scope=scope)
        squares = self.node("Pow", centred, self.scalar(f"{scope}.two", 2.0), scope=scope)
        variance = self.node("ReduceMean", squares, scope=scope, axes=[-1])
        root = self.node("Sqrt", self.node("Add", variance, self.scalar(f"{scope}.eps", 1e-5), scope=scope), scope=scope)
        y = self.node("Div", centred, root, scope=scope)
        y = self.node("Mul", y, self.weight(f"{scope}.weight", self.gains()), scope=scope)
        return self.node("Add", y, self.weight(f"{scope}.bias", self.vector(self.width)), scope=scope)

    def split_heads(self, x: str, perm: tuple[int, ...], scope: str) -> str:
        """[batch, tokens, width] to heads, by Reshape and Transpose."""
        shape = self.weight(f"{scope}.split", np.array([0, 0, self.heads, self.head], np.int64))
        return self.node("Transpose", self.node("Reshape", x, shape, scope=scope), scope=scope, perm=perm)

    def attention(self, x: str, scope: str, mask: str = "") -> str:
        """Softmax attention with several heads; ``mask`` is added to the logits."""
        width = self.width
        parts = {part: self.linear(x, self.matrix(width, width, 1.5), self.vector(width), f"{scope}.{part}") for part in "qkv"}
        q = self.split_heads(parts["q"], (0, 2, 1, 3), f"{scope}.q")
        k = self.split_heads(parts["k"], (0, 2, 3, 1), f"{scope}.k")
        v = self.split_heads(parts["v"], (0, 2, 1, 3), f"{scope}.v")
        logits = self.node("Div", self.node("MatMul", q, k, scope=scope), self.scalar(f"{scope}.root", math.sqrt(self.head)), scope=scope)
        if mask:
            logits = self.node("Add", logits, mask, scope=scope)
        y = self.node("MatMul", self.node("Softmax", logits, scope=scope, axis=-1), v, scope=scope)
        y = self.node("Transpose", y, scope=scope, perm=(0, 2, 1, 3))
        y = self.node("Reshape", y, self.weight(f"{scope}.merge", np.array([0, 0, width], np.int64)), scope=scope)
        return self.linear(y, self.matrix(width, width, 0.8), self.vector(width), f"{scope}.out")

    def gelu_erf(self, x: str, scope: str) -> str:
        """GELU by the error function: 0.5 x (1 + erf(x / sqrt 2))."""
        inner = self.node("Erf", self.node("Div", x, self.scalar(f"{scope}.sqrt2", math.sqrt(2.0)), scope=scope), scope=scope)
        gate = self.node("Mul", x, self.node("Add", inner, self.scalar(f"{scope}.one", 1.0), scope=scope), scope=scope)
        return self.node("Mul", gate, self.scalar(f"{scope}.half", 0.5), scope=scope)

    def gelu_tanh(self, x: str, scope: str) -> str:
        """GELU by the hyperbolic tangent: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
        cubed = self.node("Pow", x, self.scalar(f"{scope}.three", 3.0), scope=scope)
        inner = self.node("Add", x, self.node("Mul", cubed, self.scalar(f"{scope}.cubic", 0.044715), scope=scope), scope=scope)
        inner = self.node("Mul", inner, self.scalar(f"{scope}.factor", math.sqrt(2.0 / math.pi)), scope=scope)
        gate = self.node("Add", self.node("Tanh", inner, scope=scope), self.scalar(f"{scope}.one", 1.0), scope=scope)
        return self.node("Mul", self.node("Mul", x, self.scalar(f"{scope}.half", 0.5), scope=scope), gate, scope=scope)

    def widen(self, x: str, scope: str) -> str:
        """First linear layer of the feed-forward part."""
        return self.linear(x, self.matrix(self.width, 2 * self.width, 1.2), self.vector(2 * self.width), f"{scope}.fc1")

    def narrow(self, x: str, scope: str) -> str:
        """Second linear layer of the feed-forward part."""
        return self.linear(x, self.matrix(2 * self.width, self.width, 0.8), self.vector(self.width), f"{scope}.fc2")
