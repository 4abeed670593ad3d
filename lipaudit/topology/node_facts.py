"""Facts about single nodes that only their surroundings tell (namespace "node")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lipaudit.graph.ir import Graph, Node
from lipaudit.topology.match import View

__all__ = ["node_facts"]

_SHAPING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Dropout", "Expand"})
_LIMIT = 16


def node_facts(view: View, simplified: Graph) -> Mapping[str, Mapping[str, Any]]:
    """By node name, only for nodes of which something is true. ``simplified``: the graph before computations were fused."""
    found: dict[str, dict[str, Any]] = {}
    before_fusion = View(simplified, view.moving)
    exponentials = {node.name: node for node in simplified.nodes if node.kind == "ai.onnx::Exp"}
    for node in view.graph.nodes:
        if node.domain or not any(name in view.moving for name in node.inputs):
            continue
        if node.op == "Log" and _softmax_behind(view, node.inputs[0], scaling=False) is not None:
            found.setdefault(node.name, {})["log_of_softmax"] = True
        elif node.op == "Softmax" and any(_is_bare(before_fusion, exponentials[name]) for name in node.covers if name in exponentials):
            found.setdefault(node.name, {})["bare_exp_sum"] = True
        elif node.op in ("Softmax", "LogSoftmax"):
            before = _softmax_behind(view, node.inputs[0], scaling=True)
            if before is not None and _same_axis(view, before, node):
                found.setdefault(node.name, {})["softmax_of_softmax"] = True
        elif node.op == "Exp" and _is_bare(view, node):
            found.setdefault(node.name, {})["bare_exp_sum"] = True
    return found


def _softmax_behind(view: View, name: str, *, scaling: bool) -> Node | None:
    """A Softmax behind ``name``, with nothing but shape operators (and constant factors) between."""
    for _ in range(_LIMIT):
        node = view.producer(name)
        if node is None or node.domain:
            return None
        if node.op == "Softmax":
            return node
        if node.op in _SHAPING:
            name = node.inputs[0]
            continue
        scale = next((i for i, operand in enumerate(node.inputs) if view.scalar(operand) is not None), None)
        if not scaling or node.op not in ("Mul", "Div") or scale is None or (node.op == "Div" and scale == 0):
            return None
        name = node.inputs[1 - scale]
    return None


def _same_axis(view: View, first: Node, second: Node) -> bool:
    """True if both normalise over the last axis, or over the same one of equal shapes."""
    one, two = view.shape(first.inputs[0]), view.shape(second.inputs[0])
    if one is None or two is None:
        return False
    a = int(first.attrs.get("axis", -1 if first.version >= 13 else 1)) % len(one)
    b = int(second.attrs.get("axis", -1 if second.version >= 13 else 1)) % len(two)
    return (a == len(one) - 1 and b == len(two) - 1) or (one == two and a == b)


def _is_bare(view: View, exp: Node) -> bool:
    """``exp(x) / sum exp(x)`` where x had no maximum taken off."""
    value = exp.outputs[0]
    total = next((user for user in view.users(value) if not user.domain and user.op == "ReduceSum" and user.inputs[0] == value), None)
    if total is None:
        return False
    divided = total.outputs[0]
    for _ in range(_LIMIT):
        user = next((u for u in view.users(divided) if not u.domain and (u.op in _SHAPING or u.op == "Div")), None)
        if user is None:
            return False
        if user.op == "Div":
            return user.inputs == (value, divided) and not _has_maximum_off(view, exp.inputs[0])
        divided = user.outputs[0]
    return False


def _has_maximum_off(view: View, name: str) -> bool:
    """True if ``name`` is ``a - max(a)``, the maximum by way of reshapes or of Max with -inf."""
    for _ in range(_LIMIT):
        node = view.producer(name)
        if node is None or node.domain:
            return False
        if node.op == "Sub":
            return _leads_to_maximum(view, node.inputs[1])
        if node.op not in _SHAPING:
            return False
        name = node.inputs[0]
    return False


def _leads_to_maximum(view: View, name: str) -> bool:
    stack, seen = [name], {name}
    while stack and len(seen) < _LIMIT:
        node = view.producer(stack.pop())
        if node is None or node.domain:
            continue
        if node.op in ("ReduceMax", "TopK"):
            return True
        if node.op in _SHAPING or node.op in ("Max", "Where", "Mul"):
            fresh = [operand for operand in node.inputs if operand and operand not in seen]
            seen.update(fresh)
            stack.extend(fresh)
    return False
