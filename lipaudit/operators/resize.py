"""Resize and Upsample: nearest as a selection, linear and cubic as one matrix per axis.

Coordinates are exact rationals of the stored (float32) scales; weights follow from them exactly. In real arithmetic linear and
cubic interpolation are continuous in the coordinate; nearest is not, so an output within 1e-5 of a tie counts for both neighbours
(runtimes compute coordinates in float32), unless the scale is a power of two and float32 is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Selection
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, Norm, repeat_factor
from lipaudit.operators.averages import AxisMatrix, average_gain, average_operator
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.flow import Flow
from lipaudit.operators.range import Range, reals

__all__ = ["Resize"]

Floats = NDArray[np.float64]

_TIE = Fraction(1, 100_000)
_HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: lengths, scale, and whether float32 coordinates are exact."""

    axis: int
    inputs: int
    outputs: int
    scale: Fraction

    @property
    def exact(self) -> bool:
        """True if float32 computes the coordinates exactly."""
        top, bottom = self.scale.numerator, self.scale.denominator
        return top & (top - 1) == 0 and bottom & (bottom - 1) == 0 and max(self.inputs, self.outputs) < 1 << 20

    def coordinate(self, o: int, mode: str) -> Fraction:
        """Position in the input that output ``o`` reads."""
        if mode == "asymmetric":
            return o / self.scale
        if mode == "align_corners":
            return Fraction(o * (self.inputs - 1), self.outputs - 1) if self.outputs > 1 else Fraction(0)
        if mode == "pytorch_half_pixel" and self.outputs == 1:
            return Fraction(0)
        x = (o + _HALF) / self.scale - _HALF
        if mode == "half_pixel_symmetric":
            # The output is centred: adjustment = real output length / (scale * input length).
            x += Fraction(self.inputs, 2) * (1 - self.outputs / (self.scale * self.inputs))
        return x


_MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


