"""Symbolic dimensions become numbers.

Law: the pinned graph is the graph restricted to inputs of the pinned shape; every pinned dimension is recorded.

Cases, first match wins:

1. the caller says (``--dim symbol=size`` or ``--dim input[axis]=size``);
2. the first axis of an input, and every axis that shares its symbol or whose symbol speaks of a batch: 1;
3. a symbol ``total_X`` beside ``past_X`` and ``X``: their sum (a cache of past tokens in front of the new ones);
4. the two spatial axes of a rank-4 input, if both are open (2 and 3; 1 and 2 if the last axis is fixed and at most 4): the
   spatial default;
5. anything else (sequence lengths): the sequence default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lipaudit.errors import UsageError
from lipaudit.graph.ir import Graph, Value

__all__ = ["DEFAULTS", "Defaults", "open_dims", "pin"]


@dataclass(frozen=True, slots=True)
class Defaults:
    """Sizes for axes that nobody gave: sequence-like and spatial (a multiple of 32, as strided detectors need)."""

    sequence: int
    spatial: int


# Tried in order until shape inference finds no contradiction: audio models need hundreds of samples, deep detectors large images.
DEFAULTS = (Defaults(8, 64), Defaults(64, 224), Defaults(512, 512), Defaults(4096, 640))


def open_dims(graph: Graph) -> dict[str, list[tuple[str, int]]]:
    """Key of each symbolic dimension ("symbol", else "input[axis]") -> the (input, axis) places that it stands at."""
    places: dict[str, list[tuple[str, int]]] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(graph.symbols.get(value.name, ())):
            if isinstance(dim, str):
                places.setdefault(dim or f"{value.name}[{axis}]", []).append((value.name, axis))
    return places


def pin(graph: Graph, dims: Mapping[str, int], defaults: Defaults) -> tuple[Graph, bool]:
    """Give every input a static shape.

    Parameters
    ----------
    graph
        As loaded.
    dims
        The caller's sizes, by symbol or ``input[axis]``.
    defaults
        For the rest.

    Returns
    -------
    The graph, with ``pinned`` filled in, and whether a default was used.

    Raises
    ------
    UsageError
        If a name in ``dims`` is no open dimension of the model, or a size is below 1.
    """
    places = open_dims(graph)
    given = _given(graph, places, dims)
    batch = {key for key, where in places.items() if any(axis == 0 for _, axis in where) or "batch" in key.lower()}
    shapes = graph.symbols
    chosen: dict[str, int] = {}
    used_default = False
    for key, where in places.items():
        if key in given:
            chosen[key] = given[key]
        elif key in batch:
            chosen[key] = 1
        else:
            spatial = all(_is_spatial(shapes[name], axis) for name, axis in where)
            chosen[key] = defaults.spatial if spatial else defaults.sequence
            used_default = True
    for key in chosen:
        if key.startswith("total_") and key not in given and key not in batch:
            rest = key.removeprefix("total_")
            if rest in chosen and f"past_{rest}" in chosen:
                chosen[key] = chosen[rest] + chosen[f"past_{rest}"]
    overridden = {key: size for key, size in dims.items() if key not in places}  # single places, not whole symbols
    inputs: list[Value] = []
    pinned: dict[str, int] = {}
    for value in graph.inputs:
        shape: list[int] = []
        for axis, dim in enumerate(shapes.get(value.name, ())):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            here = f"{value.name}[{axis}]"
            key = here if here in overridden else dim or here
            pinned[key] = overridden.get(here, chosen[dim or here])
            shape.append(pinned[key])
        inputs.append(Value(value.name, value.dtype, tuple(shape)))
    values = {**graph.values, **{value.name: value for value in inputs}}
    return graph.with_nodes(graph.nodes, inputs=tuple(inputs), values=values, pinned=pinned), used_default


def _is_spatial(dims: tuple[int | str, ...], axis: int) -> bool:
    if len(dims) != 4:
        return False
    last = dims[3]
    axes = (1, 2) if isinstance(last, int) and last <= 4 else (2, 3)
    return axis in axes and all(isinstance(dims[a], str) for a in axes)


def _given(graph: Graph, places: Mapping[str, list[tuple[str, int]]], dims: Mapping[str, int]) -> dict[str, int]:
    """The caller's sizes by key of :func:`open_dims`, checked."""
    every = {f"{name}[{axis}]": key for key, where in places.items() for name, axis in where}
    given: dict[str, int] = {}
    for name, size in dims.items():
        if size < 1:
            raise UsageError(f"the dimension {name!r} is set to {size}; a size of at least 1 is needed", where=graph.name)
        if name in places:
            given[name] = size
        elif name not in every:
            known = ", ".join(places) if places else "none: every dimension of the model is fixed"
            raise UsageError(f"the model has no open dimension {name!r}", where=graph.name, hint=f"Open dimensions: {known}.")
    return given
