"""The graph that every stage works on: a frozen node table with lazily read constants.

Names are the model's own, verbatim, so that a search in another viewer finds them. Nodes are in topological order.
Shapes are static after pinning; ``shape is None`` means that inference could not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constant", "Graph", "Node", "Value", "qualified"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Value:
    """Type of a tensor value.

    ``dtype`` is the ONNX name in lower case ("float", spelled as numpy / ml_dtypes do: "float32", "int64", "bool",
    "bfloat16", "float8_e4m3fn", "string"); "" if unknown. ``shape`` holds plain ints, or is None if unknown.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None

    @property
    def is_float(self) -> bool:
        """True for the floating-point types, which carry a Lipschitz meaning."""
        return "float" in self.dtype or self.dtype == "double"

    @property
    def size(self) -> int:
        """Number of elements; raises ``ValueError`` if the shape is unknown."""
        if self.shape is None:
            raise ValueError(f"shape of {self.name!r} is unknown")
        return prod(self.shape)


class Constant:
    """A stored tensor that is read when asked for.

    Parameters
    ----------
    name, dtype, shape
        As in :class:`Value`.
    load
        Returns the elements as a (read-only, possibly memory-mapped) array of that dtype and shape.
    fill
        The single value of a uniform tensor (ConstantOfShape, Expand of a scalar), which is then never materialised by
        code that looks at ``fill`` first; None for an ordinary tensor.
    source
        Where the elements come from, for messages ("initializer", "Constant node", "external data FILE", "folded").
    """

    __slots__ = ("__weakref__", "_load", "dtype", "fill", "name", "shape", "source")

    def __init__(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        load: Callable[[], Array],
        *,
        fill: float | int | bool | None = None,
        source: str = "initializer",
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.fill = fill
        self.source = source
        self._load = load

    @classmethod
    def of(cls, name: str, array: Array, *, source: str = "folded") -> Constant:
        """A constant that holds ``array`` itself."""
        return cls(name, str(array.dtype), tuple(int(d) for d in array.shape), lambda: array, source=source)

    @property
    def value(self) -> Value:
        """Name, dtype and shape."""
        return Value(self.name, self.dtype, self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def array(self) -> Array:
        """The elements in their own dtype. Treat as read-only; large tensors are mapped, not copied."""
        return self._load()

    def float64(self) -> NDArray[np.float64]:
        """The elements as float64 (exact for every narrower float type)."""
        return np.asarray(self.array(), dtype=np.float64)

    def __repr__(self) -> str:
        return f"Constant({self.name!r}, {self.dtype}, {list(self.shape)})"


@dataclass(frozen=True, slots=True)
class Node:
    """One operator application.

    Attributes
    ----------
    name
        Unique in its graph; the model's own name, or ``"<op>_<index>"`` where the model gives none.
    op, domain, version
        Operator type, its domain ("" for ai.onnx) and the *since_version* of the schema that the model's opset selects
        (0 for a custom domain).
    inputs, outputs
        Value names; "" marks an omitted optional.
    attrs
        Plain Python values: int, float, str, tuples of these, :class:`Constant`, :class:`Graph`. Defaults are *not*
        filled in (see ``operators.base.Site.attr``).
    covers
        Names of the original nodes that this one stands for: itself, or the nodes of a recognised pattern.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str = ""
    version: int = 0
    attrs: Mapping[str, Any] = field(default_factory=dict)
    covers: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``domain::op`` as the catalogue spells it ("ai.onnx::Relu")."""
        return qualified(self.domain, self.op)

    def renamed(self, **changes: Any) -> Node:
        """A copy with some fields changed."""
        return replace(self, **changes)


def qualified(domain: str, op: str) -> str:
    """``domain::op`` with the default domain written out."""
    return f"{domain or 'ai.onnx'}::{op}"


@dataclass(frozen=True)
class Graph:
    """A whole graph, immutable; passes return a new one.

    Attributes
    ----------
    name
        For messages: the file, or the node that owns a subgraph.
    nodes
        Topologically sorted.
    inputs
        The values that a caller supplies (initializers listed as inputs are *not* among them).
    outputs
        Names, in order; may repeat.
    constants
        By value name: initializers, Constant nodes, folded values.
    values
        Type of every value that inference could tell: inputs, node outputs, constants.
    opsets
        Version by domain ("" is ai.onnx).
    pinned
        Symbolic dimensions that were replaced: ``{"input[axis] or symbol": size}``.
    captures
        For a subgraph: outer values that it reads.
    symbols
        Dimensions of each input as the file declares them, before pinning: a number, a symbol, or "" for one without a name.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    values: Mapping[str, Value]
    opsets: Mapping[str, int]
    pinned: Mapping[str, int] = field(default_factory=dict)
    captures: tuple[str, ...] = ()
    symbols: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that computes each value."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value (once per node), in graph order. Outputs are not listed."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *self.captured_by(node))):
                if name:
                    found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def captured_by(self, node: Node) -> tuple[str, ...]:
        """Outer values that the subgraphs of ``node`` read."""
        graphs = [attr for attr in node.attrs.values() if isinstance(attr, Graph)]
        return tuple(dict.fromkeys(name for graph in graphs for name in graph.captures))

    def value(self, name: str) -> Value:
        """Type of ``name``; unknown dtype and shape if inference could not tell."""
        found = self.values.get(name)
        if found is not None:
            return found
        constant = self.constants.get(name)
        return constant.value if constant is not None else Value(name, "", None)

    def subgraphs(self) -> Iterator[Graph]:
        """All nested graphs, outermost first."""
        stack: list[Graph] = [self]
        while stack:
            graph = stack.pop()
            for node in graph.nodes:
                for attr in node.attrs.values():
                    if isinstance(attr, Graph):
                        yield attr
                        stack.append(attr)

    def with_nodes(self, nodes: tuple[Node, ...], **changes: Any) -> Graph:
        """A copy with other nodes (and other fields, if named)."""
        return replace(self, nodes=nodes, **changes)
