"""The packed layout against LAPACK's own conversion routines."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import lapack

from lipaudit.bounds.packed import packing


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 8, 11])
def test_layout_is_that_of_lapack(order: int) -> None:
    rng = np.random.default_rng(order)
    half = rng.standard_normal((order, order)) + 1j * rng.standard_normal((order, order))
    matrix = half @ half.conj().T + np.eye(order)
    layout = packing(order)
    theirs, info = lapack.ztrttf(np.asfortranarray(matrix), transr="N", uplo="L")
    assert info == 0
    packed = layout.pack(matrix)
    np.testing.assert_allclose(packed, theirs, rtol=1e-14)
    np.testing.assert_allclose(layout.pack(matrix.real) + 1j * layout.pack(matrix.imag), theirs, rtol=1e-14)
    np.testing.assert_allclose(layout.full(packed), matrix, rtol=1e-14)
    np.testing.assert_array_equal(packed[layout.diagonal].real, np.diagonal(matrix).real)
    row, column = layout.entries()
    np.testing.assert_array_equal(packed, matrix[row, column])
    np.testing.assert_allclose(np.tril(layout.lower(np.stack([packed, 2 * packed]))[1]), 2 * np.tril(matrix), rtol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 5, 6, 37])
def test_row_sums_of_factors(order: int) -> None:
    rng = np.random.default_rng(order)
    half = rng.standard_normal((order, order)) + 1j * rng.standard_normal((order, order))
    matrix = half @ half.conj().T + np.eye(order)
    layout = packing(order)
    factor, info = lapack.zpftrf(order, layout.pack(matrix), transr="N", uplo="L")
    assert info == 0
    lower = np.linalg.cholesky(matrix)
    moduli = np.abs(lower.real) + np.abs(lower.imag)
    np.testing.assert_allclose(layout.absolute_square(np.stack([factor] * 2)), (moduli @ moduli.T).sum(axis=1).max(), rtol=1e-12)
