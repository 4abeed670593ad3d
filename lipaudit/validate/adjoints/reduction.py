"""Reductions and softmax: a weight on every input element, then a sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
from onnx import TensorProto

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.exact.reduction import softmax_axes

__all__ = ["RULES"]

# Builds the weight: (builder, input, output with kept axes, axes) -> a tensor that broadcasts to the input, or a number.
_Weight = Callable[[Builder, str, str, tuple[int, ...]], "str | float"]


def _axes(site: Site, first_input_version: int) -> tuple[int, ...]:
    rank = len(site.shape(0))
    if site.node.op.startswith("Global"):
        return tuple(range(2, rank))
    axes = site.attr("axes")
    if site.node.version >= first_input_version and site.has(1):
        constant = site.constant(1)
        if constant is None:
            raise NoDerivative(f"{site.node.op} with computed axes")
        axes = tuple(int(v) for v in np.asarray(constant.array()).reshape(-1))
    if not axes:
        return () if site.attr("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


def _reduction(weight: _Weight, first_input_version: int = 18) -> Rule:
    def rule(b: Builder, site: Site) -> Local:
        shape, out, axes = site.shape(0), site.out_shape(), _axes(site, first_input_version)
        kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
        found: list[str | float] = []

        def get() -> str | float:
            if not found:
                y = b.node("Reshape", b.primal(site.node.outputs[0]), b.ints(*kept))
                found.append(weight(b, b.primal(site.node.inputs[0]), y, tuple(shape[a] for a in axes)))
            return found[0]

        def times(t: str) -> str:
            w = get()
            return b.node("Mul", t, w) if isinstance(w, str) else t if w == 1.0 else b.node("Mul", t, b.number(w))

        def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
            if ts[0] is None:
                return [None]
            w = get()
            t = times(ts[0]) if isinstance(w, str) else ts[0]
            if axes:
                t = b.node("ReduceSum", t, b.ints(*(a + 1 for a in axes)), keepdims=1)
            t = t if isinstance(w, str) else times(t)
            return [b.reshape(t, out)]

        def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
            results: list[Maybe] = [None] * len(site.inputs)
            if cs[0] is not None:
                c = b.reshape(cs[0], kept)
                w = get()
                # A weight of full shape broadcasts by itself; a number needs the copy, made after the cheap product.
                results[0] = times(c) if isinstance(w, str) else b.expand(times(c), kept, shape)
            return results

        return Local(tangent, adjoint)

    return rule


def _share(b: Builder, x: str, y: str, sizes: tuple[int, ...]) -> float:
    return 1.0 / max(prod(sizes), 1)


def _extreme(b: Builder, site: Site) -> Local:
    """The elements that are the extreme share its slope: of one number that stands twice (overlapping windows) that is the slope."""
    axes = b.ints(*_axes(site, 18))

    def weight(b: Builder, x: str, y: str, sizes: tuple[int, ...]) -> str:
        equal = b.node("Cast", b.node("Equal", x, y), to=TensorProto.FLOAT)
        return b.node("Div", equal, b.node("ReduceSum", equal, axes, keepdims=1, noop_with_empty_axes=1))

    return _reduction(weight)(b, site)


def _over_norm(b: Builder, x: str, y: str, sizes: tuple[int, ...]) -> str:
    return b.node("Div", x, b.node("Max", y, b.number(1e-30)))


def _norm_of_all(b: Builder, site: Site) -> Local:
    """GlobalLpPool: slope sign(x) (|x| / y)^(p - 1)."""
    p = float(site.attr("p", 2))

    def weight(b: Builder, x: str, y: str, sizes: tuple[int, ...]) -> str:
        share = b.node("Div", b.node("Abs", x), b.node("Max", y, b.number(1e-30)))
        return b.node("Mul", b.node("Sign", x), b.node("Pow", share, b.number(p - 1)))

    return _reduction(weight)(b, site)


def _softmax(b: Builder, site: Site) -> Local:
    rank = len(site.shape(0))
    version = site.node.version
    axes = b.ints(*(a + 1 for a in softmax_axes(version, site.attr("axis", -1 if version >= 13 else 1), rank)))

    def apply(t: Maybe) -> Maybe:
        # The Jacobian diag(y) - y y' is symmetric.
        if t is None:
            return None
        y = b.primal(site.node.outputs[0])
        moved = b.node("Mul", t, y)
        return b.node("Sub", moved, b.node("Mul", y, b.node("ReduceSum", moved, axes, keepdims=1)))

    return Local(lambda ts: [apply(ts[0])], lambda cs: [apply(cs[0])])


def _log_softmax(b: Builder, site: Site) -> Local:
    rank = len(site.shape(0))
    version = site.node.version
    axes = b.ints(*(a + 1 for a in softmax_axes(version, site.attr("axis", -1 if version >= 13 else 1), rank)))

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        p = b.node("Exp", b.primal(site.node.outputs[0]))
        return [b.node("Sub", ts[0], b.node("ReduceSum", b.node("Mul", ts[0], p), axes, keepdims=1))]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return [None]
        p = b.node("Exp", b.primal(site.node.outputs[0]))
        return [b.node("Sub", cs[0], b.node("Mul", p, b.node("ReduceSum", cs[0], axes, keepdims=1)))]

    return Local(tangent, adjoint)


def _cumulative_sum(b: Builder, site: Site) -> Local:
    axis = site.constant(1)
    if axis is None:
        raise NoDerivative("CumSum along a computed axis")
    along = b.ints(int(np.asarray(axis.array()).reshape(-1)[0]) % len(site.shape(0)) + 1)
    exclusive, backwards = int(site.attr("exclusive", 0)), int(site.attr("reverse", 0))
    where = b.node("Squeeze", along)

    def apply(t: Maybe, reverse: int) -> Maybe:
        return None if t is None else b.node("CumSum", t, where, exclusive=exclusive, reverse=reverse)

    return Local(lambda ts: [apply(ts[0], backwards)], lambda cs: [apply(cs[0], 1 - backwards), None])


RULES: Mapping[str, Rule] = {
    "CumSum": _cumulative_sum,
    "GlobalAveragePool": _reduction(_share),
    "GlobalLpPool": _norm_of_all,
    "GlobalMaxPool": _extreme,
    "LogSoftmax": _log_softmax,
    "ReduceL1": _reduction(lambda b, x, y, s: b.node("Sign", x)),
    "ReduceL2": _reduction(_over_norm),
    "ReduceLogSumExp": _reduction(lambda b, x, y, s: b.node("Exp", b.node("Sub", x, y))),
    "ReduceMax": _extreme,
    "ReduceMean": _reduction(_share),
    "ReduceMin": _extreme,
    "ReduceProd": _reduction(lambda b, x, y, s: b.node("Div", y, x)),
    "ReduceSum": _reduction(lambda b, x, y, s: 1.0, 13),
    "ReduceSumSquare": _reduction(lambda b, x, y, s: b.node("Mul", x, b.number(2.0))),
    "Softmax": _softmax,
}
