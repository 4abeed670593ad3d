"""Operators that move elements: the derivative moves tangents the same way, the adjoint moves them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.exact import movement as exact
from lipaudit.validate.exact.call import Call
from lipaudit.validate.exact.resize import resize_matrices

__all__ = ["RULES", "by_map", "scatter_to_known_places"]


def _none(site: Site) -> list[Maybe]:
    return [None] * len(site.inputs)


def _first(site: Site, c: Maybe) -> list[Maybe]:
    return [c, *[None] * (len(site.inputs) - 1)]


def _reshape(b: Builder, site: Site) -> Local:
    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.reshape(ts[0], site.out_shape())]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        return _first(site, None if cs[0] is None else b.reshape(cs[0], site.shape(0)))

    return Local(tangent, adjoint)


def _transpose(b: Builder, site: Site) -> Local:
    rank = len(site.shape(0))
    perm = list(site.attr("perm") or range(rank - 1, -1, -1))
    forward = [0, *(p + 1 for p in perm)]
    back = [0, *(int(p) + 1 for p in np.argsort(perm))]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.node("Transpose", ts[0], perm=forward)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        return _first(site, None if cs[0] is None else b.node("Transpose", cs[0], perm=back))

    return Local(tangent, adjoint)


def _expand(b: Builder, site: Site) -> Local:
    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.expand(ts[0], site.shape(0), site.out_shape())]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        return _first(site, None if cs[0] is None else b.unbroadcast(cs[0], site.out_shape(), site.shape(0)))

    return Local(tangent, adjoint)


def _concat(b: Builder, site: Site) -> Local:
    axis = site.attr("axis", 1) % len(site.out_shape()) + 1
    sizes = [site.shape(i)[axis - 1] for i in range(len(site.inputs))]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        parts = [b.zeros(site.shape(i)) if t is None else t for i, t in enumerate(ts)]
        return [b.node("Concat", *parts, axis=axis)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return _none(site)
        return b.nodes_of("Split", [cs[0], b.ints(*sizes)], len(sizes), axis=axis)

    return Local(tangent, adjoint)


def _split(b: Builder, site: Site) -> Local:
    axis = site.attr("axis", 0) % len(site.shape(0)) + 1
    count = len(site.outputs)
    sizes = [site.out_shape(i)[axis - 1] for i in range(count)]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None] * count
        return b.nodes_of("Split", [ts[0], b.ints(*sizes)], count, axis=axis)

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if all(c is None for c in cs):
            return _none(site)
        parts = [b.zeros(site.out_shape(i)) if c is None else c for i, c in enumerate(cs)]
        return _first(site, b.node("Concat", *parts, axis=axis))

    return Local(tangent, adjoint)


def _gather(b: Builder, site: Site) -> Local:
    shape = site.shape(0)
    axis = site.attr("axis", 0) % len(shape)
    indices = site.constant(1)
    if indices is not None:
        return by_map(b, site, _index_map(site, {1: np.asarray(indices.array())}))
    where, rank = b.primal(site.node.inputs[1]), len(site.shape(1))
    middle = (*shape[:axis], prod(site.shape(1)), *shape[axis + 1 :])

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.node("Gather", ts[0], where, axis=axis + 1)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return _none(site)
        c = b.reshape(cs[0], middle) if rank != 1 else cs[0]
        flat = b.node("Reshape", where, b.ints(*[-1 if i == axis else 1 for i in range(len(shape))]))
        spread = b.node("Expand", b.node("Unsqueeze", flat, b.ints(0)), b.node("Shape", c))
        return _first(site, b.node("ScatterElements", b.zeros(shape), spread, c, axis=axis + 1, reduction="add"))

    return Local(tangent, adjoint)


def _index_map(site: Site, values: Mapping[int, NDArray[Any]]) -> NDArray[np.int64]:
    """For a movement with known parameters: the flat input index of each output element, -1 where it is filled."""
    shape = site.shape(0)
    xs: list[NDArray[Any] | None] = [np.arange(1, prod(shape) + 1, dtype=np.float64).reshape(shape)]
    for i in range(1, len(site.inputs)):
        constant = site.constant(i)
        found = values.get(i)
        if found is None and constant is not None:
            found = np.asarray(constant.array())
        if found is None and site.has(i):
            raise NoDerivative(f"{site.node.op} with computed parameters")
        if site.node.op == "Pad" and i == 2:
            found = np.zeros(())
        xs.append(found)
    result = exact.OPERATORS[site.node.op](Call(site, xs, np.dtype(np.float64)))
    assert not isinstance(result, tuple)
    # Before version 11 the fill of a Pad is an attribute, which may look like an index.
    if site.node.op == "Pad" and site.node.version < 11 and site.attr("mode", "constant") == "constant" and site.attr("value", 0.0):
        raise NoDerivative("Pad with a filling value as attribute")
    return result.astype(np.int64) - 1


def _mapped(b: Builder, site: Site) -> Local:
    """Any movement with constant parameters."""
    return by_map(b, site, _index_map(site, {}))


def by_map(b: Builder, site: Site, index: NDArray[np.int64]) -> Local:
    """Output element o is input element ``index[o]`` (flat), or does not move where that is -1."""
    shape, out = site.shape(0), index.shape
    size = prod(shape)
    flat = index.reshape(-1)
    holes = bool((flat < 0).any())

    def pick(t: str, where: NDArray[np.int64], filled: bool, source: int, target: tuple[int, ...]) -> str:
        t = b.reshape(t, (source,))
        if filled:
            # One extra element, zero, stands for all that is filled.
            t = b.node("Pad", t, b.ints(0, 0, 0, 1))
            where = np.where(where < 0, source, where)
        return b.reshape(b.node("Gather", t, b.constant(where), axis=1), target)

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else pick(ts[0], flat, holes, size, out)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return _none(site)
        used = flat[flat >= 0]
        if np.unique(used).size == used.size:
            back = np.full(size, -1, dtype=np.int64)
            back[used] = np.nonzero(flat >= 0)[0]
            return _first(site, pick(cs[0], back, bool((back < 0).any()), flat.size, shape))
        c = b.reshape(cs[0], (flat.size,))
        # Filled elements go to one extra place that is dropped again.
        places = b.constant(np.where(flat < 0, size, flat)[None, :])
        spread = b.node("Expand", places, b.node("Shape", c))
        total = b.node("ScatterElements", b.zeros((size + 1,)), spread, c, axis=1, reduction="add")
        return _first(site, b.reshape(b.node("Slice", total, b.ints(0), b.ints(size), b.ints(1)), shape))

    return Local(tangent, adjoint)


def _slice(b: Builder, site: Site) -> Local:
    """A Slice with step 1 stays a Slice, and its adjoint is a Pad: cheaper than an index map."""
    shape, out = site.shape(0), site.out_shape()
    index = _index_map(site, {})
    if index.size == 0 or prod(shape) == 0:
        return by_map(b, site, index)
    first, last = (np.unravel_index(int(i), shape) for i in (index.reshape(-1)[0], index.reshape(-1)[-1]))
    if any(int(z) - int(a) + 1 != n for a, z, n in zip(first, last, out, strict=True)):
        return by_map(b, site, index)
    rank = len(shape)
    starts, ends = [int(a) for a in first], [int(z) + 1 for z in last]
    axes = b.ints(*range(1, rank + 1))

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.node("Slice", ts[0], b.ints(*starts), b.ints(*ends), axes)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        pads = b.ints(0, *starts, 0, *(n - z for n, z in zip(shape, ends, strict=True)))
        return _first(site, None if cs[0] is None else b.node("Pad", cs[0], pads))

    return Local(tangent, adjoint)


def _gather_elements(b: Builder, site: Site) -> Local:
    if site.constant(1) is not None:
        return _mapped(b, site)
    axis = site.attr("axis", 0) % len(site.shape(0)) + 1
    where, shape = b.primal(site.node.inputs[1]), site.shape(0)

    def spread(like: str) -> str:
        target = b.node("Concat", b.node("Slice", b.node("Shape", like), b.ints(0), b.ints(1)), b.ints(*site.shape(1)), axis=0)
        return b.node("Expand", b.node("Unsqueeze", where, b.ints(0)), target)

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.node("GatherElements", ts[0], spread(ts[0]), axis=axis)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return _none(site)
        return _first(site, b.node("ScatterElements", b.zeros(shape), spread(cs[0]), cs[0], axis=axis, reduction="add"))

    return Local(tangent, adjoint)


def _resize(b: Builder, site: Site) -> Local:
    xs: list[NDArray[Any] | None] = [np.broadcast_to(np.float32(0), site.shape(0))]
    for i in range(1, len(site.inputs)):
        constant = site.constant(i)
        if constant is None and site.has(i):
            raise NoDerivative(f"{site.node.op} with computed sizes")
        xs.append(None if constant is None else np.asarray(constant.array()))
    matrices = resize_matrices(Call(site, xs, np.dtype(np.float32)))
    rank = len(site.shape(0))

    def apply(t: str, transposed: bool) -> str:
        for axis, matrix in enumerate(matrices):
            if matrix is None:
                continue
            stored = b.constant(matrix if transposed else matrix.T)
            if axis == rank - 1:
                t = b.node("MatMul", t, stored)
            else:
                swap = list(range(rank + 1))
                swap[axis + 1], swap[rank] = swap[rank], swap[axis + 1]
                t = b.node("Transpose", b.node("MatMul", b.node("Transpose", t, perm=swap), stored), perm=swap)
        return t

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else apply(ts[0], False)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        return _first(site, None if cs[0] is None else apply(cs[0], True))

    return Local(tangent, adjoint)


def scatter_to_known_places(b: Builder, site: Site) -> Local:
    """ScatterND / ScatterElements with constant places: a movement of data and one of updates, joined by a fixed mask."""
    where = site.constant(1)
    if where is None:
        raise NoDerivative(f"{site.node.op} with computed indices")
    shape, updates = site.shape(0), site.shape(2)
    numbers = np.arange(1, prod(updates) + 1, dtype=np.float64).reshape(updates)
    call = Call(site, [np.zeros(shape), np.asarray(where.array()), numbers], np.dtype(np.float64))
    result = exact.OPERATORS[site.node.op](call)
    assert not isinstance(result, tuple)
    source = result.astype(np.int64) - 1
    kept = b.constant((source < 0).astype(np.float32))
    local = by_map(b, Site(site.node, (site.inputs[2],), site.outputs, (None,), (True,)), source)

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        moved = None if ts[2] is None else local.tangent([ts[2]])[0]
        return [b.sum([None if ts[0] is None else b.node("Mul", ts[0], kept), moved])]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return _none(site)
        return [b.node("Mul", cs[0], kept), None, local.adjoint([cs[0]])[0]]

    return Local(tangent, adjoint)


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _mapped,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _mapped,
    "Pad": _mapped,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _mapped,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _mapped,
    "Transpose": _transpose,
    "Trilu": _mapped,
    "Unsqueeze": _reshape,
    "Upsample": _resize,
}
