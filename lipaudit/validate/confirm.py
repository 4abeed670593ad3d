"""Confirms a pair in float64 and turns it into bounds that rounding cannot break.

The error of a float64 evaluation is estimated from the distance between a float32 and a float64 evaluation of the same
point by the same code: the two suffer the same amplification of rounding errors, which are 2^29 times larger in float32.
The estimate is taken 2^7 times larger than that ratio gives (2^-22 of the distance seen), on top of 2^-45 of the value
itself, so that a lucky cancellation in the float32 run does not hide an error; the larger relative distance of all points
seen so far is used. A difference of values that does not exceed the error proves nothing.

Both points are evaluated in lockstep, in both precisions, and of every value only norms are kept: all regions of a large
network are measured at the memory of one evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Lower, Norm, Upper, combine
from lipaudit.graph.export import to_model
from lipaudit.validate.engine import Engine
from lipaudit.validate.exact import Evaluator, NotExact, evaluated
from lipaudit.validate.lowering import lower
from lipaudit.validate.problem import Problem
from lipaudit.validate.session import Deadline, Session
from lipaudit.validate.vectors import lower_norm, norm_of, upper_norm

__all__ = ["Confirmer", "Move", "Proof", "Quotient", "Unconfirmed"]

Floats = NDArray[np.float64]

_RATIO = 2.0**-22
_FLOOR = 2.0**-45
# onnxruntime and the float64 evaluation must mean the same function.
_AGREEMENT = 0.05


class Unconfirmed(Exception):
    """A pair proves nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Move:
    """How far one value moves between the two points: between ``low`` and ``high`` (norm of the difference)."""

    low: Lower
    high: Upper


@dataclass(frozen=True, slots=True)
class Proof:
    """A pair of points and how far every value of interest moves between them.

    ``errors`` are the relative errors of the outputs that were known before the pair was evaluated: with them and the pair the same
    proof comes out again.
    """

    x: Floats
    y: Floats
    family: str
    moves: Mapping[str, Move]
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quotient:
    """A proved gain: ``lower`` <= difference / distance."""

    lower: Lower
    difference: Lower
    distance: Upper


