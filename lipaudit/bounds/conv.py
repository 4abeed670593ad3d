"""Convolutions of one to three dimensions as linear operators, with verified norms.

l2, in order of preference: uniform kernels split into one-dimensional ones (exact); a single block tap is a dense matrix; operators whose
smaller side is small are formed; the rest is bounded on a twisted torus (``torus.py``), small images on half of one (``half.py``).
l1 and linf: exact sums over the taps that one input or output really meets. ``sqrt(l1 * linf)`` is always valid and always tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.adjoint import Adjoint
from lipaudit.bounds.below import iterate, witnessed
from lipaudit.bounds.dense import dense_norm, nonfinite, refused, uniform_value
from lipaudit.bounds.half import half_torus
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import INFINITE, ZERO, Lower, Norm, Upper
from lipaudit.bounds.sums import largest_row_sum
from lipaudit.bounds.symbol import scalar_bounds, symbol_norm
from lipaudit.bounds.window import Axis, axes, multiplicity, pairs

__all__ = ["Convolution", "TransposedConvolution"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

COLUMNS = 1 << 23
"""Largest number of doubles (64 MB) of an unfolded input; beyond it taps are applied one by one."""

DENSE_SIDE = 2048
DENSE_WORK = 8e10
"""An operator is formed if its smaller side and the flops of its verified norm are at most these (a second or two)."""

HALF_IMAGE = 16
HALF_FROM = 5e-3
"""Images (along their shorter axis) for which a half torus is tried, if the torus leaves at least this slack."""

ONES_SIDE = 1024
"""Largest axis whose all-ones window is formed as a matrix."""

LOWER_STEPS = 10
LOWER_LEAST = 3
LOWER_SECONDS = 0.3
"""Lanczos steps of the lower estimate: as many as fit in about this time, within these limits."""


class Convolution(LinearOperator):
    """``y[n, o, i] = sum_(c, t) W[o, c, t] x[n, c, s i + d t - p]``, zero outside the image, per group.

    Parameters
    ----------
    weight
        [o, c/groups, *kernel], any real dtype whose values are doubles. A broadcast scalar (strides 0) is never materialised.
    image
        Spatial shape of the input (1 to 3 axes).
    strides, dilations
        Per axis.
    pads
        (begin, end) per axis; may be asymmetric or negative (a crop).
    groups, batch
        As usual; ``in_shape`` is (batch, c, *image), ``out_shape`` (batch, o, *outputs).
    outputs
        Output size per axis where it is not the largest that fits.
    """

    def __init__(
        self,
        weight: Array,
        image: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[tuple[int, int]] | None = None,
        groups: int = 1,
        batch: int = 1,
        outputs: Sequence[int] | None = None,
    ) -> None:
        dim = len(image)
        if weight.ndim != dim + 2 or not 1 <= dim <= 3:
            raise ValueError(f"a kernel of shape {weight.shape} does not fit an image of shape {tuple(image)}")
        if groups < 1 or weight.shape[0] % groups:
            raise ValueError(f"{weight.shape[0]} output channels cannot be split into {groups} groups")
        ones = (1,) * dim
        self.weight = weight
        self.groups = groups
        self.window = axes(weight.shape[2:], image, strides or ones, dilations or ones, pads or ((0, 0),) * dim, outputs)
        self.in_shape = (batch, weight.shape[1] * groups, *(int(n) for n in image))
        self.out_shape = (batch, weight.shape[0], *(axis.outputs for axis in self.window))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per axis."""
        return tuple(axis.kernel for axis in self.window)

    @cached_property
    def fill(self) -> float | None:
        """The value of a uniform kernel, else None."""
        value = uniform_value(self.weight)
        if value is None and self.weight.size and np.all(self.weight == self.weight.flat[0]):
            value = float(self.weight.flat[0])
        return value

    @cached_property
    def _matrix(self) -> Floats:
        """The kernel as [groups, o/groups, c/groups, taps] in float64."""
        o, c = self.weight.shape[:2]
        return np.asarray(self.weight, dtype=np.float64).reshape(self.groups, o // self.groups, c, -1)

    @cached_property
    def _taps(self) -> Floats:
        """The same, tap first: [taps, groups, o/groups, c/groups], contiguous."""
        return np.ascontiguousarray(self._matrix.transpose(3, 0, 1, 2))

    def _with(self, weight: Array) -> Convolution:
        """The same window with another kernel (as many groups)."""
        other = object.__new__(Convolution)
        other.weight, other.groups, other.window = weight, self.groups, self.window
        other.in_shape, other.out_shape = self.in_shape, self.out_shape
        return other

    def scaled(self, channels: Floats, *, inputs: bool) -> Convolution:
        """The operator with its kernel multiplied by one factor per input or output channel (rounded to float64)."""
        kernel = np.asarray(self.weight, dtype=np.float64)
        if inputs:
            o, c = kernel.shape[:2]
            factors = np.repeat(channels.reshape(self.groups, 1, c), o // self.groups, axis=1).reshape(o, c)
        else:
            factors = channels.reshape(-1, 1)
        return self._with(kernel * factors.reshape(*factors.shape, *(1,) * len(self.window)))

    def apply(self, x: Floats) -> Floats:
        """Image of ``x`` (batch, c, *image)."""
        n, o = self.out_shape[:2]
        g = self.groups
        y = np.zeros((n, g, o // g, *self.out_shape[2:]))
        blocks = np.asarray(x, dtype=np.float64).reshape(n, g, -1, *self.in_shape[2:])
        value = self.fill
        if value is not None:
            total = np.zeros((n, g, 1, *self.out_shape[2:]))
            blocks = blocks.sum(axis=2, keepdims=True)
            for _, out, inp in pairs(self.window):
                total[(..., *out)] += blocks[(..., *inp)]
            return (y + value * total).reshape(self.out_shape)
        outputs, c = math.prod(self.out_shape[2:]), blocks.shape[2]
        if (c > 1 or g == 1) and n * g * self._taps.shape[0] * c * outputs <= COLUMNS:
            columns = np.zeros((n, g, c, *self.kernel, *self.out_shape[2:]))
            for taps, out, inp in pairs(self.window):
                columns[(slice(None), slice(None), slice(None), *taps, *out)] = blocks[(..., *inp)]
            flat = self._matrix.reshape(g, o // g, -1) @ columns.reshape(n, g, -1, outputs)
            return flat.reshape(self.out_shape)
        for taps, out, inp in pairs(self.window):
            matrix = self._taps[int(np.ravel_multi_index(taps, self.kernel))]
            part = blocks[(..., *inp)]
            if c == 1:
                y[(..., *out)] += matrix.reshape(g, o // g, *(1,) * len(out)) * part
            else:
                y[(..., *out)] += (matrix @ part.reshape(n, g, c, -1)).reshape(n, g, o // g, *part.shape[3:])
        return y.reshape(self.out_shape)

    def adjoint(self, y: Floats) -> Floats:
        """Image of ``y`` (batch, o, *outputs) under the transpose."""
        n, c = self.in_shape[:2]
        g = self.groups
        x = np.zeros((n, g, c // g, *self.in_shape[2:]))
        blocks = np.asarray(y, dtype=np.float64).reshape(n, g, -1, *self.out_shape[2:])
        value = self.fill
        if value is not None:
            total = np.zeros((n, g, 1, *self.in_shape[2:]))
            blocks = blocks.sum(axis=2, keepdims=True)
            for _, out, inp in pairs(self.window):
                total[(..., *inp)] += blocks[(..., *out)]
            return (x + value * total).reshape(self.in_shape)
        outputs, count = math.prod(self.out_shape[2:]), self._taps.shape[0]
        if (c // g > 1 or g == 1) and n * c * count * outputs <= COLUMNS:
            columns = self._matrix.reshape(g, blocks.shape[2], -1).transpose(0, 2, 1) @ blocks.reshape(n, g, -1, outputs)
            columns = columns.reshape(n, g, c // g, *self.kernel, *self.out_shape[2:])
            for taps, out, inp in pairs(self.window):
                x[(..., *inp)] += columns[(slice(None), slice(None), slice(None), *taps, *out)]
            return x.reshape(self.in_shape)
        for taps, out, inp in pairs(self.window):
            matrix = self._taps[int(np.ravel_multi_index(taps, self.kernel))].transpose(0, 2, 1)
            part = blocks[(..., *out)]
            if blocks.shape[2] == 1:
                x[(..., *inp)] += matrix.reshape(g, c // g, *(1,) * len(out)) * part
            else:
                x[(..., *inp)] += (matrix @ part.reshape(n, g, blocks.shape[2], -1)).reshape(n, g, c // g, *part.shape[3:])
        return x.reshape(self.in_shape)

    def magnitude(self) -> Convolution:
        """The operator of ``|W|``."""
        value = uniform_value(self.weight)
        if value is not None:
            return self._with(np.broadcast_to(np.float64(abs(value)), self.weight.shape))
        return self._with(np.abs(np.asarray(self.weight, dtype=np.float64)))

    def without(self, axis: int) -> Convolution | None:
        """The batch."""
        return self._single() if axis == 0 else None

    @property
    def terms(self) -> int:
        """Taps times input channels of a group."""
        return max(1, math.prod(self.weight.shape[1:]))

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Verified norm; see the module for the methods."""
        if self.weight.size == 0 or not all(axis.reachable for axis in self.window):
            return VerifiedNorm(ZERO, Lower(0), "no tap meets the image")
        bad = nonfinite(self.weight)
        if bad:
            return refused(bad)
        if self.fill is not None:
            return self._uniform_norm(self.fill, norm, slack)
        if norm != "l2":
            upper = self._sums(norm)
            return VerifiedNorm(upper, _just_below(upper), "exact sum")
        mixed = (self._sums("l1") * self._sums("linf")).sqrt()
        # A single block tap that some output meets in full is exact by itself, and smaller than the operator.
        whole = all(axis.form().count == 1 and len(axis.row_masks()) == 1 for axis in self.window)
        found = self._by_symbol(slack, mixed) if whole or not self._forming_is_cheap() else self._formed(slack)
        if mixed <= found.upper:
            return VerifiedNorm(mixed, found.lower, "sqrt(l1 * linf)")
        return found

    def _sums(self, norm: Norm) -> Upper:
        """l1 or linf norm: largest sum over the taps that one input (one output) really meets."""
        o, c = self.weight.shape[:2]
        kernel = self.weight.reshape(self.groups, o // self.groups, c, *self.kernel)
        best = ZERO
        masks = [axis.column_masks() if norm == "l1" else axis.row_masks() for axis in self.window]
        for choice in np.ndindex(*(len(mask) for mask in masks)):
            part = kernel
            for k, at in enumerate(choice):
                mask = masks[k][at]
                if not mask.all():
                    part = np.compress(mask, part, axis=3 + k)
            rows = np.swapaxes(part, 1, 2) if norm == "l1" else part
            best = max(best, largest_row_sum(rows.reshape(self.groups * rows.shape[1], -1)))
        return best

    def _uniform_norm(self, value: float, norm: Norm, slack: float) -> VerifiedNorm:
        """All entries equal: the outer product of all-ones channel matrices and all-ones windows, axis by axis."""
        o, c = self.weight.shape[:2]
        size = abs(value)
        inner = {"l1": o // self.groups, "l2": o // self.groups * c, "linf": c}[norm]
        upper, lower = (Upper(inner).sqrt(), Lower(inner).sqrt()) if norm == "l2" else (Upper(inner), Lower(inner))
        upper, lower = upper * Upper(size), lower * Lower(size)
        for axis in self.window:
            factor = _ones_norm(axis, norm, slack)
            upper, lower = upper * factor.upper, lower * factor.lower
        return VerifiedNorm(upper, lower, "uniform kernel", {"value": value.hex()})

    def _side(self) -> tuple[int, int]:
        """Smaller and larger side of the matrix of one group."""
        rows = self.out_shape[1] // self.groups * math.prod(self.out_shape[2:])
        columns = self.in_shape[1] // self.groups * math.prod(self.in_shape[2:])
        return min(rows, columns), max(rows, columns)

    def _forming_is_cheap(self) -> bool:
        small, large = self._side()
        work = self.groups * small * small * (large + small / 3.0)
        return small <= DENSE_SIDE and small * large <= 1 << 25 and work <= DENSE_WORK

    def matrix(self, group: int = 0) -> Floats:
        """The matrix of one group, [o/groups * outputs, c/groups * pixels]."""
        o, c = self._matrix.shape[1:3]
        out, image = self.out_shape[2:], self.in_shape[2:]
        full = np.zeros((o, math.prod(out), c, math.prod(image)))
        rows, columns = np.arange(math.prod(out)).reshape(out), np.arange(math.prod(image)).reshape(image)
        for taps, met, seen in pairs(self.window):
            block = self._taps[int(np.ravel_multi_index(taps, self.kernel)), group]
            full[:, rows[met].ravel(), :, columns[seen].ravel()] = block
        return full.reshape(o * math.prod(out), -1)

    def _formed(self, slack: float) -> VerifiedNorm:
        """Largest dense norm of a group; groups that a cheap bound puts below it are not formed."""
        cheap = [INFINITE] * self.groups
        if self.groups > 1 and min(self._matrix.shape[1:3]) == 1:
            cheap = scalar_bounds(self._matrix, self.window)
        best: VerifiedNorm | None = None
        lower, at = Lower(0), 0
        for group in sorted(range(self.groups), key=lambda k: cheap[k], reverse=True):
            if best is not None and cheap[group] <= best.upper:
                break
            found = dense_norm(self.matrix(group), "l2", slack)
            lower = max(lower, found.lower)
            if best is None or found.upper > best.upper:
                best, at = found, group
        assert best is not None
        return VerifiedNorm(best.upper, lower, f"formed: {best.method}", {**best.evidence, "group": at})

    def _by_symbol(self, slack: float, mixed: Upper) -> VerifiedNorm:
        """Bound by the symbol; the lower value from a few Lanczos steps on the operator itself."""
        found = symbol_norm(self._matrix, self.window, slack)
        if found.lower is not None and all(len(axis.row_masks()) == 1 for axis in self.window):
            return VerifiedNorm(found.upper, found.lower, found.method, found.evidence)
        one = self if self.out_shape[0] == 1 else self._single()
        start = None if found.start is None else one._lifted(found.start)
        lower = witnessed(one, iterate(one, one._affordable_steps(), start), mixed)
        if not found.upper.is_finite:
            return VerifiedNorm(self._reshaped(slack), lower, "reshaped kernel")
        if min(axis.image for axis in self.window) <= HALF_IMAGE and float(found.upper) > float(lower) * (1 + HALF_FROM):
            half = half_torus(self._matrix, self.window, slack, found.evidence.get("twist"))
            if half is not None and half[0] < found.upper:
                return VerifiedNorm(half[0], lower, "half torus", half[1])
        return VerifiedNorm(found.upper, lower, found.method, found.evidence)

    def _affordable_steps(self) -> int:
        """Lanczos steps for the lower estimate: fewer where one product takes long (the start is better there, too)."""
        taps, outputs = math.prod(self.kernel), math.prod(self.out_shape[2:])
        flops = 4.0 * self.out_shape[1] * self.weight.shape[1] * taps * outputs
        moved = 32.0 * (self.in_shape[1] + self.out_shape[1]) * taps * outputs
        return max(LOWER_LEAST, min(LOWER_STEPS, int(LOWER_SECONDS / (flops / 2e10 + moved / 5e9))))

    def _single(self) -> Convolution:
        """The same operator on a batch of one."""
        other = self._with(self.weight)
        other.in_shape, other.out_shape = (1, *self.in_shape[1:]), (1, *self.out_shape[1:])
        return other

    def _lifted(self, wave: tuple[str, Floats]) -> Floats:
        """A start vector on the input side from one on either side."""
        side, values = wave
        return values if side == "in" else self.adjoint(values)

    def _reshaped(self, slack: float) -> Upper:
        """``sqrt(m) * max_group ||W as [o, c * taps]||``, m the number of windows over the most seen pixel: always valid."""
        o = self.weight.shape[0]
        kernel = self.weight.reshape(self.groups, o // self.groups, -1)
        top = max(dense_norm(kernel[g], "l2", slack).upper for g in range(self.groups))
        return Upper(multiplicity(self.window)).sqrt() * top


def _just_below(upper: Upper) -> Lower:
    """The double below an exactly rounded sum."""
    value = float(upper)
    return Lower(math.nextafter(value, 0.0)) if math.isfinite(value) else Lower(0)


def _ones_norm(axis: Axis, norm: Norm, slack: float) -> VerifiedNorm:
    """Norm of an all-ones window along one axis."""
    l1, linf = int(axis.column_masks().sum(axis=1).max()), int(axis.row_masks().sum(axis=1).max())
    if norm != "l2":
        size = l1 if norm == "l1" else linf
        return VerifiedNorm(Upper(size), Lower(size), "exact sum")
    if max(axis.image, axis.outputs) > ONES_SIDE:
        return VerifiedNorm(Upper(l1 * linf).sqrt(), Lower(1), "sqrt(l1 * linf)")
    return dense_norm(axis.matrix(), norm, min(slack, 1e-10) if max(axis.image, axis.outputs) > 256 else 0.0)


class TransposedConvolution(Adjoint):
    """``ConvTranspose``: the transpose of the Conv with the same kernel and attributes on an image of the *output* size.

    Parameters
    ----------
    weight
        [c, o/groups, *kernel] with c input channels.
    image, output
        Spatial shapes of input and output (output padding and ``output_shape`` are already in ``output``).
    strides, dilations, pads, groups, batch
        As for :class:`Convolution`; only the begins of ``pads`` matter.
    """

    def __init__(
        self,
        weight: Array,
        image: Sequence[int],
        output: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[tuple[int, int]] | None = None,
        groups: int = 1,
        batch: int = 1,
    ) -> None:
        base = Convolution(weight, output, strides=strides, dilations=dilations, pads=pads, groups=groups, batch=batch, outputs=image)
        super().__init__(base, max(1, math.prod(weight.shape[2:]) * (weight.shape[0] // groups)))

    def magnitude(self) -> LinearOperator:
        """The operator of ``|W|``."""
        return Adjoint(self.base.magnitude(), self.terms)
