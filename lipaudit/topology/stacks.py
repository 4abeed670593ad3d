"""The outermost sequence: stem, rows of equal blocks, head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipaudit.graph.ir import Graph
from lipaudit.topology.draft import Draft

__all__ = ["arrange"]

_BLOCKS = frozenset(
    {"residual", "dense-concat", "concat", "gate", "attention", "mixture-of-experts", "stack", "u-skip", "unrolled-recurrence"}
)
_LONGEST_PERIOD = 6


def arrange(graph: Graph, items: Sequence[Draft], *, from_embeddings: bool) -> list[Draft]:
    """Stem, stacks, blocks and head of a model whose outermost items are ``items``."""
    blocks = [i for i, item in enumerate(items) if item.kind in _BLOCKS]
    if not blocks:
        return list(items)
    first, last = blocks[0], blocks[-1]
    while last + 1 < len(items) and items[last + 1].kind in ("activation", "normalization") and last + 2 < len(items):
        last += 1
    found: list[Draft] = []
    if first:
        stem = list(items[:first])
        found.append(_named("embedding" if from_embeddings else "stem", stem))
    found.extend(_stacked(graph, items[first : last + 1]))
    if last + 1 < len(items):
        found.append(_named("head", list(items[last + 1 :])))
    return found


def _named(role: str, items: list[Draft]) -> Draft:
    return Draft(role, children=items, role=role) if len(items) > 1 else items[0].as_role(role)


def _stacked(graph: Graph, items: Sequence[Draft]) -> list[Draft]:
    """Rows of at least two equal periods, each with a block, become stacks; the longest row wins."""
    signatures = [_signature(graph, item) for item in items]
    found: list[Draft] = []
    i = 0
    while i < len(items):
        best, period = 0, 0
        for length in range(1, min(_LONGEST_PERIOD, (len(items) - i) // 2) + 1):
            if not any(item.kind in _BLOCKS for item in items[i : i + length]):
                continue
            count = 1
            while signatures[i + count * length : i + (count + 1) * length] == signatures[i : i + length]:
                count += 1
            if count > 1 and count * length > best:
                best, period = count * length, length
        if not best:
            found.append(items[i])
            i += 1
            continue
        layers = [items[k : k + period] for k in range(i, i + best, period)]
        children = [layer[0].as_role("layer") if period == 1 else Draft("layer", children=list(layer), role="layer") for layer in layers]
        found.append(Draft("stack", children=children, facts={"layers": len(layers)}))
        i += best
    return found


def _signature(graph: Graph, item: Draft) -> tuple[Any, ...]:
    """Equal for regions that compute the same with other weights."""
    nodes = item.nodes()
    return (item.kind, *((node.kind, graph.value(node.outputs[0]).shape if node.outputs else None) for node in nodes))
