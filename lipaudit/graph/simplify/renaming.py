"""Values under other names, in a node and in the graphs nested in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.order import reads

__all__ = ["captures_of", "defines", "rename_node", "rename_reads"]


def defines(graph: Graph) -> set[str]:
    """Names that the graph itself defines."""
    names = {*graph.constants, *(value.name for value in graph.inputs)}
    names.update(name for node in graph.nodes for name in node.outputs if name)
    return names


def captures_of(graph: Graph) -> tuple[str, ...]:
    """Outer names that the graph reads, in order of first use."""
    own = defines(graph)
    used = dict.fromkeys(name for node in graph.nodes for name in reads(node) if name and name not in own)
    used.update(dict.fromkeys(name for name in graph.outputs if name not in own))
    return tuple(used)


def rename_reads(node: Node, names: Mapping[str, str]) -> Node:
    """The node with other input names, also inside its subgraphs."""
    if not any(name in names for name in reads(node)):
        return node
    inputs = tuple(names.get(name, name) for name in node.inputs)
    return node.renamed(inputs=inputs, attrs={key: _attribute(attr, names) for key, attr in node.attrs.items()})


def rename_node(node: Node, names: Mapping[str, str]) -> Node:
    """As :func:`rename_reads`, and its outputs too."""
    renamed = rename_reads(node, names)
    outputs = tuple(names.get(name, name) for name in node.outputs)
    return renamed if outputs == node.outputs else renamed.renamed(outputs=outputs)


def _attribute(attr: Any, names: Mapping[str, str]) -> Any:
    if isinstance(attr, Graph):
        return _captured(attr, names)
    if isinstance(attr, tuple) and attr and isinstance(attr[0], Graph):
        return tuple(_captured(graph, names) for graph in attr)
    return attr


def _captured(graph: Graph, names: Mapping[str, str]) -> Graph:
    """A subgraph whose captures have other names; its own names are left alone."""
    names = {old: new for old, new in names.items() if old in graph.captures}
    if not names:
        return graph
    own = defines(graph)
    clashes = {new for new in names.values() if new in own}
    if clashes:
        # The subgraph has a name of its own that equals the new outer one: give its own another name first.
        taken = own | set(graph.captures) | set(names.values())
        private: dict[str, str] = {}
        for name in sorted(clashes):
            fresh = name
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            private[name] = fresh
        graph = rename_all(graph, private)
    nodes = tuple(rename_reads(node, names) for node in graph.nodes)
    return graph.with_nodes(
        nodes,
        outputs=tuple(names.get(name, name) for name in graph.outputs),
        captures=tuple(names.get(name, name) for name in graph.captures),
    )


def rename_all(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph with its own values renamed."""

    def new(name: str) -> str:
        return names.get(name, name)

    constants = {new(name): _constant(constant, new(name)) for name, constant in graph.constants.items()}
    return graph.with_nodes(
        tuple(rename_node(node, names) for node in graph.nodes),
        inputs=tuple(type(value)(new(value.name), value.dtype, value.shape) for value in graph.inputs),
        outputs=tuple(new(name) for name in graph.outputs),
        constants=constants,
        values={new(name): type(value)(new(name), value.dtype, value.shape) for name, value in graph.values.items()},
        symbols={new(name): dims for name, dims in graph.symbols.items()},
    )


def _constant(constant: Constant, name: str) -> Constant:
    if constant.name == name:
        return constant
    return Constant(name, constant.dtype, constant.shape, constant.array, fill=constant.fill, source=constant.source)
