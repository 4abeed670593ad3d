"""Verified norms of dense matrices.

l2: an estimate of the largest singular value from below is turned into a *proved* upper bound by one floating-point
Cholesky factorisation with an a priori rounding allowance (J. Demmel 1989; S. M. Rump, Verification of positive
definiteness, BIT 46, 2006). For W [m, n], n <= m, let G = fl(W'W), t > 0 a double, B = fl(tI - G). If the factorisation
of B succeeds, then with u = 2^-53, gamma_k = ku/(1-ku), phi = gamma_(n+3)/(1-gamma_(n+3)) and S >= || |W| ||^2 ::

    ||W||^2 <= t + u t + phi n t + gamma_m S + 2^-900

The allowance is added to t afterwards: the matrix is not shifted and nothing is factorised twice. Numerical model: every inner product of
length k, in any order, has error at most gamma_k sum |a_i b_i| (any conventional BLAS on a CPU, with or without FMA).

l1, linf: exact sums (``sums.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.kernels import dpotrf, dsyevr, dsymv, dsyrk, ssymv
from lipaudit.bounds.lanczos import largest
from lipaudit.bounds.operator import VerifiedNorm
from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Lower, Norm, Upper
from lipaudit.bounds.sums import BLOCK, exact_sum, largest_row_sum

__all__ = ["SIDE_LIMIT", "dense_norm", "fill_norm", "gamma", "nonfinite", "uniform_value", "vector_norm"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

SIDE_LIMIT = 16384
"""Largest smaller side for which the Gram matrix is formed (2 GB)."""

EXACT_SIDE = 64
"""Up to this smaller side eigenvalues come from LAPACK; above, from Lanczos in float32 (unless slack < 1e-9)."""

SMALL = 1 << 16
"""Up to this many elements sqrt(l1 * linf) is tried too: it is exact for identities, permutations, uniform matrices."""

UNDERFLOW = Upper.from_dyadic(1, -900)
"""Covers every product and entry that underflows once the largest entry is in [2^-40, 2^41]."""

_UNIT = 2.0**-53
_TRIES = 12


def gamma(k: int) -> Upper:
    """``k u / (1 - k u)`` for binary64, the relative error bound of an inner product of length k."""
    return Upper(Fraction(k, (1 << 53) - k))


def uniform_value(weight: Array) -> float | None:
    """The value of a broadcast scalar (all strides 0 along axes longer than 1), else None. Costs nothing."""
    if weight.size == 0 or any(n > 1 and s != 0 for n, s in zip(weight.shape, weight.strides, strict=True)):
        return None
    return float(weight.flat[0])


def nonfinite(weight: Array) -> int:
    """How many entries are NaN or infinite."""
    if uniform_value(weight) is not None:
        return 0 if math.isfinite(float(weight.flat[0])) else int(weight.size)
    return sum(int(block.size - np.count_nonzero(np.isfinite(block))) for block in _flat_blocks(weight))


def refused(count: int) -> VerifiedNorm:
    """The answer for a weight with ``count`` entries that are not finite: callers turn it into a reason."""
    return VerifiedNorm(INFINITE, Lower(0), "non-finite weight", {"nonfinite": count})


def fill_norm(value: float, shape: tuple[int, int], norm: Norm) -> VerifiedNorm:
    """Norm of the m x n matrix with all entries ``value``: ``|c| sqrt(mn)``, ``|c| m`` (l1), ``|c| n`` (linf)."""
    if not math.isfinite(value):
        return refused(shape[0] * shape[1])
    rows, columns = shape
    factor = {"l1": Fraction(rows) if columns else Fraction(0), "linf": Fraction(columns) if rows else Fraction(0)}
    if norm == "l2":
        upper, lower = Upper(rows * columns).sqrt(), Lower(rows * columns).sqrt()
    else:
        upper, lower = Upper(factor[norm]), Lower(factor[norm])
    size = abs(float(value))
    return VerifiedNorm(upper * Upper(size), lower * Lower(size), "uniform matrix", {"value": float(value).hex(), "m": rows, "n": columns})


def vector_norm(values: Array) -> VerifiedNorm:
    """l2 norm of a finite vector, to two units in the last place."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    top = float(np.max(np.abs(flat))) if flat.size else 0.0
    if top == 0.0:
        return VerifiedNorm(ZERO, Lower(0), "sum of squares")
    exponent = math.frexp(top)[1]
    scaled = np.ldexp(flat, -exponent)
    if np.array_equal(scaled.astype(np.float32).astype(np.float64), scaled):
        total = exact_sum((scaled * scaled).tolist())  # products of float32 numbers are doubles
        upper, lower = total.sqrt(), Lower(math.nextafter(float(total), 0.0)).sqrt()
    else:
        near = math.fsum((scaled * scaled).tolist())
        upper = (Upper(near) * (ONE + Upper(2.0**-51)) + UNDERFLOW).sqrt()
        lower = Lower(near * (1 - 2.0**-50)).sqrt()
    return VerifiedNorm(upper * Upper.from_dyadic(1, exponent), lower * Lower.from_dyadic(1, exponent), "sum of squares")


