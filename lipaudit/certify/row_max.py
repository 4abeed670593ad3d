"""Gains in the largest-row norm beside those in the flattened norm: the square root of the number of tokens is paid once, not per layer.

``|X|_R = max_i |x_i|`` over the rows of the last axis; ``|X|_R <= |X|_2 <= sqrt(rows) |X|_R``. Every value carries a gain from the source
(flattened norm) to each of the two norms. Maps that act on each row by itself have the same gain in both; attention has a gain of rows
that knows nothing of the number of tokens; a selection of rows and a mean over tokens have 1 in the norm of rows. So a head that
reads one token pays no root at all. Where a map is none of these, the norm of rows restarts at the flattened one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Upper, combine
from lipaudit.certify.methods import Proposal, Workspace, proposals
from lipaudit.certify.methods.cores import CORES
from lipaudit.certify.methods.rows import rows_behind
from lipaudit.certify.sites import shape_problem
from lipaudit.graph.ir import Node
from lipaudit.operators.base import Site, Unknown
from lipaudit.operators.elementwise import Scalar
from lipaudit.operators.movement import integers
from lipaudit.operators.normalizing import Normalizing
from lipaudit.operators.outputs import PerOutput
from lipaudit.topology import Region
from lipaudit.topology.laws import walk

__all__ = ["RowGain", "as_region", "row_gains", "rows_matter"]

_SUMS = frozenset({"ai.onnx::Add", "ai.onnx::Sub", "ai.onnx::Sum", "ai.onnx::Mul", "ai.onnx::Div", "ai.onnx::Mean"})
_PRODUCTS = frozenset({"ai.onnx::MatMul", "ai.onnx::Gemm"})
_ROW_KEEPING = frozenset({"ai.onnx::Reshape", "ai.onnx::Flatten", "ai.onnx::Squeeze", "ai.onnx::Unsqueeze", "ai.onnx::Transpose"})
_CHOOSING = frozenset({"ai.onnx::Gather", "ai.onnx::Slice"})
_REDUCING = frozenset({"ai.onnx::ReduceMean", "ai.onnx::ReduceSum"})
_COPYING = frozenset({"ai.onnx::Identity", "ai.onnx::Cast", "ai.onnx::Dropout"})


@dataclass(frozen=True, slots=True)
class RowGain:
    """Gains from the source in the flattened norm: to the flattened value and to its largest row.

    ``free`` (``row_free``): no factor of it depends on the number of tokens.
    """

    flat: Upper
    row: Upper
    free: bool = True
    row_free: bool = True

    def closed(self, shape: tuple[int, ...] | None) -> RowGain:
        """Each made as small as the other allows, for a value of ``shape``."""
        flat, row, free, row_free = self.flat, self.row, self.free, self.row_free
        if flat < row or (flat <= row and free):
            row, row_free = flat, free
        rows = math.prod(shape[:-1]) if shape else 1
        spread = row if rows <= 1 else row * Upper(rows).sqrt()
        if shape is not None and spread < flat:
            flat, free = spread, row_free and rows <= 1
        return RowGain(flat, row, free, row_free)


def rows_matter(work: Workspace) -> bool:
    """Whether some attention mixes rows: without one both norms tell the same."""
    return work.once(("rows matter",), lambda: any(isinstance(rule, CORES) for rule in work.rules.values()))


def row_gains(work: Workspace, region: Region, source: str) -> dict[str, RowGain]:
    """Gains from ``source`` to every value that the nodes of ``region`` compute from it.

    Values that also depend on other sources count as moved by this one alone.
    """
    start = work.graph.value(source).shape
    found = {source: RowGain(ONE, ONE).closed(start)}
    for item in _items(work, region):
        if isinstance(item, Region):
            gain = _through_region(work, item, found)
            if gain is not None:
                found[item.exit] = gain.closed(work.graph.value(item.exit).shape)
            continue
        if any(name in found and name == source for name in item.outputs):
            continue
        made = [_through_node(work, item, k, found) if name else None for k, name in enumerate(item.outputs)]
        for name, gain in zip(item.outputs, made, strict=True):
            if gain is not None:
                found[name] = gain.closed(work.graph.value(name).shape)
    return found


def as_region(node: Node, site: Site) -> Region | None:
    """A node with one moving input and one output, as the methods for regions see it."""
    moving = [name for name, moves in zip(node.inputs, site.moving, strict=True) if moves]
    if len(moving) != 1 or len(node.outputs) != 1:
        return None
    return Region(node.name, "node", (node.name,), (moving[0],), node.outputs[0])


def _items(work: Workspace, region: Region) -> list[Node | Region]:
    """Regions with a gain of rows as wholes, all other nodes one by one, in the order of the graph."""
    placed: list[tuple[int, Node | Region]] = []
    inside: set[str] = set()
    for below in walk(region):
        if below is region or len(below.nodes) < 2 or below.nodes[0] in inside or not _is_closed(work, below):
            continue
        if any(item.row_max is not None for item in proposals(work, below)):
            placed.append((max(work.order[name] for name in below.nodes), below))
            inside.update(below.nodes)
    placed.extend((work.order[name], work.nodes[name]) for name in region.nodes if name not in inside)
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def _is_closed(work: Workspace, region: Region) -> bool:
    """One way in, and nothing but the exit is seen outside."""
    if len(region.entries) != 1:
        return False
    names = set(region.nodes)
    outputs = [name for node in region.nodes for name in work.nodes[node].outputs if name and name != region.exit]
    return not any(
        name in work.graph.outputs or any(user.name not in names for user in work.graph.consumers.get(name, ())) for name in outputs
    )


def _best(work: Workspace, region: Region, found: Mapping[str, RowGain]) -> RowGain | None:
    """The least of what the methods say of a region, from its entry and from what is normalized before it; None if they say nothing."""
    rows = rows_behind(work, region.entries[0])
    offers: list[Proposal] = list(proposals(work, region)) if region.kind != "node" else []
    if rows is not None and rows.source in found:
        offers += proposals(work, region, behind=True)
    flat, row, free, row_free = INFINITE, INFINITE, False, False
    for offer in offers:
        before = found.get(offer.source)
        if before is None:
            continue
        if offer.slope * before.flat < flat:
            flat, free = offer.slope * before.flat, before.free and offer.row_max == offer.slope
        if offer.row_max is not None and offer.row_max * before.row < row:
            row, row_free = offer.row_max * before.row, before.row_free
    return RowGain(flat, row, free, row_free) if flat.is_finite or row.is_finite else None


def _through_region(work: Workspace, region: Region, found: Mapping[str, RowGain]) -> RowGain | None:
    """Gains of the exit of a region; None if it does not move."""
    if region.entries[0] not in found:
        return None
    # A finite gain of the region behind an infinite one is no bound, and what is left out of ``found`` would count as still.
    return _best(work, region, found) or RowGain(INFINITE, INFINITE, False, False)


def _through_node(work: Workspace, node: Node, k: int, found: Mapping[str, RowGain]) -> RowGain | None:
    """Gains of output ``k`` of one node; None if it does not move."""
    site = work.sites[node.name]
    reached = [i for i in work.moving(node) if node.inputs[i] in found]
    if not reached:
        return None
    if not reached:
        return None
    flat, row = ZERO, ZERO
    free = row_free = True
    beside = _beside(work, node, site)
    flats: list[Upper] = []
    rows: list[Upper] = []
    for i in reached:
        before, gain = found[node.inputs[i]], work.gain(node, i)
        if gain is None:
            return RowGain(INFINITE, INFINITE, False, False)
        slope = gain.outputs[k].slope if isinstance(gain, PerOutput) and k < len(gain.outputs) else gain.slope
        own = _row_factor(work, node, site, i, slope)
        flats.append(slope * before.flat)
        rows.append(own * before.row if own is not None else slope * before.flat)
        free = free and before.free and own is not None and node.kind not in _REDUCING
        row_free = row_free and own is not None and before.row_free and node.kind != "ai.onnx::ReduceSum"
    if beside == "rows":  # operands are different rows of the result
        flat, row = combine(flats, "l2"), max(rows)
    elif beside == "features":
        flat, row = combine(flats, "l2"), combine(rows, "l2")
    else:
        flat, row = combine(flats, "l1"), combine(rows, "l1")
    own_bound = RowGain(flat, row, free, row_free)
    alone = as_region(node, site)
    other = _best(work, alone, found) if alone is not None else None
    if other is None:
        return own_bound
    first = other if other.flat < flat else own_bound
    second = other if other.row < row else own_bound
    return RowGain(first.flat, second.row, first.free, second.row_free)


def _beside(work: Workspace, node: Node, site: Site) -> str:
    """Whether the operands lie side by side in the result: "rows", "features" or "" (they meet)."""
    if node.kind != "ai.onnx::Concat":
        return ""
    rank = len(site.out_shape()) if shape_problem(site) is None else 0
    if rank == 0 or len(set(node.inputs)) != len(node.inputs):
        return ""
    return "features" if int(site.attr("axis", 0)) % rank == rank - 1 else "rows"


def _row_factor(work: Workspace, node: Node, site: Site, i: int, slope: Upper) -> Upper | None:
    """Gain from input ``i`` to the outputs in the largest-row norm, if it is known without the number of rows."""
    if shape_problem(site) is not None:
        return None
    rule, x = work.rules[node.name], site.shape(i)
    shapes = {value.shape for value in site.outputs if value is not None}
    if not x or any(not shape for shape in shapes):
        return None
    same = shapes == {x}
    last = {shape[-1] for shape in shapes if shape} == {x[-1]}
    kind = node.kind
    if kind in _SUMS or kind in _COPYING or isinstance(rule, Scalar):
        return slope if same else None
    if kind == "ai.onnx::Softmax":
        axis = int(site.attr("axis", -1)) % len(x)
        return slope if same and node.version >= 13 and axis == len(x) - 1 else None
    if isinstance(rule, Normalizing):
        plan = rule.plan(site, work.of(node))
        whole = not isinstance(plan, Unknown) and plan.shape == x and plan.axes == (len(x) - 1,) and i in plan.x_inputs
        return slope if whole and same else None
    if kind in _PRODUCTS:
        stored = site.constant(1)
        turned = kind == "ai.onnx::Gemm" and int(site.attr("transA", 0))
        return slope if i == 0 and stored is not None and len(stored.shape) == 2 and len(x) >= 2 and not turned else None
    if kind in _ROW_KEEPING and i == 0 and last:
        if kind == "ai.onnx::Transpose":
            perm = tuple(site.attr("perm") or range(len(x) - 1, -1, -1))
            return slope if perm[-1] == len(x) - 1 else None
        return slope
    if kind == "ai.onnx::Split" and i == 0:
        return ONE
    if kind == "ai.onnx::Concat":
        return ONE
    if kind in _CHOOSING and i == 0:
        return ONE if last and _keeps_last(site, kind, len(x)) else None
    if kind in _REDUCING and i == 0:
        return _averaged(site, kind, x)
    return None


def _keeps_last(site: Site, kind: str, rank: int) -> bool:
    """Whole rows are chosen, each at most as it is."""
    if kind == "ai.onnx::Gather":
        return int(site.attr("axis", 0)) % rank != rank - 1 and rank > 1
    axes = integers(site, 3, "axes")
    starts = integers(site, 1, "starts")
    chosen = axes if axes is not None else list(range(len(starts or ())))
    return starts is not None and all(axis % rank != rank - 1 for axis in chosen)


def _averaged(site: Site, kind: str, x: tuple[int, ...]) -> Upper | None:
    """A mean of rows moves no more than the largest of them, a sum of k rows at most k times."""
    axes = integers(site, 1, "axes")
    if not axes or any(axis % len(x) == len(x) - 1 for axis in axes):
        return None
    return ONE if kind == "ai.onnx::ReduceMean" else Upper(math.prod(x[axis % len(x)] for axis in axes))
