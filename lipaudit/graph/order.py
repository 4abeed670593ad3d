"""Topological order: a producer before its consumers, the file's own order otherwise."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from lipaudit.errors import ModelError
from lipaudit.graph.ir import Graph, Node

__all__ = ["reads", "topological"]


def reads(node: Node) -> tuple[str, ...]:
    """Names that a node needs: its inputs and what its subgraphs capture."""
    captured: tuple[str, ...] = ()
    for attr in node.attrs.values():
        if isinstance(attr, Graph):
            captured += attr.captures
        elif isinstance(attr, tuple) and attr and isinstance(attr[0], Graph):
            captured += tuple(name for graph in attr for name in graph.captures)
    return (*node.inputs, *captured)


def topological(nodes: Sequence[Node], where: str) -> tuple[Node, ...]:
    """Sort nodes, if they are not sorted already.

    Some writers (the float16 converter of onnxruntime among them) emit a consumer before its producer.

    Raises
    ------
    ModelError
        If there is a cycle; up to five of its nodes are named.
    """
    position = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    if all(position.get(name, -1) < index for index, node in enumerate(nodes) for name in reads(node)):
        return tuple(nodes)
    needs = [{position[name] for name in reads(node) if name in position} for node in nodes]
    waiting = [len(need) for need in needs]
    feeds: list[list[int]] = [[] for _ in nodes]
    for index, need in enumerate(needs):
        for source in need:
            feeds[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for target in feeds[index]:
            waiting[target] -= 1
            if waiting[target] == 0:
                heapq.heappush(ready, target)
    if len(order) < len(nodes):
        cycle = _cycle(needs, {index for index, count in enumerate(waiting) if count})
        names = " -> ".join(repr(nodes[index].name) for index in cycle[:5]) + (" -> ..." if len(cycle) > 5 else "")
        raise ModelError(f"the graph has a cycle: {names} -> {nodes[cycle[0]].name!r}", where=where)
    return tuple(nodes[index] for index in order)


def _cycle(needs: Sequence[Iterable[int]], stuck: set[int]) -> list[int]:
    """One cycle among the nodes that could not be sorted, in the direction of the data."""
    here = min(stuck)
    seen: dict[int, int] = {}
    path: list[int] = []
    while here not in seen:
        seen[here] = len(path)
        path.append(here)
        here = min(source for source in needs[here] if source in stuck)
    return path[seen[here] :][::-1]
