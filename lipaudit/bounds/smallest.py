"""Verified lower bounds of smallest singular values.

For W [m, n], n <= m, let G = fl(W'W), s > 0 a double, B = fl(G - sI). If the floating-point Cholesky factorisation of B
succeeds, then with u, gamma_k and phi as in ``dense.py`` and S >= || |W| ||^2 ::

    sigma_min(W)^2 >= s - u max_i b_ii - phi tr(B) - gamma_m S - 2^-900

because the factor R has R'R = B + D with |D_ij| <= phi sqrt(b_ii b_jj) (Demmel 1989; Rump, BIT 46, 2006), hence B >= -phi tr(B) I;
forming the diagonal is off by u b_ii and the Gram matrix by gamma_m |W|'|W|. Relative to the norm it resolves about 1e-7:
a matrix that is worse conditioned, or that is singular, has no verified value.

The value is that of the *smaller side*: ``|Wx| >= sigma |x|`` for all x if there are at least as many outputs as inputs,
``|W'y| >= sigma |y|`` for all y otherwise (every output is reached).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from lipaudit.bounds.adjoint import Adjoint
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.dense import gamma, nonfinite, uniform_value, vector_norm
from lipaudit.bounds.diagonal import Diagonal
from lipaudit.bounds.kernels import dpotrf, dsyrk
from lipaudit.bounds.lanczos import largest
from lipaudit.bounds.matmul import Dense
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, Lower, Upper
from lipaudit.bounds.sums import BLOCK

__all__ = ["smallest_dense", "smallest_singular_value"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

SIDE = 4096
"""Largest smaller side for which the Gram matrix is formed."""

FORMED_SIDE = 1024
FORMED_SIZE = 1 << 22
"""A convolution is formed if its matrix has at most this smaller side and this many entries."""

_UNIT = 2.0**-53
_BELOW = (1e-6, 1e-4, 1e-2, 0.3)
"""How far below the estimate a value is tried to be proved, in turn."""

_dpotrs = cast(Callable[..., Any], get_lapack_funcs("potrs", dtype=np.float64))


def smallest_singular_value(operator: LinearOperator) -> Lower | None:
    """A verified lower bound > 0 (0 only where that is exact); None where nothing is proved or looking would cost too much."""
    if isinstance(operator, Adjoint):
        return smallest_singular_value(operator.base)
    if isinstance(operator, Diagonal):
        return _of_diagonal(operator)
    if isinstance(operator, Dense):
        stacks = operator.stacks()
        small, large = min(stacks.shape[1:]), max(stacks.shape[1:])
        if len(stacks) > 1 and len(stacks) * small * small * large > 1 << 36:
            return None
        return _least(smallest_dense(stack) for stack in stacks)
    if isinstance(operator, Convolution):
        return _of_convolution(operator)
    return None


def _least(values: Iterator[Lower | None]) -> Lower | None:
    """Smallest of the blocks of a block diagonal; None as soon as one is not known."""
    least: Lower | None = None
    for value in values:
        if value is None:
            return None
        least = value if least is None else min(least, value)
    return least


def _of_diagonal(operator: Diagonal) -> Lower | None:
    if operator.in_shape != operator.out_shape or not operator.scale.size or nonfinite(operator.scale):
        return None
    return Lower(float(np.min(np.abs(operator.scale)))) * Lower(max(0.0, (1 - operator.relative_error) * (1 - 2.0**-52)))


def _of_convolution(operator: Convolution) -> Lower | None:
    if operator.weight.size == 0 or operator.fill is not None or nonfinite(operator.weight):
        return None
    if all(axis.kernel == axis.stride == 1 and axis.begin == 0 and axis.outputs == axis.image for axis in operator.window):
        kernel = operator.weight.reshape(operator.groups, -1, operator.weight.shape[1])  # the same matrix at every pixel
        return _least(smallest_dense(part) for part in kernel)
    rows = math.prod(operator.out_shape[1:]) // operator.groups
    columns = math.prod(operator.in_shape[1:]) // operator.groups
    if min(rows, columns) > FORMED_SIDE or rows * columns > FORMED_SIZE or rows * columns * operator.groups > 8 * FORMED_SIZE:
        return None
    return _least(smallest_dense(operator.matrix(group)) for group in range(operator.groups))


def smallest_dense(weight: Array) -> Lower | None:
    """Verified lower bound of the smallest singular value (of the smaller side) of a finite matrix; None if nothing is proved.

    Parameters
    ----------
    weight
        2-D, any real dtype whose values are doubles; read in blocks of 32 MB.
    """
    n = min(weight.shape)
    if n == 0 or n > SIDE or (uniform_value(weight) is not None and n > 1):
        return None
    if n == 1:
        found = vector_norm(weight).lower
        return None if found.is_zero else found
    blocks = _Blocks(weight)
    if not blocks.top > 0.0 or not math.isfinite(blocks.top):
        return None
    gram = blocks.gram()
    square = Upper(float(np.trace(gram))) * (ONE + gamma(2 * (blocks.m + n))) * (ONE + gamma(2 * (blocks.m + n))) + _tiny()
    estimate = _estimate(gram.copy(order="F"))
    if not estimate > 0.0:
        return None
    for below in _BELOW:
        s = estimate * (1 - below)
        proved = _prove(gram if below == _BELOW[0] else blocks.gram(), s, blocks.m, square)
        if proved is not None:
            return proved.sqrt() * Lower.from_dyadic(1, blocks.exponent)
    return None


def _tiny() -> Upper:
    return Upper.from_dyadic(1, -900)


class _Blocks:
    """A matrix scaled by a power of two so that its largest magnitude is in [1/2, 1), read along its longer side."""

    def __init__(self, weight: Array) -> None:
        self.weight = weight if weight.flags.c_contiguous or not weight.flags.f_contiguous else weight.T
        self.tall = self.weight.shape[0] >= self.weight.shape[1]
        self.m, self.n = max(weight.shape), min(weight.shape)
        self.exponent = 0
        self.top = max(float(np.max(np.abs(block))) for block in self.blocks())
        self.exponent = math.frexp(self.top)[1] if math.isfinite(self.top) and self.top > 0 else 0

    def blocks(self) -> Iterator[Floats]:
        """C-ordered blocks, [r, n] if tall, else [n, r]."""
        step = max(1, BLOCK // self.n)
        for at in range(0, self.m, step):
            part = self.weight[at : at + step] if self.tall else self.weight[:, at : at + step]
            wide = np.ascontiguousarray(part, dtype=np.float64)
            yield np.ldexp(wide, -self.exponent) if self.exponent else wide

    def gram(self) -> Floats:
        """Lower triangle (Fortran order) of the Gram matrix of the smaller side."""
        total: Floats | None = None
        for block in self.blocks():
            trans = 0 if self.tall else 1
            if total is None:
                total = cast(Floats, dsyrk(1.0, block.T, trans=trans, lower=1))
            else:
                total = cast(Floats, dsyrk(1.0, block.T, beta=1.0, c=total, trans=trans, lower=1, overwrite_c=1))
        assert total is not None
        return total


def _estimate(gram: Floats) -> float:
    """Smallest eigenvalue in plain floats by Lanczos on the inverse; 0 if the matrix is not numerically definite. Destroys ``gram``."""
    factor, info = dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    if info != 0 or not np.all(np.isfinite(np.diagonal(factor))):
        return 0.0

    def inverse(x: Floats) -> Floats:
        return _dpotrs(factor, x, lower=1)[0].reshape(-1)

    with np.errstate(all="ignore"):
        value, _ = largest(inverse, gram.shape[0], steps=60, tolerance=1e-8, residual=1e-4)
    return 1.0 / value if math.isfinite(value) and value > 0.0 else 0.0


def _prove(gram: Floats, s: float, m: int, square: Upper) -> Lower | None:
    """A lower bound of the smallest eigenvalue of W'W; None if the factorisation fails or proves nothing. Destroys ``gram``."""
    n = gram.shape[0]
    diagonal = np.diagonal(gram) - s
    if not np.all(diagonal > 0):
        return None
    trace, top = float(np.sum(diagonal)), float(np.max(diagonal))
    np.fill_diagonal(gram, diagonal)
    factor, info = dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    # A NaN pivot passes some implementations with info 0.
    if info != 0 or not np.all(np.isfinite(np.diagonal(factor))):
        return None
    g = gamma(n + 3)
    phi = g / Lower(Fraction((1 << 53) - 2 * (n + 3), (1 << 53) - (n + 3)))
    allowance = Upper(_UNIT) * Upper(top) + phi * Upper(trace) * (ONE + gamma(n)) * (ONE + gamma(n)) + gamma(m) * square + _tiny()
    proved = Lower(s).minus(allowance)
    return None if proved.is_zero else proved
