"""One axis of a Resize: which input position each output reads, and with which weights, in exact rationals of the stored numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["TIE", "ResizeAxis", "cubic", "nearest", "placed", "stretched"]

TIE = Fraction(1, 100_000)
"""Within this distance of a decision runtimes, which compute in float32, may go either way."""

_HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class ResizeAxis:
    """One axis: lengths, scale, and begin and end of what is cropped (in units of the length; None: nothing)."""

    axis: int
    inputs: int
    outputs: int
    scale: Fraction
    crop: tuple[Fraction, Fraction] | None = None

    @property
    def exact(self) -> bool:
        """True if float32 computes the coordinates exactly."""
        top, bottom = self.scale.numerator, self.scale.denominator
        plain = self.crop is None and top & (top - 1) == 0 and bottom & (bottom - 1) == 0
        return plain and max(self.inputs, self.outputs) < 1 << 20

    def coordinate(self, o: int, mode: str) -> Fraction:
        """Position in the input that output ``o`` reads."""
        if self.crop is not None:
            begin, end = self.crop
            share = Fraction(o, self.outputs - 1) if self.outputs > 1 else _HALF
            return (begin + (end - begin) * share) * (self.inputs - 1)
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

    def must_leave(self, x: Fraction) -> bool:
        """True if a cropped position is outside of the image however it is rounded."""
        return self.crop is not None and (x < -TIE or x > self.inputs - 1 + TIE)

    def may_leave(self, x: Fraction) -> bool:
        """True if a cropped position may be rounded to outside of the image."""
        return self.crop is not None and (x < TIE or x > self.inputs - 1 - TIE)


def nearest(x: Fraction, rounding: str) -> int:
    """The input next to ``x`` by ``nearest_mode``."""
    if rounding == "floor":
        return math.floor(x)
    if rounding == "ceil":
        return math.ceil(x)
    if rounding == "round_prefer_ceil":
        return math.floor(x + _HALF)
    return math.ceil(x - _HALF)


def cubic(t: Fraction, a: Fraction) -> dict[int, Fraction]:
    """Keys' cubic convolution kernel with coefficient ``a`` at distances ``1 + t, t, 1 - t, 2 - t`` (offsets -1 .. 2)."""
    return {k: _keys(abs(k - t), a) for k in range(-1, 3)}


def stretched(t: Fraction, scale: Fraction, a: Fraction | None) -> dict[int, Fraction]:
    """Antialiasing: the kernel stretched by ``1/scale`` (scale < 1) and renormalised, by offset from the input before ``x``.

    Cubic with coefficient ``a``, the triangle ``max(0, 1 - |x|)`` for None. All offsets at distance below ``r / scale`` from t count,
    r = 2 or 1 the reach of the kernel.
    """
    reach = (1 if a is None else 2) / scale
    offsets = range(math.floor(t - reach) + 1, math.ceil(t + reach))
    weights = {k: (1 - scale * abs(k - t)) if a is None else _keys(scale * abs(k - t), a) for k in offsets}
    whole = sum(weights.values(), Fraction(0))
    return {k: w / whole for k, w in weights.items()} if whole else weights


def _keys(s: Fraction, a: Fraction) -> Fraction:
    """Keys' kernel at distance s >= 0."""
    if s <= 1:
        return ((a + 2) * s - (a + 3)) * s * s + 1
    return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a if s < 2 else Fraction(0)


def placed(weights: Mapping[int, Fraction], base: int, inputs: int, exclude_outside: bool) -> dict[int, Fraction]:
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
