"""Attention blocks as wholes: projections, heads and output projection together.

With ``q = W_Q x + b``, .. per head and gains G of one head (``operators.attention_core``), for any ``tau_Q^2 + tau_K^2 + tau_V^2 <= 1``
per head::

    L <= ||W_O|| || stack_h [G_Q W_Q / tau_Q ; G_K W_K / tau_K ; G_V W_V / tau_V] ||

by Cauchy-Schwarz inside the head and a sum of squares over heads. The values may be taken apart and merged with their part of
the output projection, ``min(sum_h sqrt(c_h) ||W_O W_V||, ||[W_O W_V]_h|| sqrt(sum c_h))``, plus the stack of Q and K. Behind a
normalization each W is ``W G P`` and the bound is divided by s0. Largest-row norm, for any number of tokens:
``||W_O|| sqrt(sum_h (||W_V|| + s R_Q D_V/2 ||W_K|| + s D_K D_V/4 ||W_Q||)^2)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Upper, combine
from lipaudit.certify.methods.cores import CORES, core_operands, output_places
from lipaudit.certify.methods.enclosed import Enclosed, stacked
from lipaudit.certify.methods.heads import Lines, Path, classes, lines_of, path_of
from lipaudit.certify.methods.layout import Layout, follow
from lipaudit.certify.methods.rows import Rows, rows_behind
from lipaudit.certify.methods.stack import Block, weighted_stack
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.graph.ir import Node
from lipaudit.operators import attention_core
from lipaudit.topology import Region

__all__ = ["attention_block"]

Floats = NDArray[np.float64]

_MERGE_WORK = 3e8
"""Values are merged with the output projection if all heads together take at most so many operations."""


@dataclass(frozen=True, eq=False)
class _Head:
    """One class of heads: its paths and the bounds of one head."""

    paths: tuple[Path, Path, Path]
    gains: attention_core.Heads
    merged: tuple[Enclosed, Enclosed, Enclosed]
    """``W G P`` (or W, if nothing is normalized) of the three paths."""


@dataclass(frozen=True, eq=False)
class _Output:
    """The output projection: ``matrix`` [out, heads * width] acts on what the heads give; ``parts`` are its columns by class.

    ``by_rows``: every row of the output comes from one token.
    """

    matrix: Enclosed | None
    factor: Upper
    parts: tuple[Enclosed, ...] | None
    by_rows: bool

    @property
    def norm(self) -> Upper:
        """Of the map from the heads to the exit."""
        return self.factor * (ONE if self.matrix is None else self.matrix.norm())


@dataclass(frozen=True, eq=False)
class _Plan:
    rows: Rows
    heads: tuple[_Head, ...]
    output: _Output


def attention_block(work: Workspace, region: Region, *, behind: bool) -> Proposal | None:
    """The bound of a region that is one attention with its projections, from its entry or from what is normalized before it."""
    if work.norm != "l2" or len(region.entries) != 1:
        return None
    plan = work.once(("attention", region.path), lambda: _plan(work, region))
    if plan is None or (behind and not plan.rows.source):
        return None
    return _proposal(plan, region.entries[0], behind=behind)


def _proposal(plan: _Plan, entry: str, *, behind: bool) -> Proposal | None:
    """The least of the bounds of the module."""
    gain = plan.rows.gain if behind else ONE
    slopes: list[tuple[Upper, Upper, Upper]] = []
    matrices: list[tuple[Enclosed, Enclosed, Enclosed]] = []
    for head in plan.heads:
        own = (head.gains.query_gain("l2"), head.gains.key_gain("l2"), head.gains.value_gain("l2"))
        slopes.append(tuple(g * path.stretch for g, path in zip(own, head.paths, strict=True)))  # pyright: ignore[reportArgumentType]
        matrices.append(head.merged if behind else tuple(path.weight for path in head.paths))  # pyright: ignore[reportArgumentType]
    if not all(slope.is_finite for triple in slopes for slope in triple):
        return None
    blocks = [[Block(a, g) for a, g in zip(ms, gs, strict=True)] for ms, gs in zip(matrices, slopes, strict=True)]
    outer = plan.output.norm
    whole = outer * weighted_stack(blocks)
    best, method = whole, "weighted stack of heads"
    row_max = _row_max(plan, matrices, outer)
    values = _merged_values(plan, matrices, slopes)
    if values is not None:
        split = values + outer * weighted_stack([group[:2] for group in blocks])
        if split < best:
            best, method = split, "values merged with the output, stack of queries and keys"
    evidence = {
        "heads": len(plan.heads),
        "normalized": plan.rows.is_normalized,
        "entry radius": plan.rows.radius.decimal(),
        "gain before": gain.decimal(),
        "output projection": outer.decimal(),
        "R_Q": max(head.gains.q.row for head in plan.heads).decimal(),
        "D_K": max(head.gains.k.diameter for head in plan.heads).decimal(),
        "D_V": max(head.gains.v.diameter for head in plan.heads).decimal(),
        "G_Q, G_K, G_V": [[slope.decimal() for slope in triple] for triple in slopes],
    }
    source = plan.rows.source if behind else entry
    rule = f"attention as a whole: {method}" + (", behind a normalization (W G P)" if behind else "")
    return Proposal(source, best * gain, f"attention: {method}", rule, evidence, None if row_max is None else row_max * gain)


def _row_max(plan: _Plan, matrices: Sequence[tuple[Enclosed, Enclosed, Enclosed]], outer: Upper) -> Upper | None:
    """Gain in the largest-row norm; None where a row of the output mixes tokens."""
    if not plan.output.by_rows:
        return None
    sizes: list[Upper] = []
    for head, triple in zip(plan.heads, matrices, strict=True):
        own = head.gains.row_max_gains()
        terms = [g * path.stretch * matrix.norm() for g, path, matrix in zip(own, head.paths, triple, strict=True)]
        sizes.append(terms[0] + terms[1] + terms[2])
    found = outer * combine(sizes, "l2")
    return found if found.is_finite else None


def _merged_values(
    plan: _Plan, matrices: Sequence[tuple[Enclosed, Enclosed, Enclosed]], slopes: Sequence[tuple[Upper, Upper, Upper]]
) -> Upper | None:
    """The path of the values with ``W_O W_V`` multiplied out, head by head."""
    parts = plan.output.parts
    if parts is None or any(head.paths[2].turned or head.paths[2].normalized for head in plan.heads):
        return None
    rows, columns = parts[0].array.shape[0], matrices[0][2].array.shape[1]
    if len(parts) * rows * columns * min(rows, columns) > _MERGE_WORK:
        return None
    products = [part.times(triple[2]) for part, triple in zip(parts, matrices, strict=True)]
    singly = ZERO
    for product, triple in zip(products, slopes, strict=True):
        singly = singly + triple[2] * product.norm()
    beside = stacked([Enclosed(product.array.T, product.error) for product in products]).norm()
    return plan.output.factor * min(singly, beside * combine([triple[2] for triple in slopes], "l2"))


# ---------------------------------------------------------------------- reading the region


def _plan(work: Workspace, region: Region) -> _Plan | None:
    """The heads and the output projection of a region around one attention; None if it is not of that form."""
    nodes = work.sorted(region.nodes)
    cores = [node for node in nodes if isinstance(work.rules[node.name], CORES)]
    if len(cores) != 1:
        return None
    core = cores[0]
    rows = rows_behind(work, region.entries[0])
    read_off = core_operands(work, core, follow(work, nodes, region.entries[0]))
    if rows is None or read_off is None:
        return None
    bounds, operands = read_off
    width = (work.graph.value(region.entries[0]).shape or (1,))[-1]
    read = [lines_of(operand, width) for operand in operands]
    lines = [line for line in read if line is not None]
    groups = classes(*lines) if len(lines) == 3 else None
    if groups is None:
        return None
    heads = _heads(rows, bounds, lines, groups, width, work.graph.value(region.entries[0]).shape or ())
    output = _output(work, nodes, core, region.exit, groups, lines[0].layout.shape[:2], lines[2].layout.shape[2])
    return None if heads is None or output is None else _Plan(rows, heads, output)


def _heads(
    rows: Rows, bounds: attention_core.Heads, lines: list[Lines], groups: list[list[int]], width: int, shape: tuple[int, ...]
) -> tuple[_Head, ...] | None:
    """Matrices and sharper row bounds of every class."""
    per_sample = int(np.prod(shape[1:-1])) if len(shape) >= 3 else 1
    one_sample = all(not np.any(line.tokens // per_sample != line.tokens[:, :1] // per_sample) for line in lines)
    diameter = rows.diameter if one_sample or rows.is_normalized else Upper(2) * rows.radius
    found: list[_Head] = []
    for members in groups:
        paths = [path_of(line, members, width) for line in lines]
        if paths[0] is None or paths[1] is None or paths[2] is None:
            return None
        three = (paths[0], paths[1], paths[2])
        merged = tuple(rows.through(path.weight) for path in three)
        sharper = [
            _sharper(own, path, matrix, rows, diameter)
            for own, path, matrix in zip((bounds.q, bounds.k, bounds.v), three, merged, strict=True)
        ]
        gains = replace(bounds, q=sharper[0], k=sharper[1], v=sharper[2], shared=1)
        found.append(_Head(three, gains, (merged[0], merged[1], merged[2])))
    return tuple(found)


def _sharper(own: attention_core.Rows, path: Path, matrix: Enclosed, rows: Rows, diameter: Upper) -> attention_core.Rows:
    """The rows of one head from the ball of the entry's rows."""
    if path.normalized or not rows.radius.is_finite:
        return own
    size = matrix.norm()
    centre, error = rows.centre(path.weight)
    if path.turned:
        moved = Enclosed(centre[None, :], Upper(error) * Upper(max(1, centre.size)).sqrt()).frobenius()
        still, _ = path.sizes(np.zeros(path.constant.shape[-1]), 0.0)
        row = path.stretch * (rows.radius * size + moved) + still
        apart = Upper(2) * row
    else:
        still, shift = path.sizes(centre, error)
        row, apart = rows.radius * size + still, diameter * size + shift
    row = min(own.row, row)
    return replace(own, row=row, top=min(own.top, row), diameter=min(own.diameter, apart, Upper(2) * row) if own.count > 1 else ZERO)


