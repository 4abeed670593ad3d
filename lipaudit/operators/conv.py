"""Conv and ConvTranspose."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.conv import Convolution, TransposedConvolution
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.operators.arithmetic import group_norm
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.interval import Interval
from lipaudit.operators.linear import LinearRule, constant_norm, norm_gain, weight_array
from lipaudit.operators.parts import Part, stored
from lipaudit.operators.range import Range
from lipaudit.operators.spatial import window

__all__ = ["Conv", "ConvTranspose"]

Array = NDArray[Any]


class _Convolving(LinearRule):
    """Shared: the bias per channel, and its gain (copied to all positions of all samples)."""

    def bias(self, site: Site, xs: Sequence[Range | None]) -> Interval | None:
        """The constant term."""
        given = xs[2] if len(xs) > 2 else None
        if given is None:
            return None
        lo, hi = np.broadcast_arrays(given.lo, given.hi)
        tail = (1,) * (len(site.out_shape()) - 2)
        return (lo.reshape(-1, *tail), hi.reshape(-1, *tail)) if lo.ndim else (lo, hi)

    part = "convolution"

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The stored kernel on this image."""
        constant = site.constant(1)
        return () if constant is None else stored(constant, self.part, self.operator(site))

    def _stored_gain(self, site: Site, norm: Norm) -> Gain:
        """Gain of the image for a stored kernel."""
        constant, found = site.constant(1), self.operator(site)
        if isinstance(found, str) or constant is None:
            return Unknown(str(found))
        return norm_gain(constant_norm(constant, found, norm), norm, site.node.inputs[1], site.node.name)

    @abstractmethod
    def _operator(self, site: Site, weight: Array) -> LinearOperator | str:
        """The map for a given kernel."""

    @staticmethod
    def _unfolded(site: Site, norm: Norm, x: Range, factor: Upper) -> Gain:
        """Gain of a kernel that moves: ``factor`` times the largest sum over a channel (l1), all elements (l2), the largest one (linf)."""
        shape = site.shape(0)
        axes = tuple(axis for axis in range(len(shape)) if axis != 1 or norm == "l2")
        size = x.magnitude() if norm == "linf" else group_norm(x.magnitudes(), shape, axes, norm)
        if not math.isfinite(size):
            return Unbounded(f"{site.node.inputs[0]!r} is not bounded on the domain")
        return Finite(Upper(math.nextafter(size, math.inf)) * factor if size else ZERO, method="norm of the unfolded input")

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """In x: the norm for the stored kernel, or for the entrywise largest ``|W|`` of its range."""
        if i:
            return super().gain(site, i, norm, xs)
        if site.constant(1) is not None:
            return self._stored_gain(site, norm)
        kernel = xs[1]
        assert kernel is not None
        sizes = kernel.magnitudes()
        if not np.all(np.isfinite(sizes)):
            return Unbounded(f"kernel {site.node.inputs[1]!r} is computed and not bounded on the domain")
        operator = self._operator(site, np.broadcast_to(sizes, kernel.shape))
        return Unknown(operator) if isinstance(operator, str) else norm_gain(operator, norm)

    def _bias_gain(self, site: Site, norm: Norm) -> Gain:
        shape = site.out_shape()
        return Finite(repeat_factor(math.prod(shape) // max(1, shape[1]), norm), method="copies of the bias")


class Conv(_Convolving):
    """``y[n,o,t] = sum W[o,c,k] x[n,c,s t + d k - a] + b[o]``, constant kernel: norm of the convolution on this image.

    Kernel from data: gain of x is the norm for the entrywise largest ``|W|`` of its range; gain of W is that of ``im2col(x)``:
    ``sqrt(m) |x|_2`` in l2 (m: windows over one pixel), the largest channel sum in l1, the largest window sum in linf.
    """

    def _operator(self, site: Site, weight: Array) -> LinearOperator | str:
        shape = site.shape(0)
        if not 3 <= len(shape) <= 5 or weight.ndim != len(shape):
            return f"convolution of a tensor of rank {len(shape)}"
        found = window(site, weight.shape[2:])
        if isinstance(found, str):
            return found
        groups = int(site.attr("group", 1))
        if groups < 1 or weight.shape[1] * groups != shape[1] or weight.shape[0] % groups:
            return "groups do not fit the channels"
        operator = Convolution(
            weight, shape[2:], strides=found.strides, dilations=found.dilations, pads=found.pads, groups=groups, batch=shape[0]
        )
        return operator if operator.out_shape == site.out_shape() else "the output shape does not follow from the window"

    def operator(self, site: Site) -> LinearOperator | str:
        """The linear map, or why there is none."""
        constant = site.constant(1)
        if constant is None:
            return f"kernel {site.node.inputs[1]!r} is not constant"
        return self._operator(site, weight_array(constant))

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i == 2:
            return self._bias_gain(site, norm)
        if i == 1:
            return self._kernel_gain(site, norm, xs)
        return super().gain(site, i, norm, xs)

    def _kernel_gain(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        x = xs[0]
        assert x is not None
        found = window(site, site.shape(1)[2:])
        if isinstance(found, str):
            return Unknown(found)
        overlap = Upper(found.overlap(site.shape(0)[2:], site.out_shape()[2:]))
        # One weight meets an input element at most once, so l1 sums each element of a channel once; linf is exact per window.
        factor = {"l1": ONE, "l2": overlap.sqrt(), "linf": Upper(math.prod(site.shape(1)[1:]))}[norm]
        return self._unfolded(site, norm, x, factor)


class ConvTranspose(_Convolving):
    """The transpose of the Conv with the same kernel on an image of the *output* size.

    ``output_shape`` and ``auto_pad`` decide the pads: total ``s (n - 1) + op + (k - 1) d + 1 - out``; ``SAME_UPPER`` begins with
    the smaller half, everything else with the larger one.

    Kernel from data: gain of x as for Conv; gain of W ``sqrt(m) |x|_2`` in l2 with m windows over one output (Cauchy-Schwarz over the
    products of one output), the largest channel sum in l1, ``m C max|x|`` in linf, C channels in a group.
    """

    part = "transposed convolution"

    def operator(self, site: Site) -> LinearOperator | str:
        """The linear map, or why there is none."""
        constant = site.constant(1)
        if constant is None:
            return f"kernel {site.node.inputs[1]!r} is not constant"
        return self._operator(site, weight_array(constant))

    def _operator(self, site: Site, weight: Array) -> LinearOperator | str:
        shape, out = site.shape(0), site.out_shape()
        if not 3 <= len(shape) <= 5 or weight.ndim != len(shape):
            return f"transposed convolution of a tensor of rank {len(shape)}"
        groups = int(site.attr("group", 1))
        if groups < 1 or weight.shape[0] != shape[1] or weight.shape[0] % groups or weight.shape[1] * groups != out[1]:
            return "groups do not fit the channels"
        found = window(site, weight.shape[2:])
        if isinstance(found, str):
            return found
        pads = self._pads(site, found.kernel, found.strides, found.dilations)
        if isinstance(pads, str):
            return pads
        return TransposedConvolution(
            weight, shape[2:], out[2:], strides=found.strides, dilations=found.dilations, pads=pads, groups=groups, batch=shape[0]
        )

    def _pads(
        self, site: Site, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...] | str:
        image, out = site.shape(0)[2:], site.out_shape()[2:]
        rank = len(image)
        extra = [int(x) for x in site.attr("output_padding") or (0,) * rank]
        mode = site.attr("auto_pad", "NOTSET") or "NOTSET"
        full = [s * (n - 1) + op + (k - 1) * d + 1 for n, k, s, d, op in zip(image, kernel, strides, dilations, extra, strict=True)]
        given = site.attr("output_shape")
        if not given and mode in ("NOTSET", "VALID"):
            flat = [int(x) for x in site.attr("pads") or (0,) * (2 * rank)] if mode == "NOTSET" else [0] * (2 * rank)
            pads = tuple((flat[k], flat[k + rank]) for k in range(rank))
            if any(f - begin - end != o for f, (begin, end), o in zip(full, pads, out, strict=True)):
                return "the output shape does not follow from the pads"
            return pads
        totals = [f - o for f, o in zip(full, out, strict=True)]
        # Beyond what the kernel reaches there are only zeros, at the end.
        halves = [(t // 2, t - t // 2) if t > 0 else (0, t) for t in totals]
        return tuple(
            (small, large) if mode == "SAME_UPPER" or t < 0 else (large, small) for t, (small, large) in zip(totals, halves, strict=True)
        )

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i == 2:
            return self._bias_gain(site, norm)
        return self._kernel_gain(site, norm, xs) if i == 1 else super().gain(site, i, norm, xs)

    def _kernel_gain(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """An output sums at most m products per channel of its group, m the windows that meet one output."""
        x, shape, out = xs[0], site.shape(0), site.out_shape()
        assert x is not None
        found = window(site, site.shape(1)[2:])
        if isinstance(found, str):
            return Unknown(found)
        pads = self._pads(site, found.kernel, found.strides, found.dilations)
        if isinstance(pads, str):
            return Unknown(pads)
        overlap = replace(found, pads=pads).overlap(out[2:], shape[2:])
        channels = shape[1] // max(1, int(site.attr("group", 1)))
        factor = {"l1": ONE, "l2": Upper(overlap).sqrt(), "linf": Upper(overlap) * Upper(channels)}[norm]
        return self._unfolded(site, norm, x, factor)
