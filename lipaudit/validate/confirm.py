"""Confirms a pair in float64 and turns it into a bound that rounding cannot break.

The error of a float64 evaluation is estimated from the distance between a float32 run and the float64 run of the same
point: the two suffer the same amplification of rounding errors, which are 2^29 times larger in float32. The estimate is
taken 2^7 times larger than that ratio gives (2^-22 of the distance seen), on top of 2^-45 of the value itself, so that a
lucky cancellation in the float32 run does not hide an error. The larger relative distance of all points seen so far is
used. A difference of outputs that does not exceed the error proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Lower, Norm, Upper
from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph
from lipaudit.validate.exact import Evaluator, NotExact
from lipaudit.validate.problem import Problem
from lipaudit.validate.session import Deadline, Session
from lipaudit.validate.vectors import lower_norm, norm_of, upper_norm

__all__ = ["Confirmer", "Exact", "Quotient", "Unconfirmed"]

Floats = NDArray[np.float64]

_RATIO = 2.0**-22
_FLOOR = 2.0**-45
# onnxruntime and the float64 evaluation must mean the same function.
_AGREEMENT = 0.05


class Unconfirmed(Exception):
    """A pair proves nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Exact:
    """A point evaluated in float64: flat values by name, and how far the float32 run was from each (element by element)."""

    point: Floats
    values: Mapping[str, Floats]
    distances: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Quotient:
    """A proved gain: ``lower`` <= difference / distance."""

    lower: Lower
    difference: Lower
    distance: Upper


class Confirmer:
    """Evaluates points of ``problem`` in float32 (no optimisations, CPU) and float64, with the inner values ``taps``.

    Raises
    ------
    RuntimeError
        If onnxruntime refuses the graph.
    """

    def __init__(self, problem: Problem, taps: Sequence[str], norm: Norm, deadline: Deadline) -> None:
        self.problem = problem
        self.norm: Norm = norm
        self.deadline = deadline
        self._exact = Evaluator(problem.graph, check=deadline.check)
        fed = {value.name for value in problem.graph.inputs}
        self._names = tuple(name for name in dict.fromkeys((*problem.outputs, *taps)) if name not in fed)
        self._session = Session(to_model(problem.graph, taps=self._names), optimise=False)
        self._relative: dict[str, float] = {}
        self._ratio = 1.0 if _holds_double(problem.graph) else _RATIO

    def evaluate(self, point: Floats) -> Exact:
        """Both evaluations at ``point``.

        Raises
        ------
        Unconfirmed
            If an operator has no float64 evaluation, a value is not finite, or the two evaluations disagree.
        OutOfTime
            At the time limit.
        """
        try:
            found = self._exact.run(self.problem.feeds(point, double=True), self._names)
        except NotExact as error:
            raise Unconfirmed(f"the pair could not be confirmed in float64: {error}.") from None
        try:
            seen = self._session.run(self._feeds(point), self._names, self.deadline)
        except RuntimeError as error:
            raise Unconfirmed(f"onnxruntime failed: {error}.") from None
        values: dict[str, Floats] = {}
        distances: dict[str, Floats] = {}
        for name in self._names:
            value = np.asarray(found[name], dtype=np.float64).reshape(-1)
            other = np.asarray(seen[name], dtype=np.float64).reshape(-1)
            if name in self.problem.outputs and not np.isfinite(value).all():
                raise Unconfirmed(f"output {name!r} is not finite at the point.")
            if value.size != other.size:
                raise Unconfirmed(f"onnxruntime and the float64 evaluation disagree on the shape of {name!r}.")
            with np.errstate(invalid="ignore", over="ignore"):
                distance = np.abs(value - other)
            values[name], distances[name] = value, distance
            self._remember(name, value, distance)
        return Exact(point, values, distances)

    def _feeds(self, point: Floats) -> dict[str, NDArray[Any]]:
        return {name: array for name, array in self.problem.feeds(point).items() if name in self._session.inputs}

    def _remember(self, name: str, value: Floats, distance: Floats) -> None:
        size, off = norm_of(value, self.norm), norm_of(distance, self.norm)
        if size > 0 and np.isfinite(off):
            self._relative[name] = max(self._relative.get(name, 0.0), off / size)
        if name in self.problem.outputs and not off <= max(_AGREEMENT * size, 1e-30):
            raise Unconfirmed(
                f"onnxruntime and the float64 evaluation of output {name!r} differ by {off:.1e} where the value is {size:.1e}."
            )

    def error(self, exact: Exact, name: str, norm: Norm) -> float:
        """Estimate of the error of a value of ``exact`` in ``norm`` (0 for inputs, which are exact)."""
        if name not in exact.values:
            return 0.0
        size = norm_of(exact.values[name], norm)
        off = max(norm_of(exact.distances[name], norm), self._relative.get(name, 0.0) * size)
        return self._ratio * off + _FLOOR * size

    def value(self, exact: Exact, name: str) -> Floats:
        """A value of ``exact``: an inner value, an output or a source."""
        found = exact.values.get(name)
        if found is not None:
            return found
        for part in self.problem.parts:
            if part.name == name:
                return exact.point[part.place]
        fixed = self.problem.fixed.get(name)
        if fixed is None:
            raise Unconfirmed(f"value {name!r} is not known.")
        return np.asarray(fixed, dtype=np.float64).reshape(-1)

    def joint(self, x: Exact, y: Exact, names: Sequence[str]) -> tuple[Floats, float]:
        """The difference of several values as one vector, and the error of it in the norm at hand."""
        parts = [self.value(x, name) - self.value(y, name) for name in names]
        errors = [self.error(x, name, self.norm) + self.error(y, name, self.norm) for name in names]
        vector = np.concatenate(parts) if parts else np.zeros(0)
        return vector, norm_of(np.array(errors), self.norm) * (1 + 2.0**-40)

    def quotient(self, x: Exact, y: Exact, sources: Sequence[str], exits: Sequence[str]) -> Quotient | None:
        """The gain from ``sources`` to ``exits`` that the pair proves; None if it proves nothing."""
        difference, error = self.joint(x, y, exits)
        distance, blur = self.joint(x, y, sources)
        if not (np.isfinite(difference).all() and np.isfinite(distance).all() and np.isfinite(error) and np.isfinite(blur)):
            return None
        top, bottom = lower_norm(difference, self.norm, error), upper_norm(distance, self.norm, blur)
        # A distance that is all blur proves nothing worth telling; it would only give tiny numbers.
        if top.is_zero or bottom.is_zero:
            return None
        lower = top / bottom
        return None if lower.is_zero else Quotient(lower, top, bottom)


def _holds_double(graph: Graph) -> bool:
    """True if the model itself computes in float64: its own run is then no coarser than ours."""
    return any(value.dtype in {"float64", "double"} for value in graph.values.values())
