"""Several bounded maps fed by one value: ``|sum A_k B_k x| <= || stack_k (||A_k|| B_k / tau_k) || |x|`` for ``sum tau_k^2 <= 1``.

Any tau is valid; good ones make the stack small, so they are found by a few steps of power iteration on estimates and only the
chosen ones enter a verified norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Lower, Upper
from lipaudit.certify.methods.enclosed import Enclosed, stacked

__all__ = ["Block", "weighted_stack"]

Floats = NDArray[np.float64]

_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Block:
    """One map: a matrix, and the gain of what follows it."""

    matrix: Enclosed
    gain: Upper


def weighted_stack(groups: Sequence[Sequence[Block]]) -> Upper:
    """Upper bound of the map ``x -> (sum_k A_hk B_hk x)_h`` with ``||A_hk|| <= gain``, one group of blocks for each h."""
    used = [[block for block in group if not block.gain.is_zero and bool(np.any(block.matrix.array))] for group in groups]
    rest = ZERO
    for group in groups:
        for block in group:
            if not block.gain.is_zero and not np.any(block.matrix.array) and not block.matrix.error.is_zero:
                rest = rest + block.gain * block.matrix.error
    used = [group for group in used if group]
    if not used:
        return rest
    parts: list[Enclosed] = []
    for group, weights in zip(used, _weights(used), strict=True):
        for block, weight in zip(group, weights, strict=True):
            parts.append(block.matrix.scaled(block.gain / Lower(weight)))
    return stacked(parts).norm() + rest


def _weights(groups: Sequence[Sequence[Block]]) -> list[list[float]]:
    """For each group doubles tau with ``sum tau^2 <= 1`` that make the norm of the stack small."""
    sizes = [[float(block.gain) * block.matrix.estimate() for block in group] for group in groups]
    shares = [_normal(np.asarray(group)) for group in sizes]
    gains = [[float(block.gain) for block in group] for group in groups]
    best, found = np.inf, shares
    x = np.ones(groups[0][0].matrix.array.shape[1])
    for step in range(_ROUNDS):
        x, top = _power(groups, gains, shares, x, 12 if step == 0 else 5)
        if not np.isfinite(top):
            break
        if top < best * (1 - 1e-4):
            best, found = top, shares
        moved = [np.asarray([g * float(np.linalg.norm(b.matrix.array @ x)) for g, b in zip(gs, group, strict=True)])
                 for gs, group in zip(gains, groups, strict=True)]  # fmt: skip
        shares = [_normal(0.5 * share + 0.5 * _normal(size)) for share, size in zip(shares, moved, strict=True)]
    return [_doubles(share) for share in found]


def _power(
    groups: Sequence[Sequence[Block]], gains: list[list[float]], shares: list[Floats], x: Floats, steps: int
) -> tuple[Floats, float]:
    """A few steps towards the largest right singular vector of the stack, and its value."""
    top = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            y = np.zeros_like(x)
            for group, own, share in zip(groups, gains, shares, strict=True):
                for block, gain, part in zip(group, own, share, strict=True):
                    y += (gain * gain / part) * (block.matrix.array.T @ (block.matrix.array @ x))
            size = float(np.linalg.norm(y))
            if not np.isfinite(size) or size == 0:
                return x, np.inf
            top, x = size, y / size
    return x, top


def _normal(sizes: Floats) -> Floats:
    """Shares of 1 in proportion to ``sizes``, none below a millionth."""
    total = float(np.sum(sizes))
    if not np.isfinite(total) or total <= 0:
        return np.full(len(sizes), 1.0 / len(sizes))
    raised = np.maximum(sizes / total, 1e-6)
    return raised / float(np.sum(raised))


def _doubles(shares: Floats) -> list[float]:
    """Roots of the shares, with a proof that their squares sum to at most 1."""
    weights = [float(w) for w in np.sqrt(shares) * (1 - 2.0**-40)]
    total = ZERO
    for weight in weights:
        total = total + Upper(weight) * Upper(weight)
    return weights if total <= ONE else [float(np.sqrt(1.0 / len(weights))) * (1 - 2.0**-40)] * len(weights)
