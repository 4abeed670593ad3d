"""Layers of products and activations as averaged operators, with the shortcut around them.

An activation whose slopes lie in [a_k, b_k], channel by channel, is ``M + R N`` on differences, with ``m = (a + b)/2``,
``r = (b - a)/2`` and N a diagonal of numbers in [-1, 1]. In
``y = A x + W_K s_(K-1) W_(K-1) .. s_1 W_1 x`` the parts ``e_k = R_k N_k du_k`` enter one by one::

    |T_k^-1 e_k| <= sum_(j<k) ||T_k^-1 R_k W_k M_(k-1) .. W_(j+1) T_j|| |T_j^-1 e_j|,    e_0 = dx,  T_0 = 1
    |dy| <= ||A + W_K M_(K-1) .. W_1|| |dx| + sum_(0<j<K) ||W_K M_(K-1) .. W_(j+1) T_j|| |T_j^-1 e_j|

for any positive diagonals T. Never above the product of the norms for m >= 0, and the shortcut meets the linear part before norms are taken
(for scalar m: Combettes and Pesquet 2020, "Lipschitz certificates for layered network structures", recursion (1.6)). Secant slopes of an
activation lie in the hull of its slopes on the interval of its own argument, whatever the set upstream.

A gradient step ``x - t W' s(W x)`` has the symmetric Jacobian ``1 - t W' D W``, of norm at most
``max(1 - t min(a, 0) ||W||^2, t b ||W||^2 - 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.ball import Ball
from lipaudit.bounds.scalar import ONE, ZERO, Upper
from lipaudit.certify.methods.channels import channel_ends, row_path
from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.heads import Path
from lipaudit.certify.methods.layout import Layout, follow
from lipaudit.certify.methods.rows import Rows, rows_behind
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.graph.ir import Node
from lipaudit.operators.elementwise import Scalar
from lipaudit.operators.range import Range
from lipaudit.topology import Region

__all__ = ["averaged_layers"]

Floats = NDArray[np.float64]

_MOST_LAYERS = 6
_MOST_NODES = 200
_MOST_ELEMENTS = 1 << 22
_MOST_WORK = 1e9
_MOST_SLOPES = 512
"""Channels whose slopes are asked one by one; beyond that one interval serves all."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A matrix, and the slopes [least, most] of what follows it, by channel; they lie in ``middle +- half``."""

    matrix: Enclosed
    least: Floats
    most: Floats
    middle: Floats
    half: Floats


@dataclass(frozen=True, eq=False)
class _Layers:
    """All layers but the last, which no activation follows; ``rows``: what they read; ``shortcut``: the matrix around them."""

    rows: Rows | None
    layers: tuple[_Layer, ...]
    last: Enclosed
    shortcut: Enclosed | None


def averaged_layers(work: Workspace, region: Region, *, behind: bool) -> Proposal | None:
    """A region of layers that treat every row alike, possibly with a shortcut around them."""
    if work.norm != "l2" or len(region.entries) != 1:
        return None
    found = work.once(("averaged", region.path), lambda: _read(work, region))
    if found is None or (behind and (found.rows is None or not found.rows.source)):
        return None
    layers, shortcut, gain = found.layers, found.shortcut, ONE
    if behind and found.rows is not None:
        gain = found.rows.gain
        layers = (replace(layers[0], matrix=found.rows.through(layers[0].matrix)), *layers[1:])
        shortcut = None if shortcut is None else found.rows.through(shortcut)
    slope = min(_slope(layers, found.last, shortcut, scales) for scales in _scales(layers, found.last))
    step = _step(layers, found.last, shortcut)
    slope = slope if step is None else min(slope, step)
    evidence = {
        "gain before": gain.decimal(),
        "layers": len(layers) + 1,
        "shortcut": shortcut is not None,
        "slopes": [[float(np.min(layer.least)), float(np.max(layer.most))] for layer in layers],
    }
    rule = "layers as averaged operators" + (" with their shortcut" if shortcut is not None else "")
    rule += ", behind a normalization (W G P)" if behind else ""
    source = found.rows.source if behind and found.rows is not None else region.entries[0]
    return Proposal(source, slope * gain, "averaged layers", rule, evidence, slope * gain)


