"""DeformConv: a convolution of samples taken at moved places: ``y = W col``, col = mask times bilinear samples of x."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.linear import Dense
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.bounds.sparse import Sparse
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.broadcast import precise
from lipaudit.operators.linear import weight_array
from lipaudit.operators.parts import Part
from lipaudit.operators.range import Range, reals, widen
from lipaudit.operators.sampling import taps
from lipaudit.operators.spatial import Window, window

__all__ = ["DeformConv"]

Floats = NDArray[np.float64]


class DeformConv(Rule):
    """V = norm of W as a map of one column [channels * taps], S = matrix of the samples of one channel, D = largest difference of
    neighbours of x (0 outside), c' = channels per offset group, M = max |mask|.

    x: ``|V| |S|``; offsets (in pixels): ``V D M`` times ``c', sqrt(axes c'), axes`` in l1, l2, linf; mask: ``V max|x|`` times
    ``c', sqrt(c'), 1``. Bilinear sampling with zeros outside is continuous; its slope along an axis is at most D.
    """

    def _window(self, site: Site) -> Window | str:
        return window(site, site.shape(1)[2:])

    def _weight(self, site: Site, norm: Norm) -> Upper | Unknown:
        """V: the largest group."""
        constant = site.constant(1)
        if constant is None:
            return Unknown(f"kernel {site.node.inputs[1]!r} is not constant")
        groups = int(site.attr("group", 1))
        weight = np.asarray(weight_array(constant), dtype=np.float64).reshape(groups, constant.shape[0] // groups, -1)
        found = max(dense_norm(np.ascontiguousarray(part), norm).upper for part in weight)
        return found if found.is_finite else Unknown(f"weight {site.node.inputs[1]!r} holds values that are not finite")

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The kernel as it acts on one column of samples, a block for each group."""
        constant = site.constant(1)
        if constant is None:
            return ()
        groups = int(site.attr("group", 1))
        weight = weight_array(constant).reshape(groups, constant.shape[0] // groups, -1)
        kind = "batched matrix" if groups > 1 else "matrix"
        return (Part(constant.name, kind, constant.shape, Dense(weight, (groups, weight.shape[2], 1), "left")),)

    def _mask(self, site: Site, xs: Sequence[Range | None]) -> float:
        given = xs[4] if len(xs) > 4 else None
        return 1.0 if given is None else given.magnitude()

    def _samples(self, site: Site, norm: Norm, xs: Sequence[Range | None], found: Window) -> Upper:
        """Norm of S, with the mask; stored offsets are enumerated, others may all read one pixel."""
        rank = len(found.kernel)
        tap_count, places = math.prod(found.kernel), math.prod(site.out_shape()[2:])
        offset, top = site.constant(2), Upper(self._mask(site, xs))
        if offset is None or rank != 2 or tap_count * places > 1 << 20:
            rows = Upper(tap_count * places)
            return top * {"l1": rows, "l2": rows.sqrt(), "linf": ONE}[norm]
        image, out = site.shape(0)[2:], site.out_shape()[2:]
        groups = int(site.attr("offset_group", 1))
        given = offset.float64().reshape(site.shape(0)[0], groups, tap_count, 2, *out)
        mask = np.ones(given.shape[:3] + out)
        if site.has(4):
            mask = np.broadcast_to(precise(site, 4, xs[4]).magnitudes(), site.shape(4)).reshape(mask.shape)
        best = ZERO
        positions = [
            np.asarray([found.dilations[k] * t - found.pads[k][0] for t in range(found.kernel[k])])[:, None]
            + found.strides[k] * np.arange(out[k])
            for k in range(2)
        ]
        grid_y = np.broadcast_to(positions[0][:, None, :, None], (*found.kernel, *out)).reshape(tap_count, *out)
        grid_x = np.broadcast_to(positions[1][None, :, None, :], (*found.kernel, *out)).reshape(tap_count, *out)
        for n in range(given.shape[0]):
            for g in range(groups):
                y, x = (grid_y + given[n, g, :, 0]).ravel(), (grid_x + given[n, g, :, 1]).ravel()
                rows, columns, weights = [], [], []
                for iy, wy in taps(y, image[0], "linear", "zeros", True):
                    for ix, wx in taps(x, image[1], "linear", "zeros", True):
                        live = (iy >= 0) & (ix >= 0) & (wy * wx != 0)
                        rows.append(np.flatnonzero(live))
                        columns.append((iy * image[1] + ix)[live])
                        weights.append((wy * wx * mask[n, g].ravel())[live])
                far = float(np.max(np.abs(np.concatenate([y, x])))) + max(image)
                matrix = Sparse(
                    (tap_count * places, math.prod(image)),
                    np.concatenate(rows),
                    np.concatenate(columns),
                    np.concatenate(weights),
                    2.0**-44 * far * max(1.0, float(np.max(mask[n, g], initial=0.0))),
                )
                best = max(best, matrix.norm(norm).upper)
        return best

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Largest row sum of W times the largest sample, plus the bias."""
        x, shape = xs[0], site.out_shape()
        size = self._weight(site, "linf")
        if x is None or isinstance(size, Unknown):
            return (reals(shape),)
        top = float(size * Upper(x.magnitude()) * Upper(self._mask(site, xs)))
        bias = xs[3] if len(xs) > 3 else None
        if bias is not None:
            top = widen(top + bias.magnitude(), 2)
        return (Range(shape, np.asarray(-top), np.asarray(top)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i == 3:
            shape = site.out_shape()
            return Finite(repeat_factor(math.prod(shape) // max(1, shape[1]), norm), method="copies of the bias")
        found, x = self._window(site), xs[0]
        if isinstance(found, str):
            return Unknown(found)
        if i == 1:
            return Unknown("a kernel that depends on the source")
        weight = self._weight(site, norm)
        if isinstance(weight, Unknown):
            return weight
        assert x is not None
        if not math.isfinite(self._mask(site, xs)) and i != 4:
            return Unbounded("the mask is not bounded on the domain")
        if i == 0:
            return Finite(weight * self._samples(site, norm, xs, found), method="kernel times samples")
        if not x.is_bounded:
            return Unbounded(f"the image {site.node.inputs[0]!r} is not bounded on the domain")
        axes, channels = len(found.kernel), site.shape(0)[1] // int(site.attr("offset_group", 1))
        lo, hi = min(0.0, float(np.min(x.lo))), max(0.0, float(np.max(x.hi)))
        if i == 4:
            size = Upper(max(-lo, hi)) * repeat_factor(channels, norm)
            return Finite(weight * size, method="kernel times pixels")
        size = Upper(math.nextafter(hi - lo, math.inf)) * Upper(self._mask(site, xs))
        spread = {"l1": Upper(channels), "l2": Upper(axes * channels).sqrt(), "linf": Upper(axes)}[norm]
        return Finite(weight * size * spread, method="kernel times differences of neighbours")
