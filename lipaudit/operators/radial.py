"""Normalization of one group of n numbers: ``z = Px / s``, where s is a root mean square of Px, and its exact constants.

With ``r = |Px|`` (P subtracts the mean, or is the identity) and ``m`` the divisor of the mean square,
``s = sqrt(r^2/m + eps)``, or ``r/sqrt(m) + eps``, or ``max(r/sqrt(m), eps)``. Then ``z = phi(r) Px/|Px|`` with phi concave and
phi(0) = 0, and the two-point lemma of radial maps gives ``|z - z'| <= |P(x - x')| sup phi(r)/r`` on *any* set, convex or
not: the gain is ``1/s0`` with s0 the smallest s. In l1 and linf the Jacobian is ``(P - t uu')/s`` with u a unit vector
and t in [0, 1]; its absolute row (= column) sums are at most ``(A + t B)/s``:

- with mean: ``A = 2 (1 - 1/n)``, ``B = sqrt(n - 1)/2`` (Cauchy-Schwarz with sum u = 0);
- without: ``A = 1``, ``B = (sqrt(n) - 1)/2`` (attained).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Lower, Norm, Upper
from lipaudit.operators.range import Range, down, up, widen

__all__ = ["Radial", "Spread", "centred_scale_norm", "spread"]

Floats = NDArray[np.float64]
Place = Literal["root", "outside", "max"]


@dataclass(frozen=True, slots=True)
class Radial:
    """The normalization of one group.

    Attributes
    ----------
    centred
        The mean is subtracted (layer, instance, group normalization); False for root-mean-square and l2 forms.
    n
        Elements in the group.
    m
        Divisor of the mean square: n, n - 1 (unbiased), or 1 (plain l2 norm).
    eps
        As stored; >= 0.
    place
        "root": added under the root; "outside": added to the root; "max": the root is at least eps.
    """

    centred: bool
    n: int
    m: int
    eps: float
    place: Place = "root"

    @property
    def is_constant(self) -> bool:
        """A centred group of one element is always zero."""
        return self.n == 0 or (self.centred and self.n == 1)

    def inverse_scale(self, floor: float) -> Upper:
        """``1/s0`` for groups with ``|Px| >= floor``; infinite if s can be 0."""
        r, eps, m = Lower(floor), Lower(self.eps), Upper(self.m)
        if self.place == "root":
            return ONE / (r * r / m + eps).sqrt()
        root = r / m.sqrt()
        return ONE / (root + eps if self.place == "outside" else max(root, eps))

    def slope(self, norm: Norm, floor: float) -> Upper:
        """Gain from x to z in ``norm`` on a *convex* set of groups with ``|Px| >= floor`` (in l2: on any set)."""
        if self.is_constant:
            return ZERO
        inverse = self.inverse_scale(floor)
        if norm == "l2":
            return inverse
        a, b = self._row_sum()
        local = (a + b.upper) * inverse
        return min(local, self._global_row_sum(a, b))

    def _row_sum(self) -> tuple[Upper, _Root]:
        """A and B of the module's docstring."""
        n = self.n
        if self.centred:
            return Upper(2 * (n - 1)) / Lower(n), _Root(n - 1, 0)
        return ONE, _Root(n, 1)

    def _global_row_sum(self, a: Upper, b: _Root) -> Upper:
        """Largest ``(A + t B)/s`` over t when nothing is known of r; decisions between the cases are on integers."""
        n = self.n
        if not self.eps > 0:
            return INFINITE
        eps = Lower(self.eps)
        if self.place == "root":  # 1/s = sqrt((1 - t)/eps)
            root = eps.sqrt()
            if n <= (2 if self.centred else 4):
                return a / root
            total = a + b.upper
            return Upper(2) * total * total.sqrt() / (Lower(27).sqrt() * b.lower.sqrt() * root)
        if self.place == "outside":  # 1/s = (1 - t)/eps
            if n <= (14 if self.centred else 9):
                return a / eps
            total = a + b.upper
            return total * total / (Lower(4) * b.lower * eps)
        return (a + b.upper) / eps

    def radius(self, largest: float) -> float:
        """Upper bound of ``|z|`` for groups with ``|Px| <= largest``: ``sqrt(m r^2/m / (r^2/m + eps))`` and alike."""
        if self.is_constant or largest == 0:
            return 0.0
        if math.isinf(largest):
            return float(Upper(self.m).sqrt())
        r, m = Upper(largest), Upper(self.m)
        if self.place == "root":
            ratio = (ONE / (Lower(1) + Lower(self.eps) / (r * r / Lower(self.m)))).sqrt()
        else:
            root = r / Lower(self.m).sqrt()
            ratio = ONE / (Lower(1) + Lower(self.eps) / root) if self.place == "outside" else min(ONE, _over(root, self.eps))
        return float(m.sqrt() * ratio)

    def peak(self, radius: float) -> float:
        """Upper bound of ``|z_k|``: the radius, times ``sqrt((n-1)/n)`` for vectors that sum to zero."""
        if self.is_constant:
            return 0.0
        if not self.centred:
            return radius
        return float(Upper(radius) * (Upper(self.n - 1) / Lower(self.n)).sqrt())


