"""RNN, GRU and LSTM over T steps: how far a change of the sequence or of the initial state reaches.

One step is a map of non-negative matrices: ``(|dh|, |dc|)' <= M_t (|dh|, |dc|) + w_t |dx|``. Stacked over time this is the lower
triangular matrix ``G[t, s] = pick M_t .. M_{s+1} w_s``; the gain from X to Y is its norm. Samples are separate blocks. The
slopes are those of products of bounded factors (gates in [0, 1], states in their reach), valid between any two points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, combine, dual, matrix_norm
from lipaudit.operators.base import Gain, Site, Unbounded, Unknown
from lipaudit.operators.linear import weight_array
from lipaudit.operators.outputs import SeveralOutputs, finite_or, jointly
from lipaudit.operators.parts import Part, directions
from lipaudit.operators.range import Range, reals
from lipaudit.operators.recurrent_cells import Cell, Step, cell_of

__all__ = ["Recurrent", "reach"]

Floats = NDArray[np.float64]

# Beyond this many steps the l2 norm is bounded by sqrt(l1 * linf), which needs no matrix.
_MATRIX_STEPS = 24


class Recurrent(SeveralOutputs):
    """``RNN``, ``GRU`` and ``LSTM`` (all versions) with stored weights.

    Inputs: X ``[T, B, I]`` (or ``[B, T, I]`` with ``layout`` 1), W, R, B, lengths, initial h, (LSTM) initial c, peepholes.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Hidden states within the reach of the cell; LSTM memory within what T steps can add."""
        cells = self._cells(site, xs)
        found: list[Range] = []
        for k, value in enumerate(site.outputs):
            shape = value.shape if value is not None and value.shape is not None else ()
            if isinstance(cells, Unknown):
                found.append(reals(shape))
                continue
            bounds = [cell.state_bound if k < 2 else cell.memory_bound for cell in cells]
            top = float(max(bounds))
            found.append(Range(shape, np.asarray(-top), np.asarray(top)))
        return tuple(found)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """From X or an initial state to the sequence, the last state and the last memory."""
        cells = self._cells(site, xs)
        if isinstance(cells, Unknown):
            return cells
        start = {5: 0, 6: 1}.get(i)
        if i != 0 and (start is None or (i == 6 and self._op(site) != "LSTM")):
            return Unknown(f"moving weights, lengths or peepholes of {site.node.op} have no rule")
        fixed = not site.has(4)
        per_output: list[list[Upper]] = [[], [], []]
        for cell in cells:
            steps = cell.steps(norm)
            if not steps:
                per_output = [[ZERO] for _ in range(3)] if start is None else [[ZERO], [ONE], [ONE]]
                continue
            for k, slope in enumerate(_slopes(steps, norm, start, fixed, self._op(site) == "LSTM")):
                per_output[k].append(slope)
        # Directions read the same X and write separate outputs; their initial states are separate.
        joined = [combine(slopes, norm if start is None else "linf") for slopes in per_output]
        parts = [joined[k] if value is not None else ZERO for k, value in enumerate(site.outputs)]
        offsets = self.offsets(site, cells, norm, xs)
        if isinstance(offsets, Unbounded):
            return offsets
        reason = f"{site.node.op}: an initial state without a domain makes the reach of the state unbounded, and gates multiply it"
        method = f"{site.node.op} over {self._length(site)} steps"
        return jointly([finite_or(part, reason, method, offset=offset) for part, offset in zip(parts, offsets, strict=False)], norm)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """W and R, all gates of a direction stacked."""
        found: list[Part] = []
        for constant in (site.constant(1), site.constant(2)):
            if constant is not None and len(constant.shape) == 3:
                found += directions(constant.name, weight_array(constant), constant.shape)
        return tuple(found)

    def offsets(self, site: Site, cells: Sequence[Cell], norm: Norm, xs: Sequence[Range | None]) -> Sequence[Upper] | Unbounded:
        """Offset of each output: none, where nothing is rounded."""
        return [ZERO] * len(site.outputs)

    def _op(self, site: Site) -> str:
        return str(self.params.get("cell", site.node.op))

    def _length(self, site: Site) -> int:
        return site.shape(0)[1 if int(site.attr("layout", 0)) else 0]

    def _cells(self, site: Site, xs: Sequence[Range | None]) -> list[Cell] | Unknown:
        """One cell per direction."""
        names = {1: "W", 2: "R", 3: "B", 7: "P"}
        for i, name in names.items():
            if site.has(i) and site.constant(i) is None:
                return Unknown(f"the weights {name} of {site.node.op} must be stored constants")
        w, r = site.constant(1), site.constant(2)
        if w is None or r is None:
            return Unknown(f"{site.node.op} without stored weights has no rule")
        directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(str(site.attr("direction", "forward")), 0)
        if w.shape[0] != directions:
            return Unknown(f"direction {site.attr('direction', 'forward')!r} does not match weights for {w.shape[0]} directions")
        biases, peepholes = site.constant(3), site.constant(7)
        cells: list[Cell] = []
        for d in range(directions):
            made = cell_of(
                self._op(site),
                site,
                d,
                w.float64()[d],
                r.float64()[d],
                biases.float64()[d] if biases is not None else None,
                peepholes.float64()[d] if peepholes is not None else None,
                self._length(site),
                reach(xs, 0),
                reach(xs, 5),
                reach(xs, 6),
            )
            if isinstance(made, Unknown):
                return made
            cells.append(made)
        return cells


def reach(xs: Sequence[Range | None], i: int) -> float:
    """Largest absolute element of input ``i``; 0 where it is left out."""
    found = xs[i] if i < len(xs) else None
    return found.magnitude() if found is not None else 0.0


def _slopes(steps: Sequence[Step], norm: Norm, start: int | None, fixed: bool, memory: bool) -> tuple[Upper, Upper, Upper]:
    """Gains to the sequence, the last state and the last memory. ``fixed``: all samples run all steps."""
    if start is not None:
        sequence, last, store = _from_state(steps, start)
        history, stores = combine(sequence, norm), store
        final = last if fixed else max(ONE if start == 0 else ZERO, *sequence)
        final_c = stores[-1] if fixed else max(ONE if start == 1 else ZERO, *stores)
        return history, final, final_c
    rows = _rows_of_last(steps, True)
    rows_c = _rows_of_last(steps, False) if memory else [ZERO]
    final = combine(rows, dual(norm))
    final_c = combine(rows_c, dual(norm))
    if not fixed:
        final = max(final, *_all_last(steps, True, norm))
        final_c = max(final_c, *_all_last(steps, False, norm)) if memory else ZERO
    return _triangle(steps, norm), final, final_c


Pair = tuple[Upper, Upper]


def _forward(step: Step, y: Pair, x: Upper) -> Pair:
    """``M y + w x``."""
    h, c = y
    return (
        step.hh * h + step.hc * c + step.hx * x,
        step.ch * h + step.cc * c + step.cx * x,
    )


def _from_state(steps: Sequence[Step], start: int) -> tuple[list[Upper], Upper, list[Upper]]:
    y: Pair = (ONE, ZERO) if start == 0 else (ZERO, ONE)
    sequence: list[Upper] = []
    store: list[Upper] = []
    for step in steps:
        y = _forward(step, y, ZERO)
        sequence.append(y[0])
        store.append(y[1])
    return sequence, sequence[-1], store


def _rows_of_last(steps: Sequence[Step], hidden: bool) -> list[Upper]:
    """``pick M_T .. M_{s+1} w_s`` for all s."""
    a: Pair = (ONE, ZERO) if hidden else (ZERO, ONE)
    found: list[Upper] = []
    for step in reversed(steps):
        found.append(a[0] * step.hx + a[1] * step.cx)
        a = (a[0] * step.hh + a[1] * step.ch, a[0] * step.hc + a[1] * step.cc)
    return found[::-1]


def _all_last(steps: Sequence[Step], hidden: bool, norm: Norm) -> list[Upper]:
    """Gain from X to the state after t steps, for every t; in l2 for long sequences the larger l1 bound of the row."""
    if norm == "linf" or len(steps) > 4 * _MATRIX_STEPS:
        y: Pair = (ZERO, ZERO)
        found: list[Upper] = []
        for step in steps:
            y = _forward(step, y, ONE)
            found.append(y[0] if hidden else y[1])
        return found
    return [combine(_rows_of_last(steps[:t], hidden), dual(norm)) for t in range(1, len(steps) + 1)]


def _triangle(steps: Sequence[Step], norm: Norm) -> Upper:
    """Norm of ``G[t, s]``, t >= s."""
    if norm == "linf":
        return _largest_row(steps)
    if norm == "l1":
        return _largest_column(steps)
    simple = (_largest_row(steps) * _largest_column(steps)).sqrt()
    if len(steps) > _MATRIX_STEPS:
        return simple
    rows = [_rows_of_last(steps[:t], True) + [ZERO] * (len(steps) - t) for t in range(1, len(steps) + 1)]
    return min(simple, matrix_norm(rows, "l2"))


def _largest_row(steps: Sequence[Step]) -> Upper:
    y: Pair = (ZERO, ZERO)
    largest = ZERO
    for step in steps:
        y = _forward(step, y, ONE)
        largest = max(largest, y[0])
    return largest


def _largest_column(steps: Sequence[Step]) -> Upper:
    """``max_s sum_{t >= s} G[t, s]`` by the backward recursion ``v_s = pick + v_{s+1} M_{s+1}``."""
    v: Pair = (ZERO, ZERO)
    largest = ZERO
    for step in reversed(steps):
        v = (ONE + v[0], v[1])
        largest = max(largest, v[0] * step.hx + v[1] * step.cx)
        v = (v[0] * step.hh + v[1] * step.ch, v[0] * step.hc + v[1] * step.cc)
    return largest
