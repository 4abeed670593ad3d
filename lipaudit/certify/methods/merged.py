"""Heads with ``W_K' W_Q`` and ``W_O W_V`` multiplied out: better than their separate norms where they cancel.

The rows that a head reads are ``y = G z + b`` with ``|z| <= rho`` and at most D apart (``methods.rows``), and with ``A = s W_K' W_Q``,
``M = W_O W_V`` the identity of ``operators.attention_core`` reads::

    do_i = sum_j P_ij M dy_j + M Cov_i(y) A dy_i + sum_j P_ij M (y_j - ybar_i) (g_i . dy_j),    g_i = s W_K' (W_Q y_i + b_Q)

``||Cov_i(z)|| <= sigma^2``, ``sigma = min(rho, D/2)``: the variance of a bounded variable along any direction. So the second term is at
most ``||M G P|| sigma^2 ||s (W_K G P)' W_Q||``, and with the values left as they are ``sigma (D_V/2) ||s (W_K G P)' W_Q||``. For the last,
with ``t_j = g_i . dy_j``, Cauchy-Schwarz gives ``sigma sqrt(sum_j P_ij t_j^2)``, so ``sigma |g| sqrt(c)`` over all queries; the form of
Popoviciu (D/sqrt 8) gives ``sigma |g| sqrt(m/2)``. In the largest-row norm it is ``sigma |g|``. Heads add, or their M stand beside each
other. Needs: no rotation, no soft cap, constants that are the same for all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipaudit.bounds.scalar import ZERO, Lower, Upper, combine
from lipaudit.certify.methods.block import AttentionBlock, Head
from lipaudit.certify.methods.enclosed import Enclosed, stacked
from lipaudit.certify.methods.rows import Rows
from lipaudit.certify.methods.stack import Block
from lipaudit.operators import attention_core

__all__ = ["Merged", "Scores", "merged_heads", "merged_scores", "with_merged_scores"]

_MOST_WORK = 6e8
"""Heads are multiplied out if all products and norms together take at most so many operations."""
_ABOVE = Upper(1 + 2.0**-30)
"""More than the rounding of the squares by which rows are compared (those that underflow apart)."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one class of heads.

    ``turn``: ``s (W_K G P)' W_Q`` as it acts on what moves; ``reach``: largest ``|g|``; ``share``: ``min(sqrt(c), sqrt(m/2))``.
    """

    turn: Enclosed
    reach: Upper
    share: Upper


@dataclass(frozen=True, slots=True)
class Merged:
    """Gains of the paths through queries and through keys, and (largest-row norm) of all three paths; output projection included."""

    queries: Upper
    keys: Upper
    row_max: Upper


def deviation(block: AttentionBlock) -> Upper:
    """sigma of the module."""
    return min(block.rows.radius, block.diameter / Lower(2))


def merged_scores(block: AttentionBlock, *, behind: bool) -> list[Scores] | None:
    """The scores of all heads, from the entry or (``behind``) from z; None where the module does not apply."""
    softmax = [head.gains for head in block.heads if isinstance(head.gains, attention_core.Heads) and _fits(head, head.gains)]
    if len(softmax) < len(block.heads) or not deviation(block).is_finite:
        return None
    width = block.heads[0].paths[0].weight.array.shape[1]
    if sum(head.paths[0].weight.array.shape[0] * width * width + width**3 for head in block.heads) > _MOST_WORK:
        return None
    found: list[Scores] = []
    for head, gains in zip(block.heads, softmax, strict=True):
        query, key = (head.merged if behind else [path.weight for path in head.paths])[:2]
        query_z, key_z = head.merged[:2]
        scale = gains.scale
        spread = _turned(key).times(query_z).norm() * block.rows.radius
        reach = scale * (spread + _still(block.rows, head, key))
        found.append(Scores(_turned(key_z).times(query).scaled(scale), reach, _share(gains)))
    return found


def with_merged_scores(block: AttentionBlock, scores: Sequence[Scores], blocks: Sequence[Sequence[Block]]) -> list[list[Block]]:
    """The blocks (queries, keys, values) of each head, those of queries and of keys replaced where the merged form is less."""
    sigma = deviation(block)
    found: list[list[Block]] = []
    for head, own, (query, key, value) in zip(block.heads, scores, blocks, strict=True):
        spread = sigma * head.gains.v.diameter / Lower(2)
        # |(v - o)' Cov| <= sd(v) sd(z): D_V/2 along any direction; for keys D_V/sqrt 8 and sqrt m, or D_V/2 and sqrt c.
        turned = Block(own.turn, spread)
        if turned.gain * turned.matrix.norm() < query.gain * query.matrix.norm():
            query = turned
        away = own.reach * head.gains.v.diameter / Lower(2) * own.share
        if away < key.gain * key.matrix.norm():
            key = Block(Enclosed(np.eye(own.turn.array.shape[1])), away)
        found.append([query, key, value])
    return found


def merged_heads(block: AttentionBlock, scores: Sequence[Scores], *, behind: bool) -> Merged | None:
    """With the values merged too; None where the output projection does not act on single heads."""
    parts = block.output.parts
    if parts is None:
        return None
    sigma = deviation(block)
    square = sigma * sigma
    seen = [part.times(head.merged[2]) for part, head in zip(parts, block.heads, strict=True)]
    values = seen if behind else [part.times(head.paths[2].weight) for part, head in zip(parts, block.heads, strict=True)]
    beside = stacked([_turned(matrix) for matrix in seen]).norm()
    singly = [matrix.norm() for matrix in seen]
    turns = [own.turn.norm() for own in scores]
    queries = min(
        combine([size * square * turn for size, turn in zip(singly, turns, strict=True)], "l1"),
        beside * square * stacked([own.turn for own in scores]).norm(),
    )
    weights = [sigma * own.reach * own.share for own in scores]
    keys = min(combine([size * weight for size, weight in zip(singly, weights, strict=True)], "l1"), beside * combine(weights, "l2"))
    rows = [
        value.norm() + size * (square * turn + sigma * own.reach)
        for value, size, turn, own in zip(values, singly, turns, scores, strict=True)
    ]
    factor = block.output.factor
    return Merged(factor * queries, factor * keys, factor * combine(rows, "l1"))


def _fits(head: Head, gains: attention_core.Heads) -> bool:
    """The head is ``softmax(s q.k + B) v`` with q, k, v affine in the rows, the same way for all tokens."""
    if not gains.cap.is_zero or gains.sink:
        return False
    if any(path.turned or path.normalized or float(path.stretch) != 1.0 for path in head.paths):
        return False
    return not any(np.any(path.constant != path.constant[:1]) for path in head.paths[1:])


def _turned(matrix: Enclosed) -> Enclosed:
    return Enclosed(np.ascontiguousarray(matrix.array.T), matrix.error)


def _still(rows: Rows, head: Head, key: Enclosed) -> Upper:
    """``|W_K' (W_Q b + b_Q)|``, the part of g that does not move."""
    path = head.paths[0]
    centre, error = rows.centre(path.weight)
    whole = np.unique(path.constant.reshape(-1, path.constant.shape[-1]) + centre, axis=0)
    if not np.any(whole) and error == 0.0 and path.slack == 0.0:
        return ZERO
    each = 1.01 * (path.slack + error + 2.0**-51 * float(np.max(np.abs(whole), initial=0.0)))
    loose = Upper(each) * Upper(whole.shape[-1]).sqrt()  # of one row
    image = Enclosed(whole).times(key)
    longest = image.array[int(np.argmax(np.sum(image.array * image.array, axis=-1)))][None, :]
    # The row with the largest computed norm stands for the others: each is off by no more than the error of all.
    return Enclosed(longest, image.error + image.error).frobenius() * _ABOVE + Upper(1e-140) + loose * key.norm()


def _share(gains: attention_core.Heads) -> Upper:
    """``min(sqrt(c), sqrt(m/2))``."""
    most = Upper(min(gains.mask.most, gains.queries))
    return min(gains.column_sum().sqrt(), (most / Lower(2)).sqrt())
