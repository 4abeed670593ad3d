"""Movements whose places are computed: TopK, MaxUnpool, ScatterElements and ScatterND."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from onnx import TensorProto

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.adjoints.movement import scatter_to_known_places

__all__ = ["RULES"]


def _each(b: Builder, where: str, like: str, shape: tuple[int, ...]) -> str:
    """``where`` (of ``shape``) once for every probe of ``like``."""
    count = b.node("Slice", b.node("Shape", like), b.ints(0), b.ints(1))
    target = b.node("Concat", count, b.ints(*shape), axis=0)
    return b.node("Expand", b.node("Unsqueeze", where, b.ints(0)), target)


def _top(b: Builder, site: Site) -> Local:
    """The values are chosen elements; the indices beside them are flat."""
    shape, out = site.shape(0), site.out_shape()
    axis = int(site.attr("axis", -1)) % len(shape)
    found: list[str] = []

    def places() -> str:
        if not found:
            x, value = b.primal(site.node.inputs[0]), site.inputs[0]
            if value is not None and not value.is_float:
                x = b.node("Cast", x, to=TensorProto.FLOAT)
            largest, ordered = int(site.attr("largest", 1)), int(site.attr("sorted", 1))
            found.append(b.nodes_of("TopK", [x, b.ints(out[axis])], 2, axis=axis, largest=largest, sorted=ordered)[1])
        return found[0]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None, None]
        return [b.node("GatherElements", ts[0], _each(b, places(), ts[0], out), axis=axis + 1), None]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is not None:
            where = _each(b, places(), cs[0], out)
            results[0] = b.node("ScatterElements", b.zeros(shape), where, cs[0], axis=axis + 1, reduction="add")
        return results

    return Local(tangent, adjoint)


def _unpooled(site: Site, size: tuple[int, ...]) -> tuple[int, ...]:
    """What the pooling that is undone had as its input, at least."""
    rank = len(size)
    kernel, strides = tuple(site.attr("kernel_shape")), tuple(site.attr("strides") or (1,) * rank)
    pads = tuple(site.attr("pads") or (0,) * (2 * rank))
    return tuple((n - 1) * strides[k] + kernel[k] - pads[k] - pads[k + rank] for k, n in enumerate(size))


def _unpool(b: Builder, site: Site) -> Local:
    """Each element goes to the place of the flat output that its index names."""
    shape, out = site.shape(0), site.out_shape()
    size, total = prod(shape), prod(out)
    if site.has(2) and out[2:] != _unpooled(site, shape[2:]):
        raise NoDerivative("MaxUnpool into a larger shape, where the standard and runtimes count the indices differently")

    def places(like: str) -> str:
        flat = b.node("Reshape", b.primal(site.node.inputs[1]), b.ints(size))
        return _each(b, flat, like, (size,))

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        t = b.reshape(ts[0], (size,))
        return [b.reshape(b.node("ScatterElements", b.zeros((total,)), places(t), t, axis=1), out)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is not None:
            c = b.reshape(cs[0], (total,))
            results[0] = b.reshape(b.node("GatherElements", c, places(c), axis=1), shape)
        return results

    return Local(tangent, adjoint)


def _scatter(b: Builder, site: Site) -> Local:
    """Everything in one flat axis: places p, ``y = data`` with updates u put in, added, multiplied in, or compared.

    Slopes: D in the data, U in the updates, ``J (d, u) = D d + S (U u)`` with S the sum at the places. none: D = 0 where something was
    put, U = 1; add: both 1; mul: D = product of the updates, U = y / u; max, min: 1 where the output is that operand. Two updates of
    one place without a reduction are undefined in ONNX.
    """
    mode = str(site.attr("reduction", "none"))
    if site.constant(1) is not None and mode == "none":
        return scatter_to_known_places(b, site)
    if mode not in {"none", "add", "mul", "max", "min"}:
        raise NoDerivative(f"{site.node.op} with reduction {mode!r}")
    shape, updates = site.shape(0), site.shape(2)
    size, count = prod(shape), prod(updates)
    found: list[str] = []

    def places() -> str:
        """Flat places, ``[count]``."""
        if not found:
            where = b.primal(site.node.inputs[1])
            steps = np.array([prod(shape[k + 1 :]) for k in range(len(shape))], dtype=np.int64)
            if site.node.op == "ScatterND":
                depth = site.shape(1)[-1]
                sizes = b.constant(np.array(shape[:depth], dtype=np.int64))
                wrapped = b.node("Where", b.node("Less", where, b.ints(0)), b.node("Add", where, sizes), where)
                first = b.node("ReduceSum", b.node("Mul", wrapped, b.constant(steps[:depth])), b.ints(-1), keepdims=0)
                rest = prod(shape[depth:])
                flat = b.node("Add", b.node("Reshape", first, b.ints(-1, 1)), b.constant(np.arange(rest, dtype=np.int64)[None]))
            else:
                axis = int(site.attr("axis", 0)) % len(shape)
                grid = np.indices(updates).astype(np.int64)
                base = sum((grid[k] * steps[k] for k in range(len(shape)) if k != axis), np.zeros(updates, dtype=np.int64))
                where = b.node("Cast", where, to=TensorProto.INT64)
                wrapped = b.node("Where", b.node("Less", where, b.ints(0)), b.node("Add", where, b.ints(shape[axis])), where)
                flat = b.node("Add", b.node("Mul", wrapped, b.ints(int(steps[axis]))), b.constant(base))
            found.append(b.node("Reshape", flat, b.ints(count)))
        return found[0]

    def flat(name: str, n: int) -> str:
        return b.node("Reshape", b.primal(name), b.ints(n))

    def equal(a: str, c: str) -> str:
        return b.node("Cast", b.node("Equal", a, c), to=TensorProto.FLOAT)

    def slopes() -> tuple[str | None, str | None]:
        """D and U; None is 1."""
        data, update, result = site.node.inputs[0], site.node.inputs[2], site.node.outputs[0]
        if mode == "add":
            return None, None
        ones = b.constant(np.ones(size))
        if mode == "none":
            return b.node("ScatterElements", ones, places(), b.constant(np.zeros(count)), axis=0), None
        y, u = flat(result, size), flat(update, count)
        here = b.node("Gather", y, places(), axis=0)
        if mode == "mul":
            return b.node("ScatterElements", ones, places(), u, axis=0, reduction="mul"), b.node("Div", here, u)
        return equal(flat(data, size), y), equal(u, here)

    def times(t: str, slope: str | None) -> str:
        return t if slope is None else b.node("Mul", t, slope)

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        d, u = slopes()
        terms: list[Maybe] = [None if ts[0] is None else times(b.reshape(ts[0], (size,)), d)]
        if ts[2] is not None:
            t = times(b.reshape(ts[2], (count,)), u)
            where = _each(b, places(), t, (count,))
            terms.append(b.node("ScatterElements", b.zeros((size,)), where, t, axis=1, reduction="add"))
        total = b.sum(terms)
        return [None if total is None else b.reshape(total, shape)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return [None, None, None]
        d, u = slopes()
        c = b.reshape(cs[0], (size,))
        back = times(b.node("Gather", c, places(), axis=1), u)
        return [b.reshape(times(c, d), shape), None, b.reshape(back, updates)]

    return Local(tangent, adjoint)


RULES: Mapping[str, Rule] = {
    "MaxUnpool": _unpool,
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "TopK": _top,
}
