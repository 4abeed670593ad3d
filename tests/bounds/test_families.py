"""Every bound on every hard family, against exact arithmetic: a table whose holes are named.

Truth: the characteristic polynomial of the Gram matrix over the rationals (``truth.Singular``), exact sums for l1, linf and the
Frobenius norm. Comparisons have no tolerance. How far above the truth a bound may be is stated with each method.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import hadamard, hilbert

from lipaudit.bounds import conv, dense, formed, grid, sweep, symbol
from lipaudit.bounds.chain import compose
from lipaudit.bounds.conv import Convolution, TransposedConvolution
from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.grid import everywhere
from lipaudit.bounds.half import half_torus
from lipaudit.bounds.lags import Lags
from lipaudit.bounds.linear import Dense, Diagonal, Kronecker, Permutation
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import INFINITE, Lower, Norm, Upper
from lipaudit.bounds.smallest import smallest_dense, smallest_singular_value
from lipaudit.bounds.sparse import Sparse
from lipaudit.bounds.spectrum import core_shape, frobenius, stable_rank
from lipaudit.bounds.torus import Torus, grid_factor
from tests.bounds.operators import conv_matrix
from tests.bounds.truth import Singular, exact, exact_sums, rounded_up

Floats = NDArray[np.float64]
Patch = pytest.MonkeyPatch
SMALL = Fraction(1, 2**200)


@cache
def matrices() -> dict[str, Floats]:
    rng = np.random.default_rng(40)
    n = 8
    q, p = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    signs = np.array([1.0, -1.0] * 4)
    return {
        "plain": rng.standard_normal((n, n)),
        "clustered top": q @ np.diag([1, 1 - 1e-15, 1 - 1e-14, 1 - 1e-12, 1 - 1e-8, 0.5, 0.1, 1e-9]) @ p,
        "all clustered": q * (1 - 1e-14 * np.arange(n)),
        "hilbert": hilbert(n),
        "graded": rng.standard_normal((n, n)) * 10.0 ** np.linspace(-300, 300, n),
        "graded both ways": rng.standard_normal((n, n)) * 10.0 ** np.linspace(-150, 150, n) * 10.0 ** np.linspace(150, -150, n)[:, None],
        "huge": rng.uniform(-1, 1, (n, n)) * 1.7e308,
        "denormals": np.round(rng.standard_normal((n, n)) * 100) * 5e-324,
        "one denormal": np.diag([5e-324] + [0.0] * (n - 1)),
        "rank one": np.outer(rng.standard_normal(n), rng.standard_normal(n)),
        "orthogonal start": np.outer(signs, signs) + 2.0**-10 * np.eye(n),
        "integers": rng.integers(-9, 10, (n, n)).astype(float),
        "hadamard, known 8^(1/2)": hadamard(n).astype(float),
        "circulant, known symbol": np.stack([np.roll([3.0, 1, 0.5, 0, 0, 0.25, 0, 2], k) for k in range(n)]),
        "cancelling": np.array([[1.0, 1.0], [2.0**-27, -(2.0**-27)]]),
        "wide": rng.standard_normal((3, 12)),
        "tall": rng.standard_normal((12, 4)),
        "1x1": np.array([[-0.1]]),
        "zero": np.zeros((4, 6)),
    }


@dataclass(frozen=True)
class Kernel:
    """A convolution: kernel [o, c, *taps], image and attributes."""

    weight: Floats
    image: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1

    def operator(self) -> Convolution:
        return Convolution(self.weight, self.image, pads=self.pads, strides=self.strides, dilations=self.dilations, groups=self.groups)


def kernel(weight: Floats, *image: int, pad: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> Kernel:
    dim = len(image)
    return Kernel(weight, image, ((pad, pad),) * dim, (stride,) * dim, (dilation,) * dim, groups)


@cache
def kernels() -> dict[str, Kernel]:
    """The matrices as kernels of two taps, and families that only convolutions have."""
    rng = np.random.default_rng(41)
    found = {name: kernel(m.reshape(len(m), -1, 2), 4) for name, m in matrices().items() if m.shape[1] % 2 == 0}
    found |= {f"depthwise {name}": kernel(m[:4, None, :4], 5, groups=4) for name, m in matrices().items() if min(m.shape) >= 4}
    wave = np.array([1.0, 2.0, 1.0]) * np.cos(2 * np.pi * 2.5 / 8 * np.arange(-1, 2))  # between the points of tori of 7 to 9
    mixed = np.einsum("t,oc->oct", wave, rng.standard_normal((3, 2)))
    smooth = np.einsum("oc,s,t->ocst", rng.uniform(0.5, 1, (2, 2)), [1.0, 2, 1], [1.0, 2, 1])
    return found | {
        "sup between grid points": kernel(mixed, 7),
        "peak at frequency 0, which the plain torus holds": kernel(smooth, 4, 3),
        "alternating": kernel(smooth * np.array([1.0, -1, 1]), 3, 3),
        "1x1": kernel(rng.standard_normal((3, 4, 1, 1)), 3, 2, pad=0),
        "1x1, one channel": kernel(np.array([[[[-0.3]]]]), 2, 2, pad=0),
        "kernel larger than the image": kernel(rng.standard_normal((2, 3, 5, 4)), 2, 3, pad=2),
        "stride larger than the kernel": kernel(rng.standard_normal((3, 2, 2)), 11, stride=3),
        "stride and dilation": kernel(rng.standard_normal((2, 2, 3)), 10, pad=2, stride=2, dilation=3),
        "dilation larger than the image": kernel(np.array([[[0.0, -1.0, 1.0, 0.0]]]), 3, pad=6, dilation=4),
        "taps that cancel on the torus of the image": kernel(np.array([[[1.0, 0.0, -1.0]]]), 2),
        "groups": kernel(rng.standard_normal((4, 2, 3)), 5, groups=2),
        "three dimensions": kernel(rng.standard_normal((2, 1, 2, 2, 2)), 2, 3, 2),
    }


def rng_signs(n: int) -> Floats:
    return np.where(np.random.default_rng(n).random(n) < 0.5, -1.0, 1.0)


def _swapped(n: int) -> Floats:
    return np.eye(n)[np.random.default_rng(n).permutation(n)]


MatrixMethod = Callable[[Floats, Norm, Patch], VerifiedNorm]


def _no_gram(w: Floats, norm: Norm, patch: Patch) -> VerifiedNorm:
    patch.setattr(dense, "SIDE_LIMIT", 0)
    return dense_norm(w, norm)


def _only_cholesky(w: Floats, norm: Norm, patch: Patch) -> VerifiedNorm:
    patch.setattr(dense, "EXACT_SIDE", 0)
    patch.setattr(dense, "SMALL", 0)
    return dense_norm(w, norm)


def _unformed_chain(w: Floats, norm: Norm, patch: Patch) -> VerifiedNorm:
    patch.setattr(formed, "FORM_SIDE", 0)
    return compose([Dense(w, (1, len(w))), Permutation((1, w.shape[1]), (w.shape[1], 1))]).norm(norm)


def _entries(w: Floats, norm: Norm, patch: Patch) -> VerifiedNorm:
    rows, columns = np.nonzero(w)
    return Sparse(w.shape, rows, columns, w[rows, columns]).norm(norm)


# Each acts as W or its transpose, up to signs and order of inputs and outputs: (transposed, excess of the l2 bound, or None, method).
OF_MATRICES: dict[str, tuple[bool, float | None, MatrixMethod]] = {
    "dense, slack 1e-6": (False, 1.01e-6, lambda w, norm, patch: dense_norm(w, norm)),
    "dense, slack 0": (False, 1e-11, lambda w, norm, patch: dense_norm(w, norm, 0.0)),
    "dense, float32 Lanczos": (False, 1e-3, _only_cholesky),
    "dense, too large for a Gram matrix": (False, None, _no_gram),
    "x W": (True, 1.01e-6, lambda w, norm, patch: Dense(w, (5, len(w))).norm(norm)),
    "W x": (False, 1.01e-6, lambda w, norm, patch: Dense(w, (w.shape[1], 3), "left").norm(norm)),
    "blocks": (True, 1.01e-6, lambda w, norm, patch: Dense(np.stack([w / 2, w, w / 4]), (3, 2, len(w))).norm(norm)),
    "scaled by signs": (
        True,
        1.01e-6,
        lambda w, norm, patch: compose([Dense(w, (1, len(w))), Diagonal(rng_signs(w.shape[1]), (1, w.shape[1]))]).norm(norm),
    ),
    "times a permutation": (
        True,
        1.01e-6,
        lambda w, norm, patch: compose([Dense(w, (1, len(w))), Dense(_swapped(w.shape[1]), (1, w.shape[1]))]).norm(norm),
    ),
    "chain, unformed": (True, 1.01e-6, _unformed_chain),
    "chain, formed": (
        True,
        1.01e-6,
        lambda w, norm, patch: compose([Diagonal(rng_signs(len(w)), (len(w),)), Dense(w, (len(w),))]).norm(norm),
    ),
    "along an axis": (False, 1.01e-6, lambda w, norm, patch: Kronecker([(0, w)], (w.shape[1], 2)).norm(norm)),
    "by entries": (False, 1.01e-6, _entries),
    "convolution 1x1": (False, 1.01e-6, lambda w, norm, patch: Convolution(w[:, :, None, None], (3, 2)).norm(norm)),
    "convolution 1, stride 2": (False, 1.01e-6, lambda w, norm, patch: Convolution(w[:, :, None], (5,), strides=(2,)).norm(norm)),
}


HOLES = {("huge", "by entries"): "sums beyond the doubles are infinite; such entries are geometry, never weights"}
"""By family and method: where there is no finite bound in l1 and linf, and why."""


@cache
def truth_of_matrix(name: str) -> Singular:
    return Singular(matrices()[name])


@pytest.mark.parametrize("method", list(OF_MATRICES))
@pytest.mark.parametrize("name", list(matrices()))
def test_norms_of_matrices(name: str, method: str, monkeypatch: Patch) -> None:
    transposed, excess, run = OF_MATRICES[method]
    matrix, truth = matrices()[name], truth_of_matrix(name)
    with np.errstate(under="ignore"):
        found = run(matrix, "l2", monkeypatch)
    held(found, truth, excess if matrix.any() and not (method == "blocks" and 0 < np.abs(matrix).max() < 1e-320) else None)
    for norm in ("l1", "linf"):
        side = norm if not transposed else "linf" if norm == "l1" else "l1"
        true, reached = exact_sums(matrix, side), run(matrix, norm, monkeypatch)
        if (name, method) in HOLES:
            assert reached.upper == INFINITE
            continue
        assert exact(reached.lower) <= true <= exact(reached.upper), norm
        assert exact(reached.upper) <= true * (1 + Fraction(1, 2**40)) + Fraction(1, 2**850), norm


def held(found: VerifiedNorm, truth: Singular, excess: float | None) -> None:
    """Both sides hold, and the upper one is within ``excess``."""
    upper, lower = exact(found.upper), exact(found.lower)
    assert truth.largest_at_most(upper), (found.method, float(found.upper))
    assert lower == 0 or not truth.largest_at_most(lower * (1 - SMALL)), (found.method, float(found.lower))
    if excess is not None:
        assert not truth.largest_at_most(upper / (1 + Fraction(excess))), (found.method, float(found.upper))


# Where nothing is proved: singular, or worse conditioned than the Gram matrix resolves.
NO_SIGMA = {
    "clustered top",
    "hilbert",
    "graded",
    "graded both ways",
    "one denormal",
    "rank one",
    "zero",
    "cancelling",
}


@pytest.mark.parametrize("name", list(matrices()))
def test_smallest_singular_values(name: str) -> None:
    matrix, truth = matrices()[name], truth_of_matrix(name)
    found = smallest_dense(matrix)
    assert (found is None) == (name in NO_SIGMA)
    for value in (found, smallest_singular_value(Dense(matrix, (1, len(matrix))))):
        if value is not None:
            assert truth.smallest_at_least(exact(value))
            assert not truth.smallest_at_least(exact(value) * Fraction(1001, 1000))


def squares(matrix: Floats) -> Fraction:
    return sum((Fraction(float(v)) ** 2 for v in matrix.ravel()), Fraction(0))


def check_sizes(operator: LinearOperator, matrix: Floats, truth: Singular) -> None:
    """Frobenius norm and stable rank: rank <= upper means norm >= F / sqrt(upper), and the other way round."""
    size, true = frobenius(operator), squares(matrix)
    assert size is not None
    assert exact(size.lower) ** 2 <= true <= exact(size.upper) ** 2
    rank = stable_rank(operator.norm("l2"), size, core_shape(operator))
    assert (rank is None) == (not matrix.any())
    if rank is None:
        return
    low, high = exact(rank.lower), exact(rank.upper)
    # Squares of bounds have no rational roots; 2^-100 is the room of taking them.
    assert truth.largest_at_most(_root(true / low, up=True))
    assert not truth.largest_at_most(_root(true / high, up=False) * (1 - Fraction(1, 2**100)))


def _root(value: Fraction, *, up: bool) -> Fraction:
    """Square root, rounded to a multiple of 2^-k of it with k > 110."""
    shift = 2 * max(120, value.denominator.bit_length())
    whole = math.isqrt((value.numerator << shift) // value.denominator)
    return Fraction(whole + up, 1 << (shift // 2))


@pytest.mark.parametrize("name", list(matrices()))
def test_sizes_and_stable_ranks_of_matrices(name: str) -> None:
    matrix = matrices()[name]
    check_sizes(Dense(matrix, (1, len(matrix))), matrix, truth_of_matrix(name))


ConvolutionMethod = Callable[[Kernel, Norm, Patch], VerifiedNorm | None]


def _formed(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
    return k.operator().norm(norm)


def _swept(single: bool) -> ConvolutionMethod:
    def run(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
        patch.setattr(conv, "DENSE_SIDE", 0)
        patch.setattr(sweep, "SINGLE_SIDE", (2, 2048) if single else (4000, 4001))
        return k.operator().norm(norm)

    return run


def _symbol(k: Kernel) -> tuple[Lags, list[int], Upper] | None:
    """Lags of the block symbol, the least torus and the scale; None where there is nothing to sweep."""
    base = k.operator()
    if not k.weight.any() or math.prod(axis.form().count for axis in base.window) == 1:
        return None
    taps, forms, _, exponent = symbol._prepared(base._matrix, base.window)
    return Lags(taps), [form.least for form in forms], Upper.from_dyadic(1, exponent)


def _everywhere(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
    """Cells that cover all frequencies, whatever share of them is large."""
    patch.setattr(grid, "FLAT", 2.0)
    found = _symbol(k) if norm == "l2" else None
    swept = found and everywhere(found[0], found[0].polynomials(found[0].peaks()), 1e-6)
    return VerifiedNorm(swept.square.sqrt() * found[2], Lower(0), "cells") if found and swept else None


def _uniform_grid(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
    """Few frequencies (n of n taps, or n + 2): the factor between grid and supremum is large."""
    found = _symbol(k) if norm == "l2" else None
    if found is None:
        return None
    lags, _, scale = found
    sizes = tuple(n + 2 if n > 1 else 1 for n in lags.counts)
    swept = sweep.sweep(lags, Torus(sizes, (0,) * len(sizes)), lags.polynomials(lags.peaks()), 1e-6)
    assert swept is not None
    return VerifiedNorm(swept.square.sqrt() * grid_factor(lags.counts, sizes) * scale, Lower(0), "grid")


def _least_torus(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
    """The smallest torus that the theorem allows, each twist: the largest of their bounds must hold as well as the least."""
    found = _symbol(k) if norm == "l2" else None
    if found is None:
        return None
    lags, least, scale = found
    tori = [Torus(tuple(n if c > 1 else 1 for n, c in zip(least, lags.counts, strict=True)), twists) for twists in _twists(lags.counts)]
    squares = [sweep.sweep(lags, torus, lags.polynomials(lags.peaks()), 1e-6) for torus in tori]
    assert all(item is not None for item in squares)
    return VerifiedNorm(min(item.square for item in squares if item).sqrt() * scale, Lower(0), "least of the twists")


def _half_torus(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
    """Exact along the shorter axis of two; both twists, and each alone."""
    if norm != "l2" or len(k.image) != 2 or k.groups != 1:
        return None
    base = k.operator()
    found = [half_torus(base._matrix, base.window, 0.0, twists) for twists in (None, (0, 0), (1, 1))]
    upper = [item[0] for item in found if item is not None]
    return VerifiedNorm(min(upper), Lower(0), "half torus") if upper else None


def _twists(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield from itertools.product(*((0, 1) if n > 1 else (0,) for n in counts))


def _unaffordable(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
    patch.setattr(conv, "DENSE_SIDE", 0)
    patch.setattr(symbol, "BUDGET", -1.0)
    return k.operator().norm(norm)


def _transposed(k: Kernel, norm: Norm, patch: Patch) -> VerifiedNorm | None:
    """The same as a ConvTranspose from the outputs to the image, in the dual norm."""
    base = k.operator()
    operator = TransposedConvolution(
        k.weight, base.out_shape[2:], k.image, strides=k.strides, dilations=k.dilations, pads=k.pads, groups=k.groups
    )
    return operator.norm({"l1": "linf", "linf": "l1", "l2": "l2"}[norm])  # type: ignore[arg-type]


# Excess over the true norm that is allowed, or None: a torus of a small image may be loose.
OF_KERNELS: dict[str, tuple[float | None, ConvolutionMethod]] = {
    "formed": (1.01e-6, _formed),
    "torus, float64": (0.5, _swept(False)),
    "torus, float32 first": (0.5, _swept(True)),
    "least torus, every twist": (1.0, _least_torus),
    "half torus": (0.5, _half_torus),
    "all frequencies, cells": (1.1, _everywhere),
    "all frequencies, few points and a factor": (None, _uniform_grid),
    "no sweep affordable": (None, _unaffordable),
    "transposed": (1.01e-6, _transposed),
}


@cache
def matrix_of_kernel(name: str) -> Floats:
    k = kernels()[name]
    outputs = k.operator().out_shape[2:]
    return conv_matrix(k.weight, k.image, outputs, k.strides, k.dilations, k.pads, k.groups)


@cache
def truth_of_kernel(name: str) -> Singular:
    return Singular(matrix_of_kernel(name))


@pytest.mark.parametrize("method", list(OF_KERNELS))
@pytest.mark.parametrize("name", list(kernels()))
def test_norms_of_convolutions(name: str, method: str, monkeypatch: Patch) -> None:
    excess, run = OF_KERNELS[method]
    with np.errstate(under="ignore"):
        found = run(kernels()[name], "l2", monkeypatch)
    matrix = matrix_of_kernel(name)
    if found is None:
        one_axis = method == "half torus" and (len(kernels()[name].image) != 2 or kernels()[name].groups > 1)
        assert one_axis or _symbol(kernels()[name]) is None, "a hole in the table"
        return
    held(found, truth_of_kernel(name), excess if matrix.any() else None)
    for norm in ("l1", "linf"):
        reached = run(kernels()[name], norm, monkeypatch)
        if reached is not None:
            true = exact_sums(matrix, norm)
            assert exact(reached.lower) <= true <= exact(reached.upper)
            # Exactly the value rounded up, as far as doubles go.
            assert exact(reached.upper) == rounded_up(true) if true < 2**1023 else exact(reached.upper) <= true * (1 + Fraction(1, 2**50))


@pytest.mark.parametrize("name", list(kernels()))
def test_sizes_stable_ranks_and_smallest_values_of_convolutions(name: str) -> None:
    operator, matrix, truth = kernels()[name].operator(), matrix_of_kernel(name), truth_of_kernel(name)
    check_sizes(operator, matrix, truth)
    value = smallest_singular_value(operator)
    assert value is None or truth.smallest_at_least(exact(value))
