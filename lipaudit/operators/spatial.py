"""Sliding windows as ONNX writes them: kernel, strides, dilations, pads or ``auto_pad``; shared by convolution and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipaudit.bounds.window import Axis, multiplicity
from lipaudit.operators.base import Site

__all__ = ["Window", "window", "windows"]


@dataclass(frozen=True, slots=True)
class Window:
    """One value per image axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    def axes(self, image: Sequence[int], outputs: Sequence[int]) -> tuple[Axis, ...]:
        """Which taps meet which pixels, with the real number of outputs (ceil_mode included)."""
        fields = zip(self.kernel, image, outputs, self.strides, self.dilations, self.pads, strict=True)
        return tuple(Axis(k, n, o, s, d, begin) for k, n, o, s, d, (begin, _) in fields)

    def overlap(self, image: Sequence[int], outputs: Sequence[int]) -> int:
        """m: in how many windows the most seen pixel lies."""
        return multiplicity(self.axes(image, outputs))


def window(site: Site, kernel: Sequence[int]) -> Window | str:
    """The window of a Conv or pooling node; a sentence if its attributes make no sense.

    ``SAME_UPPER`` puts the larger half of an odd total at the end, ``SAME_LOWER`` at the begin; the dilated kernel counts.
    """
    image = site.shape(0)[2:]
    rank = len(image)
    strides = tuple(int(x) for x in site.attr("strides") or (1,) * rank)
    dilations = tuple(int(x) for x in site.attr("dilations") or (1,) * rank)
    flat = [int(x) for x in site.attr("pads") or (0,) * (2 * rank)]
    if not len(kernel) == len(strides) == len(dilations) == rank or len(flat) != 2 * rank:
        return "kernel, strides, dilations or pads do not fit the image"
    if min((*kernel, *strides, *dilations), default=1) < 1:
        return "kernel, strides and dilations must be positive"
    mode = site.attr("auto_pad", "NOTSET") or "NOTSET"
    if mode == "NOTSET":
        pads = tuple((flat[k], flat[k + rank]) for k in range(rank))
    elif mode == "VALID":
        pads = ((0, 0),) * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = tuple(_same(*parts, upper=mode == "SAME_UPPER") for parts in zip(image, kernel, strides, dilations, strict=True))
    else:
        return f"auto_pad {mode!r} is not known"
    return Window(tuple(int(k) for k in kernel), strides, dilations, pads)


def _same(image: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    outputs = -(-image // stride)
    total = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - image)
    begin = total // 2 if upper else total - total // 2
    return begin, total - begin


def windows(site: Site) -> Window | str:
    """The window of a pooling node; it must produce as many outputs as the graph says."""
    found = window(site, [int(k) for k in site.attr("kernel_shape") or ()])
    if isinstance(found, str):
        return found
    image, outputs = site.shape(0)[2:], site.out_shape()[2:]
    for k, (n, o) in enumerate(zip(image, outputs, strict=True)):
        begin, end = found.pads[k]
        reach = found.dilations[k] * (found.kernel[k] - 1) + 1
        fits = [math.floor((n + begin + end - reach) / found.strides[k]) + 1, math.ceil((n + begin + end - reach) / found.strides[k]) + 1]
        if not min(fits) - 1 <= o <= max(fits):
            return f"{o} outputs along image axis {k} do not follow from the window"
    return found
