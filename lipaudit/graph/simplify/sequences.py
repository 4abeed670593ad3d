"""Sequences and optionals whose elements are known become plain tensors.

Law: same function, value for value. An element of a sequence is a name; where every position is a constant, the nodes that
build and take apart sequences only pass names on.

Cases:

1. ``SequenceConstruct``, ``SequenceEmpty``, ``SequenceInsert``, ``SequenceErase`` at constant positions, ``Identity``: names;
2. ``SplitToSequence``: a ``Split`` with an output for each part (and a ``Squeeze`` without ``keepdims``);
3. ``SequenceAt`` a constant position: an ``Identity``; ``SequenceLength``: a constant;
4. ``ConcatFromSequence``: a ``Concat``, after an ``Unsqueeze`` of each element for ``new_axis``;
5. ``SequenceMap`` over sequences whose elements are known: the nodes of its body once for each element;
6. ``Optional`` and ``OptionalGetElement`` of a tensor: an ``Identity``; ``OptionalHasElement``: a constant.

What is not constant stays as it is, and so does what a graph output needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx.defs

from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.simplify.renaming import defines, rename_all

__all__ = ["resolve_sequences"]

# Of all elements of one SequenceMap together.
_MOST_NODES = 5000

_OPS = frozenset({
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence", "SequenceAt", "SequenceLength",
    "SequenceMap", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
})  # fmt: skip


def resolve_sequences(graph: Graph) -> Graph:
    """The graph with its resolvable sequences replaced; the graph itself if there is none. Nested graphs are left alone."""
    if not any(node.op in _OPS and not node.domain for node in graph.nodes):
        return graph
    walk = _Walk(graph)
    for node in graph.nodes:
        if not walk.replace(node):
            walk.kept.append(node)
    # Nodes that only named elements are needed as long as something unresolved reads them.
    needed = {name for node in walk.kept for name in (*node.inputs, *graph.captured_by(node))} | set(graph.outputs)
    for node in reversed(walk.builders):
        if any(name in needed for name in node.outputs):
            needed.update(node.inputs)
            walk.alive.add(node.name)
    order = {node.name: k for k, node in enumerate(graph.nodes)}
    nodes = [*walk.kept, *(node for node in walk.builders if node.name in walk.alive)]
    nodes.sort(key=lambda node: order[walk.origin.get(node.name, node.name)])
    if _count(nodes) >= _count(graph.nodes):
        return graph
    return graph.with_nodes(tuple(nodes), constants={**graph.constants, **walk.constants})


def _count(nodes: Iterable[Node]) -> int:
    """Nodes that build, read or take apart sequences."""
    return sum(node.op in _OPS and not node.domain for node in nodes)


@dataclass
class _Walk:
    """One pass in topological order."""

    graph: Graph
    elements: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    kept: list[Node] = field(default_factory=list)
    builders: list[Node] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    """Names of values and nodes put in place of a SequenceMap."""
    origin: dict[str, str] = field(default_factory=dict)
    """The node that a new node stands for: it decides the place of the new one."""

    def replace(self, node: Node) -> bool:
        """Whether ``node`` is replaced or only names elements."""
        if node.domain:
            return False
        if node.op == "Identity" and node.inputs[0] in self.elements:
            return self._names(node, self.elements[node.inputs[0]])
        if node.op in ("SequenceConstruct", "SequenceEmpty"):
            return self._names(node, tuple(name for name in node.inputs if name))
        if node.op == "SplitToSequence":
            return self._split(node)
        if node.op in ("Optional", "OptionalGetElement", "OptionalHasElement"):
            return self._optional(node)
        if node.op not in _OPS or node.inputs[0] not in self.elements:
            return False
        if node.op == "SequenceMap":
            return self._map(node)
        elements = self.elements[node.inputs[0]]
        if node.op == "SequenceLength":
            return self._constant(node, np.asarray(len(elements), dtype=np.int64))
        if node.op == "ConcatFromSequence":
            return bool(elements) and self._concat(node, elements)
        return self._at(node, elements)

    def _names(self, node: Node, elements: tuple[str, ...]) -> bool:
        self.elements[node.outputs[0]] = elements
        self.builders.append(node)
        return True

    def _at(self, node: Node, elements: tuple[str, ...]) -> bool:
        """SequenceAt, SequenceErase and SequenceInsert at a constant position."""
        slot = 2 if node.op == "SequenceInsert" else 1
        places = len(elements) + (1 if node.op == "SequenceInsert" else 0)
        position = places if node.op == "SequenceInsert" else len(elements) - 1  # without one: the end
        if slot < len(node.inputs) and node.inputs[slot]:
            stored = self._stored(node.inputs[slot])
            if stored is None:
                return False
            position = int(stored.ravel()[0])
            position += len(elements) if position < 0 else 0
        elif node.op == "SequenceInsert":
            position = len(elements)
        if not 0 <= position < max(places, 0):
            return False
        if node.op == "SequenceAt":
            shape = self._shape(elements[position])
            if shape is not None:
                self.shapes[node.outputs[0]] = shape
            return self._put(node, "Identity", (elements[position],), node.outputs[:1], {})
        if node.op == "SequenceErase":
            return self._names(node, (*elements[:position], *elements[position + 1 :]))
        return self._names(node, (*elements[:position], node.inputs[1], *elements[position:]))

    def _split(self, node: Node) -> bool:
        shape = self._shape(node.inputs[0])
        if not shape:
            return False
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        sizes, squeeze = [1] * shape[axis], not node.attrs.get("keepdims", 1)
        if len(node.inputs) > 1 and node.inputs[1]:
            stored = self._stored(node.inputs[1])
            if stored is None:
                return False
            squeeze = False
            if stored.ndim:
                sizes = [int(size) for size in stored]
            else:
                step = int(stored)
                if step < 1:
                    return False
                sizes = [min(step, shape[axis] - start) for start in range(0, shape[axis], step)]
        if sum(sizes) != shape[axis] or not sizes:
            return False
        names = tuple(self._fresh(f"{node.outputs[0]}.{k}") for k in range(len(sizes)))
        parts = tuple(self._fresh(f"{name}.kept") for name in names) if squeeze else names
        attrs: dict[str, object] = {"axis": axis}
        inputs: tuple[str, ...] = node.inputs[:1]
        if self._version("Split") >= 13:
            inputs = (*inputs, self._store(f"{node.outputs[0]}.sizes", np.asarray(sizes, dtype=np.int64)))
        else:
            attrs["split"] = tuple(sizes)
        self._put(node, "Split", inputs, parts, attrs)
        for name, size in zip(names, sizes, strict=True):
            self.shapes[name] = (*shape[:axis], *(() if squeeze else (size,)), *shape[axis + 1 :])
        if squeeze:
            for part, name in zip(parts, names, strict=True):
                self._reshaped(node, "Squeeze", part, name, axis)
        return self._names(node, names)

    def _concat(self, node: Node, elements: tuple[str, ...]) -> bool:
        axis = int(node.attrs.get("axis", 0))
        if not node.attrs.get("new_axis", 0):
            return self._put(node, "Concat", elements, node.outputs[:1], {"axis": axis})
        shape = self._shape(elements[0])
        if axis < 0 and shape is None:
            return False
        axis += len(shape) + 1 if axis < 0 and shape is not None else 0
        raised: list[str] = []
        for k, element in enumerate(elements):
            raised.append(self._fresh(f"{node.outputs[0]}.{k}"))
            self._reshaped(node, "Unsqueeze", element, raised[-1], axis)
        return self._put(node, "Concat", tuple(raised), node.outputs[:1], {"axis": axis})

    def _map(self, node: Node) -> bool:
        """The body for each element; inputs that are no sequences are the same for all."""
        body = node.attrs.get("body")
        count = len(self.elements[node.inputs[0]])
        sequences = [self.elements.get(name) for name in node.inputs]
        known = all(own is not None or self._shape(name) is not None for name, own in zip(node.inputs, sequences, strict=True))
        if not isinstance(body, Graph) or not known or count * len(body.nodes) > _MOST_NODES:
            return False
        if any(own is not None and len(own) != count for own in sequences) or len(body.inputs) != len(node.inputs):
            return False
        found: list[tuple[str, ...]] = []
        for k in range(count):
            given = [name if own is None else own[k] for name, own in zip(node.inputs, sequences, strict=True)]
            found.append(self._element(node, body, given, k))
        for place, name in enumerate(node.outputs):
            if name:
                self.elements[name] = tuple(outputs[place] for outputs in found)
        self.builders.append(node)
        return True

    def _element(self, node: Node, body: Graph, given: list[str], k: int) -> tuple[str, ...]:
        """The nodes of the body for element ``k``; its outputs."""
        names: dict[str, str] = {}
        for name in sorted(defines(body)):
            names[name] = self._fresh(f"{node.name}.{k}.{name}")
            self.taken.add(names[name])
        names |= {value.name: outer for value, outer in zip(body.inputs, given, strict=True)}
        put = rename_all(body, names)
        inner = {value.name for value in put.inputs}
        for part in put.nodes:
            name = self._fresh(f"{node.name}.{k}.{part.name}")
            self.taken.add(name)
            self.origin[name] = node.name
            self.kept.append(part.renamed(name=name, covers=node.covers or (node.name,)))
        self.constants |= {name: constant for name, constant in put.constants.items() if name not in inner}
        return put.outputs

    def _optional(self, node: Node) -> bool:
        source = node.inputs[0] if node.inputs else ""
        if node.op == "OptionalHasElement":
            known = not source or self._shape(source) is not None or source in self.elements
            return known and self._constant(node, np.asarray(bool(source)))
        if source in self.elements:
            return self._names(node, self.elements[source])
        if source and self._shape(source) is not None:
            return self._put(node, "Identity", (source,), node.outputs[:1], {})
        return False

    # ------------------------------------------------------------------ building blocks

    def _shape(self, name: str) -> tuple[int, ...] | None:
        return self.shapes.get(name) or self.graph.value(name).shape

    def _stored(self, name: str) -> np.ndarray | None:
        constant = self.graph.constants.get(name) or self.constants.get(name)
        return None if constant is None else np.asarray(constant.array())

    def _version(self, op: str) -> int:
        return int(onnx.defs.get_schema(op, self.graph.opsets.get("", 1), "").since_version)

    def _fresh(self, name: str) -> str:
        while name in self.graph.values or name in self.graph.constants or name in self.constants or name in self.taken:
            name += "_"
        return name

    def _store(self, name: str, array: np.ndarray) -> str:
        name = self._fresh(name)
        self.constants[name] = Constant.of(name, array)
        return name

    def _constant(self, node: Node, array: np.ndarray) -> bool:
        if node.outputs[0] in self.graph.outputs:
            return False
        self.constants[node.outputs[0]] = Constant.of(node.outputs[0], array)
        return True

    def _put(self, node: Node, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attrs: Mapping[str, object]) -> bool:
        taken = {other.name for other in self.kept}
        name = f"{node.name}.{op}" if f"{node.name}.{op}" not in taken else f"{node.name}.{op}.{len(taken)}"
        self.origin[name] = node.name
        self.kept.append(Node(name, op, inputs, outputs, "", self._version(op), dict(attrs), node.covers or (node.name,)))
        return True

    def _reshaped(self, node: Node, op: str, source: str, target: str, axis: int) -> None:
        if self._version(op) >= 13:
            self._put(node, op, (source, self._store(f"{target}.axes", np.asarray([axis], dtype=np.int64))), (target,), {})
        else:
            self._put(node, op, (source,), (target,), {"axes": (axis,)})
