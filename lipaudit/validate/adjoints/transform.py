"""Linear transforms with an adjoint of their own (DFT, Col2Im), and the determinant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.adjoints.movement import by_map

__all__ = ["RULES"]

# A determinant of n x n has n^2 minors of (n - 1) x (n - 1).
_LARGEST_DETERMINANT = 24


def _whole(site: Site, i: int, default: int, what: str) -> int:
    """The only number of input ``i``."""
    constant = site.constant(i)
    if constant is None and site.has(i):
        raise NoDerivative(f"{site.node.op} with a computed {what}")
    return default if constant is None else int(np.asarray(constant.array()).reshape(-1)[0])


def _sized(b: Builder, t: str, axis: int, n: int, wanted: int, rank: int) -> str:
    """``t`` cut, or filled up with zeros, from ``n`` to ``wanted`` along ``axis``; it has ``rank`` axes."""
    if wanted == n:
        return t
    if wanted < n:
        return b.node("Slice", t, b.ints(0), b.ints(wanted), b.ints(axis))
    return b.node("Pad", t, b.ints(*(0,) * (rank + axis), wanted - n, *(0,) * (rank - axis - 1)))


def _dft(b: Builder, site: Site) -> Local:
    """F is symmetric and ``F conj(F) = L``: the transpose of the real form of F is that of ``conj(F) = L`` times the inverse.

    Cutting and filling with zeros are each other's adjoints, and so are taking the real part and calling a real number complex. Half
    a spectrum X back to a real signal is the real part of the inverse of ``w X`` filled up with zeros, w = 2 for all frequencies but
    0 and L/2, which have no twin.
    """
    shape, out = site.shape(0), site.out_shape()
    rank = len(shape)
    axis = (_whole(site, 2, -2, "axis") if site.node.version >= 20 else int(site.attr("axis", 1))) % rank
    inverse, onesided = bool(site.attr("inverse", 0)), bool(site.attr("onesided", 0))
    half, given, parts = inverse and onesided, shape[axis], shape[-1]
    length = _whole(site, 1, 2 * (given - 1) if half else given, "length")
    kept = min(given, length // 2 + 1) if half else min(given, length)
    along, last = axis + 1, rank

    def transform(t: str, back: bool) -> str:
        return b.node("DFT", t, axis=along, inverse=int(back))

    def scaled(t: str, factor: float) -> str:
        return b.node("Mul", t, b.number(factor))

    def real(t: str) -> str:
        return b.node("Slice", t, b.ints(0), b.ints(1), b.ints(last))

    def twins() -> str:
        doubled = np.array([1.0 if k == 0 or 2 * k == length else 2.0 for k in range(kept)])
        return b.constant(doubled.reshape(-1, *(1,) * (rank - 1 - axis)))

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        t = _sized(b, ts[0], along, given, kept, rank + 1)
        t = b.node("Mul", t, twins()) if half else t
        y = transform(_sized(b, t, along, kept, length, rank + 1), inverse)
        return [real(y) if half else _sized(b, y, along, length, out[axis], rank + 1)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is None:
            return results
        c = transform(_sized(b, cs[0], along, out[axis], length, rank + 1), not inverse)
        c = scaled(c, 1 / length if inverse else length)
        c = _sized(b, c, along, length, kept, rank + 1)
        c = b.node("Mul", c, twins()) if half else c
        c = _sized(b, c, along, kept, given, rank + 1)
        results[0] = real(c) if parts == 1 else c
        return results

    return Local(tangent, adjoint)


def _determinant(b: Builder, site: Site) -> Local:
    """The slope is the matrix of cofactors, each the determinant of a minor: right for singular matrices too."""
    shape = site.shape(0)
    n = shape[-1]
    if n > _LARGEST_DETERMINANT:
        raise NoDerivative(f"Det of {n} x {n}, above {_LARGEST_DETERMINANT}")
    others = np.array([[k for k in range(n) if k != i] for i in range(n)], dtype=np.int64).reshape(n, n - 1)
    # [i, j, r, s]: row others[i, r], column others[j, s].
    places = others[:, None, :, None] * n + others[None, :, None, :]
    signs = (-1.0) ** np.add.outer(np.arange(n), np.arange(n))
    found: list[str] = []

    def cofactors() -> str:
        if not found:
            if n == 1:
                found.append(b.constant(np.ones(shape)))
            else:
                flat = b.node("Reshape", b.primal(site.node.inputs[0]), b.ints(*shape[:-2], n * n))
                minors = b.node("Gather", flat, b.constant(places.reshape(-1)), axis=len(shape) - 2)
                minors = b.node("Reshape", minors, b.ints(*shape[:-2], n, n, n - 1, n - 1))
                found.append(b.node("Mul", b.node("Det", minors), b.constant(signs)))
        return found[0]

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        return [b.node("ReduceSum", b.node("Mul", ts[0], cofactors()), b.ints(-2, -1), keepdims=0)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if cs[0] is None else b.node("Mul", b.reshape(cs[0], (*shape[:-2], 1, 1)), cofactors())]

    return Local(tangent, adjoint)


def _columns(site: Site) -> NDArray[np.int64]:
    """For every element of the blocks the flat place in the image, -1 in the pad: shape of the input."""
    stored = [site.constant(i) for i in (1, 2)]
    if any(constant is None for constant in stored):
        raise NoDerivative("Col2Im with a computed shape")
    image, block = ([int(v) for v in np.asarray(c.array()).reshape(-1)] for c in stored if c is not None)
    rank = len(image)
    strides, dilations = (list(site.attr(name) or (1,) * rank) for name in ("strides", "dilations"))
    pads = list(site.attr("pads") or (0,) * (2 * rank))
    # [taps, blocks] of one channel, built up axis by axis.
    flat, valid = np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=np.bool_)
    for k in range(rank):
        count = (image[k] + pads[k] + pads[k + rank] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1
        at = np.arange(block[k])[:, None] * dilations[k] + np.arange(count)[None] * strides[k] - pads[k]
        inside = (at >= 0) & (at < image[k])
        flat = (flat[:, None, :, None] * image[k] + at[None, :, None, :]).reshape(flat.shape[0] * block[k], -1)
        valid = (valid[:, None, :, None] & inside[None, :, None, :]).reshape(flat.shape)
    channels = site.out_shape()[0] * site.out_shape()[1]
    base = np.arange(channels)[:, None, None] * prod(image)
    return np.where(valid, flat + base, -1).reshape(site.shape(0))


def _col2im(b: Builder, site: Site) -> Local:
    """The adjoint of cutting the image into blocks."""
    cut = by_map(b, Site(site.node, site.outputs[:1], site.inputs[:1], (None,), (True,)), _columns(site))

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        return [cut.tangent(cs)[0], *[None] * (len(site.inputs) - 1)]

    return Local(lambda ts: cut.adjoint(ts[:1]), adjoint)


RULES: Mapping[str, Rule] = {"Col2Im": _col2im, "DFT": _dft, "Det": _determinant}