def _slope(layers: Sequence[_Layer], last: Enclosed, shortcut: Enclosed | None, scales: Sequence[Floats]) -> Upper:
    """The recursion of the module for ``T_k = diag(scales[k])``."""
    matrices = [*(layer.matrix for layer in layers), last]
    parts = [ONE]
    for k, matrix in enumerate(matrices):
        final = k == len(layers)
        total, product = ZERO, matrix
        # T^-1 R: one rounding up of each element.
        weights = np.ones(0) if final else np.nextafter(layers[k].half / scales[k] * (1 + 2.0**-51), np.inf)
        for j in range(k, -1, -1):  # product = W_k M_(k-1) .. W_(j+1), counted from 1
            acting = product if j == 0 else product.columns(scales[j - 1], centred=False)
            if final and j == 0 and shortcut is not None:
                acting = _sum(acting, shortcut)
            total = total + (acting if final else acting.rows(weights)).norm() * parts[j]
            if j:
                product = product.columns(layers[j - 1].middle, centred=False).times(matrices[j - 1])
        parts.append(total)
    return parts[-1]


def _step(layers: Sequence[_Layer], last: Enclosed, shortcut: Enclosed | None) -> Upper | None:
    """The bound of a gradient step, for the t that makes the last matrix most like ``-t W'``; what is left of it adds its own norm."""
    if len(layers) != 1 or shortcut is None or not shortcut.error.is_zero or shortcut.array.shape[0] != shortcut.array.shape[1]:
        return None
    weight, array = layers[0].matrix, np.asarray(layers[0].matrix.array)
    square = float(np.sum(array * array))
    t = -float(np.sum(last.array * array.T)) / square if square > 0 and last.array.shape == array.T.shape else 0.0
    if not 0 < t < 1e100 or not np.array_equal(shortcut.array, np.eye(len(shortcut.array))):
        return None
    least, most = min(0.0, float(np.min(layers[0].least))), max(0.0, float(np.max(layers[0].most)))
    norm = weight.norm()
    reach = Upper(t) * norm * norm
    rest = _sum(last, Enclosed(np.ascontiguousarray(array.T), weight.error).scaled(Upper(t)))
    above, below = ONE + reach * Upper(-least), reach * Upper(most)
    size = max(above, Upper(max(0.0, float(np.nextafter(float(below) - 1.0, np.inf)))))
    return size + rest.norm() * Upper(max(most, -least)) * norm


def _sum(a: Enclosed, b: Enclosed) -> Enclosed:
    whole = a.array + b.array
    return Enclosed(whole, a.error + b.error + Enclosed(whole).frobenius() * Upper(2.0**-52))


