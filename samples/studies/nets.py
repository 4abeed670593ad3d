"""Parts that several studies build their networks from."""

from __future__ import annotations

import math

import numpy as np
from builder import Array, Builder

__all__ = ["Net"]


class Net(Builder):
    """A builder with random weights (He's variance times ``scale`` squared) and the usual parts.

    Parameters
    ----------
    name
        Name of the graph.
    width
        Size of a row.
    seed
        Seed of the weights.
    """

    def __init__(self, name: str, width: int, seed: int) -> None:
        super().__init__(name, opset=18)
        self.width = width
        self.random = np.random.default_rng(seed)

    def matrix(self, rows: int, cols: int, std: float) -> Array:
        """A normal matrix (in x out)."""
        return (std * self.random.standard_normal((rows, cols))).astype(np.float32)

    def square(self, x: str, scope: str, gain: float) -> str:
        """A square linear layer with entries of variance ``gain / width``."""
        return self.linear(x, self.matrix(self.width, self.width, math.sqrt(gain / self.width)), None, scope)

    def relu_layer(self, x: str, scope: str, factor: float = 1.0) -> str:
        """relu(W x) with He's initialisation, times ``factor``."""
        return self.node("Relu", self.square(x, scope, 2.0 * factor * factor), scope=scope)

    def mlp(self, x: str, scope: str, factor: float = 1.0, std: float = 1.0) -> str:
        """W2 relu(W1 x), He and Xavier, the second layer times ``factor``, both times ``std``."""
        hidden = self.node("Relu", self.square(x, f"{scope}.fc1", 2.0 * std * std), scope=scope)
        return self.square(hidden, f"{scope}.fc2", factor * factor * std * std)

    def norm(self, x: str, scope: str) -> str:
        """LayerNormalization without scale and shift."""
        scale = self.weight(f"{scope}.weight", np.ones(self.width, np.float32))
        shift = self.weight(f"{scope}.bias", np.zeros(self.width, np.float32))
        return self.node("LayerNormalization", x, scale, shift, scope=scope, axis=-1, epsilon=1e-5)

    def attention(self, x: str, scope: str, std: float = 1.0) -> str:
        """Dot-product attention with one head, its output projected."""
        q, k, v = (self.square(x, f"{scope}.{part}", std * std) for part in "qkv")
        logits = self.node("MatMul", q, self.node("Transpose", k, scope=scope, perm=(0, 2, 1)), scope=scope)
        logits = self.node("Mul", logits, self.scalar(f"{scope}.scale", 1 / math.sqrt(self.width)), scope=scope)
        return self.square(
            self.node("MatMul", self.node("Softmax", logits, scope=scope, axis=-1), v, scope=scope), f"{scope}.out", std * std
        )
