"""Sites: what each rule sees of its node, made once for the whole graph."""

from __future__ import annotations

from collections.abc import Mapping, Set

from lipaudit.graph.ir import Graph, Node
from lipaudit.operators.base import Bodies, Site
from lipaudit.operators.catalogue import Catalogue

__all__ = ["drawn", "shape_problem", "sites_of", "with_captures"]


def with_captures(graph: Graph) -> Graph:
    """The graph in which the outer values that a subgraph reads are inputs of the node that owns it.

    They move the node like its other inputs do (one variable, if the node reads it twice); they follow its own inputs.
    """
    nodes = tuple(node.renamed(inputs=(*node.inputs, *captured)) if (captured := graph.captured_by(node)) else node for node in graph.nodes)
    return graph.with_nodes(nodes)


def drawn(graph: Graph, catalogue: Catalogue) -> frozenset[str]:
    """Values that depend on a draw of random numbers: they are no function of anything."""
    found: set[str] = set()
    for node in graph.nodes:
        if any(name in found for name in node.inputs) or _draws(node, catalogue):
            found.update(name for name in node.outputs if name)
    return frozenset(found)


def _draws(node: Node, catalogue: Catalogue) -> bool:
    """Whether a node, or one of its nested graphs, draws random numbers."""
    rule = catalogue.rule(node)
    if rule is not None and not rule.deterministic:
        return True
    bodies = [attr for attr in node.attrs.values() if isinstance(attr, Graph)]
    return any(_draws(inner, catalogue) for body in bodies for inner in body.nodes)


def sites_of(graph: Graph, moving: Set[str], bodies: Bodies | None = None) -> Mapping[str, Site]:
    """A :class:`Site` for every node of ``graph``, by node name. ``moving``: values that depend on a source."""
    return {node.name: _site(graph, node, moving, bodies) for node in graph.nodes}


def _site(graph: Graph, node: Node, moving: Set[str], bodies: Bodies | None) -> Site:
    return Site(
        node=node,
        inputs=tuple(graph.value(name) if name else None for name in node.inputs),
        outputs=tuple(graph.value(name) if name else None for name in node.outputs),
        constants=tuple(graph.constants.get(name) if name else None for name in node.inputs),
        moving=tuple(name in moving for name in node.inputs),
        bodies=bodies,
    )


def shape_problem(site: Site) -> str | None:
    """Why a rule cannot be asked at all: a value without a static shape; None if all is known."""
    for value in (*site.inputs, *site.outputs):
        if value is not None and value.shape is None:
            return f"the shape of {value.name!r} is not known statically"
    return None
