"""Attention whose weights are a function of each score by itself: ``o_i = f sum_j w(s q_i.k_j + B_ij) v_j`` (sigmoid, ReLU).

Nothing is normalized: weights need not sum to one, so neither keys nor values are centred and no hull holds. With the slope of w at most l
and ``|w| <= a`` on the scores that the rows allow::

    dO = f [ (W' o s dQ K') V + (W' o s Q dK') V + W dV ]

Row i of the first term is ``f s V' diag(w'_i) K dq_i``, so ``G_Q = f s l ||K|| ||V||``; for the second ``||Q dK'||_F <= ||Q|| ||dK||_F``
gives ``G_K = f s l ||Q|| ||V||``; ``G_V = f ||W|| <= f a sqrt(n_q n_k)``. Spectral norms are at most ``sqrt(n)`` times the largest row.
Models: Ramapuram et al. 2025, "Theory, analysis, and best practices for sigmoid self-attention"; Wortsman et al. 2023, "Replacing softmax
with ReLU in vision transformers".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.attention import copies_of
from lipaudit.operators.attention_core import Rows, rows_of
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.outputs import finite_or
from lipaudit.operators.range import Range, reals, widen

__all__ = ["PairAttention", "PairHeads"]


@dataclass(frozen=True, slots=True)
class PairHeads:
    """The bounds of one head, as ``attention_core.Heads`` has them for softmax.

    ``bias``: the largest that is added to a score (-inf where all is forbidden); ``factor``: f of the module.
    """

    q: Rows
    k: Rows
    v: Rows
    scale: Upper
    factor: Upper
    activation: str
    bias: float = 0.0
    shared: int = 1

    @property
    def slope(self) -> Upper:
        """Largest slope of w: 1/4 for the sigmoid (at 0), 1 for ReLU."""
        return ONE / Lower(4) if self.activation == "sigmoid" else ONE

    @property
    def weight(self) -> Upper:
        """Largest weight, f included."""
        if self.activation == "sigmoid":
            return self.factor
        score = self.scale * self.q.row * self.k.row + Upper(max(self.bias, 0.0))
        return self.factor * score

    def _size(self, rows: Rows) -> Upper:
        """Spectral norm of all rows of one head."""
        return Upper(rows.count).sqrt() * rows.row

    def query_gain(self, norm: Norm) -> Upper:
        """l2: see the module; linf ``n_k |k|_1 max|v|``, l1 ``n_k max|k| |v|_1``, each times ``f s l``."""
        s = self.factor * self.scale * self.slope
        if norm == "l2":
            return s * self._size(self.k) * self._size(self.v)
        keys = Upper(self.k.count)
        return s * keys * (self.k.row_l1 * self.v.top if norm == "linf" else self.k.top * self.v.row_l1)

    def key_gain(self, norm: Norm) -> Upper:
        """l2: see the module; linf ``n_k |q|_1 max|v|``, l1 ``n_q max|q| |v|_1``, each times ``f s l``."""
        s = self.factor * self.scale * self.slope * repeat_factor(self.shared, norm)
        if norm == "l2":
            return s * self._size(self.q) * self._size(self.v)
        if norm == "linf":
            return s * Upper(self.k.count) * self.q.row_l1 * self.v.top
        return s * Upper(self.q.count) * self.q.top * self.v.row_l1

    def value_gain(self, norm: Norm) -> Upper:
        """``a sqrt(n_q n_k)``, linf ``a n_k``, l1 ``a n_q``."""
        count = {"l2": Upper(self.q.count * self.k.count).sqrt(), "linf": Upper(self.k.count), "l1": Upper(self.q.count)}[norm]
        return repeat_factor(self.shared, norm) * self.weight * count

    def bias_gain(self, norm: Norm, copies: int) -> Upper:
        """``f l ||V||``, linf ``f l n_k max|v|``, l1 ``f l |v|_1``."""
        size = {"l2": self._size(self.v), "linf": Upper(self.k.count) * self.v.top, "l1": self.v.row_l1}[norm]
        return self.factor * self.slope * size * repeat_factor(copies, norm)

    def row_max_gains(self) -> tuple[Upper, Upper, Upper]:
        """None is free of the number of keys: sums of weights grow with it."""
        return INFINITE, INFINITE, INFINITE


class PairAttention(Rule):
    """The recognised core ``lipaudit::PairAttention``: Q ``[.., n_q, d]``, K, V ``[.., n_k, d]``, additive bias or Boolean mask.

    Attributes: ``activation`` ("sigmoid" or "relu"), ``scale`` of the scores, ``factor`` of the weights, ``k_transposed``.
    """

    def heads(self, site: Site, xs: Sequence[Range | None]) -> PairHeads | Unknown:
        """The bounds of one head."""
        q, k, v = xs[0], xs[1], xs[2]
        if q is None or k is None or v is None or min(len(q.shape), len(k.shape), len(v.shape)) < 2:
            return Unknown("attention needs queries, keys and values of rank 2 or more")
        rows_k = rows_of(k, transposed=bool(site.attr("k_transposed", 0)))
        bias, given = (xs[3], site.inputs[3]) if len(xs) > 3 else (None, None)
        # A Boolean mask adds nothing to a score; a float bias does, even where all that it holds are integers.
        top = 0.0 if bias is None or bias.size == 0 or given is None or not given.is_float else float(np.max(bias.hi))
        scale, factor = Upper(abs(float(site.attr("scale", 1.0)))), Upper(abs(float(site.attr("factor", 1.0))))
        return PairHeads(rows_of(q), rows_k, rows_of(v), scale, factor, str(site.attr("activation")), top)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """A row is at most the sum of the weights times the largest value."""
        shape, heads = site.out_shape(), self.heads(site, xs)
        if isinstance(heads, Unknown):
            return (reals(shape),)
        total = heads.weight * Upper(heads.k.count)
        row, top = float(total * heads.v.row), float(total * heads.v.top)
        if not math.isfinite(top):
            return (reals(shape),)
        return (Range(shape, np.asarray(-top), np.asarray(top), row, widen(2 * row, 1)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The path of input ``i``."""
        heads = self.heads(site, xs)
        if isinstance(heads, Unknown):
            return heads
        lead = site.out_shape()[:-2]
        operand = xs[i]
        assert operand is not None
        given = site.inputs[i]
        if given is not None and not given.is_float:
            return self._jump(site, heads, norm)
        if i == 3:
            slope = heads.bias_gain(norm, copies_of(operand.shape, (*lead, heads.q.count, heads.k.count)))
        else:
            own = (heads.query_gain, heads.key_gain, heads.value_gain)[i](norm)
            slope = own * repeat_factor(copies_of(operand.shape[:-2], lead), norm)
        if not slope.is_finite:
            names = {0: "the keys and values", 1: "the queries and values", 2: "the scores", 3: "the values"}[i]
            return Unbounded(f"its scores multiply activations and are not normalized: {names} are unbounded on this domain")
        evidence = {
            "R_Q": heads.q.row.decimal(), "R_K": heads.k.row.decimal(), "R_V": heads.v.row.decimal(), "scale": heads.scale.decimal(),
            "largest weight": heads.weight.decimal(), "queries": heads.q.count, "keys": heads.k.count,
        }  # fmt: skip
        return Finite(slope, method=f"{heads.activation} attention", evidence=evidence)

    def _jump(self, site: Site, heads: PairHeads, norm: Norm) -> Gain:
        """A Boolean mask that moves: each weight jumps between 0 and itself, so that a row moves by at most ``sum_j w_ij |v_j|``."""
        total = heads.weight * Upper(heads.k.count)
        row = {"l2": heads.v.row, "l1": heads.v.row_l1, "linf": heads.v.top}[norm]
        offset = repeat_factor(math.prod(site.out_shape()[:-1]), norm) * total * row
        return finite_or(ZERO, "the mask moves, and the values are not bounded on this domain", "jump of the mask", offset=offset)