def _over(root: Upper, eps: float) -> Upper:
    return root / Lower(eps) if eps > 0 else INFINITE


@dataclass(frozen=True, slots=True)
class _Root:
    """``(sqrt(n) - minus)/2`` from both sides."""

    n: int
    minus: int

    @property
    def upper(self) -> Upper:
        return Upper(max(0.0, float(up(up(float(Upper(self.n).sqrt())) - self.minus)) / 2))

    @property
    def lower(self) -> Lower:
        return Lower(max(0.0, float(down(down(float(Lower(self.n).sqrt())) - self.minus)) / 2))


@dataclass(frozen=True, slots=True)
class Spread:
    """Bounds of ``|Px|`` over all groups of a box: smallest (0: none) and largest (inf: none)."""

    floor: float
    largest: float


def spread(x: Range, shape: tuple[int, ...], axes: tuple[int, ...], centred: bool) -> Spread:
    """Bounds of ``|Px|`` from element intervals. ``shape`` is a regrouping of the shape of ``x``; a group runs over ``axes``.

    ``|Px| >= |Pc| - |h|_2`` and ``<= |Pc| + |h|_2`` for a box of centre c and half widths h; without the mean also
    ``|x|^2 >= sum min x_i^2`` exactly.
    """
    n = math.prod(shape[axis] for axis in axes)
    if x.size == 0 or n == 0:
        return Spread(0.0, 0.0)
    if not x.is_bounded:
        return Spread(0.0, math.inf)
    lo, hi = np.broadcast_arrays(x.lo, x.hi)
    if lo.size == 1:
        lo, hi = lo.reshape((1,) * len(shape)), hi.reshape((1,) * len(shape))
    else:
        lo, hi = (np.broadcast_to(end, x.shape).reshape(shape) for end in (lo, hi))
    copies = n // math.prod(lo.shape[axis] for axis in axes)
    with np.errstate(over="ignore", invalid="ignore"):
        centre = lo / 2 + hi / 2
        half = up(np.maximum(hi - centre, centre - lo))
        radius = np.sqrt(np.sum(half * half, axis=axes) * copies) * (1 + (n + 8) * 2.0**-52)
        middle = centre - np.mean(centre, axis=axes, keepdims=True) if centred else centre
        # |fl(Pc) - Pc|_2 <= sqrt(n) (n + 4) u max|c|
        error = (n + 8) * math.sqrt(n) * 2.0**-52 * np.max(np.abs(centre), axis=axes)
        length = np.sqrt(np.sum(middle * middle, axis=axes) * copies)
        low = length * (1 - (n + 8) * 2.0**-52) - error - radius
        high = length * (1 + (n + 8) * 2.0**-52) + error + radius
        if not centred:
            nearest = np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(np.abs(lo), np.abs(hi)))
            low = np.maximum(low, np.sqrt(np.sum(nearest * nearest, axis=axes) * copies) * (1 - (n + 8) * 2.0**-52))
    smallest, largest = float(down(np.min(low))), float(up(np.max(high))) + 1e-150  # squares of tiny numbers underflow
    return Spread(max(0.0, smallest) if math.isfinite(smallest) else 0.0, largest if math.isfinite(largest) else math.inf)


def centred_scale_norm(scale: Floats) -> float:
    """Upper bound of ``||G P||`` for ``G = diag(scale)`` and P the centering of n >= 2 elements: at most ``max|g|``.

    ``x >= ||GP||^2`` for x between the two largest squares iff ``sum_i 1/(x - g_i^2) <= 0`` (inertia of ``x I - G^2`` on the
    hyperplane of zero sum): verified outward for a candidate, else ``max|g|``.
    """
    g = np.abs(np.asarray(scale, dtype=np.float64).ravel())
    top = float(np.max(g))
    n = g.size
    if n < 2 or top == 0 or not math.isfinite(top):
        return top
    squares = np.sort((g / top) ** 2)[::-1]
    if squares[1] > 1 - 2.0**-20:
        return top
    # Bisection in float64 gives a candidate; one verified evaluation slightly above it decides.
    low, high = float(squares[1]), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if middle <= squares[1] or float(np.sum(1 / (middle - squares[1:]))) > 1 / (1 - middle):
            low = middle
        else:
            high = middle
    for slack in (2.0**-40, 2.0**-30, 2.0**-20, 2.0**-10):
        candidate = high + (1 - high) * slack
        if squares[1] < candidate < 1 and _dominates(squares, candidate):
            return widen(top * math.sqrt(candidate), 8)
    return top


def _dominates(squares: Floats, x: float) -> bool:
    """Certainly ``sum_{i >= 1} 1/(x - q_i) <= 1/(q_0 - x)``; the squares carry a relative error of a few units."""
    error = 2.0**-49
    gaps = x - squares[1:] - error
    if np.min(gaps) <= 0:
        return False
    left = float(np.sum(1 / gaps)) * (1 + (squares.size + 4) * 2.0**-52)
    right = (1 - 2.0**-50) / (1 - x + error)
    return left <= right
