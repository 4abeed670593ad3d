"""How signals run through the network at typical inputs: sizes of activations forward, sizes of gradients backward, distance to overflow.

A gain is what the worst input does; these are what an ordinary one does. Growth or decay from region to region is what training sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph
from lipaudit.validate.adjoints import NoDerivative, vjp
from lipaudit.validate.problem import Problem
from lipaudit.validate.session import Deadline, Session
from lipaudit.validate.starts import typical
from lipaudit.validate.vectors import aligned

__all__ = ["Profile", "profile"]

Facts = Mapping[str, Mapping[str, Any]]
Array = NDArray[Any]

# Random output directions at each point.
_DIRECTIONS = 4
_FLOAT16 = 65504.0
# float16 keeps 11 bits, float32 24.
_HALF = 2.0**13


@dataclass
class Profile:
    """What was seen of each value, one entry a point."""

    forward: dict[str, list[float]] = field(default_factory=dict)
    backward: dict[str, list[float]] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)

    def facts(self, name: str, error: float | None) -> Facts:
        """Facts of the value by namespace, rounded to what is worth reading; ``error`` is its relative error in float32, if known."""
        flow: dict[str, Any] = {}
        for side, seen in (("forward_rms", self.forward.get(name, [])), ("backward", self.backward.get(name, []))):
            decades = [math.log10(size) for size in seen if size > 0 and math.isfinite(size)]
            if decades:
                flow[f"{side}_log10"] = round(float(np.median(decades)), 3)
                flow[f"{side}_spread"] = round(max(decades) - min(decades), 3)
        activation: dict[str, Any] = {}
        if name in self.nonfinite:
            activation["nonfinite"] = self.nonfinite[name]
        top = self.largest.get(name)
        if top is not None:
            activation["max_abs"] = _significant(top)
            if top > 0:
                activation["headroom_bits"] = round(math.log2(_FLOAT16 / top), 2)
            if error is not None:
                activation["float32_error"] = _significant(error)
                activation["half_error"] = _significant(error * _HALF)
        return {space: group for space, group in (("flow", flow), ("activation", activation)) if group}

    def look(self, name: str, value: Array) -> None:
        """Take in the value at one more point."""
        numbers = np.asarray(value, dtype=np.float64).reshape(-1)
        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            top = float(np.abs(finite).max())
            self.largest[name] = max(self.largest.get(name, 0.0), top)
            self.forward.setdefault(name, []).append(_rms(finite, top))
        self.nonfinite[name] = max(self.nonfinite.get(name, 0), int(numbers.size - finite.size))


def _rms(v: NDArray[np.float64], top: float) -> float:
    return top * float(np.sqrt(np.mean((v / top) ** 2))) if top > 0 else 0.0


def _significant(x: float) -> float:
    """Three digits: a measured size is not worth more."""
    return float(f"{x:.3g}")


def profile(
    problem: Problem, graph: Graph, names: Sequence[str], points: int, seed: Sequence[int], device: str, deadline: Deadline
) -> Profile:
    """Run ``points`` typical inputs (the given ones first) forward and, where there are derivatives, random directions backward.

    Parameters
    ----------
    graph
        What to run: the problem's graph, or that graph with compound operators spelled out.
    names
        Values of the problem's graph to look at (those that became constants in ``graph`` are left out).
    points
        How many inputs; two runs and :data:`_DIRECTIONS` backward probes each.

    Raises
    ------
    OutOfTime
        At the limit.
    RuntimeError
        If onnxruntime fails.
    """
    found = Profile()
    names = [name for name in names if name in graph.producer]
    sources = [part.name for part in problem.parts]
    try:
        derivative = vjp(graph, sources, problem.outputs, inner=names)
    except NoDerivative:
        derivative = None
    fed = {value.name for value in graph.inputs}
    needed = [] if derivative is None else list(derivative.taps)
    forward = Session(to_model(graph, taps=[name for name in dict.fromkeys((*names, *needed)) if name not in fed]), device=device)
    backward = None
    if derivative is not None and any(derivative.results):
        backward = Session(derivative.model, device=device)
    rng = np.random.default_rng([*seed])
    for point in typical(problem, rng, points):
        feeds = problem.feeds(point)
        values = feeds | forward.run({name: array for name, array in feeds.items() if name in forward.inputs}, None, deadline)
        for name in names:
            found.look(name, values[name])
        if derivative is None or backward is None:
            continue
        probes = [rng.standard_normal((_DIRECTIONS, *np.shape(values[name]))) for name in problem.outputs]
        sizes = np.sqrt(sum((probe.reshape(_DIRECTIONS, -1) ** 2).sum(axis=1) for probe in probes))
        seeds: dict[str, Array] = {tap: values[name] for name, tap in derivative.taps.items()} | dict(derivative.large)
        for name, probe in zip(derivative.seeds, probes, strict=True):
            seeds[name] = aligned(probe / sizes.reshape(-1, *([1] * (probe.ndim - 1))), np.float32)
        pulled = backward.run({name: array for name, array in seeds.items() if name in backward.inputs}, None, deadline)
        for name, result in zip((*sources, *names), derivative.results, strict=True):
            if result and name in names:
                rows = np.asarray(pulled[result], dtype=np.float64).reshape(_DIRECTIONS, -1)
                # Euclidean length of the gradient of a random unit direction of the outputs.
                found.backward.setdefault(name, []).append(float(np.sqrt((rows**2).sum() / _DIRECTIONS)))
    return found
