"""Writes the nodes that one compound node stands for, in the opset of its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import defs

from lipaudit.graph.dtypes import elem_type, numpy_dtype
from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.operators.base import Site

__all__ = ["Emitter", "Lowering", "NotLowered"]

Array = NDArray[Any]


class NotLowered(Exception):
    """The node cannot be spelled in standard nodes; the message says why."""


class Emitter:
    """Collects the nodes and constants in place of ``node``; every method that adds a node returns the name of its output."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self.opset = graph.opsets.get("", 1)
        self._graph, self._node = graph, node
        floats = [graph.value(name).dtype for name in (*node.outputs, *node.inputs) if name and graph.value(name).is_float]
        self.floating: np.dtype[Any] = numpy_dtype(floats[0]) if floats else np.dtype(np.float32)
        self._count = 0

    def site(self) -> Site:
        """The node with its types and constants (nothing is marked as moving)."""
        graph, node = self._graph, self._node
        return Site(
            node,
            tuple(graph.value(name) if name else None for name in node.inputs),
            tuple(graph.value(name) if name else None for name in node.outputs),
            tuple(graph.constants.get(name) for name in node.inputs),
            (False,) * len(node.inputs),
        )

    def is_read(self, name: str) -> bool:
        """Whether a node or the caller of the graph reads the value."""
        graph = self._graph
        return bool(graph.consumers.get(name)) or name in graph.outputs or any(name in graph.captured_by(node) for node in graph.nodes)

    @property
    def float_type(self) -> int:
        """The ONNX number of :attr:`floating`."""
        return elem_type(str(self.floating))

    def fresh(self, hint: str) -> str:
        """A name that nothing else has."""
        self._count += 1
        return f"{self._node.name}/{hint}.{self._count}"

    def several(self, op: str, inputs: Sequence[str], count: int, **attrs: Any) -> list[str]:
        """Add a node of the standard domain with ``count`` outputs."""
        try:
            version = defs.get_schema(op, self.opset).since_version
        except defs.SchemaError:
            version = defs.get_schema(op).since_version
        names = [self.fresh(op) for _ in range(count)]
        kept = {key: value for key, value in attrs.items() if value is not None}
        self.nodes.append(Node(names[0], op, tuple(inputs), tuple(names), "", version, kept, (self._node.name,)))
        return names

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node with one output; attributes that are None are left out."""
        return self.several(op, inputs, 1, **attrs)[0]

    def constant(self, array: Array) -> str:
        """Store a tensor as it is."""
        name = self.fresh("constant")
        self.constants[name] = Constant.of(name, np.array(array, order="C"))
        return name

    def floats(self, array: Array | float) -> str:
        """Store numbers in the floating-point type of the node."""
        return self.constant(np.asarray(array).astype(self.floating))

    def ints(self, *values: int) -> str:
        """Store an int64 vector."""
        return self.constant(np.array(values, dtype=np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """``x`` in another shape."""
        return self.add("Reshape", x, self.ints(*shape))

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        """``x[start:end]`` along ``axis``."""
        if self.opset < 10:
            return self.add("Slice", x, starts=(start,), ends=(end,), axes=(axis,))
        return self.add("Slice", x, self.ints(start), self.ints(end), self.ints(axis))

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """``x`` cut into pieces along ``axis``."""
        if len(sizes) == 1:
            return [x]
        if self.opset < 13:
            return self.several("Split", [x], len(sizes), axis=axis, split=tuple(sizes))
        return self.several("Split", [x, self.ints(*sizes)], len(sizes), axis=axis)

    def mean(self, x: str, axis: int) -> str:
        """Mean along ``axis``, which is kept with size 1."""
        if self.opset < 18:
            return self.add("ReduceMean", x, axes=(axis,), keepdims=1)
        return self.add("ReduceMean", x, self.ints(axis), keepdims=1)

    def concat(self, parts: Sequence[str], axis: int) -> str:
        """``parts`` joined along ``axis``."""
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=axis)


Lowering = Callable[[Emitter, Site], Sequence[str]]
"""Adds the nodes for one site and returns what its outputs are ("" for an output that nobody reads)."""
