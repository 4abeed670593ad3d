"""The moving part of a graph as a networkx graph, for whoever wants to ask it more than the tree of regions tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lipaudit.topology.recognise import Topology
from lipaudit.topology.sources import moving

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["END", "START", "value_graph"]

START = ("start", "")
END = ("end", "")


def value_graph(topology: Topology) -> nx.DiGraph[tuple[str, str]]:
    """Values and nodes that depend on a source, from one start to one end.

    Parameters
    ----------
    topology
        What ``recognise`` returned; its abstract graph is shown.

    Returns
    -------
    networkx.DiGraph
        Vertices are ``("value", name)`` and ``("node", name)``, so that an operator that reads one value twice needs no parallel
        edges, with :data:`START` before all sources and :data:`END` behind all outputs. Vertices have the attribute ``op`` where
        they are nodes. Acyclic.
    """
    import networkx as nx

    graph = topology.graph
    moves = moving(graph, topology.sources)
    found: nx.DiGraph[tuple[str, str]] = nx.DiGraph()
    found.add_nodes_from((START, END))
    sources = {source.value.name for source in topology.sources}
    found.add_edges_from((START, ("value", name)) for name in sources)
    for node in graph.nodes:
        reads = [name for name in (*node.inputs, *graph.captured_by(node)) if name in moves]
        if not reads:
            continue
        found.add_node(("node", node.name), op=node.kind)
        found.add_edges_from((("value", name), ("node", node.name)) for name in reads)
        found.add_edges_from((("node", node.name), ("value", name)) for name in node.outputs if name in moves and name not in sources)
    found.add_edges_from((("value", name), END) for name in graph.outputs if name in moves)
    return found
