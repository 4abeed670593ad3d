"""Interpolation at computed coordinates, spelled with GatherElements: GridSample, RoiAlign, DeformConv; AffineGrid as a product.

A sample at pixel coordinate p of one axis reads the pixels ``floor(p) + k`` with weights that are polynomials of ``p - floor(p)``; along
several axes indices and weights multiply out. ``floor`` is flat, so the slopes in p are those of the weights. Meanings are those of the
ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS"]

# A pixel index (float) and the weight of what is read there; None is 1.
_Tap = tuple[str, str | None]


def _polynomial(e: Emitter, t: str, *coefficients: float) -> str:
    """Horner's scheme, highest power first."""
    y = e.add("Add", e.add("Mul", t, e.floats(coefficients[0])), e.floats(coefficients[1]))
    for c in coefficients[2:]:
        y = e.add("Add", e.add("Mul", y, t), e.floats(c))
    return y


def _cubic(e: Emitter, t: str) -> list[str]:
    """Keys' kernel with a = -3/4 at distances 1 + t, t, 1 - t and 2 - t, as polynomials of t."""
    a = -0.75
    return [
        _polynomial(e, t, a, -2 * a, a, 0.0),
        _polynomial(e, t, a + 2, -(a + 3), 0.0, 1.0),
        _polynomial(e, t, -(a + 2), 2 * a + 3, -a, 0.0),
        _polynomial(e, t, -a, a, 0.0, 0.0),
    ]


def _clipped(e: Emitter, x: str, low: float, high: float) -> str:
    return e.add("Min", e.add("Max", x, e.floats(low)), e.floats(high))


def _reflected(e: Emitter, x: str, low: float, high: float) -> str:
    """Mirrored at both ends until inside: ``low + min(r, 2 s - r)`` with s the span and r the rest of ``|x - low|`` modulo 2 s."""
    span = high - low
    if span <= 0:
        return e.add("Add", e.add("Mul", x, e.floats(0.0)), e.floats(low))
    far = e.add("Abs", e.add("Sub", x, e.floats(low)))
    turns = e.add("Floor", e.add("Mul", far, e.floats(1 / (2 * span))))
    rest = e.add("Sub", far, e.add("Mul", turns, e.floats(2 * span)))
    return e.add("Add", e.add("Min", rest, e.add("Sub", e.floats(2 * span), rest)), e.floats(low))


def _taps(e: Emitter, x: str, n: int, mode: str, padding: str, align: bool) -> list[_Tap]:
    """What a sample at ``x`` reads along an axis of ``n`` pixels; indices are inside, and weights 0 where it reads outside."""
    low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)
    if mode == "nearest":
        found: list[_Tap] = [(e.add("Round", x), None)]
    else:
        if padding == "border":
            x = _clipped(e, x, 0.0, n - 1.0)
        elif padding == "reflection":
            x = _reflected(e, x, low, high)
        base = e.add("Floor", x)
        t = e.add("Sub", x, base)
        weights = [e.add("Sub", e.floats(1.0), t), t] if mode == "linear" else _cubic(e, t)
        first = 0 if mode == "linear" else -1
        found = [(e.add("Add", base, e.floats(first + k)), weight) for k, weight in enumerate(weights)]
    placed: list[_Tap] = []
    for index, weight in found:
        inside = _clipped(e, index, 0.0, n - 1.0)
        if padding == "zeros":
            valid = e.add("Cast", e.add("Equal", inside, index), to=e.float_type)
            weight = valid if weight is None else e.add("Mul", weight, valid)
        elif padding == "reflection":
            # Positions between two pixels cannot occur: the index is whole, and so are the ends, or both are halves.
            inside = _clipped(e, e.add("Round", _reflected(e, index, low, high)), 0.0, n - 1.0)
        placed.append((inside, weight))
    return placed


def _terms(e: Emitter, x: str, shape: tuple[int, ...], axes: Sequence[Sequence[_Tap]], points: int) -> list[str]:
    """Weighted pixels ``[N, C, points]`` of images ``x`` of ``shape`` = [N, C, ..] at taps ``[N, points]`` of every spatial axis."""
    batch, channels, *sizes = shape
    flat = e.reshape(x, batch, channels, math.prod(sizes))
    whole = e.ints(batch, channels, points)
    terms: list[str] = []
    for taps in product(*axes):
        index, weight = "", ""
        for (at, part), size in zip(taps, sizes, strict=True):
            place = e.add("Cast", at, to=7)
            index = e.add("Add", e.add("Mul", index, e.ints(size)), place) if index else place
            if part is not None:
                weight = e.add("Mul", weight, part) if weight else part
        pixel = e.add("GatherElements", flat, e.add("Expand", e.reshape(index, batch, 1, points), whole), axis=2)
        terms.append(e.add("Mul", pixel, e.reshape(weight, batch, 1, points)) if weight else pixel)
    return terms


