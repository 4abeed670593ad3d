"""Quantisation alone: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear. Integers are reals here, rounding is an offset."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.grid import Grid, along_axis, grid_of
from lipaudit.operators.interval import Interval, add, divide, multiply, negative
from lipaudit.operators.outputs import SeveralOutputs, jointly
from lipaudit.operators.range import Range, reals, up

__all__ = ["DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"]

Floats = NDArray[np.float64]


def _placed(site: Site, i: int) -> Floats | Unknown | None:
    """Stored input ``i`` as an array that broadcasts to the data; None if it is omitted."""
    if not site.has(i):
        return None
    constant = site.constant(i)
    if constant is None:
        return Unknown("a scale or zero point that is not a stored constant has no rule here")
    block = int(site.attr("block_size", 0) or 0)
    found = along_axis(constant.float64(), site.shape(0), int(site.attr("axis", 1)), block)
    return found if found is not None else Unknown(f"a scale of shape {constant.shape} does not fit the data")


class QuantizeLinear(Rule):
    """``saturate(round(x / s) + z)``: gain 1/s and a jump of one step per element."""

    def _parts(self, site: Site) -> tuple[Floats, Floats, Grid] | Unknown:
        scale, zero = _placed(site, 1), _placed(site, 2)
        if isinstance(scale, Unknown):
            return scale
        if isinstance(zero, Unknown):
            return zero
        if scale is None or not (np.all(scale > 0) and np.all(np.isfinite(scale))):
            return Unknown("a quantisation scale is not positive")
        out = site.outputs[0]
        grid = grid_of(out.dtype) if out is not None else None
        if grid is None:
            return Unknown(f"quantisation to {out.dtype if out is not None else 'nothing'!r} has no rule")
        return scale, np.zeros(()) if zero is None else zero, grid

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Within the type; rounding is monotone, so the ends of a bounded input round to the ends of the output."""
        parts, shape = self._parts(site), site.out_shape()
        if isinstance(parts, Unknown) or xs[0] is None:
            return (reals(shape),)
        scale, zero, grid = parts
        lo, hi = divide((xs[0].lo, xs[0].hi), (scale, scale))
        lo, hi = (np.rint(lo), np.rint(hi)) if grid.integral else (lo - grid.gap, hi + grid.gap)
        lo, hi = np.clip(lo + zero, grid.lo, grid.hi), np.clip(hi + zero, grid.lo, grid.hi)
        return (Range(shape, lo, hi, integral=grid.integral),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """``(1/s, g)`` per element, g the largest gap of the grid (1 for integers)."""
        if i != 0:
            return Unknown("a moving scale or zero point of QuantizeLinear has no rule")
        parts, x = self._parts(site), xs[0]
        if isinstance(parts, Unknown):
            return parts
        scale, _, grid = parts
        if not grid.integral and not int(site.attr("saturate", 1)):
            top = math.inf if x is None else x.magnitude() / float(np.min(scale))
            if not top <= grid.hi:
                return Unknown("without saturation, values beyond the largest number of the type become NaN on this domain")
        step = repeat_factor(math.prod(site.shape(0)), norm) * Upper(grid.gap)
        return Finite(ONE / Lower(float(np.min(scale))), step, method="one full step of the grid per element")


class DequantizeLinear(Rule):
    """``(q - z) * s``: gain max s; a moving scale multiplies ``q - z``."""

    def _interval(self, site: Site, xs: Sequence[Range | None], i: int) -> Interval | None:
        x = xs[i] if i < len(xs) else None
        if x is None:
            return None
        block = int(site.attr("block_size", 0) or 0)
        lo, hi = np.broadcast_arrays(x.lo, x.hi)
        if lo.size == 1:
            return lo.reshape(()), hi.reshape(())
        ends = [along_axis(np.broadcast_to(end, x.shape), site.shape(0), int(site.attr("axis", 1)), block) for end in (lo, hi)]
        if ends[0] is None or ends[1] is None:
            return np.asarray(np.min(lo)), np.asarray(np.max(hi))
        return ends[0], ends[1]

    def _parts(self, site: Site, xs: Sequence[Range | None]) -> tuple[Interval, Interval]:
        """Ranges of ``q - z`` and of s."""
        q = (np.asarray(-np.inf), np.asarray(np.inf)) if xs[0] is None else (xs[0].lo, xs[0].hi)
        zero = self._interval(site, xs, 2)
        scale = self._interval(site, xs, 1) or (np.asarray(-np.inf), np.asarray(np.inf))
        return (q if zero is None else add(q, negative(zero))), scale

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """By interval arithmetic."""
        shifted, scale = self._parts(site, xs)
        return (Range(site.out_shape(), *multiply(shifted, scale)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """max |s|; from the scale ``max |q - z|`` and from the zero point ``max |s|``, times the copies."""
        shifted, scale = self._parts(site, xs)
        steepest = float(np.max(np.maximum(np.abs(scale[0]), np.abs(scale[1])), initial=0.0))
        if i == 1:
            largest, what = float(np.max(np.maximum(np.abs(shifted[0]), np.abs(shifted[1])), initial=0.0)), "the quantised value"
        else:
            largest, what = steepest, "the scale"
        if not math.isfinite(largest):
            return Unbounded(f"{what} is unbounded on this domain and multiplies the input")
        copies = math.prod(site.shape(0)) // max(1, math.prod(site.shape(i))) if i else 1
        return Finite(repeat_factor(copies, norm) * Upper(largest), method="scale")


class DynamicQuantizeLinear(SeveralOutputs):
    """uint8 with a scale from the data: outputs q (jumps by up to 255), scale, zero point (jumps).

    Scale ``(max(x, 0) - min(x, 0)) / 255``: gain 1/255, sqrt(2)/255, 2/255 in l1, l2, linf, and 1/255 if x
    keeps one sign. ONNX divides by it even if all of x
    is 0; ONNX Runtime then takes 1 for it, so it jumps by up to 1 where x may be 0.
    """

    @staticmethod
    def _may_vanish(x: Range) -> bool:
        return bool(np.all(x.lo <= 0) and np.all(x.hi >= 0))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Bytes; the scale from the reach of x."""
        byte = (np.asarray(0.0), np.asarray(255.0))
        found = [Range(site.out_shape(), *byte, integral=True)]
        if len(site.outputs) > 1:
            x = xs[0]
            top = (
                math.inf
                if x is None or not x.is_bounded
                else float(max(np.max(x.hi, initial=0.0), 0.0) - min(np.min(x.lo, initial=0.0), 0.0))
            )
            least = 1.0 if x is None or self._may_vanish(x) else 0.0
            found.append(Range((), np.asarray(0.0), np.asarray(max(least, float(up(up(top) / 255))))))
        if len(site.outputs) > 2:
            found.append(Range((), *byte, integral=True))
        return tuple(found)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """On a bounded range; on all reals the rounding step grows with x and no affine bound of the dequantised value exists."""
        x = xs[0]
        if x is None or not x.is_bounded:
            return Unbounded("the rounding step is (max x - min x)/255 and grows with the input: give the input a box")
        # An extremum that the range keeps on the far side of 0 does not count.
        ends = max(1, int(np.any(x.hi > 0)) + int(np.any(x.lo < 0)))
        scale = {"l1": Upper(1), "l2": Upper(ends).sqrt(), "linf": Upper(ends)}[norm] / Lower(255)
        whole = Upper(255)
        parts = (
            Finite(ZERO, whole * repeat_factor(x.size, norm), method="any byte"),
            Finite(scale, ONE if self._may_vanish(x) else ZERO, method="largest minus smallest element"),
            Finite(ZERO, whole, method="any byte"),
        )
        return jointly(parts[: max(1, len(site.outputs))], norm)
