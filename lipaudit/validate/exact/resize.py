"""Resize and Upsample as one matrix per axis (also what their derivative needs)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lipaudit.validate.exact.call import Array, Call, NotExact, Operator

__all__ = ["OPERATORS", "resize_matrices"]


def _coordinates(mode: str, n: int, out: int, scale: float) -> Array:
    """Input coordinate of every output position (table of coordinate_transformation_mode)."""
    i = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * (n - 1) / (out - 1) if out > 1 else np.zeros(1)
    if mode == "half_pixel":
        return (i + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if out > 1 else np.zeros(1)
    if mode == "half_pixel_symmetric":
        adjustment = out / (scale * n)
        return n / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5
    raise NotExact(f"Resize with coordinate_transformation_mode {mode!r}")


def _nearest(x: Array, mode: str) -> Array:
    if mode == "floor":
        return np.floor(x)
    if mode == "ceil":
        return np.ceil(x)
    if mode == "round_prefer_ceil":
        return np.floor(x + 0.5)
    return np.ceil(x - 0.5)


def _axis_matrix(n: int, out: int, scale: float, mode: str, coordinates: str, nearest: str, cubic: float, exclude: bool) -> Array:
    where = _coordinates(coordinates, n, out, scale)
    matrix = np.zeros((out, n))
    rows = np.arange(out)
    if mode == "nearest":
        matrix[rows, np.clip(_nearest(where, nearest), 0, n - 1).astype(int)] = 1.0
        return matrix
    base = np.floor(where)
    t = where - base
    if mode == "linear":
        taps = [(0, 1 - t), (1, t)]
    else:
        far, near = 1 + t, t
        a = cubic
        taps = [
            (-1, ((a * far - 5 * a) * far + 8 * a) * far - 4 * a),
            (0, ((a + 2) * near - (a + 3)) * near * near + 1),
            (1, ((a + 2) * (1 - near) - (a + 3)) * (1 - near) ** 2 + 1),
            (2, ((a * (2 - near) - 5 * a) * (2 - near) + 8 * a) * (2 - near) - 4 * a),
        ]
    for offset, weight in taps:
        position = (base + offset).astype(int)
        inside = (position >= 0) & (position < n)
        np.add.at(matrix, (rows, np.clip(position, 0, n - 1)), np.where(inside, weight, 0.0) if exclude else weight)
    return matrix / matrix.sum(axis=1, keepdims=True) if exclude else matrix


def resize_matrices(call: Call) -> list[Array | None]:
    """One ``[out, in]`` matrix per axis of the input (None: the axis stays) so that the node is their tensor product.

    ``call`` needs the shape of input 0 and the values of the constant inputs.
    """
    x, site = call.x(), call.site
    if site.node.op == "Upsample":
        scales: Array | None = np.array(site.attr("scales")) if call.version < 9 else call.x(1)
        sizes = None
    elif call.version < 11:
        scales, sizes = call.x(1), None
    else:
        scales, sizes = call.optional(2), call.optional(3)
        scales = None if scales is not None and scales.size == 0 else scales
    axes = site.attr("axes")
    axes = tuple(a % x.ndim for a in axes) if axes is not None else tuple(range(x.ndim))
    if site.attr("antialias", 0) or site.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotExact("Resize with antialias or an aspect-ratio policy")
    mode = str(site.attr("mode", "nearest"))
    mode = "linear" if mode in {"bilinear", "trilinear"} else mode
    old = site.node.op == "Upsample" or call.version < 11
    coordinates = "asymmetric" if old else site.attr("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else site.attr("nearest_mode", "round_prefer_floor")
    matrices: list[Array | None] = [None] * x.ndim
    for i, axis in enumerate(axes):
        n = x.shape[axis]
        out = int(sizes[i]) if sizes is not None else int(np.floor(n * float(scales[i]) + 1e-9)) if scales is not None else n
        scale = out / n if sizes is not None or scales is None else float(scales[i])
        if out == n and scale == 1.0:
            continue
        matrices[axis] = _axis_matrix(
            n, out, scale, mode, coordinates, nearest, site.attr("cubic_coeff_a", -0.75), bool(site.attr("exclude_outside", 0))
        )
    return matrices


def _resize(call: Call) -> Array:
    x = call.x()
    for axis, matrix in enumerate(resize_matrices(call)):
        if matrix is not None:
            x = np.moveaxis(np.tensordot(x, matrix, axes=(axis, 1)), -1, axis)
    return x


OPERATORS: Mapping[str, Operator] = {"Resize": _resize, "Upsample": _resize}
