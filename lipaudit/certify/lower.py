"""The vanishing side: how much the difference of two inputs must at least survive in a region.

``|x + f(x) - y - f(y)| >= (1 - L(f)) |x - y|``: a residual block whose branch has gain below 1 loses nothing completely, and by duality
neither do gradients. Lower gains multiply along a chain; permutations have 1, constant factors their smallest magnitude.
Everything with a kernel (normalization, attention, pooling, products that shrink) has 0: nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.scalar import Lower, Upper
from lipaudit.bounds.selection import Permutation
from lipaudit.certify.methods import Workspace
from lipaudit.graph.ir import Node
from lipaudit.topology import Region

__all__ = ["NOTHING", "ResidualParts", "chained", "node_lower", "residual_lower"]

NOTHING = Lower(0)
_SUMS = frozenset({"ai.onnx::Add", "ai.onnx::Sum", "ai.onnx::Sub"})


@dataclass(frozen=True, eq=False)
class ResidualParts:
    """What a residual region is made of: the value that the shortcut brings to the join, the branches, the nodes of the join."""

    shortcut: str | None
    shortcut_region: Region | None
    branches: tuple[Region, ...]
    joins: tuple[str, ...]

    @classmethod
    def of(cls, work: Workspace, region: Region) -> ResidualParts:
        """Read off the roles of the children."""
        roles = {child.path: child.path.rsplit("/", 1)[-1] for child in region.children}
        branches = tuple(child for child in region.children if roles[child.path].startswith("branch"))
        through = next((child for child in region.children if roles[child.path].startswith("shortcut")), None)
        joins = next((child.nodes for child in region.children if roles[child.path].startswith("join")), ())
        read = {name for node in joins for name in work.nodes[node].inputs}
        direct = region.entries[0] if len(region.entries) == 1 and region.entries[0] in read else None
        return cls(through.exit if through is not None else direct, through, branches, joins)


def node_lower(work: Workspace, node: Node) -> Lower:
    """Lower gain of one node from its only moving input."""
    moving, rule = work.moving(node), work.rules[node.name]
    if rule is None or len(moving) != 1 or len(node.outputs) != 1 or work.gain(node, moving[0]) is None:
        return NOTHING
    operator = rule.linear(work.sites[node.name], moving[0])
    if isinstance(operator, Permutation):
        return Lower(1)
    if isinstance(operator, Diagonal) and operator.in_shape == operator.out_shape and operator.scale.size:
        least = float(np.min(np.abs(operator.scale)))
        return Lower(max(0.0, least * (1 - operator.relative_error - 2.0**-52)) if operator.relative_error else least)
    return NOTHING


def chained(work: Workspace, region: Region, items: Sequence[Node | Region], known: Mapping[str, Lower]) -> Lower:
    """The product along a level whose items follow one another; 0 if they do not. ``known``: of child regions by path."""
    if len(region.entries) != 1:
        return NOTHING
    value, product = region.entries[0], Lower(1)
    for item in items:
        if isinstance(item, Region):
            read, exit_value, lower = list(item.entries), item.exit, known.get(item.path, NOTHING)
        else:
            read = list(dict.fromkeys(item.inputs[i] for i in work.moving(item)))
            exit_value, lower = item.outputs[0], node_lower(work, item)
        if read != [value] or lower == NOTHING:
            return NOTHING
        value, product = exit_value, product * lower
    return product if value == region.exit else NOTHING


def residual_lower(work: Workspace, region: Region, parts: ResidualParts, branch: Upper, shortcut: Lower) -> Lower:
    """``m(shortcut) - L(branches)`` where the exit is the sum of exactly these, each taken once; 0 where it is something else."""
    if len(region.entries) != 1 or not branch.is_finite or parts.shortcut is None:
        return NOTHING
    wanted = sorted([parts.shortcut, *(child.exit for child in parts.branches)])
    return shortcut.minus(branch) if _summands(work, region.exit, frozenset(parts.joins)) == wanted else NOTHING


def _summands(work: Workspace, exit_value: str, joins: frozenset[str]) -> list[str] | None:
    """The operands of the sums ``joins`` that end in ``exit_value``, with repeats; None if one is no plain sum."""
    found: list[str] = []
    pending = [exit_value]
    while pending:
        name = pending.pop()
        node = work.graph.producer.get(name)
        if node is None or node.name not in joins:
            found.append(name)
            continue
        site = work.sites[node.name]
        if node.kind not in _SUMS or len(node.outputs) != 1 or not all(site.moving):
            return None
        for i, value in enumerate(site.inputs):
            if value is None or value.shape != site.out_shape() or work.gain(node, i) is None:
                return None
        pending += node.inputs
    return sorted(found)