def _grid_sample(e: Emitter, site: Site) -> Sequence[str]:
    mode = str(site.attr("mode", "linear"))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    padding, align = str(site.attr("padding_mode", "zeros")), bool(site.attr("align_corners", 0))
    if mode not in {"linear", "nearest", "cubic"}:
        raise NotLowered(f"{site.node.op} with mode {mode!r}")
    if mode == "cubic" and padding == "border":
        raise NotLowered(f"{site.node.op} with cubic samples behind the border, where runtimes differ")
    shape, out = site.shape(0), site.shape(1)[1:-1]
    rank, points = len(shape) - 2, math.prod(out)
    parts = e.split(e.reshape(site.node.inputs[1], shape[0], points, rank), 2, [1] * rank)
    axes: list[list[_Tap]] = []
    for n, part in zip(shape[2:], reversed(parts), strict=True):  # the last coordinate is the first axis
        g = e.reshape(part, shape[0], points)
        scale = (n - 1) / 2 if align else n / 2
        x = e.add("Add", e.add("Mul", g, e.floats(scale)), e.floats(scale if align else (n - 1) / 2))
        axes.append(_taps(e, x, n, mode, padding, align))
    terms = _terms(e, site.node.inputs[0], shape, axes, points)
    total = terms[0] if len(terms) == 1 else e.add("Sum", *terms)
    return [e.reshape(total, shape[0], shape[1], *out)]


def _affine_grid(e: Emitter, site: Site) -> Sequence[str]:
    """``theta`` [N, d, d + 1] times the homogeneous coordinates of every place."""
    constant = site.constant(1)
    if constant is None:
        raise NotLowered("AffineGrid of a computed size")
    sizes = [int(n) for n in np.asarray(constant.array()).reshape(-1)[2:]]
    axes: list[NDArray[np.float64]] = []
    for n in sizes:
        k = np.arange(n, dtype=np.float64)
        aligned = 2 * k / (n - 1) - 1 if n > 1 else np.full(1, -1.0)
        axes.append(aligned if site.attr("align_corners", 0) else (2 * k + 1) / n - 1)
    grids = np.meshgrid(*axes, indexing="ij")
    base = np.stack([*(grid.reshape(-1) for grid in reversed(grids)), np.ones(math.prod(sizes))])
    y = e.add("Transpose", e.add("MatMul", site.node.inputs[0], e.floats(base)), perm=(0, 2, 1))
    return [e.reshape(y, site.shape(0)[0], *sizes, len(sizes))]


def _counts(site: Site, bins: tuple[int, ...], half: bool) -> NDArray[np.float64]:
    """Samples of a bin along each axis, per region: [regions, 2]."""
    ratio, rois = int(site.attr("sampling_ratio", 0)), site.constant(1)
    if ratio > 0:
        return np.full((site.shape(1)[0], 2), float(ratio))
    if rois is None:
        raise NotLowered("RoiAlign with as many samples as computed regions need")
    ends = np.asarray(rois.array()).astype(np.float32) * np.float32(site.attr("spatial_scale", 1.0))
    sizes = (ends[:, 2:] - ends[:, :2])[:, ::-1]
    found = np.ceil((sizes if half else np.maximum(sizes, 1.0)) / np.array(bins, dtype=np.float32))
    if found.size and found.min() < 1:
        raise NotLowered("RoiAlign of an empty region")
    return found.astype(np.float64)


