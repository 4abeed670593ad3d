"""From regions and a domain to certified bounds with their derivation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lipaudit.bounds.scalar import INFINITE, ZERO, Norm, Upper, combine, matrix_norm
from lipaudit.bounds.threads import single_threaded
from lipaudit.certify.bodies import Bodies
from lipaudit.certify.domain import Domain
from lipaudit.certify.gains import Bound, RegionBound, Tree, random_flow
from lipaudit.certify.largest_rows import by_rows
from lipaudit.certify.ledger import Ledger
from lipaudit.certify.node_gains import NodeGains, ask
from lipaudit.certify.ranges import Ranges, propagate
from lipaudit.certify.row_max import rows_matter
from lipaudit.certify.sites import drawn, sites_of, with_captures
from lipaudit.graph.ir import Graph
from lipaudit.operators.base import Site
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.flow import Flow, Reason, merged
from lipaudit.records import Step
from lipaudit.topology import Topology
from lipaudit.topology.sources import moving

__all__ = ["Bound", "Certificate", "RegionBound", "certify"]


@dataclass(frozen=True)
class Certificate:
    """Everything that was certified.

    ``domain`` is "reals" or "box". ``headline`` is joint over all sources and all float outputs; ``matrix`` holds the bound of each
    (source, output) with the other sources held; ``regions`` are by path; ``steps`` is the derivation of all of them.
    """

    domain: str
    headline: Bound
    matrix: Mapping[tuple[str, str], Bound]
    regions: Mapping[str, RegionBound]
    ranges: Ranges
    sites: Mapping[str, Site]
    gains: Mapping[str, NodeGains]
    outputs: tuple[str, ...]
    steps: Sequence[Step]

    def borders(self) -> list[tuple[str, tuple[str, ...], str]]:
        """``(path, entries, exit)`` of every region, for the measurement of each region's own gain."""
        return [(path, bound.region.entries, bound.region.exit) for path, bound in self.regions.items()]


def certify(
    topology: Topology,
    catalogue: Catalogue,
    domain: Domain,
    norm: Norm,
    progress: Callable[[float], None] | None = None,
    *,
    wholes: bool = True,
) -> Certificate:
    """Certified bounds of the whole graph and of each region, in ``norm``, on ``domain``.

    Without ``wholes`` no method looks at a region as a whole: what the rules of the nodes alone give, for comparison.
    """
    graph = with_captures(topology.graph)
    moved = moving(graph, topology.sources)
    sites = sites_of(graph, moved, Bodies(catalogue))
    ledger = Ledger()
    random = drawn(graph, catalogue)
    with single_threaded():
        ranges = propagate(graph, topology.sources, catalogue, domain, sites)
        nodes = [node for node in graph.nodes if any(sites[node.name].moving) and not _is_cut(topology, node.outputs)]
        gains = ask(nodes, sites, ranges, catalogue, norm, ledger, random, progress)
        outputs = _float_outputs(topology)
        tree = Tree(graph, topology.root, sites, gains, ranges, catalogue, norm, ledger, wholes=wholes)
        flows, steps, columns = tree.certify([source.value.name for source in topology.sources], outputs)
    if topology.sources and all(source.value.shape is not None and source.value.size == 0 for source in topology.sources):
        flows = {}  # a tensor without elements has one value
    for name in outputs:
        if name not in flows and name in random:
            flows[name] = random_flow(columns[-1].stop if columns else 0, name)
    headline, matrix = _whole(topology, flows, columns, outputs, norm, ledger, steps)
    if wholes and norm == "l2" and rows_matter(tree.work):
        headline, matrix = by_rows(tree.work, topology, outputs, headline, matrix, ledger)
    if not topology.sources and (reached := _inputs_behind(graph, outputs)):
        words = f"its inputs ({', '.join(reached)}) are no floating-point tensors and look up no embedding: nothing moves continuously"
        headline = Bound(INFINITE, INFINITE, "none", (Reason(reached[0], "input", "unknown", words),), headline.step)
    return Certificate(domain.kind, headline, matrix, tree.bounds, ranges, sites, gains, outputs, ledger.steps)


def _inputs_behind(graph: Graph, outputs: Sequence[str]) -> list[str]:
    """The graph inputs that the outputs depend on."""
    needed = set(outputs)
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs):
            needed.update(node.inputs)
    return [value.name for value in graph.inputs if value.name in needed]


def _is_cut(topology: Topology, outputs: Sequence[str]) -> bool:
    """True for the node whose output is a source: what lies before the cut does not count."""
    cuts = {source.value.name for source in topology.sources}
    return any(name in cuts for name in outputs)


def _float_outputs(topology: Topology) -> tuple[str, ...]:
    """The outputs that the headline speaks of: the float ones, or all where there is none."""
    names = topology.graph.outputs
    floats = tuple(name for name in names if topology.graph.value(name).is_float)
    return floats or names


def _whole(
    topology: Topology,
    flows: Mapping[str, Flow],
    columns: Sequence[range],
    outputs: Sequence[str],
    norm: Norm,
    ledger: Ledger,
    steps: list[int],
) -> tuple[Bound, dict[tuple[str, str], Bound]]:
    """The joint bound and the matrix source x output. Source i is cut into the parts ``columns[i]``."""
    sources = [source.value.name for source in topology.sources]
    rows: list[tuple[Upper, ...]] = []
    offsets: list[Upper] = []
    reasons: list[tuple[Reason, ...]] = []
    matrix: dict[tuple[str, str], Bound] = {}
    for output in outputs:
        flow = flows.get(output)
        own = [row.gains for row in flow.rows] if flow is not None else []
        offset = flow.offset(norm) if flow is not None else ZERO
        rows.extend(own)
        offsets.append(offset)
        why = flow.reasons if flow is not None else ()
        for source, parts in zip(sources, columns, strict=True):
            gain = matrix_norm([[gains[j] for j in parts] for gains in own], norm)
            step = ledger.add("gain", f"{source} -> {output}", "paths over the region tree", gain, offset=offset, operands=steps)
            broken = () if gain.is_finite and offset.is_finite else why
            matrix[source, output] = Bound(gain, offset, "paths", broken, step)
            reasons.append(broken)
    slope = matrix_norm(rows, norm) if sources else ZERO
    offset = combine(offsets, norm)
    operands = [bound.step for bound in matrix.values() if bound.step is not None]
    step = ledger.add("gain", "all sources -> all outputs", f"{norm} norm of the matrix of gains", slope, offset=offset, operands=operands)
    return Bound(slope, offset, "paths", merged(reasons), step), matrix
