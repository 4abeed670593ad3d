"""Sources: the continuous entry points of a graph, and the values that move with them.

Integer ids, masks and positions have no Lipschitz meaning. The cut lies where they become real numbers that the network
treats as data: the output of an embedding lookup.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.ir import Constant, Graph, Node, Value

__all__ = ["Source", "find_sources", "moving"]

_SHAPE_ONLY = frozenset({"ai.onnx::Shape", "ai.onnx::Size"})
"""Operators whose result depends on the shape of their input alone, and shapes are pinned."""

_FUSED_EMBEDDINGS = frozenset({"com.microsoft::EmbedLayerNormalization"})
_REARRANGING = frozenset(
    f"ai.onnx::{op}" for op in ("Cast", "Concat", "Expand", "Identity", "Neg", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Split")
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
    from_floats = moving(graph, inputs)
    ids = _integer_derived(graph, from_floats)
    lookups = _lookups(graph, ids)
    found = [*inputs, *lookups]
    return tuple(found) if found else tuple(_conversions(graph, ids))


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


def _integer_derived(graph: Graph, from_floats: frozenset[str]) -> dict[str, str]:
    """Values that depend on a non-float input and on no float input, with the name of (one of) the inputs."""
    found = {value.name: value.name for value in graph.inputs if not value.is_float}
    for node in graph.nodes:
        if node.kind in _SHAPE_ONLY or any(name in from_floats for name in node.outputs):
            continue
        origin = next((found[name] for name in (*node.inputs, *graph.captured_by(node)) if name in found), None)
        if origin is not None:
            found.update((name, origin) for name in node.outputs if name)
    return found


def _lookups(graph: Graph, ids: dict[str, str]) -> list[Source]:
    """Embedding lookups: Gather of rows of a constant table by integer ids, and the fused embedding of ONNX Runtime."""
    found: list[Source] = []
    for node in graph.nodes:
        if node.kind in _FUSED_EMBEDDINGS:
            origin = next((ids[name] for name in node.inputs if name in ids), "")
            for output in node.outputs:
                if output and (value := graph.value(output)).dtype in ("", "float16", "float32", "bfloat16"):
                    found.append(Source(output, "embedding", value, f"embeddings of {origin}", indices=origin))
        elif node.kind == "ai.onnx::Gather" and len(node.inputs) == 2 and node.inputs[1] in ids:
            table = graph.constants.get(node.inputs[0])
            if table is None or int(node.attrs.get("axis", 0)) != 0 or not table.shape:
                continue
            chosen = _first_float(graph, node, table)
            if chosen is not None and not _only_multiplies(graph, chosen[0].name):
                value, rows = chosen
                label = f"{table.name} looked up by {ids[node.inputs[1]]}"
                found.append(Source(value.name, "embedding", value, label, rows, node.inputs[1]))
    return found


def _first_float(graph: Graph, lookup: Node, table: Constant) -> tuple[Value, Constant | None] | None:
    """The float value that a lookup ends in: itself, or its dequantized form, with the table in the same form."""
    value = graph.value(lookup.outputs[0])
    if table.value.is_float:
        return Value(value.name, value.dtype or table.dtype, value.shape), table
    users = graph.consumers.get(value.name, ())
    if len(users) != 1 or value.name in graph.outputs or users[0].kind not in ("ai.onnx::DequantizeLinear", "ai.onnx::Cast"):
        return None
    user = users[0]
    result = graph.value(user.outputs[0])
    if not result.is_float:
        return None
    if user.op == "Cast":
        return result, Constant(table.name, "float64", table.shape, lambda: np.asarray(table.array(), dtype=np.float64), source=table.source)
    parameters = [graph.constants.get(name) for name in user.inputs[1:] if name]
    if any(parameter is None or parameter.size != 1 for parameter in parameters):
        return result, None
    scale, *zero = (float(parameter.float64().reshape(-1)[0]) for parameter in parameters if parameter is not None)
    offset = zero[0] if zero else 0.0

    def dequantized() -> NDArray[Any]:
        # Exact in binary64: a 9-bit difference times a 24-bit scale.
        return (np.asarray(table.array(), dtype=np.float64) - offset) * scale

    return result, Constant(table.name, "float64", table.shape, dequantized, source=table.source)


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
            elif user.kind == "ai.onnx::Mul" and not any(other in graph.constants or other in seen for other in user.inputs if other != current):
                factor = True
            else:
                return False
    return factor


def _conversions(graph: Graph, ids: dict[str, str]) -> list[Source]:
    """Where integer inputs become floats, for models that have no other source."""
    found: list[Source] = []
    for node in graph.nodes:
        if node.op not in ("Cast", "OneHot", "DequantizeLinear") or node.domain or not any(name in ids for name in node.inputs):
            continue
        value = graph.value(node.outputs[0])
        if value.is_float and not any(graph.value(name).is_float for name in node.inputs if name in ids):
            origin = next(ids[name] for name in node.inputs if name in ids)
            what = "one-hot" if node.op == "OneHot" else "float"
            found.append(Source(value.name, "embedding", value, f"{what} form of {origin}", indices=node.inputs[0]))
    return found
