"""Elementwise operators in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
from scipy import special

from lipaudit.validate.exact.call import Array, Call, NotExact, Operator, is_float

__all__ = ["OPERATORS"]

_INTEGERS = {6: np.int32, 7: np.int64, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 12: np.uint32, 13: np.uint64}
_FLOATS = {1, 10, 11, 16, 17, 18, 19, 20}


def _unary(function: Callable[[Array], Array]) -> Operator:
    return lambda call: function(call.x())


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    def run(call: Call) -> Array:
        a, b = call.x(0), call.x(1)
        # Below version 7 broadcasting is an attribute: the second operand is aligned at ``axis``.
        if call.version < 7 and call.site.attr("broadcast", 0):
            axis = call.site.attr("axis")
            if axis is not None:
                b = b.reshape(b.shape + (1,) * (a.ndim - (axis % a.ndim) - b.ndim))
        return function(a, b)

    return run


def _many(function: Callable[[Array, Array], Array]) -> Operator:
    return lambda call: reduce(function, [x for x in call.xs if x is not None])


def _divide(a: Array, b: Array) -> Array:
    if is_float(a) or is_float(b):
        return a / b
    quotient = np.floor_divide(np.abs(a), np.abs(b))
    return (np.sign(a) * np.sign(b) * quotient).astype(a.dtype)


def _power(a: Array, b: Array) -> Array:
    if b.size == 1 and float(b.reshape(-1)[0]) in {1.0, 2.0, 3.0}:
        exponent = int(b.reshape(-1)[0])
        result = reduce(np.multiply, [a] * exponent)
        return result.reshape(np.broadcast_shapes(a.shape, b.shape))
    return np.power(a, b).astype(a.dtype)


def _mod(call: Call) -> Array:
    a, b = call.x(0), call.x(1)
    return np.fmod(a, b) if call.site.attr("fmod", 0) else np.mod(a, b)


def _mean(call: Call) -> Array:
    xs = [x for x in call.xs if x is not None]
    return reduce(np.add, xs) / len(xs)


def _leaky(call: Call) -> Array:
    x = call.x()
    return np.where(x < 0, x * float(np.float32(call.site.attr("alpha", 0.01))), x)


def _prelu(call: Call) -> Array:
    x, slope = call.x(0), call.x(1)
    if call.version < 7 and slope.ndim == 1 and slope.size > 1 and x.ndim > 2:
        slope = slope.reshape((-1,) + (1,) * (x.ndim - 2))
    return np.where(x < 0, x * slope, x)


def _thresholded(call: Call) -> Array:
    x = call.x()
    return np.where(x > call.site.attr("alpha", 1.0), x, 0.0)


def _elu(call: Call) -> Array:
    x = call.x()
    return np.where(x < 0, call.site.attr("alpha", 1.0) * np.expm1(np.minimum(x, 0)), x)


def _celu(call: Call) -> Array:
    x, alpha = call.x(), call.site.attr("alpha", 1.0)
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _selu(call: Call) -> Array:
    x, alpha, gamma = call.x(), call.site.attr("alpha"), call.site.attr("gamma")
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), stable."""
    return special.expit(x)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _hard_sigmoid(call: Call) -> Array:
    return np.clip(call.site.attr("alpha", 0.2) * call.x() + call.site.attr("beta", 0.5), 0, 1)


def _hard_swish(call: Call) -> Array:
    x = call.x()
    return x * np.clip(x / 6 + 0.5, 0, 1)


def _swish(call: Call) -> Array:
    x = call.x()
    return x * sigmoid(call.site.attr("alpha", 1.0) * x)


def gelu_erf(x: Array) -> Array:
    """x * Phi(x)."""
    return x * special.ndtr(x)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu(call: Call) -> Array:
    return gelu_tanh(call.x()) if call.site.attr("approximate", "none") == "tanh" else gelu_erf(call.x())


def _clip(call: Call) -> Array:
    x = call.x()
    if call.version >= 11:
        lo, hi = call.optional(1), call.optional(2)
    else:
        lo, hi = call.site.attr("min"), call.site.attr("max")
    if lo is not None:
        x = np.maximum(x, lo)
    if hi is not None:
        x = np.minimum(x, hi)
    return x


