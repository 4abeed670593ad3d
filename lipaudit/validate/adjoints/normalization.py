"""Normalizations and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from lipaudit.graph.ir import Node
from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.exact.normalization import ATTENTION_ATTRIBUTES

__all__ = ["RULES", "plain_attention"]


def _standardise(
    b: Builder, site: Site, view: tuple[int, ...], axes: tuple[int, ...], epsilon: float, scale: Maybe, *, centre: bool = True
) -> Local:
    """y = scale * (x - mean) / root(mean square + epsilon) with x seen in shape ``view``; ``scale`` acts on the output's shape."""
    shape = site.shape(0)
    found: list[tuple[str, str]] = []
    over, behind = b.ints(*axes), b.ints(*(a + 1 for a in axes))

    def primal() -> tuple[str, str]:
        """Standardised x and the reciprocal root, once."""
        if not found:
            x = b.primal(site.node.inputs[0])
            x = x if view == shape else b.node("Reshape", x, b.ints(*view))
            moved = b.node("Sub", x, b.node("ReduceMean", x, over, keepdims=1)) if centre else x
            square = b.node("ReduceMean", b.node("Mul", moved, moved), over, keepdims=1)
            inverse = b.node("Reciprocal", b.node("Sqrt", b.node("Add", square, b.number(epsilon))))
            found.append((b.node("Mul", moved, inverse), inverse))
        return found[0]

    def core(t: str) -> str:
        # Symmetric: inverse * (t - mean t - x̂ mean(x̂ t)).
        unit, inverse = primal()
        t = t if view == shape else b.reshape(t, view)
        along = b.node("Mul", unit, b.node("ReduceMean", b.node("Mul", t, unit), behind, keepdims=1))
        rest = b.node("Sub", t, b.node("ReduceMean", t, behind, keepdims=1)) if centre else t
        t = b.times(b.node("Sub", rest, along), inverse)
        return t if view == shape else b.reshape(t, shape)

    def times(t: str) -> str:
        return t if scale is None else b.times(t, scale)

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is not None:
            results[0] = core(times(cs[0]))
        return results

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else times(core(ts[0])), *[None] * (len(site.outputs) - 1)]

    if any(site.moving[1:]):
        raise NoDerivative(f"{site.node.op} with a moving scale")
    return Local(tangent, adjoint)


def _trailing(site: Site) -> tuple[int, ...]:
    rank = len(site.shape(0))
    return tuple(range(site.attr("axis", -1) % rank, rank))


def _layer(b: Builder, site: Site) -> Local:
    scale = b.primal(site.node.inputs[1])
    return _standardise(b, site, site.shape(0), _trailing(site), site.attr("epsilon", 1e-5), scale)


def _rms(b: Builder, site: Site) -> Local:
    scale = b.primal(site.node.inputs[1])
    return _standardise(b, site, site.shape(0), _trailing(site), site.attr("epsilon", 1e-5), scale, centre=False)


def _per_channel(b: Builder, site: Site, copies: int = 1) -> str:
    constant = site.constant(1)
    if constant is None:
        raise NoDerivative(f"{site.node.op} with a computed scale")
    array = np.repeat(constant.float64(), copies)
    return b.constant(array.reshape(-1, *(1,) * (len(site.shape(0)) - 2)))


def _instance(b: Builder, site: Site) -> Local:
    shape = site.shape(0)
    return _standardise(b, site, shape, tuple(range(2, len(shape))), site.attr("epsilon", 1e-5), _per_channel(b, site))


