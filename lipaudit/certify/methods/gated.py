"""Gated products ``act(W_a x) * (W_b x)``, with the product that follows: one bound for both factors, channel by channel.

By midpoints ``ab - a'b' = (b + b')/2 (a - a') + (a + a')/2 (b - b')``, so with ``|a_k| <= r_k``, ``|b_k| <= q_k`` on a convex range and the
slope of the activation at most l: ``L <= ||W_d T|| ||stack(l T^-1 diag(q) W_a / tau_1, T^-1 diag(r) W_b / tau_2)||`` for any positive
diagonal T and ``tau_1^2 + tau_2^2 <= 1``. Unbounded on all reals; behind a normalization r and q are finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, Upper
from lipaudit.certify.methods.channels import channel_ends, row_path
from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.heads import rows_read
from lipaudit.certify.methods.layout import Layout, follow
from lipaudit.certify.methods.rows import Rows, rows_behind
from lipaudit.certify.methods.stack import Block, weighted_stack
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.graph.ir import Node
from lipaudit.operators.base import Finite
from lipaudit.operators.elementwise import Scalar
from lipaudit.operators.range import Range
from lipaudit.topology import Region

__all__ = ["gated_product"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Factor:
    """One factor: ``matrix`` [channels, width] of W (and of ``W G P``), largest values, slope of what is applied to W x."""

    matrix: Enclosed
    merged: Enclosed
    sizes: Floats
    slope: Upper
    tokens: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Gate:
    rows: Rows
    factors: tuple[_Factor, _Factor]
    after: Enclosed | None
    by_rows: bool
    """Every row of the exit comes from one row of the entry."""


def gated_product(work: Workspace, region: Region, *, behind: bool) -> Proposal | None:
    """A region that multiplies two maps of its entry, possibly followed by a product with a stored matrix."""
    if work.norm != "l2" or len(region.entries) != 1:
        return None
    gate = work.once(("gated", region.path), lambda: _gate(work, region))
    if gate is None or (behind and not gate.rows.source):
        return None
    gain = gate.rows.gain if behind else ONE
    slope = min(_slope(gate, scales, behind=behind) for scales in _scales(gate))
    evidence = {
        "gain before": gain.decimal(),
        "largest factors": [float(np.max(factor.sizes, initial=0.0)) for factor in gate.factors],
        "slopes": [factor.slope.decimal() for factor in gate.factors],
    }
    rule = "gated product by midpoints, both factors in one stack" + (", behind a normalization (W G P)" if behind else "")
    source = gate.rows.source if behind else region.entries[0]
    row_max = slope * gain if gate.by_rows else None
    return Proposal(source, slope * gain, "gated product: weighted stack", rule, evidence, row_max)


def _slope(gate: _Gate, scales: Floats, *, behind: bool) -> Upper:
    """The bound of the module for T = diag(scales)."""
    blocks: list[Block] = []
    for factor, other in (gate.factors, gate.factors[::-1]):
        matrix = factor.merged if behind else factor.matrix
        weights = np.nextafter(other.sizes / scales * (1 + 2.0**-51), np.inf)
        blocks.append(Block(matrix.rows(weights), factor.slope))
    outer = Upper(float(np.max(scales))) if gate.after is None else gate.after.columns(scales, centred=False).norm()
    return outer * weighted_stack([blocks])


def _scales(gate: _Gate) -> list[Floats]:
    """Candidates for T: 1, and what balances the columns of the product after it with the rows before it."""
    channels = gate.factors[0].sizes.size
    found = [np.ones(channels)]
    if gate.after is not None:
        first, second = gate.factors
        own = np.hypot(
            float(first.slope) * second.sizes * np.linalg.norm(first.merged.array, axis=1),
            float(second.slope) * first.sizes * np.linalg.norm(second.merged.array, axis=1),
        )
        columns = np.linalg.norm(gate.after.array, axis=0)
        if np.all(own > 0) and np.all(columns > 0) and np.all(np.isfinite(own / columns)):
            balanced = np.sqrt(own / columns)
            found.append(cast(Floats, balanced / np.median(balanced)))
    return found


# ---------------------------------------------------------------------- reading the region


def _gate(work: Workspace, region: Region) -> _Gate | None:
    nodes = work.sorted(region.nodes)
    entry = region.entries[0]
    rows = rows_behind(work, entry)
    width = (work.graph.value(entry).shape or (1,))[-1]
    joins = [node for node in nodes if node.kind == "ai.onnx::Mul" and work.moving(node) == [0, 1] and node.inputs[0] != node.inputs[1]]
    if rows is None or not rows.radius.is_finite or len(joins) != 1 or any(work.is_barred(joins[0], i) for i in (0, 1)):
        return None
    join = joins[0]
    shape = work.graph.value(join.outputs[0]).shape
    found = follow(work, nodes, entry)
    factors = [_factor(work, rows, found, name, width, shape) for name in join.inputs]
    if factors[0] is None or factors[1] is None or not np.array_equal(factors[0].tokens, factors[1].tokens):
        return None
    if np.unique(factors[0].tokens).size != factors[0].tokens.size:
        return None
    layout = follow(work, [node for node in nodes if work.order[node.name] > work.order[join.name]], join.outputs[0]).get(region.exit)
    if layout is None or shape is None or not layout.is_unchanged or layout.base.groups:
        return None
    if layout.base.weight is None:
        return _Gate(rows, (factors[0], factors[1]), None, layout.shape == shape)
    read = rows_read(layout, shape[-1])
    if read is None or np.unique(read).size != read.size:
        return None
    return _Gate(rows, (factors[0], factors[1]), Enclosed(layout.base.weight.T), layout.shape[-1] == layout.base.width)


def _factor(work: Workspace, rows: Rows, found: dict[str, Layout], name: str, width: int, shape: tuple[int, ...] | None) -> _Factor | None:
    """One factor: a product with the rows of the entry, or an activation of one."""
    activation: Node | None = None
    inner = name
    if name not in found:
        activation = work.graph.producer.get(name)
        if activation is None or not isinstance(work.rules[activation.name], Scalar) or work.moving(activation) != [0]:
            return None
        if work.gain(activation, 0) is None:
            return None
        inner = activation.inputs[0]
    layout = found.get(inner)
    if layout is None or shape is None or layout.shape != shape:
        return None
    read = row_path(layout, width)
    if read is None:
        return None
    path, tokens = read
    merged = rows.through(path.weight)
    ends = channel_ends(work, inner, path, merged, rows)
    if ends is None:
        return None
    low, high = ends
    if activation is None:
        return _Factor(path.weight, merged, np.maximum(np.abs(low), np.abs(high)), ONE, tokens)
    rule, site = work.rules[activation.name], work.sites[activation.name]
    assert rule is not None
    before = [Range(shape, low, high), *([None] * (len(activation.inputs) - 1))]
    gain, after = rule.gain(site, 0, "l2", before), rule.range(site, before)[0]
    if not isinstance(gain, Finite) or not gain.offset.is_zero or not after.is_bounded:
        return None
    sizes = np.array(np.broadcast_to(after.magnitudes(), (*shape[:-1], shape[-1])).reshape(-1, shape[-1]).max(axis=0))
    return _Factor(path.weight, merged, sizes, gain.slope, tokens)
