"""The law of the region tree, checked after each run of the stage in tests."""

from __future__ import annotations

from lipaudit.errors import InternalError
from lipaudit.topology.recognise import Topology
from lipaudit.topology.regions import Region
from lipaudit.topology.sources import moving

__all__ = ["check", "walk"]


def walk(root: Region) -> list[Region]:
    """All regions, parents before children, without recursion."""
    found: list[Region] = []
    stack = [root]
    while stack:
        region = stack.pop()
        found.append(region)
        stack.extend(reversed(region.children))
    return found


def check(topology: Topology) -> None:
    """Every moving node is in exactly one leaf; children partition; paths are unique; entries and exits are what crosses.

    Raises
    ------
    InternalError
        Naming the region and the law that it breaks.
    """
    graph = topology.graph
    moves = moving(graph, topology.sources)
    cuts = {source.name for source in topology.sources}
    expected = [
        node.name
        for node in graph.nodes
        if any(name in moves for name in (*node.inputs, *graph.captured_by(node))) and not cuts.intersection(node.outputs)
    ]
    regions = walk(topology.root)
    leaves = [name for region in regions if not region.children for name in region.nodes]
    if sorted(leaves) != sorted(expected):
        raise InternalError("the leaves are not the moving nodes, each once", where=graph.name)
    if len({region.path for region in regions}) != len(regions):
        raise InternalError("two regions have one path", where=graph.name)
    nodes = {node.name: node for node in graph.nodes}
    for region in regions:
        if region.children and region.nodes != tuple(name for child in region.children for name in child.nodes):
            raise InternalError("its children do not partition it", where=region.path)
        inside = set(region.nodes)
        made = {name for node in region.nodes for name in nodes[node].outputs if name}
        reads = {name for node in region.nodes for name in (*nodes[node].inputs, *graph.captured_by(nodes[node])) if name in moves}
        if set(region.entries) != reads - made:
            raise InternalError("its entries are not what it reads from outside", where=region.path)
        leaving = {name for name in made if name in graph.outputs or any(user.name not in inside for user in graph.consumers.get(name, ()))}
        if leaving and (region.exit not in leaving or set(region.facts.get("exits", [region.exit])) != leaving):
            raise InternalError("its exits are not what is read outside", where=region.path)
    order = {node.name: i for i, node in enumerate(topology.simplified.nodes)}
    covered = [name for node in graph.nodes for name in node.covers if name in order]
    if len(covered) != len(set(covered)):
        raise InternalError("a node is covered twice", where=graph.name)
