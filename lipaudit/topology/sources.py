"""Sources: the continuous entry points of a graph, and the values that move with them.

Integer ids, masks and positions have no Lipschitz meaning. The cut lies where they become real numbers that the network
treats as data: the output of an embedding lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.ir import Constant, Graph, Node, Value

__all__ = ["Source", "find_sources", "moving"]

_SHAPE_ONLY = frozenset({"ai.onnx::Shape", "ai.onnx::Size"})
"""Operators whose result depends on the shape of their input alone, and shapes are pinned."""

_MOST_STEPS = 8
_FUSED_EMBEDDINGS = frozenset({"com.microsoft::EmbedLayerNormalization"})
_REARRANGING = frozenset(
    f"ai.onnx::{op}"
    for op in ("Cast", "Concat", "Expand", "Identity", "Neg", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Split")
)


@dataclass(frozen=True, slots=True)
class Source:
    """A continuous entry point.

    Attributes
    ----------
    name
        The value at the cut.
    kind
        "input": a float graph input. "embedding": what integer inputs are turned into.
    value
        Its type.
    label
        For people: the input's name, or what is looked up by which ids.
    table
        Rows that an embedding chooses from, shape (ids, ...); None if they are not the rows of one stored tensor.
    indices
        The integer value that chooses ("" for an input).
    """

    name: str
    kind: Literal["input", "embedding"]
    value: Value
    label: str
    table: Constant | None = None
    indices: str = ""


def find_sources(graph: Graph) -> tuple[Source, ...]:
    """All sources of ``graph``: float inputs in their order, then embedding lookups in graph order.

    A lookup whose result only multiplies other values (a table of rotary angles read by positions) is not a source. If a
    model has no source in this sense, integer inputs become sources where they are converted to floats (pixels as bytes,
    one-hot ids).
    """
    inputs = [Source(value.name, "input", value, value.name) for value in graph.inputs if value.is_float]
    found = _cuts(graph, inputs, _lookup)
    return tuple(found) if found else tuple(_cuts(graph, [], _conversion))


def moving(graph: Graph, sources: Iterable[Source]) -> frozenset[str]:
    """Values that depend on a source, the sources included.

    Dependence goes through every operator, continuous or not, and into subgraphs by what they capture; Shape and Size end it.
    """
    found = {source.name for source in sources}
    for node in graph.nodes:
        if node.kind in _SHAPE_ONLY:
            continue
        if any(name in found for name in node.inputs) or any(name in found for name in graph.captured_by(node)):
            found.update(name for name in node.outputs if name)
    return frozenset(found)


_Cut = Callable[[Graph, Node, Mapping[str, str]], list[Source]]


def _cuts(graph: Graph, inputs: list[Source], cut: _Cut) -> list[Source]:
    """``inputs`` and what ``cut`` finds among values that depend on integer inputs and on no source: no source lies behind another."""
    found = list(inputs)
    moved = {source.name for source in inputs}
    ids = {value.name: value.name for value in graph.inputs if not value.is_float}
    for node in graph.nodes:
        reads = (*node.inputs, *graph.captured_by(node))
        if node.kind in _SHAPE_ONLY:
            continue
        if any(name in moved for name in reads):
            moved.update(name for name in node.outputs if name)
            continue
        origin = next((ids[name] for name in reads if name in ids), None)
        if origin is None:
            continue
        fresh = [source for source in cut(graph, node, ids) if source.name not in moved]
        found.extend(fresh)
        moved.update(source.name for source in fresh)
        ids.update((name, origin) for name in node.outputs if name and name not in moved)
    return found


def _lookup(graph: Graph, node: Node, ids: Mapping[str, str]) -> list[Source]:
    """Embedding lookups: Gather of rows of a constant table by integer ids, and the fused embedding of ONNX Runtime."""
    if node.kind in _FUSED_EMBEDDINGS:
        origin = next((ids[name] for name in node.inputs if name in ids), "")
        floats = [graph.value(name) for name in node.outputs if name and graph.value(name).dtype in ("", "float16", "float32", "bfloat16")]
        return [Source(value.name, "embedding", value, f"embeddings of {origin}", indices=origin) for value in floats]
    if node.kind != "ai.onnx::Gather" or len(node.inputs) != 2 or node.inputs[1] not in ids:
        return []
    table = graph.constants.get(node.inputs[0])
    if table is None or int(node.attrs.get("axis", 0)) != 0 or not table.shape:
        return []
    chosen = _first_float(graph, node, table)
    if chosen is None or _only_multiplies(graph, chosen[0].name):
        return []
    value, rows = chosen
    return [Source(value.name, "embedding", value, f"{table.name} looked up by {ids[node.inputs[1]]}", rows, node.inputs[1])]


def _first_float(graph: Graph, lookup: Node, table: Constant) -> tuple[Value, Constant | None] | None:
    """The float value that a lookup ends in: itself, or its dequantized form, with the table in the same form."""
    value = graph.value(lookup.outputs[0])
    if table.value.is_float:
        return Value(value.name, value.dtype or table.dtype, value.shape), table
    keeps_rows = True
    name = value.name
    for _ in range(_MOST_STEPS):
        users = graph.consumers.get(name, ())
        if len(users) != 1 or name in graph.outputs or users[0].domain:
            return None
        user = users[0]
        if user.op not in ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity"):
            break
        perm = user.attrs.get("perm", ())
        keeps_rows = keeps_rows and (user.op == "Identity" or (user.op == "Transpose" and bool(perm) and perm[-1] == len(perm) - 1))
        name = user.outputs[0]
    else:
        return None
    result = graph.value(user.outputs[0])
    if user.op not in ("Cast", "DequantizeLinear") or not result.is_float:
        return None
    return result, _dequantized(graph, user, table) if keeps_rows else None


def _dequantized(graph: Graph, user: Node, table: Constant) -> Constant | None:
    """The table as the node ``user`` converts it; None if its scale is not one number."""
    if user.op == "Cast":
        return Constant(table.name, "float64", table.shape, lambda: np.asarray(table.array(), dtype=np.float64), source=table.source)
    parameters = [graph.constants.get(name) for name in user.inputs[1:] if name]
    if any(parameter is None or parameter.size != 1 for parameter in parameters):
        return None
    scale, *zero = (float(parameter.float64().reshape(-1)[0]) for parameter in parameters if parameter is not None)
    offset = zero[0] if zero else 0.0

    def elements() -> NDArray[Any]:
        # Exact in binary64: a 9-bit difference times a 24-bit scale.
        return (np.asarray(table.array(), dtype=np.float64) - offset) * scale

    return Constant(table.name, "float64", table.shape, elements, source=table.source)


def _only_multiplies(graph: Graph, name: str) -> bool:
    """True if every use of ``name``, after rearrangements, is a factor of a product of two non-constant values."""
    stack, seen, factor = [name], {name}, False
    while stack:
        current = stack.pop()
        if current in graph.outputs:
            return False
        for user in graph.consumers.get(current, ()):
            if user.kind in _REARRANGING:
                fresh = [output for output in user.outputs if output and output not in seen]
                seen.update(fresh)
                stack.extend(fresh)
            elif user.kind == "ai.onnx::Mul" and not any(
                other in graph.constants or other in seen for other in user.inputs if other != current
            ):
                factor = True
            else:
                return False
    return factor


def _conversion(graph: Graph, node: Node, ids: Mapping[str, str]) -> list[Source]:
    """Where an integer value becomes a float one."""
    if node.op not in ("Cast", "OneHot", "DequantizeLinear") or node.domain:
        return []
    value = graph.value(node.outputs[0])
    origin = next((name for name in node.inputs if name in ids), None)
    if not value.is_float or origin is None or graph.value(origin).is_float:
        return []
    what = "one-hot" if node.op == "OneHot" else "float"
    return [Source(value.name, "embedding", value, f"{what} form of {ids[origin]}", indices=origin)]
