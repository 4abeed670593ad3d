"""Affine recurrences of certified gains: what k turns of a loop body do to the changes of its state.

One turn: ``(|ds'|, |dy|) <= [[A, B], [C, D]] (|ds|, |du|) + offsets``, all entries >= 0. A *column* is one thing that moves
(an initial state, a captured value, some steps of a scanned input); row s of :class:`Change` bounds ``|ds|`` by the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Lower, Norm, Upper, combine, dual

__all__ = ["Change", "Column", "Turn", "at_most", "dot", "joined", "mixed", "plus", "power", "settled"]

Column = tuple[int, int]
"""Index of an input of the node, and a group of its steps (0 where it has none)."""

_INFLATIONS = (0.0, 2.0**-40, 2.0**-30, 2.0**-20, 2.0**-10)


@dataclass(frozen=True, slots=True)
class Turn:
    """``A`` (states x states); per state the gains of columns that enter at every turn, and the offset.

    ``fresh`` are gains of columns of which this turn reads a part that no other turn reads (a scanned input):
    ``a |earlier parts| + w |this part| <= |(a, w)|_q |column|`` by Hölder's inequality.
    """

    state: tuple[tuple[Upper, ...], ...]
    drive: tuple[Mapping[Column, Upper], ...]
    offsets: tuple[Upper, ...]
    fresh: tuple[Mapping[Column, Upper], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Per state: gain from each column (missing: 0), and offset."""

    gains: tuple[Mapping[Column, Upper], ...]
    offsets: tuple[Upper, ...]

    def after(self, turn: Turn, norm: Norm) -> Change:
        """One turn later (columns that enter again add: they are the same variable)."""
        gains: list[Mapping[Column, Upper]] = []
        offsets: list[Upper] = []
        for s, (row, drive, offset) in enumerate(zip(turn.state, turn.drive, turn.offsets, strict=True)):
            fresh = turn.fresh[s] if turn.fresh else {}
            gains.append(joined(plus(mixed(row, self.gains), drive), fresh, norm))
            offsets.append(dot(row, self.offsets) + offset)
        return Change(tuple(gains), tuple(offsets))

    def larger(self, other: Change) -> Change:
        """Entry by entry the larger one."""
        gains = tuple(
            {column: max(a.get(column, ZERO), b.get(column, ZERO)) for column in (*a, *(c for c in b if c not in a))}
            for a, b in zip(self.gains, other.gains, strict=True)
        )
        return Change(gains, tuple(max(a, b) for a, b in zip(self.offsets, other.offsets, strict=True)))


def at_most(turns: Sequence[Turn]) -> Turn:
    """A turn that moves at least as much as each of ``turns``."""
    first = turns[0]  # ``fresh`` does not count here: it was made part of ``drive``
    state = [list(row) for row in first.state]
    whole = Change(first.drive, first.offsets)
    for turn in turns[1:]:
        state = [[max(a, b) for a, b in zip(row, other, strict=True)] for row, other in zip(state, turn.state, strict=True)]
        whole = whole.larger(Change(turn.drive, turn.offsets))
    return Turn(tuple(tuple(row) for row in state), whole.gains, whole.offsets)


def mixed(row: Sequence[Upper], gains: Sequence[Mapping[Column, Upper]]) -> dict[Column, Upper]:
    """``sum_s row[s] * gains[s]``, column by column."""
    found: dict[Column, Upper] = {}
    for weight, entries in zip(row, gains, strict=True):
        if not weight.is_zero:
            for column, gain in entries.items():
                found[column] = found.get(column, ZERO) + weight * gain
    return found


def plus(a: Mapping[Column, Upper], b: Mapping[Column, Upper]) -> dict[Column, Upper]:
    """Sum, column by column."""
    found = dict(a)
    for column, gain in b.items():
        found[column] = found.get(column, ZERO) + gain
    return found


def joined(a: Mapping[Column, Upper], fresh: Mapping[Column, Upper], norm: Norm) -> dict[Column, Upper]:
    """``a`` and the gains of parts that ``a`` does not speak of (see :class:`Turn`)."""
    found = dict(a)
    for column, gain in fresh.items():
        found[column] = combine([found.get(column, ZERO), gain], dual(norm))
    return found


def dot(row: Sequence[Upper], values: Sequence[Upper]) -> Upper:
    """``sum_s row[s] * values[s]``."""
    return combine([a * b for a, b in zip(row, values, strict=True)], "l1")


def power(change: Change, turn: Turn, count: int) -> Change:
    """An upper bound of the change after every number of turns up to ``count``, by squaring.

    With ones on the diagonal the powers grow entry by entry, so that the last one bounds all before it.
    """
    states = len(turn.offsets)
    columns = list(dict.fromkeys(column for row in turn.drive for column in row))
    size = states + len(columns) + 1
    matrix = [[ONE if i == j else ZERO for j in range(size)] for i in range(size)]
    for s in range(states):
        for r in range(states):
            matrix[s][r] = max(turn.state[s][r], ONE) if r == s else turn.state[s][r]
        for k, column in enumerate(columns):
            matrix[s][states + k] = turn.drive[s].get(column, ZERO)
        matrix[s][size - 1] = turn.offsets[s]
    total = [[ONE if i == j else ZERO for j in range(size)] for i in range(size)]
    while count:
        if count & 1:
            total = _product(total, matrix)
        matrix = _product(matrix, matrix) if count > 1 else matrix
        count >>= 1
    gains = tuple(
        plus(
            mixed(row[:states], change.gains), {column: row[states + k] for k, column in enumerate(columns) if not row[states + k].is_zero}
        )
        for row in total[:states]
    )
    offsets = tuple(dot(row[:states], change.offsets) + row[size - 1] for row in total[:states])
    return Change(gains, offsets)