def _scales(layers: Sequence[_Layer], last: Enclosed) -> list[list[Floats]]:
    """Candidates for T: 1, and what balances the rows before an activation with the columns after it."""
    plain = [np.ones(layer.middle.size) for layer in layers]
    found: list[Floats] = []
    for k, layer in enumerate(layers):
        after = (layers[k + 1].matrix if k + 1 < len(layers) else last).array
        own = np.linalg.norm(layer.matrix.array, axis=1) * layer.half
        columns = np.linalg.norm(after, axis=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            balanced = np.sqrt(own / columns)
            balanced = balanced / np.median(balanced)
        if not (np.all(np.isfinite(balanced)) and np.all(balanced > 1e-100) and np.all(balanced < 1e100)):
            return [plain]
        found.append(np.asarray(balanced))
    return [plain, found]


# ---------------------------------------------------------------------- reading the region


def _read(work: Workspace, region: Region) -> _Layers | None:
    nodes = work.sorted(region.nodes)
    entry = region.entries[0]
    shape = work.graph.value(entry).shape
    if not shape or len(nodes) > _MOST_NODES or not any(_is_activation(work, node) for node in nodes):
        return None
    sizes = [value.shape for node in nodes for value in work.sites[node.name].outputs if value is not None]
    if any(size is None or int(np.prod(size)) > _MOST_ELEMENTS for size in (*sizes, shape)):
        return None
    if not any(node.op in ("MatMul", "Gemm") for node in nodes):
        return None
    rows = rows_behind(work, entry)
    from_entry = follow(work, nodes, entry)
    value, found, layers = entry, from_entry, list[_Layer]()
    while region.exit not in found and len(layers) <= _MOST_LAYERS:
        join = _join(work, nodes, found, from_entry, region.exit) if layers else None
        if join is not None:
            return _with_shortcut(work, rows, layers, (found, value), (from_entry, entry), join)
        ahead = [node for node in nodes if _is_activation(work, node) and node.inputs[0] in found and node.outputs[0] not in found]
        layer = _layer(work, rows if value == entry else None, found[ahead[0].inputs[0]], value, ahead[0]) if len(ahead) == 1 else None
        if layer is None:
            return None
        layers.append(layer)
        value = ahead[0].outputs[0]
        found = follow(work, [node for node in nodes if work.order[node.name] > work.order[ahead[0].name]], value)
    last = _matrix(work, found[region.exit], value) if layers and region.exit in found else None
    return None if last is None or not _is_small(layers, last[0].weight) else _Layers(rows, tuple(layers), last[0].weight, None)


def _is_activation(work: Workspace, node: Node) -> bool:
    rule = work.rules[node.name]
    return isinstance(rule, Scalar) and not rule.entry.bias and work.moving(node) == [0] and len(node.outputs) == 1


def _matrix(work: Workspace, layout: Layout, start: str) -> tuple[Path, int] | None:
    """The matrix between two values of the same rows in the same order, and the number of rows."""
    read = row_path(layout, (work.graph.value(start).shape or (1,))[-1])
    if read is None or not np.array_equal(read[1], np.arange(read[1].size)):
        return None
    return read[0], read[1].size


def _layer(work: Workspace, rows: Rows | None, layout: Layout, start: str, activation: Node) -> _Layer | None:
    """The product before an activation with its slopes."""
    rule, site = work.rules[activation.name], work.sites[activation.name]
    shape = work.graph.value(activation.inputs[0]).shape
    read = _matrix(work, layout, start)
    if read is None or not shape or site.out_shape() != shape or work.gain(activation, 0) is None:
        return None
    path = read[0]
    merged = path.weight if rows is None else rows.through(path.weight)
    ends = channel_ends(work, activation.inputs[0], path, merged, rows)
    if ends is None or not isinstance(rule, Scalar):
        return None
    low, high = ends
    pairs = np.unique(np.stack([low, high], axis=1), axis=0)
    if len(pairs) > _MOST_SLOPES:
        low, high = np.full_like(low, np.min(low)), np.full_like(high, np.max(high))
        pairs = np.array([[low[0], high[0]]])
    slopes: dict[tuple[float, float], tuple[float, float]] = {}
    for lo, hi in pairs:
        before = [Range(shape, np.asarray(lo), np.asarray(hi)), *([None] * (len(activation.inputs) - 1))]
        slope = rule.slope(site, before)
        if not isinstance(slope, Ball) or not slope.is_finite:
            return None
        slopes[float(lo), float(hi)] = slope.floats()
    least = np.array([slopes[float(lo), float(hi)][0] for lo, hi in zip(low, high, strict=True)])
    most = np.array([slopes[float(lo), float(hi)][1] for lo, hi in zip(low, high, strict=True)])
    middle = (least + most) / 2
    half = np.nextafter(np.maximum(np.nextafter(most - middle, np.inf), np.nextafter(middle - least, np.inf)), np.inf)
    return _Layer(path.weight, least, most, middle, half)


def _join(work: Workspace, nodes: Sequence[Node], found: dict[str, Layout], first: dict[str, Layout], exit_value: str) -> Node | None:
    """The sum of a value behind the last activation and one before the first, if the exit is that sum up to its shape."""
    for node in nodes:
        if node.kind not in ("ai.onnx::Add", "ai.onnx::Sub") or node.version < 7 or work.moving(node) != [0, 1]:
            continue
        a, b = node.inputs
        if not ((a in found and b in first) or (b in found and a in first)) or any(work.is_barred(node, i) for i in (0, 1)):
            continue
        after = [other for other in nodes if work.order[other.name] > work.order[node.name]]
        layout = follow(work, after, node.outputs[0]).get(exit_value)
        if layout is not None and layout.is_unchanged and layout.base.weight is None:
            return node
    return None


def _with_shortcut(
    work: Workspace,
    rows: Rows | None,
    layers: list[_Layer],
    branch: tuple[dict[str, Layout], str],
    around: tuple[dict[str, Layout], str],
    join: Node,
) -> _Layers | None:
    """Both operands of the sum must have its shape and read the rows in order."""
    shape = work.graph.value(join.outputs[0]).shape
    read: list[Enclosed] = []
    counts: list[int] = []
    for found, start in (branch, around):
        at = next(i for i, name in enumerate(join.inputs) if name in found)
        if found[join.inputs[at]].shape != shape or (own := _matrix(work, found[join.inputs[at]], start)) is None:
            return None
        weight = own[0].weight
        read.append(Enclosed(-weight.array, weight.error) if join.op == "Sub" and at == 1 else weight)
        counts.append(own[1])
    if counts[0] != counts[1] or read[0].array.shape[0] != read[1].array.shape[0] or not _is_small(layers, read[0]):
        return None
    return _Layers(rows, tuple(layers), read[0], read[1])


def _is_small(layers: Sequence[_Layer], last: Enclosed) -> bool:
    """Products and norms of all stretches of the layers take little time."""
    sizes = [layers[0].matrix.array.shape[1], *(layer.matrix.array.shape[0] for layer in layers), last.array.shape[0]]
    work = sum(sizes[i] * sizes[k] * max(min(sizes[i], sizes[k]), sizes[k - 1]) for k in range(1, len(sizes)) for i in range(k))
    return work <= _MOST_WORK
