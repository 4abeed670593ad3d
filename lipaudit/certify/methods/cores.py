"""The attention operators that a region may be built around: where their queries, keys and values come from, one line per head.

Recognised cores and ``ai.onnx::Attention`` take projected values; ONNX Runtime's operators add biases and (Attention) project inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lipaudit.certify.methods.layout import Base, Layout, Term
from lipaudit.certify.methods.workspace import Workspace
from lipaudit.graph.ir import Node
from lipaudit.operators.attention import Attention, FusedAttention
from lipaudit.operators.attention_contrib import GroupQueryAttention, MultiHeadAttention, PackedAttention
from lipaudit.operators.attention_core import Heads
from lipaudit.operators.base import Site, Unknown
from lipaudit.operators.linear_attention import FeatureHeads, LinearAttention
from lipaudit.operators.pair_attention import PairAttention, PairHeads

__all__ = ["CACHED_CORES", "CORES", "Bounds", "core_operands", "output_places", "split_heads"]

CACHED_CORES = (Attention, FusedAttention, GroupQueryAttention, MultiHeadAttention)
"""Those of softmax attention whose keys and values may come from elsewhere than the queries."""

CORES = (Attention, FusedAttention, LinearAttention, MultiHeadAttention, PackedAttention, PairAttention)

Bounds = Heads | PairHeads | FeatureHeads
"""What is known of one head of any of these."""


def core_operands(work: Workspace, core: Node, found: Mapping[str, Layout]) -> tuple[Bounds, list[Layout]] | None:
    """Bounds of one head, and Q, K, V as [lines, tokens, width] with one line for each query head of each sample."""
    rule, site, moving = work.rules[core.name], work.sites[core.name], work.moving(core)
    wanted = [0] if isinstance(rule, PackedAttention) else [0, 1, 2]
    if moving != wanted or any(core.inputs[i] not in found for i in moving) or len([name for name in core.outputs if name]) != 1:
        return None
    if any(work.is_barred(core, i) for i in moving):
        return None
    xs = work.of(core)
    if any(xs[i] is None for i in moving):
        return None
    given = [found[core.inputs[i]] for i in moving]
    if isinstance(rule, PackedAttention):
        heads = rule.bounds(site, xs)
        lines = None if isinstance(heads, Unknown) or site.has(4) else _packed(site, given[0])
        return None if isinstance(heads, Unknown) or lines is None else (heads, lines)
    if isinstance(rule, (LinearAttention, PairAttention)):
        known = rule.heads(site, xs)
        return None if isinstance(known, Unknown) else (known, _fused(core, given, site.out_shape()[:-2]))
    if not isinstance(rule, (Attention, FusedAttention, MultiHeadAttention)):
        return None
    computation = rule.computation(site, xs)
    if isinstance(computation, Unknown) or computation.past_v is not None or computation.heads.sink or _has_cache(rule, site):
        return None
    if isinstance(rule, FusedAttention):
        return computation.heads, _fused(core, given, site.out_shape()[:-2])
    if isinstance(rule, MultiHeadAttention):
        shifted = _with_bias(site, given)
        count = int(site.attr("num_heads", 0))
        if shifted is None or any(len(layout.shape) != 3 for layout in shifted):
            return None
        return computation.heads, [_split(layout, count) for layout in shifted]
    lines = _separate(core, given, computation.heads.shared)
    return None if lines is None else (computation.heads, lines)


def split_heads(work: Workspace, core: Node, i: int, layout: Layout, shared: int) -> Layout | None:
    """One operand of an attention (0, 1, 2: Q, K, V) as [lines, tokens, width], one line for each query head of each sample."""
    rule, site = work.rules[core.name], work.sites[core.name]
    if isinstance(rule, FusedAttention):
        lead = site.out_shape()[:-2]
        if i == 1 and core.attrs.get("k_transposed", 0):
            rank = len(layout.shape)
            layout = layout.transposed([*range(rank - 2), rank - 1, rank - 2])
        return layout.broadcast((*lead, *layout.shape[-2:])).reshaped(-1, *layout.shape[-2:])
    batch = layout.shape[0]
    if len(layout.shape) == 3:
        names = ("q_num_heads", "kv_num_heads") if isinstance(rule, Attention) else ("num_heads", "kv_num_heads")
        heads = int(site.attr(names[min(i, 1)], 0) or site.attr("num_heads", 0))
        if heads <= 0 or layout.shape[-1] % heads:
            return None
        layout = _split(layout, heads)
    elif len(layout.shape) == 4:
        layout = layout.reshaped(-1, *layout.shape[-2:])
    else:
        return None
    lines, tokens, size = layout.shape
    if i and shared > 1:
        wide = layout.reshaped(batch, lines // batch, 1, tokens, size).broadcast((batch, lines // batch, shared, tokens, size))
        layout = wide.reshaped(-1, tokens, size)
    return layout


def output_places(core: Node, shape: tuple[int, ...], width: int, tokens: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each element of the operator's output its place in [lines, tokens, width], both flat."""
    size = math.prod(shape)
    place = np.arange(size)
    if len(shape) == 3 and core.domain != "lipaudit":  # heads lie inside the rows
        place = place.reshape(shape[0], shape[2] // width, tokens, width).transpose(0, 2, 1, 3).reshape(-1)
    return place


def _has_cache(rule: object, site: Site) -> bool:
    return isinstance(rule, MultiHeadAttention) and (site.has(6) or site.has(7))


def _fused(core: Node, given: list[Layout], lead: tuple[int, ...]) -> list[Layout]:
    """Heads on axes of their own, which may broadcast."""
    if core.attrs.get("k_transposed", 0):
        rank = len(given[1].shape)
        given = [given[0], given[1].transposed([*range(rank - 2), rank - 1, rank - 2]), given[2]]
    wide = [layout.broadcast((*lead, *layout.shape[-2:])) for layout in given]
    return [layout.reshaped(-1, *layout.shape[-2:]) for layout in wide]


def _split(layout: Layout, count: int) -> Layout:
    """[batch, tokens, heads * width] as lines."""
    batch, tokens, whole = layout.shape
    return layout.reshaped(batch, tokens, count, whole // count).transposed((0, 2, 1, 3)).reshaped(batch * count, tokens, whole // count)


def _separate(core: Node, given: list[Layout], shared: int) -> list[Layout] | None:
    """The operator of ONNX: rank 3 or 4, several query heads for one head of K and V."""
    found: list[Layout] = []
    for i, layout in enumerate(given):
        batch = layout.shape[0]
        if len(layout.shape) == 3:
            layout = _split(layout, int(core.attrs["q_num_heads" if i == 0 else "kv_num_heads"]))
        else:
            layout = layout.reshaped(-1, *layout.shape[-2:])
        lines, tokens, size = layout.shape
        if i and shared > 1:
            heads = lines // batch
            layout = (
                layout.reshaped(batch, heads, 1, tokens, size).broadcast((batch, heads, shared, tokens, size)).reshaped(-1, tokens, size)
            )
        found.append(layout)
    return found if all(layout.shape[0] == found[0].shape[0] for layout in found) else None


def _with_bias(site: Site, given: list[Layout]) -> list[Layout] | None:
    """Q, K, V plus their parts of the stored bias."""
    stored = site.constant(3)
    if stored is None:
        return None if site.has(3) else given
    bias = np.asarray(stored.float64(), dtype=np.float64).ravel()
    if bias.size != sum(layout.shape[-1] for layout in given) or not np.all(np.isfinite(bias)):
        return None
    found: list[Layout] = []
    start = 0
    for layout in given:
        found.append(layout.shifted(bias[start : start + layout.shape[-1]]))
        start += layout.shape[-1]
    return found


def _packed(site: Site, x: Layout) -> list[Layout] | None:
    """The projections that ONNX Runtime's Attention makes itself; one product, as elsewhere."""
    weights, heads = site.constant(1), int(site.attr("num_heads", 0))
    if weights is None or len(x.shape) != 3 or not x.is_plain or x.base.weight is not None or heads <= 0:
        return None
    matrix = np.asarray(weights.float64(), dtype=np.float64)
    total = matrix.shape[1]
    sizes = tuple(int(size) for size in site.attr("qkv_hidden_sizes", ()) or (total // 3,) * 3)
    if sum(sizes) != total or any(size % heads for size in sizes) or not np.all(np.isfinite(matrix)):
        return None
    batch, tokens, width = x.shape
    base = Base(total, matrix, x.reshaped(-1, width))
    index = np.arange(batch * tokens * total, dtype=np.int64).reshape(batch, tokens, total)
    stored = site.constant(2)
    bias = np.zeros(total) if stored is None else np.asarray(stored.float64(), dtype=np.float64).ravel()
    if bias.size != total or not np.all(np.isfinite(bias)):
        return None
    found: list[Layout] = []
    start = 0
    for size in sizes:
        part = index[..., start : start + size]
        layout = Layout(base, (Term(part, np.ones(part.shape)),), np.zeros(part.shape)).shifted(bias[start : start + size])
        found.append(_split(layout, heads))
        start += size
    return found
