"""What is searched: the graph cut at its sources, points as flat vectors, the box they live in, the inputs held fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.dtypes import numpy_dtype
from lipaudit.graph.export import EMBEDDED_BYTES, weight_bytes
from lipaudit.graph.ir import Graph, Node, Value
from lipaudit.topology.sources import moving
from lipaudit.validate.vectors import aligned

if TYPE_CHECKING:
    from lipaudit.topology.sources import Source

__all__ = ["Part", "Problem", "cut", "prepare"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One source within the flat vector of all sources.

    ``table`` holds the rows that an embedding can take (shape ``[rows, d]``), None for an ordinary input.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    place: slice
    table: NDArray[Any] | None = None


@dataclass(frozen=True)
class Problem:
    """A search problem.

    Attributes
    ----------
    graph
        Its inputs are the sources and the fixed inputs.
    parts
        The sources; a *point* is one flat vector of all of them.
    outputs
        Names of the float outputs, each once.
    lo, hi
        The box (flat, float64, infinite ends allowed).
    fixed
        Values of the inputs that are not sources, the same for both points of a pair.
    given
        Points that the user supplied (each flat).
    """

    graph: Graph
    parts: tuple[Part, ...]
    outputs: tuple[str, ...]
    lo: Floats
    hi: Floats
    fixed: Mapping[str, NDArray[Any]]
    given: tuple[Floats, ...] = ()

    @property
    def size(self) -> int:
        """Elements of a point."""
        return int(self.lo.size)

    @property
    def bounded(self) -> bool:
        """True if every element has two finite ends."""
        return bool(np.isfinite(self.lo).all() and np.isfinite(self.hi).all())

    def clip(self, point: Floats) -> Floats:
        """The nearest point of the box whose elements are float32 numbers where the box has any."""
        rounded = np.clip(point, -3e38, 3e38).astype(np.float32).astype(np.float64)
        outside = (rounded < self.lo) | (rounded > self.hi)
        if not outside.any():
            return rounded
        lo32 = _inward(self.lo, up=True)
        hi32 = _inward(self.hi, up=False)
        inside = np.where(rounded < self.lo, lo32, np.where(rounded > self.hi, hi32, rounded))
        # An interval without a float32 number: its own end is the point.
        return np.clip(inside, self.lo, self.hi)

    def feeds(self, point: Floats, *, double: bool = False) -> dict[str, NDArray[Any]]:
        """Inputs of the graph at ``point``, in the types of the model or (sources only) in float64."""
        feeds = {name: aligned(value) for name, value in self.fixed.items()}
        for part in self.parts:
            value = point[part.place].reshape(part.shape)
            feeds[part.name] = value if double else aligned(value, numpy_dtype(part.dtype))
        return feeds


def _inward(ends: Floats, *, up: bool) -> Floats:
    """The nearest float32 number inside: not below a lower end (``up``), not above an upper one."""
    with np.errstate(over="ignore"):
        near = ends.astype(np.float32)
    wrong = near.astype(np.float64) < ends if up else near.astype(np.float64) > ends
    moved = np.nextafter(near, np.float32(np.inf if up else -np.inf))
    return np.where(wrong, moved, near).astype(np.float64)


def cut(graph: Graph, names: Sequence[str], outputs: Sequence[str]) -> Graph:
    """The part of ``graph`` from the values ``names`` (its new inputs, with the other inputs that are needed) to ``outputs``."""
    inner = set(names)
    needed, kept = set(outputs), list[Node]()
    for node in reversed(graph.nodes):
        if not any(name in needed and name not in inner for name in node.outputs):
            continue
        kept.append(replace(node, outputs=tuple("" if name in inner else name for name in node.outputs)))
        needed.update(name for name in (*node.inputs, *graph.captured_by(node)) if name)
    kept.reverse()
    sources = [graph.value(name) for name in dict.fromkeys(names)]
    others = [value for value in graph.inputs if value.name in needed and value.name not in inner]
    constants = {name: constant for name, constant in graph.constants.items() if name in needed}
    return replace(graph, nodes=tuple(kept), inputs=(*sources, *others), outputs=tuple(dict.fromkeys(outputs)), constants=constants)


def prepare(
    graph: Graph,
    sources: Sequence[Source],
    domain: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    outputs: Sequence[str] | None,
    seed: int,
    inputs: Mapping[str, NDArray[Any]] | None,
) -> Problem | str:
    """The problem, or one sentence why there is nothing to search."""
    chosen = list(dict.fromkeys(graph.outputs if outputs is None else outputs))
    chosen = [name for name in chosen if graph.value(name).is_float or not graph.value(name).dtype]
    if not chosen:
        return "no output is of a floating-point type."
    if not sources:
        return "no input is of a floating-point type."
    moves = moving(graph, sources)
    if not any(name in moves for name in chosen):
        return "no output depends on an input."
    names = [source.value.name for source in sources]
    for name in (*names, *chosen):
        if graph.value(name).shape is None:
            return f"the shape of {name!r} is not known."
    small = cut(graph, names, chosen)
    # Before anything is built: the derivative graphs would copy the weights twice.
    if (held := weight_bytes(small)) > EMBEDDED_BYTES:
        return f"the weights take {held:,} bytes, more than one protobuf can hold."
    parts, ends, start = [], [], 0
    for source in sources:
        value = graph.value(source.value.name)
        assert value.shape is not None
        place = slice(start, start + prod(value.shape))
        start = place.stop
        parts.append(Part(value.name, value.shape, value.dtype or "float32", place, _table(source, value)))
        lo, hi = domain.get(value.name, (np.array(-np.inf), np.array(np.inf)))
        ends.append([np.broadcast_to(np.asarray(end, dtype=np.float64), value.shape).reshape(-1) for end in (lo, hi)])
    if start == 0:
        return "the inputs have no elements."
    lo, hi = (np.concatenate([pair[side] for pair in ends]) for side in (0, 1))
    known = set(names)
    rng = np.random.default_rng([seed, 7])
    fixed: dict[str, NDArray[Any]] = {}
    for value in small.inputs:
        if value.name in known:
            continue
        supplied = None if inputs is None else inputs.get(value.name)
        if supplied is not None:
            # Both points of a pair share them: of several examples the first counts.
            fixed[value.name] = np.asarray(supplied).reshape(-1, *(value.shape or ()))[0].astype(numpy_dtype(value.dtype))
        elif value.shape is None or value.dtype in {"", "string"}:
            return f"input {value.name!r} has no shape or type to draw values for."
        else:
            fixed[value.name] = _fixed_value(small, value, rng)
        if value.name in domain:
            held = np.clip(fixed[value.name].astype(np.float64), *domain[value.name])
            fixed[value.name] = held.astype(numpy_dtype(value.dtype))
    problem = Problem(small, tuple(parts), tuple(chosen), lo, hi, fixed)
    return replace(problem, given=_given(problem, inputs))


def _table(source: Source, value: Value) -> NDArray[Any] | None:
    if source.kind != "embedding" or source.table is None or value.shape is None:
        return None
    table = np.asarray(source.table.array())
    fits = table.ndim == 2 and len(value.shape) > 0 and table.shape[1] == value.shape[-1]
    return table if fits else None


def _given(problem: Problem, inputs: Mapping[str, NDArray[Any]] | None) -> tuple[Floats, ...]:
    """Points that the user supplied: one array a source, or several along a new leading axis."""
    if inputs is None or not all(part.name in inputs for part in problem.parts):
        return ()
    columns: list[Floats] = []
    for part in problem.parts:
        array = np.asarray(inputs[part.name], dtype=np.float64)
        if array.size == 0 or array.size % prod(part.shape):
            return ()
        columns.append(array.reshape(-1, prod(part.shape)))
    count = min(len(column) for column in columns)
    return tuple(problem.clip(np.concatenate([column[i] for column in columns])) for i in range(count))


def _fixed_value(graph: Graph, value: Value, rng: np.random.Generator) -> NDArray[Any]:
    """A legal value for an input that is not a source: indices within their table, masks of ones, else zeros."""
    assert value.shape is not None
    dtype = numpy_dtype(value.dtype)
    if dtype.kind == "b":
        return np.ones(value.shape, dtype=dtype)
    if value.is_float:
        return rng.standard_normal(value.shape).astype(dtype)
    rows = _table_rows(graph, value.name)
    if rows is not None:
        return rng.integers(0, max(rows, 1), value.shape).astype(dtype)
    return np.ones(value.shape, dtype=dtype) if "mask" in value.name.lower() else np.zeros(value.shape, dtype=dtype)


_PASSING = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Concat", "Expand", "Slice"}


def _table_rows(graph: Graph, name: str) -> int | None:
    """Rows of the smallest table that ``name`` indexes, looking through operators that only move it."""
    found: list[int] = []
    stack, seen = [name], set[str]()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        for node in graph.consumers.get(current, ()):
            if node.op == "Gather" and len(node.inputs) > 1 and node.inputs[1] == current:
                shape = graph.value(node.inputs[0]).shape
                axis = int(node.attrs.get("axis", 0))
                if shape is not None and -len(shape) <= axis < len(shape):
                    found.append([*shape][axis])
            elif node.op in _PASSING and current in node.inputs[:1]:
                stack.extend(node.outputs)
    return min(found, default=None)
