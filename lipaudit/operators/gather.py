"""Gather, GatherElements, GatherND: selection by indices; with a constant table, an embedding lookup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ZERO, Norm
from lipaudit.graph.ir import Constant
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.movement import Movement
from lipaudit.operators.parts import Part, table
from lipaudit.operators.range import Range, widen

__all__ = ["ArrayFeatureExtractor", "Gather", "GatherElements", "GatherND", "table_range"]

Array = NDArray[Any]

# Rows of a table that are looked at in one piece: bounds the memory, not the result.
_ROWS = 4096


def table_range(table: Constant, shape: tuple[int, ...]) -> Range:
    """Range of rows looked up in ``table`` [V, .., d] (``shape``: of the result, rows are its last axes).

    Element intervals per column (and over all but the first axis), ``row`` the largest row norm, ``diameter`` twice the largest
    distance of a row from the mean row; all rounded up.
    """
    if table.fill is not None:
        end = np.asarray(float(table.fill))
        return Range(shape, end, end, diameter=0.0)
    array = table.array()
    columns = table.shape[1:]
    lo, hi = np.full(columns, np.inf), np.full(columns, -np.inf)
    sums = np.zeros(columns)
    for start in range(0, table.shape[0], _ROWS):
        piece = np.asarray(array[start : start + _ROWS], dtype=np.float64)
        lo, hi = np.minimum(lo, piece.min(axis=0)), np.maximum(hi, piece.max(axis=0))
        sums += piece.sum(axis=0)
    if table.shape[0] == 0 or np.isnan(lo).any() or np.isnan(hi).any():
        return Range(shape, np.asarray(-np.inf), np.asarray(np.inf))
    found = Range(shape, lo, hi)
    if not columns or not np.isfinite(lo).all() or not np.isfinite(hi).all():
        return found
    centre = sums / table.shape[0]  # any point will do
    norms = distances = 0.0
    for start in range(0, table.shape[0], _ROWS):
        piece = np.asarray(array[start : start + _ROWS], dtype=np.float64)
        norms = max(norms, float(np.max(np.sum(piece * piece, axis=-1))))
        away = piece - centre
        distances = max(distances, float(np.max(np.sum(away * away, axis=-1))))
    width = columns[-1] + 4
    diameter = 2 * widen(math.sqrt(widen(distances, width)), width) if len(columns) == 1 else math.inf
    return found.replace(row=widen(math.sqrt(widen(norms, width)), 4), diameter=diameter)


class _Lookup(Movement):
    """Shared: indices are input 1; constant ones are counted, others may all name the same element."""

    def _indices(self, site: Site) -> Array | None:
        constant = site.constant(1)
        return None if constant is None else np.asarray(constant.array()).astype(np.int64)

    def _entries(self, site: Site) -> int:
        """How many index entries can name one element."""
        return math.prod(site.shape(1))

    def multiplicity(self, site: Site) -> int:
        """Most copies of one element."""
        return super().multiplicity(site) if self._indices(site) is not None else self._entries(site)

    def _anywhere(self, site: Site, x: Range) -> Range:
        """Range for unknown indices."""
        shape = site.out_shape()
        if x.size == 0:
            return Range(shape, np.asarray(0.0), np.asarray(0.0))
        return Range(shape, np.asarray(float(np.min(x.lo))), np.asarray(float(np.max(x.hi))), integral=x.integral)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Range of the output."""
        x = xs[0]
        assert x is not None
        if self._indices(site) is not None and self.problem(site) is None:
            return super().range(site, xs)
        return (self._anywhere(site, x),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Indices from the source jump: offset = diameter of all that can be looked up (rules 11)."""
        if i == 0:
            return super().gain(site, i, norm, xs)
        if i > 1:
            return Unknown(f"input {i} depends on the source")
        x = xs[0]
        assert x is not None
        jump = self._anywhere(site, x).total_diameter(norm)
        if not jump.is_finite:
            return Unbounded("the indices depend on the source and what they choose from is not bounded")
        return Finite(ZERO, jump, method="jump between looked-up values")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        if i or self._indices(site) is None or self.problem(site) is not None:
            return None
        return Selection(site.shape(0), site.out_shape(), lambda: self.index(site), self.multiplicity(site))


class Gather(_Lookup):
    """Rows ``indices`` along one axis. Indices -1 and n - 1 are one."""

    def _axis(self, site: Site) -> int:
        return int(site.attr("axis", 0)) % len(site.shape(0))

    def parts(self, site: Site) -> tuple[Part, ...]:
        """A stored table of which computed indices choose rows."""
        return table(site, 0) if site.constant(1) is None and self._axis(site) == 0 else ()

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        indices, n = self._indices(site), site.shape(0)[self._axis(site)]
        if indices is not None and indices.size and (int(np.max(indices)) >= n or int(np.min(indices)) < -n):
            return f"an index lies outside 0..{n - 1}"
        return None

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        indices = self._indices(site)
        assert indices is not None
        return np.take(array, indices, axis=self._axis(site))

    def multiplicity(self, site: Site) -> int:
        """Most copies of one element."""
        indices = self._indices(site)
        if indices is None:
            return self._entries(site)
        if math.prod(site.out_shape()) == 0:
            return 0
        n = site.shape(0)[self._axis(site)]
        return int(np.max(np.bincount(indices.ravel() % n))) if indices.size else 0

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Range of the output."""
        x, table, axis = xs[0], site.constant(0), self._axis(site)
        assert x is not None
        if table is not None and axis == 0 and len(table.shape) >= 1 and self._indices(site) is None and table.dtype != "string":
            found = table_range(table, site.out_shape())
            return (found.replace(integral=x.integral),)
        return super().range(site, xs)

    def _anywhere(self, site: Site, x: Range) -> Range:
        axis, shape = self._axis(site), site.out_shape()
        lo, hi = np.broadcast_arrays(x.lo, x.hi)
        if x.size == 0 or lo.ndim == 0:
            found = super()._anywhere(site, x)
        else:
            full = (1,) * (len(x.shape) - lo.ndim) + lo.shape
            entries = len(site.shape(1))
            ends = [
                np.expand_dims(join(end.reshape(full), axis=axis), tuple(range(axis, axis + entries)))
                for end, join in ((lo, np.min), (hi, np.max))
            ]
            found = Range(shape, ends[0], ends[1], integral=x.integral)
        return self.described(site, x, found)

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        axis, entries = self._axis(site), len(site.shape(1))
        if axis == len(x.shape) - 1:
            distinct = entries >= 1 and self._indices(site) is not None and self.multiplicity(site) <= 1
            return moved.replace(row=x.row if distinct else math.inf)
        samples = axis >= 1 or entries <= 1 or x.shape[0] == 1
        if site.constant(1) is None and axis == 0 and entries == 0:
            samples = True  # one old sample, whichever it is
        return moved.replace(row=x.row, diameter=x.diameter if samples else math.inf, zero_mean=x.zero_mean)

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        own, indices = self._axis(site), self._indices(site)
        n = site.shape(0)[own]
        entries = len(site.shape(1))
        if axis != own:
            return (axis if axis < own else axis + entries - 1), range(site.shape(0)[axis])
        if indices is None or indices.ndim > 1 or not indices.size:
            return None
        return (own if indices.ndim else None), (np.atleast_1d(indices) % n).tolist()


class GatherElements(_Lookup):
    """``y[.., i, ..] = x[.., indices[.., i, ..], ..]``: indices of x's rank, numpy's ``take_along_axis``."""

    def _axis(self, site: Site) -> int:
        return int(site.attr("axis", 0)) % len(site.shape(0))

    def _entries(self, site: Site) -> int:
        return site.shape(1)[self._axis(site)]

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        indices = self._indices(site)
        assert indices is not None
        axis = self._axis(site)
        lengths = tuple(slice(None) if k == axis else slice(n) for k, n in enumerate(indices.shape))
        return np.take_along_axis(array[lengths], indices % max(array.shape[axis], 1), axis=axis)


class GatherND(_Lookup):
    """Index tuples along the last axis of ``indices`` name slices of x (after ``batch_dims`` common axes)."""

    def _entries(self, site: Site) -> int:
        batch = int(site.attr("batch_dims", 0))
        return math.prod(site.shape(1)[batch:-1])

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        indices = self._indices(site)
        assert indices is not None
        batch = int(site.attr("batch_dims", 0))
        common = array.shape[:batch]
        tuples = indices.reshape((math.prod(common), *indices.shape[batch:]))
        slices = array.reshape((math.prod(common), *array.shape[batch:]))
        moved = [part[tuple(np.moveaxis(own, -1, 0))] for part, own in zip(slices, tuples, strict=True)]
        return np.stack(moved).reshape(site.out_shape()) if moved else np.zeros(site.out_shape(), dtype=array.dtype)


class ArrayFeatureExtractor(_Lookup):
    """Elements of the last axis by indices; a vector gives one row."""

    def _entries(self, site: Site) -> int:
        return math.prod(site.shape(1))

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        indices, n = self._indices(site), site.shape(0)[-1]
        if indices is not None and indices.size and (int(np.max(indices)) >= n or int(np.min(indices)) < 0):
            return f"an index lies outside 0..{n - 1}"
        return None

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        indices = self._indices(site)
        assert indices is not None
        return array[..., indices.ravel()].reshape(site.out_shape())
