"""The skeleton of the region tree: chains of values and nodes that lie on all paths, nested in each other.

In a DAG with one start and one end, a pair (a, b) of vertices with a = idom(b) and b = ipdom(a) encloses a single-entry
single-exit region, and every vertex begins and ends at most one such pair. So the pairs join the vertices into chains; the
vertices that lie strictly between a and b form chains of their own, nested in the link (a, b). This is the program structure tree of
Johnson, Pearson and Pingali (1994), without cycle equivalence because the graph has no cycles. Vertices are values and nodes
(a bipartite graph), so that an operator that reads one value twice is no special case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from lipaudit.graph.ir import Node
from lipaudit.topology.dominators import immediate_dominators, immediate_post_dominators

__all__ = ["Chain", "Skeleton", "skeleton"]


@dataclass
class Chain:
    """Vertices each of which lies on all paths from the one before it to the one after it.

    ``nested[i]`` holds the chains between vertices i and i + 1.
    """

    vertices: list[int]
    nested: dict[int, list[Chain]] = field(default_factory=dict)
    depth: int = 0


@dataclass(frozen=True)
class Skeleton:
    """The chains of one graph. Vertex 0 is the start, the last one the end (``what`` None for both)."""

    what: list[Node | str | None]
    chains: list[Chain]
    """All chains, outer ones before inner ones; the first is the root from start to end."""


def skeleton(nodes: Sequence[Node], starts: Sequence[str], ends: Collection[str], reads: Callable[[Node], Sequence[str]]) -> Skeleton:
    """Chains of the part of a graph that ``nodes`` (in topological order) form.

    Parameters
    ----------
    nodes
        Each must be reachable from ``starts`` and reach ``ends`` within ``nodes``.
    starts
        Values that come from outside.
    ends
        Values that are used outside.
    reads
        The values that a node reads; those that are neither started nor computed here are ignored.
    """
    used = {name for node in nodes for name in reads(node)}
    what: list[Node | str | None] = [None]
    place: dict[str, int] = {}
    predecessors: list[list[int]] = [[]]
    for name in starts:
        if name not in place and (name in used or name in ends):
            place[name] = len(what)
            what.append(name)
            predecessors.append([0])
    for node in nodes:
        vertex = len(what)
        what.append(node)
        predecessors.append([place[name] for name in reads(node) if name in place])
        for name in node.outputs:
            if name and name not in place and (name in used or name in ends):
                place[name] = len(what)
                what.append(name)
                predecessors.append([vertex])
    last = len(what)
    what.append(None)
    predecessors.append([place[name] for name in ends if name in place])
    successors: list[list[int]] = [[] for _ in what]
    for vertex, sources in enumerate(predecessors):
        for source in sources:
            successors[source].append(vertex)
    return Skeleton(what, _chains(immediate_dominators(predecessors), immediate_post_dominators(successors), last))


def _chains(idom: list[int], ipdom: list[int], last: int) -> list[Chain]:
    """Chains from the two trees, with their nesting."""

    def follows(vertex: int) -> int:
        """The vertex that ends the region that ``vertex`` begins; -1 if there is none."""
        after = ipdom[vertex]
        return after if after > vertex and idom[after] == vertex else -1

    chains: list[Chain] = []
    home: list[tuple[int, int]] = [(-1, -1)] * (last + 1)
    enclosing: list[tuple[int, int]] = []
    for head in range(last + 1):
        if home[head][0] != -1 or idom[head] == -1 or ipdom[head] == -1:
            continue
        number = len(chains)
        chain = Chain([])
        vertex = head
        while vertex != -1:
            home[vertex] = (number, len(chain.vertices))
            chain.vertices.append(vertex)
            vertex = follows(vertex)
        chains.append(chain)
        if head == 0:
            enclosing.append((-1, -1))
            continue
        above, at = home[idom[head]]
        # A vertex that begins no region ends its chain: what it dominates lies where that chain lies.
        link = (above, at) if at + 1 < len(chains[above].vertices) else enclosing[above]
        enclosing.append(link)
        parent = chains[link[0]]
        parent.nested.setdefault(link[1], []).append(chain)
        chain.depth = parent.depth + 1
    return chains
