"""Forward pass: what every value of the abstract graph can be on the domain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lipaudit.certify import integers
from lipaudit.certify.definitions import better_ranges
from lipaudit.certify.domain import Domain
from lipaudit.certify.masks import assumed_masks
from lipaudit.certify.sites import shape_problem
from lipaudit.graph.ir import Constant, Graph, Value
from lipaudit.operators.base import Site
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.range import Range, exact, reals
from lipaudit.topology.sources import Source

__all__ = ["Ranges", "forward", "propagate"]

# Weights beyond this size are described by their smallest and largest element; their rules read the tensor itself.
_WHOLE = 1 << 16

_INTEGER_ENDS = {"bool": (0, 1), "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


class Ranges(Mapping[str, Range]):
    """Ranges by value name; those of constants are made when asked for. A value of unknown shape has none."""

    def __init__(self, constants: Mapping[str, Constant]) -> None:
        self._constants = constants
        self._found: dict[str, Range] = {}
        self.overflowing: set[str] = set()
        """Values of an integer type that the real result of their operator may leave."""

    def __getitem__(self, name: str) -> Range:
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = _of_constant(self._constants[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def put(self, name: str, value: Range, *, overflows: bool = False) -> None:
        """Record the range of a computed value."""
        self._found[name] = value
        if overflows:
            self.overflowing.add(name)

    def of(self, site: Site) -> list[Range | None]:
        """Ranges of a site's inputs, None where omitted or of unknown shape."""
        return [self.get(name) if name else None for name in site.node.inputs]


def propagate(graph: Graph, sources: Sequence[Source], catalogue: Catalogue, domain: Domain, sites: Mapping[str, Site]) -> Ranges:
    """Ranges of all values, node by node in topological order.

    A box on an embedding source replaces what its table would say. Operators without a rule give all reals.
    """
    masks = assumed_masks(graph)
    given = {value.name: domain.held(value, value.name in masks) for value in graph.inputs}
    return forward(graph, given | {source.value.name: domain.outer(source) for source in sources}, catalogue, sites)


def forward(graph: Graph, given: Mapping[str, Range | None], catalogue: Catalogue, sites: Mapping[str, Site]) -> Ranges:
    """As :func:`propagate`, from the ranges ``given`` of inputs (and of values that are to be overridden)."""
    ranges = Ranges(graph.constants)
    for value in graph.inputs:
        _put_input(ranges, value, given.get(value.name))
    for node in graph.nodes:
        site = sites[node.name]
        rule = catalogue.rule(node)
        if rule is not None and shape_problem(site) is None:
            xs = ranges.of(site)
            answers = better_ranges(site, xs, rule.range(site, xs), catalogue)
            for k, value in enumerate(site.outputs):
                if value is not None and value.shape is not None:
                    found = _sane(answers[k]) if k < len(answers) else reals(value.shape)
                    ranges.put(value.name, integers.within(value, found), overflows=integers.overflow(value, found))
        else:
            for value in site.outputs:
                if value is not None and value.shape is not None:
                    ranges.put(value.name, reals(value.shape))
        for name in node.outputs:
            override = given.get(name)
            if override is not None:
                ranges.put(name, override)
    return ranges


def _put_input(ranges: Ranges, value: Value, given: Range | None) -> None:
    if given is not None:
        ranges.put(value.name, given)
    elif value.shape is not None:
        lo, hi = _INTEGER_ENDS.get(value.dtype, (-math.inf, math.inf))
        ranges.put(value.name, Range(value.shape, np.asarray(float(lo)), np.asarray(float(hi)), integral=not value.is_float))


def _of_constant(constant: Constant) -> Range:
    integral = constant.dtype == "bool" or "int" in constant.dtype
    if constant.fill is not None:
        end = np.asarray(float(constant.fill))
        return _sane(Range(constant.shape, end, end, integral=integral))
    if constant.dtype in ("string", ""):
        return reals(constant.shape)
    array: Any = constant.array()
    if array.size <= _WHOLE:
        return _sane(exact(np.asarray(array)))
    lo, hi = float(np.min(array)), float(np.max(array))
    if math.isnan(lo) or math.isnan(hi):
        return reals(constant.shape)
    return Range(constant.shape, np.asarray(lo), np.asarray(hi), integral=integral)


def _sane(found: Range) -> Range:
    """NaN ends (inf - inf, 0 * inf) mean "not known": they become infinite."""
    lo, hi = np.asarray(found.lo, dtype=np.float64), np.asarray(found.hi, dtype=np.float64)
    if math.isnan(found.row) or math.isnan(found.diameter):
        row, diameter = (math.inf if math.isnan(size) else size for size in (found.row, found.diameter))
        found = found.replace(row=row, diameter=diameter)
    if np.isnan(lo).any() or np.isnan(hi).any():
        return found.replace(lo=np.where(np.isnan(lo), -np.inf, lo), hi=np.where(np.isnan(hi), np.inf, hi))
    return found
