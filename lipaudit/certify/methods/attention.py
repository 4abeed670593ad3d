"""Attention blocks as wholes: projections, heads and output projection together.

With ``q = W_Q x + b``, .. per head and gains G of one head (``operators.attention_core``), for any ``tau_Q^2 + tau_K^2 + tau_V^2 <= 1``
per head::

    L <= ||W_O|| || stack_h [G_Q W_Q / tau_Q ; G_K W_K / tau_K ; G_V W_V / tau_V] ||

by Cauchy-Schwarz inside the head and a sum of squares over heads. The values may be taken apart and merged with their part of
the output projection, ``min(sum_h sqrt(c_h) ||W_O W_V||, ||[W_O W_V]_h|| sqrt(sum c_h))``, plus the stack of Q and K. Heads with
``W_K' W_Q`` multiplied out: ``methods.merged``. Behind a normalization each W is ``W G P`` and the bound is divided by s0. Largest-row
norm, for any number of tokens:
``||W_O|| sqrt(sum_h (||W_V|| + s R_Q D_V/2 ||W_K|| + s D_K D_V/4 ||W_Q||)^2)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Upper, combine
from lipaudit.certify.methods.block import AttentionBlock, Output, read_block
from lipaudit.certify.methods.enclosed import Enclosed, stacked
from lipaudit.certify.methods.heads import Path
from lipaudit.certify.methods.merged import merged_heads, merged_scores, with_merged_scores
from lipaudit.certify.methods.stack import Block, weighted_stack
from lipaudit.certify.methods.workspace import Proposal, Workspace
from lipaudit.topology import Region

__all__ = ["attention_block", "merged_values"]

Floats = NDArray[np.float64]

_MERGE_WORK = 3e8
"""Values are merged with the output projection if all heads together take at most so many operations."""


def attention_block(work: Workspace, region: Region, *, behind: bool) -> Proposal | None:
    """The bound of a region that is one attention with its projections, from its entry or from what is normalized before it."""
    if work.norm != "l2" or len(region.entries) != 1:
        return None
    plan = work.once(("attention", region.path), lambda: read_block(work, region))
    if plan is None or (behind and not plan.rows.source):
        return None
    return _proposal(plan, region.entries[0], behind=behind)


def _proposal(plan: AttentionBlock, entry: str, *, behind: bool) -> Proposal | None:
    """The least of the bounds of the module."""
    gain = plan.rows.gain if behind else ONE
    slopes: list[tuple[Upper, Upper, Upper]] = []
    matrices: list[tuple[Enclosed, Enclosed, Enclosed]] = []
    for head in plan.heads:
        slopes.append(head.slopes())
        matrices.append(head.merged if behind else tuple(path.weight for path in head.paths))  # pyright: ignore[reportArgumentType]
    if not all(slope.is_finite for triple in slopes for slope in triple):
        return None
    blocks = [[Block(a, g) for a, g in zip(ms, gs, strict=True)] for ms, gs in zip(matrices, slopes, strict=True)]
    outer = plan.output.norm
    best, method = outer * weighted_stack(blocks), "weighted stack of heads"
    scores = merged_scores(plan, behind=behind)
    if scores is not None:
        merged_blocks = with_merged_scores(plan, scores, blocks)
        turned = outer * weighted_stack(merged_blocks)
        if turned < best:
            best, method = turned, "weighted stack of heads, queries merged with keys"
            blocks = merged_blocks
    row_max = _row_max(plan, matrices, outer)
    values = merged_values(
        plan.output, [head.paths[2] for head in plan.heads], [triple[2] for triple in matrices], [slope[2] for slope in slopes]
    )
    if values is not None:
        split = values + outer * weighted_stack([group[:2] for group in blocks])
        if split < best:
            best, method = split, "values merged with the output, stack of queries and keys"
        merged = merged_heads(plan, scores, behind=behind) if scores is not None else None
        if merged is not None:
            queries, keys = (outer * weighted_stack([group[i : i + 1] for group in blocks]) for i in (0, 1))
            apart = values + min(merged.queries, queries) + min(merged.keys, keys)
            if apart < best:
                best, method = apart, "values merged with the output, queries merged with keys"
            if row_max is not None:
                row_max = min(row_max, merged.row_max)
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


def _row_max(plan: AttentionBlock, matrices: Sequence[tuple[Enclosed, Enclosed, Enclosed]], outer: Upper) -> Upper | None:
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


def merged_values(output: Output, paths: Sequence[Path], weights: Sequence[Enclosed], gains: Sequence[Upper]) -> Upper | None:
    """The path of the values with ``W_O W_V`` multiplied out, head by head: paths, matrices and gains of the values of each class."""
    parts = output.parts
    if parts is None or len(parts) != len(weights) or any(path.turned or path.normalized for path in paths):
        return None
    rows, columns = parts[0].array.shape[0], weights[0].array.shape[1]
    if len(parts) * rows * columns * min(rows, columns) > _MERGE_WORK:
        return None
    products = [part.times(weight) for part, weight in zip(parts, weights, strict=True)]
    singly = ZERO
    for product, gain in zip(products, gains, strict=True):
        singly = singly + gain * product.norm()
    beside = stacked([Enclosed(product.array.T, product.error) for product in products]).norm()
    return output.factor * min(singly, beside * combine(gains, "l2"))
