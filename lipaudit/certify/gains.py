"""Gains over the region tree: from each entry of a region to its exit, then from the sources to the outputs.

A region with one exit is certified by itself: its entries move freely on their own range, the partition calculus
(``operators.flow``) carries them to the exit. Its parent sees it as one map, so gains multiply along the spine and add at
joins: ``gain(v <- s) <= gain(v <- w) * gain(w <- s)`` for any cut w. The best of the methods wins, region by region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lipaudit.bounds.scalar import INFINITE, ZERO, Lower, Norm, Upper, combine, dual, matrix_norm, repeat_factor
from lipaudit.certify.bound import Bound
from lipaudit.certify.cuts import atoms
from lipaudit.certify.ledger import Ledger
from lipaudit.certify.lower import NOTHING, ResidualParts, chained, residual_lower
from lipaudit.certify.methods import Proposal, Workspace, proposals
from lipaudit.certify.methods.affine import affine_map
from lipaudit.certify.methods.entries import entry_gain
from lipaudit.certify.methods.rows import rows_behind
from lipaudit.certify.node_gains import NodeGains
from lipaudit.certify.row_max import as_region, row_gains, rows_matter
from lipaudit.certify.sites import shape_problem
from lipaudit.graph.ir import Graph, Node
from lipaudit.operators.base import Finite, Rule, Site, joint_flow
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.flow import Flow, Reason, Row, flatten, identity, merged, total
from lipaudit.operators.range import Range
from lipaudit.topology import Region
from lipaudit.topology.laws import walk

__all__ = ["Bound", "Entry", "RegionBound", "Tree", "random_flow"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One way into a region, with what is known of the region beyond it."""

    value: str
    bound: Bound


@dataclass
class RegionBound:
    """What is certified about one region.

    ``entries`` hold the gain from each entry alone; ``joint`` from all together. ``before`` is the certified gain from the
    sources to the entries (jointly), ``after`` from the exit to the outputs. ``lower``: two points of the range are not brought
    closer than by this factor. ``branch`` and ``shortcut``: of a residual block, from its entry (branches added).
    """

    region: Region
    entries: tuple[Entry, ...]
    joint: Bound
    before: Upper = INFINITE
    after: Upper = INFINITE
    lower: Lower = NOTHING
    branch: Upper | None = None
    shortcut: Upper | None = None
    inner: dict[str, Upper] = field(default_factory=dict)
    outer: dict[str, Upper] = field(default_factory=dict)


_Item = Node | Region


