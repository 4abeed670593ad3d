"""Interpolation at coordinates: AffineGrid and GridSample.

With a stored grid the samples are a sparse matrix applied to each channel. In the coordinates, linear interpolation moves by at most
D, the largest difference of neighbouring pixels, per pixel of distance; normalised coordinates span ``size / 2`` pixels per unit
(``(size - 1) / 2`` with align_corners).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Norm, Upper, combine, repeat_factor
from lipaudit.bounds.sparse import Sparse
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.movement import integers
from lipaudit.operators.range import Range, reals, widen

__all__ = ["AffineGrid", "GridSample", "cubic_weights", "taps"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_CUBIC = 1.375
"""Largest sum of absolute weights of Keys' kernel with a = -3/4: ``1 - 2 a t (1 - t)`` at t = 1/2."""


class AffineGrid(Rule):
    """``grid[n, p] = theta[n] base[p]`` with the homogeneous coordinates of every place p: the norm of the matrix of all ``base[p]``."""

    def _base(self, site: Site) -> Floats | str:
        size = integers(site, 1, "")
        if size is None:
            return "the size is not constant"
        axes: list[Floats] = []
        for n in size[2:]:
            k = np.arange(n, dtype=np.float64)
            if site.attr("align_corners", 0):
                axes.append(2 * k / (n - 1) - 1 if n > 1 else np.full(1, -1.0))
            else:
                axes.append((2 * k + 1) / n - 1)
        grids = np.meshgrid(*axes, indexing="ij")
        return np.stack([*(g.ravel() for g in reversed(grids)), np.ones(math.prod(size[2:]))], axis=1)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Coordinates of the base lie in [-1, 1]: at most the sum of a row of theta."""
        x, shape = xs[0], site.out_shape()
        if x is None or x.size == 0:
            return (reals(shape),)
        rows = np.broadcast_to(x.magnitudes(), x.shape).sum(axis=-1)
        top = np.asarray(widen(float(np.max(rows)), x.shape[-1] + 2))
        return (Range(shape, -top, top),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            return Unknown("the size depends on the source")
        base = self._base(site)
        if isinstance(base, str):
            return Unknown(base)
        if base.size == 0 or math.prod(site.shape(0)) == 0:
            return Finite(ZERO, method="empty")
        # Coordinates of at most 1 in magnitude are off by less than 2^-51: in norm by less than that times the root of their number.
        spare = Upper(2.0**-51) * {"l1": Upper(base.shape[0]), "l2": Upper(base.size).sqrt(), "linf": Upper(base.shape[1])}[norm]
        return Finite(dense_norm(base, norm).upper + spare, method="norm of the coordinates")


def cubic_weights(t: Floats) -> list[Floats]:
    """Keys' kernel with a = -3/4 at distances ``1 + t, t, 1 - t, 2 - t``."""
    a = -0.75

    def near(s: Floats) -> Floats:
        return ((a + 2) * s - (a + 3)) * s * s + 1

    def far(s: Floats) -> Floats:
        return ((a * s - 5 * a) * s + 8 * a) * s - 4 * a

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def _reflected(x: Floats, low: float, high: float) -> Floats:
    """Mirrored at both ends until inside."""
    span = high - low
    if span <= 0:
        return np.full_like(x, low)
    turned = np.abs(x - low) % (2 * span)
    return low + np.minimum(turned, 2 * span - turned)


def taps(x: Floats, n: int, mode: str, padding: str, align: bool) -> list[tuple[Indices, Floats]]:
    """Pixels of one axis that a sample at pixel coordinate ``x`` reads, with weights; index -1 is the zero outside.

    ``padding`` "taps" is the border of a runtime that clips each pixel of a sample, not the sample.

    Nearest near a tie lists both neighbours with weight 1.
    """
    low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)

    def place(index: Floats) -> Indices:
        if padding == "zeros":
            return np.where((index >= 0) & (index < n), index, -1).astype(np.int64)
        if padding in ("border", "taps"):
            return np.clip(index, 0, n - 1).astype(np.int64)
        return np.clip(np.trunc(_reflected(index, low, high)), 0, n - 1).astype(np.int64)

    if mode == "nearest":
        tie = 1e-5 + 1e-6 * n  # runtimes compute coordinates in float32
        choices = [np.rint(x), np.rint(x - tie), np.rint(x + tie)]
        if padding != "zeros":
            choices = [np.clip(c, 0, n - 1) if padding == "border" else c for c in choices]
        first = place(choices[0])
        found = [(first, np.ones_like(x))]
        for other in choices[1:]:
            moved = place(other)
            found.append((moved, np.where(moved != first, 1.0, 0.0)))
        return found
    outside = (x < low) | (x > high)
    if padding == "border":
        x = np.where(outside, np.clip(x, 0, n - 1), x)
    elif padding == "reflection":
        x = np.where(outside, _reflected(x, low, high), x)
    base = np.floor(x)
    t = x - base
    weights = [1 - t, t] if mode == "linear" else cubic_weights(t)
    start = 0 if mode == "linear" else -1
    return [(place(base + start + k), weight) for k, weight in enumerate(weights)]


