"""Matrices with a bound of what computing them lost, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import DTypeLike

from lipaudit.bounds.scalar import ZERO
from lipaudit.certify.methods.enclosed import Enclosed


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_products_hold_the_exact_one_whatever_the_weights_are_stored_in(dtype: DTypeLike) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 7)).astype(dtype), rng.normal(size=(7, 5)).astype(dtype)
    product = Enclosed(a).times(Enclosed(b))  # pyright: ignore[reportArgumentType]
    assert product.array.dtype == np.float64
    assert not product.error <= ZERO
    off = sum(
        (Fraction(float(product.array[i, k])) - sum(Fraction(float(a[i, j])) * Fraction(float(b[j, k])) for j in range(7))) ** 2
        for i in range(4)
        for k in range(5)
    )
    assert off <= Fraction(float(product.error)) ** 2
    assert float(product.error) <= 1e-12
