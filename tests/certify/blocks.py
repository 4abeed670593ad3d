"""Attention and gated blocks as ONNX graphs with their twins in numpy (float64 or complex, for exact derivatives).

Weights are float32 numbers in both. :func:`jacobian` differentiates by the complex step, which has no cancellation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tests.pipeline import make_model

__all__ = ["Attention", "Gated", "ascend", "jacobian"]

Array = NDArray[Any]
Twin = Callable[[Array], Array]


def jacobian(twin: Twin, x: Array) -> Array:
    """Of ``twin`` at ``x``, shape [outputs, inputs]."""
    columns = []
    for k in range(x.size):
        moved = x.astype(np.complex128).reshape(-1)
        moved[k] += 1e-30j
        columns.append(twin(moved.reshape(x.shape)).imag.reshape(-1) / 1e-30)
    return np.stack(columns, axis=1)


def ascend(twin: Twin, start: Array, rng: np.random.Generator, steps: int, norm: Callable[[Array], float] | None = None) -> float:
    """The largest norm of the Jacobian that a random climb from ``start`` finds."""
    size = norm or (lambda j: float(np.linalg.norm(j, 2)))
    x, best, width = start, size(jacobian(twin, start)), 1.0
    for _ in range(steps):
        y = x + width * np.max(np.abs(x)) * rng.standard_normal(x.shape) * (rng.random(x.shape) < 0.5)
        found = size(jacobian(twin, y))
        if np.isfinite(found) and found > best:
            x, best, width = y, found, width * 1.5
        else:
            width *= 0.8
            width = width if width > 1e-4 else 1.0
    return best


def softmax(z: Array) -> Array:
    e = np.exp(z - np.max(z.real, axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@dataclass
class Attention:
    """``x -> [norm] -> attention`` with its projections; x is [batch, tokens, width].

    ``norm``: "layer", "rms" or "". ``rope``: turn pairs by position. ``qk_norm``: RMS of each head's queries and keys.
    ``form``: "spelled" out, or one of the operators "onnx" (23), "multi-head" and "packed" (of ONNX Runtime).
    ``packed``: one product for Q, K, V. ``kv_heads`` < heads: grouped queries. ``mask``: "", "causal", "finite", "padded".
    """

    seed: int
    tokens: int = 4
    width: int = 6
    heads: int = 2
    norm: str = "layer"
    epsilon: float = 1e-2
    scale: float = 1.0
    rope: bool = False
    qk_norm: bool = False
    packed: bool = False
    kv_heads: int = 0
    mask: str = ""
    residual: bool = False
    project: bool = True
    head: int = 0
    form: str = "spelled"
    batch: int = 1

    def __post_init__(self) -> None:
        rng = np.random.default_rng([11, self.seed])
        d, h = self.width, self.heads
        g = self.kv_heads or h
        k = self.head or max(1, d // h)
        self.head = k

        def f(*shape: int) -> Array:
            return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), np.float32)

        self.weights = {
            "wq": f(d, h * k) * np.float32(self.scale), "wk": f(d, g * k), "wv": f(d, g * k), "wo": f(h * k, d),
            "bq": 0.3 * f(h * k), "bk": 0.3 * f(g * k), "bv": 0.3 * f(g * k), "bo": f(d),
            "gamma": np.asarray(1 + 0.5 * rng.standard_normal(d), np.float32), "beta": 0.2 * f(d),
            "gq": np.asarray(1 + 0.3 * rng.standard_normal(k), np.float32),
        }  # fmt: skip
        self.weights = {name: np.asarray(w, np.float32) for name, w in self.weights.items()}
        angles = np.arange(self.tokens)[:, None] * (1.0 / 3.0 ** np.arange(max(1, k // 2)))
        self.cos = np.float32(np.concatenate([np.cos(angles)] * 2, axis=1))[:, :k]
        self.sin = np.float32(np.concatenate([np.sin(angles)] * 2, axis=1))[:, :k]
        n = self.tokens
        self.bias = np.zeros((n, n), np.float32)
        if self.mask == "causal":
            self.bias = np.where(np.tri(n, dtype=bool), 0, -np.inf).astype(np.float32)
        elif self.mask == "finite":
            self.bias = np.where(np.tri(n, dtype=bool), 0, -3).astype(np.float32)
        elif self.mask == "padded":
            self.bias[:, n // 2 + 1 :] = -np.inf

    # ------------------------------------------------------------------ the twin

    def normalized(self, x: Array) -> Array:
        """The normalization alone."""
        if not self.norm:
            return x
        w = self.weights
        z = x - x.mean(axis=-1, keepdims=True) if self.norm == "layer" else x
        z = z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + float(np.float32(self.epsilon)))
        return z * w["gamma"].astype(float) + (w["beta"].astype(float) if self.norm == "layer" else 0)

    def attention(self, e: Array) -> Array:
        """The attention alone, on normalized rows."""
        w = {name: value.astype(float) for name, value in self.weights.items()}
        n, h, k = self.tokens, self.heads, self.head
        g = self.kv_heads or h

        if len(e) > 1:
            return np.concatenate([self.attention(sample[None]) for sample in e])

        def split(rows: Array, count: int) -> Array:
            return rows.reshape(n, count, k).transpose(1, 0, 2)

        q, key, v = split(e[0] @ w["wq"] + w["bq"], h), split(e[0] @ w["wk"] + w["bk"], g), split(e[0] @ w["wv"] + w["bv"], g)
        if self.qk_norm:
            q, key = (z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + float(np.float32(0.1))) * w["gq"] for z in (q, key))
        if self.rope:
            q, key = (z * self.cos.astype(float) + self._half(z) * self.sin.astype(float) for z in (q, key))
        key, v = np.repeat(key, h // g, axis=0), np.repeat(v, h // g, axis=0)
        p = softmax(q @ key.transpose(0, 2, 1) * float(np.float32(1 / np.sqrt(k))) + self.bias.astype(float))
        o = (p @ v).transpose(1, 0, 2).reshape(n, h * k)
        return (o @ w["wo"] + w["bo"] if self.project else o)[None]

    def _half(self, z: Array) -> Array:
        half = self.head // 2
        return np.concatenate([-z[..., half:], z[..., :half]], axis=-1)

    def __call__(self, x: Array) -> Array:
        y = self.attention(self.normalized(x))
        return x + y if self.residual else y

    # ------------------------------------------------------------------ the graph

    def model(self) -> onnx.ModelProto:
        """As an exporter writes it."""
        n, h, k = self.tokens, self.heads, self.head
        g = self.kv_heads or h
        c: dict[str, Any] = dict(self.weights)
        nodes: list[onnx.NodeProto] = []
        count = 0

        def add(op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
            nonlocal count
            count += 1
            name = out or f"{op.lower()}_{count}"
            nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
            return name

        def const(value: Any) -> str:
            name = f"c{len(c)}"
            c[name] = np.asarray(value)
            return name

        e = "x"
        if self.norm == "layer":
            e = add("LayerNormalization", "x", "gamma", "beta", axis=-1, epsilon=self.epsilon)
        elif self.norm == "rms":
            squares = add("ReduceMean", add("Mul", "x", "x"), const(np.array([-1], np.int64)))
            root = add("Sqrt", add("Add", squares, const(np.float32(self.epsilon))))
            e = add("Mul", add("Div", "x", root), "gamma")

        if self.form != "spelled":
            return self._operator(nodes, e, c)
        if self.packed:
            c["w"] = np.concatenate([self.weights[name] for name in ("wq", "wk", "wv")], axis=1)
            c["b"] = np.concatenate([self.weights[name] for name in ("bq", "bk", "bv")])
            whole = add("Add", add("MatMul", e, "w"), "b")
            parts = [f"part_{i}" for i in range(3)]
            sizes = const(np.array([h * k, g * k, g * k], np.int64))
            nodes.append(helper.make_node("Split", [whole, sizes], parts, name="split", axis=-1))
        else:
            parts = [add("Add", f"b{p}", add("MatMul", e, f"w{p}")) for p in "qkv"]

        def heads(value: str, count: int, perm: tuple[int, ...]) -> str:
            return add("Transpose", add("Reshape", value, const(np.array([self.batch, n, count, k], np.int64))), perm=perm)

        turned = self.rope or self.qk_norm or g != h
        q, v = heads(parts[0], h, (0, 2, 1, 3)), heads(parts[2], g, (0, 2, 1, 3))
        key = heads(parts[1], g, (0, 2, 1, 3) if turned else (0, 2, 3, 1))

        def rms(value: str) -> str:
            squares = add("ReduceMean", add("Mul", value, value), const(np.array([-1], np.int64)))
            root = add("Sqrt", add("Add", squares, const(np.float32(0.1))))
            return add("Mul", add("Div", value, root), "gq")

        def rotate(value: str) -> str:
            axes, half = const(np.array([3], np.int64)), k // 2
            low = add("Slice", value, const(np.array([0], np.int64)), const(np.array([half], np.int64)), axes)
            high = add("Slice", value, const(np.array([half], np.int64)), const(np.array([k], np.int64)), axes)
            swapped = add("Concat", add("Neg", high), low, axis=-1)
            return add("Add", add("Mul", value, const(self.cos)), add("Mul", swapped, const(self.sin)))

        if self.qk_norm:
            q, key = rms(q), rms(key)
        if self.rope:
            q, key = rotate(q), rotate(key)
        if g != h:
            shape, wide = const(np.array([self.batch, h, n, k], np.int64)), const(np.array([self.batch, g, h // g, n, k], np.int64))
            one = const(np.array([2], np.int64))
            key, v = (add("Reshape", add("Expand", add("Unsqueeze", z, one), wide), shape) for z in (key, v))
        if turned:
            key = add("Transpose", key, perm=(0, 1, 3, 2))
        logits = add("Mul", add("MatMul", q, key), const(np.float32(1 / np.sqrt(k))))
        if self.mask:
            logits = add("Add", logits, const(self.bias))
        y = add("MatMul", add("Softmax", logits, axis=-1), v)
        y = add("Reshape", add("Transpose", y, perm=(0, 2, 1, 3)), const(np.array([self.batch, n, h * k], np.int64)))
        if self.project:
            y = add("Add", add("MatMul", y, "wo"), "bo")
        if self.residual:
            y = add("Add", "x", y)
        add("Identity", y, out="y")
        return make_model(nodes, {"x": [self.batch, n, self.width]}, ["y"], c)

    def _operator(self, nodes: list[onnx.NodeProto], e: str, c: dict[str, Any]) -> onnx.ModelProto:
        """With one operator for the attention, from the normalized rows ``e``."""
        h, g = self.heads, self.kv_heads or self.heads
        w = self.weights
        c["w"] = np.concatenate([w[name] for name in ("wq", "wk", "wv")], axis=1)
        c["b"] = np.concatenate([w[name] for name in ("bq", "bk", "bv")])
        microsoft = {"domain": "com.microsoft", "num_heads": h}
        causal = {"unidirectional": 1} if self.mask == "causal" else {}
        if self.form == "packed":
            nodes.append(helper.make_node("Attention", [e, "w", "b"], ["o"], name="core", **microsoft, **causal))
        else:
            products = [helper.make_node("MatMul", [e, f"w{p}"], [f"{p}_plain"]) for p in "qkv"]
            if self.form == "multi-head":
                core = helper.make_node(
                    "MultiHeadAttention", ["q_plain", "k_plain", "v_plain", "b"], ["o"], name="core", **microsoft, **causal
                )
                nodes += [*products, core]
            else:
                nodes += [*products, *(helper.make_node("Add", [f"{p}_plain", f"b{p}"], [p]) for p in "qkv")]
                causal = {"is_causal": 1} if self.mask == "causal" else {}
                nodes.append(helper.make_node("Attention", ["q", "k", "v"], ["o"], name="core", q_num_heads=h, kv_num_heads=g, **causal))
        nodes += [helper.make_node("MatMul", ["o", "wo"], ["p"]), helper.make_node("Add", ["p", "bo"], ["y"])]
        return make_model(nodes, {"x": [self.batch, self.tokens, self.width]}, ["y"], c, opset=23, domains={"com.microsoft": 1})


@dataclass
class Gated:
    """``x -> norm -> act(x W_a + b_a) * (x W_b + b_b) -> W_d``; ``act``: "Sigmoid", "Swish", "Tanh", "Relu" or "" (bilinear)."""

    seed: int
    act: str = "Swish"
    norm: str = "layer"
    width: int = 5
    hidden: int = 7
    scale: float = 1.0
    epsilon: float = 1e-2
    project: bool = True
    tokens: int = 3

    def __post_init__(self) -> None:
        rng = np.random.default_rng([13, self.seed])

        def f(*shape: int) -> Array:
            return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), np.float32)

        d, m = self.width, self.hidden
        self.weights = {
            "wa": f(d, m) * np.float32(self.scale), "wb": f(d, m), "wd": f(m, d), "ba": f(m), "bb": f(m),
            "gamma": np.asarray(1 + 0.5 * rng.standard_normal(d), np.float32), "beta": 0.2 * f(d),
        }  # fmt: skip
        self.weights = {name: np.asarray(w, np.float32) for name, w in self.weights.items()}

    def normalized(self, x: Array) -> Array:
        """The normalization alone."""
        if not self.norm:
            return x
        z = x - x.mean(axis=-1, keepdims=True)
        z = z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + float(np.float32(self.epsilon)))
        return z * self.weights["gamma"].astype(float) + self.weights["beta"].astype(float)

    def gate(self, e: Array) -> Array:
        """The product of the two maps and what follows."""
        w = {name: value.astype(float) for name, value in self.weights.items()}
        u, b = e @ w["wa"] + w["ba"], e @ w["wb"] + w["bb"]
        a = {
            "": lambda: u, "Sigmoid": lambda: 1 / (1 + np.exp(-u)), "Swish": lambda: u / (1 + np.exp(-u)),
            "Tanh": lambda: np.tanh(u), "Relu": lambda: u * (u.real > 0),
        }[self.act]()  # fmt: skip
        return a * b @ w["wd"] if self.project else a * b

    def __call__(self, x: Array) -> Array:
        return self.gate(self.normalized(x))

    def model(self) -> onnx.ModelProto:
        """As an exporter writes it."""
        c: dict[str, Any] = dict(self.weights)
        node = helper.make_node
        nodes = [node("LayerNormalization", ["x", "gamma", "beta"], ["e"], axis=-1, epsilon=self.epsilon)] if self.norm else []
        e = "e" if self.norm else "x"
        nodes += [node("MatMul", [e, "wa"], ["ua"]), node("Add", ["ua", "ba"], ["u"])]
        nodes += [node("MatMul", [e, "wb"], ["ub"]), node("Add", ["ub", "bb"], ["b"])]
        gate = "u"
        if self.act == "Swish":
            nodes += [node("Sigmoid", ["u"], ["s"]), node("Mul", ["u", "s"], ["a"])]
            gate = "a"
        elif self.act:
            nodes.append(node(self.act, ["u"], ["a"]))
            gate = "a"
        nodes.append(node("Mul", [gate, "b"], ["m"]))
        if self.project:
            nodes.append(node("MatMul", ["m", "wd"], ["p"]))
        nodes.append(node("Identity", ["p" if self.project else "m"], ["y"]))
        return make_model(nodes, {"x": [1, self.tokens, self.width]}, ["y"], c)
