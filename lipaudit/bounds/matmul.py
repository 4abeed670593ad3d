"""Multiplication by a constant matrix or a batch of matrices, from the left or the right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm, fill_norm, nonfinite, refused, uniform_value
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ZERO, Lower, Norm, Upper, dual

__all__ = ["Dense"]

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Dense(LinearOperator):
    """``x @ W`` (``side="right"``) or ``W @ x`` (``side="left"``) with the semantics of ``numpy.matmul``.

    Parameters
    ----------
    weight
        [..., k, m] (right) or [..., m, k] (left); one axis less for a vector. A broadcast scalar (strides 0) is never materialised.
    in_shape
        [..., n, k] (right), [..., k, n] (left), or [k].

    Leading axes broadcast. Where W has a batch axis that x lacks (or has with size 1), one x meets several matrices: these are
    stacked into one matrix, whose norm is exact; other batch axes are blocks, of which the largest counts.
    """

    def __init__(self, weight: Array, in_shape: Sequence[int], side: Literal["right", "left"] = "right") -> None:
        self.in_shape = tuple(int(n) for n in in_shape)
        self.side: Literal["right", "left"] = side
        self.weight = weight
        if weight.ndim == 0 or not self.in_shape:
            raise ValueError("matmul needs at least one axis on both sides")
        right = side == "right"
        self._matrix = weight if weight.ndim > 1 else (weight[:, None] if right else weight[None, :])
        self._x = self.in_shape if len(self.in_shape) > 1 else ((1, *self.in_shape) if right else (*self.in_shape, 1))
        k = self._matrix.shape[-2] if right else self._matrix.shape[-1]
        if k != (self._x[-1] if right else self._x[-2]):
            raise ValueError(f"shapes {weight.shape} and {self.in_shape} do not multiply from the {side}")
        self.inner = int(k)
        batch = np.broadcast_shapes(self._matrix.shape[:-2], self._x[:-2])
        core = (self._x[-2], self._matrix.shape[-1]) if right else (self._matrix.shape[-2], self._x[-1])
        self._y = tuple(int(n) for n in (*batch, *core))
        # An axis that was added for a vector goes again: the column of a vector weight, the row or column of a vector x.
        added = (weight.ndim == 1, len(self.in_shape) == 1)
        column, row = added if right else (added[1], added[0])
        self.out_shape = (*(int(n) for n in batch), *(() if row else core[:1]), *(() if column else core[1:]))

    @cached_property
    def _value(self) -> float | None:
        return uniform_value(self._matrix)

    @cached_property
    def _float(self) -> Floats:
        return np.asarray(self._matrix, dtype=np.float64)

    def apply(self, x: Floats) -> Floats:
        """The product."""
        x = np.asarray(x, dtype=np.float64).reshape(self._x)
        if self._value is not None:
            total = self._value * x.sum(axis=-1 if self.side == "right" else -2, keepdims=True)
            return np.ascontiguousarray(np.broadcast_to(total, self._y)).reshape(self.out_shape)
        y = x @ self._float if self.side == "right" else self._float @ x
        return y.reshape(self.out_shape)

    def adjoint(self, y: Floats) -> Floats:
        """The product with the transpose, summed over the matrices that one x meets."""
        y = np.asarray(y, dtype=np.float64).reshape(self._y)
        right = self.side == "right"
        if self._value is not None:
            axis = -1 if right else -2
            shape = (*self._y[:-1], self.inner) if right else (*self._y[:-2], self.inner, self._y[-1])
            full = np.broadcast_to(self._value * y.sum(axis=axis, keepdims=True), shape)
        else:
            transposed = np.swapaxes(self._float, -1, -2)
            full = y @ transposed if right else transposed @ y
        extra = full.ndim - len(self._x)
        x = full.sum(axis=tuple(range(extra))) if extra else full
        axes = tuple(k for k, n in enumerate(self._x[:-2]) if n == 1 and x.shape[k] != 1)
        return (x.sum(axis=axes, keepdims=True) if axes else x).reshape(self.in_shape)

    def magnitude(self) -> Dense:
        """The operator of ``|W|``."""
        value = self._value
        if value is not None:
            return Dense(np.broadcast_to(np.float64(abs(value)), self.weight.shape), self.in_shape, self.side)
        return Dense(np.abs(np.asarray(self.weight, dtype=np.float64)), self.in_shape, self.side)

    def without(self, axis: int) -> Dense | None:
        """Any axis but the one that is multiplied, if there is one matrix."""
        rank = len(self.in_shape)
        if self.weight.ndim != 2 or rank < 2 or axis == (rank - 1 if self.side == "right" else rank - 2):
            return None
        return Dense(self.weight, (*self.in_shape[:axis], 1, *self.in_shape[axis + 1 :]), self.side)

    @property
    def terms(self) -> int:
        """The inner length."""
        return max(1, self.inner)

    def blocks(self) -> tuple[int, int]:
        """Number of blocks, and how many matrices are stacked in each."""
        blocks = stacked = 1
        batch = self._matrix.shape[:-2]
        own = (1,) * max(0, len(batch) - len(self._x[:-2])) + self._x[:-2]
        for n, mine in zip(batch, own[len(own) - len(batch) :], strict=True):
            blocks, stacked = (blocks * n, stacked) if mine != 1 else (blocks, stacked * n)
        return blocks, stacked

    @property
    def width(self) -> int:
        """The length of an output row (or column) of one matrix."""
        return int(self._matrix.shape[-1] if self.side == "right" else self._matrix.shape[-2])

    def stacks(self) -> Array:
        """[blocks, rows, columns]: the matrices that act on one x, stacked along the axis that is kept."""
        matrix = self._matrix
        batch = matrix.shape[:-2]
        if math.prod(batch) == 1:
            return matrix.reshape(1, *matrix.shape[-2:])
        own = (1,) * max(0, len(batch) - len(self._x[:-2])) + self._x[:-2]
        own = own[len(own) - len(batch) :]
        kept = [k for k in range(len(batch)) if own[k] != 1]
        stack = [k for k in range(len(batch)) if own[k] == 1]
        last = len(batch)
        if self.side == "right":
            ordered = matrix.transpose(*kept, last, *stack, last + 1)
            return ordered.reshape(self.blocks()[0], matrix.shape[-2], -1)
        ordered = matrix.transpose(*kept, *stack, last, last + 1)
        return ordered.reshape(self.blocks()[0], -1, matrix.shape[-1])

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Largest verified norm of a block. ``x @ W`` is the transpose of W acting on the rows of x."""
        if self.weight.size == 0 or math.prod(self.in_shape) == 0:
            return VerifiedNorm(ZERO, Lower(0), "empty")
        own: Norm = dual(norm) if self.side == "right" else norm
        if self._value is not None:
            stacked = self.blocks()[1]
            rows, columns = self._matrix.shape[-2:]
            shape = (rows, columns * stacked) if self.side == "right" else (rows * stacked, columns)
            return fill_norm(self._value, shape, own)
        bad = nonfinite(self.weight)
        if bad:
            return refused(bad)
        stacks = self.stacks()
        if len(stacks) == 1:
            return dense_norm(stacks[0], own, slack)
        return _largest_block(stacks, own, slack)


def _largest_block(stacks: Array, norm: Norm, slack: float) -> VerifiedNorm:
    """Largest norm of a batch of finite matrices; in l2, blocks whose Frobenius norm is already below it are not factorised."""
    flat = stacks.reshape(len(stacks), -1)
    with np.errstate(over="ignore", under="ignore"):
        roots = np.sqrt(np.array([float(np.vdot(row, row)) for row in (np.asarray(part, dtype=np.float64) for part in flat)]))
    width = 1 + (flat.shape[1] + 8) * 2.0**-52
    best: VerifiedNorm | None = None
    lower, at = Lower(0), 0
    for k in np.argsort(-roots, kind="stable"):
        usable = norm == "l2" and 2.0**-400 < roots[k] < 2.0**400
        if best is not None and usable and Upper(float(roots[k]) * width) <= best.upper:
            continue
        found = dense_norm(stacks[k], norm, slack)
        lower = max(lower, found.lower)
        if best is None or found.upper > best.upper:
            best, at = found, int(k)
    assert best is not None
    return VerifiedNorm(best.upper, lower, best.method, {**best.evidence, "block": at})
