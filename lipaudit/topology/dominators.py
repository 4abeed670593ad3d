"""Immediate dominators and post-dominators of directed acyclic graphs in near-linear time.

In a DAG that is numbered in topological order, the immediate dominator of a vertex is the lowest common ancestor of its
predecessors in the dominator tree built so far; no iteration is needed (Cooper, Harvey, Kennedy 2001 iterate the same step
for graphs with cycles). Ancestors are found through skew-binary jump pointers (Myers 1983): one pointer a vertex beside its
parent, O(log n) a query, so O(E log N) in all, without recursion. ``networkx.immediate_dominators`` is the oracle in the
tests; it is quadratic on combs.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["immediate_dominators", "immediate_post_dominators"]


def immediate_dominators(predecessors: Sequence[Sequence[int]]) -> list[int]:
    """The immediate dominator of every vertex.

    Parameters
    ----------
    predecessors
        For each vertex 0..n-1 the vertices with an edge to it, all of smaller number. Vertex 0 is the start. Parallel edges
        change nothing.

    Returns
    -------
    list of int
        ``idom[v]``; ``idom[0] == 0``; -1 for vertices that cannot be reached from 0.
    """
    size = len(predecessors)
    if size == 0:
        return []
    parent = [-1] * size
    depth = [0] * size
    jump = [0] * size
    parent[0] = 0
    for vertex in range(1, size):
        found = -1
        for other in predecessors[vertex]:
            if parent[other] == -1:
                continue
            if found == -1:
                found = other
                continue
            a, b = found, other
            while depth[a] > depth[b]:
                a = jump[a] if depth[jump[a]] >= depth[b] else parent[a]
            while depth[b] > depth[a]:
                b = jump[b] if depth[jump[b]] >= depth[a] else parent[b]
            while a != b:
                if jump[a] != jump[b]:
                    a, b = jump[a], jump[b]
                else:
                    a, b = parent[a], parent[b]
            found = a
        if found == -1:
            continue
        parent[vertex] = found
        depth[vertex] = depth[found] + 1
        above = jump[found]
        if depth[found] - depth[above] == depth[above] - depth[jump[above]]:
            jump[vertex] = jump[above]
        else:
            jump[vertex] = found
    return parent


def immediate_post_dominators(successors: Sequence[Sequence[int]]) -> list[int]:
    """The immediate post-dominator of every vertex with respect to the last one.

    ``successors[v]`` lists the vertices (of larger number) with an edge from ``v``; vertex n-1 is the end. Returns
    ``ipdom`` with ``ipdom[n-1] == n-1`` and -1 for vertices that do not reach the end.
    """
    last = len(successors) - 1
    mirrored = immediate_dominators([[last - s for s in successors[last - v]] for v in range(last + 1)])
    return [-1 if mirrored[last - v] == -1 else last - mirrored[last - v] for v in range(last + 1)]
