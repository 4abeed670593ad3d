"""Attention that reads several values: what each of them does to the exit, the others held.

Cross-attention (queries from one value, keys and values from another), a cache of past keys and values in front of the new ones, grouped
queries. For an entry e, the others anywhere in their ranges, the exit of one head moves by ``do_h = sum_p A_p,h W_p,h de`` over the
paths p of e (queries, keys, values), with ``|A_p,h| <= G_p,h`` (``operators.attention_core``: the suprema given row norms and distances
of *all* keys and values, cached ones included, which are a convex set). With ``sum_p tau_p,h^2 <= 1``, by Cauchy-Schwarz inside a head
and a sum of squares over heads::

    |d exit| <= ||W_O|| || stack_h,p [G_p,h W_p,h / tau_p,h] || |de|

and with the values taken apart ``min(sum_h G_h ||W_O,h W_V,h||, ||[W_O,h W_V,h]_h|| sqrt(sum_h G_h^2))`` plus the stack of the others.
The Jacobian at any point is the row of these blocks, so entries that move together add: ``|d exit| <= sum_e L_e |de|``. New keys are
known by ``W`` and the ball of their rows, past ones by their range; two rows of which one is old and one is new are at most the sum of
their norms apart. Where a normalization stands first, each W is ``W G P`` and the bound is multiplied by the gain of what it divides by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Upper
from lipaudit.certify.methods.attention import merged_values
from lipaudit.certify.methods.block import output_of, sharper_rows
from lipaudit.certify.methods.cores import CACHED_CORES, split_heads
from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.heads import Lines, Path, lines_of, path_of
from lipaudit.certify.methods.layout import Layout, follow
from lipaudit.certify.methods.rows import rows_behind
from lipaudit.certify.methods.stack import Block, weighted_stack
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.graph.ir import Node
from lipaudit.operators.attention import AttentionRule, FusedAttention
from lipaudit.operators.attention_contrib import GroupQueryAttention, MultiHeadAttention
from lipaudit.operators.attention_core import Heads, Rows, rows_of, together
from lipaudit.operators.base import Unknown
from lipaudit.operators.range import Range
from lipaudit.operators.rotary import rotation_of
from lipaudit.topology import Region

__all__ = ["entry_gain"]

_CACHE = {"ai.onnx": (4, 5), "com.microsoft::MultiHeadAttention": (6, 7), "com.microsoft::GroupQueryAttention": (3, 4)}


@dataclass(frozen=True, eq=False)
class _Operand:
    """Queries, keys or values as lines [heads, tokens, width]: how they come from the entry, their range, and the rows before them."""

    layout: Layout
    known: Rows
    before: Rows | None
    turn: Upper | None


def entry_gain(work: Workspace, region: Region, entry: str) -> Proposal | None:
    """The gain from one of several entries of a region around one attention to its exit; None if it is not of that form."""
    if work.norm != "l2" or not work.wholes:
        return None
    nodes = work.sorted(region.nodes)
    cores = [node for node in nodes if isinstance(work.rules[node.name], CACHED_CORES)]
    if len(cores) != 1:
        return None
    core = cores[0]
    rule, site = work.rules[core.name], work.sites[core.name]
    if not isinstance(rule, AttentionRule):
        return None
    xs = work.of(core)
    computation = rule.computation(site, xs)
    start = _normalized(work, nodes, entry) or entry
    rows = rows_behind(work, start)
    shape = work.graph.value(start).shape
    if isinstance(computation, Unknown) or rows is None or not shape:
        return None
    reached = _reached(work, nodes, entry)
    operands = _operands(work, core, reached, follow(work, nodes, start, activations=True), xs, computation.heads)
    if not operands:
        return None
    width = shape[-1]
    read = {i: lines_of(operand.layout, width) for i, operand in operands.items()}
    lines = {i: line for i, line in read.items() if line is not None}
    heads = _count(core, site.out_shape())
    groups = _classes(lines, heads) if len(lines) == len(operands) else None
    if groups is None:
        return None
    one_sample = len(shape) == 3 and shape[0] == 1
    diameter = rows.diameter if one_sample or rows.is_normalized else Upper(2) * rows.radius
    stacks: list[list[Block]] = []
    values: list[tuple[Path, Block]] = []
    shown: list[list[str]] = []
    for members in groups:
        paths: dict[int, tuple[Path, Enclosed]] = {}
        gains = replace(computation.heads, shared=1)
        for i, operand in operands.items():
            path = path_of(lines[i], members, width)
            if path is None:
                return None
            if operand.turn is not None:
                path = replace(path, turned=True, stretch=path.stretch * operand.turn)
            new = sharper_rows(operand.known, path, rows.through(path.weight), rows, diameter)
            gains = _with_rows(gains, i, new if operand.before is None else together(operand.before, new))
            paths[i] = (path, path.weight if start == entry else rows.through(path.weight))
        slopes = {0: gains.query_gain, 1: gains.key_gain, 2: gains.value_gain}
        own = [Block(matrix, slopes[i]("l2") * path.stretch) for i, (path, matrix) in paths.items()]
        if not all(block.gain.is_finite for block in own):
            return None
        stacks.append(own)
        if 2 in paths:
            values.append((paths[2][0], own[-1]))
        shown.append([block.gain.decimal() for block in own])
    tokens, size = computation.heads.q.count, computation.heads.v.width
    count = max(line.layout.shape[0] for line in lines.values())
    output = output_of(work, nodes, core, region.exit, groups, (count, tokens), size)
    if output is None:
        return None
    slope, method = output.norm * weighted_stack(stacks), "weighted stack of heads"
    if values:
        blocks = [block for _, block in values]
        merged = merged_values(output, [path for path, _ in values], [block.matrix for block in blocks], [block.gain for block in blocks])
        apart = None if merged is None else merged + output.norm * weighted_stack([own[:-1] for own in stacks])
        if apart is not None and apart < slope:
            slope, method = apart, "values merged with the output"
    slope = slope if start == entry else slope * rows.gain
    names = ", ".join(("queries", "keys", "values")[i] for i in operands)
    evidence = {"entry": entry, "paths": names, "heads": len(groups), "G": shown, "output projection": output.norm.decimal()}
    return Proposal(entry, slope, f"attention: {method} ({names})", "attention from one of its entries, the others held", evidence)


def _normalized(work: Workspace, nodes: Sequence[Node], entry: str) -> str | None:
    """The rows of the entry after a normalization, where nothing else in the region reads it; then each W is ``W G P``."""
    readers = [node for node in nodes if entry in (*node.inputs, *work.graph.captured_by(node))]
    if len(readers) != 1 or not readers[0].outputs:
        return None
    rows = rows_behind(work, readers[0].outputs[0])
    return rows.value if rows is not None and rows.is_normalized and rows.source == entry else None


def _reached(work: Workspace, nodes: Sequence[Node], entry: str) -> set[str]:
    """Values within the region that depend on the entry."""
    reached = {entry}
    for node in nodes:
        if any(name in reached for name in (*node.inputs, *work.graph.captured_by(node))):
            reached.update(name for name in node.outputs if name)
    return reached


def _operands(
    work: Workspace, core: Node, reached: set[str], found: Mapping[str, Layout], xs: Sequence[Range | None], heads: Heads
) -> dict[int, _Operand] | None:
    """The operands that depend on the entry; None if one of them cannot be read, or something else of the attention depends on it."""
    rule, site = work.rules[core.name], work.sites[core.name]
    touched = [i for i, name in enumerate(core.inputs) if name in reached]
    if any(name in reached for name in work.graph.captured_by(core)):
        return None
    if not touched or any(i > 2 or work.is_barred(core, i) for i in touched) or site.out_shape()[-1] == 0:
        return None
    if isinstance(rule, MultiHeadAttention) and site.has(3):
        return None
    if isinstance(rule, GroupQueryAttention) and not (site.has(1) and site.has(2)):
        return None
    cache = _CACHE.get(core.kind, _CACHE["ai.onnx"] if core.kind == "ai.onnx::Attention" else ())
    turn = _turn(rule, core, work)
    operands: dict[int, _Operand] = {}
    for i in touched:
        name, before = core.inputs[i], None
        if name not in found:
            peeled = _behind_cache(work, core, i, reached)
            if peeled is None or peeled[0] not in found:
                return None
            name, others = peeled
            for other in others:
                range_ = work.ranges.get(other)
                if range_ is None:
                    return None
                known = rows_of(range_, transposed=i == 1 and bool(core.attrs.get("k_transposed", 0)))
                before = known if before is None else together(before, known)
        elif i and cache and site.has(cache[i - 1]):
            past = xs[cache[i - 1]]
            if past is None:
                return None
            before = rows_of(past)
        layout = split_heads(work, core, i, found[name], heads.shared)
        range_ = work.ranges.get(name)
        if layout is None or range_ is None:
            return None
        if isinstance(rule, FusedAttention):
            known = rows_of(range_, transposed=i == 1 and bool(core.attrs.get("k_transposed", 0)))
        elif before is None:
            known = (heads.q, heads.k, heads.v)[i]
        else:
            known = rows_of(range_, range_.shape[-1] // layout.shape[-1] if len(range_.shape) == 3 else 1)
        turned = turn if i < 2 else None
        if turned is not None and before is not None:  # what the operator turns itself has another range
            known = Rows(known.count, known.width, INFINITE, INFINITE, INFINITE, INFINITE, INFINITE, INFINITE)
        operands[i] = _Operand(layout, known, before, turned)
    return operands


def _turn(rule: object, core: Node, work: Workspace) -> Upper | None:
    """The factor of a rotation that the operator applies to queries and keys itself."""
    site = work.sites[core.name]
    if not isinstance(rule, GroupQueryAttention) or not int(site.attr("do_rotary", 0)):
        return None
    rotation = rotation_of(site.constant(7), site.constant(8))
    return INFINITE if rotation is None else max(rotation.length, ONE)


def _behind_cache(work: Workspace, core: Node, i: int, reached: set[str]) -> tuple[str, list[str]] | None:
    """Where an operand is a Concat along the tokens: the part that depends on the entry, and the others."""
    node = work.graph.producer.get(core.inputs[i])
    if node is None or node.kind != "ai.onnx::Concat" or any(work.gain(node, k) is None for k in work.moving(node)):
        return None
    shape = work.graph.value(node.outputs[0]).shape
    wanted = -1 if i == 1 and core.attrs.get("k_transposed", 0) else -2
    if not shape or i == 0 or int(node.attrs.get("axis", 0)) % len(shape) != len(shape) + wanted:
        return None
    own = [name for name in node.inputs if name in reached]
    return (own[0], [name for name in node.inputs if name not in reached]) if len(own) == 1 else None


def _count(core: Node, shape: tuple[int, ...]) -> int:
    """Heads of one sample."""
    named = core.attrs.get("q_num_heads") or core.attrs.get("num_heads")
    if named and len(shape) == 3 and core.domain != "lipaudit":
        return int(named)
    return shape[-3] if len(shape) > 3 else 1


def _classes(lines: Mapping[int, Lines], heads: int) -> list[list[int]] | None:
    """Lines of one head in several samples; None if one class reads a row of the entry twice."""
    counts = {line.tokens.shape[0] for line in lines.values()}
    if len(counts) != 1:
        return None
    (count,) = counts
    found: dict[tuple[object, ...], list[int]] = {}
    for k in range(count):
        found.setdefault((k % heads, *(line.key(k) for line in lines.values())), []).append(k)
    for members in found.values():
        for line in lines.values():
            rows = line.tokens[members].reshape(-1)
            if len(set(rows.tolist())) != rows.size:
                return None
    return list(found.values())


def _with_rows(heads: Heads, i: int, rows: Rows) -> Heads:
    """With one operand known better; never worse than before."""
    old = (heads.q, heads.k, heads.v)[i]
    better = replace(
        old,
        row=min(old.row, rows.row),
        top=min(old.top, rows.top),
        diameter=min(old.diameter, rows.diameter) if old.count > 1 else ZERO,
    )
    return replace(heads, **{"qkv"[i]: better})
