"""A normalization and the product that follows it as one: ``||W G P|| / s0`` instead of ``||W|| max|g| / s0`` (exact on all reals).

``W G P`` drops what the normalization drops (the mean) and sees its scale channel by channel. What follows the product in a chain
multiplies by its own gain.
"""

from __future__ import annotations

import numpy as np

from lipaudit.bounds.scalar import ONE
from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.heads import rows_read
from lipaudit.certify.methods.layout import Layout, follow
from lipaudit.certify.methods.rows import rows_behind
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.graph.ir import Node
from lipaudit.topology import Region

__all__ = ["normalized_chain"]


def normalized_chain(work: Workspace, region: Region, *, behind: bool) -> Proposal | None:
    """A chain that begins with a product of the rows of a normalization, from what the normalization reads."""
    if not behind or work.norm != "l2" or len(region.entries) != 1:
        return None
    entry = region.entries[0]
    rows = rows_behind(work, entry)
    chain = _chain(work, region)
    if rows is None or not rows.source or chain is None:
        return None
    width = (work.graph.value(entry).shape or (1,))[-1]
    at, layout = next(((i, found) for i, found in _layouts(work, chain, entry) if found.base.weight is not None), (0, None))
    if layout is None or layout.base.weight is None or not layout.is_unchanged:
        return None
    read = rows_read(layout, width)
    if read is None or np.unique(read).size != read.size:
        return None
    product = rows.through(Enclosed(layout.base.weight.T)).norm()
    rest = ONE
    for node in chain[at + 1 :]:
        found = work.gain(node, work.moving(node)[0])
        if found is None:
            return None
        rest = rest * found.slope
    evidence = {"gain before": rows.gain.decimal(), "W G P": product.decimal(), "after it": rest.decimal(), "product": chain[at].name}
    rule = "normalization and product as one (W G P), then the rest of the chain"
    slope = rows.gain * product * rest
    row_max = slope if len(chain) == 1 else None  # each row by itself; of longer chains the nodes are asked one by one
    return Proposal(rows.source, slope, "normalization merged with the product", rule, evidence, row_max)


def _chain(work: Workspace, region: Region) -> list[Node] | None:
    """The nodes one after the other, if each reads only the one before it."""
    value, found = region.entries[0], work.sorted(region.nodes)
    for node in found:
        moving = work.moving(node)
        if len(moving) != 1 or node.inputs[moving[0]] != value or len([name for name in node.outputs if name]) != 1:
            return None
        value = node.outputs[0]
    return found if found and value == region.exit else None


def _layouts(work: Workspace, chain: list[Node], entry: str) -> list[tuple[int, Layout]]:
    found = follow(work, chain, entry)
    return [(i, found[node.outputs[0]]) for i, node in enumerate(chain) if node.outputs[0] in found]
