"""Operators that copy elements: every output is one input element or a constant.

The gain is exact: ``m^(1/p)`` with m the number of times that the most repeated element occurs in the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import Lower, Norm, repeat_factor

__all__ = ["Permutation", "Selection"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Selection(LinearOperator):
    """``y = x.ravel()[index]``, 0 where the index is -1 (the place holds a constant).

    Parameters
    ----------
    in_shape, out_shape
        Static shapes.
    index
        Called once, when first needed: flat positions in the input, as many as the output has elements.
    multiplicity
        How often the most repeated input element occurs (0 if none occurs); counted from ``index`` if None.
    """

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], index: Callable[[], Array], multiplicity: int | None = None
    ) -> None:
        self.in_shape = tuple(int(n) for n in in_shape)
        self.out_shape = tuple(int(n) for n in out_shape)
        self._load = index
        self._multiplicity = multiplicity

    @classmethod
    def from_numpy(cls, in_shape: Sequence[int], fn: Callable[[Array], Array], multiplicity: int | None = None) -> Selection:
        """The selection that ``fn`` makes of an array of shape ``in_shape`` (a slice, a flip, a gather, ...)."""
        shape = tuple(int(n) for n in in_shape)
        out = fn(np.broadcast_to(np.int64(0), shape)).shape
        return cls(shape, out, lambda: fn(np.arange(math.prod(shape), dtype=np.int64).reshape(shape)), multiplicity)

    @cached_property
    def index(self) -> Indices:
        """Flat positions in the input, -1 for constants, shape [output elements]."""
        found = np.asarray(self._load(), dtype=np.int64).reshape(-1)
        if found.size != math.prod(self.out_shape):
            raise ValueError(f"{found.size} indices for an output of shape {self.out_shape}")
        return found

    @cached_property
    def multiplicity(self) -> int:
        """Largest number of copies of one element."""
        if self._multiplicity is not None:
            return self._multiplicity
        kept = self.index[self.index >= 0]
        return int(np.bincount(kept).max(initial=0)) if kept.size else 0

    def _pick(self, x: Floats) -> Floats:
        flat = np.asarray(x, dtype=np.float64).reshape(-1)
        if flat.size == 0:
            return np.zeros(self.out_shape)
        return np.where(self.index >= 0, flat[self.index], 0.0).reshape(self.out_shape)

    def apply(self, x: Floats) -> Floats:
        """The selected elements."""
        return self._pick(x)

    def adjoint(self, y: Floats) -> Floats:
        """Sum of what arrived at the copies of each element."""
        kept = self.index >= 0
        weights = np.asarray(y, dtype=np.float64).reshape(-1)[kept]
        return np.bincount(self.index[kept], weights=weights, minlength=math.prod(self.in_shape)).astype(np.float64).reshape(self.in_shape)

    def entries(self, *, magnitude: bool) -> Any:
        """Ones."""
        rows = np.flatnonzero(self.index >= 0)
        shape = (math.prod(self.out_shape), math.prod(self.in_shape))
        return sparse.csr_array((np.ones(rows.size), (rows, self.index[rows])), shape=shape)

    def magnitude(self) -> Selection:
        """Itself: the entries are 0 and 1."""
        return self

    @property
    def terms(self) -> int:
        """One."""
        return 1

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Exact."""
        copies = self.multiplicity
        lower = Lower(copies) if norm == "l1" else Lower(copies).sqrt() if norm == "l2" else Lower(min(copies, 1))
        return VerifiedNorm(repeat_factor(copies, norm), lower, "selection", {"multiplicity": copies})

    def enclose(self, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
        """The selected intervals, without any rounding."""
        return self._pick(np.broadcast_to(lo, self.in_shape)), self._pick(np.broadcast_to(hi, self.in_shape))


class Permutation(Selection):
    """Every input element exactly once (transpose, reshape, pixel shuffle): norm exactly 1; the index is made when needed."""

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], index: Callable[[], Array] | None = None) -> None:
        size = math.prod(int(n) for n in in_shape)
        super().__init__(in_shape, out_shape, index or (lambda: np.arange(size, dtype=np.int64)), min(1, size))
        self.reshapes = index is None
        if size != math.prod(self.out_shape):
            raise ValueError(f"a permutation of shape {self.in_shape} cannot have shape {self.out_shape}")

    def without(self, axis: int) -> Permutation | None:
        """Of the identity, and of a reshape behind the axis."""
        before, after = slice(0, axis + 1), slice(axis + 1, None)
        if not self.reshapes or self.in_shape[before] != self.out_shape[before]:
            return None
        inner, outer = ((*shape[:axis], 1, *shape[after]) for shape in (self.in_shape, self.out_shape))
        return Permutation(inner, outer)

    def apply(self, x: Floats) -> Floats:
        """The same elements elsewhere."""
        return np.asarray(x, dtype=np.float64).reshape(self.out_shape) if self.reshapes else self._pick(x)

    def adjoint(self, y: Floats) -> Floats:
        """The inverse."""
        if self.reshapes:
            return np.asarray(y, dtype=np.float64).reshape(self.in_shape)
        x = np.empty(math.prod(self.in_shape))
        x[self.index] = np.asarray(y, dtype=np.float64).reshape(-1)
        return x.reshape(self.in_shape)
