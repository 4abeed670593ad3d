"""Nodes and constants that no output depends on are removed.

Law: same function. Cases: (1) a node none of whose outputs is read; (2) a constant that nothing reads; (3) the same in
nested graphs. Inputs stay, used or not: the caller supplies them.
"""

from __future__ import annotations

from lipaudit.graph.ir import Graph, Node
from lipaudit.graph.order import reads
from lipaudit.graph.simplify.renaming import captures_of

__all__ = ["remove_dead"]


def remove_dead(graph: Graph) -> Graph:
    """The graph reduced to what its outputs depend on."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        node = _with_live_bodies(node)
        kept.append(node)
        needed.update(reads(node))
    nodes = tuple(reversed(kept))
    constants = {name: constant for name, constant in graph.constants.items() if name in needed}
    alive = {*constants, *(value.name for value in graph.inputs), *(name for node in nodes for name in node.outputs if name)}
    values = {name: value for name, value in graph.values.items() if name in alive}
    reduced = graph.with_nodes(nodes, constants=constants, values=values)
    return reduced.with_nodes(nodes, captures=captures_of(reduced))


def _with_live_bodies(node: Node) -> Node:
    if not any(isinstance(attr, Graph) for attr in node.attrs.values()):
        return node
    return node.renamed(attrs={name: remove_dead(attr) if isinstance(attr, Graph) else attr for name, attr in node.attrs.items()})
