"""Attention of several entries as ONNX graphs with their twins in numpy: cross-attention, cached keys and values, grouped queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tests.certify.blocks import softmax
from tests.certify.writing import Writer
from tests.pipeline import make_model

__all__ = ["Decoder"]

Array = NDArray[Any]


@dataclass
class Decoder:
    """LayerNormalization of x (and of m), projections, attention, output projection.

    ``form``: "spelled" out, or the operator "onnx" (23), "multi-head" or "grouped" (of ONNX Runtime).
    ``cross``: keys and values come from m. ``values_only``: only the values do.
    ``past``: so many cached keys and values are inputs. ``causal``: new tokens see past ones and those before them.
    ``rotary``: the operator "grouped" turns queries and keys.
    ``turned_cache``: keys are transposed before they meet past ones. ``bare``: m is not normalized.
    """

    seed: int
    form: str = "spelled"
    tokens: int = 3
    others: int = 4
    width: int = 8
    heads: int = 2
    kv_heads: int = 2
    head: int = 4
    past: int = 0
    cross: bool = False
    values_only: bool = False
    causal: bool = False
    rotary: bool = False
    scale: float = 1.0
    turned_cache: bool = False
    bare: bool = False

    def __post_init__(self) -> None:
        rng = np.random.default_rng([29, self.seed])
        d, h, g, k = self.width, self.heads, self.kv_heads, self.head

        def f(*shape: int) -> Array:
            return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), np.float32)

        self.w = {"wq": f(d, h * k) * np.float32(self.scale), "wk": f(d, g * k), "wv": f(d, g * k), "wo": f(h * k, d)}
        self.w |= {"gamma": np.asarray(1 + 0.3 * rng.standard_normal(d), np.float32), "beta": 0.2 * f(d)}
        angles = np.arange(self.tokens + self.past)[:, None] / 3.0 ** np.arange(k // 2)
        self.cos, self.sin = np.float32(np.cos(angles)), np.float32(np.sin(angles))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs."""
        found: dict[str, tuple[int, ...]] = {"x": (1, self.tokens, self.width)}
        if self.cross or self.values_only:
            found["m"] = (1, self.others, self.width)
        if self.past:
            found["past_k"] = found["past_v"] = (1, self.kv_heads, self.past, self.head)
        return found

    @property
    def normed(self) -> list[str]:
        """The inputs that are normalized."""
        return [name for name in self.shapes if name == "x" or (name == "m" and not self.bare)]

    # ------------------------------------------------------------------ the twin

    def normalized(self, x: Array) -> Array:
        """The normalization of one entry."""
        z = x - x.mean(axis=-1, keepdims=True)
        z = z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + float(np.float32(1e-2)))
        return z * self.w["gamma"].astype(float) + self.w["beta"].astype(float)

    def attention(self, given: Mapping[str, Array]) -> Array:
        """From normalized entries "x" and "m" and the caches to the exit."""
        w = {name: value.astype(float) for name, value in self.w.items()}
        h, g, k = self.heads, self.kv_heads, self.head
        of_keys = given["m"] if self.cross else given["x"]
        of_values = given["m"] if self.cross or self.values_only else given["x"]

        def split(rows: Array, count: int) -> Array:
            return rows[0].reshape(-1, count, k).transpose(1, 0, 2)

        q, key, v = split(given["x"] @ w["wq"], h), split(of_keys @ w["wk"], g), split(of_values @ w["wv"], g)
        if self.rotary:
            q, key = self._turned(q), self._turned(key)
        if self.past:
            key, v = np.concatenate([given["past_k"][0], key], axis=1), np.concatenate([given["past_v"][0], v], axis=1)
        key, v = np.repeat(key, h // g, axis=0), np.repeat(v, h // g, axis=0)
        logits = q @ key.transpose(0, 2, 1) * float(np.float32(1 / np.sqrt(k)))
        if self.causal:
            logits = np.where(np.tri(*logits.shape[-2:], k=self.past, dtype=bool), logits, -1e300)
        return ((softmax(logits) @ v).transpose(1, 0, 2).reshape(-1, h * k) @ w["wo"])[None]

    def _turned(self, z: Array) -> Array:
        cos, sin = self.cos[self.past :].astype(float), self.sin[self.past :].astype(float)
        a, b = z[..., : self.head // 2], z[..., self.head // 2 :]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def __call__(self, given: Mapping[str, Array]) -> Array:
        return self.attention({name: self.normalized(value) if name in self.normed else value for name, value in given.items()})

    # ------------------------------------------------------------------ the graph

    def model(self) -> onnx.ModelProto:
        """As an exporter writes it."""
        h, g, n, p = self.heads, self.kv_heads, self.tokens, self.past
        graph = Writer(self.w)
        nodes, c, add, const = graph.nodes, graph.constants, graph.add, graph.const

        entries = {name: add("LayerNormalization", name, "gamma", "beta", axis=-1, epsilon=1e-2) for name in self.normed}
        x, m = entries["x"], entries.get("m", "m")
        q, key, v = add("MatMul", x, "wq"), add("MatMul", m if self.cross else x, "wk"), ""
        v = add("MatMul", m if self.cross or self.values_only else x, "wv")
        if self.form == "spelled":
            o = self._spelled(add, const, q, key, v)
        elif self.form == "onnx":
            caches = ["", "past_k", "past_v"] if p else []
            attrs = {"q_num_heads": h, "kv_num_heads": g, "is_causal": int(self.causal)}
            outputs = ["o", "present_k", "present_v"] if p else ["o"]
            nodes.append(helper.make_node("Attention", [q, key, v, *caches], outputs, name="core", **attrs))
            o = "o"
        elif self.form == "multi-head":
            caches = ["", "", "", "past_k", "past_v"] if p else []
            nodes.append(
                helper.make_node("MultiHeadAttention", [q, key, v, *caches], ["o", "present_k", "present_v"] if p else ["o"], name="core",
                                 domain="com.microsoft", num_heads=h,
                                 unidirectional=int(self.causal))
            )  # fmt: skip
            o = "o"
        else:
            lengths = [const(np.array([[n + p - 1]], np.int32).reshape(1)), const(np.array(n + p, np.int32))]
            tables = [const(self.cos), const(self.sin)] if self.rotary else []
            caches = ["past_k", "past_v"] if p else ["", ""]
            nodes.append(
                helper.make_node("GroupQueryAttention", [q, key, v, *caches, *lengths, *tables], ["o", "present_k", "present_v"],
                                 name="core", domain="com.microsoft", num_heads=h, kv_num_heads=g, do_rotary=int(self.rotary))
            )  # fmt: skip
            o = "o"
        add("MatMul", o, "wo", out="y")
        return make_model(nodes, self.shapes, ["y"], c, opset=23 if self.form == "onnx" else 18, domains={"com.microsoft": 1})

    def _spelled(self, add: Any, const: Any, q: str, key: str, v: str) -> str:
        h, g, k, n = self.heads, self.kv_heads, self.head, self.tokens

        def split(value: str, count: int) -> str:
            return str(add("Transpose", add("Reshape", value, const(np.array([1, -1, count, k], np.int64))), perm=(0, 2, 1, 3)))

        q, key, v = split(q, h), split(key, g), split(v, g)
        if self.turned_cache:  # K is transposed first, and its cache is too
            key = add("Transpose", key, perm=(0, 1, 3, 2))
            past = add("Transpose", "past_k", perm=(0, 1, 3, 2))
            key, v = add("Concat", past, key, axis=-1), add("Concat", "past_v", v, axis=-2)
        elif self.past:
            key, v = add("Concat", "past_k", key, axis=-2), add("Concat", "past_v", v, axis=-2)
        if not self.turned_cache:
            key = add("Transpose", key, perm=(0, 1, 3, 2))
        logits = add("Mul", add("MatMul", q, key), const(np.float32(1 / np.sqrt(k))))
        if self.causal:
            mask = np.where(np.tri(n, n + self.past, k=self.past, dtype=bool), 0, -np.inf).astype(np.float32)
            logits = add("Add", logits, const(mask))
        o = add("MatMul", add("Softmax", logits, axis=-1), v)
        return str(add("Reshape", add("Transpose", o, perm=(0, 2, 1, 3)), const(np.array([1, n, h * k], np.int64))))
