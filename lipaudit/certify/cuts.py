"""Where to cut the entry of a region into parts: at the boundaries of the slices that are taken of it.

Refining the *end* of a region costs up to the p-th root of the number of pieces; refining its entry costs nothing, because
``|(|du_Qj|)_j|_p = |du|_p`` (partition calculus). So the atoms of all slices of the entry become the parts of the cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lipaudit.graph.ir import Graph, Node

__all__ = ["Cut", "atoms"]

# More parts than this cost more than they give: rows are vectors over the parts.
_MOST_PARTS = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """Lengths of the parts along ``axis``."""

    axis: int
    sizes: tuple[int, ...]


def atoms(graph: Graph, nodes: Sequence[Node], entry: str) -> Cut | None:
    """The atoms of the slices of ``entry`` (also behind maps that keep its shape), along the first axis that is sliced.

    None if nothing slices it.
    """
    shape = graph.value(entry).shape
    if not shape:
        return None
    copies = {entry}
    found: dict[int, set[int]] = {}
    for node in nodes:
        reads = [name for name in node.inputs if name in copies]
        if not reads:
            continue
        spans = _spans(graph, node)
        if spans is not None:
            axis, ends = spans
            found.setdefault(axis, set()).update(ends)
        elif len(node.outputs) == 1 and graph.value(node.outputs[0]).shape == shape:
            copies.add(node.outputs[0])
    for axis, ends in found.items():
        marks = sorted({0, shape[axis], *(end for end in ends if 0 <= end <= shape[axis])})
        if 2 < len(marks) <= _MOST_PARTS + 1:
            return Cut(axis, tuple(stop - start for start, stop in pairwise(marks)))
    return None


def _spans(graph: Graph, node: Node) -> tuple[int, Iterable[int]] | None:
    """Axis and boundaries of what a Split or a one-axis, step-1 Slice takes of its first input."""
    shape = graph.value(node.inputs[0]).shape
    if shape is None or node.domain:
        return None
    if node.op == "Split":
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        ends, total = [0], 0
        for name in node.outputs:
            part = graph.value(name).shape
            if part is None:
                return None
            total += part[axis]
            ends.append(total)
        return axis, ends
    if node.op == "Slice":
        return _slice_span(graph, node, shape)
    return None


def _slice_span(graph: Graph, node: Node, shape: tuple[int, ...]) -> tuple[int, Iterable[int]] | None:
    def operand(i: int, name: str) -> list[int] | None:
        if name in node.attrs:
            return [int(x) for x in node.attrs[name]]
        constant = graph.constants.get(node.inputs[i]) if i < len(node.inputs) and node.inputs[i] else None
        return None if constant is None else [int(x) for x in constant.array().ravel()]

    starts, ends = operand(1, "starts"), operand(2, "ends")
    if starts is None or ends is None or len(starts) != 1:
        return None
    axes, steps = operand(3, "axes") or [0], operand(4, "steps") or [1]
    if steps != [1]:
        return None
    axis = axes[0] % len(shape)
    length = shape[axis]
    start, stop = (min(max(x + length if x < 0 else x, 0), length) for x in (starts[0], ends[0]))
    return axis, (start, stop)
