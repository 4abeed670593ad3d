"""Integer inputs that can only be masks of zeros and ones.

Exporters give padding masks as integers and write ``(1 - mask) * -10000`` and ``hidden * mask``. Nothing in the file says that the
integers are 0 or 1; where every use is one of a mask and one of them is ``(1 - mask)`` times a large negative number, the
certificate assumes it, and says so.
"""

from __future__ import annotations

import numpy as np

from lipaudit.graph.ir import Graph, Node

__all__ = ["assumed_masks"]

_CARRYING = frozenset(
    f"ai.onnx::{op}" for op in ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)
_HARMLESS = frozenset(
    f"ai.onnx::{op}"
    for op in (
        "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Not", "ReduceMax", "ReduceMin", "ReduceSum", "Shape", "Size",
    )
)  # fmt: skip
_FORBIDDING = -1e3
"""A factor of ``1 - mask`` that is at most this forbids a key."""


def assumed_masks(graph: Graph) -> tuple[str, ...]:
    """Names of the integer inputs that are used as masks of zeros and ones, and in no other way."""
    return tuple(value.name for value in graph.inputs if not value.is_float and "int" in value.dtype and _is_mask(graph, value.name))


def _is_mask(graph: Graph, name: str) -> bool:
    stack, seen, forbids = [name], {name}, False
    while stack:
        current = stack.pop()
        for user in graph.consumers.get(current, ()):
            if user.kind in _CARRYING and user.inputs[0] == current and user.inputs.count(current) == 1:
                fresh = [output for output in user.outputs if output and output not in seen]
                seen.update(fresh)
                stack.extend(fresh)
            elif user.kind == "ai.onnx::Sub" and user.inputs[1] == current and _scalar(graph, user.inputs[0]) == 1.0:
                forbids = forbids or _is_forbidding(graph, user)
            elif user.kind not in _HARMLESS:
                return False
    return forbids


def _is_forbidding(graph: Graph, complement: Node) -> bool:
    """``1 - mask`` times a large negative number."""
    for user in graph.consumers.get(complement.outputs[0], ()):
        if user.kind != "ai.onnx::Mul":
            continue
        factors = [_scalar(graph, name) for name in user.inputs if name != complement.outputs[0]]
        if factors and factors[0] is not None and factors[0] <= _FORBIDDING:
            return True
    return False


def _scalar(graph: Graph, name: str) -> float | None:
    constant = graph.constants.get(name)
    if constant is None or constant.size != 1 or constant.dtype in ("string", ""):
        return None
    return float(np.asarray(constant.array(), dtype=np.float64).reshape(-1)[0])
