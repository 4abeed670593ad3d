"""Softmax attention ``o_i = sum_j P_ij v_j``, ``P_i = softmax_j(s q_i.k_j + B_ij)``: its constants from what rows can be.

Everything follows from ``do_i = sum_j P_ij dv_j + s Cov_i(v,k) dq_i + s sum_j P_ij (v_j - o_i)(q_i.dk_j)``; centering is free
because the weights of a row sum to one, so only diameters of keys and values matter. Bounds of one head; heads and samples
are separate blocks. In l2 they are the exact suprema given the named quantities, e.g. two keys of weight 1/2.
Dot-product attention on all reals has no constant (Kim, Papamakarios, Mnih 2021, arXiv 2006.04710).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.range import Range, up, widen

__all__ = ["Heads", "Mask", "Rows", "mask_facts", "output_range", "rows_of", "scaled_rows", "together"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows of one head (of Q, K or V) can be; upper bounds, inf where unknown.

    Attributes
    ----------
    count, width
        Rows of one head, and their length.
    row, row_l1, top
        Largest l2 norm, l1 norm and absolute element of a row.
    diameter, diameter_l1, column
        Largest l2 and l1 distance of two rows of one head, and largest difference in one column.
    """

    count: int
    width: int
    row: Upper
    row_l1: Upper
    top: Upper
    diameter: Upper
    diameter_l1: Upper
    column: Upper


def _closed(count: int, width: int, row: float, row_l1: float, top: float, diameter: float, diameter_l1: float, column: float) -> Rows:
    """Each quantity made as small as the others allow."""
    root = Upper(width).sqrt()
    two = Upper(2)
    r, t = Upper(row), Upper(top)
    t = min(t, r)
    r = min(r, t * root)
    r1 = min(Upper(row_l1), r * root)
    if count <= 1:
        return Rows(count, width, r, r1, t, ZERO, ZERO, ZERO)
    d = min(Upper(diameter), two * r)
    c = min(Upper(column), d, two * t)
    d = min(d, c * root)
    d1 = min(Upper(diameter_l1), d * root, two * r1)
    return Rows(count, width, r, r1, t, d, d1, c)


