"""Partition calculus: how the parts of a value move with the parts of a cut.

Cut the index set of a value u (the cut) into parts Q1..Qk and that of v into P1..Pm along one axis. A flow keeps G >= 0
and d with ``|dv_Pi| <= sum_j G_ij |du_Qj| + d_i``. Then the gain from u to v is at most the matrix norm of G, because
``|(|du_Qj|)_j|_p = |du|_p``; the offset is at most ``|d|_p``. Split followed by Concat is the identity: free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Norm, Upper, combine, matrix_norm

__all__ = ["Flow", "Reason", "Row", "concatenate", "flatten", "identity", "may_be_undefined", "pieces", "total"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a bound is not finite: the node, its operator, "unbounded" or "unknown", and a sentence."""

    node: str
    op: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One part of a value: its gain from every part of the cut, and its offset."""

    gains: tuple[Upper, ...]
    offset: Upper = ZERO

    def scaled(self, slope: Upper, offset: Upper = ZERO) -> Row:
        """After a map with ``|f(x) - f(y)| <= slope |x - y| + offset``."""
        return Row(tuple(slope * gain for gain in self.gains), slope * self.offset + offset)

    def plus(self, other: Row) -> Row:
        """Of a sum whose terms move like the two rows."""
        gains = tuple(a + b for a, b in zip(self.gains, other.gains, strict=True))
        return Row(gains, self.offset + other.offset)


@dataclass(frozen=True, slots=True)
class Flow:
    """Rows of G, one per part of the value.

    ``axis`` and ``sizes`` say how the value is cut (``sizes`` are the lengths of the parts along ``axis``, in order; empty
    for a single part). ``reasons`` name the nodes that made an entry infinite.
    """

    rows: tuple[Row, ...]
    axis: int = 0
    sizes: tuple[int, ...] = ()
    reasons: tuple[Reason, ...] = ()

    def scaled(self, slope: Upper, offset: Upper = ZERO) -> Flow:
        """Every part through a map of constant (slope, offset)."""
        return replace(self, rows=tuple(row.scaled(slope, offset) for row in self.rows))

    def broken(self, reason: Reason) -> Flow:
        """Through a map without a finite constant: every gain that is not zero becomes infinite."""
        return replace(self.scaled(INFINITE, INFINITE), reasons=merged((self.reasons, (reason,))))

    def gain(self, norm: Norm) -> Upper:
        """Certified gain from the cut to the whole value."""
        return matrix_norm([row.gains for row in self.rows], norm)

    def offset(self, norm: Norm) -> Upper:
        """Certified offset of the whole value."""
        return combine((row.offset for row in self.rows), norm)

    def single(self, row: Row) -> Flow:
        """The same history with one part that moves like ``row``."""
        return Flow((row,), reasons=self.reasons)


def may_be_undefined(flow: Flow) -> bool:
    """True if the value may be NaN for some inputs and a number for others.

    Comparisons, IsNaN and casts turn NaN into a number: behind them a range of the *defined* values decides nothing.
    """
    return any(reason.status == "unknown" for reason in flow.reasons)


def merged(reasons: Sequence[Sequence[Reason]]) -> tuple[Reason, ...]:
    """Reasons without repeats, first come first."""
    return tuple(dict.fromkeys(reason for group in reasons for reason in group))


def identity(parts: int, sizes: tuple[int, ...] = (), axis: int = 0) -> Flow:
    """The flow of the cut itself, cut into ``parts`` parts of the given sizes."""
    rows = tuple(Row(tuple(ONE if i == j else ZERO for j in range(parts))) for i in range(parts))
    return Flow(rows, axis, sizes if parts > 1 else ())


def flatten(flow: Flow, norm: Norm) -> Flow:
    """One part: column by column the ``norm`` of the entries (``|G|du| + d|_p <= sum_j |G_j|_p |du_j| + |d|_p``)."""
    if len(flow.rows) == 1:
        return flow
    columns = zip(*(row.gains for row in flow.rows), strict=True)
    row = Row(tuple(combine(column, norm) for column in columns), flow.offset(norm))
    return Flow((row,), reasons=flow.reasons)


def total(flows: Sequence[Flow]) -> Flow:
    """Of a sum of terms. Parts are kept where all terms are cut alike; a term in one part moves each part as a whole.

    Terms that are cut differently must be flattened (or refined) by the caller.
    """
    at = max(range(len(flows)), key=lambda k: len(flows[k].rows))
    first = flows[at]
    rows = list(first.rows)
    for k, flow in enumerate(flows):
        if k == at:  # by position: the same flow twice (x + x) counts twice
            continue
        others = flow.rows if len(flow.rows) == len(rows) else flow.rows * len(rows)
        if len(flow.rows) > 1 and (flow.sizes, flow.axis) != (first.sizes, first.axis):
            raise ValueError("flows of a sum are cut differently")
        rows = [row.plus(other) for row, other in zip(rows, others, strict=True)]
    return Flow(tuple(rows), first.axis, first.sizes, merged([flow.reasons for flow in flows]))


def concatenate(flows: Sequence[Flow], lengths: Sequence[int], axis: int, norm: Norm) -> Flow:
    """Rows stacked: operand i has ``lengths[i]`` elements along ``axis``; operands cut along another axis are flattened."""
    rows: list[Row] = []
    sizes: list[int] = []
    for flow, length in zip(flows, lengths, strict=True):
        aligned = flow if flow.axis == axis or len(flow.rows) == 1 else flatten(flow, norm)
        rows.extend(aligned.rows)
        sizes.extend(aligned.sizes or (length,))
    return Flow(tuple(rows), axis, tuple(sizes) if len(rows) > 1 else (), merged([flow.reasons for flow in flows]))


def pieces(flow: Flow, axis: int, start: int, stop: int) -> Flow:
    """The elements ``start <= i < stop`` along ``axis``: the parts that they touch (a part of a part moves no more)."""
    if len(flow.rows) == 1 or flow.axis != axis:
        return flow
    rows: list[Row] = []
    sizes: list[int] = []
    begin = 0
    for row, size in zip(flow.rows, flow.sizes, strict=True):
        kept = min(stop, begin + size) - max(start, begin)
        if kept > 0:
            rows.append(row)
            sizes.append(kept)
        begin += size
    if not rows:
        return Flow((Row(tuple(ZERO for _ in flow.rows[0].gains)),), reasons=flow.reasons)
    return Flow(tuple(rows), axis, tuple(sizes) if len(rows) > 1 else (), flow.reasons)
