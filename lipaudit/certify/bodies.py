"""Nested graphs (bodies of If, Loop, Scan) certified like whole ones: the service that control-flow rules ask.

A body is closed first: values that it captures become inputs, captured constants its own. Its sources are whatever moves
among them, integers and Booleans too (they may carry jumps). A body inside a body is certified by the same service.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import TypeVar

from lipaudit.bounds.scalar import INFINITE, ZERO, Norm, Upper, matrix_norm
from lipaudit.certify.definitions import define
from lipaudit.certify.gains import Tree
from lipaudit.certify.ledger import Ledger
from lipaudit.certify.node_gains import ask
from lipaudit.certify.ranges import Ranges, forward
from lipaudit.certify.sites import drawn, sites_of, with_captures
from lipaudit.graph.ir import Graph, Value
from lipaudit.operators.base import BodyBound, Site
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.flow import Flow, Reason, may_be_undefined, merged
from lipaudit.operators.range import Range
from lipaudit.topology import Topology, recognise
from lipaudit.topology.sources import Source
from lipaudit.topology.sources import moving as reach

__all__ = ["Bodies"]

# Iterations that are followed one by one at the outermost level; a quarter of them at each level below.
_STEPS = 64
_MOST_STORED = 512

_Kept = TypeVar("_Kept")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A closed body, recognised, with its sites. ``body`` keeps the key of the memo alive."""

    body: Graph
    topology: Topology
    graph: Graph
    sites: Mapping[str, Site]
    random: frozenset[str]


class Bodies:
    """See :class:`lipaudit.operators.base.Bodies`. Answers are kept, so that a rule may ask again for each of its inputs."""

    def __init__(self, catalogue: Catalogue, steps: int = _STEPS) -> None:
        self.steps = steps
        self._catalogue = catalogue
        self._prepared: dict[tuple[int, frozenset[str]], _Prepared] = {}
        self._ranges: dict[tuple[object, ...], Ranges] = {}
        self._bounds: dict[tuple[object, ...], BodyBound] = {}
        self._definitions: dict[int, tuple[Site, Graph | None]] = {}

    def definition(self, site: Site) -> Graph | None:
        """The function body of the node, built once for each site."""
        known = self._definitions.get(id(site))
        if known is None:
            known = self._definitions[id(site)] = (site, define(site, self._catalogue.operators()))
        return known[1]

    def ranges(self, site: Site, body: Graph, given: Mapping[str, Range], moving: Set[str]) -> tuple[Range | None, ...]:
        """Ranges of the outputs of ``body``."""
        prepared = self._prepare(site, body, frozenset(moving))
        found = self._forward(prepared, given, frozenset(moving))
        return tuple(found.get(name) for name in body.outputs)

    def bound(self, site: Site, body: Graph, given: Mapping[str, Range], moving: Set[str], norm: Norm) -> BodyBound:
        """Certified bounds of ``body``: its regions, like those of a whole graph."""
        names = frozenset(moving)
        prepared = self._prepare(site, body, names)
        key = (norm, id(body), names, *_fingerprint(given))
        known = self._bounds.get(key)
        if known is None:
            known = self._certify(prepared, self._forward(prepared, given, names), norm)
            _keep(self._bounds, key, known)
        return known

    def _forward(self, prepared: _Prepared, given: Mapping[str, Range], moving: frozenset[str]) -> Ranges:
        key = (id(prepared.body), moving, *_fingerprint(given))
        known = self._ranges.get(key)
        if known is None:
            known = forward(prepared.graph, given, self._catalogue, prepared.sites)
            _keep(self._ranges, key, known)
        return known

    def _prepare(self, site: Site, body: Graph, names: frozenset[str]) -> _Prepared:
        key = (id(body), names)
        known = self._prepared.get(key)
        if known is None:
            closed = _closed(site, body)
            sources = tuple(Source(value.name, "input", value, value.name) for value in closed.inputs if value.name in names)
            topology = recognise(closed, sources)
            graph = with_captures(topology.graph)
            inner = Bodies(self._catalogue, self.steps // 4)
            sites = sites_of(graph, reach(graph, sources), inner)
            known = self._prepared[key] = _Prepared(body, topology, graph, sites, drawn(graph, self._catalogue))
        return known

    def _certify(self, prepared: _Prepared, ranges: Ranges, norm: Norm) -> BodyBound:
        topology, graph, sites = prepared.topology, prepared.graph, prepared.sites
        outputs = topology.simplified.outputs
        sources = [source.name for source in topology.sources]
        ledger = Ledger()
        flows: Mapping[str, Flow] = {}
        columns: list[range] = []
        if sources:
            nodes = [node for node in graph.nodes if any(sites[node.name].moving)]
            gains = ask(nodes, sites, ranges, self._catalogue, norm, ledger, prepared.random)
            flows, _, columns = Tree(graph, topology.root, sites, gains, ranges, self._catalogue, norm, ledger).certify(sources, outputs)
        found: list[Mapping[str, Upper]] = []
        offsets: list[Upper] = []
        reasons: list[tuple[Reason, ...]] = []
        for name in outputs:
            flow = flows.get(name)
            if name in prepared.random:
                found.append(dict.fromkeys(sources, INFINITE))
                offsets.append(INFINITE)
                reasons.append((Reason(name, "", "unknown", "it depends on random numbers, so it is not a function of the input"),))
            elif flow is None:
                found.append({})
                offsets.append(ZERO)
            else:
                slopes = {
                    source: matrix_norm([[row.gains[j] for j in parts] for row in flow.rows], norm)
                    for source, parts in zip(sources, columns, strict=True)
                }
                found.append({source: slope for source, slope in slopes.items() if not slope.is_zero})
                offset = flow.offset(norm)
                offsets.append(offset)
                finite = offset.is_finite and all(slope.is_finite for slope in slopes.values())
                if not finite or may_be_undefined(flow):
                    reasons.append(flow.reasons)
        return BodyBound(tuple(found), tuple(offsets), merged(reasons))


def _closed(site: Site, body: Graph) -> Graph:
    """The body with the outer values that it captures as inputs, and captured constants as its own."""
    types = {name: value for name, value in zip(site.node.inputs, site.inputs, strict=True) if name and value is not None}
    stored = {name: constant for name, constant in zip(site.node.inputs, site.constants, strict=True) if constant is not None}
    constants = {**{name: stored[name] for name in body.captures if name in stored}, **body.constants}
    captured = tuple(types.get(name, Value(name, "", None)) for name in body.captures if name not in stored)
    values = {**body.values, **{value.name: value for value in captured}, **{name: constants[name].value for name in constants}}
    return replace(body, inputs=(*body.inputs, *captured), constants=constants, values=values, captures=())


def _fingerprint(given: Mapping[str, Range]) -> tuple[object, ...]:
    """Equal for equal ranges."""
    return tuple(
        (name, x.shape, x.lo.shape, x.lo.tobytes(), x.hi.shape, x.hi.tobytes(), x.row, x.diameter, x.zero_mean, x.integral)
        for name, x in sorted(given.items())
    )


def _keep(memo: dict[tuple[object, ...], _Kept], key: tuple[object, ...], value: _Kept) -> None:
    if len(memo) >= _MOST_STORED:
        memo.clear()
    memo[key] = value
