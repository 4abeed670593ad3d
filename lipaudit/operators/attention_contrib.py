"""Attention operators of ONNX Runtime: projections and biases inside, caches, grouped heads with rotation.

Padding and causality are given there as integers or by finite negative numbers, so the worst mask is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.linear import Dense
from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, combine, dual
from lipaudit.operators.attention import AttentionRule, Computation, copies_of, is_open, path_gain
from lipaudit.operators.attention_core import Heads, Mask, Rows, output_range, rows_of, scaled_rows, together
from lipaudit.operators.base import Finite, Gain, Site, Unknown
from lipaudit.operators.interval import add
from lipaudit.operators.linear import weight_array
from lipaudit.operators.outputs import SeveralOutputs, jointly
from lipaudit.operators.parts import Part, product
from lipaudit.operators.range import Range, reals, widen
from lipaudit.operators.rotary import rotation_of

__all__ = ["GroupQueryAttention", "MultiHeadAttention", "PackedAttention"]

Floats = NDArray[np.float64]


def _worst(queries: int) -> Mask:
    return Mask((1,) * queries, queries, math.inf, True)


def _plain(queries: int, keys: int) -> Mask:
    return Mask((keys,) * queries, queries)


def _given(xs: Sequence[Range | None], i: int) -> Range | None:
    return xs[i] if i < len(xs) else None


def _l2(vector: Floats) -> float:
    return widen(float(np.sqrt(np.sum(vector * vector))), vector.size + 4)


def _head_shift(vector: Floats, heads: int) -> float:
    """Largest l2 norm of the part of one head."""
    return max((_l2(part) for part in np.split(vector, heads)), default=0.0)


@dataclass(frozen=True, slots=True)
class _Projection:
    """``x W + b`` for one of Q, K, V: ``weight`` is [in, heads * width]."""

    weight: Floats
    bias: Floats
    heads: int

    def norm(self, norm: Norm) -> Upper:
        """Verified norm of the whole map."""
        return dense_norm(self.weight.T, norm).upper

    def rows(self, x: Range, count: int) -> Rows:
        """Rows of one head: ``|W_h| R + |b_h|``, diameter ``|W_h| D`` (the bias drops out)."""
        parts = np.split(self.weight, self.heads, axis=1)
        top = max(dense_norm(np.ascontiguousarray(part.T), "l2").upper for part in parts)
        row = top * Upper(x.row_norm()) + Upper(_head_shift(self.bias, self.heads))
        diameter = top * Upper(x.row_diameter())
        width = self.weight.shape[1] // self.heads
        shape = (x.shape[0], count, width)
        return rows_of(Range(shape, np.asarray(-math.inf), np.asarray(math.inf), float(row), float(diameter)))

    def image(self, x: Range) -> Range:
        """Range of the projected value."""
        shape = (*x.shape[:-1], self.weight.shape[1])
        lengths = np.sqrt(np.sum(self.weight * self.weight, axis=0)) * (1 + (self.weight.shape[0] + 8) * 2.0**-52) + 1e-150
        top = self.norm("l2")
        reach = x.row_norm()
        with np.errstate(invalid="ignore"):
            span = np.where(lengths > 0, lengths * (reach * (1 + 2.0**-50)), 0.0)
        lo, hi = add((-span, span), (self.bias, self.bias))
        row = float(top * Upper(reach) + Upper(_l2(self.bias)))
        return Range(shape, lo, hi, row, float(top * Upper(x.row_diameter())))


class PackedAttention(SeveralOutputs):
    """``com.microsoft::Attention``: one input X, stored weights and bias of Q, K, V; optional cache, mask and float bias.

    Inputs: X ``[B, n, D]``, weights ``[D, H_q + H_k + H_v]``, bias, mask, past ``[2, B, h, P, d]``, attention bias.
    """

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The projections to Q, K and V side by side."""
        constant = site.constant(1)
        return () if constant is None else product(constant, Dense(weight_array(constant), site.shape(0)))

    def _projections(self, site: Site) -> tuple[_Projection, _Projection, _Projection] | Unknown:
        weights, bias = site.constant(1), site.constant(2)
        heads = int(site.attr("num_heads", 0))
        if weights is None or (site.has(2) and bias is None):
            return Unknown("the projection weights and biases of Attention must be stored constants")
        if int(site.attr("do_rotary", 0)):
            return Unknown("Attention with rotary embedding inside has no rule")
        total = weights.shape[1]
        sizes = tuple(int(size) for size in site.attr("qkv_hidden_sizes", ()) or (total // 3,) * 3)
        if heads <= 0 or sum(sizes) != total or any(size % heads for size in sizes):
            return Unknown(f"{total} projected features cannot be cut into Q, K and V of {heads} heads")
        w = weights.float64()
        b = bias.float64() if bias is not None else np.zeros(total)
        if not (np.all(np.isfinite(w)) and np.all(np.isfinite(b))):
            return Unknown("the projection weights are not finite")
        ends = np.cumsum((0, *sizes))
        made = [_Projection(w[:, a:z], b[a:z], heads) for a, z in pairwise(ends)]
        return made[0], made[1], made[2]

    def bounds(self, site: Site, xs: Sequence[Range | None]) -> Heads | Unknown:
        """The bounds of one head, or why they are not known."""
        projections, x = self._projections(site), xs[0]
        if isinstance(projections, Unknown):
            return projections
        return Unknown("the input of Attention must have rank 3") if x is None or len(x.shape) != 3 else self._heads(site, xs, projections)

    def _heads(self, site: Site, xs: Sequence[Range | None], projections: tuple[_Projection, _Projection, _Projection]) -> Heads:
        x = xs[0]
        assert x is not None
        n = x.shape[1]
        q, k, v = (projection.rows(x, n) for projection in projections)
        past = _given(xs, 4)
        if past is not None and past.shape[-2]:
            cached = rows_of(past)
            cached = scaled_rows(cached, ONE, rotated=True)  # keys and values share one range: distances from the norms
            k, v = together(cached, k), together(cached, v)
        scale = float(site.attr("scale", 0.0) or 0.0)
        s = Upper(abs(scale)) if scale else ONE / Lower(q.width).sqrt()
        masked = site.has(3) or bool(site.attr("unidirectional", 0)) or site.has(5)
        return Heads(q, k, v, s, _worst(n) if masked else _plain(n, k.count), open_cache=is_open(past))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The hull of the projected values."""
        projections, x = self._projections(site), xs[0]
        rest = tuple(reals(value.shape) if value is not None and value.shape is not None else reals(()) for value in site.outputs)
        if isinstance(projections, Unknown) or x is None or len(x.shape) != 3:
            return rest
        v = projections[2].image(x)
        past = _given(xs, 4)
        if past is not None and past.shape[-2]:
            root = math.sqrt(projections[2].heads) * (1 + 2.0**-50)
            top = max(v.magnitude(), past.magnitude())
            row = max(v.row, widen(past.row_norm() * root, 2))
            v = Range(v.shape, np.asarray(-top), np.asarray(top), row, widen(2 * row, 1))
        empty = site.has(3) or bool(site.attr("unidirectional", 0))
        return (output_range(site.out_shape(), v, projections[2].heads, 1, empty=empty), *rest[1:])

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """From X: ``sum_path G ||W||``, or the weighted stack of the three weights if that is less; from the cache and the bias."""
        projections, x = self._projections(site), xs[0]
        if isinstance(projections, Unknown):
            return projections
        if x is None or len(x.shape) != 3:
            return Unknown("the input of Attention must have rank 3")
        heads = self._heads(site, xs, projections)
        cached = len(site.outputs) > 1 and site.outputs[1] is not None
        if i == 5:
            bias = _given(xs, 5)
            scores = (x.shape[0], projections[0].heads, heads.q.count, heads.k.count)
            copies = max(1, copies_of(bias.shape, scores)) if bias is not None else 1
            return jointly((path_gain(heads, "bias", norm, copies), *((Finite(ZERO),) if cached else ())), norm)
        if i not in (0, 4):
            return Unknown("moving weights, biases or masks of Attention have no rule")
        slopes: list[Upper] = []
        for path in ("queries", "keys", "values"):
            gain = path_gain(heads, path, norm)
            if not isinstance(gain, Finite):
                return gain
            slopes.append(gain.slope)
        if i == 4:  # keys and values are separate halves of the cache
            first = Finite(combine(slopes[1:], dual(norm)), method="attention, cache")
            return jointly((first, *((Finite(ONE, method="copied"),) if cached else ())), norm)
        norms = [projection.norm(norm) for projection in projections]
        triangle = combine([slope * size for slope, size in zip(slopes, norms, strict=True)], "l1")
        best, method = triangle, "attention on X, sum of paths"
        if norm == "l2":
            stack = _stacked(slopes, norms, projections)
            if stack < best:
                best, method = stack, "attention on X, weighted stack"
        evidence = {"G": [slope.decimal() for slope in slopes], "W": [size.decimal() for size in norms]}
        copied = Finite(combine(norms[1:], norm), method="projected keys and values")
        return jointly((Finite(best, method=method, evidence=evidence), *((copied,) if cached else ())), norm)


def _stacked(slopes: Sequence[Upper], norms: Sequence[Upper], projections: Sequence[_Projection]) -> Upper:
    """``sqrt(sum t_k^2) || stack_k a_k W_k ||`` with ``t_k = G_k / a_k``, a_k powers of two (so that scaling is exact).

    Cauchy-Schwarz: ``sum_k G_k |W_k dx| = sum_k t_k (a_k |W_k dx|)``.
    """
    weights: list[Floats] = []
    sizes: list[Upper] = []
    for slope, size, projection in zip(slopes, norms, projections, strict=True):
        g, w = float(slope), float(size)
        if g == 0 or w == 0:
            continue
        if not (1e-100 < g < 1e100 and 1e-100 < w < 1e100):
            return Upper(math.inf)
        a = 2.0 ** round(math.log2(math.sqrt(g / w)))
        weights.append(projection.weight.T * a)
        sizes.append(slope / Lower(a))
    if not weights:
        return ZERO
    return combine(sizes, "l2") * dense_norm(np.concatenate(weights, axis=0), "l2").upper


class MultiHeadAttention(AttentionRule):
    """``com.microsoft::MultiHeadAttention``: Q, K, V of rank 3 (K, V also ``[B, h, n, d]``), stored bias, cache, float bias."""

    def computation(self, site: Site, xs: Sequence[Range | None]) -> Computation | Unknown:
        """Packed projections and moving biases are not supported."""
        q, k, v = _given(xs, 0), _given(xs, 1), _given(xs, 2)
        heads = int(site.attr("num_heads", 0))
        if q is None or k is None or v is None or len(q.shape) != 3 or len(k.shape) not in (3, 4) or len(v.shape) not in (3, 4):
            return Unknown("MultiHeadAttention with packed projections has no rule: Q, K and V must be separate")
        if heads <= 0 or q.shape[2] % heads:
            return Unknown(f"{q.shape[2]} features cannot be cut into {heads} heads")
        if len(site.outputs) > 3 and site.outputs[3] is not None:
            return Unknown("the score output of MultiHeadAttention has no rule")
        bias = site.constant(3)
        if site.has(3) and bias is None:
            return Unknown("a moving bias of MultiHeadAttention has no rule")
        rows_q = rows_of(q, heads)
        rows_k, rows_v = (rows_of(value, heads if len(value.shape) == 3 else 1) for value in (k, v))
        if bias is not None:
            b = bias.float64().ravel()
            d_q, d_k = rows_q.width * heads, rows_k.width * heads
            rows_q = scaled_rows(rows_q, ONE, _head_shift(b[:d_q], heads))
            rows_k = scaled_rows(rows_k, ONE, _head_shift(b[d_q : d_q + d_k], heads))
            rows_v = scaled_rows(rows_v, ONE, _head_shift(b[d_q + d_k :], heads))
            v = _shifted(v, b[d_q + d_k :])
        past_k, past_v = _given(xs, 6), _given(xs, 7)
        rows_k = together(rows_of(past_k), rows_k) if past_k is not None else rows_k
        rows_v = together(rows_of(past_v), rows_v) if past_v is not None else rows_v
        scale = float(site.attr("scale", 0.0) or 0.0)
        s = Upper(abs(scale)) if scale else ONE / Lower(rows_q.width).sqrt()
        masked = site.has(4) or site.has(5) or bool(site.attr("unidirectional", 0)) or past_k is not None
        mask = _worst(rows_q.count) if masked else _plain(rows_q.count, rows_k.count)
        computed = Heads(rows_q, rows_k, rows_v, s, mask, open_cache=is_open(past_k, past_v))
        added = _given(xs, 5)
        scores = (q.shape[0], heads, rows_q.count, rows_k.count)
        copies = {"bias": max(1, copies_of(added.shape, scores)) if added is not None else 1}
        paths: dict[int, tuple[tuple[str, Upper], ...]] = {
            0: (("queries", ONE),), 1: (("keys", ONE),), 2: (("values", ONE),), 5: (("bias", ONE),),
            6: (("keys", ONE),), 7: (("values", ONE),),
        }  # fmt: skip
        inside = len(v.shape) == 3
        if not inside:  # one row of the output holds all heads
            v = v.replace(diameter=math.inf)
        return Computation(computed, paths, copies, v, heads if inside else 1, past_v)

    def other_gains(self, site: Site, i: int, norm: Norm, found: Computation) -> tuple[Gain, ...]:
        """The caches copy what they hold."""
        return tuple(
            Finite(ONE if value is not None and i in sources else ZERO, method="copied into the cache")
            for value, sources in zip(site.outputs[1:3], ((1, 6), (2, 7)), strict=False)
        )


def _shifted(v: Range, bias: Floats) -> Range:
    if len(v.shape) == 4:
        bias = bias.reshape(v.shape[1], 1, v.shape[3])
    lo, hi = add((v.lo, v.hi), (bias, bias))
    return Range(v.shape, lo, hi, widen(v.row_norm() + _l2(bias.ravel()), 2), v.row_diameter() if len(v.shape) == 3 else math.inf)


class GroupQueryAttention(AttentionRule):
    """``com.microsoft::GroupQueryAttention``: grouped heads, cache, rotation by stored tables, soft cap, sink.

    Inputs: query (or all three packed), key, value, past key, past value, two lengths, cosines, sines, positions, bias, sink.
    """

    def computation(self, site: Site, xs: Sequence[Range | None]) -> Computation | Unknown:
        """Quantised caches and moving sinks are not supported."""
        q = _given(xs, 0)
        h_q, h_k = int(site.attr("num_heads", 0)), int(site.attr("kv_num_heads", 0))
        if q is None or len(q.shape) != 3 or h_q <= 0 or h_k <= 0 or h_q % h_k:
            return Unknown(f"{h_q} query heads cannot share {h_k} key and value heads")
        if any(len(site.outputs) > k and site.outputs[k] is not None for k in (3, 4)):
            return Unknown("the score output of GroupQueryAttention has no rule")
        if int(site.attr("kv_cache_bit_width", 0) or 0):
            return Unknown("a quantised cache has no rule")
        k, v = _given(xs, 1), _given(xs, 2)
        packed = k is None or v is None
        factor = ONE
        rotated = bool(site.attr("do_rotary", 0))
        if rotated:
            rotation = rotation_of(site.constant(7), site.constant(8))
            if rotation is None:
                return Unknown("the tables of cosines and sines are not stored constants")
            factor = max(rotation.length, ONE)
        if packed:
            if q.shape[2] % (h_q + 2 * h_k):
                return Unknown(f"{q.shape[2]} packed features cannot be cut into {h_q} + 2 * {h_k} heads")
            rows_q = rows_k = rows_v = rows_of(q, h_q + 2 * h_k)
            width = q.shape[2] // (h_q + 2 * h_k)
            v = Range((q.shape[0], q.shape[1], h_k * width), np.asarray(np.min(q.lo)), np.asarray(np.max(q.hi)), q.row, q.diameter)
        else:
            assert k is not None and v is not None
            if len(k.shape) != 3 or len(v.shape) != 3 or k.shape[2] % h_k or v.shape[2] % h_k or q.shape[2] % h_q:
                return Unknown("GroupQueryAttention needs keys and values of rank 3 that its heads divide")
            rows_q, rows_k, rows_v = rows_of(q, h_q), rows_of(k, h_k), rows_of(v, h_k)
        if rotated:
            rows_q = scaled_rows(rows_q, factor, rotated=True)
            rows_k = scaled_rows(rows_k, factor, rotated=True)
        past_k, past_v = _given(xs, 3), _given(xs, 4)
        rows_k = together(rows_of(past_k), rows_k) if past_k is not None else rows_k
        rows_v = together(rows_of(past_v), rows_v) if past_v is not None else rows_v
        scale = float(site.attr("scale", 0.0) or 0.0)
        s = Upper(abs(scale)) if scale else ONE / Lower(rows_q.width).sqrt()
        cap = Upper(abs(float(site.attr("softcap", 0.0) or 0.0)))
        sink = site.has(11) or int(site.attr("smooth_softmax", 0) or 0) == 1
        computed = Heads(rows_q, rows_k, rows_v, s, _worst(rows_q.count), cap, h_q // h_k, sink, is_open(past_k, past_v))
        added = _given(xs, 10)
        scores = (q.shape[0], h_q, rows_q.count, rows_k.count)
        copies = {"bias": max(1, copies_of(added.shape, scores)) if added is not None else 1}
        paths: dict[int, tuple[tuple[str, Upper], ...]] = {10: (("bias", ONE),), 3: (("keys", ONE),), 4: (("values", ONE),)}
        if packed:
            paths[0] = (("queries", factor), ("keys", factor), ("values", ONE))
        else:
            paths.update({0: (("queries", factor),), 1: (("keys", factor),), 2: (("values", ONE),)})
        return Computation(computed, paths, copies, v, h_k, past_v)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """As for any attention; a turn is an isometry in l2 only."""
        if norm != "l2" and int(site.attr("do_rotary", 0)):
            return Unknown("attention with a rotation inside has a rule in l2 only")
        return super().gain(site, i, norm, xs)

    def other_gains(self, site: Site, i: int, norm: Norm, found: Computation) -> tuple[Gain, ...]:
        """The caches hold the (turned) keys and the values."""
        turned = max((before for _, before in found.paths.get(0, ())), default=ONE)
        gains: list[Gain] = []
        for value, sources in zip(site.outputs[1:3], ((1, 3), (2, 4)), strict=False):
            live = value is not None and (i in sources or (i == 0 and len(found.paths.get(0, ())) > 1))
            gains.append(Finite(turned if live else ZERO, method="copied into the cache"))
        return tuple(gains)
