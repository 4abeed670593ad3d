"""Rigorous lower bounds of l2 operator norms: one vector and one product."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.lanczos import largest
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import Lower, Upper

__all__ = ["iterate", "witnessed"]

Floats = NDArray[np.float64]


def witnessed(operator: LinearOperator, x: Floats, magnitude: Upper) -> Lower:
    """``||Ax|| / ||x||`` rounded down, for ``magnitude`` >= || |A| || (l2) and an ``apply`` of the standard error model.

    ``|fl(Ax) - Ax| <= gamma_k |A||x|`` with k = ``operator.terms``. 0 where the product over- or underflows.
    """
    top = float(np.max(np.abs(x))) if x.size else 0.0
    if not (math.isfinite(top) and top > 0 and magnitude.is_finite):
        return Lower(0)
    x = np.ldexp(x, -math.frexp(top)[1])
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        y = operator.apply(x)
        reached = math.sqrt(float(np.vdot(y, y)))
    length = math.sqrt(float(np.vdot(x, x)))
    size = float(magnitude)
    if not (math.isfinite(reached) and 2.0**-400 < reached < 2.0**500 and size < 2.0**500):
        return Lower(0)
    unit = 2.0**-52
    low = reached * (1 - (y.size + 8) * unit) - (operator.terms + 8) * 2 * unit * size * length * (1 + (x.size + 8) * unit)
    low = low / (length * (1 + (x.size + 8) * unit)) * (1 - 16 * unit) - 2.0**-450
    return Lower(max(0.0, low))


def iterate(operator: LinearOperator, steps: int, start: Floats | None = None) -> Floats:
    """A vector (shape ``in_shape``) that the operator stretches nearly most: ``steps`` Lanczos steps on A'A, in plain floats."""

    def product(x: Floats) -> Floats:
        return operator.adjoint(operator.apply(x.reshape(operator.in_shape))).reshape(-1)

    size = math.prod(operator.in_shape)
    flat = None if start is None else start.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        _, x = largest(product, size, steps=steps, tolerance=1e-9, residual=1e-5, start=flat)
    return x.reshape(operator.in_shape)
