"""Elementwise operators: the derivative is one slope tensor per input, shared by tangent and adjoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import TensorProto

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule, Slope

__all__ = ["RULES", "pointwise"]

# The slopes of the output in each input: tensors that broadcast to the output, numbers, or None where it is zero.
Slopes = Callable[[Builder, Site], Sequence[Slope | None]]


def pointwise(slopes: Slopes) -> Rule:
    """A rule from the slopes per input (evaluated once, when first asked)."""

    def rule(b: Builder, site: Site) -> Local:
        out = site.out_shape()
        found: list[Sequence[Slope | None]] = []

        def get() -> Sequence[Slope | None]:
            if not found:
                found.append(slopes(b, site))
            return found[0]

        def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
            terms: list[Maybe] = []
            for i, (t, slope) in enumerate(zip(ts, get(), strict=False)):
                if t is None or slope is None:
                    continue
                moved = b.times(b.lift(t, site.shape(i), len(out)), slope)
                # The slope may have spread the tangent already; Expand accepts both.
                terms.append(moved if site.shape(i) == out else b.node("Expand", moved, b.ints(1, *out)))
            return [b.sum(terms)]

        def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
            c = cs[0]
            if c is None:
                return [None] * len(site.inputs)
            results: list[Maybe] = []
            for i, slope in enumerate(get()):
                # Constants have no cotangent, and a slope of zero passes nothing on.
                if slope is None or not (site.has(i) and site.moving[i]):
                    results.append(None)
                else:
                    results.append(b.unbroadcast(b.times(c, slope), out, site.shape(i)))
            return results

        return Local(tangent, adjoint)

    return rule


def _mask(b: Builder, condition: str) -> str:
    return b.node("Cast", condition, to=TensorProto.FLOAT)


def _of_input(slope: Callable[[Builder, str, Site], Slope]) -> Rule:
    return pointwise(lambda b, site: [slope(b, b.primal(site.node.inputs[0]), site)])


def _of_output(slope: Callable[[Builder, str], str]) -> Rule:
    return pointwise(lambda b, site: [slope(b, b.primal(site.node.outputs[0]))])


def _complement(b: Builder, y: str) -> str:
    return b.node("Sub", b.number(1.0), y)


def _product(b: Builder, site: Site) -> Sequence[Slope | None]:
    x, y = site.node.inputs[:2]
    return [b.primal(y) if site.moving[0] else None, b.primal(x) if site.moving[1] else None]


def _quotient(b: Builder, site: Site) -> Sequence[Slope | None]:
    denominator = b.primal(site.node.inputs[1])
    first = b.node("Reciprocal", denominator)
    second = b.node("Neg", b.node("Mul", b.primal(site.node.outputs[0]), first)) if site.moving[1] else None
    return [first, second]


def _remainder(b: Builder, site: Site) -> Sequence[Slope | None]:
    """x - y n with n = the whole part of x / y, which is flat (rounded down, or towards zero with ``fmod``)."""
    if not site.moving[1]:
        return [1.0, None]
    x, y = b.primal(site.node.inputs[0]), b.primal(site.node.inputs[1])
    whole = b.node("Div", b.node("Sub", x, b.primal(site.node.outputs[0])), y)
    return [1.0, b.node("Neg", b.node("Round", whole))]


def _power(b: Builder, site: Site) -> Sequence[Slope | None]:
    constant = site.constant(1)
    if constant is None:
        return _computed_power(b, site)
    p = np.asarray(constant.array(), dtype=np.float64)
    x = b.primal(site.node.inputs[0])
    if p.size == 1 and p.reshape(-1)[0] == 2.0:
        return [b.node("Mul", x, b.number(2.0))]
    return [b.node("Mul", b.node("Pow", x, b.constant(p - 1)), b.constant(p))]


def _computed_power(b: Builder, site: Site) -> Sequence[Slope | None]:
    """p x^(p - 1) and x^p log x; the latter only says something where x > 0."""
    x, p = (b.primal(name) for name in site.node.inputs[:2])
    first = b.node("Mul", b.node("Pow", x, b.node("Sub", p, b.number(1.0))), p) if site.moving[0] else None
    positive = b.node("Log", b.node("Max", x, b.number(1e-30)))
    return [first, b.node("Mul", b.primal(site.node.outputs[0]), positive) if site.moving[1] else None]


def _where(b: Builder, site: Site) -> Sequence[Slope | None]:
    condition = b.primal(site.node.inputs[0])
    return [None, _mask(b, condition), _mask(b, b.node("Not", condition))]


def _clip_rule(b: Builder, site: Site) -> Local:
    def slopes(b: Builder, site: Site) -> Sequence[Slope | None]:
        # Strictly between the ends exactly where the output is the input and differs from both.
        x, y = b.primal(site.node.inputs[0]), b.primal(site.node.outputs[0])
        return [_mask(b, b.node("Equal", x, y)), None, None]

    return pointwise(slopes)(b, site)


def _extreme(b: Builder, site: Site) -> Sequence[Slope | None]:
    y = b.primal(site.node.outputs[0])
    masks = [
        _mask(b, b.node("Equal", b.primal(name), y)) if moves else None for name, moves in zip(site.node.inputs, site.moving, strict=True)
    ]
    several = [mask for mask in masks if mask is not None]
    if len(several) < 2:
        return masks
    # Equal operands share the slope: they may be one value.
    count = b.node("Max", b.node("Sum", *several), b.number(1.0))
    return [None if mask is None else b.node("Div", mask, count) for mask in masks]


def _leaky(b: Builder, x: str, site: Site) -> str:
    alpha = site.attr("alpha", 0.01)
    positive = _mask(b, b.node("Greater", x, b.number(0.0)))
    return b.node("Add", b.node("Mul", positive, b.number(1.0 - alpha)), b.number(alpha))


def _prelu(b: Builder, site: Site) -> Sequence[Slope | None]:
    x, slope = b.primal(site.node.inputs[0]), b.primal(site.node.inputs[1])
    first = b.node("Where", b.node("Greater", x, b.number(0.0)), b.number(1.0), slope) if site.moving[0] else None
    return [first, b.node("Min", x, b.number(0.0)) if site.moving[1] else None]


def _elu(b: Builder, x: str, site: Site) -> str:
    negative = b.node("Mul", b.node("Exp", b.node("Min", x, b.number(0.0))), b.number(site.attr("alpha", 1.0)))
    return b.node("Where", b.node("Greater", x, b.number(0.0)), b.number(1.0), negative)


def _celu(b: Builder, x: str, site: Site) -> str:
    negative = b.node("Exp", b.node("Mul", b.node("Min", x, b.number(0.0)), b.number(1.0 / site.attr("alpha", 1.0))))
    return b.node("Where", b.node("Greater", x, b.number(0.0)), b.number(1.0), negative)


def _selu(b: Builder, x: str, site: Site) -> str:
    alpha, gamma = site.attr("alpha"), site.attr("gamma")
    negative = b.node("Mul", b.node("Exp", b.node("Min", x, b.number(0.0))), b.number(alpha * gamma))
    return b.node("Where", b.node("Greater", x, b.number(0.0)), b.number(gamma), negative)


def _within(b: Builder, y: str, lo: float, hi: float) -> str:
    return _mask(b, b.node("And", b.node("Greater", y, b.number(lo)), b.node("Less", y, b.number(hi))))


def _hard_sigmoid(b: Builder, site: Site) -> Sequence[Slope | None]:
    inside = _within(b, b.primal(site.node.outputs[0]), 0.0, 1.0)
    return [b.node("Mul", inside, b.number(site.attr("alpha", 0.2)))]


def _hard_swish(b: Builder, x: str, site: Site) -> str:
    inside = _within(b, x, -3.0, 3.0)
    middle = b.node("Mul", inside, b.node("Add", b.node("Mul", x, b.number(1 / 3)), b.number(0.5)))
    return b.node("Add", middle, _mask(b, b.node("GreaterOrEqual", x, b.number(3.0))))


def _swish(b: Builder, x: str, site: Site) -> str:
    alpha = site.attr("alpha", 1.0)
    scaled = b.node("Mul", x, b.number(alpha))
    s = b.node("Sigmoid", scaled)
    return b.node("Mul", s, b.node("Add", b.number(1.0), b.node("Mul", scaled, _complement(b, s))))


def _mish(b: Builder, x: str, site: Site) -> str:
    t, s = b.node("Tanh", b.node("Softplus", x)), b.node("Sigmoid", x)
    square = b.node("Mul", t, t)
    return b.node("Add", t, b.node("Mul", b.node("Mul", x, s), _complement(b, square)))


def _gelu(b: Builder, x: str, site: Site) -> str:
    if site.attr("approximate", "none") == "tanh":
        k, a = math.sqrt(2 / math.pi), 0.044715
        square = b.node("Mul", x, x)
        inner = b.node("Mul", x, b.node("Add", b.node("Mul", square, b.number(k * a)), b.number(k)))
        t = b.node("Tanh", inner)
        slope = b.node("Add", b.node("Mul", square, b.number(3 * k * a)), b.number(k))
        bell = b.node("Mul", b.node("Mul", x, slope), _complement(b, b.node("Mul", t, t)))
        return b.node("Mul", b.node("Add", b.node("Add", t, b.number(1.0)), bell), b.number(0.5))
    half = b.node("Mul", b.node("Erf", b.node("Mul", x, b.number(math.sqrt(0.5)))), b.number(0.5))
    bell = b.node("Exp", b.node("Mul", b.node("Mul", x, x), b.number(-0.5)))
    return b.node("Add", b.node("Add", half, b.number(0.5)), b.node("Mul", b.node("Mul", x, bell), b.number(1 / math.sqrt(2 * math.pi))))


def _erf(b: Builder, x: str, site: Site) -> str:
    return b.node("Mul", b.node("Exp", b.node("Neg", b.node("Mul", x, x))), b.number(2 / math.sqrt(math.pi)))


def _inverse_root(b: Builder, square: str) -> str:
    return b.node("Reciprocal", b.node("Sqrt", square))


def _acosh(b: Builder, x: str, site: Site) -> str:
    # Two factors: x^2 - 1 loses all digits near 1.
    return _inverse_root(b, b.node("Mul", b.node("Sub", x, b.number(1.0)), b.node("Add", x, b.number(1.0))))


def _parametric_softplus(b: Builder, x: str, site: Site) -> str:
    alpha, beta = (float(site.attr(name, 1.0)) for name in ("alpha", "beta"))
    return b.node("Mul", b.node("Sigmoid", b.node("Mul", x, b.number(beta))), b.number(alpha * beta))


def _scaled_tanh(b: Builder, x: str, site: Site) -> str:
    alpha, beta = (float(site.attr(name, 1.0)) for name in ("alpha", "beta"))
    t = b.node("Tanh", b.node("Mul", x, b.number(beta)))
    return b.node("Mul", _complement(b, b.node("Mul", t, t)), b.number(alpha * beta))


def _softsign(b: Builder, x: str, site: Site) -> str:
    root = b.node("Reciprocal", b.node("Add", b.node("Abs", x), b.number(1.0)))
    return b.node("Mul", root, root)


def _square_plus(b: Builder, x: str, add: float, sign: float = 1.0) -> str:
    square = b.node("Mul", x, x)
    return b.node("Add", square if sign == 1.0 else b.node("Neg", square), b.number(add))


def _all_ones(b: Builder, site: Site) -> Sequence[Slope | None]:
    return [1.0] * len(site.inputs)


def _mean(b: Builder, site: Site) -> Sequence[Slope | None]:
    return [1.0 / len(site.inputs)] * len(site.inputs)


def _cast(b: Builder, site: Site) -> Sequence[Slope | None]:
    value = site.outputs[0]
    return [1.0 if value is not None and value.is_float else None]


def _straight_through(b: Builder, site: Site) -> Sequence[Slope | None]:
    # Rounding is flat almost everywhere; the slope of the staircase's middle line points where outputs really move.
    return [1.0] + [None] * (len(site.inputs) - 1)


def _scale(b: Builder, site: Site) -> str:
    scale, axis, rank = site.constant(1), site.attr("axis", 1), len(site.shape(0))
    if scale is None:
        raise NoDerivative(f"{site.node.op} with a computed scale")
    array = np.asarray(scale.array(), dtype=np.float64)
    if array.size > 1:
        if array.ndim != 1:
            raise NoDerivative("blocked quantization")
        array = array.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
    return b.constant(array if site.node.op == "DequantizeLinear" else 1.0 / array)


def _quantize(b: Builder, site: Site) -> Sequence[Slope | None]:
    return [_scale(b, site), None, None]


RULES: Mapping[str, Rule] = {
    "Abs": _of_input(lambda b, x, s: b.node("Sign", x)),
    "Acos": _of_input(lambda b, x, s: b.node("Neg", _inverse_root(b, _square_plus(b, x, 1.0, -1.0)))),
    "Acosh": _of_input(_acosh),
    "Add": pointwise(lambda b, s: [1.0, 1.0]),
    "Affine": _of_input(lambda b, x, s: float(s.attr("alpha", 1.0))),
    "Asinh": _of_input(lambda b, x, s: _inverse_root(b, _square_plus(b, x, 1.0))),
    "Asin": _of_input(lambda b, x, s: b.node("Reciprocal", b.node("Sqrt", _square_plus(b, x, 1.0, -1.0)))),
    "Atan": _of_input(lambda b, x, s: b.node("Reciprocal", _square_plus(b, x, 1.0))),
    "Atanh": _of_input(lambda b, x, s: b.node("Reciprocal", _square_plus(b, x, 1.0, -1.0))),
    "Cast": pointwise(_cast),
    "Celu": _of_input(_celu),
    "Clip": _clip_rule,
    "Cos": _of_input(lambda b, x, s: b.node("Neg", b.node("Sin", x))),
    "Cosh": _of_input(lambda b, x, s: b.node("Sinh", x)),
    "DequantizeLinear": pointwise(_quantize),
    "Div": pointwise(_quotient),
    "Dropout": pointwise(_straight_through),
    "Elu": _of_input(_elu),
    "Erf": _of_input(_erf),
    "Exp": _of_output(lambda b, y: y),
    "Gelu": _of_input(_gelu),
    "HardSigmoid": pointwise(_hard_sigmoid),
    "HardSwish": _of_input(_hard_swish),
    "Identity": pointwise(_straight_through),
    "LeakyRelu": _of_input(_leaky),
    "Log": _of_input(lambda b, x, s: b.node("Reciprocal", x)),
    "Max": pointwise(_extreme),
    "Mean": pointwise(_mean),
    "Min": pointwise(_extreme),
    "Mish": _of_input(_mish),
    "Mod": pointwise(_remainder),
    "Mul": pointwise(_product),
    "Neg": pointwise(lambda b, s: [-1.0]),
    "PRelu": pointwise(_prelu),
    "ParametricSoftplus": _of_input(_parametric_softplus),
    "Pow": pointwise(_power),
    "QuantizeLinear": pointwise(_quantize),
    "Reciprocal": _of_output(lambda b, y: b.node("Neg", b.node("Mul", y, y))),
    "Relu": _of_output(lambda b, y: _mask(b, b.node("Greater", y, b.number(0.0)))),
    "ScaledTanh": _of_input(_scaled_tanh),
    "Selu": _of_input(_selu),
    "Sigmoid": _of_output(lambda b, y: b.node("Mul", y, _complement(b, y))),
    "Sin": _of_input(lambda b, x, s: b.node("Cos", x)),
    "Sinh": _of_input(lambda b, x, s: b.node("Cosh", x)),
    "Softplus": _of_input(lambda b, x, s: b.node("Sigmoid", x)),
    "Softsign": _of_input(_softsign),
    "Sqrt": _of_output(lambda b, y: b.node("Mul", b.node("Reciprocal", y), b.number(0.5))),
    "Sub": pointwise(lambda b, s: [1.0, -1.0]),
    "Sum": pointwise(_all_ones),
    "Swish": _of_input(_swish),
    "Tan": _of_output(lambda b, y: _square_plus(b, y, 1.0)),
    "Tanh": _of_output(lambda b, y: _complement(b, b.node("Mul", y, y))),
    "Where": pointwise(_where),
}
