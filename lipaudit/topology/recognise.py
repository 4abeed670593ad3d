"""Recognise: from a simplified graph to its abstract graph and the tree of its regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lipaudit.graph.ir import Graph
from lipaudit.topology.facts import annotate
from lipaudit.topology.fuse import fuse
from lipaudit.topology.match import Refusal
from lipaudit.topology.regions import Region, build, finish
from lipaudit.topology.sources import Source, find_sources, moving

__all__ = ["Topology", "recognise"]


@dataclass(frozen=True, eq=False)
class Topology:
    """What was recognised.

    Attributes
    ----------
    simplified
        The graph that was given.
    graph
        The abstract graph: recognised computations are one node each, whose ``covers`` lists the nodes of ``simplified``;
        the values at their borders keep their names.
    sources
        Where gains start.
    root
        The tree of regions over the moving nodes of ``graph``.
    refusals
        Nodes at which a pattern began and did not hold, with the reason.
    node_facts
        By node of ``graph``: facts for guidelines (namespace "node" of rules/facts.toml), only where they are not the default.
    """

    simplified: Graph
    graph: Graph
    sources: tuple[Source, ...]
    root: Region
    refusals: tuple[Refusal, ...] = ()
    node_facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def recognise(graph: Graph, sources: Sequence[Source] | None = None) -> Topology:
    """Find sources, fuse what patterns recognise, and build the tree of regions.

    Parameters
    ----------
    graph
        Simplified: static shapes, constants folded, no dead nodes.
    sources
        Where gains start; None finds them (:func:`find_sources`).

    Returns
    -------
    Topology
        Deterministic: equal graphs give equal trees. Near-linear in nodes and edges, without recursion.
    """
    sources = find_sources(graph) if sources is None else tuple(sources)
    moves = moving(graph, sources)
    fused = fuse(graph, moves)
    still = moving(fused.graph, sources)
    draft = build(fused.graph, still, sources)
    node_facts = annotate(graph, fused.graph, still, draft)
    return Topology(graph, fused.graph, sources, finish(fused.graph, still, draft), fused.refusals, node_facts)
