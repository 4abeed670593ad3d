"""Nodes that hand their input on unchanged are taken out.

Law: same function, value for value.

Cases:

1. ``Identity``;
2. ``Dropout`` in inference: versions 1 and 6 with ``is_test = 1`` (without it they drop at random and stay), 7 and 10
   always, 12 and later unless ``training_mode`` is given and may be true; only if its mask is not used;
3. ``Cast`` and ``CastLike`` to the type that the value has;
4. ``Reshape``, ``Flatten``, ``Expand``, ``Tile`` to the shape that the value has, ``Slice`` of everything with step 1;
5. ``Transpose`` that permutes nothing;
6. ``Pad`` by nothing;
7. ``Concat``, ``Sum``, ``Min``, ``Max``, ``Mean`` of one input.

Where the node computes a graph output, its producer computes that name instead; if that is not possible (the value is an
input, a constant, captured, or itself an output), the node stays, as an Identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.simplify.renaming import captures_of, rename_node

__all__ = ["bypass", "is_inactive"]


def bypass(graph: Graph) -> Graph:
    """The graph without nodes that do nothing, nested graphs included."""
    return _bypassed(graph, {}, main=True)


def _bypassed(graph: Graph, outer: Mapping[str, Constant], *, main: bool) -> Graph:
    constants = {**outer, **graph.constants} if outer else graph.constants
    nodes = tuple(_with_bodies(node, constants) for node in graph.nodes)
    graph = graph.with_nodes(nodes)
    produced = {name for node in nodes for name in node.outputs if name}
    outputs = set(graph.outputs)
    instead: dict[str, str] = {}  # value -> the earlier value that replaces it
    forward: dict[str, str] = {}  # value -> the output name that its producer takes over
    kept: list[Node] = []
    for node in nodes:
        if not _passes(node, graph, constants):
            kept.append(node)
            continue
        target = node.outputs[0]
        source = instead.get(node.inputs[0], node.inputs[0])
        if target not in outputs:
            instead[target] = source
        elif source in produced and source not in outputs and source not in forward:
            forward[source] = target
        elif node.op == "Identity":
            kept.append(node)
        else:
            kept.append(node.renamed(op="Identity", domain="", version=1, inputs=node.inputs[:1], outputs=node.outputs[:1], attrs={}))
    if len(kept) == len(nodes) and all(new is old for new, old in zip(kept, nodes, strict=True)):
        return graph
    names = {old: forward.get(new, new) for old, new in instead.items()} | forward
    values = {name: value for name, value in graph.values.items() if name not in instead and name not in forward}
    result = graph.with_nodes(tuple(rename_node(node, names) for node in kept), values=values)
    return result if main else result.with_nodes(result.nodes, captures=captures_of(result))


def _with_bodies(node: Node, constants: Mapping[str, Constant]) -> Node:
    if not any(isinstance(attr, Graph) for attr in node.attrs.values()):
        return node
    attrs: dict[str, Any] = {}
    for name, attr in node.attrs.items():
        if isinstance(attr, Graph):
            captured = {key: constants[key] for key in attr.captures if key in constants}
            attr = _bypassed(attr, captured, main=False)
        attrs[name] = attr
    return node.renamed(attrs=attrs)


def _passes(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    """Whether the first output is the first input."""
    if node.domain or node.op not in _TESTS or not node.inputs or not node.inputs[0] or not node.outputs or not node.outputs[0]:
        return False
    return _TESTS[node.op](node, graph, constants)


def _always(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    return True


def _same_type(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    before, after = graph.value(node.inputs[0]), graph.value(node.outputs[0])
    return bool(before.dtype) and before.dtype == after.dtype


def _same_shape(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    before, after = graph.value(node.inputs[0]), graph.value(node.outputs[0])
    return before.shape is not None and before.shape == after.shape


def _whole_slice(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    """The same shape means everything was taken, forwards if no step is negative."""
    if not _same_shape(node, graph, constants):
        return False
    if len(node.inputs) < 5 or not node.inputs[4]:
        return True
    steps = constants.get(node.inputs[4])
    return steps is not None and bool(np.all(steps.array() == 1))


def _dropout(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    if len(node.outputs) > 1 and node.outputs[1] and (node.outputs[1] in graph.outputs or graph.consumers.get(node.outputs[1])):
        return False
    return is_inactive(node, constants)


def is_inactive(node: Node, constants: Mapping[str, Constant]) -> bool:
    """Whether a Dropout surely drops nothing: case 2, but for its mask."""
    if node.version < 7:
        return node.version > 0 and bool(node.attrs.get("is_test", 0))
    if node.version < 12 or len(node.inputs) < 3 or not node.inputs[2]:
        return True
    training = constants.get(node.inputs[2])
    return training is not None and not bool(np.any(training.array()))


def _no_permutation(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    perm = node.attrs.get("perm")
    if perm is not None:
        return tuple(perm) == tuple(range(len(perm)))
    shape = graph.value(node.inputs[0]).shape
    return shape is not None and len(shape) < 2


def _no_padding(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    if node.version < 11:
        return not any(node.attrs.get("pads", node.attrs.get("paddings", (1,))))
    pads = constants.get(node.inputs[1])
    return pads is not None and not bool(np.any(pads.array()))


def _single(node: Node, graph: Graph, constants: Mapping[str, Constant]) -> bool:
    return len(node.inputs) == 1


_TESTS = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _same_type,
    "CastLike": _same_type,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Expand": _same_shape,
    "Tile": _same_shape,
    "Slice": _whole_slice,
    "Transpose": _no_permutation,
    "Pad": _no_padding,
    "Concat": _single,
    "Sum": _single,
    "Min": _single,
    "Max": _single,
    "Mean": _single,
}