def _output(
    work: Workspace, nodes: list[Node], core: Node, exit_value: str, groups: list[list[int]], lines: tuple[int, ...], width: int
) -> _Output | None:
    """From what the heads give to the exit: at most one projection, and every element used at most once."""
    given = core.outputs[0]
    layout = follow(work, [node for node in nodes if work.order[node.name] > work.order[core.name]], given).get(exit_value)
    shape = work.graph.value(given).shape
    if layout is None or shape is None or layout.base.groups:
        return None
    factor = _used_once(layout)
    if factor is None:
        return None
    count, tokens = lines
    place = output_places(core, shape, width, tokens)
    if place.size != count * tokens * width:
        return None
    base = layout.base
    if base.weight is None:
        return _Output(None, factor, None, by_rows=False)
    operand = base.operand
    inner = _used_once(operand) if operand is not None else None
    if operand is None or inner is None:
        return None
    term = operand.terms[0]
    index = place[term.index]
    matrix = Enclosed(base.weight.T)
    if not np.any(term.factor != term.factor[:1]) and operand.relative < 1e-12:
        matrix = matrix.columns(term.factor[0], centred=False)
        matrix = Enclosed(matrix.array, matrix.error + matrix.frobenius() * Upper(operand.relative))
    else:
        factor = factor * inner
    owner = np.zeros(count, dtype=np.int64)
    for k, members in enumerate(groups):
        owner[members] = k
    feature, token, owners = index % width, (index // width) % tokens, owner[index // (width * tokens)]
    parts: tuple[Enclosed, ...] | None = None
    if not np.any(feature != feature[:1]) and not np.any(owners != owners[:1]):
        chosen = [np.flatnonzero(owners[0] == k) for k in range(len(groups))]
        if all(np.array_equal(np.sort(feature[0, columns]), np.arange(width)) for columns in chosen):
            parts = tuple(Enclosed(matrix.array[:, columns[np.argsort(feature[0, columns])]], matrix.error) for columns in chosen)
    whole_rows = np.arange(layout.terms[0].index.size).reshape(-1, base.width)
    own = layout.terms[0].index.reshape(-1, base.width) if layout.shape[-1] == base.width else None
    by_rows = own is not None and np.array_equal(own - own[:, :1], whole_rows - whole_rows[:, :1]) and not np.any(own[:, 0] % base.width)
    return _Output(matrix, factor, parts, by_rows=bool(by_rows and not np.any(token != token[:, :1])))


def _used_once(layout: Layout) -> Upper | None:
    """Largest factor, if every element of the base is used at most once."""
    if len(layout.terms) != 1 or np.any(layout.terms[0].index < 0):
        return None
    index = layout.terms[0].index.reshape(-1)
    if np.unique(index).size != index.size:
        return None
    top = Upper(float(np.max(np.abs(layout.terms[0].factor), initial=0.0))) * (ONE + Upper(layout.relative))
    return top if top.is_finite else INFINITE
