"""Data movement: every output element is a copy of one input element, or a constant.

Gain ``m**(1/p)``, m = how often the most repeated input element occurs in the output: exact. m is counted on the operator
itself, run on an array of indices; permutations need no count.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Permutation, Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import Norm, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.flow import Flow
from lipaudit.operators.interval import Interval
from lipaudit.operators.partition import reshaped_range, taken, through_reshape
from lipaudit.operators.range import Range, reals

__all__ = [
    "DepthToSpace", "Expand", "Movement", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Tile", "Transpose", "Trilu", "integers",
]  # fmt: skip

Array = NDArray[Any]


def integers(site: Site, i: int, name: str) -> list[int] | None:
    """A list of integers that is attribute ``name`` in old versions and constant input ``i`` in new ones; None if neither."""
    if name in site.node.attrs:
        value = site.node.attrs[name]
        return [int(x) for x in value] if isinstance(value, (tuple, list)) else [int(value)]
    constant = site.constant(i)
    return None if constant is None else [int(x) for x in np.asarray(constant.array()).ravel()]


class Movement(Rule):
    """Base: a subclass says how one array is moved; ranges, gains, operators and parts follow.

    The moved tensor is input 0; all other inputs are parameters, which must not depend on the source.
    """

    permutes = False
    """True if every input element occurs exactly once."""
    keeps_order = False
    """True if the elements also keep their order."""

    def problem(self, site: Site) -> str | None:
        """Why this node cannot be described (a parameter that is not constant), or None."""
        return None

    @abstractmethod
    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on ``array`` (of the input's shape); new elements are ``fill`` (0-d)."""

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """Where input ``axis`` goes and which of its indices appear there (-1: a constant), if it moves by itself."""
        return None

    def fill(self, site: Site, xs: Sequence[Range | None]) -> Interval:
        """Interval of the new elements."""
        return np.asarray(0.0), np.asarray(0.0)

    def has_fill(self, site: Site) -> bool:
        """True if new elements may appear."""
        return False

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """``moved`` with the norms of rows, where they are kept."""
        return moved

    def index(self, site: Site) -> NDArray[np.int64]:
        """For each output element the flat index of the input element that it copies, -1 for a constant."""
        shape = site.shape(0)
        positions = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        return np.asarray(self.move(site, positions, np.asarray(-1, dtype=np.int64)))

    def multiplicity(self, site: Site) -> int:
        """m of the module's rule."""
        if math.prod(site.shape(0)) == 0 or math.prod(site.out_shape()) == 0:
            return 0
        if self.permutes:
            return 1
        found = self.index(site).ravel()
        found = found[found >= 0]
        return int(np.max(np.bincount(found))) if found.size else 0

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Range of the output."""
        x = xs[0]
        shape = site.out_shape()
        if x is None or self.problem(site) is not None:
            return (reals(shape),)
        low, high = self.fill(site, xs)
        integral = x.integral
        if self.has_fill(site):
            integral = integral and float(low) == float(high) and float(low).is_integer()
        lo, hi = np.broadcast_arrays(x.lo, x.hi)
        if lo.ndim == 0 and (not self.has_fill(site) or (lo == low and hi == high)):
            moved = Range(shape, lo, hi, integral=integral)
        else:
            ends = [np.asarray(self.move(site, np.broadcast_to(end, x.shape), new)) for end, new in ((lo, low), (hi, high))]
            moved = Range(shape, ends[0].reshape(shape), ends[1].reshape(shape), integral=integral)
        return (self.described(site, x, moved),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            return Unknown(f"input {i} ({site.node.inputs[i]!r}), which says what is moved where, depends on the source")
        problem = self.problem(site)
        if problem is not None:
            return Unknown(problem)
        copies = self.multiplicity(site)
        return Finite(repeat_factor(copies, norm), method="selection", evidence={"copies": copies})

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        if i or any(site.moving[1:]) or self.problem(site) is not None:
            return None
        shapes = site.shape(0), site.out_shape()
        if self.permutes:
            return Permutation(*shapes, None if self.keeps_order else lambda: self.index(site))
        return Selection(*shapes, lambda: self.index(site), self.multiplicity(site))

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, gain = flows[0], gains[0]
        parameters_move = any(other is not None for other in flows[1:])
        if flow is None or len(flow.rows) == 1 or parameters_move or not isinstance(gain, Finite):
            return super().flow(site, flows, gains, norm)
        return (self.cut(site, flow, gain, norm),)

    def cut(self, site: Site, flow: Flow, gain: Finite, norm: Norm) -> Flow:
        """The parts of the input, moved. Per-axis movement: the copies along the other axes multiply those along the cut one."""
        found = self.along(site, flow.axis)
        if found is None:
            return scaled(site, flow, gain, norm)
        new_axis, indices = found
        live = np.asarray([index for index in indices if index >= 0], dtype=np.int64)
        own = int(np.max(np.bincount(live))) if live.size else 0
        moved = taken(flow, flow.axis, new_axis, indices, norm)
        return moved.scaled(repeat_factor(self.multiplicity(site) // own, norm)) if own else moved


class Reshape(Movement):
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity: the same elements in the same order."""

    permutes = True
    keeps_order = True

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        return array.reshape(site.out_shape())

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """See :func:`lipaudit.operators.partition.reshaped_range`."""
        x = xs[0]
        assert x is not None
        shape = site.out_shape()
        return (reshaped_range(x, shape) if x.size == math.prod(shape) else reals(shape),)

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        if math.prod(site.shape(0)) != math.prod(site.out_shape()):
            return "input and output differ in size"
        return None

    def cut(self, site: Site, flow: Flow, gain: Finite, norm: Norm) -> Flow:
        """See the base class."""
        return through_reshape(flow, site.shape(0), site.out_shape(), norm)


