"""Resize and Upsample: nearest as a selection, linear and cubic as one matrix per axis (``resize_axes`` makes them).

In real arithmetic linear and cubic interpolation are continuous in the coordinate; nearest is not, so an output within 1e-5 of a tie
counts for both neighbours (runtimes compute coordinates in float32), unless the scale is a power of two and float32 is exact. With
cropping the same holds at the border of the image, beyond which an output is a stored number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, Norm, repeat_factor
from lipaudit.operators.averages import AxisMatrix, average_gain, average_operator
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.flow import Flow
from lipaudit.operators.movement import integers
from lipaudit.operators.range import Range, reals
from lipaudit.operators.resize_axes import TIE, ResizeAxis, cubic, nearest, placed, stretched

__all__ = ["Resize"]

Floats = NDArray[np.float64]

_CROP = "tf_crop_and_resize"
_MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric", _CROP)


class Resize(Rule):
    """All versions of Resize and Upsample.

    Antialiasing stretches the kernel of an axis that shrinks. Beyond the border the specification repeats the edge, where runtimes
    renormalise the weights inside: the gain is the larger of both.
    """

    def _mode(self, site: Site) -> str:
        mode = str(site.attr("mode", "nearest"))
        return {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)

    def _coordinates(self, site: Site) -> str:
        if site.node.op == "Upsample" or site.node.version < 11:
            return "asymmetric"
        return str(site.attr("coordinate_transformation_mode", "half_pixel"))

    def _scales(self, site: Site) -> Sequence[float | Fraction] | str | None:
        """Scales of all axes; None if sizes are given; a sentence if they are not constant."""
        node = site.node
        rank = len(site.shape(0))
        if "scales" in node.attrs:
            return [float(x) for x in node.attrs["scales"]]
        if "height_scale" in node.attrs:
            return [1.0, 1.0, float(node.attrs["height_scale"]), float(node.attrs["width_scale"])]
        at = 2 if node.op == "Resize" and node.version >= 11 else 1
        if not site.has(at) or site.shape(at) == (0,):
            return None
        constant = site.constant(at)
        if constant is None:
            return "the scales are not constant"
        given = [float(x) for x in np.asarray(constant.array()).ravel()]
        if not given:
            return None
        axes = [int(axis) % rank for axis in site.attr("axes") or range(rank)]
        full = [1.0] * rank
        for axis, scale in zip(axes, given, strict=False):
            full[axis] = scale
        return full

    def _axes(self, site: Site) -> list[ResizeAxis] | str:
        if self._coordinates(site) not in _MODES:
            return f"coordinate_transformation_mode {self._coordinates(site)!r} has no rule"
        if self._mode(site) not in ("nearest", "linear", "cubic"):
            return f"mode {self._mode(site)!r} has no rule"
        scales = self._scales(site)
        if scales is None:
            scales = self._common_scale(site)
        crops = self._crops(site)
        if isinstance(scales, str) or isinstance(crops, str):
            return scales if isinstance(scales, str) else str(crops)
        found: list[ResizeAxis] = []
        for axis, (n, o) in enumerate(zip(site.shape(0), site.out_shape(), strict=True)):
            scale = Fraction(scales[axis]) if scales is not None else (Fraction(o, n) if n else Fraction(1))
            if scale <= 0 or n == 0 or o == 0:
                return "an axis is empty or its scale is not positive"
            crop = crops[axis] if crops is not None else None
            if n == o and scale == 1 and crop in (None, (0, 1)):
                continue
            found.append(ResizeAxis(axis, n, o, scale, crop))
        return found

    def _common_scale(self, site: Site) -> list[Fraction] | str | None:
        """One scale for all resized axes where the aspect ratio is kept: the least or the largest of those that the sizes ask for."""
        policy = str(site.attr("keep_aspect_ratio_policy", "stretch"))
        if policy == "stretch":
            return None
        if policy not in ("not_larger", "not_smaller"):
            return f"keep_aspect_ratio_policy {policy!r} is not one that is known"
        sizes, shape = integers(site, 3, "sizes"), site.shape(0)
        axes = [int(axis) % len(shape) for axis in site.attr("axes") or range(len(shape))]
        if sizes is None or len(sizes) != len(axes) or any(shape[axis] == 0 for axis in axes) or not axes:
            return "the sizes are not constant"
        asked = [Fraction(size, shape[axis]) for size, axis in zip(sizes, axes, strict=True)]
        common = min(asked) if policy == "not_larger" else max(asked)
        return [common if axis in axes else Fraction(1) for axis in range(len(shape))]

    def _crops(self, site: Site) -> list[tuple[Fraction, Fraction]] | str | None:
        """For ``tf_crop_and_resize`` begin and end of each axis, in units of its length."""
        if self._coordinates(site) != _CROP:
            return None
        constant, rank = site.constant(1), len(site.shape(0))
        if constant is None:
            return "the region that is cropped (roi) is not constant"
        numbers = [Fraction(float(x)) for x in np.asarray(constant.array()).ravel()]
        axes = [int(axis) % rank for axis in site.attr("axes") or range(rank)]
        if len(numbers) != 2 * len(axes):
            return "the region that is cropped (roi) does not fit the axes"
        found = [(Fraction(0), Fraction(1))] * rank
        for k, axis in enumerate(axes):
            found[axis] = (numbers[k], numbers[k + len(axes)])
        return found

    def _leaves(self, site: Site, axes: Sequence[ResizeAxis]) -> bool:
        """True if an output may be the stored number for what lies outside."""
        mode = self._coordinates(site)
        return any(axis.may_leave(axis.coordinate(o, mode)) for axis in axes if axis.crop is not None for o in range(axis.outputs))

    # ------------------------------------------------------------------ nearest

    def _choices(self, site: Site, axis: ResizeAxis) -> list[tuple[int, ...]]:
        """For each output the inputs that it may copy (two near a tie)."""
        legacy = site.node.op == "Upsample" or site.node.version < 11
        rounding = "floor" if legacy else str(site.attr("nearest_mode", "round_prefer_floor"))
        mode = self._coordinates(site)
        found: list[tuple[int, ...]] = []
        for o in range(axis.outputs):
            x = axis.coordinate(o, mode)
            if axis.must_leave(x):
                found.append(())
                continue
            candidates = {nearest(x, rounding)}
            if not axis.exact:
                candidates |= {nearest(x - TIE, rounding), nearest(x + TIE, rounding)}
            found.append(tuple(sorted({min(max(i, 0), axis.inputs - 1) for i in candidates})))
        return found

    def _copies(self, site: Site, axes: Sequence[ResizeAxis]) -> int:
        copies = 1
        for axis in axes:
            counts = np.zeros(axis.inputs, dtype=np.int64)
            for choice in self._choices(site, axis):
                counts[list(choice)] += 1
            copies *= int(counts.max())
        return copies

    # ------------------------------------------------------------------ linear and cubic

    def _matrices(self, site: Site, axes: Sequence[ResizeAxis], *, inside: bool = False) -> list[AxisMatrix]:
        """``inside``: weights beyond the border are left out and the rest renormalised, whatever the attributes say."""
        mode, is_cubic = self._coordinates(site), self._mode(site) == "cubic"
        a = Fraction(float(site.attr("cubic_coeff_a", -0.75)))
        outside = inside or (bool(site.attr("exclude_outside", 0)) and (is_cubic or self._antialiased(site, axes)))
        smooth = bool(site.attr("antialias", 0))
        matrices: list[AxisMatrix] = []
        for axis in axes:
            rows: list[Mapping[int, Fraction]] = []
            for o in range(axis.outputs):
                x = axis.coordinate(o, mode)
                if axis.must_leave(x):
                    rows.append({})
                    continue
                base = math.floor(x)
                if smooth and axis.scale < 1:
                    weights = stretched(x - base, axis.scale, a if is_cubic else None)
                else:
                    weights = cubic(x - base, a) if is_cubic else {0: 1 - (x - base), 1: x - base}
                rows.append(placed(weights, base, axis.inputs, outside))
            matrices.append(AxisMatrix(axis.axis, axis.inputs, tuple(rows)))
        return matrices

    def _antialiased(self, site: Site, axes: Sequence[ResizeAxis]) -> bool:
        return bool(site.attr("antialias", 0)) and any(axis.scale < 1 for axis in axes)

    # ------------------------------------------------------------------ the questions

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Nearest and linear stay between the ends; cubic overshoots: its matrices on the intervals. Cropping adds a number."""
        x, shape = xs[0], site.out_shape()
        axes = self._axes(site)
        if x is None or isinstance(axes, str):
            return (reals(shape),)
        found = self._reach(site, x, axes)
        if not self._leaves(site, axes):
            return (found,)
        new = float(site.attr("extrapolation_value", 0.0))
        return (Range(shape, np.minimum(found.lo, new), np.maximum(found.hi, new)),)

    def _reach(self, site: Site, x: Range, axes: Sequence[ResizeAxis]) -> Range:
        """Range of what reads the input."""
        mode, shape = self._mode(site), site.out_shape()
        if mode != "cubic" or not axes:
            lo, hi = np.broadcast_arrays(x.lo, x.hi)
            lo, hi = (end.reshape((1,) * (len(shape) - end.ndim) + end.shape) for end in (lo, hi))
            for axis in axes:
                if lo.shape[axis.axis] == 1:
                    continue
                choices = self._choices(site, axis) if mode == "nearest" else self._reads(site, axis)
                choices = [choice or (0,) for choice in choices]  # outside: replaced by the stored number
                lo = np.stack([lo.take(choice, axis=axis.axis).min(axis=axis.axis) for choice in choices], axis=axis.axis)
                hi = np.stack([hi.take(choice, axis=axis.axis).max(axis=axis.axis) for choice in choices], axis=axis.axis)
            return Range(shape, lo, hi, integral=x.integral and mode == "nearest")
        if not np.any(np.isfinite(x.lo)) and not np.any(np.isfinite(x.hi)):
            return reals(shape)
        lo, hi = average_operator(self._matrices(site, axes), site.shape(0)).enclose(x.lo, x.hi)
        if self._antialiased(site, axes):
            other = average_operator(self._matrices(site, axes, inside=True), site.shape(0)).enclose(x.lo, x.hi)
            lo, hi = np.minimum(lo, other[0]), np.maximum(hi, other[1])
        return Range(shape, lo, hi)

    def _reads(self, site: Site, axis: ResizeAxis) -> list[tuple[int, ...]]:
        """For each output the inputs with a weight."""
        return [tuple(row) for row in self._matrices(site, [axis])[0].rows]

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            return Unknown("sizes or scales depend on the source")
        axes = self._axes(site)
        if isinstance(axes, str):
            return Unknown(axes)
        if not axes:
            return Finite(ONE, method="identity")
        if self._mode(site) == "nearest":
            copies = self._copies(site, axes)
            return Finite(repeat_factor(copies, norm), method="selection", evidence={"copies": copies})
        found = average_gain(self._matrices(site, axes), norm)
        if not self._antialiased(site, axes):
            return found
        other = average_gain(self._matrices(site, axes, inside=True), norm)
        return other if isinstance(other, Finite) and isinstance(found, Finite) and other.slope > found.slope else found

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        axes = self._axes(site)
        if i or isinstance(axes, str) or not axes:
            return None
        if self._antialiased(site, axes) or self._leaves(site, axes):
            return None
        if self._mode(site) != "nearest":
            return average_operator(self._matrices(site, axes), site.shape(0))
        choices = {axis.axis: self._choices(site, axis) for axis in axes}
        if any(len(choice) > 1 for found in choices.values() for choice in found):
            return None
        shape = site.shape(0)

        def index() -> NDArray[np.int64]:
            positions = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
            for axis, found in choices.items():
                positions = np.take(positions, [choice[0] for choice in found], axis=axis)
            return positions

        return Selection(shape, site.out_shape(), index, self._copies(site, axes))

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        flow, gain, axes = flows[0], gains[0], self._axes(site)
        whole = flow is None or len(flow.rows) == 1 or any(other is not None for other in flows[1:])
        if flow is None or gain is None or whole or isinstance(axes, str) or any(axis.axis == flow.axis for axis in axes):
            return super().flow(site, flows, gains, norm)
        return (scaled(site, flow, gain, norm, keep_parts=True),)