class Confirmer:
    """Proves pairs of the engine's problem.

    ``taps`` are inner values whose moves are wanted as well, ``errors`` relative errors of values to begin with.
    """

    def __init__(
        self, engine: Engine, taps: Sequence[str], norm: Norm, deadline: Deadline, errors: Mapping[str, float] | None = None
    ) -> None:
        self.problem: Problem = engine.problem
        self.norm: Norm = norm
        self._engine = engine
        self._deadline = deadline
        graph = lower(self.problem.graph, evaluated).graph
        self._double = Evaluator(graph, check=deadline.check)
        self._single = Evaluator(graph, floating=np.float32, check=deadline.check)
        fed = {value.name for value in graph.inputs}
        self._names = tuple(name for name in dict.fromkeys((*self.problem.outputs, *taps)) if name not in fed)
        self._plain: Session | None = None
        self._relative: dict[str, float] = dict(errors or {})

    @property
    def errors(self) -> Mapping[str, float]:
        """Largest distance of float32 and float64 that was seen of each value, relative to its size."""
        return self._relative

    def prove(self, x: Floats, y: Floats, family: str) -> Proof:
        """Evaluate the pair.

        Raises
        ------
        Unconfirmed
            If an operator has no float64 evaluation, an output is not finite, or onnxruntime means something else.
        OutOfTime
            At the time limit.
        """
        self._deadline.check()
        errors = {name: self._relative[name] for name in self.problem.outputs if name in self._relative}
        runs = [
            evaluator.stream(self.problem.feeds(point, double=True), self._names)
            for evaluator in (self._double, self._single)
            for point in (x, y)
        ]
        moves: dict[str, Move] = {}
        outputs: dict[str, tuple[Floats, Floats]] = {}
        try:
            for (name, ax), (_, ay), (_, bx), (_, by) in zip(*runs, strict=True):
                a, b, c, d = (np.asarray(v, dtype=np.float64).reshape(-1) for v in (ax, ay, bx, by))
                if name in self.problem.outputs:
                    outputs[name] = a, b
                    if not (np.isfinite(a).all() and np.isfinite(b).all()):
                        raise Unconfirmed(f"output {name!r} is not finite at the point.")
                move = self._move(name, a, b, c, d)
                if move is not None:
                    moves[name] = move
        except NotExact as error:
            raise Unconfirmed(f"the pair could not be confirmed in float64: {error}.") from None
        except ValueError:
            raise Unconfirmed("the two points take different paths through the graph.") from None
        self._compare(x, [outputs[name][0] for name in self.problem.outputs if name in outputs])
        self._compare(y, [outputs[name][1] for name in self.problem.outputs if name in outputs])
        for part in self.problem.parts:
            # Differences of the given points: one rounding each, which the norms allow for.
            step = x[part.place] - y[part.place]
            moves[part.name] = Move(lower_norm(step, self.norm), upper_norm(step, self.norm))
        return Proof(x, y, family, moves, errors)

    def _move(self, name: str, a: Floats, b: Floats, c: Floats, d: Floats) -> Move | None:
        """From the values at both points in float64 (a, b) and in float32 (c, d); None if they are not finite."""
        if a.size != b.size:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            difference = a - b
            error = self._error(name, a, c) + self._error(name, b, d)
        if not (np.isfinite(difference).all() and np.isfinite(error)):
            return None
        return Move(lower_norm(difference, self.norm, error), upper_norm(difference, self.norm, error))

    def _error(self, name: str, value: Floats, coarse: Floats) -> float:
        size, off = norm_of(value, self.norm), norm_of(value - coarse, self.norm)
        if size > 0 and np.isfinite(off):
            self._relative[name] = max(self._relative.get(name, 0.0), off / size)
        return _RATIO * max(off, self._relative.get(name, 0.0) * size) + _FLOOR * size

    def _compare(self, point: Floats, outputs: Sequence[Floats]) -> None:
        """Refuse the pair if onnxruntime computes something else."""
        exact = np.concatenate(outputs)
        try:
            # A graph that was spelled out for the search proves nothing about the model's own operators.
            if not self._engine.spelled_out and self._agrees(exact, self._engine.state(point, self._deadline).value):
                return
            # Optimised quantised graphs run on integer kernels: ask again without optimisation.
            if self._plain is None:
                self._plain = Session(to_model(self.problem.graph), optimise=False)
            feeds = {name: array for name, array in self.problem.feeds(point).items() if name in self._plain.inputs}
            found = self._plain.run(feeds, self.problem.outputs, self._deadline)
        except RuntimeError as error:
            raise Unconfirmed(f"onnxruntime failed: {error}.") from None
        seen = np.concatenate([np.asarray(found[name], dtype=np.float64).reshape(-1) for name in self.problem.outputs])
        if not self._agrees(exact, seen):
            off = norm_of(exact - seen, "l2") if exact.size == seen.size else float("nan")
            raise Unconfirmed(
                f"onnxruntime and the float64 evaluation differ by {off:.1e} where the outputs have size {norm_of(exact, 'l2'):.1e}."
            )

    def _agrees(self, exact: Floats, seen: Floats) -> bool:
        if exact.size != seen.size:
            return False
        with np.errstate(invalid="ignore", over="ignore"):
            off = norm_of(exact - seen, "l2")
        return bool(off <= max(_AGREEMENT * norm_of(exact, "l2"), 1e-30))

    def quotient(self, proof: Proof, sources: Sequence[str], exits: Sequence[str]) -> Quotient | None:
        """The gain from ``sources`` to ``exits`` (each jointly) that the pair proves; None if it proves nothing."""
        ends = [proof.moves.get(name) for name in dict.fromkeys(exits)]
        starts = [proof.moves.get(name) for name in dict.fromkeys(sources)]
        if any(move is None for move in (*ends, *starts)):
            return None
        top = _combine_lower([move.low for move in ends if move is not None], self.norm)
        bottom = combine([move.high for move in starts if move is not None], self.norm)
        if top.is_zero or bottom.is_zero or not bottom.is_finite:
            return None
        lower = top / bottom
        return None if lower.is_zero else Quotient(lower, top, bottom)


def _combine_lower(parts: Sequence[Lower], norm: Norm) -> Lower:
    """The norm of a vector of lower bounds."""
    if norm == "linf":
        return max(parts)
    total = Lower(0)
    for part in parts:
        total = total + (part * part if norm == "l2" else part)
    return total.sqrt() if norm == "l2" else total
