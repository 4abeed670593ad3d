"""Definitions written out a second time, and the checks that every linear operator must pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Kronecker
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import Norm
from tests.bounds.truth import exact, norm_from_below, rounded_up

Floats = NDArray[np.float64]
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")


def columns(operator: LinearOperator) -> Floats:
    """The matrix that ``apply`` applies, [outputs, inputs]."""
    size = math.prod(operator.in_shape)
    found = np.zeros((math.prod(operator.out_shape), size))
    for k in range(size):
        unit = np.zeros(size)
        unit[k] = 1.0
        found[:, k] = operator.apply(unit.reshape(operator.in_shape)).reshape(-1)
    return found


def conv_matrix(
    weight: Floats,
    image: Sequence[int],
    outputs: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
    groups: int,
) -> Floats:
    """The matrix of a convolution from its definition, element by element."""
    o, c = weight.shape[:2]
    full = np.zeros((o, *outputs, c * groups, *image))
    for channel in range(o):
        group = channel // (o // groups)
        for place in itertools.product(*(range(n) for n in outputs)):
            for tap in itertools.product(*(range(n) for n in weight.shape[2:])):
                seen = tuple(s * i + d * t - p[0] for s, i, d, t, p in zip(strides, place, dilations, tap, pads, strict=True))
                if all(0 <= i < n for i, n in zip(seen, image, strict=True)):
                    for k in range(c):
                        full[(channel, *place, group * c + k, *seen)] += weight[(channel, k, *tap)]
    return full.reshape(o * math.prod(outputs), -1)


def check_operator(
    operator: LinearOperator, matrix: Floats, *, tight: float | None = None, exact_sides: bool = True, seed: int = 0
) -> None:
    """Everything that an operator promises, against its matrix.

    ``matrix`` must be exact in float64 (integers, or the stored weights themselves). ``tight`` bounds the relative excess of the l2
    norm; ``exact_sides`` asks for l1 and linf within one unit in the last place.
    """
    rng = np.random.default_rng(seed)
    size_in, size_out = math.prod(operator.in_shape), math.prod(operator.out_shape)
    assert matrix.shape == (size_out, size_in)
    x, y = rng.standard_normal(operator.in_shape), rng.standard_normal(operator.out_shape)
    image, back = operator.apply(x), operator.adjoint(y)
    assert image.shape == operator.out_shape and back.shape == operator.in_shape
    assert image.dtype == back.dtype == np.float64
    if exact_sides and matrix.size and not isinstance(operator, Kronecker):  # that sums in stages
        assert int(np.count_nonzero(matrix, axis=1).max()) <= operator.terms
    bound = (operator.terms + 4) * 2.0**-52
    assert np.all(np.abs(image.ravel() - matrix @ x.ravel()) <= 2 * bound * (np.abs(matrix) @ np.abs(x).ravel()))
    np.testing.assert_allclose(back.ravel(), matrix.T @ y.ravel(), rtol=1e-11, atol=1e-12 * (1 + np.abs(matrix).sum()))
    sizes = operator.magnitude()
    assert np.all(sizes.apply(np.abs(x)).ravel() >= np.abs(matrix) @ np.abs(x).ravel() * (1 - bound))
    for norm in NORMS:
        found = operator.norm(norm)
        true = norm_from_below(matrix, norm)
        assert exact(found.upper) >= true, (norm, found, float(true))
        if norm == "l2":
            assert float(found.lower) <= np.linalg.norm(matrix, 2) * (1 + 1e-13), found
            if tight is not None:
                assert float(found.upper) <= float(true) * (1 + tight), (found, float(true))
        else:
            assert exact(found.lower) <= true, (norm, found)
            if exact_sides:
                assert exact(found.upper) == rounded_up(true), (norm, found, float(true))
    check_enclosure(operator, matrix, rng)


def check_enclosure(operator: LinearOperator, matrix: Floats, rng: np.random.Generator) -> None:
    """Images of random points and corners of boxes, in exact arithmetic, lie in the enclosure."""
    size = matrix.shape[1]
    rows = rng.choice(matrix.shape[0], size=min(12, matrix.shape[0]), replace=False)
    lo = rng.standard_normal(size) * 10.0 ** rng.integers(-3, 4, size)
    hi = lo + np.abs(rng.standard_normal(size)) * (rng.random(size) < 0.7)
    low, high = (end.reshape(-1) for end in operator.enclose(lo.reshape(operator.in_shape), hi.reshape(operator.in_shape)))
    inside = np.clip(lo + (hi - lo) * rng.random(size), lo, hi)
    for row in rows:
        weights = [(k, Fraction(float(matrix[row, k]))) for k in np.flatnonzero(matrix[row])]
        for point in (lo, hi, inside):
            value = sum((w * Fraction(float(point[k])) for k, w in weights), Fraction(0))
            assert Fraction(float(low[row])) <= value <= Fraction(float(high[row]))
        top = sum((w * Fraction(float(hi[k] if w > 0 else lo[k])) for k, w in weights), Fraction(0))
        bottom = sum((w * Fraction(float(lo[k] if w > 0 else hi[k])) for k, w in weights), Fraction(0))
        assert Fraction(float(low[row])) <= bottom and top <= Fraction(float(high[row]))
    if size:
        half = lo.copy()
        half[int(rng.integers(size))] = -np.inf
        low, high = (end.reshape(-1) for end in operator.enclose(half.reshape(operator.in_shape), hi.reshape(operator.in_shape)))
        touched = (matrix != 0) @ ~np.isfinite(half)
        assert np.all(np.isneginf(low[touched]) | np.isposinf(high[touched]))
        assert not np.isnan(low).any() and not np.isnan(high).any()
        everywhere = operator.enclose(np.asarray(-np.inf), np.asarray(np.inf))
        assert np.all(np.isneginf(everywhere[0].ravel()[np.abs(matrix).sum(axis=1) > 0]))