class Transpose(Movement):
    """A permutation of the axes."""

    permutes = True

    def _order(self, site: Site) -> tuple[int, ...]:
        rank = len(site.shape(0))
        order = site.attr("perm")
        return tuple(int(axis) % rank for axis in order) if order else tuple(reversed(range(rank)))

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        return np.transpose(array, self._order(site))

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        return self._order(site).index(axis), range(site.shape(0)[axis])

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        order = self._order(site)
        if not order or order[-1] != len(order) - 1:
            return moved
        samples = order[0] == 0 or x.shape[0] == 1
        return moved.replace(row=x.row, diameter=x.diameter if samples else math.inf, zero_mean=x.zero_mean)


class Expand(Movement):
    """Expand: copies along the axes that grow. m is their product."""

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        return np.broadcast_to(array, site.out_shape())

    def multiplicity(self, site: Site) -> int:
        """Most copies of one element."""
        size = math.prod(site.shape(0))
        return math.prod(site.out_shape()) // size if size else 0

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        shape, out = site.shape(0), site.out_shape()
        new_axis = axis + len(out) - len(shape)
        return new_axis, range(shape[axis]) if shape[axis] == out[new_axis] else [0] * out[new_axis]

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        if x.shape[-1:] != moved.shape[-1:] or not x.shape:
            return moved
        diameter = x.diameter if len(x.shape) == len(moved.shape) else math.inf
        return moved.replace(row=x.row, diameter=diameter, zero_mean=x.zero_mean)