def dense_norm(weight: Array, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
    """Verified norm of a matrix.

    Parameters
    ----------
    weight
        2-D, any real dtype whose values are doubles (float8 to float64, integers up to 32 bits); read in blocks of 32 MB.
    norm
        "l1" (largest column sum), "linf" (largest row sum) or "l2" (largest singular value).
    slack
        Wanted relative excess of the l2 bound; about n^2 u is the least that can be had.

    A weight with NaN or infinite entries has the norm +inf, method "non-finite weight" and their count as evidence.

    For l2 the evidence holds what a checker needs: factorise ``t I - G`` with G the Gram matrix of ``W * 2**-exponent`` on its
    smaller side (n, the longer side is m), and add ``allowance`` (of the squared norm, relative to t).
    """
    if weight.ndim != 2:
        raise ValueError(f"a matrix is needed, got shape {weight.shape}")
    rows, columns = weight.shape
    if weight.size == 0:
        return VerifiedNorm(ZERO, Lower(0), "empty matrix")
    value = uniform_value(weight)
    if value is not None:
        return fill_norm(value, (rows, columns), norm)
    lo, hi = _extremes(weight)
    if not (math.isfinite(lo) and math.isfinite(hi)):
        return refused(nonfinite(weight))
    if lo == hi:
        return fill_norm(lo, (rows, columns), norm)
    if norm != "l2":
        upper = largest_row_sum(weight, axis=0 if norm == "l1" else 1)
        return VerifiedNorm(upper, Lower(math.nextafter(float(upper), 0.0)) if float(upper) < math.inf else Lower(0), "exact sum")
    if min(rows, columns) == 1:
        return vector_norm(weight)
    return _spectral(weight, max(-lo, hi), slack)


def _extremes(weight: Array) -> tuple[float, float]:
    """Smallest and largest entry; NaN if there is one."""
    lo, hi = math.inf, -math.inf
    for block in _flat_blocks(weight):
        lo, hi = min(float(np.min(block)), lo), max(float(np.max(block)), hi)
        if not (math.isfinite(lo) and math.isfinite(hi)):
            return math.nan, math.nan
    return lo, hi


def _flat_blocks(weight: Array) -> Iterator[Array]:
    """The entries in blocks, as float32 or float64 (narrower types have no fast reductions)."""
    flat = weight.reshape(-1) if weight.flags.c_contiguous else weight.T.reshape(-1)
    native = weight.dtype.char in "fd"
    for at in range(0, flat.size, BLOCK):
        block = flat[at : at + BLOCK]
        yield block if native else block.astype(np.float64)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A matrix [m, n], m >= n, times 2**-exponent, read in blocks along its longer side."""

    weight: Array
    exponent: int

    @property
    def tall(self) -> bool:
        return self.weight.shape[0] >= self.weight.shape[1]

    @property
    def m(self) -> int:
        return max(self.weight.shape)

    @property
    def n(self) -> int:
        return min(self.weight.shape)

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """C-ordered float64 blocks with their place along the longer side ([r, n] if tall, else [n, r])."""
        weight = self.weight
        whole = weight.dtype == np.float64 and self.exponent == 0 and weight.flags.c_contiguous
        step = self.m if whole else max(1, BLOCK // self.n)
        for at in range(0, self.m, step):
            place = slice(at, min(at + step, self.m))
            block = weight[place] if self.tall else weight[:, place]
            block = np.ascontiguousarray(block, dtype=np.float64)
            yield place, np.ldexp(block, -self.exponent) if self.exponent else block

    def gram(self) -> Floats:
        """Lower triangle (Fortran order) of the Gram matrix on the smaller side; other entries are 0."""
        total: Floats | None = None
        for _, block in self.blocks():
            # The transpose of a C-ordered block is Fortran-ordered: no copy is made.
            if total is None:
                total = dsyrk(1.0, block.T, trans=0 if self.tall else 1, lower=1)
            else:
                total = dsyrk(1.0, block.T, beta=1.0, c=total, trans=0 if self.tall else 1, lower=1, overwrite_c=1)
        assert total is not None
        return total

    def image(self, x: Floats) -> Floats:
        """The matrix (its transpose if wide) times ``x`` [n]."""
        out = np.empty(self.m)
        for place, block in self.blocks():
            out[place] = block @ x if self.tall else x @ block
        return out


def _spectral(weight: Array, top: float, slack: float) -> VerifiedNorm:
    """The l2 norm of a finite matrix with at least two rows and columns, largest magnitude ``top`` > 0."""
    if weight.flags.f_contiguous and not weight.flags.c_contiguous:
        weight = weight.T
    exponent = 0 if 2.0**-40 <= top <= 2.0**41 else math.frexp(top)[1]
    scaled = _Scaled(weight, exponent)
    m, n = scaled.m, scaled.n
    scale = Upper.from_dyadic(1, exponent)
    if n > SIDE_LIMIT:
        return _unformed(weight, scaled, scale)
    gram = scaled.gram()
    if n <= EXACT_SIDE:
        slack = min(slack, 1e-11)  # the estimate is accurate to rounding there, and costs nothing
    square = Upper(float(np.trace(gram))) * (ONE + gamma(2 * (m + n)) + gamma(2 * (m + n))) + UNDERFLOW
    frobenius = square.sqrt()
    estimate, x = _estimate(gram, slack)
    rigorous, near = _from_below(scaled, x, float(frobenius))
    # The Rayleigh quotient in float64 is never too large; a Ritz value in float32 may be.
    estimate = near * near if near > 0 else estimate
    lower = Lower(rigorous) * Lower.from_dyadic(1, exponent)
    free = [(frobenius * scale, "Frobenius norm")]
    if weight.size <= SMALL:
        free.append((_mixed(weight), "sqrt(l1 * linf)"))
    best, method = min(free, key=lambda item: item[0])
    if best <= Upper(float(lower)) * Upper(1 + slack):
        return VerifiedNorm(best, lower, method, {"m": m, "n": n})
    proved = _verify(scaled, gram, estimate, slack, square, tries=1)
    if proved is None:
        # Two eigenvalues closer than the estimate told apart: closer to the largest, once, before t is raised.
        gram = scaled.gram()
        better, near = _from_below(scaled, _refined(gram, x, slack), float(frobenius))
        lower = max(lower, Lower(better) * Lower.from_dyadic(1, exponent))
        proved = _verify(scaled, gram, max(near * near, estimate if estimate > 0 else 0.0), slack, square, before=1)
    if proved is None:
        return VerifiedNorm(best, lower, method, {"m": m, "n": n})
    t, allowance, tries = proved
    upper = (Upper(t) + allowance).sqrt() * scale
    if best <= upper:
        return VerifiedNorm(best, lower, method, {"m": m, "n": n})
    evidence = {"t": t.hex(), "m": m, "n": n, "exponent": exponent, "allowance": (allowance / Lower(t)).decimal(4), "tries": tries}
    return VerifiedNorm(upper, lower, "verified Cholesky", evidence)


def _mixed(weight: Array) -> Upper:
    """sqrt(l1 * linf), exact sums."""
    return (largest_row_sum(weight, 0) * largest_row_sum(weight, 1)).sqrt()


def _unformed(weight: Array, scaled: _Scaled, scale: Upper) -> VerifiedNorm:
    """Free bounds for a matrix whose Gram matrix would not fit."""
    total = math.fsum(float(np.vdot(block, block)) for _, block in scaled.blocks())
    frobenius = (Upper(total) * (ONE + gamma(2 * weight.size)) + UNDERFLOW).sqrt() * scale
    mixed = _mixed(weight)
    upper, method = min((frobenius, "Frobenius norm"), (mixed, "sqrt(l1 * linf)"), key=lambda item: item[0])
    x = np.random.default_rng(0).standard_normal(scaled.n)
    rigorous, _ = _from_below(scaled, x, float(frobenius / Lower.from_dyadic(1, scaled.exponent)))
    lower = Lower(rigorous) * Lower.from_dyadic(1, scaled.exponent)
    return VerifiedNorm(upper, lower, method, {"m": scaled.m, "n": scaled.n})


def _estimate(gram: Floats, slack: float) -> tuple[float, Floats]:
    """Largest eigenvalue of a Gram matrix (lower triangle, Fortran order) in plain floats, and a unit vector near its eigenvector."""
    n = gram.shape[0]
    if n <= EXACT_SIDE or slack < 1e-9:
        values, vectors, _ = dsyevr(gram, range="I", il=n, iu=n, lower=1)[:3]
        return float(values[0]), np.ascontiguousarray(vectors[:, 0])
    single = gram.astype(np.float32)
    value, x = largest(
        lambda v: ssymv(1.0, single, v, lower=1), n, dtype=np.float32, tolerance=max(slack / 4, 2e-7), residual=math.sqrt(slack)
    )
    return value, x.astype(np.float64)


def _refined(gram: Floats, x: Floats, slack: float) -> Floats:
    """A unit vector nearer to the largest eigenvector, from one that is not near enough, in float64."""
    n = gram.shape[0]
    with np.errstate(all="ignore"):
        return largest(
            lambda v: dsymv(1.0, gram, v, lower=1),
            n,
            steps=300 if n <= 4096 else 100,
            tolerance=max(slack / 1000, 1e-13),
            residual=max(slack / 100, 1e-12),
            start=x + 0.1 * np.random.default_rng(1).standard_normal(n) / math.sqrt(n),
        )[1]


def _from_below(scaled: _Scaled, x: Floats, frobenius: float) -> tuple[float, float]:
    """``||Wx|| / ||x||``: rounded down rigorously, and to nearest (0 where x is useless).

    ``|fl(Wx) - Wx| <= gamma_n |W||x|``, so its norm is at most gamma_n ||W||_F ||x||.
    """
    length = math.sqrt(float(np.dot(x, x)))
    if not (math.isfinite(length) and length > 0):
        return 0.0, 0.0
    y = scaled.image(x)
    reached = math.sqrt(float(np.dot(y, y)))
    m, n = scaled.m, scaled.n
    low = reached * (1 - (m + 8) * 2 * _UNIT) - (n + 8) * 4 * _UNIT * frobenius * length
    low = low / (length * (1 + (n + 8) * 2 * _UNIT)) * (1 - 16 * _UNIT) - 2.0**-400
    return max(0.0, low) if math.isfinite(low) else 0.0, reached / length


def _verify(
    scaled: _Scaled, gram: Floats, estimate: float, slack: float, square: Upper, *, before: int = 0, tries: int = _TRIES
) -> tuple[float, Upper, int] | None:
    """A proved t, its allowance (of the squared norm) and the number of factorisations (with those ``before``); None if none succeeded."""
    m, n = scaled.m, scaled.n
    u = Upper(_UNIT)
    g = gamma(n + 3)
    phi = g / Lower(Fraction((1 << 53) - 2 * (n + 3), (1 << 53) - (n + 3)))

    def allowance(t: float) -> Upper:
        return Upper(t) * (u + phi * Upper(n)) + gamma(m) * square + UNDERFLOW

    ceiling = float(square)
    estimate = estimate if estimate > 0 else ceiling / n
    floor = 4 * n * _UNIT
    step = max(1.98 * slack - float(allowance(estimate)) / estimate, floor)
    for k in range(1, tries + 1):
        t = estimate * (1 + step)
        if k > 1:
            gram = scaled.gram()
        if factors(gram, t):
            return t, allowance(t), before + k
        if t > ceiling:
            return None
        step = max(8 * slack, 16 * floor) if k == 1 else 4 * step
    return None


def factors(gram: Floats, t: float) -> bool:
    """Whether the floating-point Cholesky factorisation of ``t I - gram`` succeeds. Destroys ``gram`` (lower triangle)."""
    diagonal = t - np.diagonal(gram)
    if not np.all(diagonal > 0):
        return False
    np.negative(gram, out=gram)
    np.fill_diagonal(gram, diagonal)
    factor, info = dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    # A NaN pivot passes some implementations with info 0.
    return info == 0 and bool(np.all(np.isfinite(np.diagonal(factor))))
