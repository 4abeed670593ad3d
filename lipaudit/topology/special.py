"""Blocks that their join alone does not name: U-shaped skips, mixtures of experts, recurrences that were unrolled."""

from __future__ import annotations

from collections.abc import Sequence

from lipaudit.graph.ir import Node
from lipaudit.topology.nodes import Roles

__all__ = ["special_kind"]

_UP = frozenset({"ConvTranspose", "DepthToSpace", "Resize", "Upsample", "MaxUnpool"})
_CONCATENATIONS = frozenset({"dense-concat", "concat"})
_GATES = frozenset({"Softmax", "Sigmoid", "Relu"})
_STEPS = 3
"""So many uses of one stored matrix, each behind the one before it, are a recurrence."""


def special_kind(roles: Roles, kind: str, strands: Sequence[Sequence[Node]], join: Node) -> str:
    """What a block is whose join makes it ``kind``; ``strands``: the nodes of its parts."""
    nodes = [node for strand in strands for node in strand]
    if kind in _CONCATENATIONS and _rises(strands):
        return "u-skip"
    if kind in ("other", "concat") and _is_unrolled(roles, nodes):
        return "unrolled-recurrence"
    if kind == "other" and join.kind in ("ai.onnx::Add", "ai.onnx::Sum") and _is_mixture(roles, nodes, join):
        return "mixture-of-experts"
    return kind


def _rises(strands: Sequence[Sequence[Node]]) -> bool:
    """Some parts come from a coarser grid (they enlarge), others stay on the grid of the entry."""
    rising = [any(node.op in _UP for node in strand) for strand in strands if strand]
    return any(rising) and not (all(rising) and len(rising) > 1)


def _is_unrolled(roles: Roles, nodes: Sequence[Node]) -> bool:
    """One stored matrix is applied several times, each time to what the time before led to."""
    depth: dict[str, dict[str, int]] = {}
    for node in nodes:
        reached: dict[str, int] = {}
        for name in roles.reads(node):
            for weight, count in depth.get(name, {}).items():
                reached[weight] = max(reached.get(weight, 0), count)
        if roles.is_dense(node):
            for weight in node.inputs:
                if weight in roles.graph.constants:
                    reached[weight] = reached.get(weight, 0) + 1
                    if reached[weight] >= _STEPS:
                        return True
        if len(reached) > 64:  # that many matrices on one path: no recurrence, and nothing to keep account of
            return False
        depth.update((name, reached) for name in node.outputs if name)
    return False


def _is_mixture(roles: Roles, nodes: Sequence[Node], join: Node) -> bool:
    """All summands are products of an expert, with weights of its own, and of a part of one gate (a Softmax, a Sigmoid)."""
    made = {name: node for node in nodes for name in node.outputs if name}
    summands: list[Node] = []
    stack = [name for name in join.inputs if name in roles.moving]
    while stack:
        node = made.get(stack.pop())
        if node is None:
            return False
        if node.kind in ("ai.onnx::Add", "ai.onnx::Sum") and len(roles.reads(node)) > 1:
            stack.extend(name for name in node.inputs if name in roles.moving)
        else:
            summands.append(node)
    gates = [_gate(roles, made, node) for node in summands]
    return len(summands) >= 2 and None not in gates and len(set(gates)) == 1


def _gate(roles: Roles, made: dict[str, Node], product: Node) -> str | None:
    """The gate of one expert: the activation behind rearrangements of one factor, where weights are behind the other."""
    if product.kind != "ai.onnx::Mul" or len(roles.reads(product)) != 2:
        return None
    for factor, other in (product.inputs, product.inputs[::-1]):
        node = made.get(factor)
        while node is not None and (roles.is_rearrangement(node) or node.op == "Split"):
            node = made.get(roles.reads(node)[0])
        if node is not None and node.op in _GATES and _has_weights(roles, made, other):
            return node.name
    return None


def _has_weights(roles: Roles, made: dict[str, Node], name: str) -> bool:
    """Whether a weight layer lies behind a value, within the block."""
    stack, seen = [name], {name}
    while stack:
        node = made.get(stack.pop())
        if node is None:
            continue
        if roles.is_weight_layer(node):
            return True
        fresh = [operand for operand in roles.reads(node) if operand not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False
