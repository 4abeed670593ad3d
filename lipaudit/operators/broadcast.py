"""NumPy broadcasting and its older ONNX form, as every operator of several tensors needs it.

An operand that broadcasting copies k times has the factor ``k**(1/p)``; its parts survive where the cut axis is not copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm, Upper, combine, repeat_factor
from lipaudit.operators.base import Gain, Site, scaled
from lipaudit.operators.flow import Flow, Row, flatten, merged, total
from lipaudit.operators.interval import Interval
from lipaudit.operators.range import Range, exact, widen

__all__ = [
    "add_flows", "aligned_shape", "copied_axes", "copies", "lifted", "occurrences", "operand",
    "operand_diameter", "operand_rows", "precise", "root_sum", "same", "stack_flows",
]  # fmt: skip

Floats = NDArray[np.float64]


def _start(site: Site, i: int) -> int:
    """Axis of the output at which the first axis of operand ``i`` lies."""
    rank, own = len(site.out_shape()), len(site.shape(i))
    if i > 0 and site.node.version < 7 and site.attr("broadcast", 0) and site.attr("axis") is not None:
        axis = int(site.attr("axis"))
        return axis + rank if axis < 0 else axis
    return rank - own


def aligned_shape(site: Site, i: int) -> tuple[int, ...]:
    """Shape of operand ``i`` with ones where it lacks axes of the output (before opset 7: placed at attribute ``axis``)."""
    shape, start = site.shape(i), _start(site, i)
    return (1,) * start + shape + (1,) * (len(site.out_shape()) - start - len(shape))


def copied_axes(site: Site, i: int) -> tuple[int, ...]:
    """Output axes along which operand ``i`` is copied (more than once, or not at all)."""
    return tuple(axis for axis, (a, b) in enumerate(zip(aligned_shape(site, i), site.out_shape(), strict=True)) if a != b)


def copies(site: Site, i: int) -> int:
    """How many output elements each element of operand ``i`` feeds."""
    return math.prod(site.out_shape()[axis] for axis in copied_axes(site, i))


def _lined_up(array: Floats, site: Site, i: int) -> Floats:
    if array.ndim == 0:
        return array
    own, start = len(site.shape(i)), _start(site, i)
    after = len(site.out_shape()) - start - own
    return array.reshape((1,) * (start + own - array.ndim) + array.shape + (1,) * after)


def precise(site: Site, i: int, x: Range | None) -> Range:
    """The range of operand ``i`` element by element where it is stored (large constants come as their smallest and largest)."""
    assert x is not None
    constant = site.constant(i)
    if constant is None or constant.fill is not None or constant.size <= 1 or x.lo.ndim or x.hi.ndim or x.is_point:
        return x
    found = exact(np.asarray(constant.array()))
    return x if np.isnan(found.lo).any() else found


def operand(site: Site, i: int, x: Range) -> Interval:
    """Element intervals of operand ``i``, broadcastable to the output."""
    lo, hi = np.broadcast_arrays(x.lo, x.hi)
    return _lined_up(lo, site, i), _lined_up(hi, site, i)


def operand_rows(site: Site, i: int, x: Range) -> float:
    """Upper bound of the l2 norm of every row (last axis of the output) of the broadcast operand."""
    aligned, out = aligned_shape(site, i), site.out_shape()
    if not out or (aligned[-1] == out[-1] and _start(site, i) + len(site.shape(i)) == len(out)):
        return x.row_norm()
    return widen(x.magnitude() * math.sqrt(out[-1]), 4)


def operand_diameter(site: Site, i: int, x: Range) -> float:
    """Upper bound of the l2 distance of two rows of one sample of the broadcast operand."""
    aligned, out, own = aligned_shape(site, i), site.out_shape(), site.shape(i)
    if len(out) < 2:
        return math.inf
    if all(size == 1 for size in aligned[1:-1]):
        return 0.0
    if aligned[-1] == out[-1] and len(own) == len(out):
        return x.row_diameter()
    return widen(2 * operand_rows(site, i, x), 1)


def root_sum(values: Sequence[float]) -> float:
    """Upper bound of the l2 norm of a few non-negative numbers."""
    if any(math.isinf(value) for value in values):
        return math.inf
    live = [value for value in values if value > 0]
    return live[0] if len(live) == 1 else widen(math.hypot(*live), len(values) + 2)


def same(site: Site, i: int) -> int:
    """First input that is the same variable as input ``i``: equal names are one variable."""
    return occurrences(site)[site.node.inputs[i]][0]


def occurrences(site: Site) -> Mapping[str, tuple[int, int]]:
    """For each name that the node reads its first place and how often it is read; counted once a node, which may be wide."""
    return _occurrences(_ById(site.node.inputs))


class _ById:
    """A tuple of names, compared by identity: hashing thousands of names again for each of them would be quadratic."""

    __slots__ = ("names",)

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __hash__(self) -> int:
        return id(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.names is other.names


@lru_cache(maxsize=16)
def _occurrences(inputs: _ById) -> Mapping[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for i, name in enumerate(inputs.names):
        first, count = found.get(name, (i, 0))
        found[name] = first, count + 1
    return found


def lifted(site: Site, i: int, flow: Flow, norm: Norm) -> Flow:
    """The flow of operand ``i`` in the axes of the output; flattened where the cut axis itself is copied."""
    if len(flow.rows) == 1:
        return flow
    axis = flow.axis + _start(site, i)
    if site.shape(i)[flow.axis] != site.out_shape()[axis]:
        return flatten(flow, norm)
    return replace(flow, axis=axis)


def contributions(site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> list[Flow]:
    """What each moving operand of an elementwise map contributes, in the axes of the output."""
    parts: list[Flow] = []
    for i, (flow, gain) in enumerate(zip(flows, gains, strict=True)):
        if flow is not None and gain is not None:
            parts.append(scaled(site, lifted(site, i, flow, norm), gain, norm, keep_parts=True))
    return parts


def _cut_alike(flows: Sequence[Flow]) -> bool:
    return len({(flow.axis, flow.sizes) for flow in flows if len(flow.rows) > 1}) <= 1


def add_flows(flows: Sequence[Flow], norm: Norm) -> Flow:
    """Of a sum of terms: part by part where they are cut alike, else as wholes; the better of the two if only some are cut."""
    if len(flows) == 1:
        return flows[0]
    whole = [len(flow.rows) == 1 for flow in flows]
    if all(whole):
        return total(flows)
    if not _cut_alike(flows):
        return total([flatten(flow, norm) for flow in flows])
    kept = total(flows)
    if not any(whole):
        return kept
    flat = total([flatten(flow, norm) for flow in flows])
    return kept if kept.gain(norm) <= flat.gain(norm) else flat


def stack_flows(flows: Sequence[Flow], norm: Norm) -> Flow:
    """Where each output element moves at most as far as the farthest of its operands (Max, Min, Where with a fixed mask).

    ``|dv_P|_p <= |(|da_P|, |db_P|, ..)|_p``, hence column by column the norm of the entries (Minkowski).
    """
    if len(flows) == 1:
        return flows[0]
    if not all(len(flow.rows) == len(flows[0].rows) for flow in flows) or not _cut_alike(flows):
        flows = [flatten(flow, norm) for flow in flows]
    rows: list[Row] = []
    for group in zip(*(flow.rows for flow in flows), strict=True):
        gains: tuple[Upper, ...] = tuple(combine(column, norm) for column in zip(*(row.gains for row in group), strict=True))
        rows.append(Row(gains, combine([row.offset for row in group], norm)))
    return replace(flows[0], rows=tuple(rows), reasons=merged([flow.reasons for flow in flows]))


def copy_factor(site: Site, i: int, norm: Norm) -> Upper:
    """``k**(1/p)`` for the k copies of operand ``i``."""
    return repeat_factor(copies(site, i), norm)
