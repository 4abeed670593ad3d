"""Layers whose parameters are computed (weights of a hypernetwork, scales from a style vector) as products of what moves.

With stored parameters these operators have derivatives of their own. Meanings are those of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lipaudit.operators.base import Site
from lipaudit.validate.exact.windows import Window, convolution_window, transposed_window
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS", "PARAMETERS"]

PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "Attention": (3,), "BatchNormalization": (1, 2, 3, 4), "Conv": (1, 2), "ConvTranspose": (1, 2), "DequantizeLinear": (1, 2),
    "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "RMSNormalization": (1,),
}  # fmt: skip
"""Inputs of standard operators that must not move for the derivative of the operator itself to hold."""

_MOST_PLACES = 1 << 22


def _places(window: Window) -> np.ndarray:
    """Flat places of ``[taps, positions]`` in an image of one channel that has one more element, 0, for the pad."""
    total = math.prod(window.size)
    padded = np.pad(np.arange(total).reshape(window.size), window.pads(), constant_values=total)
    found = np.stack([padded[seen].reshape(-1) for _, seen in window.taps()])
    if found.size > _MOST_PLACES:
        raise NotLowered(f"a computed weight over {found.size:,} places, above {_MOST_PLACES:,}")
    return found.astype(np.int64)


def _bias(e: Emitter, site: Site, y: str) -> str:
    rank = len(site.out_shape())
    return e.add("Add", y, e.reshape(site.node.inputs[2], 1, -1, *(1,) * (rank - 2))) if site.has(2) else y


def _conv(e: Emitter, site: Site) -> Sequence[str]:
    """The kernel as a matrix of each group, times the columns of the image."""
    shape, weight, out = site.shape(0), site.shape(1), site.out_shape()
    group, window = int(site.attr("group", 1)), convolution_window(site, shape[2:], weight[2:])
    flat = e.reshape(site.node.inputs[0], *shape[:2], math.prod(shape[2:]))
    extra = e.floats(np.zeros((*shape[:2], 1)))
    places = _places(window)
    columns = e.add("Gather", e.concat([flat, extra], 2), e.constant(places), axis=2)
    columns = e.reshape(columns, shape[0], group, shape[1] // group * places.shape[0], places.shape[1])
    matrix = e.reshape(site.node.inputs[1], 1, group, weight[0] // group, weight[1] * places.shape[0])
    return [_bias(e, site, e.reshape(e.add("MatMul", matrix, columns), *out))]


def _conv_transpose(e: Emitter, site: Site) -> Sequence[str]:
    """The kernel as a matrix of each group, times the pixels, added up where the convolution would have read."""
    shape, weight, out = site.shape(0), site.shape(1), site.out_shape()
    group, window = int(site.attr("group", 1)), transposed_window(site, shape[2:], weight[2:])
    pixels, total, places = math.prod(shape[2:]), math.prod(out[2:]), _places(window)
    x = e.reshape(site.node.inputs[0], shape[0], group, shape[1] // group, pixels)
    matrix = e.reshape(site.node.inputs[1], 1, group, shape[1] // group, weight[1] * places.shape[0])
    columns = e.add("MatMul", e.add("Transpose", matrix, perm=(0, 1, 3, 2)), x)
    columns = e.reshape(columns, shape[0], out[1], places.size)
    where = e.add("Expand", e.constant(places.reshape(1, 1, -1)), e.ints(shape[0], out[1], places.size))
    if e.opset < 16:
        raise NotLowered("ConvTranspose with a computed weight before opset 16")
    zeros = e.floats(np.zeros((shape[0], out[1], total + 1)))
    y = e.add("ScatterElements", zeros, where, columns, axis=2, reduction="add")
    return [_bias(e, site, e.reshape(e.slice(y, 2, 0, total), *out))]


def _instance(e: Emitter, site: Site) -> Sequence[str]:
    shape, names = site.shape(0), site.node.inputs
    x = e.reshape(names[0], shape[0], shape[1], -1)
    moved = e.add("Sub", x, e.mean(x, 2))
    variance = e.add("Add", e.mean(e.add("Mul", moved, moved), 2), e.floats(float(site.attr("epsilon", 1e-5))))
    unit = e.add("Div", moved, e.add("Sqrt", variance))
    y = e.add("Add", e.add("Mul", unit, e.reshape(names[1], 1, -1, 1)), e.reshape(names[2], 1, -1, 1))
    return [e.reshape(y, *shape)]


def _batch(e: Emitter, site: Site) -> Sequence[str]:
    """With given statistics; in training mode those of the batch, whose running means mix with the old ones by ``momentum``."""
    shape, names = site.shape(0), site.node.inputs
    view = (-1, *(1,) * (len(shape) - 2))
    running: list[str] = []
    if site.attr("training_mode", 0):
        rows = e.reshape(e.add("Transpose", names[0], perm=(1, 0, *range(2, len(shape)))), shape[1], -1)
        mean = e.mean(rows, 1)
        moved = e.add("Sub", rows, mean)
        variance = e.mean(e.add("Mul", moved, moved), 1)
        momentum = float(site.attr("momentum", 0.9))
        for old, new in ((names[3], mean), (names[4], variance)):
            kept = e.add("Mul", old, e.floats(momentum))
            running.append(e.add("Add", kept, e.add("Mul", e.reshape(new, -1), e.floats(1 - momentum))))
        mean, variance = e.reshape(mean, *view), e.reshape(variance, *view)
    elif any(site.node.outputs[1:]):
        raise NotLowered("BatchNormalization with outputs of an old training mode")
    else:
        mean, variance = (e.reshape(names[i], *view) for i in (3, 4))
    root = e.add("Sqrt", e.add("Add", variance, e.floats(float(site.attr("epsilon", 1e-5)))))
    unit = e.add("Div", e.add("Sub", names[0], mean), root)
    y = e.add("Add", e.add("Mul", unit, e.reshape(names[1], *view)), e.reshape(names[2], *view))
    return [y, *running][: len(site.node.outputs)]


def _dequantise(e: Emitter, site: Site) -> Sequence[str]:
    """(x - z) s with scales of the tensor, of each slice along an axis, or of blocks along it."""
    shape, scales = site.shape(0), site.shape(1)
    axis, block = int(site.attr("axis", 1)), int(site.attr("block_size", 0) or 0)
    axis = axis % len(shape) if shape else 0

    def spread(name: str) -> str:
        if math.prod(scales) == 1:
            return e.reshape(name, 1)
        if not block:
            return e.reshape(name, *(-1 if k == axis else 1 for k in range(len(shape))))
        lifted = e.reshape(name, *scales[: axis + 1], 1, *scales[axis + 1 :])
        whole = e.add("Expand", lifted, e.ints(*scales[: axis + 1], block, *scales[axis + 1 :]))
        return e.slice(e.reshape(whole, *scales[:axis], scales[axis] * block, *scales[axis + 1 :]), axis, 0, shape[axis])

    x = e.add("Cast", site.node.inputs[0], to=e.float_type)
    if site.has(2):
        x = e.add("Sub", x, spread(e.add("Cast", site.node.inputs[2], to=e.float_type)))
    return [e.add("Mul", x, spread(site.node.inputs[1]))]


LOWERINGS: Mapping[str, Lowering] = {
    "ai.onnx::BatchNormalization": _batch,
    "ai.onnx::Conv": _conv,
    "ai.onnx::ConvTranspose": _conv_transpose,
    "ai.onnx::DequantizeLinear": _dequantise,
    "ai.onnx::InstanceNormalization": _instance,
}
