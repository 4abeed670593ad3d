"""Operators that onnx defines by other nodes: the definition as a second opinion.

A rule knows norms of rows and diameters; the nodes of the definition know the interval of every element, which says more on a small
box. Both bound the same function, so the smaller constant counts, input by input and output by output, and ranges are intersected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np

from lipaudit.bounds.scalar import ZERO, Norm
from lipaudit.errors import LipauditError
from lipaudit.graph.ir import Constant, Graph, Value
from lipaudit.graph.limits import DEFAULT
from lipaudit.graph.simplify import simplify
from lipaudit.graph.simplify.expand import Operators, definition
from lipaudit.graph.simplify.types import tensor_type
from lipaudit.operators.base import BodyBound, Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.outputs import PerOutput, jointly
from lipaudit.operators.range import Range

__all__ = ["METHOD", "better_gains", "better_ranges", "define"]

_SMALL, _OPEN = 8192, 1 << 18
"""Elements of all inputs and outputs of a node whose definition is asked: to improve a bound, and where there is none."""

METHOD = "definition by other operators"
_LOCK = Lock()


def define(site: Site, operators: Operators) -> Graph | None:
    """The simplified function body of a node; None if onnx has none or it does not fit.

    Stored inputs are part of it; the others are its inputs ``x0``, ``x1``, .. by position, one for each, even where the node reads one
    value twice. Its outputs are the outputs of the node that are not omitted.
    """
    names = tuple(f"x{i}" if name else "" for i, name in enumerate(site.node.inputs))
    outputs = tuple(f"y{k}" if name else "" for k, name in enumerate(site.node.outputs))
    values = {
        name: Value(name, value.dtype, value.shape) for name, value in zip(names, site.inputs, strict=True) if name and value is not None
    }
    types = {name: tensor_type(value.dtype, value.shape) for name, value in values.items()}
    stored = {name: _named(constant, name) for name, constant in zip(names, site.constants, strict=True) if constant is not None}
    with _LOCK:
        try:
            body = definition(site.node.renamed(inputs=names, outputs=outputs), types, DEFAULT)
            if body is None:
                return None
            own = {name: value for name, value in values.items() if name not in stored}
            symbols = {name: value.shape for name, value in own.items() if value.shape is not None}
            kept = tuple(body.outputs[k] for k, name in enumerate(outputs) if name)
            constants = {**stored, **body.constants}
            typed = {**body.values, **values}
            graph = body.with_nodes(
                body.nodes, inputs=tuple(own.values()), outputs=kept, constants=constants, values=typed, captures=(), symbols=symbols
            )
            return simplify(graph, operators=operators)
        except LipauditError:
            return None


def _named(constant: Constant, name: str) -> Constant:
    return Constant(name, constant.dtype, constant.shape, constant.array, fill=constant.fill, source=constant.source)


def _applies(site: Site, catalogue: Catalogue, most: int) -> bool:
    entry = catalogue.entry(site.node.kind)
    if site.bodies is None or entry is None or not entry.definition:
        return False
    return sum(value.size for value in (*site.inputs, *site.outputs) if value is not None and value.shape is not None) <= most


def _given(xs: Sequence[Range | None]) -> dict[str, Range]:
    return {f"x{i}": x for i, x in enumerate(xs) if x is not None}


def _moving(site: Site) -> frozenset[str]:
    return frozenset(f"x{i}" for i, moves in enumerate(site.moving) if moves)


def better_ranges(site: Site, xs: Sequence[Range | None], found: tuple[Range, ...], catalogue: Catalogue) -> tuple[Range, ...]:
    """``found``, intersected with what the definition says."""
    if not any(site.moving) or not _applies(site, catalogue, _SMALL) or site.bodies is None:
        return found
    body = site.bodies.definition(site)
    if body is None:
        return found
    given = {name: x for name, x in _given(xs).items() if name in {value.name for value in body.inputs}}
    others = iter(site.bodies.ranges(site, body, given, _moving(site)))
    joined: list[Range] = []
    for k, own in enumerate(found):
        other = next(others, None) if k < len(site.node.outputs) and site.node.outputs[k] else None
        joined.append(own if other is None or other.shape != own.shape else _intersection(own, other))
    return tuple(joined)


def _intersection(a: Range, b: Range) -> Range:
    """Both hold: where rounding makes them miss each other, the first."""
    lo, hi = np.maximum(a.lo, b.lo), np.minimum(a.hi, b.hi)
    if np.isnan(lo).any() or np.isnan(hi).any() or np.any(lo > hi):
        return a
    zero, integral = a.zero_mean or b.zero_mean, a.integral or b.integral
    return Range(a.shape, lo, hi, min(a.row, b.row), min(a.diameter, b.diameter), zero, integral)


def better_gains(
    site: Site, xs: Sequence[Range | None], gains: Sequence[Gain | None], norm: Norm, catalogue: Catalogue
) -> tuple[Gain | None, ...]:
    """``gains``, each with the smaller of both constants."""
    found = tuple(gains)
    is_open = any(gain is not None and not isinstance(gain, Finite) for gain in found)
    if not _applies(site, catalogue, _OPEN if is_open else _SMALL) or site.bodies is None:
        return found
    body = site.bodies.definition(site)
    if body is None:
        return found
    names = {value.name for value in body.inputs}
    given = {name: x for name, x in _given(xs).items() if name in names}
    bound = site.bodies.bound(site, body, given, _moving(site), norm)
    if any(reason.status == "unknown" for reason in bound.reasons):
        return found
    return tuple(_smaller(site, gain, i, bound, norm) if gain is not None else None for i, gain in enumerate(found))


def _explained(own: Gain, bound: BodyBound) -> Gain:
    """The reason of the definition, where the rule only knows that it does not know."""
    if not isinstance(own, Unknown) or not bound.reasons:
        return own
    first = bound.reasons[0]
    return Unbounded(f"inside its definition, {first.op or first.node}: {first.reason}")


def _smaller(site: Site, own: Gain, i: int, bound: BodyBound, norm: Norm) -> Gain:
    """Output by output the smaller constant from input ``i``; an output without any keeps the answer of the rule."""
    parts: list[Finite] = []
    row = 0
    for k, name in enumerate(site.node.outputs):
        if not name:
            parts.append(Finite(ZERO))
            continue
        other = Finite(bound.gains[row].get(f"x{i}", ZERO), bound.offsets[row], METHOD)
        row += 1
        mine = own.outputs[k] if isinstance(own, PerOutput) and k < len(own.outputs) else own
        if isinstance(mine, Finite) and not (other.slope <= mine.slope and other.offset <= mine.offset):
            other = mine
        if not (other.slope.is_finite and other.offset.is_finite):
            return _explained(own, bound)
        parts.append(other)
    found = jointly(parts, norm)
    assert isinstance(found, Finite)
    if isinstance(own, Finite) and (own.slope <= found.slope and own.offset <= found.offset):
        return own
    if isinstance(own, Finite) and not (found.slope <= own.slope and found.offset <= own.offset):
        return own
    return replace(found, method=METHOD)
