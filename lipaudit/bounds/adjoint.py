"""The transpose of a linear operator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import Norm, dual

__all__ = ["Adjoint"]

Floats = NDArray[np.float64]


class Adjoint(LinearOperator):
    """The transpose of an operator: same l2 norm, l1 and linf swapped.

    ``terms`` is the most products that one output element of the transpose sums.
    """

    def __init__(self, base: LinearOperator, terms: int) -> None:
        self.base = base
        self.in_shape, self.out_shape = base.out_shape, base.in_shape
        self._terms = terms

    def apply(self, x: Floats) -> Floats:
        """Transpose of the base operator."""
        return self.base.adjoint(x)

    def adjoint(self, y: Floats) -> Floats:
        """The base operator."""
        return self.base.apply(y)

    def magnitude(self) -> LinearOperator:
        """Transpose of the magnitude."""
        return Adjoint(self.base.magnitude(), self._terms)

    @property
    def terms(self) -> int:
        """As given."""
        return self._terms

    def norm(self, norm: Norm, slack: float = 1e-6) -> VerifiedNorm:
        """Norm of the base operator in the dual norm."""
        found = self.base.norm(dual(norm), slack)
        return replace(found, evidence={**found.evidence, "transposed": True})
