"""Geometry of sliding windows, shared by convolution and pooling (values and derivatives)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site

__all__ = ["Window", "convolution_window", "pooling_window", "transposed_window"]


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over ``size`` (spatial dims). ``before`` / ``after`` are explicit pads; ``after`` covers the last window."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]

    def taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Every kernel position with the slice of the *padded* input that it sees, one element per output position."""
        for tap in product(*(range(k) for k in self.kernel)):
            starts = [t * d for t, d in zip(tap, self.dilations, strict=True)]
            yield tap, tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, self.out, self.strides, strict=True))

    def pads(self) -> list[tuple[int, int]]:
        """Pads as numpy wants them for the spatial axes."""
        return list(zip(self.before, self.after, strict=True))

    def counts(self, *, count_pad: bool, declared_after: tuple[int, ...]) -> NDArray[np.float64]:
        """Number of elements that an average divides by, per output position (shape ``out``).

        ``count_pad`` counts the declared pads, but never what ceil_mode adds beyond them.
        """
        counts = np.ones(())
        for axis, n in enumerate(self.out):
            starts = np.arange(n) * self.strides[axis] - self.before[axis]
            seen = starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
            low, high = (-self.before[axis], self.size[axis] + declared_after[axis]) if count_pad else (0, self.size[axis])
            along = ((seen >= low) & (seen < high)).sum(axis=1).astype(np.float64)
            counts = np.multiply.outer(counts, along)
        return counts


def _auto_pads(
    mode: str, size: tuple[int, ...], extent: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if mode == "VALID":
        return (0,) * len(size), (0,) * len(size)
    total = [max((-(-n // s) - 1) * s + e - n, 0) for n, e, s in zip(size, extent, strides, strict=True)]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _window(site: Site, size: tuple[int, ...], kernel: tuple[int, ...], *, ceil: bool) -> tuple[Window, tuple[int, ...]]:
    """The window and the pads after each axis that the node declares."""
    rank = len(size)
    strides = tuple(site.attr("strides") or (1,) * rank)
    dilations = tuple(site.attr("dilations") or (1,) * rank)
    pads = tuple(site.attr("pads") or (0,) * (2 * rank))
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    mode = site.attr("auto_pad", "NOTSET")
    before, after = (pads[:rank], pads[rank:]) if mode in {"NOTSET", ""} else _auto_pads(mode, size, extent, strides)
    out, needed = [], []
    for n, e, s, b, a in zip(size, extent, strides, before, after, strict=True):
        room = n + b + a - e
        count = (-(-room // s) if ceil else room // s) + 1
        # A window that would start in the pad after the input is dropped.
        if ceil and (count - 1) * s >= n + b:
            count -= 1
        out.append(count)
        needed.append(max(a, (count - 1) * s + e - n - b))
    return Window(size, kernel, strides, dilations, before, tuple(needed), tuple(out)), after


def convolution_window(site: Site, size: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """Window of a Conv over an input of spatial ``size``."""
    return _window(site, size, kernel, ceil=False)[0]


def pooling_window(site: Site, size: tuple[int, ...]) -> tuple[Window, tuple[int, ...]]:
    """Window of a pooling node, with the declared pads after each axis."""
    return _window(site, size, tuple(site.attr("kernel_shape")), ceil=bool(site.attr("ceil_mode", 0)))


def transposed_window(site: Site, size: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of the convolution that a ConvTranspose of an input of spatial ``size`` is the transpose of.

    Its ``size`` is the ConvTranspose's output and its ``out`` is ``size``.
    """
    rank = len(size)
    strides = tuple(site.attr("strides") or (1,) * rank)
    dilations = tuple(site.attr("dilations") or (1,) * rank)
    extra = tuple(site.attr("output_padding") or (0,) * rank)
    pads = tuple(site.attr("pads") or (0,) * (2 * rank))
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    full = tuple((n - 1) * s + e + o for n, s, e, o in zip(size, strides, extent, extra, strict=True))
    mode = site.attr("auto_pad", "NOTSET")
    wanted = site.attr("output_shape")
    if wanted is not None or mode in {"SAME_UPPER", "SAME_LOWER"}:
        target = tuple(wanted)[-rank:] if wanted is not None else tuple(n * s for n, s in zip(size, strides, strict=True))
        total = [max(f - t, 0) for f, t in zip(full, target, strict=True)]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode == "VALID":
        before = after = (0,) * rank
    else:
        before, after = pads[:rank], pads[rank:]
    result = tuple(f - b - a for f, b, a in zip(full, before, after, strict=True))
    if wanted is not None:
        # A shape larger than the full convolution is filled with zeros at the end.
        result = tuple(wanted)[-rank:]
    return Window(result, kernel, strides, dilations, before, after, size)
