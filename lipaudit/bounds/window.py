"""Where the taps of a sliding window fall, axis by axis: which output meets which input at which tap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "AxisForm", "axes", "maximal", "multiplicity", "pairs"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a sliding window: output o meets input ``stride * o + dilation * t - begin`` at tap t.

    ``begin`` is the padding before the image (negative: cropped); what lies outside ``0 .. image-1`` is zero.
    """

    kernel: int
    image: int
    outputs: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0

    def offset(self, tap: int) -> int:
        """Input position that output 0 meets at ``tap`` (may lie outside)."""
        return self.dilation * tap - self.begin

    def span(self, tap: int) -> tuple[int, int]:
        """First output that meets a pixel at ``tap``, and how many do (0 if none)."""
        e = self.offset(tap)
        first = max(0, -(e // self.stride))  # ceil(-e / stride)
        last = min(self.outputs - 1, (self.image - 1 - e) // self.stride)
        return first, max(0, last - first + 1)

    def slices(self, tap: int) -> tuple[slice, slice] | None:
        """Outputs and inputs that meet at ``tap``, pairwise; None if there are none."""
        first, count = self.span(tap)
        if count == 0:
            return None
        start = self.stride * first + self.offset(tap)
        return slice(first, first + count), slice(start, start + self.stride * (count - 1) + 1, self.stride)

    @property
    def reachable(self) -> list[int]:
        """Taps that some output meets inside the image."""
        return [tap for tap in range(self.kernel) if self.span(tap)[1]]

    def row_masks(self) -> NDArray[np.bool_]:
        """Sets of taps that one output sees, the maximal ones: shape [sets, kernel]."""
        start = self.stride * np.arange(self.outputs, dtype=np.int64) - self.begin
        # The taps that meet the image are consecutive: only the different (first, last) pairs are looked at.
        first = np.maximum(0, -(start // self.dilation))
        last = np.minimum(self.kernel - 1, (self.image - 1 - start) // self.dilation)
        pairs = np.unique(np.stack([first, last]), axis=1)
        taps = np.arange(self.kernel)
        return maximal((taps >= pairs[0][:, None]) & (taps <= pairs[1][:, None]))

    def column_masks(self) -> NDArray[np.bool_]:
        """Sets of taps at which one input is seen, the maximal ones: shape [sets, kernel]."""
        end = np.arange(self.image, dtype=np.int64) + self.begin
        # Consecutive taps again, of one residue class that depends on the phase of the input.
        first = np.maximum(0, (end - self.stride * self.outputs) // self.dilation + 1)
        last = np.minimum(self.kernel - 1, end // self.dilation)
        keys = np.unique(np.stack([first, last, end % self.stride]), axis=1)
        taps = np.arange(self.kernel)
        inside = (taps >= keys[0][:, None]) & (taps <= keys[1][:, None])
        return maximal(inside & ((keys[2][:, None] - self.dilation * taps) % self.stride == 0))

    def matrix(self) -> NDArray[np.float64]:
        """The 0/1 matrix [outputs, image] of the all-ones kernel."""
        ones = np.zeros((self.outputs, self.image))
        for tap in range(self.kernel):
            first, count = self.span(tap)
            rows = np.arange(first, first + count)
            ones[rows, self.stride * rows + self.offset(tap)] += 1
        return ones

    def form(self) -> AxisForm:
        """As a stride-1 block convolution ``y_i = sum_tau P_tau X_(i+tau)``.

        A stride s stacks the s phases of the input as channels. A dilation at stride 1 splits the axis by residues of the
        output: every residue has the same symbol (up to a phase) and the largest least torus of all residues serves
        all, provided that a tap is kept as soon as *some* residue meets it.
        """
        taps = self.reachable
        if not taps:
            return AxisForm((), (), 0, (0,), 1, 1, 0)
        if self.stride == 1 and self.dilation > 1:
            least = 1
            for residue in range(min(self.dilation, self.outputs)):
                shift, rest = divmod(residue - self.begin, self.dilation)
                inputs = -((rest - self.image) // self.dilation)
                outputs = -((residue - self.outputs) // self.dilation)
                if inputs > 0 and outputs > 0:
                    least = max(least, inputs - (taps[0] + shift), outputs + taps[-1] + shift)
            places = tuple((tap - taps[0], 0) for tap in taps)
            phase = -self.begin % self.dilation
            return AxisForm(tuple(taps), places, taps[-1] - taps[0] + 1, (phase,), least, self.dilation, self.dilation)
        split = [divmod(self.offset(tap), self.stride) for tap in taps]
        phases = sorted({phase for _, phase in split})
        low, high = min(tau for tau, _ in split), max(tau for tau, _ in split)
        blocks = -(-self.image // self.stride)
        places = tuple((tau - low, phases.index(phase)) for tau, phase in split)
        return AxisForm(tuple(taps), places, high - low + 1, tuple(phases), max(1, blocks - low, self.outputs + high), 1, self.stride)


@dataclass(frozen=True, slots=True)
class AxisForm:
    """Block form of one axis.

    ``taps[k]`` sits at block offset and phase number ``places[k]``; there are ``count`` offsets (from 0); ``phases`` are the input
    phases in use; a twisted torus must have at least ``least`` points. Outputs ``out_step * i`` meet pixels
    ``in_step * j + phase`` (of the residue of output 0 where the axis splits).
    """

    taps: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    count: int
    phases: tuple[int, ...]
    least: int
    out_step: int
    in_step: int


def axes(
    kernel: Sequence[int],
    image: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
    outputs: Sequence[int] | None = None,
) -> tuple[Axis, ...]:
    """The axes of a convolution; ``outputs`` defaults to what fits between the pads."""
    found: list[Axis] = []
    for k, (size, pixels, stride, dilation, (begin, end)) in enumerate(zip(kernel, image, strides, dilations, pads, strict=True)):
        fits = (pixels + begin + end - dilation * (size - 1) - 1) // stride + 1
        found.append(Axis(size, pixels, max(0, fits) if outputs is None else outputs[k], stride, dilation, begin))
    return tuple(found)


def maximal(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows that no other row contains, without repeats."""
    full = masks.all(axis=1)
    if full.any():
        return masks[full][:1]
    kept = np.unique(masks, axis=0) if masks.shape[0] else masks
    if kept.shape[0] <= 1:
        return kept
    inside = (kept[:, None, :] <= kept[None, :, :]).all(axis=2)
    return kept[inside.sum(axis=1) == 1]


def pairs(window: Sequence[Axis]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Every tap (one index per axis) that meets a pixel, with the outputs and inputs that meet there."""
    for taps in itertools.product(*(range(axis.kernel) for axis in window)):
        met = [axis.slices(tap) for axis, tap in zip(window, taps, strict=True)]
        found = [both for both in met if both is not None]
        if len(found) == len(met):
            yield taps, tuple(out for out, _ in found), tuple(inp for _, inp in found)


def multiplicity(window: Sequence[Axis]) -> int:
    """In how many windows the most seen pixel lies."""
    return math.prod(int(axis.column_masks().sum(axis=1).max(initial=0)) for axis in window)
