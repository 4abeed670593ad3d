"""Regions of linear operators, with joins of linear branches, as one operator.

Every value v of such a region is ``A_v x + c_v`` in its entry x: a node that is jointly affine in what moves
(:meth:`lipaudit.operators.base.Rule.summands`) adds ``A_i A_(v_i)`` over its inputs. Where branches start from one value w they are added
behind it: ``(I + B) A_w`` for a residual join, so that no path is written twice. The norm of ``A_exit`` is exact up to its verification;
the traversal compares it with sums and products of norms.
"""

from __future__ import annotations

from collections.abc import Sequence

from lipaudit.bounds.chain import compose
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.summed import add
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.graph.ir import Node
from lipaudit.topology import Region

__all__ = ["affine_map"]

_MOST = 48
"""Nodes of a region that is looked at as one operator."""

_Factors = tuple[LinearOperator, ...]


def affine_map(work: Workspace, region: Region) -> Proposal | None:
    """The norm of the region as one operator; None if a node is not linear, or if there is one node alone."""
    if len(region.entries) != 1 or not 2 <= len(region.nodes) <= _MOST:
        return None
    operator = work.once(("affine", frozenset(region.nodes)), lambda: _operator(work, region))
    if operator is None:
        return None
    found = operator.norm(work.norm)
    if not found.upper.is_finite:
        return None
    method = f"affine chain: {found.method}"
    return Proposal(region.entries[0], found.upper, method, f"affine chain as one operator: {found.method}", found.evidence)


def _operator(work: Workspace, region: Region) -> LinearOperator | None:
    maps: dict[str, _Factors] = {region.entries[0]: ()}
    for node in work.sorted(region.nodes):
        summands = _summands(work, node)
        if summands is None or any(name not in maps for name in summands):
            return None
        maps[node.outputs[0]] = _joined([(*maps[name], operator) for name, operator in summands.items()])
    return compose(maps[region.exit]) if maps.get(region.exit) else None


def _summands(work: Workspace, node: Node) -> dict[str, LinearOperator] | None:
    """The linear parts of a node by the names of all that moves; None if nothing does, or if more is to be said than that."""
    rule, moving = work.rules[node.name], work.moving(node)
    if rule is None or not moving or any(node.outputs[1:]) or any(work.gain(node, i) is None for i in moving):
        return None
    found = work.once(("summands", node.name), lambda: rule.summands(work.sites[node.name]))
    if found is None:
        return None
    named = {node.inputs[i]: operator for i, operator in found.items()}
    return named if set(named) == {node.inputs[i] for i in moving} else None


def _joined(paths: Sequence[_Factors]) -> _Factors:
    """The sum of products of factors, what they begin with in common first."""
    if len(paths) == 1:
        return paths[0]
    shared = 0
    while all(len(path) > shared and path[shared] is paths[0][shared] for path in paths):
        shared += 1
    return (*paths[0][:shared], add([compose(path[shared:]) for path in paths]))  # each path ends with an operator of its own
