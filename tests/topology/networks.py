"""Small networks, one for each kind of region, as an exporter would write them, with the kinds that their trees must hold.

Numbers that exporters divide by are powers of two here, so that ``x / c`` and ``x * (1/c)`` are the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser

from tests.certify.blocks import Attention, Gated
from tests.certify.kernels import KINDS, Kernel
from tests.pipeline import make_model

__all__ = ["NETWORKS", "network"]

Shape = tuple[int, ...]

_ROWS: Shape = (1, 4, 8)
_IMAGE: Shape = (1, 4, 6, 6)


def _text(body: str, shape: Shape, weights: Mapping[str, Any]) -> onnx.ModelProto:
    """``y`` as ``body`` computes it from ``x``; weights by shape are random."""
    rng = np.random.default_rng(5)
    nodes = onnx.parser.parse_graph(f"g (float[1] x) => (float[1] y) {{ {body} }}").node
    stored: dict[str, Any] = {}
    for name, value in weights.items():
        if isinstance(value, tuple):
            fan = int(np.prod(value[1:])) if len(value) > 2 else value[0]
            value = np.asarray(rng.standard_normal(value) / np.sqrt(fan), np.float32)
        stored[name] = value
    for i, node in enumerate(nodes):
        node.name = f"node_{i}"
    return make_model(list(nodes), {"x": list(shape)}, ["y"], stored)


def _number(value: float) -> np.ndarray[Any, Any]:
    return np.asarray(value, np.float32)


def _integers(*values: int) -> np.ndarray[Any, Any]:
    return np.asarray(values, np.int64)


def _positive(n: int) -> np.ndarray[Any, Any]:
    return np.asarray(1 + np.random.default_rng(3).random(n), np.float32)


_NORM = {"eps": _number(2.0**-6), "two": _number(2), "last": _integers(-1), "gamma": _positive(8), "beta": (8,), "w": (8, 8), "v": (8, 8)}
_LAYER_NORM = (
    "m = ReduceMean(a, last) c = Sub(a, m) s = Pow(c, two) t = ReduceMean(s, last) e = Add(t, eps) r = Sqrt(e) z = Div(c, r) "
    "g = Mul(z, gamma) n = Add(g, beta) "
)
_RMS = "s = Mul(a, a) t = ReduceMean(s, last) e = Add(t, eps) r = Sqrt(e) z = Div(a, r) n = Mul(z, gamma) "
_L2 = "s = Mul(a, a) t = ReduceSum(s, last) e = Add(t, eps) r = Sqrt(e) n = Div(a, r) "
_BLOCK = "a{0} = MatMul(x{1}, w) b{0} = Relu(a{0}) c{0} = MatMul(b{0}, v) x{0} = Add(x{1}, c{0}) "
_CELL = "p{0} = MatMul(x{0}, w) q{0} = MatMul(h{1}, v) r{0} = Add(p{0}, q{0}) h{0} = Tanh(r{0}) "
_CONV = {"k": (4, 4, 3, 3), "l": (4, 4, 3, 3), "one": (4, 4, 1, 1), "back": (4, 4, 1, 1), "wide": (4, 8, 3, 3), "w": (4, 3)}
_BATCH = {"scale": _positive(4), "shift": (4,), "mean": (4,), "var": _positive(4)}
_HALVES = {"zero": _integers(0), "half": _integers(4), "whole": _integers(8), "features": _integers(2)}

# kinds that the tree must hold, beside the network
NETWORKS: Mapping[str, tuple[Any, Mapping[str, int]]] = {
    "residual": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = Add(x, c)", {"residual": 1}),
    "residual, projected": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) s = MatMul(x, u) y = Add(s, c)", {"residual": 1}),
    "residual, layer scale": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Mul(c, gamma) y = Add(x, d)", {"residual": 1}),
    "residual, scaled shortcut": (
        "a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Mul(x, two) y = Add(d, c)",
        {"residual": 1},
    ),
    "stem, stack and head": (
        "x0 = MatMul(x, u) " + "".join(_BLOCK.format(i, i - 1) for i in (1, 2, 3)) + "h = Relu(x3) y = MatMul(h, u)",
        {"stack": 1, "residual": 3, "mlp": 3},
    ),
    "layer normalization": (f"a = MatMul(x, w) {_LAYER_NORM} y = MatMul(n, v)", {"normalization": 1}),
    "RMS normalization": (f"a = MatMul(x, w) {_RMS} y = MatMul(n, v)", {"normalization": 1}),
    "L2 normalization": (f"a = MatMul(x, w) {_L2} y = MatMul(n, v)", {"normalization": 1}),
    "MLP": ("a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)", {"mlp": 1, "activation": 1}),
    "MLP with a GELU": (
        "a = MatMul(x, w) a0 = Div(a, root) a1 = Erf(a0) a2 = Add(a1, one1) a3 = Mul(a, a2) b = Mul(a3, half1) y = MatMul(b, v)",
        {"mlp": 1, "activation": 1},
    ),
    "MLP with a GELU by tanh": (
        (
            "a = MatMul(x, w) a0 = Pow(a, three) a1 = Mul(a0, cubic) a2 = Add(a, a1) a3 = Mul(a2, pi2) a4 = Tanh(a3) a5 = Add(a4, one1) "
            "a6 = Mul(a, a5) b = Mul(a6, half1) y = MatMul(b, v)"
        ),
        {"mlp": 1, "activation": 1},
    ),
    "mixture of experts": (
        (
            "g0 = MatMul(x, gates) g = Softmax<axis=-1>(g0) g1, g2 = Split<axis=2, num_outputs=2>(g) a = MatMul(x, w) b = Relu(a) "
            "c = MatMul(b, v) m1 = Mul(c, g1) d = MatMul(x, u) e = Relu(d) f = MatMul(e, w) m2 = Mul(g2, f) y = Add(m1, m2)"
        ),
        {"mixture-of-experts": 1},
    ),
    "unrolled recurrence": (
        "x0, x1, x2, x3 = Split<axis=1, num_outputs=4>(x) p = MatMul(x0, w) h0 = Tanh(p) "
        + "".join(_CELL.format(i, i - 1) for i in (1, 2, 3))
        + "y = Concat<axis=1>(h0, h1, h2, h3)",
        {"unrolled-recurrence": 1},
    ),
    "classifier": (
        "a = Flatten<axis=1>(x) b = Gemm<transB=1>(a, first, beta) c = Relu(b) d = Gemm(c, w, beta) e = Relu(d) y = Gemm<transB=1>(e, v)",
        {"mlp": 1, "activation": 2},
    ),
    "choices": (
        (
            "c = Constant<value_ints=[1,0,1,0,1,1,0,1]>() d = Cast<to=9>(c) a = MatMul(x, w) b = Neg(x) e = Where(d, a, b) "
            "f = Max(e, one1) g = Min(f, three) h = Clip(g) y = MatMul(h, v)"
        ),
        {"activation": 1},
    ),
    "batch normalization": (
        "a = Conv<pads=[1,1,1,1]>(x, k) n = BatchNormalization(a, scale, shift, mean, var) b = Relu(n) y = Conv<pads=[1,1,1,1]>(b, l)",
        {"normalization": 1},
    ),
    "instance normalization": (
        "a = Conv<pads=[1,1,1,1]>(x, k) n = InstanceNormalization(a, scale, shift) y = Relu(n)",
        {"normalization": 1},
    ),
    "group normalization": (
        (
            "a = Conv<pads=[1,1,1,1]>(x, k) r = Reshape(a, groups) n = InstanceNormalization(r, ones, zeros) b = Reshape(n, image) "
            "c = Mul(b, gains) d = Add(c, shifts) y = Relu(d)"
        ),
        {"normalization": 1},
    ),
    "dense block": ("a = Conv<pads=[1,1,1,1]>(x, k) b = Relu(a) y = Concat<axis=1>(x, b)", {"dense-concat": 1}),
    "squeeze and excitation": (
        (
            "a = GlobalAveragePool(x) b = Conv(a, one) c = Relu(b) d = Conv(c, back) e = Sigmoid(d) f = Mul(x, e) "
            "y = Conv<pads=[1,1,1,1]>(f, k)"
        ),
        {"gate": 1},
    ),
    "pooling and head": (
        (
            "a = Conv<pads=[1,1,1,1]>(x, k) b = Relu(a) c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b) d = GlobalAveragePool(c) "
            "e = Flatten<axis=1>(d) y = MatMul(e, w)"
        ),
        {"pooling": 1},
    ),
    "U-shaped skip": (
        (
            "a = Conv<pads=[1,1,1,1]>(x, k) b = Relu(a) c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b) d = Conv<pads=[1,1,1,1]>(c, l) "
            'e = Relu(d) f = Resize<mode="nearest">(e, , scales) h = Concat<axis=1>(b, f) y = Conv<pads=[1,1,1,1]>(h, wide)'
        ),
        {"u-skip": 1},
    ),
    "recurrent cell": ("h, l = GRU<hidden_size=8>(x, wg, rg) y = Relu(h)", {"recurrent": 1}),
}
_CONVOLUTIONAL = frozenset(
    {
        "batch normalization", "instance normalization", "group normalization", "dense block", "squeeze and excitation",
        "pooling and head", "U-shaped skip",
    }
)  # fmt: skip
_ATTENTION = {"attention": 1, "attention-core": 1, "normalization": 1}
ATTENTIONS: Mapping[str, tuple[Any, Mapping[str, int]]] = {
    "attention": (Attention(1, width=8), _ATTENTION),
    "attention, residual": (Attention(1, width=8, residual=True), {**_ATTENTION, "residual": 1}),
    "attention, causal": (Attention(1, width=8, mask="causal"), _ATTENTION),
    "attention, biased": (Attention(1, width=8, mask="finite"), _ATTENTION),
    "attention, padded": (Attention(1, width=8, mask="padded"), _ATTENTION),
    "attention, RoPE": (Attention(1, width=8, rope=True, norm="rms"), _ATTENTION),
    "attention, QK normalization": (Attention(1, width=8, qk_norm=True), {**_ATTENTION, "normalization": 3}),
    "attention, grouped queries": (Attention(1, width=8, kv_heads=1), _ATTENTION),
    "attention, packed": (Attention(1, width=8, packed=True), _ATTENTION),
    **{f"attention, {kind}": (Kernel(1, kind, width=8), _ATTENTION) for kind in KINDS},
    **{f"attention, linear, spelling {i}": (Kernel(1, "linear", width=8, spelling=i), _ATTENTION) for i in (2, 4)},
    **{f"gated, {act or 'bilinear'}": (Gated(1, act=act), {"gate": 1, "mlp": 1, "normalization": 1}) for act in ("Sigmoid", "Swish")},
}
_NORMALIZED = {"attention, cosine": 3, "attention, cosine values": 4}
# A cap after a mask leaves masked keys a weight: no kind of attention, in any spelling.
_REFUSED = {"attention, capped after a mask": {"attention": 0, "normalization": 1}}


def network(name: str) -> tuple[onnx.ModelProto, Mapping[str, int]]:
    """The model and the kinds (with their numbers) that its tree must hold."""
    if name in ATTENTIONS:
        built, kinds = ATTENTIONS[name]
        kinds = {**kinds, "normalization": _NORMALIZED[name]} if name in _NORMALIZED else _REFUSED.get(name, kinds)
        return built.model(), kinds
    body, kinds = NETWORKS[name]
    images = name in _CONVOLUTIONAL
    weights: dict[str, Any] = {**_CONV, **_BATCH} if images else {**_NORM, "u": (8, 8), "gates": (8, 2), "first": (8, 32)}
    weights |= {
        "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32), "groups": _integers(1, 2, -1), "image": _integers(*_IMAGE),
        "gains": _positive(4).reshape(4, 1, 1), "shifts": (4, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32),
        "root": _number(np.sqrt(2)), "one1": _number(1), "half1": _number(0.5), "three": _number(3), "cubic": _number(0.044715),
        "pi2": _number(np.sqrt(2 / np.pi)), "wg": (1, 24, 8), "rg": (1, 24, 8),
    }  # fmt: skip
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return _text(body, _IMAGE if images else _ROWS, {key: value for key, value in weights.items() if key in used}), kinds