class Resize(Rule):
    """All versions of Resize and Upsample without antialiasing and cropping (those are refused with the reason)."""

    def _mode(self, site: Site) -> str:
        mode = str(site.attr("mode", "nearest"))
        return {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)

    def _coordinates(self, site: Site) -> str:
        if site.node.op == "Upsample" or site.node.version < 11:
            return "asymmetric"
        return str(site.attr("coordinate_transformation_mode", "half_pixel"))

    def _scales(self, site: Site) -> list[float] | str | None:
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

    def _axes(self, site: Site) -> list[_Axis] | str:
        if self._coordinates(site) not in _MODES:
            return f"coordinate_transformation_mode {self._coordinates(site)!r} has no rule"
        if site.attr("antialias", 0):
            return "antialias=1 has no rule"
        if str(site.attr("keep_aspect_ratio_policy", "stretch")) != "stretch":
            return "keep_aspect_ratio_policy other than 'stretch' has no rule"
        if self._mode(site) not in ("nearest", "linear", "cubic"):
            return f"mode {self._mode(site)!r} has no rule"
        scales = self._scales(site)
        if isinstance(scales, str):
            return scales
        found: list[_Axis] = []
        for axis, (n, o) in enumerate(zip(site.shape(0), site.out_shape(), strict=True)):
            scale = Fraction(scales[axis]) if scales is not None else (Fraction(o, n) if n else Fraction(1))
            if scale <= 0 or n == 0 or o == 0:
                return "an axis is empty or its scale is not positive"
            if n == o and scale == 1:
                continue
            found.append(_Axis(axis, n, o, scale))
        return found

    # ------------------------------------------------------------------ nearest

    def _choices(self, site: Site, axis: _Axis) -> list[tuple[int, ...]]:
        """For each output the inputs that it may copy (two near a tie)."""
        legacy = site.node.op == "Upsample" or site.node.version < 11
        rounding = "floor" if legacy else str(site.attr("nearest_mode", "round_prefer_floor"))
        mode = self._coordinates(site)
        found: list[tuple[int, ...]] = []
        for o in range(axis.outputs):
            x = axis.coordinate(o, mode)
            candidates = {_nearest(x, rounding)}
            if not axis.exact:
                candidates |= {_nearest(x - _TIE, rounding), _nearest(x + _TIE, rounding)}
            found.append(tuple(sorted({min(max(i, 0), axis.inputs - 1) for i in candidates})))
        return found

    def _copies(self, site: Site, axes: Sequence[_Axis]) -> int:
        copies = 1
        for axis in axes:
            counts = np.zeros(axis.inputs, dtype=np.int64)
            for choice in self._choices(site, axis):
                counts[list(choice)] += 1
            copies *= int(counts.max())
        return copies

    # ------------------------------------------------------------------ linear and cubic

    def _matrices(self, site: Site, axes: Sequence[_Axis]) -> list[AxisMatrix]:
        mode, cubic = self._coordinates(site), self._mode(site) == "cubic"
        a = Fraction(float(site.attr("cubic_coeff_a", -0.75)))
        outside = bool(site.attr("exclude_outside", 0))
        matrices: list[AxisMatrix] = []
        for axis in axes:
            rows: list[Mapping[int, Fraction]] = []
            for o in range(axis.outputs):
                x = axis.coordinate(o, mode)
                base = math.floor(x)
                weights = _cubic(x - base, a) if cubic else {0: 1 - (x - base), 1: x - base}
                rows.append(_placed(weights, base, axis.inputs, outside and cubic))
            matrices.append(AxisMatrix(axis.axis, axis.inputs, tuple(rows)))
        return matrices

    # ------------------------------------------------------------------ the questions

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Nearest and linear stay between the ends; cubic overshoots: its matrices on the intervals."""
        x, shape = xs[0], site.out_shape()
        axes = self._axes(site)
        if x is None or isinstance(axes, str):
            return (reals(shape),)
        mode = self._mode(site)
        if mode != "cubic" or not axes:
            lo, hi = np.broadcast_arrays(x.lo, x.hi)
            lo, hi = (end.reshape((1,) * (len(shape) - end.ndim) + end.shape) for end in (lo, hi))
            for axis in axes:
                if lo.shape[axis.axis] == 1:
                    continue
                choices = self._choices(site, axis) if mode == "nearest" else [tuple(row) for row in self._matrices(site, [axis])[0].rows]
                lo = np.stack([lo.take(choice, axis=axis.axis).min(axis=axis.axis) for choice in choices], axis=axis.axis)
                hi = np.stack([hi.take(choice, axis=axis.axis).max(axis=axis.axis) for choice in choices], axis=axis.axis)
            return (Range(shape, lo, hi, integral=x.integral and mode == "nearest"),)
        if not np.any(np.isfinite(x.lo)) and not np.any(np.isfinite(x.hi)):
            return (reals(shape),)
        lo, hi = average_operator(self._matrices(site, axes), site.shape(0)).enclose(x.lo, x.hi)
        return (Range(shape, lo, hi),)

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
        return average_gain(self._matrices(site, axes), norm)

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        axes = self._axes(site)
        if i or isinstance(axes, str) or not axes:
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


def _nearest(x: Fraction, rounding: str) -> int:
    if rounding == "floor":
        return math.floor(x)
    if rounding == "ceil":
        return math.ceil(x)
    if rounding == "round_prefer_ceil":
        return math.floor(x + _HALF)
    return math.ceil(x - _HALF)


def _cubic(t: Fraction, a: Fraction) -> dict[int, Fraction]:
    """Keys' cubic convolution kernel with coefficient ``a`` at distances ``1 + t, t, 1 - t, 2 - t`` (offsets -1 .. 2)."""

    def near(s: Fraction) -> Fraction:
        return ((a + 2) * s - (a + 3)) * s * s + 1

    def far(s: Fraction) -> Fraction:
        return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a

    return {-1: far(1 + t), 0: near(t), 1: near(1 - t), 2: far(2 - t)}


def _placed(weights: Mapping[int, Fraction], base: int, inputs: int, exclude_outside: bool) -> dict[int, Fraction]:
    """Weights by input; outside ones go to the edge, or are left out and the rest renormalised."""
    if exclude_outside:
        inside = {base + k: w for k, w in weights.items() if 0 <= base + k < inputs}
        whole = sum(inside.values(), Fraction(0))
        return {i: w / whole for i, w in inside.items()} if whole else inside
    row: dict[int, Fraction] = {}
    for k, weight in weights.items():
        i = min(max(base + k, 0), inputs - 1)
        row[i] = row.get(i, Fraction(0)) + weight
    return {i: weight for i, weight in row.items() if weight} or {min(max(base, 0), inputs - 1): Fraction(0)}
