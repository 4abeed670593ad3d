"""Evaluates the searched function and its derivatives in onnxruntime, and counts what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph
from lipaudit.validate.adjoints import Derivative, NoDerivative, jvp, spelled, vjp
from lipaudit.validate.budget import OVERHEAD, flops
from lipaudit.validate.problem import Problem
from lipaudit.validate.session import Deadline, Session
from lipaudit.validate.vectors import aligned

__all__ = ["SMALL", "Engine", "State"]

Floats = NDArray[np.float64]
Array = NDArray[Any]

# Jacobians with at most this many rows (or columns) are computed whole, in one run.
SMALL = 24


@dataclass(frozen=True, slots=True)
class State:
    """A point where the function has been evaluated, with the values that its derivative needs."""

    point: Floats
    value: Floats
    taps: Mapping[str, Array]


class Engine:
    """The function from the sources to the outputs, both flattened and concatenated.

    Raises
    ------
    RuntimeError
        If onnxruntime refuses the graph.
    """

    def __init__(self, problem: Problem, device: str, deadline: Deadline, *, derivatives: bool = True) -> None:
        self.problem = problem
        self.deadline = deadline
        names = [part.name for part in problem.parts]
        lowered = spelled(problem.graph, names, problem.outputs, problem.fixed) if derivatives else None
        self._graph = problem.graph if lowered is None else lowered.graph
        self.spent = 0.0
        self.why_no_derivative = ""
        self._vjp: Derivative | None = None
        self._jvp: Derivative | None = None
        if derivatives:
            try:
                self._vjp = vjp(self._graph, names, problem.outputs)
            except NoDerivative as error:
                self.why_no_derivative = self._reason(str(error), {} if lowered is None else lowered.reasons)
                # Without derivatives the operators run as they are.
                self._graph = problem.graph
        shapes = [self._graph.value(name).shape or () for name in problem.outputs]
        ends = np.cumsum([0, *(prod(shape) for shape in shapes)])
        self.places = {name: slice(int(a), int(b)) for name, a, b in zip(problem.outputs, ends[:-1], ends[1:], strict=True)}
        self._out_shapes = dict(zip(problem.outputs, shapes, strict=True))
        self.outputs = int(ends[-1])
        if self._vjp is not None and self.outputs > SMALL and problem.size > SMALL:
            try:
                self._jvp = jvp(self._graph, names, problem.outputs)
            except NoDerivative as error:
                self.why_no_derivative, self._vjp = str(error), None
        elif self._vjp is not None and self.outputs > SMALL:
            self._jvp = jvp(self._graph, names, problem.outputs)
        derived = [d for d in (self._vjp, self._jvp) if d is not None]
        fed = {value.name for value in self._graph.inputs}
        self._taps = tuple(dict.fromkeys(name for d in derived for name in d.taps if name not in fed))
        self._session = Session(to_model(self._graph, taps=self._taps), device=device)
        self._needed_inputs = set(self._session.inputs)
        try:
            self._vjp_session = _session(self._vjp, device)
            self._jvp_session = _session(self._jvp, device)
        except RuntimeError as error:
            self.why_no_derivative = f"onnxruntime refuses the derivative: {error}"
            self._vjp = self._jvp = self._vjp_session = self._jvp_session = None
        self.device = self._session.device
        # Probes share a run: each further one costs its arithmetic, not the calls.
        self._probe = 1.0 - min(0.9, OVERHEAD * len(self._graph.nodes) / max(flops(self._graph), 1.0))

    @staticmethod
    def _reason(complaint: str, reasons: Mapping[str, str]) -> str:
        """Why there is no derivative, with what kept the operator from being spelled out."""
        why = next((text for name, text in reasons.items() if f"{name!r}" in complaint or not name), "")
        return f"{complaint}: {why}" if why else complaint

    @property
    def spelled_out(self) -> bool:
        """True if the search runs a graph in which compound operators are spelled out."""
        return self._graph is not self.problem.graph

    @property
    def graph(self) -> Graph:
        """The graph that the search runs; it has the values of the problem's graph, fewer fixed inputs, and perhaps more values."""
        return self._graph

    @property
    def differentiable(self) -> bool:
        """True if J t and J' c can be had."""
        return self._vjp is not None

    @property
    def has_forward(self) -> bool:
        """True if J t can be had."""
        return self._jvp is not None

    def state(self, point: Floats, deadline: Deadline | None = None) -> State:
        """Evaluate at ``point`` (flat), under the engine's deadline or another one."""
        self.spent += 1.5 if self._taps else 1.0
        feeds = {name: array for name, array in self.problem.feeds(point).items() if name in self._needed_inputs}
        found = self._session.run(feeds, [*self.problem.outputs, *self._taps], deadline or self.deadline)
        return State(point, self._flat(found), feeds | found)

    def _flat(self, found: Mapping[str, Array]) -> Floats:
        return np.concatenate([np.asarray(found[name], dtype=np.float64).reshape(-1) for name in self.problem.outputs])

    def pull(self, state: State, cotangents: Floats) -> Floats:
        """J' c for each row c of ``[K, outputs]``; shape ``[K, size]``."""
        assert self._vjp is not None
        self.spent += 2.0 + self._probe * (len(cotangents) - 1)
        parts = [(self.places[name], self._out_shapes[name]) for name in self.problem.outputs]
        targets = [(part.place, part.shape) for part in self.problem.parts]
        return self._derive(self._vjp, self._vjp_session, state, cotangents, parts, targets, self.problem.size)

    def push(self, state: State, tangents: Floats) -> Floats:
        """J t for each row t of ``[K, size]``; shape ``[K, outputs]``."""
        assert self._jvp is not None
        self.spent += 1.5 + self._probe * (len(tangents) - 1)
        parts = [(part.place, part.shape) for part in self.problem.parts]
        targets = [(self.places[name], self._out_shapes[name]) for name in self.problem.outputs]
        return self._derive(self._jvp, self._jvp_session, state, tangents, parts, targets, self.outputs)

    def _derive(
        self, derivative: Derivative, session: Session | None, state: State, probes: Floats,
        parts: list[tuple[slice, tuple[int, ...]]], targets: list[tuple[slice, tuple[int, ...]]], size: int,
    ) -> Floats:  # fmt: skip
        count = len(probes)
        result = np.zeros((count, size))
        if session is None:
            return result
        feeds: dict[str, Array] = {tap: state.taps[name] for name, tap in derivative.taps.items()}
        feeds.update(derivative.large)
        for seed, (place, shape) in zip(derivative.seeds, parts, strict=True):
            if seed in session.inputs:
                feeds[seed] = aligned(probes[:, place], np.float32).reshape(count, *shape)
        found = session.run(feeds, [name for name in derivative.results if name], self.deadline)
        for name, (place, _) in zip(derivative.results, targets, strict=True):
            if name:
                result[:, place] = found[name].reshape(count, -1)
        # One number tells in one pass whether all are finite; that is the usual case by far.
        return result if np.isfinite(result.sum()) else np.nan_to_num(result, nan=0.0, posinf=0.0, neginf=0.0)


def _session(derivative: Derivative | None, device: str) -> Session | None:
    """A session, or None where there is nothing to compute."""
    return None if derivative is None or not any(derivative.results) else Session(derivative.model, device=device)
