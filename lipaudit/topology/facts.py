"""Facts for guidelines that can be had by looking at the graph alone: norm, residual, attention, stack, node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

import numpy as np

from lipaudit.graph.ir import Graph, Node
from lipaudit.topology.attention_facts import attention_facts
from lipaudit.topology.draft import Draft
from lipaudit.topology.match import View
from lipaudit.topology.node_facts import node_facts
from lipaudit.topology.nodes import NORMALIZATIONS, SKIP_NORMALIZATIONS, Roles
from lipaudit.topology.norms import norm_facts

__all__ = ["annotate"]

_LIMIT = 40


def annotate(simplified: Graph, graph: Graph, moving: frozenset[str], root: Draft) -> Mapping[str, Mapping[str, Any]]:
    """Write facts into the drafts, by namespace, and return those of nodes."""
    roles = Roles(graph, moving)
    stack = [root]
    order: list[Draft] = []
    while stack:
        draft = stack.pop()
        order.append(draft)
        stack.extend(reversed(draft.children))
    for draft in order:
        if len(draft.own) == 1 and (norm := norm_facts(simplified, graph, draft.own[0])) is not None:
            draft.facts["norm"] = norm
        if draft.kind == "residual":
            draft.facts["residual"] = _residual(roles, draft)
        elif draft.kind == "attention":
            draft.facts["attention"] = {**attention_facts(roles, draft), **draft.facts.get("attention", {})}
        _in_sequence(draft.children)
    for draft in order:
        if draft.kind == "stack":
            draft.facts["stack"] = _stack(draft)
    root.facts["model"] = _depth(roles)
    _after_stacks(roles, root)
    return node_facts(View(graph, moving), simplified)


def _depth(roles: Roles) -> dict[str, int]:
    """Weight layers, and the longest chain of them."""
    depth: dict[str, int] = {}
    count = deepest = 0
    for node in roles.graph.nodes:
        weight = int(roles.is_weight_layer(node) and bool(roles.reads(node)))
        count += weight
        reached = weight + max((depth.get(name, 0) for name in roles.reads(node)), default=0)
        deepest = max(deepest, reached)
        depth.update(dict.fromkeys((name for name in node.outputs if name), reached))
    return {"weight_layers": count, "depth": deepest}


def _in_sequence(children: Sequence[Draft]) -> None:
    """What depends on the neighbours: a norm after a join, attentions in a row."""
    row = 0
    for i, child in enumerate(children):
        if child.kind == "attention":
            row += 1
            child.facts["attention"] = {"serial": row}
        elif child.kind in ("residual", "dense-concat", "gate", "concat", "mlp", "mixture-of-experts", "u-skip"):
            row = 0
        if child.kind == "residual" and i + 1 < len(children) and children[i + 1].kind == "normalization":
            child.facts["post"] = True


# ---------------------------------------------------------------------- residual blocks


def _residual(roles: Roles, draft: Draft) -> dict[str, Any]:
    branches = [child for child in draft.children if child.role == "branch"]
    shortcut = next((child for child in draft.children if child.role == "shortcut"), None)
    join = draft.children[-1].own[-1]
    pre = any(_begins_with_norm(roles, branch) for branch in branches)
    post = bool(draft.facts.pop("post", False))
    if join.kind in SKIP_NORMALIZATIONS:
        carried = (len(join.outputs) > 3 and bool(roles.graph.consumers.get(join.outputs[3]))) or any(
            map(roles.is_carried_sum, join.inputs[:2])
        )
        pre, post = pre or carried, not carried
    scale = max((_factor(roles, branch) for branch in branches), default=1.0)
    return {
        "branch_scale": scale,
        "shortcut_scale": _factor(roles, shortcut) if shortcut is not None and draft.facts.get("shortcut") == "scaled" else 1.0,
        "branch_zero": bool(branches) and all(_is_zero(roles, branch, join) for branch in branches),
        "norm_position": {(True, False): "pre", (False, True): "post", (True, True): "both", (False, False): "none"}[pre, post],
    }


def _begins_with_norm(roles: Roles, branch: Draft) -> bool:
    for node in branch.nodes():
        if not roles.is_rearrangement(node):
            return node.kind in NORMALIZATIONS or node.kind == "ai.onnx::BatchNormalization"
    return False


def _tail(roles: Roles, branch: Draft) -> list[Node]:
    """Linear nodes at the end of a branch, last first, down to its last weight layer (included)."""
    nodes = branch.nodes()
    inside = {node.name for node in nodes}
    found: list[Node] = []
    node: Node | None = nodes[-1] if nodes else None
    while node is not None and node.name in inside and (roles.is_linear(node) or roles.is_identity(node)) and len(found) < _LIMIT:
        found.append(node)
        if roles.is_weight_layer(node):
            break
        node = roles.graph.producer.get(roles.reads(node)[0])
    return found


def _factor(roles: Roles, branch: Draft) -> float:
    """Product of constant factors at the end of a branch; the largest element of a vector (LayerScale)."""
    factor = 1.0
    for node in _tail(roles, branch):
        if node.kind == "ai.onnx::Neg":
            factor = -factor
        if node.kind not in ("ai.onnx::Mul", "ai.onnx::Div"):
            continue
        constant = next((roles.graph.constants[name] for name in node.inputs if name in roles.graph.constants), None)
        if constant is None or not constant.size:
            continue
        values = np.abs(constant.float64()) if constant.size > 1 else constant.float64()
        with np.errstate(divide="ignore"):
            factor *= float(np.max(values)) if node.op == "Mul" else float(np.max(1.0 / values))
    return factor


def _is_zero(roles: Roles, branch: Draft, join: Node) -> bool:
    """True if the branch adds exactly nothing: a factor of its linear tail is zero and nothing is added after it."""
    constants = roles.graph.constants

    def zero(name: str) -> bool:
        constant = constants.get(name)
        if constant is None:
            return False
        return constant.fill == 0 if constant.fill is not None else not np.any(constant.array())

    def absent(node: Node, i: int) -> bool:
        return i >= len(node.inputs) or not node.inputs[i] or zero(node.inputs[i])

    if join.kind == "com.microsoft::SkipLayerNormalization" and not absent(join, 4):
        return False
    for node in _tail(roles, branch):
        stored = [name for name in node.inputs if name and name not in roles.moving]
        if node.op in ("Add", "Sub"):
            if not all(zero(name) for name in stored):
                return False
        elif node.op == "Mul":
            if any(zero(name) for name in stored):
                return True
        elif node.op == "BatchNormalization":
            if not absent(node, 2):
                return False  # approximately: a mean could cancel a shift
            if zero(node.inputs[1]):
                return True
            if not absent(node, 3):
                return False
        elif roles.is_weight_layer(node):
            operand = 1 if node.inputs[0] in roles.moving else 0
            return (
                node.kind in ("ai.onnx::Conv", "ai.onnx::ConvTranspose", "ai.onnx::Gemm", "ai.onnx::MatMul")
                and zero(node.inputs[operand])
                and absent(node, 2)
            )
    return False


# ---------------------------------------------------------------------- stacks


def _stack(draft: Draft) -> dict[str, Any]:
    """Facts over the residual blocks of a stack."""
    blocks = [
        item for layer in draft.children for item in ([layer] if layer.kind == "residual" else layer.children) if item.kind == "residual"
    ]
    facts = [block.facts["residual"] for block in blocks]
    positions = {fact["norm_position"] for fact in facts}
    drift = 0.0
    for fact in facts:
        shortcut, branch = abs(fact["shortcut_scale"]), abs(fact["branch_scale"])
        if shortcut > 0 and not 0.9 <= shortcut**2 + branch**2 <= 1.1:
            drift += log10(shortcut)
    post = [fact for fact in facts if fact["norm_position"] in ("post", "both")]
    return {
        "blocks": len(blocks),
        "norm_position": positions.pop() if len(positions) == 1 else "none",
        "post_norm_blocks": len(post),
        "deepnorm": any(fact["shortcut_scale"] > 1 for fact in post),
        "shortcut_drift": abs(drift),
        "final_norm": False,
        "reaches_output": False,
    }


def _after_stacks(roles: Roles, root: Draft) -> None:
    """Whether a norm comes between the last join of a stack and the outputs, and whether the stack reaches them."""
    for i, child in enumerate(root.children):
        if child.kind != "stack":
            continue
        rest = [node for later in root.children[i + 1 :] for node in later.nodes()]
        blocks = any(later.kind in ("stack", "residual") for later in root.children[i + 1 :])
        norms = [node for node in rest if node.kind in NORMALIZATIONS]
        child.facts["stack"]["final_norm"] = not blocks and (bool(norms) or child.facts["stack"]["norm_position"] in ("post", "both"))
        child.facts["stack"]["reaches_output"] = not blocks
