"""Facts about attention regions (namespace "attention"): kind, heads, scale, mask and bias, cache, what turns queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from lipaudit.graph.ir import Node
from lipaudit.topology.draft import Draft
from lipaudit.topology.match import View
from lipaudit.topology.nodes import ATTENTION, NORMALIZATIONS, Roles
from lipaudit.topology.patterns.masks import lowest_finite

__all__ = ["attention_facts", "bias_kind", "cached"]

_LIMIT = 40
_LARGEST = 1 << 24
_PAST = {
    "ai.onnx::Attention": (4, 5),
    "com.microsoft::Attention": (4,),
    "com.microsoft::MultiHeadAttention": (6, 7),
    "com.microsoft::DecoderMaskedMultiHeadAttention": (5, 6),
    "com.microsoft::GroupQueryAttention": (3, 4),
}
"""Inputs that hold past keys and values."""
_BIASES = {
    "ai.onnx::Attention": 3,
    "com.microsoft::Attention": 5,
    "com.microsoft::MultiHeadAttention": 5,
    "com.microsoft::GroupQueryAttention": 10,
    "lipaudit::Attention": 3,
    "lipaudit::PairAttention": 3,
}
"""The input that is added to the scores."""
_MASKS = {
    "com.microsoft::Attention": (3, 5),
    "com.microsoft::MultiHeadAttention": (4, 5),
    "com.microsoft::GroupQueryAttention": (10,),
}
"""Inputs that say who attends whom or are added to the scores; the fourth elsewhere."""


def attention_facts(roles: Roles, draft: Draft) -> dict[str, Any]:
    """Facts of an attention region."""
    node = next(node for node in draft.nodes() if node.kind in ATTENTION)
    view = View(roles.graph, roles.moving)
    query = roles.graph.value(node.inputs[0]).shape
    heads, dim = _heads(node, query)
    given = node.attrs.get("scale")
    scale = float(given) if given else (1 / sqrt(dim) if dim else None)
    separate = node.kind in ("lipaudit::Attention", "ai.onnx::Attention")
    norms = [_norm_behind(roles, name) for name in node.inputs[:2]] if separate else [None, None]
    mask = next((node.inputs[i] for i in _MASKS.get(node.kind, (3,)) if i < len(node.inputs) and node.inputs[i]), "")
    if node.op in ("LinearAttention", "L2Attention"):
        scale = None
    return {
        "kind": _kind(node, norms),
        "heads": heads,
        "head_dim": dim,
        "scale": scale,
        "scale_ratio": scale * sqrt(dim) if scale is not None and dim else None,
        "qk_norm": None not in norms,
        "softcap": float(node.attrs.get("softcap", 0.0)),
        "causal": node.op == "GroupQueryAttention"
        or any(int(node.attrs.get(name, 0)) for name in ("causal", "is_causal", "unidirectional")),
        "masked": bool(mask),
        "mask_min": lowest_finite(view, mask) if mask else None,
        "kv_heads": _kv_heads(roles, node, heads),
        "cached": cached(roles, node),
        "cross": _is_cross(roles, draft, node),
        "rotary": _is_rotary(draft, node),
        "bias": bias_kind(roles, node),
        "serial": 1,  # corrected by what stands before it in a sequence
    }


def _kind(node: Node, norms: Sequence[str | None]) -> str:
    """dot, cosine, l2, linear, sigmoid or relu."""
    if node.kind == "lipaudit::PairAttention":
        return str(node.attrs["activation"])
    named = {"lipaudit::LinearAttention": "linear", "lipaudit::L2Attention": "l2"}
    return named.get(node.kind, "cosine" if list(norms) == ["l2", "l2"] else "dot")


def _heads(node: Node, query: tuple[int, ...] | None) -> tuple[int | None, int | None]:
    """Number of heads and their width, from the attributes or the layout [.., heads, tokens, width]."""
    count = node.attrs.get("num_heads") or node.attrs.get("q_num_heads")
    dims = list(query or ())
    if not dims:
        return (int(count) if count else None), None
    if count and len(dims) <= 3:
        width = dims[-1]
        if node.op in ("Attention", "QAttention") and node.domain == "com.microsoft":
            sizes = node.attrs.get("qkv_hidden_sizes")
            width = int(sizes[0]) if sizes else width
        return int(count), width // int(count)
    return (dims[-3] if len(dims) > 3 else 1), dims[-1]


def _norm_behind(roles: Roles, name: str) -> str | None:
    """Kind of the normalization between a projection and the queries or keys; None if there is none."""
    stack, seen = [name], {name}
    while stack and len(seen) < _LIMIT:
        node = roles.graph.producer.get(stack.pop())
        if node is None:
            continue
        if node.kind in NORMALIZATIONS:
            return str(node.attrs.get("kind", "norm"))
        if roles.is_weight_layer(node) or not (roles.is_linear(node) or roles.is_linear_join(node)):
            continue
        fresh = [operand for operand in roles.reads(node) if operand not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return None


# ---------------------------------------------------------------------- keys and values


def _behind(roles: Roles, name: str) -> list[Node]:
    """Nodes behind ``name`` down to its projection: what is linear, and joins of it."""
    found: list[Node] = []
    stack, seen = [name], {name}
    while stack and len(found) < _LIMIT:
        node = roles.graph.producer.get(stack.pop())
        if node is None:
            continue
        found.append(node)
        if roles.is_weight_layer(node) or not (roles.is_linear(node) or roles.is_linear_join(node) or node.kind in NORMALIZATIONS):
            continue
        fresh = [operand for operand in roles.reads(node) if operand not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return found


def _kv_heads(roles: Roles, node: Node, heads: int | None) -> int | None:
    """Heads of keys and values: fewer than query heads where they are shared (grouped queries; 1: multi-query)."""
    given = node.attrs.get("kv_num_heads")
    if given:
        return int(given)
    if node.domain == "com.microsoft" or heads is None or len(node.inputs) < 2:
        return heads
    shape = roles.graph.value(node.inputs[1]).shape
    if shape is not None and len(shape) > 3 and shape[-3] < heads:
        return shape[-3]
    for behind in _behind(roles, node.inputs[1]):
        if behind.kind not in ("ai.onnx::Expand", "ai.onnx::Tile"):
            continue
        own, wide = roles.graph.value(behind.inputs[0]).shape, roles.graph.value(behind.outputs[0]).shape
        if own and wide and 0 < np.prod(own) < np.prod(wide):
            copies = int(np.prod(wide) // np.prod(own))
            return heads // copies if heads % copies == 0 else heads
    return heads


def cached(roles: Roles, node: Node) -> bool:
    """Whether past keys or values come in beside those of the new tokens."""
    sizes = (roles.graph.value(node.inputs[i]).shape for i in _PAST.get(node.kind, ()) if i < len(node.inputs) and node.inputs[i])
    if any(shape is None or 0 not in shape for shape in sizes):
        return True
    for name in node.inputs[1:3]:
        for behind in _behind(roles, name) if name else ():
            if behind.kind != "ai.onnx::Concat":
                continue
            parts = [name for name in behind.inputs if roles.graph.producer.get(name) is None and name in roles.moving]
            if parts and len(roles.reads(behind)) > 1:
                return True
    return False


def _is_cross(roles: Roles, draft: Draft, node: Node) -> bool:
    """Whether queries come from another value than keys and values."""
    if len(node.inputs) < 3 or not node.inputs[1] or not node.inputs[2]:
        return False
    inside = {name: owner for owner in draft.nodes() for name in owner.outputs if name}
    ends: list[set[str]] = []
    for name in node.inputs[:2]:
        found: set[str] = set()
        stack, seen = [name], {name}
        while stack:
            current = stack.pop()
            owner = inside.get(current)
            if owner is None:
                found.add(current)
                continue
            fresh = [operand for operand in roles.reads(owner) if operand not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        ends.append(found)
    return bool(ends[0]) and bool(ends[1]) and ends[0].isdisjoint(ends[1])


def _is_rotary(draft: Draft, node: Node) -> bool:
    """Whether queries and keys are turned by their positions: in the operator, by an operator, or spelled out."""
    if int(node.attrs.get("do_rotary", 0)) or any(part.op == "RotaryEmbedding" for part in draft.nodes()):
        return True
    stack = list(draft.children)
    while stack:
        child = stack.pop()
        if child.facts.get("rotary"):
            return True
        stack.extend(child.children)
    return False


# ---------------------------------------------------------------------- biases


def bias_kind(roles: Roles, node: Node) -> str:
    """What is added to the scores.

    "none"; "moving"; "unknown" (it depends on integers, or is not stored); "mask" (only zeros and numbers that exclude); "alibi" (in each
    head and row linear in the position of the key, as of Press, Smith, Lewis 2022); "relative" (depends on the distance of query and key
    alone); "absolute" (any other stored bias).
    """
    i = _BIASES.get(node.kind, -1)
    name = node.inputs[i] if 0 <= i < len(node.inputs) else ""
    if not name:
        return "none"
    if name in roles.moving:
        return "moving"
    constant = roles.graph.constants.get(name)
    if constant is None or constant.size > _LARGEST:
        return "unknown"
    if constant.dtype == "bool":
        return "mask"
    bias = np.asarray(constant.float64(), dtype=np.float64)
    live = bias > -1e4
    if not np.any(bias[live]):
        return "mask"
    if bias.ndim < 2 or bias.shape[-1] < 3:
        return "absolute"
    top = float(np.max(np.abs(bias[live])))
    steps = np.diff(np.where(live, bias, np.nan), axis=-1)
    known = steps[~np.isnan(steps)]
    bends = np.diff(steps, axis=-1)
    bends = bends[~np.isnan(bends)]
    flat = 1e-5 * top  # stored in float32
    per_head = np.where(np.isnan(steps), 0.0, steps).reshape(-1, *steps.shape[-2:])
    same = all(np.ptp(head[head != 0]) <= flat for head in per_head if np.any(head))
    if known.size and np.any(np.abs(known) > flat) and bends.size and np.all(np.abs(bends) <= flat) and same:
        return "alibi"
    queries = bias.shape[-2]
    full = np.where(live, bias, np.nan)
    diagonals = full[..., 1:, 1:] - full[..., :-1, :-1]
    if queries > 1 and diagonals.size and np.all(np.abs(diagonals[~np.isnan(diagonals)]) <= flat):
        return "relative"
    return "absolute"
