"""Features of linear attention that change by no more than themselves: ``0 <= phi'(u) <= phi(u)`` for all u.

``exp``: equal. ``1 + elu`` (alpha = 1): ``exp(u)`` below 0; above, ``1 <= 1 + u``. Softplus, with ``s = exp(u)``:
``s/(1 + s) <= log(1 + s)``. Sigmoid: ``phi' = phi (1 - phi)``. A constant >= 0 added to such a feature only makes it larger.
"""

from __future__ import annotations

from lipaudit.certify.methods.workspace import Workspace
from lipaudit.graph.ir import Node

__all__ = ["is_relative"]

_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
_ALONE = frozenset({"Exp", "Softplus", "Sigmoid"})
_LIMIT = 16


def is_relative(work: Workspace, core: Node, i: int) -> bool:
    """Whether input ``i`` of an attention is such a function of what lies behind it, up to the order of its elements."""
    name, added = core.inputs[i], 0.0
    for _ in range(_LIMIT):
        node = work.graph.producer.get(name)
        if node is None or node.domain or len(work.moving(node)) != 1 or (node.op != "Add" and work.moving(node) != [0]):
            return False
        if node.op in _MOVES:
            name = node.inputs[0]
        elif node.op == "Add":
            at = work.moving(node)[0]
            constant = work.graph.constants.get(node.inputs[1 - at])
            if constant is None or constant.size != 1 or not 0 <= float(constant.float64().reshape(-1)[0]) < float("inf"):
                return False
            added += float(constant.float64().reshape(-1)[0])
            name = node.inputs[at]
        elif node.op in _ALONE:
            return True
        else:
            return node.op == "Elu" and float(node.attrs.get("alpha", 1.0)) == 1.0 and added >= 1.0
    return False