def _roi_align(e: Emitter, site: Site) -> Sequence[str]:
    """Samples in the middle of equal parts of every bin; their mean, or the largest of all weighted pixels."""
    mode = str(site.attr("mode", "avg")).lower()
    if mode not in {"avg", "max"}:
        raise NotLowered(f"RoiAlign with mode {mode!r}")
    half = site.node.version >= 16 and str(site.attr("coordinate_transformation_mode", "half_pixel")).lower() == "half_pixel"
    shape, (regions, _, *bins) = site.shape(0), site.out_shape()
    counts = _counts(site, tuple(bins), half)
    most = [int(n) for n in counts.max(axis=0, initial=1.0)]
    ends = e.add("Mul", site.node.inputs[1], e.floats(float(site.attr("spatial_scale", 1.0))))
    if half:
        ends = e.add("Sub", ends, e.floats(0.5))
    left, top, right, bottom = e.split(ends, 1, [1] * 4)
    points = math.prod(bins) * math.prod(most)
    spread = (regions, bins[0], bins[1], most[0], most[1])
    axes: list[list[_Tap]] = []
    used = np.ones((regions, *spread[1:]))
    for k, (start, end) in enumerate(((top, bottom), (left, right))):
        size = e.add("Sub", end, start)
        size = size if half else e.add("Max", size, e.floats(1.0))
        part = np.arange(most[k])[None] + 0.5
        # Fractions of the region, [regions, bins * samples].
        fractions = (np.arange(bins[k])[None, :, None] + (part / counts[:, k : k + 1])[:, None, :]) / bins[k]
        at = e.add("Add", e.add("Mul", size, e.floats(fractions.reshape(regions, -1))), start)
        n, taps = shape[2 + k], list[_Tap]()
        low = e.add("GreaterOrEqual", at, e.floats(-1.0))
        valid = e.add("Cast", e.add("And", low, e.add("LessOrEqual", at, e.floats(float(n)))), to=e.float_type)
        view = (regions, bins[0], 1, most[0], 1) if k == 0 else (regions, 1, bins[1], 1, most[1])
        for index, weight in _taps(e, at, n, "linear", "border", True):
            assert weight is not None
            pair = (index, e.add("Mul", weight, valid))
            spread_pair = [e.reshape(e.add("Expand", e.reshape(name, *view), e.ints(*spread)), regions, points) for name in pair]
            taps.append((spread_pair[0], spread_pair[1]))
        axes.append(taps)
        used = used * (np.arange(most[k])[None] < counts[:, k : k + 1]).reshape(view[0], 1, 1, *view[3:])
    images = e.add("Gather", site.node.inputs[0], site.node.inputs[2], axis=0)
    terms = [e.reshape(term, regions, shape[1], math.prod(bins), -1) for term in _terms(e, images, (regions, *shape[1:]), axes, points)]
    live = used.reshape(regions, 1, math.prod(bins), -1)
    if mode == "avg":
        weights = live / counts.prod(axis=1).reshape(regions, 1, 1, 1)
        # [.., bins, samples] times [.., samples, 1]: a mean that keeps bins apart.
        y = e.add("Mul", e.add("Sum", *terms), e.floats(weights))
        y = e.add("ReduceSum", y, e.ints(3), keepdims=0) if e.opset >= 13 else e.add("ReduceSum", y, axes=(3,), keepdims=0)
    else:
        hidden = e.floats(np.where(live > 0, 0.0, -1e30))
        y = e.add("Add", e.add("Max", *terms), hidden)
        y = e.add("ReduceMax", y, e.ints(3), keepdims=0) if e.opset >= 18 else e.add("ReduceMax", y, axes=(3,), keepdims=0)
    return [e.reshape(y, regions, shape[1], *bins)]


def _deform_conv(e: Emitter, site: Site) -> Sequence[str]:
    """The samples of every tap at its moved place, times the mask, then the kernel as a matrix of each group."""
    shape, weight, out = site.shape(0), site.shape(1), site.out_shape()
    if len(shape) != 4:
        raise NotLowered("DeformConv on other than two axes")
    names, kernel = site.node.inputs, weight[2:]
    strides, dilations = (tuple(site.attr(name) or (1, 1)) for name in ("strides", "dilations"))
    pads = tuple(site.attr("pads") or (0,) * 4)
    groups, owners = int(site.attr("group", 1)), int(site.attr("offset_group", 1))
    taps, places = math.prod(kernel), math.prod(out[2:])
    images = (shape[0] * owners, shape[1] // owners, *shape[2:])
    moved = e.split(e.reshape(names[2], images[0], taps, 2, places), 2, [1, 1])
    axes: list[list[_Tap]] = []
    for k in range(2):
        tap = np.arange(kernel[k]) * dilations[k] - pads[k]
        place = np.arange(out[2 + k]) * strides[k]
        grid = tap.reshape((-1, 1, 1, 1) if k == 0 else (1, -1, 1, 1)) + place.reshape((1, 1, -1, 1) if k == 0 else (1, 1, 1, -1))
        base = np.broadcast_to(grid, (*kernel, *out[2:])).reshape(1, taps * places).astype(np.float64)
        at = e.add("Add", e.reshape(moved[k], images[0], taps * places), e.floats(base))
        axes.append(_taps(e, at, shape[2 + k], "linear", "zeros", True))
    samples = e.add("Sum", *_terms(e, e.reshape(names[0], *images), images, axes, taps * places))
    if site.has(4):
        samples = e.add("Mul", samples, e.reshape(names[4], images[0], 1, taps * places))
    columns = e.reshape(samples, shape[0], groups, shape[1] // groups * taps, places)
    matrix = e.reshape(names[1], 1, groups, weight[0] // groups, weight[1] * taps)
    y = e.reshape(e.add("MatMul", matrix, columns), *out)
    return [e.add("Add", y, e.reshape(names[3], 1, -1, 1, 1)) if site.has(3) else y]


LOWERINGS: Mapping[str, Lowering] = {
    "ai.onnx::AffineGrid": _affine_grid,
    "ai.onnx::DeformConv": _deform_conv,
    "ai.onnx::GridSample": _grid_sample,
    "ai.onnx::RoiAlign": _roi_align,
    "com.microsoft::GridSample": _grid_sample,
}
