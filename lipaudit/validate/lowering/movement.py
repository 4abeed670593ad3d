"""Movements and small compositions of the standard domain (and three of ONNX Runtime's) in operators that have a derivative.

Meanings are those of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS"]

# Turns of a product that is spelled step by step.
_MOST_STEPS = 512


def _along(e: Emitter, x: str, where: str, shape: tuple[int, ...], axis: int) -> str:
    """Elements ``where`` (which broadcasts to ``shape``) of ``x`` along ``axis``."""
    return e.add("GatherElements", x, e.add("Expand", where, e.ints(*shape)), axis=axis)


def _reverse_sequence(e: Emitter, site: Site) -> Sequence[str]:
    """Place t of row b reads ``length_b - 1 - t`` before its length, and itself behind."""
    shape = site.shape(0)
    batch, time = (int(site.attr(name, default)) % len(shape) for name, default in (("batch_axis", 1), ("time_axis", 0)))

    def view(axis: int) -> list[int]:
        return [-1 if k == axis else 1 for k in range(len(shape))]

    lengths = e.reshape(e.add("Cast", site.node.inputs[1], to=7), *view(batch))
    t = e.constant(np.arange(shape[time], dtype=np.int64).reshape(view(time)))
    mirrored = e.add("Sub", e.add("Sub", lengths, e.ints(1)), t)
    return [_along(e, site.node.inputs[0], e.add("Where", e.add("Less", t, lengths), mirrored, t), shape, time)]


def _compress(e: Emitter, site: Site) -> Sequence[str]:
    condition = site.constant(1)
    if condition is None:
        raise NotLowered("Compress whose output has a computed size")
    chosen = e.constant(np.flatnonzero(np.asarray(condition.array())).astype(np.int64))
    axis = site.attr("axis")
    if axis is None:
        return [e.add("Gather", e.reshape(site.node.inputs[0], -1), chosen, axis=0)]
    return [e.add("Gather", site.node.inputs[0], chosen, axis=int(axis) % len(site.shape(0)))]


def _tensor_scatter(e: Emitter, site: Site) -> Sequence[str]:
    """Row t of the update goes to ``start_b + t`` along the axis, which wraps around in mode circular."""
    shape, update = site.shape(0), site.shape(1)
    axis = int(site.attr("axis", -2)) % len(shape)
    t = e.constant(np.arange(update[axis], dtype=np.int64).reshape([-1 if k == axis else 1 for k in range(len(shape))]))
    where = t
    if site.has(2):
        where = e.add("Add", t, e.reshape(site.node.inputs[2], -1, *(1,) * (len(shape) - 1)))
    if str(site.attr("mode", "linear")) == "circular":
        where = e.add("Mod", where, e.ints(shape[axis]))
    return [e.add("ScatterElements", site.node.inputs[0], e.add("Expand", where, e.ints(*update)), site.node.inputs[1], axis=axis)]


def _cumulative_product(e: Emitter, site: Site) -> Sequence[str]:
    constant, shape = site.constant(1), site.shape(0)
    if constant is None:
        raise NotLowered("CumProd along a computed axis")
    axis = int(np.asarray(constant.array()).reshape(-1)[0]) % len(shape)
    n = shape[axis]
    if n > _MOST_STEPS:
        raise NotLowered(f"CumProd over {n} elements, above {_MOST_STEPS}")
    parts = e.split(site.node.inputs[0], axis, [1] * n)
    parts = parts[::-1] if site.attr("reverse", 0) else parts
    one = e.floats(np.ones([1 if k == axis else size for k, size in enumerate(shape)]))
    products: list[str] = []
    if site.attr("exclusive", 0):
        parts = [one, *parts[:-1]]
    for part in parts:
        products.append(e.add("Mul", products[-1], part) if products else part)
    return [e.concat(products[::-1] if site.attr("reverse", 0) else products, axis)]


def _max_roi_pool(e: Emitter, site: Site) -> Sequence[str]:
    """The pixels of every bin, one of them again until all bins are of one size, and their maximum; an empty bin is 0."""
    rois = site.constant(1)
    if rois is None:
        raise NotLowered("MaxRoiPool of computed regions")
    images, channels, height, width = site.shape(0)
    scale, bins = np.float32(site.attr("spatial_scale", 1.0)), [int(n) for n in site.attr("pooled_shape")]
    pixels: list[list[int]] = []
    for roi in np.asarray(rois.array()).astype(np.float32):
        # Halves away from zero, as C's round does.
        left, top, right, bottom = (int(math.copysign(math.floor(abs(float(v)) + 0.5), float(v))) for v in roi[1:] * scale)
        down, across = _bins(top, bottom, bins[0], height), _bins(left, right, bins[1], width)
        base = int(roi[0]) * height * width
        pixels.extend([base + y * width + x for y in ys for x in xs] for ys in down for xs in across)
    most = max(1, *(len(places) for places in pixels)) if pixels else 1
    empty = images * height * width
    # A maximum of equal elements has their sum as slope: what fills up is far below.
    filled = [(places or [empty]) + [empty + 1] * (most - max(len(places), 1)) for places in pixels]
    flat = e.reshape(e.add("Transpose", site.node.inputs[0], perm=(1, 0, 2, 3)), channels, empty)
    extra = e.floats(np.tile(np.array([0.0, -1e30]), (channels, 1)))
    chosen = e.add("Gather", e.concat([flat, extra], 1), e.constant(np.array(filled, dtype=np.int64).reshape(-1)), axis=1)
    chosen = e.reshape(chosen, channels, rois.shape[0], bins[0] * bins[1], most)
    y = e.add("ReduceMax", chosen, e.ints(3), keepdims=0) if e.opset >= 18 else e.add("ReduceMax", chosen, axes=(3,), keepdims=0)
    return [e.reshape(e.add("Transpose", y, perm=(1, 0, 2)), rois.shape[0], channels, *bins)]


def _bins(start: int, end: int, bins: int, n: int) -> list[range]:
    """The pixels of each bin of one axis."""
    step = np.float32(max(end - start + 1, 1)) / np.float32(bins)
    found: list[range] = []
    for k in range(bins):
        first, last = int(np.floor(np.float32(k) * step)), int(np.ceil(np.float32(k + 1) * step))
        found.append(range(min(max(start + first, 0), n), min(max(start + last, 0), n)))
    return found


def _stft(e: Emitter, site: Site) -> Sequence[str]:
    """Frames cut out, times the window, then a DFT of each."""
    step, length = site.constant(1), site.constant(3)
    if step is None or (length is None and site.has(3)):
        raise NotLowered("STFT with a computed frame step or length")
    shape, out = site.shape(0), site.out_shape()
    size = site.shape(2)[0] if site.has(2) else shape[1]
    size = size if length is None else int(np.asarray(length.array()).reshape(-1)[0])
    stride = int(np.asarray(step.array()).reshape(-1)[0])
    places = np.arange(out[1])[:, None] * stride + np.arange(size)[None]
    parts = shape[2] if len(shape) == 3 else 1
    frames = e.add("Gather", site.node.inputs[0], e.constant(places.astype(np.int64)), axis=1)
    frames = e.reshape(frames, shape[0], out[1], size, parts)
    if site.has(2):
        frames = e.add("Mul", frames, e.reshape(site.node.inputs[2], size, 1))
    onesided = int(site.attr("onesided", 1))
    if e.opset >= 20:
        return [e.add("DFT", frames, "", e.constant(np.array(2, dtype=np.int64)), onesided=onesided)]
    return [e.add("DFT", frames, axis=2, onesided=onesided)]


def _optional(e: Emitter, site: Site) -> Sequence[str]:
    if not site.has(0) or site.inputs[0] is None or site.inputs[0].shape is None:
        raise NotLowered(f"{site.node.op} of what is not a tensor of known shape")
    return [e.add("Identity", site.node.inputs[0])]


def _nhwc_max_pool(e: Emitter, site: Site) -> Sequence[str]:
    rank = len(site.shape(0))
    x = e.add("Transpose", site.node.inputs[0], perm=(0, rank - 1, *range(1, rank - 1)))
    names = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    y = e.add("MaxPool", x, **{name: site.node.attrs[name] for name in names if name in site.node.attrs})
    return [e.add("Transpose", y, perm=(0, *range(2, rank), 1))]


def _trilu(e: Emitter, site: Site) -> Sequence[str]:
    return [e.add("Trilu", *[name for name in site.node.inputs if name], upper=int(site.attr("upper", 1)))]


LOWERINGS: Mapping[str, Lowering] = {
    "ai.onnx::Compress": _compress,
    "ai.onnx::CumProd": _cumulative_product,
    "ai.onnx::MaxRoiPool": _max_roi_pool,
    "ai.onnx::OptionalGetElement": _optional,
    "ai.onnx::ReverseSequence": _reverse_sequence,
    "ai.onnx::STFT": _stft,
    "ai.onnx::TensorScatter": _tensor_scatter,
    "com.microsoft::NhwcMaxPool": _nhwc_max_pool,
    "com.microsoft::Trilu": _trilu,
}
