"""Pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from onnx import TensorProto

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, Rule
from lipaudit.validate.adjoints.contraction import depthwise, depthwise_adjoint
from lipaudit.validate.exact.windows import pooling_window

__all__ = ["RULES"]


def _max_pool(b: Builder, site: Site) -> Local:
    shape, out = site.shape(0), site.out_shape()
    window, declared = pooling_window(site, shape[2:])
    size, count = prod(shape), prod(out)
    found: list[str] = []

    def indices() -> str:
        """Flat places of the maxima, ``[1, count]``."""
        if not found:
            value, x = site.inputs[0], b.primal(site.node.inputs[0])
            if value is not None and not value.is_float:
                x = b.node("Cast", x, to=TensorProto.FLOAT)
            _, where = b.nodes_of(
                "MaxPool", [x], 2, kernel_shape=list(window.kernel), strides=list(window.strides),
                dilations=list(window.dilations), pads=[*window.before, *declared], ceil_mode=int(site.attr("ceil_mode", 0)),
            )  # fmt: skip
            found.append(b.node("Reshape", where, b.ints(1, count)))
        return found[0]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        flat = b.node("Reshape", indices(), b.ints(count))
        # Whole rows of probes are gathered faster than single elements of each.
        rows = b.node("Transpose", b.reshape(ts[0], (size,)), perm=[1, 0])
        return [b.reshape(b.node("Transpose", b.node("Gather", rows, flat, axis=0), perm=[1, 0]), out)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return [None]
        c = b.reshape(cs[0], (count,))
        spread = b.node("Expand", indices(), b.node("Shape", c))
        return [b.reshape(b.node("ScatterElements", b.zeros((size,)), spread, c, axis=1, reduction="add"), shape)]

    return Local(tangent, adjoint)


def _average_pool(b: Builder, site: Site) -> Local:
    shape = site.shape(0)
    window, declared = pooling_window(site, shape[2:])
    counts = window.counts(count_pad=bool(site.attr("count_include_pad", 0)), declared_after=declared)
    kernel, share = np.ones(window.kernel), b.constant(1.0 / counts)

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else b.node("Mul", depthwise(b, ts[0], kernel, window, shape), share)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if cs[0] is None else depthwise_adjoint(b, b.node("Mul", cs[0], share), kernel, window, shape)]

    return Local(tangent, adjoint)


def _norm_pool(b: Builder, site: Site) -> Local:
    """y = (sum |x|^p)^(1/p) of each window: slope ``sign(x) |x|^(p - 1)`` over ``y^(p - 1)``."""
    shape, p = site.shape(0), float(site.attr("p", 2))
    window, _ = pooling_window(site, shape[2:])
    kernel = np.ones(window.kernel)
    found: list[tuple[str, str]] = []

    def slopes() -> tuple[str, str]:
        """The numerator per input element, the reciprocal denominator per output element."""
        if not found:
            x, y = b.primal(site.node.inputs[0]), b.primal(site.node.outputs[0])
            power = b.node("Mul", b.node("Sign", x), b.node("Pow", b.node("Abs", x), b.number(p - 1)))
            found.append((power, b.node("Pow", b.node("Max", y, b.number(1e-30)), b.number(1 - p))))
        return found[0]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        above, below = slopes()
        return [b.node("Mul", depthwise(b, b.node("Mul", ts[0], above), kernel, window, shape), below)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return [None]
        above, below = slopes()
        return [b.node("Mul", depthwise_adjoint(b, b.node("Mul", cs[0], below), kernel, window, shape), above)]

    return Local(tangent, adjoint)


RULES: Mapping[str, Rule] = {"AveragePool": _average_pool, "LpPool": _norm_pool, "MaxPool": _max_pool}
