"""Linear operators as lazy objects: the interface. The operators themselves are in ``linear.py`` and ``conv.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Lower, Norm, Upper

__all__ = ["LinearOperator", "VerifiedNorm"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VerifiedNorm:
    """A norm from both sides.

    ``upper`` is proved (never below the norm of the operator in exact arithmetic); ``lower`` is proved from below, or 0.
    ``method`` is a short name ("verified Cholesky", "twisted torus", "exact sum", ...); ``evidence`` holds what a checker
    needs to verify ``upper`` again (JSON-able).
    """

    upper: Upper
    lower: Lower
    method: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class LinearOperator(ABC):
    """A linear map between tensors of static shape, applied in float64."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @abstractmethod
    def apply(self, x: Floats) -> Floats:
        """Image of ``x`` (shape ``in_shape``) in float64."""

    @abstractmethod
    def adjoint(self, y: Floats) -> Floats:
        """Image of ``y`` (shape ``out_shape``) under the transpose, in float64."""

    @abstractmethod
    def magnitude(self) -> LinearOperator:
        """The operator whose matrix entries are the absolute values of this one's (or an upper bound of them)."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """Most products that one output element sums: the k of the rounding bound gamma_k."""

    @abstractmethod
    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Verified operator norm, ``norm`` on both (flattened) sides.

        ``slack`` is the relative excess that is asked for; it is a wish, not a promise.
        """

    def without(self, axis: int) -> LinearOperator | None:
        """The operator for length 1 along ``axis`` of input and output, if it is ``A (x) I`` there: it does the same at every place."""
        return None

    def entries(self, *, magnitude: bool) -> Any | None:
        """The matrix [outputs, inputs] (of magnitudes) as a ``scipy.sparse`` one, each entry after ``terms`` roundings; None if dense."""
        return None

    def leaves(self) -> Sequence[LinearOperator]:
        """The operators of which a composition is made, else itself."""
        return (self,)

    def spread(self, norm: Norm) -> Upper:
        """Upper bound of the l1 or linf norm of :meth:`magnitude`."""
        return self.magnitude().norm(norm).upper

    def underflow(self) -> Floats:
        """Bound of what underflow alone adds to the error of ``apply`` (broadcasts to ``out_shape``).

        A product that underflows is off by less than one smallest normal number; compositions amplify that.
        """
        return np.asarray(self.terms * 2.0**-1020)

    def enclose(self, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
        """Rigorous element intervals of the image of a box (arrays that broadcast to ``in_shape``, infinite ends allowed).

        Centre and radius with a rounding allowance: ``|fl(Ac) - Ac| <= gamma_k |A||c|``, computed with ``magnitude()``.
        """
        lo, hi = np.broadcast_to(lo, self.in_shape), np.broadcast_to(hi, self.in_shape)
        open_ends = ~(np.isfinite(lo) & np.isfinite(hi))
        magnitude = self.magnitude()
        if open_ends.all():
            touched = magnitude.apply(np.ones(self.in_shape))
            return np.where(touched == 0, 0.0, -np.inf), np.where(touched == 0, 0.0, np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            centre = np.where(open_ends, 0.0, lo / 2 + hi / 2)
            radius = np.where(open_ends, 0.0, np.maximum(hi - centre, centre - lo))
            radius = np.where(radius > 0, np.nextafter(radius * (1 + 2.0**-51), np.inf), 0.0)
            gamma = (self.terms + 8) * 2.0**-52
            rounding = np.where(centre == 0, 0.0, np.nextafter(gamma * np.abs(centre), np.inf))
            image = self.apply(centre)
            spread = magnitude.apply(radius + rounding) * (1 + gamma)
            # Not "spread > 0": inf * 0 inside a product is NaN, which must become the whole line and not a point.
            spread = np.where(spread == 0, 0.0, np.nextafter(spread + np.abs(image) * 2.0**-51, np.inf))
        with np.errstate(over="ignore", invalid="ignore"):
            cushion = self.underflow()
            low, high = image - spread - cushion, image + spread + cushion
        low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        if open_ends.any():
            touched = ~(magnitude.apply(open_ends.astype(np.float64)) == 0)
            low, high = np.where(touched, -np.inf, low), np.where(touched, np.inf, high)
        return low, high