def _group(b: Builder, site: Site) -> Local:
    shape, groups = site.shape(0), site.attr("num_groups")
    copies = shape[1] // groups if prod(site.shape(1)) == groups != shape[1] else 1
    view = (shape[0], groups, prod(shape[1:]) // groups)
    return _standardise(b, site, view, (2,), site.attr("epsilon", 1e-5), _per_channel(b, site, copies))


def _lrn(b: Builder, site: Site) -> Local:
    shape, size = site.shape(0), site.attr("size")
    alpha, beta, k = site.attr("alpha", 1e-4), site.attr("beta", 0.75), site.attr("bias", 1.0)
    channels, left = shape[1], (size - 1) // 2
    i = np.arange(channels)
    band = ((i[None, :] >= i[:, None] - left) & (i[None, :] <= i[:, None] + size - 1 - left)).astype(np.float32)
    flat = (shape[0], channels, prod(shape[2:]))
    found: list[tuple[str, str, str]] = []

    def primal() -> tuple[str, str, str]:
        """x, s^-beta and 2 alpha beta / size * s^(-beta-1), in shape ``flat``."""
        if not found:
            x = b.node("Reshape", b.primal(site.node.inputs[0]), b.ints(*flat))
            total = b.node("MatMul", b.constant(band), b.node("Mul", x, x))
            s = b.node("Add", b.node("Mul", total, b.number(alpha / size)), b.number(k))
            power = b.node("Pow", s, b.number(-beta))
            found.append((x, power, b.node("Mul", b.node("Div", power, s), b.number(2 * alpha * beta / size))))
        return found[0]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        x, power, factor = primal()
        t = b.reshape(ts[0], flat)
        spread = b.node("MatMul", b.constant(band), b.node("Mul", x, t))
        y = b.node("Sub", b.node("Mul", t, power), b.node("Mul", b.node("Mul", x, factor), spread))
        return [b.reshape(y, shape)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return [None]
        x, power, factor = primal()
        c = b.reshape(cs[0], flat)
        spread = b.node("MatMul", b.constant(band.T), b.node("Mul", b.node("Mul", x, factor), c))
        return [b.reshape(b.node("Sub", b.node("Mul", c, power), b.node("Mul", x, spread)), shape)]

    return Local(tangent, adjoint)


def _unit(b: Builder, site: Site) -> Local:
    """LpNormalization: y = x / n with n the l1 or l2 norm along one axis, whose slope is s = sign(x) or y: ``J = (I - y s') / n``."""
    axis, p = int(site.attr("axis", -1)) % len(site.shape(0)), int(site.attr("p", 2))
    found: list[tuple[str, str, str]] = []
    behind = b.ints(axis + 1)

    def primal() -> tuple[str, str, str]:
        """y, s and 1 / n."""
        if not found:
            x = b.primal(site.node.inputs[0])
            norm = b.node("Max", b.node(f"ReduceL{p}", x, b.ints(axis), keepdims=1), b.number(1e-30))
            y = b.node("Div", x, norm)
            found.append((y, b.node("Sign", x) if p == 1 else y, b.node("Reciprocal", norm)))
        return found[0]

    def without(t: str, along: str, measured: str) -> str:
        return b.node("Sub", t, b.node("Mul", along, b.node("ReduceSum", b.node("Mul", measured, t), behind, keepdims=1)))

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        y, s, inverse = primal()
        return [None if ts[0] is None else b.node("Mul", without(ts[0], y, s), inverse)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        y, s, inverse = primal()
        return [None if cs[0] is None else b.node("Mul", without(cs[0], s, y), inverse)]

    return Local(tangent, adjoint)


class _Heads:
    """Queries, keys or values as ``[batch, heads, n, d]``, whatever way the node holds them."""

    def __init__(self, shape: tuple[int, ...], heads: int | None, repeat: int = 1) -> None:
        self.shape, self.repeat = shape, repeat
        self.flat = len(shape) == 3
        n, count = (shape[1], heads or 1) if self.flat else (shape[2], shape[1])
        self.view = (shape[0], n, count, shape[-1] // count) if self.flat else shape
        self.full = (shape[0], count * repeat, n, self.view[-1])
        self.count = count

    def probe(self, b: Builder, t: str) -> str:
        """``[K, *shape]`` to ``[K, *full]``."""
        if self.flat:
            t = b.node("Transpose", b.reshape(t, self.view), perm=[0, 1, 3, 2, 4])
        if self.repeat > 1:
            batch, _, n, d = self.full
            t = b.reshape(t, (batch, self.count, 1, n, d))
            t = b.reshape(b.node("Expand", t, b.ints(1, batch, self.count, self.repeat, n, d)), self.full)
        return t

    def back(self, b: Builder, t: str) -> str:
        """The adjoint of :meth:`probe`."""
        batch, _, n, d = self.full
        if self.repeat > 1:
            t = b.node("ReduceSum", b.reshape(t, (batch, self.count, self.repeat, n, d)), b.ints(3), keepdims=0)
        return b.reshape(b.node("Transpose", t, perm=[0, 1, 3, 2, 4]), self.shape) if self.flat else t

    def primal(self, b: Builder, x: str) -> str:
        """``[*shape]`` to ``[*full]``."""
        lifted = b.node("Unsqueeze", x, b.ints(0))
        return b.node("Squeeze", self.probe(b, lifted), b.ints(0))


def plain_attention(node: Node) -> bool:
    """False for an Attention with past keys, a soft cap or extra outputs, which onnx's own body spells out."""
    if node.op != "Attention":
        return True
    extra = any(node.inputs[4:]) or any(node.outputs[1:])
    return not (extra or node.attrs.get("softcap", 0.0) or set(node.attrs) - ATTENTION_ATTRIBUTES)


def _attention(b: Builder, site: Site) -> Local:
    if not plain_attention(site.node):
        raise NoDerivative("Attention with past keys, a soft cap or extra outputs")
    if site.has(3) and site.moving[3]:
        raise NoDerivative("Attention with a moving bias")
    q_heads, kv_heads = site.attr("q_num_heads"), site.attr("kv_num_heads")
    query = _Heads(site.shape(0), q_heads)
    key = _Heads(site.shape(1), kv_heads)
    repeat = query.full[1] // key.full[1]
    key, value = _Heads(site.shape(1), kv_heads, repeat), _Heads(site.shape(2), kv_heads, repeat)
    out = _Heads(site.out_shape(), q_heads)
    scale = site.attr("scale") or 1 / math.sqrt(query.full[-1])
    found: list[tuple[str, str, str, str]] = []

    def primal() -> tuple[str, str, str, str]:
        """q, k, v and the weights, once per run."""
        if found:
            return found[0]
        q, k, v = (h.primal(b, b.primal(name)) for h, name in zip((query, key, value), site.node.inputs[:3], strict=True))
        scores = b.node("Mul", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])), b.number(scale))
        if site.attr("is_causal", 0):
            hidden = np.triu(np.full((query.full[2], key.full[2]), -1e30), 1)
            scores = b.node("Add", scores, b.constant(hidden))
        if site.has(3):
            mask, kind = b.primal(site.node.inputs[3]), site.inputs[3]
            if kind is not None and kind.dtype == "bool":
                scores = b.node("Where", mask, scores, b.number(-1e30))
            else:
                scores = b.node("Add", scores, mask)
        found.append((q, k, v, b.node("Softmax", scores, axis=-1)))
        return found[0]

    def through_softmax(t: str, weights: str) -> str:
        moved = b.node("Mul", t, weights)
        total = b.node("ReduceSum", moved, b.ints(4), keepdims=1)
        return b.node("Mul", b.node("Sub", moved, b.node("Mul", weights, total)), b.number(scale))

    def turned(t: str, rank: int) -> str:
        return b.node("Transpose", t, perm=[*range(rank - 2), rank - 1, rank - 2])

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        q, k, v, weights = primal()
        tq, tk, tv = (None if t is None else h.probe(b, t) for h, t in zip((query, key, value), ts[:3], strict=True))
        scores = b.sum([
            None if tq is None else b.node("MatMul", tq, turned(k, 4)),
            None if tk is None else b.node("MatMul", q, turned(tk, 5)),
        ])  # fmt: skip
        y = b.sum([
            None if scores is None else b.node("MatMul", through_softmax(scores, weights), v),
            None if tv is None else b.node("MatMul", weights, tv),
        ])  # fmt: skip
        return [None if y is None else out.back(b, y)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is None:
            return results
        q, k, v, weights = primal()
        c = out.probe(b, cs[0])
        scores = through_softmax(b.node("MatMul", c, turned(v, 4)), weights)
        if site.moving[0]:
            results[0] = query.back(b, b.node("MatMul", scores, k))
        if site.moving[1]:
            results[1] = key.back(b, b.node("MatMul", turned(scores, 5), q))
        if site.moving[2]:
            results[2] = value.back(b, b.node("MatMul", turned(weights, 4), c))
        return results

    return Local(tangent, adjoint)


RULES: Mapping[str, Rule] = {
    "Attention": _attention,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LRN": _lrn,
    "LayerNormalization": _layer,
    "LpNormalization": _unit,
    "RMSNormalization": _rms,
}