class Tree:
    """Certifies every region of a tree, leaves first, and the whole graph last (no recursion: trees may be deep)."""

    def __init__(
        self,
        graph: Graph,
        root: Region,
        sites: Mapping[str, Site],
        gains: Mapping[str, NodeGains],
        ranges: Mapping[str, Range],
        catalogue: Catalogue,
        norm: Norm,
        ledger: Ledger,
        *,
        wholes: bool = True,
    ) -> None:
        self.graph = graph
        self.root = root
        self.norm: Norm = norm
        self.ledger = ledger
        self.bounds: dict[str, RegionBound] = {}
        self._sites = sites
        self._gains = gains
        self._rules: dict[str, Rule | None] = {node.name: catalogue.rule(node) for node in graph.nodes}
        self._nodes = {node.name: node for node in graph.nodes}
        self._order = {node.name: i for i, node in enumerate(graph.nodes)}
        self._level_of: dict[str, str] = {}
        self._behind: dict[str, Bound | None] = {}
        self.work = Workspace(graph, self._nodes, self._order, sites, self._rules, gains, ranges, norm, wholes)
        reads = (pair for site in sites.values() for pair in zip(site.node.inputs, site.moving, strict=True))
        self._moving = frozenset(name for name, moves in reads if moves)

    # ------------------------------------------------------------------ the tree

    def certify(self, sources: Sequence[str], outputs: Sequence[str]) -> tuple[dict[str, Flow], list[int], list[range]]:
        """Flows of all values at the root's level, after certifying every region.

        Sources are cut at the slices that are taken of them; the ranges returned are the columns of each source.
        """
        for region in reversed(walk(self.root)):
            if region is not self.root:
                self.bounds[region.path] = self._region(region)
        items = self._items(self.root)
        start, columns = self._start(items, sources)
        flows, steps = self._propagate(items, start)
        self._profile(items, flows, outputs)
        return flows, steps, columns

    def _start(self, items: Sequence[_Item], entries: Sequence[str]) -> tuple[dict[str, Flow], list[range]]:
        """The flows of the cut: each entry in its own parts, and the columns that these parts are."""
        nodes = [item for item in items if isinstance(item, Node)]
        cuts = [atoms(self.graph, nodes, name) for name in entries]
        counts = [1 if cut is None else len(cut.sizes) for cut in cuts]
        unit = identity(sum(counts))
        start: dict[str, Flow] = {}
        columns: list[range] = []
        for name, cut, count in zip(entries, cuts, counts, strict=True):
            begin = columns[-1].stop if columns else 0
            columns.append(range(begin, begin + count))
            rows = unit.rows[begin : begin + count]
            start[name] = Flow(rows) if cut is None else Flow(rows, cut.axis, cut.sizes)
        return start, columns

    def _region(self, region: Region) -> RegionBound:
        """Certify one region whose children are certified."""
        items = self._items(region)
        entries = region.entries
        start, columns = self._start(items, entries)
        flows, steps = self._propagate(items, start)
        exit_flow = flows.get(region.exit)
        found: list[Entry] = []
        for name, parts in zip(entries, columns, strict=True):
            found.append(Entry(name, self._bound(region, name, exit_flow, list(parts), steps)))
        joint = found[0].bound if len(found) == 1 else self._bound(region, "all entries", exit_flow, None, steps)
        if len(found) == 1:
            affine = affine_map(self.work, region)
            offers = [*([] if affine is None else [affine]), *proposals(self.work, region), *self._by_rows(region)]
            for other in (self._recorded(region, item, steps) for item in offers):
                if joint.status != "finite" or (other.slope < joint.slope and other.offset.is_zero):
                    joint = other
                    found = [Entry(entries[0], other)]
        elif region.kind == "attention":
            found, joint = self._by_entry(region, found, joint, steps)
        bound = RegionBound(region, tuple(found), joint)
        self._below(bound, items, flows)
        ahead = self._ahead(items, [region.exit])
        for below in self._level(region):
            self._level_of[below.path] = region.path
            bound.inner[below.path] = self._reach(below, flows)
            bound.outer[below.path] = ahead.get(below.exit, ZERO)
        return bound

    def _by_entry(self, region: Region, found: list[Entry], joint: Bound, steps: list[int]) -> tuple[list[Entry], Bound]:
        """Each of several entries by itself, the others held; jointly ``sqrt(sum_e L_e^2)``."""
        better: list[Entry] = []
        for entry in found:
            item = entry_gain(self.work, region, entry.value)
            own = entry.bound
            if item is not None and item.slope.is_finite and (own.status != "finite" or item.slope < own.slope):
                own = self._recorded(region, item, steps)
            better.append(Entry(entry.value, own))
        if all(entry.bound.status == "finite" and entry.bound.offset.is_zero for entry in better):
            slope = combine([entry.bound.slope for entry in better], dual(self.norm))
            if joint.status != "finite" or slope < joint.slope:
                operands = [entry.bound.step for entry in better if entry.bound.step is not None]
                evidence = {"entry": "all entries", "exit": region.exit, "kind": region.kind}
                step = self.ledger.add(
                    "region gain", region.path, "gains of the entries together", slope, operands=operands, evidence=evidence
                )
                joint = Bound(slope, ZERO, "attention: entry by entry", (), step)
        return better, joint

    def _below(self, bound: RegionBound, items: Sequence[_Item], flows: Mapping[str, Flow]) -> None:
        """Lower gain, and what a residual block is made of."""
        region = bound.region
        known = {item.path: self.bounds[item.path].lower for item in items if isinstance(item, Region)}
        bound.lower = chained(self.work, region, items, known)
        if region.kind != "residual":
            return
        parts = ResidualParts.of(self.work, region)
        reached = [flows[child.exit] for child in parts.branches if child.exit in flows]
        if len(reached) == len(parts.branches) and reached and all(flow.offset(self.norm).is_zero for flow in reached):
            bound.branch = combine([flow.gain(self.norm) for flow in reached], "l1")
        if parts.shortcut is not None and parts.shortcut in flows:
            bound.shortcut = flows[parts.shortcut].gain(self.norm)
        if bound.branch is not None:
            direct = Lower(1) if parts.shortcut_region is None else self.bounds[parts.shortcut_region.path].lower
            bound.lower = max(bound.lower, residual_lower(self.work, region, parts, bound.branch, direct))

    def _recorded(self, region: Region, item: Proposal, steps: list[int]) -> Bound:
        """A proposal as a bound with its step."""
        evidence = {"entry": item.source, "exit": region.exit, "kind": region.kind, **item.evidence}
        step = self.ledger.add("region gain", region.path, item.rule, item.slope, operands=steps, evidence=evidence)
        return Bound(item.slope, ZERO, item.method, (), step)

    def _by_rows(self, region: Region) -> list[Proposal]:
        """A stack of blocks through the gains of rows: the square root of their number once, not per block."""
        if region.kind != "stack" or self.norm != "l2" or not self.work.wholes or not rows_matter(self.work):
            return []
        found = row_gains(self.work, region, region.entries[0]).get(region.exit)
        if found is None or not found.flat.is_finite:
            return []
        evidence = {"to the largest row": found.row.decimal(), "free of the number of rows": found.row_free}
        return [Proposal(region.entries[0], found.flat, "largest rows", "gains to the largest row carried through the stack", evidence)]

    def _shorten(self, region: Region, flows: dict[str, Flow], steps: list[int]) -> None:
        """Replace the flow of a region's exit by one from what the normalization before its entry reads, if that is less."""
        rows = rows_behind(self.work, region.entries[0]) if len(region.entries) == 1 else None
        if rows is None or rows.source not in flows:
            return
        if region.path not in self._behind:
            found = [self._recorded(region, item, []) for item in proposals(self.work, region, behind=True)]
            self._behind[region.path] = min(found, key=lambda bound: bound.slope, default=None)
        bound = self._behind[region.path]
        if bound is None or bound.step is None:
            return
        shorter = self._through(bound, flows[rows.source])
        if _is_less(shorter, flows[region.exit], self.norm):
            flows[region.exit] = shorter
            steps.append(bound.step)

    def _level(self, region: Region) -> list[Region]:
        """Regions whose entries are values of this level: children, and what lies in children that are no maps."""
        found: list[Region] = []
        stack = list(region.children)
        while stack:
            child = stack.pop()
            found.append(child)
            if not self._is_map(child):
                stack.extend(child.children)
        return found

    def _reach(self, region: Region, flows: Mapping[str, Flow]) -> Upper:
        """Gain from the start of a level to the entries of a region, jointly."""
        return combine([flatten(flows[name], self.norm).gain(self.norm) for name in region.entries if name in flows], self.norm)

    def _bound(self, region: Region, entry: str, flow: Flow | None, parts: list[int] | None, steps: list[int]) -> Bound:
        if flow is None:
            return Bound(ZERO, ZERO, "does not move")
        if parts is None:
            slope = flow.gain(self.norm)
        else:
            slope = matrix_norm([[row.gains[j] for j in parts] for row in flow.rows], self.norm)
        offset = flow.offset(self.norm)
        evidence = {"entry": entry, "exit": region.exit, "kind": region.kind}
        rule = "sums and products of gains over the region (partition calculus)"
        step = self.ledger.add("region gain", region.path, rule, slope, offset=offset, operands=steps, evidence=evidence)
        reasons = () if slope.is_finite and offset.is_finite else flow.reasons
        return Bound(slope, offset, "paths", reasons, step)

    # ------------------------------------------------------------------ one level

    def _items(self, region: Region) -> list[_Item]:
        """Nodes and child regions of one level in an order in which each comes after what it reads.

        A child stands where its last node stands: what it reads comes before that, what reads its exit after.
        """
        placed: list[tuple[int, _Item]] = []
        inside: set[str] = set()
        stack = list(region.children)
        while stack:
            child = stack.pop()
            if self._is_map(child):
                placed.append((max(self._order[name] for name in child.nodes), child))
                inside.update(child.nodes)
            elif child.children:
                stack.extend(child.children)
        placed.extend((self._order[name], self._nodes[name]) for name in region.nodes if name not in inside)
        return [item for _, item in sorted(placed, key=lambda pair: pair[0])]

    def _is_map(self, region: Region) -> bool:
        """True if it reads nothing but its entries and shows nothing but its exit, so that a parent may treat it as one map."""
        if len(region.nodes) < 2 or not region.entries:
            return False
        names = set(region.nodes)
        inside = {output for name in region.nodes for output in self._nodes[name].outputs}
        read = {name for node in region.nodes for name in self._nodes[node].inputs if name in self._moving}
        if not read <= inside | set(region.entries):
            return False
        seen = {
            output
            for name in region.nodes
            for output in self._nodes[name].outputs
            if output in self._moving and any(user.name not in names for user in self.graph.consumers.get(output, ()))
        }
        leaving = {output for name in region.nodes for output in self._nodes[name].outputs if output in self.graph.outputs}
        return (seen | leaving) <= {region.exit}

    def _propagate(self, items: Sequence[_Item], start: Mapping[str, Flow]) -> tuple[dict[str, Flow], list[int]]:
        """Flows of all values on one level, and the derivation steps that they rest on."""
        flows = dict(start)
        steps: list[int] = []
        for item in items:
            if isinstance(item, Region):
                bound = self.bounds[item.path]
                parts = [self._through(entry.bound, flows[entry.value]) for entry in bound.entries if entry.value in flows]
                if parts:
                    flows[item.exit] = total(parts)
                    steps.extend(entry.bound.step for entry in bound.entries if entry.bound.step is not None)
                    self._shorten(item, flows, steps)
                continue
            moved = [flows.get(name) if name else None for name in item.inputs]
            if all(flow is None for flow in moved):
                continue
            asked = self._gains[item.name]
            steps.extend(asked.steps)
            rule, site = self._rules[item.name], self._sites[item.name]
            gains = tuple(gain if flow is not None else None for gain, flow in zip(asked.gains, moved, strict=True))
            if rule is None or shape_problem(site) is not None:
                results = joint_flow(site, moved, gains, self.norm)
            else:
                results = rule.flow(site, moved, gains, self.norm)
            for k, name in enumerate(item.outputs):
                if name and name not in start:
                    flows[name] = results[k] if k < len(results) else _unsaid(item, results)
            alone = as_region(item, site)
            if alone is not None:
                self._shorten(alone, flows, steps)
        return flows, steps

    def _through(self, bound: Bound, flow: Flow) -> Flow:
        moved = flatten(flow, self.norm).scaled(bound.slope, bound.offset)
        if bound.status == "finite":
            return moved
        return Flow(moved.rows, reasons=merged((moved.reasons, bound.reasons)))

    # ------------------------------------------------------------------ the profile along depth

    def _profile(self, items: Sequence[_Item], flows: Mapping[str, Flow], outputs: Sequence[str]) -> None:
        """``before`` and ``after`` of every region: level by level, from the sources in and from the outputs back."""
        ahead = self._ahead(items, outputs)
        for region in self._level(self.root):
            bound = self.bounds[region.path]
            bound.before, bound.after = self._reach(region, flows), ahead.get(region.exit, ZERO)
        for region in walk(self.root):
            above = self.bounds.get(self._level_of.get(region.path, ""))
            if above is not None:
                bound = self.bounds[region.path]
                bound.before = above.inner[region.path] * above.before
                bound.after = above.outer[region.path] * above.after

    def _ahead(self, items: Sequence[_Item], exits: Sequence[str]) -> dict[str, Upper]:
        """Gain from every value of one level to its exits: paths added, one variable at a time."""
        # A value that is listed as several outputs arrives several times.
        ahead = {name: repeat_factor(list(exits).count(name), self.norm) for name in exits}
        for item in reversed(items):
            if isinstance(item, Region):
                if item.exit in ahead:
                    for entry in self.bounds[item.path].entries:
                        ahead[entry.value] = ahead.get(entry.value, ZERO) + entry.bound.slope * ahead[item.exit]
                continue
            # The gain of a node is to its outputs jointly, and sum_k r_k |dy_k| <= |r|_q |(|dy_k|)|_p with the dual norm q.
            beyond = combine([ahead[name] for name in item.outputs if name in ahead], dual(self.norm))
            if beyond.is_zero or item.name not in self._gains:
                continue
            for name, gain in zip(item.inputs, self._gains[item.name].gains, strict=True):
                if gain is not None:
                    slope = gain.slope if isinstance(gain, Finite) else INFINITE
                    ahead[name] = ahead.get(name, ZERO) + slope * beyond
        return ahead


def _is_less(flow: Flow, other: Flow, norm: Norm) -> bool:
    """A flow that says more: both its gain and its offset are at most those of the other."""
    return flow.gain(norm) < other.gain(norm) and flow.offset(norm) <= other.offset(norm)


def _unsaid(node: Node, results: Sequence[Flow]) -> Flow:
    """Of an output that the rule says nothing about: no bound (never "does not move")."""
    words = f"the rule of {node.op} says nothing about this output"
    parts = len(results[0].rows[0].gains)
    return Flow((Row(tuple(INFINITE for _ in range(parts)), INFINITE),), reasons=(Reason(node.name, node.kind, "unknown", words),))


def random_flow(parts: int, name: str) -> Flow:
    """Of a value that holds random numbers: no bound."""
    reason = Reason(name, "", "unknown", "it depends on random numbers, so it is not a function of the input")
    return Flow((Row(tuple(INFINITE for _ in range(parts)), INFINITE),), reasons=(reason,))
