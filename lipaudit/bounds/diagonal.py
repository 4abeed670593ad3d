"""Elementwise multiplication by a constant that broadcasts, either way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lipaudit.bounds.dense import nonfinite, refused, vector_norm
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper
from lipaudit.bounds.sums import largest_row_sum

__all__ = ["Diagonal"]

Floats = NDArray[np.float64]


class Diagonal(LinearOperator):
    """``y = scale * x`` with numpy broadcasting; the output may be larger than the input.

    Exact norms over the copies k of an input element: l2 ``max_j sqrt(sum c_k^2)``, l1 ``max_j sum |c_k|``, linf ``max |c|``.

    Parameters
    ----------
    scale
        The constant, in its own shape (an axis of stride 0 counts as broadcast).
    in_shape
        Shape of x.
    relative_error
        The true factors are ``scale * (1 + e)`` with ``|e|`` up to this (they were computed, not stored).
    """

    def __init__(self, scale: NDArray[Any], in_shape: Sequence[int], relative_error: float = 0.0) -> None:
        self.in_shape = tuple(int(n) for n in in_shape)
        array = np.asarray(scale)
        self.out_shape = tuple(int(n) for n in np.broadcast_shapes(array.shape, self.in_shape))
        # Broadcast axes shrink to one element, so that a scalar stays a scalar whatever shape it was given.
        array = array[tuple(slice(0, 1) if s == 0 and n > 1 else slice(None) for n, s in zip(array.shape, array.strides, strict=True))]
        self.scale: Floats = np.asarray(array, dtype=np.float64)
        self.relative_error = float(relative_error)

    @property
    def is_scalar(self) -> bool:
        """One factor for all elements and no copies."""
        return self.scale.size == 1 and math.prod(self.in_shape) == math.prod(self.out_shape)

    def axis_factors(self, axis: int) -> Floats | None:
        """The factors along output axis ``axis`` if they vary along no other and nothing is copied, shape [size]; else None."""
        rank = len(self.out_shape)
        if rank != len(self.in_shape) or self.in_shape != self.out_shape:
            return None
        shape = (1,) * (rank - self.scale.ndim) + self.scale.shape
        if any(n > 1 and k != axis % rank for k, n in enumerate(shape)):
            return None
        return np.array(np.broadcast_to(self.scale.reshape(-1), (self.out_shape[axis],)))

    @cached_property
    def _copies(self) -> tuple[Floats, int]:
        """Factors as [input elements (or fewer), distinct copies], and how often each of these copies occurs."""
        rank = len(self.out_shape)
        own = (1,) * (rank - len(self.in_shape)) + self.in_shape
        shape = (1,) * (rank - self.scale.ndim) + self.scale.shape
        copied = [k for k in range(rank) if own[k] == 1 and self.out_shape[k] != 1]
        repeats = math.prod(self.out_shape[k] for k in copied if shape[k] == 1)
        aligned = np.moveaxis(self.scale.reshape(shape), copied, range(rank - len(copied), rank))
        width = math.prod(shape[k] for k in copied)
        return aligned.reshape(-1, width), repeats

    def apply(self, x: Floats) -> Floats:
        """``scale * x``."""
        return np.asarray(np.broadcast_to(np.asarray(x, dtype=np.float64) * self.scale, self.out_shape))

    def adjoint(self, y: Floats) -> Floats:
        """``scale * y`` summed over the copies."""
        product = np.asarray(y, dtype=np.float64) * self.scale
        rank = len(self.out_shape)
        own = (1,) * (rank - len(self.in_shape)) + self.in_shape
        axes = tuple(k for k in range(rank) if own[k] == 1 and self.out_shape[k] != 1)
        return product.sum(axis=axes, keepdims=True).reshape(self.in_shape)

    def entries(self, *, magnitude: bool) -> Any | None:
        """The factors; None where products of them might underflow."""
        sizes = np.abs(self.scale[self.scale != 0])
        if not np.all(np.isfinite(self.scale)) or np.any((sizes < 2.0**-100) | (sizes > 2.0**100)):
            return None
        inputs, outputs = math.prod(self.in_shape), math.prod(self.out_shape)
        columns = np.broadcast_to(np.arange(inputs).reshape(self.in_shape), self.out_shape).ravel()
        values = np.broadcast_to(np.abs(self.scale) if magnitude else self.scale, self.out_shape).ravel()
        return sparse.csr_array((values, (np.arange(outputs), columns)), shape=(outputs, inputs))

    def magnitude(self) -> Diagonal:
        """``|scale|``."""
        other = object.__new__(Diagonal)
        other.in_shape, other.out_shape = self.in_shape, self.out_shape
        other.scale, other.relative_error = np.abs(self.scale), self.relative_error
        return other

    def without(self, axis: int) -> Diagonal | None:
        """If the factors do not vary along the axis and nothing is copied along it."""
        own = axis - len(self.in_shape) + self.scale.ndim
        if len(self.in_shape) != len(self.out_shape) or self.in_shape[axis] != self.out_shape[axis]:
            return None
        if own >= 0 and self.scale.shape[own] != 1:
            return None
        other = object.__new__(Diagonal)
        other.in_shape = (*self.in_shape[:axis], 1, *self.in_shape[axis + 1 :])
        other.out_shape = (*self.out_shape[:axis], 1, *self.out_shape[axis + 1 :])
        other.scale, other.relative_error = self.scale, self.relative_error
        return other

    @property
    def terms(self) -> int:
        """One product; the relative error of the factors counts as further roundings."""
        return 1 + math.ceil(self.relative_error * 2.0**53)

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Exact up to ``relative_error``."""
        if self.scale.size == 0 or math.prod(self.in_shape) == 0 or math.prod(self.out_shape) == 0:
            return VerifiedNorm(ZERO, Lower(0), "empty")
        bad = nonfinite(self.scale)
        if bad:
            return refused(bad)
        rows, repeats = self._copies
        top = float(np.max(np.abs(rows)))
        if norm == "linf" or rows.shape[1] == 1:
            upper, lower = Upper(top), Lower(top)
        elif norm == "l1":
            upper = largest_row_sum(rows)
            lower = Lower(top)
        else:
            upper, lower = _largest_root(rows)
        if norm == "l1":
            upper, lower = upper * Upper(repeats), lower * Lower(repeats)
        elif norm == "l2":
            upper, lower = upper * Upper(repeats).sqrt(), lower * Lower(repeats).sqrt()
        if self.relative_error:
            upper = upper * (ONE + Upper(self.relative_error))
            lower = lower * Lower(max(0.0, (1 - self.relative_error) * (1 - 2.0**-52)))
        return VerifiedNorm(upper, lower, "elementwise factors", {"copies": repeats * rows.shape[1]})


def _largest_root(rows: Floats) -> tuple[Upper, Lower]:
    """Largest l2 norm of a row."""
    top = float(np.max(np.abs(rows)))
    if top == 0.0:
        return ZERO, Lower(0)
    scaled = np.ldexp(rows, -math.frexp(top)[1])
    squares = np.einsum("ij,ij->i", scaled, scaled)
    near = np.flatnonzero(squares >= squares.max() * (1 - (8 * rows.shape[1] + 32) * 2.0**-52))
    if near.size * rows.shape[1] > 1 << 20:
        # Too many ties to sum one by one: one of them, and what rounding may hide in the others.
        found = vector_norm(rows[near[0]])
        return found.upper * (ONE + Upper((16 * rows.shape[1] + 64) * 2.0**-52)), found.lower
    norms = [vector_norm(rows[k]) for k in near]
    return max(item.upper for item in norms), max(item.lower for item in norms)
