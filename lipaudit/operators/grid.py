"""The grids of quantised types: what values there are, and how far rounding to the nearest of them can separate two numbers.

Rounding to the nearest point of a grid whose largest gap is g moves two numbers apart by at most g more than they were:
``|Q(x) - Q(y)| <= |x - y| + g`` (a full step, not half of one; both are attained). Saturation never adds gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "along_axis", "grid_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grid:
    """Smallest and largest value, largest gap, and whether the values are integers."""

    lo: float
    hi: float
    gap: float = 1.0
    integral: bool = True


# ONNX: "saturating" conversion; the largest gap lies below the largest finite value.
_FLOATS = {
    "float8_e4m3fn": Grid(-448.0, 448.0, 32.0, False),
    "float8_e4m3fnuz": Grid(-240.0, 240.0, 16.0, False),
    "float8_e5m2": Grid(-57344.0, 57344.0, 8192.0, False),
    "float8_e5m2fnuz": Grid(-57344.0, 57344.0, 8192.0, False),
    "float4_e2m1fn": Grid(-6.0, 6.0, 2.0, False),
}


def grid_of(dtype: str) -> Grid | None:
    """The grid of an integer or small float type by its ONNX name; None for others."""
    if dtype in _FLOATS:
        return _FLOATS[dtype]
    for prefix, signed in (("uint", False), ("int", True)):
        if dtype.startswith(prefix) and dtype[len(prefix) :].isdigit():
            bits = int(dtype[len(prefix) :])
            return Grid(-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)) if signed else Grid(0.0, float(2**bits - 1))
    return None


def along_axis(values: Floats, shape: tuple[int, ...], axis: int, block: int) -> Floats | None:
    """A scale or zero point as an array that broadcasts to ``shape``: of the tensor, per ``axis``, or per block of it.

    None if its shape fits none of these.
    """
    if values.size == 1:
        return values.reshape(())
    rank = len(shape)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis < rank:
        return None
    if values.ndim == 1 and block == 0:
        if values.size != shape[axis]:
            return None
        return values.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))
    if values.ndim == rank and block > 0:
        repeated = np.repeat(values, block, axis=axis)
        if repeated.shape[axis] < shape[axis]:
            return None
        kept = np.take(repeated, range(shape[axis]), axis=axis)
        return kept if kept.shape == shape else None
    return None