def _where(call: Call) -> Array:
    return np.where(call.x(0), call.x(1), call.x(2))


def cast(x: Array, to: int, floating: np.dtype[Any]) -> Array:
    """Cast to an ONNX type; every float type is the working precision (the mathematical function has no float types)."""
    if to in _FLOATS:
        return x.astype(floating)
    if to == 9:
        return x.astype(np.bool_)
    if to in _INTEGERS:
        with np.errstate(invalid="ignore"):
            return x.astype(_INTEGERS[to])
    raise NotExact(f"Cast to ONNX type {to} has no float64 evaluation")


def _cast(call: Call) -> Array:
    return cast(call.x(), int(call.site.attr("to")), call.floating)


def _cast_like(call: Call) -> Array:
    return call.x(0).astype(call.x(1).dtype)


def _is_inf(call: Call) -> Array:
    x = call.x()
    found = np.zeros(x.shape, dtype=np.bool_)
    if call.site.attr("detect_positive", 1):
        found |= np.isposinf(x)
    if call.site.attr("detect_negative", 1):
        found |= np.isneginf(x)
    return found


def _dropout(call: Call) -> Array | tuple[Array, ...]:
    training = call.optional(2)
    if training is not None and bool(training.reshape(-1)[0]):
        raise NotExact("Dropout in training mode")
    x = call.x()
    outputs = call.site.node.outputs
    # The mask of an inference Dropout is all true.
    return x if len(outputs) < 2 or not outputs[1] else (x, np.ones(x.shape, dtype=np.bool_))


def _affine(call: Call) -> Array:
    return call.site.attr("alpha", 1.0) * call.x() + call.site.attr("beta", 0.0)


def _parametric_softplus(call: Call) -> Array:
    return call.site.attr("alpha", 1.0) * _softplus(call.site.attr("beta", 1.0) * call.x())


def _scaled_tanh(call: Call) -> Array:
    return call.site.attr("alpha", 1.0) * np.tanh(call.site.attr("beta", 1.0) * call.x())


OPERATORS: Mapping[str, Operator] = {
    "Abs": _unary(np.abs),
    "Acos": _unary(np.arccos),
    "Acosh": _unary(np.arccosh),
    "Add": _binary(np.add),
    "Affine": _affine,
    "And": _binary(np.logical_and),
    "Asin": _unary(np.arcsin),
    "Asinh": _unary(np.arcsinh),
    "Atan": _unary(np.arctan),
    "Atanh": _unary(np.arctanh),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _unary(np.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _unary(np.cos),
    "Cosh": _unary(np.cosh),
    "Div": _binary(_divide),
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": _binary(np.equal),
    "Erf": _unary(special.erf),
    "Exp": _unary(np.exp),
    "Floor": _unary(np.floor),
    "Gelu": _gelu,
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _unary(lambda x: x),
    "IsInf": _is_inf,
    "IsNaN": _unary(np.isnan),
    "LeakyRelu": _leaky,
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Log": _unary(np.log),
    "Max": _many(np.maximum),
    "Mean": _mean,
    "Min": _many(np.minimum),
    "Mish": _unary(lambda x: x * np.tanh(_softplus(x))),
    "Mod": _mod,
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Or": _binary(np.logical_or),
    "PRelu": _prelu,
    "Pow": _binary(_power),
    "Reciprocal": _unary(np.reciprocal),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Round": _unary(np.round),
    "Selu": _selu,
    "Sigmoid": _unary(sigmoid),
    "Sign": _unary(np.sign),
    "Sin": _unary(np.sin),
    "Sinh": _unary(np.sinh),
    "ParametricSoftplus": _parametric_softplus,
    "ScaledTanh": _scaled_tanh,
    "Softplus": _unary(_softplus),
    "Softsign": _unary(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _unary(np.sqrt),
    "Sub": _binary(np.subtract),
    "Sum": _many(np.add),
    "Swish": _swish,
    "Tan": _unary(np.tan),
    "Tanh": _unary(np.tanh),
    "ThresholdedRelu": _thresholded,
    "Where": _where,
    "Xor": _binary(np.logical_xor),
}
