"""Which elements of a value are which elements of an earlier one, through projections, head splits and rotations.

A :class:`Layout` says of every element of a value ``v_e = sum_t factor_t[e] base[index_t[e]] + constant[e]``, where the base is a
value or the result of one product with a stored matrix. Reshape, Transpose, Split, Slice, Gather, Expand, Concat,
constant factors and sums are followed element by element, so that every exporter's spelling of "split into heads, turn pairs by an angle,
repeat keys for grouped heads" gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.scalar import ONE, Upper
from lipaudit.bounds.selection import Selection
from lipaudit.certify.methods.workspace import Workspace
from lipaudit.certify.sites import shape_problem
from lipaudit.graph.ir import Node
from lipaudit.operators.base import Site, Unknown
from lipaudit.operators.elementwise import Scalar
from lipaudit.operators.linear import weight_array
from lipaudit.operators.normalizing import Normalizing

__all__ = ["Base", "Layout", "Term", "follow", "whole"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_MOST_ELEMENTS = 1 << 24
_MOST_TERMS = 4


@dataclass(frozen=True, eq=False)
class Term:
    """``factor * base[index]``, both of the shape of the value; index -1: nothing."""

    index: Indices
    factor: Floats

    def mapped(self, pick: Selection) -> Term:
        """Through a selection."""
        flat = pick.index
        return Term(self.index.reshape(-1)[flat].reshape(pick.out_shape), self.factor.reshape(-1)[flat].reshape(pick.out_shape))


@dataclass(frozen=True, eq=False)
class Base:
    """What the indices point into: ``width`` features for each of some rows.

    Attributes
    ----------
    width
        Features per row.
    weight
        [features of the operand, width] of the product that made it; None if it is a value as it stands.
    operand
        Layout [rows, features] of what was multiplied; None if ``weight`` is None.
    stretch
        Rows were normalized since: they move at most so much more than the rows of the product do.
    groups
        The feature sets that were normalized together (empty: none were).
    activated
        An activation was applied to each element since; ``stretch`` has its slope.
    before
        ``stretch`` without the slope of the last activation.
    """

    width: int
    weight: Floats | None = None
    operand: Layout | None = None
    stretch: Upper = ONE
    groups: frozenset[tuple[int, ...]] = frozenset()
    activated: bool = False
    before: Upper = ONE

    @property
    def is_reshaped(self) -> bool:
        """Elements are no longer those of the product: only how far they move is known through it."""
        return bool(self.groups) or self.activated


@dataclass(frozen=True, eq=False)
class Layout:
    """See the module. ``relative`` bounds the relative error of the factors, ``slack`` the error of each constant element."""

    base: Base
    terms: tuple[Term, ...]
    constant: Floats
    relative: float = 0.0
    slack: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.constant.shape

    def reshaped(self, *shape: int) -> Layout:
        """The same elements in another shape."""
        terms = tuple(Term(term.index.reshape(shape), term.factor.reshape(shape)) for term in self.terms)
        return replace(self, terms=terms, constant=self.constant.reshape(shape))

    def transposed(self, order: Sequence[int]) -> Layout:
        """Axes in another order."""
        terms = tuple(Term(term.index.transpose(order), term.factor.transpose(order)) for term in self.terms)
        return replace(self, terms=terms, constant=self.constant.transpose(order))

    def broadcast(self, shape: tuple[int, ...]) -> Layout:
        """Copied to a larger shape."""
        if self.shape == shape:
            return self
        terms = tuple(Term(np.broadcast_to(term.index, shape), np.broadcast_to(term.factor, shape)) for term in self.terms)
        return replace(self, terms=terms, constant=np.broadcast_to(self.constant, shape))

    def shifted(self, constant: Floats) -> Layout:
        """Plus a stored array that broadcasts to the shape."""
        moved = np.asarray(np.broadcast_to(self.constant + constant, self.shape))
        slack = self.slack + (2.0**-52 * float(np.max(np.abs(moved), initial=0.0)) if np.any(self.constant) else 0.0)
        return replace(self, constant=moved, slack=slack)

    @property
    def is_unchanged(self) -> bool:
        """The elements of the base as they stand, plus constants."""
        index = self.terms[0].index.reshape(-1)
        return len(self.terms) == 1 and bool(np.all(self.terms[0].factor == 1)) and np.array_equal(index, np.arange(index.size))

    @property
    def is_plain(self) -> bool:
        """Elements of the base and nothing else."""
        return len(self.terms) == 1 and bool(np.all(self.terms[0].factor == 1) and np.all(self.constant == 0) and self.slack == 0)


def whole(shape: tuple[int, ...]) -> Layout:
    """A value as the base itself; its rows run along the last axis."""
    size = math.prod(shape)
    index = np.arange(size, dtype=np.int64).reshape(shape)
    return Layout(Base(shape[-1] if shape else 1), (Term(index, np.ones(shape)),), np.zeros(shape))


def follow(work: Workspace, nodes: Sequence[Node], start: str, *, activations: bool = False) -> dict[str, Layout]:
    """Layouts of all values that are had from ``start`` (a value of known shape) by the nodes, as far as they can be told.

    ``activations``: elementwise functions of a product are looked through (feature maps of queries and keys).
    """
    shape = work.graph.value(start).shape
    if not shape or math.prod(shape) > _MOST_ELEMENTS or math.prod(shape) == 0:
        return {}
    found = {start: whole(shape)}
    for node in nodes:
        moving = work.moving(node)
        if not moving or any(node.inputs[i] not in found for i in moving) or any(name in found for name in node.outputs):
            continue
        site = work.sites[node.name]
        if shape_problem(site) is not None or any(work.gain(node, i) is None for i in moving):
            continue
        if any(value is not None and math.prod(value.shape or ()) > _MOST_ELEMENTS for value in site.outputs):
            continue
        made = zip(node.outputs, _through(work, node, site, found, moving, activations), strict=False)
        found.update((name, layout) for name, layout in made if layout is not None and name and len(layout.terms) <= _MOST_TERMS)
    return found


def _through(
    work: Workspace, node: Node, site: Site, found: Mapping[str, Layout], moving: Sequence[int], activations: bool
) -> list[Layout | None]:
    """Layouts of the outputs of one node; None where it cannot be told."""
    rule = work.rules[node.name]
    if rule is None:
        return []
    if node.kind in ("ai.onnx::Add", "ai.onnx::Sub", "ai.onnx::Sum"):
        return [_sum(node, site, found)] if node.version >= 7 else []
    if node.kind == "ai.onnx::Concat":
        return [_concat(node, site, found)]
    if len(moving) != 1:
        return []
    layout = found[node.inputs[moving[0]]]
    if node.kind == "ai.onnx::Split":
        return _split(node, site, layout) if moving == [0] else []
    if isinstance(rule, Normalizing):
        return [_normalized(work, node, site, rule, layout)]
    operator = rule.linear(site, moving[0])
    if isinstance(operator, Selection):
        return [_selected(layout, operator)]
    if isinstance(operator, Diagonal):
        return [_factored(layout, operator)]
    if isinstance(operator, Dense):
        return [_projected(node, site, layout, operator)]
    if activations and isinstance(rule, Scalar):
        return [_activated(work, node, site, layout)]
    return []


def _selected(layout: Layout, pick: Selection) -> Layout | None:
    if np.any(pick.index < 0):
        return None
    constant = layout.constant.reshape(-1)[pick.index].reshape(pick.out_shape)
    return replace(layout, terms=tuple(term.mapped(pick) for term in layout.terms), constant=constant)


def _factored(layout: Layout, diagonal: Diagonal) -> Layout | None:
    scale = diagonal.scale
    if not np.all(np.isfinite(scale)):
        return None
    wide = layout.broadcast(diagonal.out_shape)
    terms = tuple(Term(term.index, term.factor * scale) for term in wide.terms)
    constant = np.asarray(np.broadcast_to(wide.constant * scale, diagonal.out_shape))
    top = float(np.max(np.abs(scale), initial=0.0))
    relative = layout.relative + diagonal.relative_error + 2.0**-52
    # A factor that underflows has no relative error; those would make a layout of factors near 1e-300, which nobody writes.
    if any(np.any((term.factor != 0) & (np.abs(term.factor) < 1e-250)) for term in terms):
        return None
    slack = layout.slack * top * (1 + 2.0**-50) + float(np.max(np.abs(constant), initial=0.0)) * (diagonal.relative_error + 2.0**-52)
    return Layout(wide.base, terms, constant, relative, slack)


def _sum(node: Node, site: Site, found: Mapping[str, Layout]) -> Layout | None:
    """Terms are collected; stored operands go into the constant."""
    shape = site.out_shape()
    constant = np.zeros(shape)
    terms: list[Term] = []
    base: Base | None = None
    relative = slack = size = 0.0
    for i, name in enumerate(node.inputs):
        sign = -1.0 if node.op == "Sub" and i == 1 else 1.0
        if site.moving[i]:
            layout = found[name].broadcast(shape)
            if base is not None and layout.base is not base:
                return None
            base = layout.base
            terms += [Term(term.index, sign * term.factor) for term in layout.terms]
            relative, slack = max(relative, layout.relative), slack + layout.slack
            addend = layout.constant
        else:
            stored = site.constant(i)
            if stored is None:
                return None
            addend = np.asarray(weight_array(stored), dtype=np.float64)
        if not np.all(np.isfinite(addend)):
            return None
        constant = constant + sign * addend
        size += float(np.max(np.abs(addend), initial=0.0))
    if base is None:
        return None
    slack = slack + (len(node.inputs) * size * 2.0**-52 if np.any(constant) or slack else 0.0)
    return Layout(base, tuple(terms), np.asarray(np.broadcast_to(constant, shape)), relative, slack)


def _concat(node: Node, site: Site, found: Mapping[str, Layout]) -> Layout | None:
    """Side by side; a part with fewer terms gets terms that are nothing."""
    if not all(site.moving):
        return None
    layouts = [found[name] for name in node.inputs]
    if any(layout.base is not layouts[0].base for layout in layouts):
        return None
    axis = int(site.attr("axis", 0))
    count = max(len(layout.terms) for layout in layouts)
    terms: list[Term] = []
    for t in range(count):
        parts = [layout.terms[t] if t < len(layout.terms) else _nothing(layout.shape) for layout in layouts]
        terms.append(Term(np.concatenate([p.index for p in parts], axis), np.concatenate([p.factor for p in parts], axis)))
    constant = np.concatenate([layout.constant for layout in layouts], axis)
    relative, slack = max(layout.relative for layout in layouts), max(layout.slack for layout in layouts)
    return Layout(layouts[0].base, tuple(terms), constant, relative, slack)


def _nothing(shape: tuple[int, ...]) -> Term:
    return Term(np.full(shape, -1, dtype=np.int64), np.zeros(shape))


def _split(node: Node, site: Site, layout: Layout) -> list[Layout | None]:
    axis = int(site.attr("axis", 0)) % len(layout.shape)
    found: list[Layout | None] = []
    start = 0
    for value in site.outputs:
        if value is None or value.shape is None:
            return found
        part = tuple(slice(start, start + value.shape[axis]) if k == axis else slice(None) for k in range(len(layout.shape)))
        start += value.shape[axis]
        terms = tuple(Term(term.index[part], term.factor[part]) for term in layout.terms)
        found.append(replace(layout, terms=terms, constant=layout.constant[part]))
    return found


def _projected(node: Node, site: Site, layout: Layout, dense: Dense) -> Layout | None:
    """A product with a stored matrix from the right: a new base. One product is followed, not two."""
    weight = np.asarray(dense.weight)
    if dense.side != "right" or weight.ndim != 2 or layout.base.weight is not None or len(layout.shape) < 2:
        return None
    if len(layout.terms) != 1 or np.any(layout.constant) or layout.slack or layout.base.is_reshaped:
        return None
    values = np.asarray(weight, dtype=np.float64)
    if not np.all(np.isfinite(values)):
        return None
    shape = site.out_shape()
    base = Base(weight.shape[1], values, layout.reshaped(-1, weight.shape[0]))
    size = math.prod(shape)
    constant, slack = np.zeros(shape), 0.0
    if node.kind == "ai.onnx::Gemm" and site.has(2):
        stored, beta = site.constant(2), float(site.attr("beta", 1.0))
        if beta != 0:
            if stored is None:
                return None
            bias = np.asarray(weight_array(stored), dtype=np.float64) * beta
            if not np.all(np.isfinite(bias)):
                return None
            constant, slack = np.array(np.broadcast_to(bias, shape)), float(np.max(np.abs(bias), initial=0.0)) * 2.0**-52
    elif node.kind not in ("ai.onnx::MatMul", "ai.onnx::Gemm"):
        return None
    return Layout(base, (Term(np.arange(size, dtype=np.int64).reshape(shape), np.ones(shape)),), constant, 0.0, slack)


def _activated(work: Workspace, node: Node, site: Site, layout: Layout) -> Layout | None:
    """Elements of a product (plus constants), each through one function: the same places, moved as far as its slope says."""
    gain, base = work.gain(node, 0), layout.base
    if gain is None or work.moving(node) != [0] or base.weight is None or base.groups or len(layout.terms) != 1:
        return None
    term = layout.terms[0]
    if site.out_shape() != layout.shape or np.any(term.factor != 1) or np.any(term.index < 0) or len(node.outputs) != 1:
        return None
    moved = replace(base, stretch=base.stretch * gain.slope, activated=True, before=base.stretch)
    return Layout(moved, (Term(term.index, np.ones(layout.shape)),), np.zeros(layout.shape))


def _normalized(work: Workspace, node: Node, site: Site, rule: Normalizing, layout: Layout) -> Layout | None:
    """Rows of a product that are normalized (of queries, keys): the same places, moved ``stretch`` times as much."""
    gain = work.gain(node, 0)
    base = layout.base
    if gain is None or work.moving(node) != [0] or base.weight is None or base.is_reshaped or len(layout.terms) != 1:
        return None
    plan = rule.plan(site, work.of(node))
    if isinstance(plan, Unknown) or plan.axes != (len(layout.shape) - 1,) or plan.shape != layout.shape or len(node.outputs) != 1:
        return None
    term = layout.terms[0]
    if np.any(term.factor != 1) or np.any(term.index < 0):
        return None
    features = (term.index % base.width).reshape(-1, layout.shape[-1])
    rows = (term.index // base.width).reshape(-1, layout.shape[-1])
    if np.any(rows != rows[:, :1]):
        return None
    groups = frozenset(tuple(sorted(int(f) for f in line)) for line in np.unique(features, axis=0))
    if any(len(set(group)) != len(group) for group in groups):
        return None
    shape = layout.shape
    return Layout(replace(base, stretch=base.stretch * gain.slope, groups=groups), (Term(term.index, np.ones(shape)),), np.zeros(shape))
