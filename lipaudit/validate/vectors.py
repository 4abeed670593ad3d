"""Vector norms in float64 with their rounding error, and the maps that a norm's steepest directions need."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Lower, Norm, Upper

__all__ = ["aligned", "dual_vector", "lower_norm", "norm_of", "unit", "upper_norm"]

Floats = NDArray[np.float64]


def aligned(array: NDArray[Any], dtype: Any = None) -> NDArray[Any]:
    """A copy of ``array`` in C order that begins at a multiple of 64 bytes.

    onnxruntime's sums (ReduceMean, ReduceSum) add in an order that depends on where their operand begins in memory: from one run to the
    next the last digit would change, and a search amplifies that. What onnxruntime allocates begins so, what numpy allocates does not.
    """
    wanted = np.dtype(array.dtype if dtype is None else dtype)
    room = np.empty(array.size * wanted.itemsize + 64, dtype=np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    result = room[start : start + array.size * wanted.itemsize].view(wanted).reshape(array.shape)
    result[...] = array
    return result


def norm_of(v: Floats, norm: Norm) -> float:
    """The norm of a flat vector, without overflow or underflow of squares."""
    if v.size == 0:
        return 0.0
    top = float(np.abs(v).max())
    if norm == "linf" or top == 0.0 or not math.isfinite(top):
        return top
    scaled = v / top
    return top * float(np.abs(scaled).sum() if norm == "l1" else math.sqrt(float(np.dot(scaled, scaled))))


def _slack(v: Floats) -> float:
    # n products, n sums, two divisions and a root, each off by at most 2^-53 relative: (2n + 8) 2^-53, doubled.
    return (2 * v.size + 16) * 2.0**-52


def lower_norm(v: Floats, norm: Norm, error: float = 0.0) -> Lower:
    """Not above the norm of any vector within ``error`` (in that norm) of ``v``."""
    value = norm_of(v, norm) * (1.0 - _slack(v)) - error * (1.0 + 2.0**-50)
    return Lower(max(0.0, math.nextafter(value, -math.inf))) if math.isfinite(value) else Lower(0)


def upper_norm(v: Floats, norm: Norm, error: float = 0.0) -> Upper:
    """Not below the norm of any vector within ``error`` of ``v``."""
    value = norm_of(v, norm) * (1.0 + _slack(v)) + error * (1.0 + 2.0**-50)
    if value == 0.0:
        return Upper(0)
    return Upper(math.nextafter(value, math.inf)) if not math.isnan(value) else Upper(math.inf)


def unit(v: Floats, norm: Norm) -> Floats:
    """``v`` over its norm (``v`` itself if it is zero)."""
    size = norm_of(v, norm)
    return v / size if size > 0 else v


def dual_vector(v: Floats, norm: Norm) -> Floats:
    """A vector w with dual norm 1 and <w, v> = |v|: the gradient of the norm at ``v``."""
    if norm == "l2":
        return unit(v, "l2")
    if norm == "l1":
        return np.sign(v)
    hot = np.zeros_like(v)
    if v.size:
        i = int(np.argmax(np.abs(v)))
        hot[i] = np.sign(v[i])
    return hot