class GridSample(Rule):
    """All modes, paddings and numbers of axes. One image of x against one grid; samples and channels are independent."""

    def _mode(self, site: Site) -> str:
        mode = str(site.attr("mode", "linear"))
        return {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)

    def _overshoot(self, site: Site) -> Upper:
        """Largest sum of absolute weights of one sample."""
        return Upper(_CUBIC) ** (len(site.shape(0)) - 2) if self._mode(site) == "cubic" else ONE

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Nearest and linear stay between the pixels (and 0 outside); cubic overshoots."""
        x, shape = xs[0], site.out_shape()
        assert x is not None
        if x.size == 0:
            return (reals(shape),)
        lo, hi = float(np.min(x.lo)), float(np.max(x.hi))
        mode = self._mode(site)
        if mode == "cubic":
            top = float(self._overshoot(site) * Upper(x.magnitude()))
            return (Range(shape, np.asarray(-top), np.asarray(top)),)
        if str(site.attr("padding_mode", "zeros")) == "zeros":
            lo, hi = min(lo, 0.0), max(hi, 0.0)
        return (Range(shape, np.asarray(lo), np.asarray(hi), integral=x.integral and mode == "nearest"),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the module."""
        mode, padding = self._mode(site), str(site.attr("padding_mode", "zeros"))
        if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
            return Unknown(f"mode {mode!r} with padding {padding!r} has no rule")
        if math.prod(site.shape(0)) == 0 or math.prod(site.out_shape()) == 0:
            return Finite(ZERO, method="empty")
        if i == 1:
            return self._in_grid(site, norm, xs, mode)
        grid = site.constant(1)
        if grid is None:
            samples = Upper(math.prod(site.out_shape()[2:]))
            size = {"l1": samples, "l2": samples.sqrt(), "linf": ONE}[norm]
            return Finite(self._overshoot(site) * size, method="any grid: every sample may read one pixel")
        if mode == "nearest":
            # A selection; near a tie both neighbours are counted, so only the column sums mean something.
            copies = max(self._matrix(site, points, mode, padding).norm("l1").upper for points in grid.float64())
            return Finite({"l1": copies, "l2": copies.sqrt(), "linf": min(copies, ONE)}[norm], method="selection")
        # The standard's reference clips a cubic sample at the border, runtimes clip its pixels: the larger of both.
        readings = ("border", "taps") if (mode, padding) == ("cubic", "border") else (padding,)
        best = max(self._matrix(site, points, mode, reading).norm(norm).upper for points in grid.float64() for reading in readings)
        return Finite(best, method="matrix of the samples")

    def _matrix(self, site: Site, points: Floats, mode: str, padding: str) -> Sparse:
        """Samples of one image: [samples, pixels]."""
        image = site.shape(0)[2:]
        align = bool(site.attr("align_corners", 0))
        flat = points.reshape(-1, len(image))[:, ::-1]  # the last coordinate is the first axis
        count = flat.shape[0]
        rows, columns = np.arange(count)[None], np.zeros((1, count), dtype=np.int64)
        weights = np.ones((1, count))
        far = 1.0
        for axis, n in enumerate(image):
            g = flat[:, axis]
            x = (g + 1) / 2 * (n - 1) if align else ((g + 1) * n - 1) / 2
            far = max(far, float(np.max(np.abs(x))) + n)
            parts = taps(x, n, mode, padding, align)
            index, weight = np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])
            outside = (index < 0)[:, None] | (columns < 0)[None]
            columns = np.where(outside, -1, columns[None] * n + index[:, None]).reshape(-1, count)
            weights = np.where(outside, 0.0, weights[None] * weight[:, None]).reshape(-1, count)
        rows = np.broadcast_to(rows, columns.shape)
        live = weights != 0
        error = 0.0 if mode == "nearest" else 2.0**-44 * far  # of the coordinates, times the slopes of the weights
        return Sparse((count, math.prod(image)), rows[live], columns[live], weights[live], error)

    def _in_grid(self, site: Site, norm: Norm, xs: Sequence[Range | None], mode: str) -> Gain:
        x = xs[0]
        assert x is not None
        if mode == "nearest":
            jump = self.range(site, xs)[0].total_diameter(norm)
            if jump.is_finite:
                return Finite(ZERO, jump, method="jump between pixels")
            return Unbounded("nearest pixels of an image that is not bounded")
        if not x.is_bounded:
            return Unbounded(f"the image {site.node.inputs[0]!r} is not bounded on the domain")
        image, channels = site.shape(0)[2:], site.shape(0)[1]
        lo, hi = float(np.min(x.lo)), float(np.max(x.hi))
        if str(site.attr("padding_mode", "zeros")) == "zeros":
            lo, hi = min(lo, 0.0), max(hi, 0.0)
        if mode == "cubic":
            # Sum over four taps of |w'| is at most 3 (a = -3/4), along one axis; the others overshoot.
            size = Upper(3) * Upper(_CUBIC) ** (len(image) - 1) * Upper(max(abs(lo), abs(hi)))
        else:
            size = Upper(math.nextafter(hi - lo, math.inf) if hi > lo else 0.0)
        align = bool(site.attr("align_corners", 0))
        spans = [Upper(n - 1 if align else n) * Upper(0.5) for n in image]
        steps = {"l1": max(spans), "l2": combine(spans, "l2"), "linf": combine(spans, "l1")}[norm]
        slope = size * steps * repeat_factor(channels, norm)
        return Finite(slope, method="difference of neighbours") if slope != INFINITE else Unbounded("the image is not bounded")
