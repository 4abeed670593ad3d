"""BatchNormalization whose scale, bias or statistics are computed: ``y = g (x - m) / sqrt(v + eps) + b`` in all five."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm, Upper, repeat_factor
from lipaudit.operators import interval
from lipaudit.operators.arithmetic import group_norm
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.interval import Interval
from lipaudit.operators.normalizing import affine_operand
from lipaudit.operators.range import Range, reals

__all__ = ["moving_gain", "moving_range"]

Floats = NDArray[np.float64]

# v + eps, its root, the quotient and two products: at most eight roundings of 2^-53 each.
_SLACK = 1 + 2.0**-49


def _operands(site: Site, xs: Sequence[Range | None]) -> tuple[Interval, Interval, Interval, Interval, Interval] | str:
    """Element intervals of x, g, b, m and v, the last four along the channel; or why there are none."""
    x = xs[0]
    shape = site.shape(0)
    if x is None or len(shape) < 2 or any(site.shape(i) != (shape[1],) for i in range(1, 5)):
        return "scale, bias or statistics do not go by channel"
    channel = (shape[1],) + (1,) * (len(shape) - 2)
    found = [affine_operand(xs[i], channel) for i in range(1, 5)]
    if any(operand is None for operand in found):
        return "the range of scale, bias or statistics is not known"
    g, b, m, v = (operand for operand in found if operand is not None)
    return (x.lo, x.hi), g, b, m, v


def _inverse(site: Site, v: Interval) -> Floats | str:
    """Largest ``1 / sqrt(v + eps)`` per channel."""
    least = v[0] + float(site.attr("epsilon", 1e-5))
    if not np.all(least > 0):
        return "a variance plus epsilon may be 0 or negative on this domain"
    return np.asarray(_SLACK / np.sqrt(least))


def _size(x: Interval) -> Floats:
    return np.maximum(np.abs(x[0]), np.abs(x[1]))


def moving_range(site: Site, xs: Sequence[Range | None]) -> Range:
    """The formula on intervals."""
    shape = site.out_shape()
    found = _operands(site, xs)
    if isinstance(found, str):
        return reals(shape)
    x, g, b, m, v = found
    inverse = _inverse(site, v)
    if isinstance(inverse, str):
        return reals(shape)
    least = np.where(np.isfinite(v[1]), 1 / (np.sqrt(np.maximum(v[1], 0.0) + float(site.attr("epsilon", 1e-5))) * _SLACK), 0.0)
    centred = interval.add(x, interval.negative(m))
    lo, hi = interval.add(interval.multiply(interval.multiply(centred, g), (least, inverse)), b)
    return Range(shape, lo, hi)


def moving_gain(site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
    """Largest partial derivative over the box, over the k elements of a channel that one parameter serves.

    x: ``|g| / sqrt(v + eps)``; m: ``k**(1/p)`` times it; b: ``k**(1/p)``; g: ``|(|x - m| / sqrt(v + eps))|_p``; v:
    ``|(|g| |x - m| / (2 (v + eps)^(3/2)))|_p``. The box is convex and the map is smooth on it.
    """
    found = _operands(site, xs)
    if isinstance(found, str):
        return Unknown(found)
    x, g, _, m, v = found
    shape = site.out_shape()
    copies = repeat_factor(math.prod(shape) // max(1, shape[1]), norm)
    if i == 2:
        return Finite(copies, method="copies of the bias")
    inverse = _inverse(site, v)
    if isinstance(inverse, str):
        return Unknown(inverse)
    with np.errstate(invalid="ignore", over="ignore"):
        steep = np.asarray(_size(g) * inverse * _SLACK)
        if i in (0, 3):
            slope = Upper(float(np.max(steep, initial=0.0))) * (copies if i == 3 else Upper(1))
        else:
            reach = _size(interval.add(x, interval.negative(m))) * inverse
            sizes = reach if i == 1 else reach * steep * inverse / 2
            axes = tuple(axis for axis in range(len(shape)) if axis != 1)
            slope = Upper(group_norm(np.asarray(np.nan_to_num(sizes * _SLACK, nan=np.inf)), shape, axes, norm))
    if not slope.is_finite:
        return Unbounded("the scale, the input or the running mean is not bounded on this domain")
    return Finite(slope, method="largest partial derivative on the box")