class Tile(Movement):
    """Tile in all versions: the repeats are read off the shapes."""

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        old, new = site.shape(0), site.out_shape()
        if len(old) != len(new) or any(b % a if a else b for a, b in zip(old, new, strict=True)):
            return "the output shape is no multiple of the input shape"
        return None

    def _repeats(self, site: Site) -> tuple[int, ...]:
        return tuple(b // a if a else 1 for a, b in zip(site.shape(0), site.out_shape(), strict=True))

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        return np.tile(array, self._repeats(site))

    def multiplicity(self, site: Site) -> int:
        """Most copies of one element."""
        return math.prod(self._repeats(site)) if math.prod(site.shape(0)) else 0

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        return axis, list(range(site.shape(0)[axis])) * self._repeats(site)[axis]

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        if not x.shape or self._repeats(site)[-1] != 1:
            return moved
        return moved.replace(row=x.row, diameter=x.diameter, zero_mean=x.zero_mean)


class Slice(Movement):
    """Slice with any steps; attributes before version 10, inputs since."""

    def _slices(self, site: Site) -> list[slice] | None:
        shape = site.shape(0)
        starts, ends = integers(site, 1, "starts"), integers(site, 2, "ends")
        if starts is None or ends is None or len(starts) != len(ends):
            return None
        given = [(3, "axes"), (4, "steps")]
        if any(site.has(i) and site.constant(i) is None for i, _ in given):
            return None
        axes = integers(site, 3, "axes") or list(range(len(starts)))
        steps = integers(site, 4, "steps") or [1] * len(starts)
        found = [slice(None)] * len(shape)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            if step == 0:
                return None
            found[axis % len(shape)] = slice(start, end, step)
        return found

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        slices = self._slices(site)
        if slices is None:
            return "starts, ends, axes or steps are not constant"
        lengths = tuple(len(range(*s.indices(n))) for s, n in zip(slices, site.shape(0), strict=True))
        return None if lengths == site.out_shape() else "the output shape does not follow from starts and ends"

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        slices = self._slices(site)
        assert slices is not None
        return array[tuple(slices)]

    def multiplicity(self, site: Site) -> int:
        """Most copies of one element."""
        return 1 if math.prod(site.out_shape()) else 0

    def along(self, site: Site, axis: int) -> tuple[int | None, Sequence[int]] | None:
        """See the base class."""
        slices = self._slices(site)
        return None if slices is None else (axis, range(*slices[axis].indices(site.shape(0)[axis])))

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        whole = bool(x.shape) and x.shape[-1] == moved.shape[-1]
        return moved.replace(row=x.row, diameter=x.diameter, zero_mean=x.zero_mean and whole)


class DepthToSpace(Movement):
    """Blocks of channels become blocks of pixels: a permutation (modes DCR and CRD)."""

    permutes = True

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        n, c, *image = array.shape
        b = int(site.attr("blocksize"))
        h, w = image
        if site.attr("mode", "DCR") == "CRD":
            return array.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)
        return array.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


class SpaceToDepth(Movement):
    """Blocks of pixels become blocks of channels: a permutation."""

    permutes = True

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        n, c, h, w = array.shape
        b = int(site.attr("blocksize"))
        return array.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


class Trilu(Movement):
    """The upper or lower triangle of the last two axes; the rest is 0."""

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        return "the diagonal k is not constant" if site.has(1) and site.constant(1) is None else None

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        constant = site.constant(1)
        k = int(np.asarray(constant.array()).ravel()[0]) if constant is not None else 0
        rows, columns = array.shape[-2:]
        distance = np.arange(columns)[None, :] - np.arange(rows)[:, None]
        kept = distance >= k if site.attr("upper", 1) else distance <= k
        return np.where(kept, array, fill.astype(array.dtype))

    def has_fill(self, site: Site) -> bool:
        """See the base class."""
        return True

    def described(self, site: Site, x: Range, moved: Range) -> Range:
        """Norms of rows, where kept."""
        return moved.replace(row=x.row)


class ReverseSequence(Movement):
    """The first ``sequence_lens[b]`` steps reversed: a permutation for every value of the lengths."""

    permutes = True

    def problem(self, site: Site) -> str | None:
        """See the base class."""
        return "the lengths are not constant" if site.constant(1) is None else None

    def move(self, site: Site, array: Array, fill: Array) -> Array:
        """The operator on an array."""
        constant = site.constant(1)
        assert constant is not None
        time, batch = int(site.attr("time_axis", 0)), int(site.attr("batch_axis", 1))
        view = np.moveaxis(array, (batch, time), (0, 1))
        moved = view.copy()
        for b, length in enumerate(np.asarray(constant.array()).ravel().tolist()):
            moved[b, :length] = view[b, :length][::-1]
        return np.moveaxis(moved, (0, 1), (batch, time))

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i == 0:
            return Finite(repeat_factor(1, norm), method="permutation")
        return super().gain(site, i, norm, xs)
