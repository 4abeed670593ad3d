"""How data movement carries the parts of a value: one axis through a list of indices, or through a change of shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lipaudit.bounds.scalar import ZERO, Norm, repeat_factor
from lipaudit.operators.flow import Flow, Row, flatten
from lipaudit.operators.range import Range

__all__ = ["kept_axis", "reshaped_range", "taken", "through_reshape"]

# Beyond this many parts the rows cost more than they tell.
_MOST_PARTS = 256


def taken(flow: Flow, axis: int, new_axis: int | None, indices: Sequence[int], norm: Norm) -> Flow:
    """The elements ``indices`` along the cut axis, in that order (-1: a constant); the axis becomes ``new_axis``.

    Neighbours from one part form one part, which moves with that part, times ``r**(1/p)`` if an index in it occurs r times.
    ``new_axis`` None: the axis disappears (a scalar index). Falls back to one part where the pieces become too many.
    """
    if len(flow.rows) == 1 or flow.axis != axis:
        raise ValueError("only for a flow that is cut along this axis")
    at = np.asarray(indices, dtype=np.int64)
    part_of = np.repeat(np.arange(len(flow.rows)), flow.sizes)
    parts = np.where(at >= 0, part_of[np.maximum(at, 0)], -1)
    runs = _runs(parts)
    if len(runs) > min(_MOST_PARTS, 4 * len(flow.rows)):
        repeats = int(np.max(np.bincount(at[at >= 0]))) if np.any(at >= 0) else 0
        return flatten(flow, norm).scaled(repeat_factor(repeats, norm))
    rows: list[Row] = []
    for part, start, stop in runs:
        if part < 0:
            rows.append(Row(tuple(ZERO for _ in flow.rows[0].gains)))
            continue
        own = at[start:stop]
        repeats = int(np.max(np.unique(own[own >= 0], return_counts=True)[1]))
        rows.append(flow.rows[part].scaled(repeat_factor(repeats, norm), ZERO))
    if not rows:
        rows = [Row(tuple(ZERO for _ in flow.rows[0].gains))]
    sizes = tuple(stop - start for _, start, stop in runs)
    result = Flow(tuple(rows), 0 if new_axis is None else new_axis, sizes if len(rows) > 1 else (), flow.reasons)
    return flatten(result, norm) if new_axis is None else result


def _runs(parts: np.ndarray) -> list[tuple[int, int, int]]:
    """``(part, start, stop)`` of maximal runs; constants (-1) join the run before or after them."""
    runs: list[tuple[int, int, int]] = []
    for position, part in enumerate(parts.tolist()):
        if runs and (part in (-1, runs[-1][0]) or runs[-1][0] == -1):
            last = runs[-1]
            runs[-1] = (last[0] if part == -1 else part, last[1], position + 1)
        else:
            runs.append((part, position, position + 1))
    return runs


def kept_axis(old: Sequence[int], new: Sequence[int], axis: int) -> int | None:
    """The axis of ``new`` that a reshape makes of ``axis`` of ``old``: same length, as many elements before and after it."""
    before, length = math.prod(old[:axis]), old[axis]
    for candidate, size in enumerate(new):
        if size == length and math.prod(new[:candidate]) == before and math.prod(new) == math.prod(old):
            return candidate
    return None


def through_reshape(flow: Flow, old: Sequence[int], new: Sequence[int], norm: Norm) -> Flow:
    """Parts survive if the cut axis does, or if it was split so that all boundaries fall between its first pieces."""
    if len(flow.rows) == 1:
        return flow
    axis = kept_axis(old, new, flow.axis)
    if axis is not None:
        return replace(flow, axis=axis)
    before = math.prod(old[: flow.axis])
    after = math.prod(old[flow.axis + 1 :])
    for candidate, size in enumerate(new):
        inner = math.prod(new[candidate + 1 :])
        if math.prod(new[:candidate]) == before and inner and all((part * after) % inner == 0 for part in flow.sizes) and size > 1:
            return replace(flow, axis=candidate, sizes=tuple(part * after // inner for part in flow.sizes))
    return flatten(flow, norm)


def reshaped_range(x: Range, shape: tuple[int, ...]) -> Range:
    """``x`` in another shape: rows stay rows if the last axis does, samples may only become smaller.

    Without the last axis, a new row that is a piece of an old row keeps its norm, and a row of k old rows has ``sqrt(k)`` times
    it; the sum of a row is forgotten.
    """
    lo, hi = np.broadcast_arrays(x.lo, x.hi)
    if lo.ndim:
        lo, hi = (np.broadcast_to(end, x.shape).reshape(shape) for end in (lo, hi))
    result = Range(shape, lo, hi, integral=x.integral)
    if x.size == 0:
        return result
    old, new = (x.shape or (1,))[-1], (shape or (1,))[-1]
    if old == new:
        samples = (x.shape or (1,))[0], (shape or (1,))[0]
        finer = len(x.shape) >= 2 and samples[0] > 0 and samples[1] % samples[0] == 0
        return result.replace(row=x.row, diameter=x.diameter if finer else math.inf, zero_mean=x.zero_mean)
    if old % new == 0:
        return result.replace(row=x.row)
    if new % old == 0:
        return result.replace(row=math.nextafter(x.row * math.sqrt(new // old) * (1 + 2.0**-50), math.inf) if x.row else 0.0)
    return result