def _product(a: Sequence[Sequence[Upper]], b: Sequence[Sequence[Upper]]) -> list[list[Upper]]:
    columns = list(zip(*b, strict=True))
    return [[dot(row, column) for column in columns] for row in a]


def settled(change: Change, turn: Turn) -> Change:
    """An upper bound of the change after any number of turns (0 included); infinite entries where none is found.

    Column by column a vector y with ``y >= start`` and ``A y + b <= y`` bounds every later change, by induction
    (Collatz-Wielandt). It is found state by state along the dependences of A.
    """
    columns = dict.fromkeys(column for rows in (change.gains, turn.drive) for row in rows for column in row)
    groups = _components(turn.state)
    found: list[dict[Column, Upper]] = [{} for _ in turn.offsets]
    for column in columns:
        start = [row.get(column, ZERO) for row in change.gains]
        drive = [row.get(column, ZERO) for row in turn.drive]
        for s, value in enumerate(_majorant(turn.state, groups, start, drive)):
            if not value.is_zero:
                found[s][column] = value
    offsets = _majorant(turn.state, groups, change.offsets, turn.offsets)
    return Change(tuple(found), tuple(offsets))


def _components(matrix: Sequence[Sequence[Upper]]) -> list[list[int]]:
    """Groups of states that depend on each other, each after those that it depends on."""
    size = len(matrix)
    reach = np.array([[not entry.is_zero for entry in row] for row in matrix], dtype=bool).reshape(size, size) | np.eye(size, dtype=bool)
    for k in range(size):
        reach |= np.outer(reach[:, k], reach[k, :])
    mutual = reach & reach.T
    groups = {tuple(np.flatnonzero(mutual[s]).tolist()) for s in range(size)}
    return [list(group) for group in sorted(groups, key=lambda group: (int(reach[group[0]].sum()), group))]


def _majorant(
    matrix: Sequence[Sequence[Upper]], groups: Sequence[Sequence[int]], start: Sequence[Upper], drive: Sequence[Upper]
) -> list[Upper]:
    y = [ZERO] * len(start)
    for group in groups:
        # States of earlier groups are bounded by y: they drive this one.
        outer = [dot([ZERO if r in group else matrix[s][r] for r in range(len(y))], y) + drive[s] for s in group]
        inner = [[matrix[s][r] for r in group] for s in group]
        first = [start[s] for s in group]
        for s, value in zip(group, _one(inner[0][0], first[0], outer[0]) if len(group) == 1 else _many(inner, first, outer), strict=True):
            y[s] = value
    return y


def _one(gain: Upper, start: Upper, drive: Upper) -> list[Upper]:
    if drive.is_zero and gain <= ONE:
        return [start]
    if start.is_zero and drive.is_zero:
        return [ZERO]
    exact = gain.dyadic()
    if not (gain < ONE) or exact is None:
        return [INFINITE]
    room = Lower(1 - Fraction(exact[0]) * Fraction(2) ** exact[1])
    return [max(start, drive / room)]


def _many(matrix: Sequence[Sequence[Upper]], start: Sequence[Upper], drive: Sequence[Upper]) -> list[Upper]:
    if all(value.is_zero for value in (*start, *drive)):
        return [ZERO] * len(start)
    if all(value.is_finite for values in (*matrix, start, drive) for value in values):
        dense = np.array([[float(entry) for entry in row] for row in matrix])
        s, b = np.array([float(x) for x in start]), np.array([float(x) for x in drive])
        for guess in _guesses(dense, s, b):
            for inflation in _INFLATIONS:
                with np.errstate(over="ignore", invalid="ignore"):
                    y = np.maximum(guess * (1 + inflation), s)
                if not np.all(np.isfinite(y)):
                    break
                bound = [Upper(float(x)) for x in y]
                if all(dot(row, bound) + b_s <= y_s for row, b_s, y_s in zip(matrix, drive, bound, strict=True)):
                    return bound
    return [INFINITE] * len(start)


def _guesses(a: np.ndarray, s: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Candidates, the sharpest first; what they are worth is checked exactly."""
    found: list[np.ndarray] = []
    y = s.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(200):
            y = np.maximum(y, a @ y + b)
        found.append(y)
        try:
            found.append(np.maximum(np.linalg.solve(np.eye(len(s)) - a, b), s))
            found.append(np.linalg.solve(np.eye(len(s)) - a, b + s))
        except np.linalg.LinAlgError:
            pass
    return [guess for guess in found if np.all(guess >= 0)]
