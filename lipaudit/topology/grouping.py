"""Sequences: what follows each other on a spine, grouped into affine chains, MLPs and attention with its projections."""

from __future__ import annotations

from collections.abc import Sequence

from lipaudit.topology.draft import Draft
from lipaudit.topology.nodes import SATURATING, Roles

__all__ = ["group", "runs", "sequence"]

_BRIDGED = frozenset(
    {"residual", "dense-concat", "concat", "gate", "other", "affine-block", "mixture-of-experts", "u-skip", "unrolled-recurrence"}
)
"""Blocks in which a sum, a concatenation or a gate bridges the weight layers."""


def sequence(roles: Roles, items: Sequence[Draft]) -> Draft:
    """One region of items that follow each other: the item itself if there is only one after grouping, else a chain."""
    grouped = group(roles, items)
    if len(grouped) == 1:
        found = grouped[0]
    else:
        found = Draft("chain", children=grouped)
    if not any(found is item for item in items) or found.own:
        found.is_sequence = True
        found.facts["region"] = runs(roles, items)
    return found


def group(roles: Roles, items: Sequence[Draft]) -> list[Draft]:
    """Attention takes in its projections, runs of linear nodes become affine chains, linear-activation-linear an MLP."""
    return _mlps(roles, _affine_chains(roles, _projections(roles, items)))


def runs(roles: Roles, items: Sequence[Draft]) -> dict[str, int]:
    """Longest run of weight layers that no shortcut bridges, and of weight layers followed by a saturating activation."""
    longest = current = saturating = saturated = 0
    pending = False
    for item in items:
        if item.kind in _BRIDGED:
            current = saturated = 0
            pending = False
        elif item.own and len(item.own) == 1:
            node = item.own[0]
            if roles.is_weight_layer(node):
                current += 1
                pending = True
            elif item.kind == "normalization":
                saturated, pending = 0, False
            elif item.kind == "activation" and pending:
                saturated = saturated + 1 if node.kind in SATURATING else 0
                pending = False
        else:  # attention and the like: one layer of projections
            current += 1
            saturated, pending = 0, False
        longest, saturating = max(longest, current), max(saturating, saturated)
    return {"run_without_shortcut": longest, "saturating_run": saturating}


# ---------------------------------------------------------------------- attention


def _projections(roles: Roles, items: Sequence[Draft]) -> list[Draft]:
    """Each attention with the packed projection before its Split and the output projection after it."""
    found: list[Draft] = []
    i = 0
    while i < len(items):
        item = items[i]
        i += 1
        if item.kind not in ("attention", "attention-core"):
            found.append(item)
            continue
        region = item if item.kind == "attention" else Draft("attention", children=[item.as_role("core")])
        if region.children and region.children[0].role == "split":
            start = _packed(roles, found)
            if start < len(found):
                region.children.insert(0, _affine(roles, found[start:]).as_role("query-key-value"))
                del found[start:]
        end = _output(roles, items, i)
        if end > i:
            region.children.append(_affine(roles, items[i:end]).as_role("output"))
            i = end
        found.append(region)
    return found


def _packed(roles: Roles, before: Sequence[Draft]) -> int:
    """Where the projection into packed queries, keys and values begins; the end if there is none."""
    k = len(before)
    while k and _is_linear_leaf(roles, before[k - 1]) and not _has_weights(roles, before[k - 1]):
        k -= 1
    if not k or not _has_weights(roles, before[k - 1]) or not _is_projection(roles, before[k - 1]):
        return len(before)
    k -= 1
    while k and before[k - 1].own and len(before[k - 1].own) == 1 and roles.is_identity(before[k - 1].own[0]):
        k -= 1
    return k


def _output(roles: Roles, items: Sequence[Draft], start: int) -> int:
    """Where the output projection after an attention ends; ``start`` if there is none."""
    k = start
    while k < len(items) and _is_linear_leaf(roles, items[k]) and not _has_weights(roles, items[k]):
        k += 1
    if k == len(items) or not _has_weights(roles, items[k]) or not _is_projection(roles, items[k]):
        return start
    k += 1
    while k < len(items) and _is_linear_leaf(roles, items[k]) and not _has_weights(roles, items[k]):
        k += 1
    return k


def _is_projection(roles: Roles, item: Draft) -> bool:
    return _is_linear_leaf(roles, item) or item.kind == "quantized"


def _is_linear_leaf(roles: Roles, item: Draft) -> bool:
    return len(item.own) == 1 and roles.is_linear(item.own[0])


def _has_weights(roles: Roles, item: Draft) -> bool:
    return any(roles.is_weight_layer(node) for node in item.nodes())


# ---------------------------------------------------------------------- affine chains


def _affine_chains(roles: Roles, items: Sequence[Draft]) -> list[Draft]:
    """Maximal runs of linear nodes; a layer with dynamic quantization is one of them."""
    found: list[Draft] = []
    run: list[Draft] = []
    for item in items:
        if _is_linear_leaf(roles, item) or (item.kind == "quantized" and _is_dynamic(item)):
            run.append(item)
            continue
        if run:
            found.append(_affine(roles, run))
            run = []
        found.append(item)
    if run:
        found.append(_affine(roles, run))
    return found


def _is_dynamic(item: Draft) -> bool:
    """A layer quantised on the fly: several nodes, or one that stands for them."""
    return len(item.own) > 1 or any(node.kind == "com.microsoft::DynamicQuantizeMatMul" for node in item.own)


def _affine(roles: Roles, run: Sequence[Draft]) -> Draft:
    """One region of linear leaves: a pooling, a normalization if it is that alone, else an affine chain.

    A chain that holds a batch normalization has one child a node, because facts about it are wanted by itself.
    """
    if len(run) == 1:
        return run[0]
    nodes = [node for item in run for node in item.nodes()]
    if any(roles.is_average(node) for node in nodes) and all(roles.is_average(node) or roles.is_rearrangement(node) for node in nodes):
        return Draft("pooling", tuple(nodes))
    if not all(roles.is_linear(node) for node in nodes):
        return Draft("quantized", tuple(nodes))
    if any(item.kind == "normalization" for item in run):
        return Draft("affine-chain", children=list(run))
    return Draft("affine-chain", tuple(nodes))


# ---------------------------------------------------------------------- MLPs


def _mlps(roles: Roles, items: Sequence[Draft]) -> list[Draft]:
    """Dense, activation, dense (and so on); also a gate of two dense branches, followed by a dense layer."""
    found: list[Draft] = []
    i = 0
    while i < len(items):
        end, gated = i, False
        if _is_dense(roles, items[i]):
            while end + 2 < len(items) and items[end + 1].kind == "activation" and _is_dense(roles, items[end + 2]):
                end += 2
        elif _is_dense_gate(roles, items[i]) and i + 1 < len(items) and _is_dense(roles, items[i + 1]):
            end, gated = i + 1, True
        if end > i:
            found.append(Draft("mlp", children=list(items[i : end + 1]), facts={"gated": gated}))
        else:
            found.append(items[i])
        i = end + 1
    return found


def _is_dense(roles: Roles, item: Draft) -> bool:
    return item.kind in ("affine-chain", "quantized") and any(roles.is_dense(node) for node in item.nodes())


def _is_dense_gate(roles: Roles, item: Draft) -> bool:
    parts = [child for child in item.children if child.role == "part"]
    return item.kind == "gate" and len(parts) == 2 and all(any(roles.is_dense(node) for node in part.nodes()) for part in parts)
