"""Attention that is no softmax of dot products, as ONNX graphs with their twins in numpy: sigmoid, ReLU, linear, cosine, capped, L2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.certify.blocks import softmax
from tests.certify.writing import Writer
from tests.pipeline import make_model

__all__ = ["KINDS", "Kernel"]

Array = NDArray[Any]

KINDS = ("sigmoid", "relu", "linear", "cosine", "cosine values", "capped", "capped after a mask", "l2")


@dataclass
class Kernel:
    """``x -> LayerNormalization -> heads of one kind -> W_O``; x is [1, tokens, width].

    ``kind``: one of KINDS. ``spelling`` counts the ways to write the denominator of linear attention (0 to 4). ``features``: "elu" (plus 1)
    or "relu" (with e = 0.1 below). ``biased``: a stored bias is added to the scores.
    """

    seed: int
    kind: str
    tokens: int = 4
    width: int = 6
    heads: int = 2
    scale: float = 1.0
    norm: bool = True
    spelling: int = 0
    features: str = "elu"
    biased: bool = False

    def __post_init__(self) -> None:
        rng = np.random.default_rng([23, self.seed])
        d = self.width
        self.k = max(1, d // self.heads)

        def f(*shape: int) -> Array:
            return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), np.float32)

        inner = self.heads * self.k
        self.w = {name: f(d, inner) for name in ("wq", "wk", "wv")} | {"wo": f(inner, d), "bq": f(inner), "bk": f(inner), "bv": f(inner)}
        self.w["wq"] = self.w["wq"] * np.float32(self.scale)
        self.w |= {"gamma": np.asarray(1 + 0.3 * rng.standard_normal(d), np.float32), "beta": 0.2 * f(d)}
        self.bias = np.asarray(rng.standard_normal((self.tokens, self.tokens)), np.float32) if self.biased else None
        self.mask = np.where(np.tri(self.tokens, dtype=bool), 0, -4).astype(np.float32)

    # ------------------------------------------------------------------ the twin

    def normalized(self, x: Array) -> Array:
        """The normalization alone."""
        if not self.norm:
            return x
        z = x - x.mean(axis=-1, keepdims=True)
        z = z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + float(np.float32(1e-2)))
        return z * self.w["gamma"].astype(float) + self.w["beta"].astype(float)

    def attention(self, e: Array) -> Array:
        """From the normalized rows to the exit."""
        w = {name: value.astype(float) for name, value in self.w.items()}
        n, h, k = self.tokens, self.heads, self.k
        q, key, v = ((e[0] @ w[f"w{p}"] + w[f"b{p}"]).reshape(n, h, k).transpose(1, 0, 2) for p in "qkv")
        if self.kind == "l2":
            key, v = q, q
        t = key.transpose(0, 2, 1)
        bias = 0.0 if self.bias is None else self.bias.astype(float)
        if self.kind == "sigmoid":
            o = (1 + np.tanh((q @ t * 0.5 + bias) / 2)) / 2 @ v
        elif self.kind == "relu":
            s = q @ t * 0.5 + bias
            o = s * (s.real > 0) / n @ v
        elif self.kind == "linear":
            a, b = (self._features(z) for z in (q, key))
            weights = a @ b.transpose(0, 2, 1)
            o = weights @ v / (weights.sum(axis=-1, keepdims=True) + (float(np.float32(0.1)) if self.features == "relu" else 0))
        elif self.kind.startswith("cosine"):
            hat = lambda z: z / np.sqrt((z * z).sum(axis=-1, keepdims=True) + float(np.float32(0.05)))  # noqa: E731
            o = softmax(3 * hat(q) @ hat(key).transpose(0, 2, 1) + bias) @ (hat(v) if self.kind == "cosine values" else v)
        elif self.kind.startswith("capped"):
            after = self.kind == "capped after a mask"
            s = q @ t * 0.5
            o = softmax(2 * np.tanh((s + self.mask if after else s) / 2) + (0 if after else self.mask + bias)) @ v
        else:
            squares = (q * q).sum(axis=-1, keepdims=True)
            o = softmax(-0.5 * (squares + squares.transpose(0, 2, 1) - 2 * q @ t)) @ v
        return (o.transpose(1, 0, 2).reshape(n, h * k) @ w["wo"])[None]

    def _features(self, z: Array) -> Array:
        if self.features == "relu":
            return z * (z.real > 0)
        return np.where(z.real > 0, z, np.exp(np.where(z.real > 0, 0, z)) - 1) + 1

    def __call__(self, x: Array) -> Array:
        return self.attention(self.normalized(x))

    # ------------------------------------------------------------------ the graph

    def model(self) -> onnx.ModelProto:
        """As an exporter writes it."""
        n, h, k = self.tokens, self.heads, self.k
        graph = Writer(self.w)
        nodes, c, add, const = graph.nodes, graph.constants, graph.add, graph.const

        def number(value: float) -> str:
            return const(np.float32(value))

        def turned(value: str) -> str:
            return add("Transpose", value, perm=(0, 1, 3, 2))

        def summed(value: str, axis: int) -> str:
            return add("ReduceSum", value, const(np.array([axis], np.int64)), keepdims=1)

        e = add("LayerNormalization", "x", "gamma", "beta", axis=-1, epsilon=1e-2) if self.norm else "x"
        q, key, v = (
            add(
                "Transpose",
                add("Reshape", add("Add", add("MatMul", e, f"w{p}"), f"b{p}"), const(np.array([1, n, h, k]))),
                perm=(0, 2, 1, 3),
            )
            for p in ("qqq" if self.kind == "l2" else "qkv")
        )
        if self.kind == "l2":
            key = v = q

        def with_bias(scores: str) -> str:
            return scores if self.bias is None else add("Add", scores, const(self.bias))

        def scores(a: str, b: str, factor: float) -> str:
            return add("Mul", add("MatMul", a, turned(b)), number(factor))

        if self.kind == "sigmoid":
            o = add("MatMul", add("Sigmoid", with_bias(scores(q, key, 0.5))), v)
        elif self.kind == "relu":
            o = add("MatMul", add("Div", add("Relu", with_bias(scores(q, key, 0.5))), number(n)), v)
        elif self.kind == "linear":
            o = self._linear(add, number, turned, summed, q, key, v)
        elif self.kind.startswith("cosine"):

            def hat(value: str) -> str:
                root = add("Sqrt", add("Add", summed(add("Mul", value, value), -1), number(0.05)))
                return add("Div", value, root)

            p = add("Softmax", with_bias(scores(hat(q), hat(key), 3.0)), axis=-1)
            o = add("MatMul", p, hat(v) if self.kind == "cosine values" else v)
        elif self.kind.startswith("capped"):
            after = self.kind == "capped after a mask"
            s = scores(q, key, 0.5)
            s = add("Add", s, const(self.mask)) if after else s
            s = add("Mul", add("Tanh", add("Div", s, number(2.0))), number(2.0))
            mask = self.mask if self.bias is None else self.mask + self.bias
            o = add("MatMul", add("Softmax", s if after else add("Add", s, const(mask)), axis=-1), v)
        else:
            column = summed(add("Mul", q, q), -1)
            inner = add("Mul", add("MatMul", q, turned(q)), number(2.0))
            distance = add("Sub", add("Add", column, turned(column)), inner)
            o = add("MatMul", add("Softmax", add("Mul", distance, number(-0.5)), axis=-1), q)
        y = add("Reshape", add("Transpose", o, perm=(0, 2, 1, 3)), const(np.array([1, n, h * k])))
        add("MatMul", y, "wo", out="y")
        return make_model(nodes, {"x": [1, n, self.width]}, ["y"], c)

    def _linear(self, add: Any, number: Any, turned: Any, summed: Any, q: str, key: str, v: str) -> str:
        def features(value: str) -> str:
            return add("Relu", value) if self.features == "relu" else add("Add", add("Elu", value), number(1.0))

        def below(value: str) -> str:
            return add("Add", value, number(0.1)) if self.features == "relu" else value

        a, b = features(q), features(key)
        if self.spelling == 3:  # weights first
            weights = add("MatMul", a, turned(b))
            return add("MatMul", add("Div", weights, below(summed(weights, -1))), v)
        top = add("MatMul", a, add("MatMul", turned(b), v))
        if self.spelling in (0, 4):
            bottom = add("MatMul", a, turned(summed(b, -2)))
        elif self.spelling == 1:
            bottom = add("MatMul", a, summed(turned(b), -1))
        else:
            bottom = summed(add("Mul", a, summed(b, -2)), -1)
        if self.spelling == 4:
            return add("Mul", top, add("Reciprocal", below(bottom)))
        return add("Div", top, below(bottom))
