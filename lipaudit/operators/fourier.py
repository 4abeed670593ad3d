"""DFT and STFT: Fourier matrices and their norms.

The matrix ``e^(-2 pi i k n / N)`` times its adjoint is N times the identity, so the l2 norm is ``sqrt(N)`` (``1/sqrt(N)`` with
the factor 1/N of the inverse): exact, for zero-padded and real signals too. From half a spectrum back to a real signal the middle
columns count twice and stay orthogonal: ``sqrt(2/N)``. l1 and linf are the largest column and row sums of ``|cos|`` and ``|sin|``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Lower, Norm, Upper
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.broadcast import precise
from lipaudit.operators.range import Range, reals, widen

__all__ = ["DFT", "STFT"]

Floats = NDArray[np.float64]

_FORMED = 1 << 22
"""Up to this many entries the sums are formed; beyond, ``|cos| + |sin| <= sqrt(2)``."""

# numpy's cosines of reduced angles, and the angles themselves, are far more accurate than this.
_SLACK = 2.0**-48


@dataclass(frozen=True, slots=True)
class _Fourier:
    """A transform of length ``length`` of the first ``given`` points, of which ``kept`` outputs are kept.

    ``parts``: 1 for a real input, 2 for a complex one. ``weights`` multiply the input points in absolute value (a window).
    """

    length: int
    given: int
    kept: int
    parts: int
    weights: Floats | None = None

    def sizes(self) -> tuple[Floats, Floats]:
        """``|cos|`` and ``|sin|`` of all angles, with the weights, rounded up: [kept, given]."""
        turns = np.outer(np.arange(self.kept), np.arange(self.given)) % self.length
        angles = 2 * np.pi * np.arange(self.length) / self.length
        cosines, sines = np.abs(np.cos(angles)), np.abs(np.sin(angles))
        weights = np.ones(self.given) if self.weights is None else self.weights
        # An error of the angle matters absolutely where the function is near 0, and not at the exact values 0 and 1.
        exact = np.arange(self.length) * 4 % self.length == 0
        up = [np.where(exact, np.round(table), np.minimum(table + _SLACK, 1.0)) for table in (cosines, sines)]
        return up[0][turns] * weights, up[1][turns] * weights

    def column(self) -> Floats:
        """Upper bound of the column sum of each given point: shape [given]."""
        weights = np.ones(self.given) if self.weights is None else self.weights
        if self.kept * self.given > _FORMED:
            return weights * (math.sqrt(2.0) * self.kept * (1 + _SLACK))
        cosines, sines = self.sizes()
        return _over(cosines + sines, 0)

    def row(self) -> float:
        """Upper bound of the largest row sum."""
        weights = np.ones(self.given) if self.weights is None else self.weights
        if self.kept * self.given > _FORMED:
            return widen(float(weights.sum()), self.given) * (1.0 if self.parts == 1 else math.sqrt(2.0) * (1 + _SLACK))
        cosines, sines = self.sizes()
        if self.parts == 2:
            return float(np.max(_over(cosines + sines, 1)))
        return float(max(np.max(_over(cosines, 1)), np.max(_over(sines, 1))))


def _over(sizes: Floats, axis: int) -> Floats:
    """Sums of non-negative numbers along an axis, rounded up (not at all for sums of a few whole numbers)."""
    sums = sizes.sum(axis=axis)
    if np.all(sizes == np.round(sizes)):
        return sums
    return np.nextafter(sums * (1 + (sizes.shape[axis] + 4) * 2.0**-52), np.inf)


def _scalar(site: Site, i: int) -> int | Unknown | None:
    """A stored integer input; None if omitted."""
    if not site.has(i):
        return None
    constant = site.constant(i)
    return Unknown("a length, a step or an axis is not constant") if constant is None else int(np.asarray(constant.array()).ravel()[0])


class _Transform(Rule):
    """A linear map whose norms ``_norm`` knows; ``_fixed`` names what must not move, ``_method`` how the constant is had."""

    _fixed: ClassVar[str]
    _method: ClassVar[str]

    @abstractmethod
    def _norm(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """Norm of the whole map."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Within the largest row sum times the largest element."""
        x, row = xs[0], self._norm(site, "linf", xs)
        if x is None or isinstance(row, Unknown):
            return (reals(site.out_shape()),)
        top = np.asarray(float(row * Upper(x.magnitude())))
        return (Range(site.out_shape(), -top, top),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i:
            return Unknown(f"{self._fixed} depend on the source")
        if math.prod(site.shape(0)) == 0 or math.prod(site.out_shape()) == 0:
            return Finite(ZERO, method="empty")
        found = self._norm(site, norm, xs)
        return found if isinstance(found, Unknown) else Finite(found, method=self._method)


class DFT(_Transform):
    """Forward and inverse, one- and two-sided, real and complex (last axis of 1 or 2), padded or cropped to ``dft_length``."""

    _fixed = "the length or the axis"
    _method = "Fourier matrix"

    def _form(self, site: Site) -> tuple[_Fourier, bool, bool] | Unknown:
        """The transform, whether it is the inverse one, and whether it is from half a spectrum to a real signal."""
        shape, out = site.shape(0), site.out_shape()
        length = _scalar(site, 1)
        axis = _scalar(site, 2) if site.node.version >= 20 else int(site.attr("axis", 1))
        if isinstance(length, Unknown) or isinstance(axis, Unknown):
            return Unknown("dft_length or axis is not constant")
        axis = (-2 if axis is None else axis) % len(shape)
        inverse, onesided = bool(site.attr("inverse", 0)), bool(site.attr("onesided", 0))
        half = inverse and onesided
        if length is None:
            length = 2 * (shape[axis] - 1) if half else shape[axis]
        if length < 1 or shape[-1] not in (1, 2):
            return Unknown("a transform of no points, or of a signal that is neither real nor complex")
        kept = length // 2 + 1 if onesided and not inverse else length
        given = min(shape[axis], length // 2 + 1 if half else length)
        if out[axis] != kept or out[-1] != (1 if half else 2):
            return Unknown("the output shape does not follow from the length of the transform")
        return _Fourier(length, given, kept, shape[-1]), inverse, half

    def _norm(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        form = self._form(site)
        if isinstance(form, Unknown):
            return form
        fourier, inverse, half = form
        n = fourier.length
        if half:
            return self._half(fourier, norm)
        scale = Lower(n) if inverse else Lower(1)
        if norm == "l2":
            return Upper(n).sqrt() / scale
        size = float(np.max(fourier.column())) if norm == "l1" else fourier.row()
        return Upper(size) / scale

    @staticmethod
    def _half(fourier: _Fourier, norm: Norm) -> Upper:
        """``y_n = (Re X_0 + 2 sum_k Re(X_k e^(i..)) [+ Re X_(N/2) (-1)^n]) / N``."""
        n, given = fourier.length, fourier.given
        doubled = np.asarray([1.0 if k == 0 or 2 * k == n else 2.0 for k in range(given)])
        top = Upper(float(doubled.max(initial=0.0)))
        if norm == "l2":
            # A doubled column has norm 2 sqrt(N/2) / N, an undoubled one sqrt(N) / N.
            return Upper(f"2/{n}").sqrt() if np.any(doubled == 2) else Upper(f"1/{n}").sqrt()
        whole = _Fourier(n, given, n, fourier.parts, doubled)
        if norm == "linf":
            return min(Upper(whole.row()), Upper(float(doubled.sum())) * Upper(2).sqrt()) / Lower(n)
        if n * given > _FORMED:
            return top
        cosines, sines = whole.sizes()
        return Upper(float(max(np.max(_over(cosines, 0)), np.max(_over(sines, 0))))) / Lower(n)


class STFT(_Transform):
    """Transforms of overlapping frames, each weighted by a window w: ``A'A = N diag(sum over frames of w^2)``.

    l2: ``sqrt(N max_t sum_frames w(t - start)^2)``, exact two-sided; the l1 and linf sums carry the window.
    """

    _fixed = "the window or the frames"
    _method = "Fourier matrix of each frame"

    def _frames(self, site: Site, xs: Sequence[Range | None]) -> tuple[_Fourier, int, int] | Unknown:
        """The transform of one frame, the step, the number of frames."""
        shape, out = site.shape(0), site.out_shape()
        step, length = _scalar(site, 1), _scalar(site, 3)
        if isinstance(step, Unknown) or isinstance(length, Unknown) or step is None or step < 1:
            return Unknown("frame_step or frame_length is not a positive constant")
        if length is None:
            length = site.shape(2)[0] if site.has(2) else shape[1]
        weights = None
        if site.has(2):
            window = precise(site, 2, xs[2])
            if not window.is_bounded or window.shape != (length,):
                return Unknown("the window is not known, or not as long as a frame")
            weights = np.broadcast_to(window.magnitudes(), (length,))
        # onnx infers all frequencies where ``onesided`` is left at its default 1: more of them only raise the norms.
        kept = length // 2 + 1 if site.attr("onesided", 1) and out[2:3] != (length,) else length
        parts = shape[2] if len(shape) == 3 else 1
        frames = out[1]
        if len(out) != 4 or out[2] != kept or parts not in (1, 2) or (frames - 1) * step + length > shape[1]:
            return Unknown("the output shape does not follow from the frames")
        return _Fourier(length, length, kept, parts, weights), step, frames

    def _norm(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        found = self._frames(site, xs)
        if isinstance(found, Unknown):
            return found
        fourier, step, frames = found
        if norm == "linf":
            return Upper(fourier.row())
        weights = np.ones(fourier.length) if fourier.weights is None else fourier.weights
        each = np.maximum(weights, 1e-150 * (weights > 0)) ** 2 if norm == "l2" else fourier.column()
        total = np.zeros(site.shape(0)[1])
        for frame in range(frames):
            total[frame * step : frame * step + fourier.length] += each
        top = float(np.max(total, initial=0.0))
        whole = fourier.weights is None and norm == "l2"
        size = Upper(top if whole else widen(top, frames + 2))
        return (Upper(fourier.length) * size).sqrt() if norm == "l2" else size
