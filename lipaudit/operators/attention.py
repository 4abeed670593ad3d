"""Attention as one node with separate Q, K and V: the recogniser's fused core and the operator of ONNX (23, 24, 25)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, combine, dual, repeat_factor
from lipaudit.operators.attention_core import Heads, Mask, mask_facts, output_range, rows_of, together
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.outputs import SeveralOutputs, finite_or, jointly
from lipaudit.operators.range import Range, reals

__all__ = ["Attention", "AttentionRule", "Computation", "FusedAttention", "copies_of", "is_open", "path_gain"]


@dataclass(frozen=True, slots=True)
class Computation:
    """What one node computes.

    Attributes
    ----------
    heads
        The bounds of one head.
    paths
        For each input: the paths through which it acts ("queries", "keys", "values", "bias"), with a gain in front of each.
        Several paths of one input act on disjoint parts of it.
    copies
        How many elements each element of a path's tensor feeds, beyond sharing by heads.
    v
        Range of the values as stored, ``v_heads`` heads in one row; ``past_v`` that of the cached values.
    """

    heads: Heads
    paths: dict[int, tuple[tuple[str, Upper], ...]]
    copies: dict[str, int]
    v: Range
    v_heads: int = 1
    past_v: Range | None = None


def copies_of(own: tuple[int, ...], whole: tuple[int, ...]) -> int:
    """How often an operand of leading shape ``own`` is copied to reach ``whole``."""
    return math.prod(whole) // max(1, math.prod(own))


def is_open(*caches: Range | None) -> bool:
    """True if nothing bounds one of the caches."""
    return any(cache is not None and cache.size > 0 and not math.isfinite(cache.row_norm()) for cache in caches)


def path_gain(heads: Heads, path: str, norm: Norm, copies: int = 1) -> Gain:
    """Gain of the output from one of the four paths."""
    if path == "bias":
        slope, factor = heads.bias_gain(norm, copies), ONE
    else:
        factor = repeat_factor(copies, norm)
        slope = {"queries": heads.query_gain, "keys": heads.key_gain, "values": heads.value_gain}[path](norm)
    if not slope.is_finite:
        return Unbounded(heads.blame(path))
    return Finite(factor * slope, method=f"attention, {path}", evidence=evidence_of(heads))


def evidence_of(heads: Heads) -> dict[str, object]:
    """The numbers that a checker needs."""
    return {
        "R_Q": heads.q.row.decimal(), "D_K": heads.k.diameter.decimal(), "D_V": heads.v.diameter.decimal(),
        "scale": heads.scale.decimal(), "queries": heads.queries, "keys": heads.k.count, "most": heads.mask.most,
        "column sum": heads.column_sum().decimal(), "soft cap": heads.cap.decimal(), "shared": heads.shared,
    }  # fmt: skip


class AttentionRule(SeveralOutputs):
    """Range and gains from the :class:`Computation` that a subclass reads off its node."""

    @abstractmethod
    def computation(self, site: Site, xs: Sequence[Range | None]) -> Computation | Unknown:
        """The bounds of one head and the way of each input, or why they are not known."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The hull of the values; caches as what they hold."""
        found = self.computation(site, xs)
        if isinstance(found, Unknown):
            return _all_reals(site)
        heads = found.heads
        empty = heads.mask.may_be_empty or heads.sink
        v = found.v if found.past_v is None else _hull(found.v, found.past_v, found.v_heads)
        return (output_range(site.out_shape(), v, found.v_heads, heads.shared, empty=empty), *self.other_ranges(site, xs))

    def other_ranges(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Ranges of the outputs after the first."""
        return _all_reals(site)[1:]

    def other_gains(self, site: Site, i: int, norm: Norm, found: Computation) -> tuple[Gain, ...]:
        """Gains from input ``i`` to the outputs after the first."""
        unknown = Unknown("the gain of this output is not known")
        return tuple(unknown if value is not None else Finite(ZERO) for value in site.outputs[1:])

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The paths of input ``i``; disjoint parts of one input combine by the dual norm."""
        found = self.computation(site, xs)
        if isinstance(found, Unknown):
            return found
        if i not in found.paths:
            return Unknown(f"the gain from input {i} of this attention is not known")
        value = site.inputs[i]
        if value is not None and not value.is_float:
            return self._jump(site, norm, xs)
        slopes: list[Upper] = []
        method = "attention"
        evidence: dict[str, object] = {}
        for path, before in found.paths[i]:
            gain = path_gain(found.heads, path, norm, found.copies.get(path, 1))
            if not isinstance(gain, Finite):
                return gain
            slopes.append(gain.slope * before)
            method = gain.method if len(found.paths[i]) == 1 else "attention, packed"
            evidence = dict(gain.evidence)
        first = Finite(combine(slopes, dual(norm)), method=method, evidence=evidence)
        return jointly((first, *self.other_gains(site, i, norm, found)), norm)

    def _jump(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """A mask of Booleans or lengths that moves: who attends whom jumps, and the output by the diameter of its range."""
        found = self.range(site, xs)
        jumps = [x.total_diameter(norm) if value is not None else ZERO for x, value in zip(found, site.outputs, strict=False)]
        return finite_or(
            ZERO, "the mask moves, and the values are not bounded on this domain", "jump of the mask", offset=combine(jumps, norm)
        )


def _all_reals(site: Site) -> tuple[Range, ...]:
    return tuple(reals(value.shape) if value is not None and value.shape is not None else reals(()) for value in site.outputs)


def _hull(v: Range, past: Range, heads: int) -> Range:
    """Both new and cached values, as a range of the shape of ``v``: only what holds for all of them."""
    lo = np.asarray(min(float(np.min(v.lo, initial=math.inf)), float(np.min(past.lo, initial=math.inf))))
    hi = np.asarray(max(float(np.max(v.hi, initial=-math.inf)), float(np.max(past.hi, initial=-math.inf))))
    row = max(v.row_norm(), past.row_norm() * math.sqrt(heads) * (1 + 2.0**-50))
    diameter = max(v.row_diameter(), 2 * row)
    return Range(v.shape, lo, hi, row, diameter)


class FusedAttention(AttentionRule):
    """The recognised core ``lipaudit::Attention``: Q ``[.., n_q, d]``, K, V ``[.., n_k, d]``, additive bias.

    Attributes: ``k_transposed``, ``scale``, ``causal``, ``softcap``.
    """

    def computation(self, site: Site, xs: Sequence[Range | None]) -> Computation | Unknown:
        """Heads have their own axis, so each input has one path."""
        q, k, v = xs[0], xs[1], xs[2]
        if q is None or k is None or v is None or min(len(q.shape), len(k.shape), len(v.shape)) < 2:
            return Unknown("attention needs queries, keys and values of rank 2 or more")
        transposed = bool(site.attr("k_transposed", 0))
        cap = abs(float(site.attr("softcap", 0.0)))
        rows_q, rows_k, rows_v = rows_of(q), rows_of(k, transposed=transposed), rows_of(v)
        bias = xs[3] if len(xs) > 3 else None
        constant = site.constant(3)
        stored = _stored(constant.array()) if constant is not None else None
        mask = mask_facts(rows_q.count, rows_k.count, causal=bool(site.attr("causal", 0)), bias=bias, stored=stored)
        mask = _after_cap(mask, rows_q.count, rows_k.count, cap)
        heads = Heads(rows_q, rows_k, rows_v, Upper(abs(float(site.attr("scale", 1.0)))), mask, Upper(cap))
        lead = site.out_shape()[:-2]
        scores = (*lead, rows_q.count, rows_k.count)
        copies = {
            "queries": copies_of(q.shape[:-2], lead),
            "keys": copies_of(k.shape[:-2], lead),
            "values": copies_of(v.shape[:-2], lead),
            "bias": copies_of(bias.shape, scores) if bias is not None else 1,
        }
        paths = {0: (("queries", ONE),), 1: (("keys", ONE),), 2: (("values", ONE),), 3: (("bias", ONE),)}
        return Computation(heads, paths, copies, v)


def _stored(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.asarray(array)


def _after_cap(mask: Mask, queries: int, keys: int, cap: float) -> Mask:
    """Where a soft cap may come after the mask, a forbidden key keeps some weight: no key may be dropped."""
    return mask if cap == 0 else Mask(mask.allowed, queries, mask.spread, mask.may_be_empty)


class Attention(AttentionRule):
    """``ai.onnx::Attention``: 3-D (heads inside the row) or 4-D, grouped heads, Boolean or float mask, causal, cache, soft cap."""

    def computation(self, site: Site, xs: Sequence[Range | None]) -> Computation | Unknown:
        """Read off the shapes and attributes; unequal ranks are not supported."""
        q, k, v = xs[0], xs[1], xs[2]
        if q is None or k is None or v is None:
            return Unknown("attention needs queries, keys and values")
        if not len(q.shape) == len(k.shape) == len(v.shape) or len(q.shape) not in (3, 4):
            return Unknown("queries, keys and values must all have rank 3 or all rank 4")
        inside = len(q.shape) == 3
        h_q = int(site.attr("q_num_heads", 0)) if inside else q.shape[1]
        h_k = int(site.attr("kv_num_heads", 0)) if inside else k.shape[1]
        if h_q <= 0 or h_k <= 0 or h_q % h_k or (not inside and v.shape[1] != h_k) or (inside and (q.shape[2] % h_q or k.shape[2] % h_k)):
            return Unknown(f"{h_q} query heads cannot share {h_k} key and value heads")
        rows_q, rows_k, rows_v = rows_of(q, h_q if inside else 1), rows_of(k, h_k if inside else 1), rows_of(v, h_k if inside else 1)
        past_k, past_v = (xs[4] if len(xs) > 4 else None), (xs[5] if len(xs) > 5 else None)
        if past_k is not None:
            rows_k = together(rows_of(past_k), rows_k)
        if past_v is not None:
            rows_v = together(rows_of(past_v), rows_v)
        default = ONE / _lower_root(rows_q.width)
        given = site.attr("scale")
        scale = default if given is None else Upper(abs(float(given)))
        cap = abs(float(site.attr("softcap", 0.0) or 0.0))
        mask = self._mask(site, xs, rows_q.count, rows_k.count)
        if isinstance(mask, Unknown):
            return mask
        mask = _after_cap(mask, rows_q.count, rows_k.count, cap)
        heads = Heads(rows_q, rows_k, rows_v, scale, mask, Upper(cap), shared=h_q // h_k, open_cache=is_open(past_k, past_v))
        bias = xs[3] if len(xs) > 3 else None
        scores = (q.shape[0], h_q, rows_q.count, rows_k.count)
        copies = {"bias": max(1, copies_of(bias.shape, scores)) if bias is not None else 1}
        one: dict[int, tuple[tuple[str, Upper], ...]] = {
            0: (("queries", ONE),), 1: (("keys", ONE),), 2: (("values", ONE),), 3: (("bias", ONE),),
            4: (("keys", ONE),), 5: (("values", ONE),),
        }  # fmt: skip
        return Computation(heads, one, copies, v, h_k if inside else 1, past_v)

    def _mask(self, site: Site, xs: Sequence[Range | None], queries: int, keys: int) -> Mask | Unknown:
        bias = xs[3] if len(xs) > 3 else None
        constant = site.constant(3)
        causal = bool(site.attr("is_causal", 0))
        stored = _stored(constant.array()) if constant is not None else None
        mask = mask_facts(queries, keys, causal=causal, bias=bias, stored=stored)
        windows = int(site.attr("left_window_size", -1)), int(site.attr("right_window_size", -1))
        if site.has(6) or max(windows) >= 0:
            return mask.anything(queries)
        return mask

    def other_gains(self, site: Site, i: int, norm: Norm, found: Computation) -> tuple[Gain, ...]:
        """The caches copy what they hold; the scores are a product."""
        gains: list[Gain] = []
        for value, sources in zip(site.outputs[1:3], ((1, 4), (2, 5)), strict=False):
            gains.append(Finite(ONE if value is not None and i in sources else ZERO, method="copied into the cache"))
        if len(site.outputs) > 3:
            gains.append(Finite(ZERO) if site.outputs[3] is None else self._score_gain(i, norm, found))
        return tuple(gains)

    @staticmethod
    def _score_gain(i: int, norm: Norm, found: Computation) -> Gain:
        """Of ``s q k + B``, soft-capped or not: Q and K act as matrices, B is copied. The softmax of mode 3 contracts all norms."""
        heads, n_q, n_k = found.heads, Upper(found.heads.queries), Upper(found.heads.k.count)
        q, k, copies = heads.q, heads.k, repeat_factor(heads.shared, norm)
        slope = ZERO
        if i == 0:
            slope = {"l2": n_k.sqrt() * k.row, "l1": n_k * k.top, "linf": k.row_l1}[norm] * heads.scale
        elif i in (1, 4):
            slope = {"l2": n_q.sqrt() * q.row, "l1": n_q * q.top, "linf": q.row_l1}[norm] * heads.scale * copies
        elif i == 3:
            slope = repeat_factor(found.copies.get("bias", 1), norm)
        return finite_or(slope, "the scores multiply two activations, and the other one is not bounded on this domain", "scores")

    def other_ranges(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Both what was cached and what is new."""
        found: list[Range] = []
        for value, (new, old) in zip(site.outputs[1:3], ((1, 4), (2, 5)), strict=False):
            shape = value.shape if value is not None and value.shape is not None else ()
            found.append(_cached(shape, xs[new], xs[old] if len(xs) > old else None))
        if len(site.outputs) > 3:
            value = site.outputs[3]
            shape = value.shape if value is not None and value.shape is not None else ()
            weights = int(site.attr("qk_matmul_output_mode", 0)) == 3
            found.append(Range(shape, np.asarray(0.0), np.asarray(1.0)) if weights else reals(shape))
        return tuple(found)


def _cached(shape: tuple[int, ...], new: Range | None, old: Range | None) -> Range:
    parts = [part for part in (new, old) if part is not None and part.size]
    if not parts:
        return reals(shape)
    lo = np.asarray(min(float(np.min(part.lo)) for part in parts))
    hi = np.asarray(max(float(np.max(part.hi)) for part in parts))
    return Range(shape, lo, hi, max(part.row_norm() for part in parts))


def _lower_root(n: int) -> Lower:
    return Lower(max(1, n)).sqrt()