def rows_of(x: Range, heads: int = 1, transposed: bool = False) -> Rows:
    """Rows of a value ``[.., n, heads * width]`` (or ``[.., width, n]`` if ``transposed``), one head at a time.

    The norm and the diameter of the whole row bound those of the part of one head.
    """
    shape = x.shape
    if transposed:
        count, whole = shape[-1], shape[-2]
    else:
        count, whole = shape[-2], shape[-1]
    width = max(1, whole // max(1, heads))
    row, diameter = (math.inf, math.inf) if transposed else (x.row, x.diameter)
    if len(shape) < 3:
        diameter = math.inf  # without a sample axis the diameter says nothing about different rows
    lo, hi = np.broadcast_arrays(x.lo, x.hi)
    if x.size == 0:
        return _closed(0, width, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if transposed and lo.ndim >= 2:
        lo, hi = np.swapaxes(lo, -1, -2), np.swapaxes(hi, -1, -2)
    elif transposed and lo.ndim == 1:
        lo, hi = lo[:, None], hi[:, None]
    full = lo.ndim >= 1 and lo.shape[-1] == whole
    parts = heads if full else 1
    size = width if full else 1
    copies = 1 if full else width
    lo, hi = (end.reshape(*(end.shape[:-1] if end.ndim else ()), parts, size) for end in (lo, hi))
    with np.errstate(over="ignore", invalid="ignore"):
        magnitude = np.maximum(np.abs(lo), np.abs(hi))
        squares = widen(float(np.max(np.sum(magnitude * magnitude, axis=-1))) * copies, width + 2)
        ones = widen(float(np.max(np.sum(magnitude, axis=-1))) * copies, width + 2)
        tokens = lo.ndim - 3  # the axis of tokens, if the interval arrays have it
        if tokens >= 0:
            columns = np.max(hi, axis=tokens) - np.min(lo, axis=tokens)
        else:
            columns = hi - lo
        columns = np.where(np.isnan(columns), np.inf, columns)
        across = widen(float(np.max(np.sum(columns * columns, axis=-1))) * copies, width + 4)
        across_l1 = widen(float(np.max(np.sum(columns, axis=-1))) * copies, width + 4)
    top = float(np.max(magnitude))
    # Squares of tiny numbers underflow: then the largest element times sqrt(width) is the bound.
    return _closed(
        count,
        width,
        min(row, float(up(math.sqrt(squares))) if squares > 1e-280 else math.inf),
        ones,
        top,
        min(diameter, float(up(math.sqrt(across))) if across > 1e-280 else math.inf),
        across_l1,
        widen(float(np.max(columns)), 2),
    )


def scaled_rows(rows: Rows, factor: Upper, shift: float = 0.0, *, rotated: bool = False) -> Rows:
    """After an isometry up to ``factor`` that may differ from row to row (``rotated``), or a constant row of norm ``shift`` added."""
    row = float(factor * rows.row + Upper(shift))
    diameter = math.inf if rotated else float(factor * rows.diameter)
    free = rotated or shift > 0 or factor != ONE
    return _closed(
        rows.count,
        rows.width,
        row,
        math.inf if free else float(rows.row_l1),
        math.inf if free else float(rows.top),
        diameter,
        math.inf if rotated or factor != ONE else float(rows.diameter_l1),
        math.inf if rotated or factor != ONE else float(rows.column),
    )


def together(first: Rows, second: Rows) -> Rows:
    """The rows of both (a cache and the new tokens), which need not share a centre."""
    if first.count == 0 or second.count == 0:
        return second if first.count == 0 else first
    return _closed(
        first.count + second.count,
        max(first.width, second.width),
        float(max(first.row, second.row)),
        float(max(first.row_l1, second.row_l1)),
        float(max(first.top, second.top)),
        float(max(first.diameter, second.diameter, first.row + second.row)),
        float(max(first.diameter_l1, second.diameter_l1, first.row_l1 + second.row_l1)),
        float(max(first.column, second.column, first.top + second.top)),
    )


@dataclass(frozen=True, slots=True)
class Mask:
    """What is known of who attends whom.

    Attributes
    ----------
    allowed
        For each query, keys that it certainly attends (at least 1).
    most
        At most so many queries attend one key.
    spread
        Largest difference of the bias between two allowed keys of one query; inf if unknown.
    may_be_empty
        Some query may attend nothing (its output is 0).
    """

    allowed: tuple[int, ...]
    most: int
    spread: float = 0.0
    may_be_empty: bool = False

    def anything(self, queries: int) -> Mask:
        """The worst mask: any query may attend one key only."""
        return Mask((1,) * queries, queries, math.inf, True)


def mask_facts(
    queries: int, keys: int, *, causal: bool = False, bias: Range | None = None, stored: NDArray[np.generic] | None = None
) -> Mask:
    """Facts of a mask: causal or not, with an additive or Boolean ``bias`` (its range), stored or computed.

    Counts of a causal mask are those of the frontier without an offset, the fewest. Finite negative numbers do not forbid a
    key: they widen the spread.
    """
    frontier = [min(i + 1, keys) if causal else keys for i in range(queries)]
    if bias is None:
        return Mask(tuple(max(1, count) for count in frontier), queries, 0.0, keys == 0)
    if stored is None or stored.ndim == 0 or stored.size > 1 << 26:
        is_float = not bias.integral
        if is_float and bias.is_bounded and (not bias.shape or bias.shape[-1] == keys):
            width = float(up(np.max(bias.hi) - np.min(bias.lo)))
            return Mask(tuple(max(1, count) for count in frontier), queries, width, False)
        return Mask((1,) * queries, queries, math.inf, True)
    if stored.shape[-1] == 1 and keys > 1:  # copied or padded: the operators differ
        return Mask((1,) * queries, queries, math.inf, True)
    array = np.asarray(stored)
    boolean = array.dtype == np.bool_
    allow = array if boolean else ~np.isneginf(array.astype(np.float64))
    allow = np.broadcast_to(allow, np.broadcast_shapes(allow.shape, (1, allow.shape[-1])))
    if allow.shape[-1] < keys:  # missing keys are forbidden
        allow = np.pad(allow, [(0, 0)] * (allow.ndim - 1) + [(0, keys - allow.shape[-1])])
    flat = np.broadcast_to(allow, (*allow.shape[:-2], queries, keys)).reshape(-1, queries, keys)
    seen = flat & np.tri(queries, keys, dtype=bool) if causal else flat
    counts = np.min(np.sum(seen, axis=-1), axis=0) if seen.shape[0] else np.zeros(queries)
    empty = ~np.any(seen, axis=-1)  # under finite masks such a row attends every key
    most = int(np.max(np.sum(flat, axis=-2) + np.sum(empty, axis=-1, keepdims=True), initial=0))
    spread = 0.0
    if not boolean:
        values = np.broadcast_to(array.astype(np.float64), np.broadcast_shapes(array.shape, (1, array.shape[-1])))
        live = np.isfinite(values)
        if np.any(np.isnan(values) | np.isposinf(values)):
            spread = math.inf
        else:
            high = np.max(np.where(live, values, -np.inf), axis=-1)
            low = np.min(np.where(live, values, np.inf), axis=-1)
            some = np.isfinite(high)
            spread = float(np.max(up(high[some] - low[some]), initial=0.0)) if np.any(high[some] > low[some]) else 0.0
    return Mask(tuple(max(1, int(count)) for count in counts), max(1, min(most, queries)), spread, bool(np.any(counts == 0)))


@dataclass(frozen=True, slots=True)
class Heads:
    """One attention computation, all of whose heads and samples obey the same bounds.

    Attributes
    ----------
    q, k, v
        Rows of one head.
    scale
        ``|s|``.
    cap
        Soft cap of the scores before the mask (0: none); it loses the centering of the keys.
    mask
        Who attends whom.
    shared
        Query heads that read one head of K and V.
    sink
        There is one more key, with value 0 and a score that does not move: the weights of the real keys sum to less than 1.
    open_cache
        Some of the keys or values are those of a cache that nothing bounds.
    """

    q: Rows
    k: Rows
    v: Rows
    scale: Upper
    mask: Mask
    cap: Upper = ZERO
    shared: int = 1
    sink: bool = False
    open_cache: bool = False

    @property
    def queries(self) -> int:
        """Rows of Q."""
        return self.q.count

    def _diameters(self) -> tuple[Upper, Upper, Upper, Upper, Upper, Upper]:
        """l2, l1 and column spread of the keys and of the values, the sink included as a zero row."""
        k, v = self.k, self.v
        if not self.sink:
            return k.diameter, k.diameter_l1, k.column, v.diameter, v.diameter_l1, v.column
        return (
            max(k.diameter, k.row), max(k.diameter_l1, k.row_l1), max(k.column, k.top),
            max(v.diameter, v.row), max(v.diameter_l1, v.row_l1), max(v.column, v.top),
        )  # fmt: skip

    def column_sum(self) -> Upper:
        """Upper bound of ``max_j sum_i P_ij``: at most the queries that attend one key.

        ``P_ij <= 1/(1 + (a_i - 1) e^-S)`` with a_i allowed keys and scores of one row within S of each other.
        """
        most = Upper(min(self.mask.most, self.queries))
        diameter = self.k.diameter
        spread = self.scale * self.q.row * diameter
        if not self.cap.is_zero:
            spread = min(spread, Upper(2) * self.cap)
        spread = spread + Upper(self.mask.spread)
        if self.sink or not spread <= Upper(1000):
            return most
        least = Lower(1) / spread.exp()
        total = ZERO
        counts: dict[int, int] = {}
        for allowed in self.mask.allowed:
            counts[allowed] = counts.get(allowed, 0) + 1
        for allowed, queries in counts.items():
            total = total + Upper(queries) / (Lower(1) + Lower(allowed - 1) * least)
        return min(most, total)

    def value_gain(self, norm: Norm) -> Upper:
        """From V: ``sqrt(c)`` in l2, c in l1, 1 in linf, c the largest column sum of the weights."""
        if self.k.count == 0:
            return ZERO
        if norm == "linf":
            return ONE
        copies = repeat_factor(self.shared, norm)
        column = self.column_sum()
        return copies * (column.sqrt() if norm == "l2" else column)

    def query_gain(self, norm: Norm) -> Upper:
        """From Q: ``|s| D_K D_V / 4`` (l2, attained by two keys of weight 1/2); with a soft cap ``|s| R_K D_V / 2``."""
        d_k, d1_k, w_k, d_v, d1_v, w_v = self._diameters()
        s = self.scale
        if not self.cap.is_zero:
            half = Lower(2)
            if norm == "l2":
                return s * self.k.row * d_v / half
            if norm == "linf":
                return s * self.k.row_l1 * w_v / half
            return s * self.k.top * min(d1_v, w_v * Upper(self.v.width) / half)
        four = Lower(4)
        if norm == "l2":
            return s * d_k * d_v / four
        if norm == "linf":
            return s * d1_k * w_v / four
        return s * w_k * d1_v / four

    def key_gain(self, norm: Norm) -> Upper:
        """From K: ``|s| R_Q D_V min(sqrt(m/8), sqrt(c)/2)`` (l2), ``|s| |q|_1 w_V / 2`` (linf), ``|s| m max|q| D1_V / 4`` (l1)."""
        _, _, _, d_v, d1_v, w_v = self._diameters()
        s, m = self.scale, Upper(min(self.mask.most, self.queries))
        copies = repeat_factor(self.shared, norm)
        if norm == "l2":
            share = min((m / Lower(8)).sqrt(), self.column_sum().sqrt() / Lower(2))
            return copies * s * self.q.row * d_v * share
        if norm == "linf":
            return s * self.q.row_l1 * w_v / Lower(2)
        return copies * s * m * self.q.top * d1_v / Lower(4)

    def bias_gain(self, norm: Norm, copies: int) -> Upper:
        """From an additive bias whose elements serve ``copies`` scores each: ``D_V/sqrt 8``, ``D1_V/4``, ``w_V/2`` (l2, l1, linf)."""
        _, _, _, d_v, d1_v, w_v = self._diameters()
        factor = repeat_factor(copies, norm)
        if norm == "l2":
            return factor * d_v / Lower(8).sqrt()
        return factor * (d1_v / Lower(4) if norm == "l1" else w_v / Lower(2))

    def row_max_gains(self) -> tuple[Upper, Upper, Upper]:
        """Gains from Q, K, V in the largest-row norm ``max_i |x_i|``: free of the number of tokens."""
        d_k, _, _, d_v, _, _ = self._diameters()
        s = self.scale
        query = s * d_k * d_v / Lower(4) if self.cap.is_zero else s * self.k.row * d_v / Lower(2)
        return query, s * self.q.row * d_v / Lower(2), ONE

    def blame(self, path: str) -> str:
        """Why the gain from ``path`` ("queries", "keys", "bias") is infinite."""
        if path == "bias":
            return "the weights move with the bias and multiply values that are unbounded on this domain"
        needs = {
            "queries": (("keys", self.k.diameter), ("values", self.v.diameter)),
            "keys": (("queries", self.q.row), ("values", self.v.diameter)),
        }
        free = [name for name, bound in needs[path] if not bound.is_finite]
        names = " and ".join(free)
        if self.open_cache and free != ["queries"]:
            text = "the scores multiply activations by what the cache of keys and values holds, and the cache is unbounded on this domain"
            return f"{text}: for every fixed cache a constant exists, but none holds for all of them; a box for the cache gives one"
        text = f"the scores multiply two unbounded activations: from the {path}, the {names} are unbounded on this domain"
        return f"{text}; with one query at 0 and keys and values at +-t the gain grows like t^2 (arXiv 2006.04710)"


def output_range(shape: tuple[int, ...], v: Range, heads: int, shared: int, *, empty: bool) -> Range:
    """Convex combinations of rows of V: element intervals over all tokens, row norm and diameter of V.

    ``heads`` is the number of heads that one row of V holds (1 where heads have their own axis); a row of the output that holds
    h heads costs ``sqrt(h)``, because different heads may look at different rows. ``empty``: some query may give 0.
    """
    rows = rows_of(v, heads)
    lo, hi = np.broadcast_arrays(v.lo, v.hi)
    if lo.ndim and lo.shape[-1] == v.shape[-1]:
        axes = tuple(range(lo.ndim - 1))
        lo, hi = np.min(lo, axis=axes), np.max(hi, axis=axes)
        if heads > 1 and shared > 1:
            lo, hi = (np.repeat(end.reshape(heads, -1), shared, axis=0).reshape(-1) for end in (lo, hi))
        elif lo.size != shape[-1]:  # heads on their own axis, side by side in the output
            lo, hi = np.tile(lo, shape[-1] // lo.size), np.tile(hi, shape[-1] // hi.size)
    else:
        lo, hi = np.asarray(np.min(lo, initial=math.inf)), np.asarray(np.max(hi, initial=-math.inf))
    if v.size == 0:
        return Range(shape, np.asarray(0.0), np.asarray(0.0), 0.0, 0.0)
    if empty:
        lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    copies = shape[-1] // max(1, rows.width)
    factor = Upper(copies).sqrt()
    if len(shape) < 3 or len(v.shape) != len(shape):
        diameter = math.inf  # the sample axes of V and of the output are not the same
    elif copies > 1:
        diameter = float(factor * (max(rows.diameter, rows.row) if empty else rows.diameter))
    else:  # rows of different heads count as rows of one sample
        diameter = max(v.row_diameter(), float(rows.row)) if empty else v.row_diameter()
    zero_mean = v.zero_mean and copies == 1
    return Range(shape, lo, hi, float(factor * rows.row), diameter, zero_mean)
