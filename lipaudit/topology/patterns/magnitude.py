"""The length of what is spread over several values, element by element: ``sqrt(x^2 + y^2 + .. + e)``.

Spectrograms write the magnitude of a complex number so. Root and squares alone have no bound at 0 and on all reals; together they are
1-Lipschitz. Two parts that are disjoint slices of one value along one axis are read as that value: they move together at most as it does.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View, float_above

__all__ = ["magnitude"]

_MOST = 16


def magnitude(view: View, root: Node) -> Match | None:
    """Pivot Sqrt, or Pow with exponent 1/2."""
    if root.op == "Pow" and view.scalar(root.inputs[1]) != 0.5:
        return None
    nodes, parts, epsilon = [root], [], Fraction(0)
    stack = [root.inputs[0]]
    while stack:
        name, passed = view.behind(stack.pop())
        nodes += passed
        constant = view.scalar(name)
        if constant is not None:
            if not constant >= 0 or constant == float("inf"):
                return None
            epsilon += Fraction(constant)
            continue
        node = view.producer(name)
        if node is None or node.domain or len(nodes) > _MOST:
            return None
        if node.op in ("Add", "Sum"):
            stack += reversed(node.inputs)
        elif (node.op == "Pow" and view.scalar(node.inputs[1]) == 2.0) or (node.op == "Mul" and node.inputs[0] == node.inputs[1]):
            parts.append(node.inputs[0])
        else:
            return None
        nodes.append(node)
    if not parts or any(part not in view.moving for part in parts):
        return None
    final = root.outputs[0]
    for part in parts:
        view.same_shape(final, part)
    if view.shape(final) is None:
        raise Mismatch("the shapes of its parts are unknown")
    attrs: dict[str, object] = {"epsilon": float_above(epsilon) if epsilon else 0.0, "axis": -1, "begins": (), "count": 0}
    halves = _slices(view, parts, {node.name for node in nodes})
    if halves is not None:
        value, axis, begins, count, slices = halves
        fused = Node("", "Magnitude", (value,), (final,), "lipaudit", 1, {**attrs, "axis": axis, "begins": begins, "count": count})
        return Match(fused, view.close([*nodes, *slices], final))
    return Match(Node("", "Magnitude", tuple(parts), (final,), "lipaudit", 1, attrs), view.close(nodes, final))


def _slices(view: View, parts: list[str], inside: set[str]) -> tuple[str, int, tuple[int, ...], int, list[Node]] | None:
    """The value, the axis, where each part begins and their length, if all are disjoint slices of one value that nothing else reads."""
    nodes = [view.made_by(part, "Slice") for part in parts]
    slices = [node for node in nodes if node is not None and len(node.inputs) >= 4]
    if len(parts) < 2 or len(slices) != len(parts) or len({node.inputs[0] for node in slices}) != 1:
        return None
    value = slices[0].inputs[0]
    shape, own = view.shape(value), view.shape(parts[0])
    if shape is None or own is None or any(part in view.outputs or {u.name for u in view.users(part)} - inside for part in parts):
        return None
    found: list[tuple[int, int]] = []
    for node in slices:
        starts, ends, axes = (view.constant(name) for name in node.inputs[1:4])
        steps = view.constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else None
        if starts is None or ends is None or axes is None or starts.size != 1 or (steps is not None and steps.array().reshape(-1)[0] != 1):
            return None
        if len(node.inputs) > 4 and node.inputs[4] and steps is None:
            return None
        axis = int(axes.array().reshape(-1)[0]) % len(shape)
        start = int(starts.array().reshape(-1)[0])
        found.append((axis, min(max(start + shape[axis] if start < 0 else start, 0), shape[axis])))
    axis, count = found[0][0], own[found[0][0]]
    begins = tuple(begin for _, begin in found)
    ordered = sorted(begins)
    if any(a != axis for a, _ in found) or any(later - earlier < count for earlier, later in pairwise(ordered)):
        return None
    return value, axis, begins, count, slices
