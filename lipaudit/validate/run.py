"""One validation: headline gain, gain of each source to each output, gain of each region, from one set of proved pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm
from lipaudit.bounds.threads import single_threaded
from lipaudit.errors import ModelError
from lipaudit.graph.ir import Graph
from lipaudit.validate.arrays import embedded
from lipaudit.validate.budget import Budget, flops
from lipaudit.validate.confirm import Confirmer, Proof, Quotient
from lipaudit.validate.direction import View
from lipaudit.validate.engine import Engine
from lipaudit.validate.interrupt import Interrupts
from lipaudit.validate.local import POINTS, local_gains, summary
from lipaudit.validate.measurement import Measurement, Measurements, Stopped, not_measured
from lipaudit.validate.problem import Problem, prepare
from lipaudit.validate.profile import Profile, profile
from lipaudit.validate.search import Search
from lipaudit.validate.session import Deadline, OutOfTime, resolve_device
from lipaudit.validate.settle import Settler
from lipaudit.validate.witness import Witness

if TYPE_CHECKING:
    from lipaudit.topology.sources import Source

__all__ = ["validate"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Progress = Callable[[float], None]

# Of a time limit, the part that the search may take; the rest is for confirming.
_SEARCH_TIME = 0.7
# Of the budget's floating-point operations, the part that is spent on confirming; and the most pairs.
_CONFIRM_SHARE = 0.3
_CONFIRM_PAIRS = 16
# Typical inputs of the profile at most, and the part of the evaluations that it may take.
_PROFILE_POINTS = 8
_PROFILE_SHARE = 0.05
# The same for local gains, and what one of them costs in evaluations.
_LOCAL_SHARE = 0.1
_LOCAL_COST = 30.0


def validate(
    graph: Graph,
    sources: Sequence[Source],
    domain: Mapping[str, tuple[Array, Array]],
    *,
    regions: Sequence[tuple[str, tuple[str, ...], str]] = (),
    outputs: Sequence[str] | None = None,
    norm: Norm = "l2",
    budget: Budget,
    device: str = "auto",
    seed: int = 0,
    inputs: Mapping[str, Array] | None = None,
    time_limit: float | None = None,
    progress: Progress | None = None,
    replay: Witness | None = None,
    keep_on_interrupt: bool = False,
) -> Measurements:
    """Measure gains of ``graph`` by searching for pairs of inputs.

    Parameters
    ----------
    graph
        Simplified: shapes static, float outputs.
    sources
        Where gains start: graph inputs, or inner values (the output of an embedding), at which the graph is cut.
    domain
        Box by value name of a source: ``(lo, hi)``, broadcastable to its shape; sources not listed range over all reals.
    regions
        ``(path, entry values, exit value)`` whose own gain is measured on the same pairs.
    outputs
        Which outputs; None for all float ones.
    norm
        "l2", "l1" or "linf" on flattened (and concatenated) values.
    budget
        Effort in evaluations.
    device
        "auto", "cpu" or "cuda" for the search; pairs are confirmed on the CPU.
    seed
        Equal seeds give equal results.
    inputs
        Values by name, examples along a new leading axis: for sources points to start from, for other inputs their values (the first
        example's). Sources that are computed from inputs (embeddings) are computed from the examples.
    time_limit
        Seconds; a safety net (the budget's own if None). A search that it cut short says so in its method.
    progress
        Called with the fraction done.
    replay
        A pair to evaluate instead of searching.
    keep_on_interrupt
        Ctrl-C ends the search early instead of raising KeyboardInterrupt; the result says so.

    Returns
    -------
    Measurements
        Every ``lower`` is a lower bound of the true gain of that pair, rounding included (see ``validate.confirm``).

    Raises
    ------
    UsageError
        If ``device`` is unknown, or "cuda" does not work; if ``replay`` or ``inputs`` do not fit the graph.
    """
    resolved = resolve_device(device)
    seconds = budget.seconds if time_limit is None else time_limit
    if replay is not None:
        inputs = replay.fixed(graph)
    elif inputs is not None:
        inputs = embedded(graph, sources, inputs)
    problem = prepare(graph, sources, domain, outputs, seed, inputs)
    if isinstance(problem, str):
        return _nothing(problem, resolved)
    pair = None if replay is None else (*replay.points(problem), replay.errors(norm))
    try:
        with (
            single_threaded(),
            Deadline(seconds * _SEARCH_TIME) as search,
            Deadline(seconds) as confirm,
            Interrupts(search, confirm, active=keep_on_interrupt) as interrupts,
        ):
            return _Validation(problem, regions, norm, budget, resolved, seed, seconds, search, confirm, interrupts, progress, pair).run()
    except RuntimeError as error:
        return _nothing(f"onnxruntime cannot run the model: {error}.", resolved)
    except ModelError as error:
        return _nothing(str(error), resolved)
    except MemoryError:
        return _nothing("the model does not fit into memory.", resolved)


def _nothing(reason: str, device: str) -> Measurements:
    return Measurements(not_measured(reason[:1].upper() + reason[1:], device=device), device=device)


@dataclass
class _Validation:
    problem: Problem
    regions: Sequence[tuple[str, tuple[str, ...], str]]
    norm: Norm
    budget: Budget
    device: str
    seed: int
    seconds: float
    search_limit: Deadline
    confirm_limit: Deadline
    interrupts: Interrupts
    progress: Progress | None
    replay: tuple[Floats, Floats, Mapping[str, float]] | None
    cut_short: bool = False
    flow: Profile = field(default_factory=Profile)
    local: list[float] = field(default_factory=list)
    engine: Engine = field(init=False)

    def run(self) -> Measurements:
        names = [part.name for part in self.problem.parts]
        if self.replay is not None:
            return self._again(names, *self.replay)
        self.engine = Engine(self.problem, self.device, self.search_limit)
        cost = max(flops(self.problem.graph), 1.0)
        total = self.budget.for_graph(self.problem.graph)
        self.pairs = int(max(2, min(_CONFIRM_PAIRS, _CONFIRM_SHARE * self.budget.work / cost)))
        settler = Settler(Confirmer(self.engine, self._taps(), self.norm, self.confirm_limit))
        whole = View(self.engine)
        headline = self._search(whole, (self.seed, 0), total, 0.0, 0.8)
        self._settle(settler, whole, headline, names, self.problem.outputs, (self.seed, 1))
        matrix = self._matrix(settler, total)
        if self.regions:
            self._guarded(lambda: self._profile(total))
            self._guarded(lambda: settler.explore(whole, [c for c, _ in headline.scouts], (self.seed, 3), self.pairs // 2))
        self._guarded(lambda: self._local(whole, total))
        self._tell(1.0)
        return self._collect(settler, names, matrix)

    def _local(self, view: View, total: float) -> None:
        """Gains of the Jacobian at typical inputs, as many as a part of the evaluations pays for."""
        if self.engine.differentiable:
            points = int(min(POINTS, _LOCAL_SHARE * total / _LOCAL_COST))
            local_gains(view, self.norm, points, (self.seed, 6), self.local)

    def _profile(self, total: float) -> None:
        """Typical inputs through the whole network. What onnxruntime refuses here costs the profile alone."""
        points = int(max(1, min(_PROFILE_POINTS, _PROFILE_SHARE * total / 8)))
        exits = list(dict.fromkeys(leave for _, _, leave in self.regions if leave in self._taps()))
        with contextlib.suppress(RuntimeError):
            self.flow = profile(self.problem, self.engine.graph, exits, points, (self.seed, 5), self.device, self.search_limit)

    def _facts(self, settler: Settler) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        errors = settler.confirmer.errors
        found = {path: self.flow.facts(leave, errors.get(leave)) for path, _, leave in self.regions}
        local = summary(self.local)
        whole: dict[str, Mapping[str, Mapping[str, Any]]] = {} if local is None else {"": {"local": local.facts()}}
        return whole | {path: facts for path, facts in found.items() if facts}

    def _again(self, names: Sequence[str], x: Floats, y: Floats, errors: Mapping[str, float]) -> Measurements:
        """Evaluate one pair; nothing is searched."""
        self.engine = Engine(self.problem, self.device, self.confirm_limit, derivatives=False)
        settler = Settler(Confirmer(self.engine, self._taps(), self.norm, self.confirm_limit, errors))
        self._guarded(lambda: settler.prove(x, y, "replayed", (), ()))
        self._tell(1.0)
        return self._collect(settler, names, [(part.name, name) for part in self.problem.parts for name in self.problem.outputs])

    @property
    def _stopped(self) -> Stopped:
        """What ended the search before its budget."""
        if self.interrupts.count:
            return "interrupted"
        return "time limit" if self.cut_short else ""

    def _search(self, view: View, seed: tuple[int, ...], evaluations: float, begin: float, end: float) -> Search:
        def tell(fraction: float) -> None:
            self._tell(begin + (end - begin) * fraction)

        search = Search(view, self.norm, seed, evaluations, self.budget.stages, tell)
        self._guarded(search.run)
        return search

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OutOfTime:
            self.cut_short = True

    def _tell(self, fraction: float) -> None:
        if self.progress is not None:
            self.progress(fraction)

    def _settle(
        self, settler: Settler, view: View, search: Search, sources: Sequence[str], exits: Sequence[str], seed: tuple[int, ...]
    ) -> None:
        self._guarded(lambda: settler.settle(view, search.best(), sources, exits, self.pairs))
        if settler.best(sources, exits) is None:
            self._guarded(lambda: settler.wide(view, sources, exits, seed, self.pairs))

    def _matrix(self, settler: Settler, total: float) -> list[tuple[str, str]]:
        """Search each pair of source and output with the others held."""
        parts, outputs = self.problem.parts, self.problem.outputs
        entries = [(part, name) for part in parts for name in outputs]
        if len(entries) > 1:
            each = max(total * 0.5 / len(entries), min(total, 12.0))
            for i, (part, name) in enumerate(entries):
                view = View(self.engine, part.place, self.engine.places[name])
                search = self._search(view, (self.seed, 2, i), each, 0.8 + 0.2 * i / len(entries), 0.8 + 0.2 * (i + 1) / len(entries))
                share = max(1, self.pairs // len(entries))
                self._guarded(lambda v=view, s=search, p=part, n=name, k=share: settler.settle(v, s.best(), [p.name], [n], k))
        return [(part.name, name) for part, name in entries]

    def _taps(self) -> list[str]:
        """Values at region borders that the searched graph computes."""
        known = set(self.problem.graph.producer)
        names = (name for _, entries, leave in self.regions for name in (*entries, leave))
        return [name for name in dict.fromkeys(names) if name in known and self.problem.graph.value(name).is_float]

    def _collect(self, settler: Settler, names: Sequence[str], matrix: Sequence[tuple[str, str]]) -> Measurements:
        found = settler.best(names, self.problem.outputs)
        reason = settler.complaint or "No difference of outputs was seen."
        if not settler.proofs:
            reason = {
                "": reason,
                "time limit": f"The search did not come to an end within {self.seconds:g} seconds.",
                "interrupted": "The search was interrupted before it had found anything.",
            }[self._stopped]
        held = {name: [other for other in names if other != name] for name in names}
        return Measurements(
            self._measurement(found, reason),
            {(a, b): self._measurement(settler.best([a], [b], held=held[a]), reason) for a, b in matrix},
            {path: self._region(settler, entries, leave, reason) for path, entries, leave in self.regions},
            self.engine.device,
            self._arrays(None if found is None else found[0]),
            self._stopped,
            {} if found is None else found[0].errors,
            self._facts(settler),
            summary(self.local),
        )

    def _region(self, settler: Settler, entries: Sequence[str], leave: str, reason: str) -> Measurement:
        graph = self.problem.graph
        known = set(graph.producer) | {part.name for part in self.problem.parts}
        moving = [name for name in dict.fromkeys(entries) if name in known and graph.value(name).is_float]
        if leave not in known or not moving or not graph.value(leave).is_float:
            return not_measured("No floating-point value passes through it on the way to the outputs.", device=self.engine.device)
        return self._measurement(settler.best(moving, [leave]), reason)

    def _measurement(self, found: tuple[Proof, Quotient] | None, reason: str) -> Measurement:
        device, method = self.engine.device, self._method()
        if found is None:
            return not_measured(reason[:1].upper() + reason[1:], device=device, method=method)
        proof, quotient = found
        witness = {
            **({} if self.replay is not None else {"seed": self.seed}),
            "start": proof.family,
            "difference": quotient.difference.decimal(),
            "distance": quotient.distance.decimal(),
        }
        return Measurement("measured", quotient.lower, device, method, witness, "", quotient.difference, quotient.distance)

    def _method(self) -> str:
        if self.replay is not None:
            return "a given pair, nothing searched; pair confirmed in float64"
        if self.engine.differentiable:
            how = "scouts by Jacobian products, pair ascent, local moves"
        else:
            how = f"random pairs and evolution ({self.engine.why_no_derivative})"
        stop = {"": "", "time limit": ", stopped by the time limit", "interrupted": ", interrupted"}[self._stopped]
        return f"{how}; {self.budget.name} budget{stop}; pair confirmed in float64"

    def _arrays(self, proof: Proof | None) -> dict[str, Array]:
        if proof is None:
            return {}
        arrays: dict[str, Array] = {}
        for part in self.problem.parts:
            arrays[f"x:{part.name}"] = _narrow(proof.x[part.place].reshape(part.shape))
            arrays[f"y:{part.name}"] = _narrow(proof.y[part.place].reshape(part.shape))
        return arrays | {f"fixed:{name}": _portable(array) for name, array in self.problem.fixed.items()}


def _portable(array: Array) -> Array:
    """The types that numpy does not know itself (bfloat16 and narrower) as float32, which holds them exactly."""
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)


def _narrow(array: NDArray[np.float64]) -> Array:
    """float32 if that is exact."""
    narrow = array.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), array) else array
