"""Regions of interest: RoiAlign and MaxRoiPool. Stored regions are enumerated; others may all read one pixel; moving ones jump."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper
from lipaudit.bounds.sparse import Sparse
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.range import Range, reals

__all__ = ["MaxRoiPool", "RoiAlign"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Runtimes compute coordinates in float32: a decision that hangs on less than this is not made here.
_TIE = 1e-4


class _Regions(Rule):
    """Shared: values lie between the pixels and 0; regions from the source jump."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Between the pixels, or 0 for what lies outside."""
        x = xs[0]
        if x is None or x.size == 0:
            return (reals(site.out_shape()),)
        lo, hi = min(0.0, float(np.min(x.lo))), max(0.0, float(np.max(x.hi)))
        return (Range(site.out_shape(), np.asarray(lo), np.asarray(hi)),)

    @abstractmethod
    def places(self, site: Site) -> Sparse | None:
        """For every output of one channel the pixels (of all images) that it may read, with weights; None if not enumerable."""

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            jump = self.range(site, xs)[0].total_diameter(norm)
            if jump.is_finite:
                return Finite(ZERO, jump, method="jump between regions")
            return Unbounded("the regions depend on the source and the image is not bounded")
        if math.prod(site.shape(0)) == 0 or math.prod(site.out_shape()) == 0:
            return Finite(ZERO, method="empty")
        if site.shape(0)[1] != site.out_shape()[1]:
            return Unknown("the output has other channels than the image")
        found = self.places(site)
        if found is None:
            outputs = Upper(math.prod(site.out_shape()) // site.out_shape()[1])
            return Finite({"l1": outputs, "l2": outputs.sqrt(), "linf": ONE}[norm], method="any regions: each may read one pixel")
        return self.of(site, found, norm)

    @abstractmethod
    def of(self, site: Site, places: Sparse, norm: Norm) -> Gain:
        """The gain for enumerated regions."""


def _dominated(places: Sparse, norm: Norm) -> Gain:
    """Of a maximum: each output moves at most as one of the convex combinations (or one pixel) that it takes the maximum of.

    With M the largest weight of each pixel for each output: ``|dy_o|^p <= sum_j M_oj |dx_j|^p``.
    """
    columns = places.norm("l1").upper
    return Finite({"l1": columns, "l2": columns.sqrt(), "linf": min(ONE, columns)}[norm], method="overlap of regions")


class RoiAlign(_Regions):
    """Averages (or maxima) of bilinear samples in the bins of every region. avg: the matrix of the samples; max: its columns."""

    def _mode(self, site: Site) -> str:
        return str(site.attr("mode", "avg")).lower()

    def of(self, site: Site, places: Sparse, norm: Norm) -> Gain:
        """See the class."""
        if self._mode(site) == "max":
            return _dominated(places, norm)
        return Finite(places.norm(norm).upper, method="matrix of the samples")

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if self._mode(site) not in ("avg", "max"):
            return Unknown(f"mode {self._mode(site)!r} has no rule")
        return super().gain(site, i, norm, xs)

    def places(self, site: Site) -> Sparse | None:
        """See the base class."""
        rois, batch = site.constant(1), site.constant(2)
        if rois is None:
            return None
        images, _, height, width = site.shape(0)
        bins_h, bins_w = site.out_shape()[2:]
        scale = float(site.attr("spatial_scale", 1.0))
        half = site.node.version >= 16 and str(site.attr("coordinate_transformation_mode", "half_pixel")).lower() == "half_pixel"
        ratio = int(site.attr("sampling_ratio", 0))
        index = np.zeros(rois.shape[0], dtype=np.int64) if batch is None else np.asarray(batch.array()).ravel().astype(np.int64)
        rows: list[Indices] = []
        columns: list[Indices] = []
        weights: list[Floats] = []
        far = 1.0
        for n, roi in enumerate(rois.float64()):
            left, top, right, bottom = roi * scale - (0.5 if half else 0.0)
            sizes = [bottom - top, right - left]
            if not half:
                sizes = [max(size, 1.0) for size in sizes]
            steps = [sizes[0] / bins_h, sizes[1] / bins_w]
            counts = [ratio if ratio > 0 else math.ceil(step) for step in steps]
            if ratio <= 0 and any(abs(step - round(step)) < _TIE and step != round(step) for step in steps):
                return None
            if min(counts) < 1:
                continue
            axes = [
                _bins(start, step, bins, count, n_pixels)
                for start, step, bins, count, n_pixels in zip((top, left), steps, (bins_h, bins_w), counts, (height, width), strict=True)
            ]
            if any(axis is None for axis in axes):
                return None
            far = max(far, *(abs(float(v)) for v in (left, top, right, bottom)))
            (iy, wy), (ix, wx) = (axis for axis in axes if axis is not None)
            # [bins_h, count_h, 2] and [bins_w, count_w, 2] to [bins_h, bins_w, samples, 4]
            pixel = iy[:, None, :, None, :, None] * width + ix[None, :, None, :, None, :]
            weight = wy[:, None, :, None, :, None] * wx[None, :, None, :, None, :]
            pixel, weight = (a.reshape(bins_h * bins_w, -1) for a in np.broadcast_arrays(pixel, weight))
            if self._mode(site) == "avg":
                weight = weight / (counts[0] * counts[1])
            out = np.broadcast_to(np.arange(bins_h * bins_w)[:, None] + n * bins_h * bins_w, pixel.shape)
            rows.append(out.ravel())
            columns.append((pixel + index[n] * height * width).ravel())
            weights.append(weight.ravel())
        shape = (rois.shape[0] * bins_h * bins_w, images * height * width)
        if not rows:
            return Sparse(shape, np.zeros(0), np.zeros(0), np.zeros(0))
        r, c, w = np.concatenate(rows), np.concatenate(columns), np.concatenate(weights)
        r, c, w = r[w != 0], c[w != 0], w[w != 0]
        if self._mode(site) == "max":  # the largest weight of each pixel for each output
            keys, where = np.unique(r * shape[1] + c, return_inverse=True)
            largest = np.zeros(keys.size)
            np.maximum.at(largest, where, w)
            r, c, w = keys // shape[1], keys % shape[1], largest
        return Sparse(shape, r, c, w, 2.0**-44 * far)


def _bins(start: float, step: float, bins: int, count: int, n: int) -> tuple[Indices, Floats] | None:
    """Pixels and weights of the samples of one axis: [bins, count, 2]; weight 0 outside; None if a border is too close to tell."""
    at = start + np.arange(bins)[:, None] * step + (np.arange(count)[None] + 0.5) * step / count
    if np.any(np.abs(np.concatenate([(at + 1).ravel(), (at - n).ravel()])) < _TIE):
        return None
    outside = (at < -1) | (at > n)
    at = np.clip(at, 0, n - 1)
    low = np.minimum(np.floor(at), max(n - 2, 0)).astype(np.int64)
    high = np.minimum(low + 1, n - 1)
    t = np.where(n > 1, at - low, 0.0)
    weights = np.stack([1 - t, t], axis=-1) * ~outside[..., None]
    return np.stack([low, high], axis=-1), weights


class MaxRoiPool(_Regions):
    """The largest pixel of each bin: ``m, sqrt m, 1`` with m the most bins (of all regions) that hold one pixel."""

    def of(self, site: Site, places: Sparse, norm: Norm) -> Gain:
        """See the class."""
        return _dominated(places, norm)

    def places(self, site: Site) -> Sparse | None:
        """See the base class."""
        rois = site.constant(1)
        if rois is None:
            return None
        images, _, height, width = site.shape(0)
        scale = float(site.attr("spatial_scale", 1.0))
        bins = [int(b) for b in site.attr("pooled_shape")]
        rows: list[int] = []
        columns: list[int] = []
        for n, roi in enumerate(rois.float64()):
            ends = roi[1:] * scale
            if np.any(np.abs(np.abs(ends - np.floor(ends)) - 0.5) < _TIE):
                return None  # which way the ends round decides
            left, top, right, bottom = (round(float(end)) for end in ends)
            base = int(roi[0]) * height * width
            down = [_bin(top, bottom, bins[0], k, height) for k in range(bins[0])]
            across = [_bin(left, right, bins[1], k, width) for k in range(bins[1])]
            for i, (y0, y1) in enumerate(down):
                for j, (x0, x1) in enumerate(across):
                    pixels = [base + y * width + x for y in range(y0, y1) for x in range(x0, x1)]
                    rows.extend([(n * bins[0] + i) * bins[1] + j] * len(pixels))
                    columns.extend(pixels)
        shape = (rois.shape[0] * bins[0] * bins[1], images * height * width)
        return Sparse(shape, np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64), np.ones(len(rows)))


def _bin(start: int, end: int, bins: int, k: int, n: int) -> tuple[int, int]:
    """Pixels start..stop of bin k, a pixel more on each side where the division is too close to a whole number."""
    step = max(end - start + 1, 1) / bins
    first, last = math.floor(k * step - _TIE), math.ceil((k + 1) * step + _TIE)
    return min(max(start + first, 0), n), min(max(start + last, 0), n)
