"""Operators that ONNX Runtime's optimiser fuses: a linear map, an addend, an activation; other layouts and transposed operands.

The parts are asked through sites of their own, so that each constant is stated once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.ball import Ball
from lipaudit.bounds.linear import Dense
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper
from lipaudit.graph.ir import Constant, Value
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.conv import Conv
from lipaudit.operators.entry import Entry
from lipaudit.operators.law import Law, law_of
from lipaudit.operators.matmul import Gemm, MatMul
from lipaudit.operators.parts import Part
from lipaudit.operators.pooling import MaxPool
from lipaudit.operators.range import Range, reals

__all__ = ["FusedConv", "FusedGemm", "FusedMatMul", "NhwcConv", "NhwcMaxPool"]

Floats = NDArray[np.float64]

# Names of the parameters of an activation, in the order of ``activation_params``.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "HardSwish": (),
    "Clip": ("min", "max"),
}


@cache
def _entry(op: str) -> Entry:
    from lipaudit.operators.catalogue import Catalogue

    return Catalogue.load().entries[f"ai.onnx::{op}"]


def _activation(name: str, values: Sequence[float]) -> Law | tuple[float, float] | Unknown | None:
    """The law of an activation; the two ends of a Clip; None for no activation."""
    if name in ("", "Identity", "None"):
        return None
    names = _PARAMETERS.get(name)
    if names is None or (values and len(values) < len(names)):
        return Unknown(f"activation {name!r} has no rule here")
    if name == "Clip":
        return (values[0], values[1]) if len(values) >= 2 and values[0] <= values[1] else Unknown("a Clip without its two ends")
    defaults = {"LeakyRelu": {"alpha": 0.01}, "HardSigmoid": {"alpha": float(np.float32(0.2)), "beta": 0.5}}.get(name, {})
    found: Mapping[str, Any] = dict(zip(names, values, strict=False)) if values else defaults
    return law_of(_entry(name), found, 0)


def _activated(x: Range, law: Law | tuple[float, float] | Unknown | None) -> Range:
    if law is None:
        return x
    if isinstance(law, Unknown):
        return reals(x.shape)
    if isinstance(law, tuple):
        return Range(x.shape, np.clip(x.lo, *law), np.clip(x.hi, *law))
    lo, hi = law.enclose(x.lo, x.hi)
    return Range(x.shape, lo, hi)


def _slope(x: Range, law: Law | tuple[float, float] | Unknown | None) -> Upper | Unknown:
    if law is None or isinstance(law, tuple):
        return ONE
    if isinstance(law, Unknown):
        return law
    if x.size == 0:
        return ZERO
    found: Ball = law.slope_on(float(np.min(x.lo)), float(np.max(x.hi)))
    return found.magnitude() if found.is_finite else Unknown("the activation has no bounded slope")


def _plain(site: Site, count: int, **changes: Any) -> Site:
    """The site of the linear part: the first ``count`` inputs, the newest version of the operator in the default domain."""
    node = site.node.renamed(inputs=site.node.inputs[:count], domain="", version=0)
    return replace(site, node=node, inputs=site.inputs[:count], constants=site.constants[:count], moving=site.moving[:count], **changes)


class _Fused(Rule):
    """``act(linear(inputs) + addend)``: a subclass names the linear rule, its site, and the addend."""

    @abstractmethod
    def linear_rule(self) -> Rule:
        """The rule of the linear part."""

    def part(self, site: Site, xs: Sequence[Range | None]) -> tuple[Site, list[Range | None]]:
        """Site and ranges of the linear part."""
        return _plain(site, 3), list(xs[:3])

    addend: int | None = None

    def activation(self, site: Site) -> Law | tuple[float, float] | Unknown | None:
        """What follows."""
        return None

    def parts(self, site: Site) -> tuple[Part, ...]:
        """Those of the linear part."""
        return self.linear_rule().parts(self.part(site, [None] * len(site.inputs))[0])

    def before(self, site: Site, xs: Sequence[Range | None]) -> Range:
        """Range of what the activation is applied to."""
        found = self.linear_rule().range(*self.part(site, xs))[0]
        extra = xs[self.addend] if self.addend is not None and self.addend < len(xs) else None
        if extra is None:
            return found
        lo, hi = interval.add((found.lo, found.hi), (extra.lo, extra.hi))
        return Range(found.shape, lo, hi)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The activation on the range of its argument."""
        return (_activated(self.before(site, xs), self.activation(site)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Of the linear part (1 for the addend), times the slope."""
        if i == self.addend:
            if site.shape(i) != site.out_shape():
                return Unknown("the addend is broadcast")
            inner: Gain = Finite(ONE, method="addend")
        else:
            own, ranges = self.part(site, xs)
            inner = self.linear_rule().gain(own, i, norm, ranges)
        slope = _slope(self.before(site, xs), self.activation(site))
        if isinstance(slope, Unknown):
            return slope
        return replace(inner, slope=inner.slope * slope, offset=inner.offset * slope) if isinstance(inner, Finite) else inner


class FusedConv(_Fused):
    """``act(Conv(x, w, b) + z)``; activation and its parameters are attributes."""

    addend = 3

    def linear_rule(self) -> Rule:
        """See the base class."""
        return Conv("ai.onnx::Conv", {})

    def activation(self, site: Site) -> Law | tuple[float, float] | Unknown | None:
        """See the base class."""
        return _activation(str(site.attr("activation", "")), [float(v) for v in site.attr("activation_params") or ()])


class FusedGemm(_Fused):
    """``act(Gemm(a, b, c))``."""

    def linear_rule(self) -> Rule:
        """See the base class."""
        return Gemm("ai.onnx::Gemm", {})

    def activation(self, site: Site) -> Law | tuple[float, float] | Unknown | None:
        """See the base class."""
        names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("beta", "gamma")}
        name = str(site.attr("activation", ""))
        values = [site.attr(f"activation_{part}") for part in names.get(name, ())]
        given = [float(value) for value in values if value is not None]
        if name == "Clip":
            return Unknown("a fused Clip has no rule here")
        return _activation(name, given if len(given) == len(values) else [])


def _transposed(value: Value | None, order: Sequence[int]) -> Value | None:
    if value is None or value.shape is None or len(value.shape) != len(order):
        return value
    return replace(value, shape=tuple(value.shape[k] for k in order))


def _moved(x: Range | None, order: Sequence[int]) -> Range | None:
    """The range of a transposed tensor; norms of rows are lost."""
    if x is None or len(x.shape) != len(order):
        return x
    shape = tuple(x.shape[k] for k in order)
    if x.lo.ndim == 0 and x.hi.ndim == 0:
        return Range(shape, x.lo, x.hi, integral=x.integral)
    lo, hi = x.full()
    return Range(shape, np.transpose(lo, order), np.transpose(hi, order), integral=x.integral)


def _stored(constant: Constant | None, order: Sequence[int]) -> Constant | None:
    if constant is None or len(constant.shape) != len(order):
        return constant
    shape = tuple(constant.shape[k] for k in order)
    return Constant(constant.name, constant.dtype, shape, lambda: np.transpose(constant.array(), order), fill=constant.fill)


class FusedMatMul(_Fused):
    """``alpha A' B'`` with transposed operands; ``transBatchA`` and ``transBatchB`` put the first axis third from the end."""

    def linear_rule(self) -> Rule:
        """See the base class."""
        return MatMul("ai.onnx::MatMul", {})

    def _orders(self, site: Site) -> list[tuple[int, ...]]:
        orders: list[tuple[int, ...]] = []
        for i, name in ((0, "A"), (1, "B")):
            order = list(range(len(site.shape(i))))
            if len(order) > 2 and site.attr(f"transBatch{name}", 0):
                order = [*order[1:-1], order[0], order[-1]]
            if len(order) > 1 and site.attr(f"trans{name}", 0):
                order[-1], order[-2] = order[-2], order[-1]
            orders.append(tuple(order))
        return orders

    def part(self, site: Site, xs: Sequence[Range | None]) -> tuple[Site, list[Range | None]]:
        """See the base class."""
        orders = self._orders(site)
        values = tuple(_transposed(value, order) for value, order in zip(site.inputs, orders, strict=False))
        stored = tuple(_stored(constant, order) for constant, order in zip(site.constants, orders, strict=False))
        own = replace(_plain(site, 2), inputs=values, constants=stored)
        return own, [_moved(x, order) for x, order in zip(xs, orders, strict=False)]

    def _alpha(self, site: Site) -> float:
        alpha = site.attr("alpha")
        return 1.0 if alpha is None else float(alpha)

    def before(self, site: Site, xs: Sequence[Range | None]) -> Range:
        """Times alpha."""
        found, alpha = super().before(site, xs), np.asarray(self._alpha(site))
        lo, hi = interval.multiply((found.lo, found.hi), (alpha, alpha))
        return Range(found.shape, lo, hi)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Times |alpha|."""
        found = super().gain(site, i, norm, xs)
        alpha = Upper(abs(self._alpha(site)))
        return replace(found, slope=found.slope * alpha) if isinstance(found, Finite) else found

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The stored operand, in doubles times alpha where that is exact."""
        found, alpha = super().parts(site), self._alpha(site)
        if alpha == 1.0:
            return found
        exact = abs(math.frexp(alpha)[0]) == 0.5
        return tuple(
            Part(each.weight, each.kind, each.shape, _scaled(each.operator, alpha))
            if exact and isinstance(each.operator, Dense)
            else Part(each.weight, each.kind, each.shape, "alpha times the weight is not exact")
            for each in found
        )


def _scaled(operator: Dense, alpha: float) -> Dense:
    """Times a power of two, in float64: narrower types would underflow."""
    return Dense(np.asarray(operator.weight, dtype=np.float64) * alpha, operator.in_shape, operator.side)


class _ChannelsLast(_Fused):
    """Shared: images [N, .., C] through a rule for [N, C, ..]; the kernel keeps its layout. Norms do not see the order."""

    images: tuple[int, ...] = (0,)

    def part(self, site: Site, xs: Sequence[Range | None]) -> tuple[Site, list[Range | None]]:
        """See the base class."""
        rank = len(site.shape(0))
        first = (0, rank - 1, *range(1, rank - 1))
        own = _plain(site, 3)
        values = tuple(_transposed(value, first) if k in self.images else value for k, value in enumerate(own.inputs))
        outputs = tuple(_transposed(value, first) for value in own.outputs)
        ranges = [_moved(x, first) if k in self.images else x for k, x in enumerate(xs[:3])]
        return replace(own, inputs=values, outputs=outputs), ranges

    def before(self, site: Site, xs: Sequence[Range | None]) -> Range:
        """Back in the layout of the node."""
        rank = len(site.shape(0))
        found = self.linear_rule().range(*self.part(site, xs))[0]
        moved = _moved(found, (0, *range(2, rank), 1))
        assert moved is not None
        extra = xs[self.addend] if self.addend is not None and self.addend < len(xs) else None
        if extra is None:
            return moved
        lo, hi = interval.add((moved.lo, moved.hi), (extra.lo, extra.hi))
        return Range(moved.shape, lo, hi)


class NhwcConv(_ChannelsLast):
    """NhwcConv and NhwcFusedConv: a (fused) Conv of channels-last images with a kernel [M, C/group, ..]."""

    addend = 3

    def linear_rule(self) -> Rule:
        """See the base class."""
        return Conv("ai.onnx::Conv", {})

    def activation(self, site: Site) -> Law | tuple[float, float] | Unknown | None:
        """See the base class."""
        return _activation(str(site.attr("activation", "")), [float(v) for v in site.attr("activation_params") or ()])


class NhwcMaxPool(_ChannelsLast):
    """MaxPool of channels-last images."""

    def linear_rule(self) -> Rule:
        """See the base class."""
        return MaxPool("ai.onnx::MaxPool", {})
