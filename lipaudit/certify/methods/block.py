"""An attention block as it is read off the graph: its heads with their matrices, and its output projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Upper
from lipaudit.certify.methods.cores import CORES, Bounds, core_operands, output_places
from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.features import is_relative
from lipaudit.certify.methods.heads import Lines, Path, classes, lines_of, path_of
from lipaudit.certify.methods.layout import Layout, follow
from lipaudit.certify.methods.rows import Rows, rows_behind
from lipaudit.certify.methods.workspace import Workspace
from lipaudit.graph.ir import Node
from lipaudit.operators import attention_core
from lipaudit.operators.linear_attention import FeatureHeads
from lipaudit.topology import Region

__all__ = ["AttentionBlock", "Head", "Output", "output_of", "read_block", "sharper_rows"]


@dataclass(frozen=True, eq=False)
class Head:
    """One class of heads: its paths and the bounds of one head."""

    paths: tuple[Path, Path, Path]
    gains: Bounds
    merged: tuple[Enclosed, Enclosed, Enclosed]
    """``W G P`` (or W, if nothing is normalized) of the three paths."""
    relative: tuple[bool, bool] = (False, False)
    """Queries, keys are features that change by no more than themselves (``methods.features``)."""

    def slopes(self) -> tuple[Upper, Upper, Upper]:
        """l2 gains from the products with W to the exit of the head, what follows the products included."""
        own = (self.gains.query_gain("l2"), self.gains.key_gain("l2"), self.gains.value_gain("l2"))
        found = [gain * path.stretch for gain, path in zip(own, self.paths, strict=True)]
        if isinstance(self.gains, FeatureHeads):
            for i in (0, 1):
                if self.relative[i]:
                    found[i] = min(found[i], self.gains.relative_gain(i) * self.paths[i].before)
        return found[0], found[1], found[2]


@dataclass(frozen=True, eq=False)
class Output:
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
class AttentionBlock:
    """One attention with its projections, fed by the rows of one value.

    ``diameter``: largest distance of two z (``Rows``) that one query attends.
    """

    rows: Rows
    diameter: Upper
    heads: tuple[Head, ...]
    output: Output


def read_block(work: Workspace, region: Region) -> AttentionBlock | None:
    """The heads and the output projection of a region around one attention; None if it is not of that form."""
    nodes = work.sorted(region.nodes)
    cores = [node for node in nodes if isinstance(work.rules[node.name], CORES)]
    if len(cores) != 1:
        return None
    core = cores[0]
    rows = rows_behind(work, region.entries[0])
    read_off = core_operands(work, core, follow(work, nodes, region.entries[0], activations=True))
    if rows is None or read_off is None:
        return None
    bounds, operands = read_off
    width = (work.graph.value(region.entries[0]).shape or (1,))[-1]
    read = [lines_of(operand, width) for operand in operands]
    lines = [line for line in read if line is not None]
    groups = classes(*lines) if len(lines) == 3 else None
    if groups is None:
        return None
    shape = work.graph.value(region.entries[0]).shape or ()
    per_sample = int(np.prod(shape[1:-1])) if len(shape) >= 3 else 1
    one_sample = all(not np.any(line.tokens // per_sample != line.tokens[:, :1] // per_sample) for line in lines)
    diameter = rows.diameter if one_sample or rows.is_normalized else Upper(2) * rows.radius
    changes = (is_relative(work, core, 0), is_relative(work, core, 1)) if isinstance(bounds, FeatureHeads) else (False, False)
    heads = _heads(rows, diameter, bounds, lines, groups, width, changes)
    output = output_of(work, nodes, core, region.exit, groups, lines[0].layout.shape[:2], lines[2].layout.shape[2])
    return None if heads is None or output is None else AttentionBlock(rows, diameter, heads, output)


def _heads(
    rows: Rows,
    diameter: Upper,
    bounds: Bounds,
    lines: list[Lines],
    groups: list[list[int]],
    width: int,
    changes: tuple[bool, bool],
) -> tuple[Head, ...] | None:
    """Matrices and sharper row bounds of every class."""
    found: list[Head] = []
    for members in groups:
        paths = [path_of(line, members, width) for line in lines]
        if paths[0] is None or paths[1] is None or paths[2] is None:
            return None
        three = (paths[0], paths[1], paths[2])
        merged = tuple(rows.through(path.weight) for path in three)
        sharper = [
            sharper_rows(own, path, matrix, rows, diameter)
            for own, path, matrix in zip((bounds.q, bounds.k, bounds.v), three, merged, strict=True)
        ]
        gains = replace(bounds, q=sharper[0], k=sharper[1], v=sharper[2], shared=1)
        relative = (changes[0] and not paths[0].turned, changes[1] and not paths[1].turned)
        found.append(Head(three, gains, (merged[0], merged[1], merged[2]), relative))
    return tuple(found)


def sharper_rows(own: attention_core.Rows, path: Path, matrix: Enclosed, rows: Rows, diameter: Upper) -> attention_core.Rows:
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


def output_of(
    work: Workspace, nodes: list[Node], core: Node, exit_value: str, groups: list[list[int]], lines: tuple[int, ...], width: int
) -> Output | None:
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
        return Output(None, factor, None, by_rows=False)
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
    by_rows = False
    if layout.shape[-1] == base.width:  # else what leaves may be cut out of the rows, and need not even fill whole ones
        own = layout.terms[0].index.reshape(-1, base.width)
        by_rows = not (np.any(own - own[:, :1] != np.arange(base.width)) or np.any(own[:, 0] % base.width))
    return Output(matrix, factor, parts, by_rows=by_rows and not np.any(token != token[:, :1]))


def _used_once(layout: Layout) -> Upper | None:
    """Largest factor, if every element of the base is used at most once."""
    if len(layout.terms) != 1 or np.any(layout.terms[0].index < 0):
        return None
    index = layout.terms[0].index.reshape(-1)
    if np.unique(index).size != index.size:
        return None
    top = Upper(float(np.max(np.abs(layout.terms[0].factor), initial=0.0))) * (ONE + Upper(layout.relative))
    return top if top.is_finite else INFINITE
