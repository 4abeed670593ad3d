"""As ``test_random_nodes`` for the rarer operators: nothing certified is exceeded by sampled pairs, ranges or exact Jacobians.

Functions are onnx's reference where that computes in float64; else they are written here from the operator's definition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipaudit.operators.base import Finite
from tests.operators.onenode import NORMS, Moving, One, check_pairs, check_range, norm_of
from tests.operators.test_random_nodes import Draw, i64

seeds = st.integers(0, 2**32 - 1)
Array = Any


def bounded(d: Draw, shape: tuple[int, ...], name: str = "") -> Moving:
    lo, hi = d.pick((-1.0, 1.0), (-2.0, 0.5), (0.0, 2.0), (0.25, 1.5))
    return Moving(shape, lo, hi, name)


def einsum(d: Draw) -> One:
    equation = d.pick(
        "ij,jk->ik", "ij,jk", "bij,bjk->bik", "bij,jk->bik", "ij->ji", "ij->i", "ii->i", "ii->", "ij,ij->", "i,j->ij", "bhqd,bhkd->bhqk",
        "ij,jk,kl->il", "...ij,...jk->...ik", "ij,k->i", "ij,i->j", "ijk->k", "aij,ja->i", "ij,ij,ij->j",
    )  # fmt: skip
    terms = equation.split("->")[0].split(",")
    sizes = {letter: d.int(1, 3) for letter in "abdhijklq"}
    dots = d.shape(0, 2, 2)
    args: list[Any] = []
    for term in terms:
        own = dots[d.int(0, len(dots)) :] if "..." in term else ()
        own = tuple(1 if d.rng.random() < 0.3 else n for n in own)
        letters = tuple(sizes[c] for c in term.replace("...", ""))
        if len(terms) > 1 and d.rng.random() < 0.15 and len(set(term)) == len(term):
            letters = (1, *letters[1:])
        shape = (*own, *letters)
        args.append(bounded(d, shape) if not args or d.rng.random() < 0.6 else d.array(shape))
    d.rng.shuffle(args) if len({getattr(a, "shape", None) for a in args}) == 1 else None
    one = One("Einsum", args, {"equation": equation})
    probe = [np.zeros(a.shape) for a in args]
    try:
        np.einsum(equation, *probe)
    except ValueError:  # an output index of a broadcast axis that only has length 1, and the like
        return One("Einsum", [bounded(d, (2, 3))], {"equation": "ij->j"})
    return one


def products(d: Draw) -> One:
    if d.rng.random() < 0.5:
        n = d.int(1, 3)
        return One("Det", [bounded(d, (*d.shape(0, 1, 2), n, n))])
    shape = d.shape(1, 3)
    axis = np.asarray(d.int(0, len(shape) - 1), dtype=np.int64)
    attrs = {"exclusive": d.int(0, 1), "reverse": d.int(0, 1)}
    return One("CumProd", [bounded(d, shape), axis], attrs, opset=26)


def fourier(d: Draw) -> One:
    n, parts = d.int(1, 7), d.pick(1, 2)
    if d.rng.random() < 0.4:
        length, step, frames = d.int(1, 5), d.int(1, 3), d.int(1, 3)
        signal = Moving((1, (frames - 1) * step + length + d.int(0, step - 1), 1), -1, 1)
        window = np.asarray(d.array((length,)))
        onesided = d.int(0, 1)

        def frames_of(xs: Any) -> list[Array]:
            x = xs["x0"][0, :, 0]
            kept = length // 2 + 1 if onesided else length
            count = 1 + (len(x) - length) // step
            spectra = np.stack([np.fft.fft(x[k * step : k * step + length] * window)[:kept] for k in range(count)])
            return [np.stack([spectra.real, spectra.imag], axis=-1)[None]]

        return One("STFT", [signal, np.asarray(step), window, np.asarray(length)], {"onesided": onesided}, function=frames_of)
    inverse, onesided = d.int(0, 1), d.int(0, 1)
    length = d.int(1, 8)
    if not inverse and parts == 2:
        onesided = 0
    args = [Moving((d.int(1, 2), n, parts), -1, 1), np.asarray(length), np.asarray(1)]
    return One("DFT", args, {"inverse": inverse, "onesided": onesided})


def selections(d: Draw) -> One:
    op = d.pick("CenterCropPad", "Compress", "TensorScatter", "Col2Im")
    if op == "CenterCropPad":
        shape = d.shape(1, 3)
        return One(op, [d.moving(shape), i64([d.int(1, 5) for _ in shape])])
    if op == "Compress":
        shape = d.shape(1, 3)
        axis = d.int(0, len(shape) - 1)
        if d.rng.random() < 0.3:
            return One(op, [d.moving(shape), np.asarray(d.rng.random(math.prod(shape)) < 0.5)])
        return One(op, [d.moving(shape), np.asarray(d.rng.random(shape[axis]) < 0.5)], {"axis": axis})
    if op == "TensorScatter":
        b, n, m, c = d.int(1, 2), d.int(2, 4), d.int(1, 2), d.int(1, 3)
        circular = d.int(0, 1)
        start = i64([d.int(0, n - 1 if circular else n - m) for _ in range(b)])
        return One(op, [d.moving((b, n, c)), d.moving((b, m, c)), start], {"mode": "circular" if circular else "linear"}, opset=24)
    image, block = (d.int(2, 4), d.int(2, 4)), (d.int(1, 2), d.int(1, 2))
    strides, pads = [d.int(1, 2), d.int(1, 2)], [d.int(0, 1) for _ in range(4)]
    blocks = [(image[k] + pads[k] + pads[k + 2] - block[k]) // strides[k] + 1 for k in range(2)]
    x = d.moving((1, 2 * math.prod(block), math.prod(blocks)))
    return One(op, [x, i64(image), i64(block)], {"strides": strides, "pads": pads})


# ---------------------------------------------------------------------- sampling, from the definition


def pixel(x: Array, index: Sequence[int], padding: str, align: bool) -> float:
    at: list[int] = []
    for i, n in zip(index, x.shape, strict=True):
        if padding == "zeros" and not 0 <= i < n:
            return 0.0
        if padding == "border":
            i = min(max(i, 0), n - 1)
        if padding == "reflection":
            i = int(mirrored(float(i), n, align))
        at.append(i)
    return float(x[tuple(at)])


def mirrored(v: float, n: int, align: bool) -> float:
    low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)
    if high <= low:
        return 0.0
    while not low <= v <= high:
        v = 2 * low - v if v < low else 2 * high - v
    return v


def keys_kernel(s: float, a: float = -0.75) -> float:
    s = abs(s)
    if s <= 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


def sampled(x: Array, point: Sequence[float], mode: str, padding: str, align: bool) -> float:
    """One sample of one channel at a normalised point."""
    coordinates: list[float] = []
    for g, n in zip(reversed(list(point)), x.shape, strict=True):
        v = (g + 1) / 2 * (n - 1) if align else ((g + 1) * n - 1) / 2
        v = float(np.rint(v)) if mode == "nearest" else v
        low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)
        if not low <= v <= high:
            v = min(max(v, 0.0), n - 1.0) if padding == "border" else mirrored(v, n, align) if padding == "reflection" else v
        coordinates.append(v)
    if mode == "nearest":
        return pixel(x, [int(v) for v in coordinates], padding, align)
    reach = range(2) if mode == "linear" else range(-1, 3)
    total = 0.0
    for steps in itertools.product(reach, repeat=x.ndim):
        index = [math.floor(v) + k for v, k in zip(coordinates, steps, strict=True)]
        weight = 1.0
        for v, i in zip(coordinates, index, strict=True):
            weight *= max(0.0, 1 - abs(v - i)) if mode == "linear" else keys_kernel(v - i)
        total += weight * pixel(x, index, padding, align) if weight else 0.0
    return total


def grid_sample(d: Draw) -> One:
    axes = d.pick(1, 2, 2)
    image = tuple(d.int(1, 4) for _ in range(axes))
    out = tuple(d.int(1, 3) for _ in range(axes))
    mode, padding, align = d.pick("linear", "nearest", "cubic"), d.pick("zeros", "border", "reflection"), bool(d.int(0, 1))
    x = bounded(d, (1, 2, *image))
    shape = (1, *out, axes)
    moves = mode != "nearest" and d.rng.random() < 0.5
    grid: Any = Moving(shape, -1.5, 1.5) if moves else d.rng.integers(-12, 13, shape) / 8 + 0.01

    def function(xs: Any) -> list[Array]:
        points = xs["x1"] if moves else grid
        y = np.empty((1, 2, *out))
        for c in range(2):
            for place in np.ndindex(out):
                y[(0, c, *place)] = sampled(xs["x0"][0, c], points[(0, *place)], mode, padding, align)
        return [y]

    attrs = {"mode": mode, "padding_mode": padding, "align_corners": int(align)}
    return One("GridSample", [x, grid], attrs, opset=20, function=function)


def affine_grid(d: Draw) -> One:
    size = [1, 1, d.int(2, 3), d.int(2, 3)]
    align = d.int(0, 1)

    def function(xs: Any) -> list[Array]:
        axes = [np.linspace(-1, 1, n) if align else (2 * np.arange(n) + 1) / n - 1 for n in size[2:]]
        y, x = np.meshgrid(*axes, indexing="ij")
        return [np.einsum("nij,hwj->nhwi", xs["x0"], np.stack([x, y, np.ones_like(x)], axis=-1))]

    return One("AffineGrid", [bounded(d, (1, 2, 3)), i64(size)], {"align_corners": align}, function=function)


def regions(d: Draw) -> One:
    image = (2, 1, d.int(2, 5), d.int(2, 5))
    corner = d.rng.integers(0, 12, (2, 2)) / 4
    rois = np.concatenate([corner, corner + d.rng.integers(1, 12, (2, 2)) / 4], axis=1) + 0.01
    if d.rng.random() < 0.3:
        whole = np.concatenate([i64([[0], [1]]).astype(float), np.floor(rois)], axis=1)
        bins = [d.int(1, 2), d.int(1, 2)]

        def pooled(xs: Any) -> list[Array]:
            y = np.zeros((2, 1, *bins))
            for n, (b, left, top, right, bottom) in enumerate(whole.astype(int)):
                height, width = max(bottom - top + 1, 1) / bins[0], max(right - left + 1, 1) / bins[1]
                for i, j in np.ndindex(*bins):
                    rows = slice(*(min(max(top + v, 0), image[2]) for v in (math.floor(i * height), math.ceil((i + 1) * height))))
                    columns = slice(*(min(max(left + v, 0), image[3]) for v in (math.floor(j * width), math.ceil((j + 1) * width))))
                    window = xs["x0"][b, 0, rows, columns]
                    y[n, 0, i, j] = window.max() if window.size else 0.0
            return [y]

        return One("MaxRoiPool", [bounded(d, image), whole], {"pooled_shape": bins}, function=pooled)
    attrs = {
        "mode": d.pick("avg", "max"), "output_height": d.int(1, 2), "output_width": d.int(1, 2), "sampling_ratio": d.int(0, 2),
        "coordinate_transformation_mode": d.pick("half_pixel", "output_half_pixel"),
    }  # fmt: skip
    return One("RoiAlign", [bounded(d, image), rois, i64([d.int(0, 1), d.int(0, 1)])], attrs, opset=16)


def deformed(d: Draw) -> One:
    groups, offset_groups = d.pick((1, 1), (1, 2), (2, 1))
    image, kernel = (d.int(2, 4), d.int(2, 4)), (d.int(1, 2), d.int(1, 2))
    out = (image[0] - kernel[0] + 1, image[1] - kernel[1] + 1)
    if min(out) < 1:
        image, out = (3, 3), (4 - kernel[0], 4 - kernel[1])
    weight = d.array((2, 2 // groups, *kernel))
    count = math.prod(kernel)
    x, bias = bounded(d, (1, 2, *image)), d.array((2,))
    offset: Any = Moving((1, offset_groups * count * 2, *out), -1, 1)
    offset = offset if d.rng.random() < 0.5 else offset.sample(d.rng)
    mask: Any = Moving((1, offset_groups * count, *out), 0, 1) if d.rng.random() < 0.5 else None

    def function(xs: Any) -> list[Array]:
        given = (xs["x2"] if isinstance(offset, Moving) else offset).reshape(offset_groups, count, 2, *out)
        factor = xs["x4"].reshape(offset_groups, count, *out) if mask is not None else np.ones((offset_groups, count, *out))
        y = np.zeros((1, 2, *out))
        for o, c, k in itertools.product(range(2), range(2 // groups), range(count)):
            channel = (o // (2 // groups)) * (2 // groups) + c
            g = channel // (2 // offset_groups)
            tap = divmod(k, kernel[1])
            for i, j in np.ndindex(*out):
                at = (i + tap[0] + given[g, k, 0, i, j], j + tap[1] + given[g, k, 1, i, j])
                total = 0.0
                for a, b in itertools.product(range(2), repeat=2):
                    u, v = math.floor(at[0]) + a, math.floor(at[1]) + b
                    total += (
                        max(0.0, 1 - abs(at[0] - u)) * max(0.0, 1 - abs(at[1] - v)) * pixel(xs["x0"][0, channel], (u, v), "zeros", True)
                    )
                y[0, o, i, j] += weight[o, c][tap] * factor[g, k, i, j] * total
        return [y + bias.reshape(1, 2, 1, 1)]

    attrs = {"group": groups, "offset_group": offset_groups, "kernel_shape": list(kernel)}
    return One("DeformConv", [x, weight, offset, bias, mask], attrs, opset=19, function=function)


def losses(d: Draw) -> One:
    n, c = d.int(1, 3), d.int(1, 4)
    tail = d.shape(0, 1, 2)
    target = np.asarray(d.rng.integers(0, c, (n, *tail)), dtype=np.int64)
    weight = np.asarray(d.rng.integers(1, 5, c) / 2.0) if d.rng.random() < 0.5 else None
    attrs: dict[str, Any] = {"reduction": d.pick("none", "sum", "mean")}
    if d.rng.random() < 0.3 and np.unique(target).size > 1:
        attrs["ignore_index"] = int(target.ravel()[0])
    op = d.pick("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    return One(op, [d.moving((n, c, *tail)), target, *([weight] if weight is not None else [])], attrs, opset=13)


def gates(d: Draw) -> One:
    shape = d.shape()
    if d.rng.random() < 0.2:
        source = bounded(d, shape, "x")
        return One("SwiGLU", [source, source], opset=28)
    return One("SwiGLU", [bounded(d, shape), bounded(d, shape)], {"alpha": d.pick(1.0, 0.5, -1.0, 1.702)}, opset=28)


def states(d: Draw) -> One:
    b, t = d.int(1, 2), d.int(1, 3)
    if d.rng.random() < 0.4:
        c, k = d.int(1, 2), d.int(1, 3)
        args: list[Any] = [bounded(d, (b, c, t)), d.array((c, 1, k)), d.array((c,)), Moving((b, c, k - 1), -1, 1) if k > 1 else None]

        def conv(xs: Any) -> list[Array]:
            past = xs["x3"] if k > 1 else np.zeros((b, c, 0))
            full = np.concatenate([past, xs["x0"]], axis=2)
            y = np.stack([np.einsum("bck,ck->bc", full[:, :, i : i + k], args[1][:, 0]) for i in range(t)], axis=2) + args[2][:, None]
            y = y / (1 + np.exp(-y)) if swish else y
            return [y, full[:, :, full.shape[2] - (k - 1) :]]

        swish = bool(d.int(0, 1))
        attrs = {"activation": "swish" if swish else "none"}
        return One("CausalConvWithState", args, attrs, opset=27, outputs=2, function=conv)
    kv, group, dk, dv = d.int(1, 2), d.int(1, 2), d.int(1, 2), d.int(1, 2)
    rule = d.pick("linear", "gated", "delta", "gated_delta")
    decays = d.pick(kv, kv * dk)
    inputs: list[Any] = [
        bounded(d, (b, t, kv * group * dk)),
        bounded(d, (b, t, kv * dk)),
        bounded(d, (b, t, kv * dv)),
        bounded(d, (b, kv, dk, dv)) if d.rng.random() < 0.5 else None,
        Moving((b, t, decays), -1.0, d.pick(0.0, 0.25)) if "gated" in rule else None,
        Moving((b, t, d.pick(1, kv)), d.pick(0.0, -0.5), 1.0) if "delta" in rule else None,
    ]

    def recurrence(xs: Any) -> list[Array]:
        q = xs["x0"].reshape(b, t, kv, group, dk)
        k, v = xs["x1"].reshape(b, t, kv, dk), xs["x2"].reshape(b, t, kv, dv)
        s = xs["x3"] if inputs[3] is not None else np.zeros((b, kv, dk, dv))
        y = np.zeros((b, t, kv, group, dv))
        for i in range(t):
            if "gated" in rule:
                s = s * np.exp(xs["x4"][:, i].reshape(b, kv, -1))[..., None]
            new = v[:, i]
            if "delta" in rule:
                new = xs["x5"][:, i].reshape(b, -1, 1) * (new - np.einsum("bhdm,bhd->bhm", s, k[:, i]))
            s = s + k[:, i, :, :, None] * new[:, :, None, :]
            y[:, i] = np.einsum("bhgd,bhdm->bhgm", q[:, i], s) / math.sqrt(dk)
        return [y.reshape(b, t, -1), s]

    attrs = {"kv_num_heads": kv, "q_num_heads": kv * group, "update_rule": rule}
    return One("LinearAttention", inputs, attrs, opset=27, outputs=2, function=recurrence)


def machine_learning(d: Draw) -> One:
    n, f = d.int(1, 3), d.int(1, 4)
    op = d.pick(
        "Scaler", "Imputer", "FeatureVectorizer", "LinearRegressor", "Normalizer", "Binarizer", "SVMRegressor", "ArrayFeatureExtractor"
    )
    x = bounded(d, (n, f))
    ml = {"opset": 5, "domain": "ai.onnx.ml"}
    if op == "Scaler":
        return One(op, [x], {"scale": d.array((f,)).tolist(), "offset": d.array((f,)).tolist()}, **ml)
    if op == "Imputer":
        value = d.pick(0.5, math.nan)
        attrs = {"imputed_value_floats": d.array((f,)).tolist(), "replaced_value_float": value}
        return One(op, [x], attrs, **ml, function=lambda xs: [np.where(xs["x0"] == value, attrs["imputed_value_floats"], xs["x0"])])
    if op == "FeatureVectorizer":
        return One(op, [x, bounded(d, (n, 2))], {"inputdimensions": [d.int(1, 4), d.int(1, 3)]}, **ml)
    if op == "LinearRegressor":
        m = d.int(1, 3)
        return One(op, [x], {"coefficients": d.array((m * f,)).tolist(), "targets": m, "intercepts": d.array((m,)).tolist()}, **ml)
    if op == "Normalizer":
        kind = d.pick("L1", "L2", "MAX")
        source = Moving((n, f), 0.25, 1.5) if kind == "MAX" or d.rng.random() < 0.6 else x
        return One(op, [source], {"norm": kind}, **ml)
    if op == "Binarizer":
        return One(op, [x], {"threshold": 0.25}, **ml)
    if op == "ArrayFeatureExtractor":
        return One(op, [x, np.asarray(d.rng.integers(0, f, d.int(1, 4)), dtype=np.int64)], **ml)
    kernel, count = d.pick("LINEAR", "RBF", "POLY", "SIGMOID"), d.int(1, 3)
    gamma, shift, degree = 0.5, 0.25, float(d.int(1, 3))
    vectors, weights = d.array((count, f)), d.array((count,))

    def machine(xs: Any) -> list[Array]:
        inner = xs["x0"] @ vectors.T
        k = {
            "LINEAR": inner,
            "SIGMOID": np.tanh(gamma * inner + shift),
            "POLY": (gamma * inner + shift) ** degree,
            "RBF": np.exp(-gamma * np.sum((xs["x0"][:, None] - vectors[None]) ** 2, axis=-1)),
        }[kernel]
        return [(k @ weights)[:, None] + 1.0]

    attrs = {
        "kernel_type": kernel, "kernel_params": [gamma, shift, degree], "n_supports": count, "rho": [1.0],
        "support_vectors": vectors.ravel().tolist(), "coefficients": weights.tolist(),
    }  # fmt: skip
    return One("SVMRegressor", [x], attrs, opset=1, domain="ai.onnx.ml", function=machine)


def fused(d: Draw) -> One:
    ms = {"opset": 1, "domain": "com.microsoft"}
    activation, values, act = d.pick(
        ("Relu", [], lambda y: np.maximum(y, 0)),
        ("LeakyRelu", [3.0], lambda y: np.where(y > 0, y, 3 * y)),
        ("Tanh", [], np.tanh),
        ("Clip", [-1.0, 0.5], lambda y: np.clip(y, -1, 0.5)),
        ("HardSigmoid", [0.25, 0.5], lambda y: np.clip(0.25 * y + 0.5, 0, 1)),
    )
    if d.rng.random() < 0.5:
        n, k, m = d.int(1, 3), d.int(1, 3), d.int(1, 3)
        ta, tb, alpha = d.int(0, 1), d.int(0, 1), d.pick(1.0, -0.5, 2.0)
        a, w = bounded(d, (2, k, n) if ta else (2, n, k)), (m, k) if tb else (k, m)
        right: Any = bounded(d, w) if d.rng.random() < 0.4 else d.array(w)

        def product(xs: Any) -> list[Array]:
            left, other = xs["x0"], xs["x1"] if isinstance(right, Moving) else right
            return [alpha * (np.swapaxes(left, -1, -2) if ta else left) @ (other.T if tb else other)]

        return One("FusedMatMul", [a, right], {"transA": ta, "transB": tb, "alpha": alpha}, **ms, function=product)
    weight, bias = d.array((2, 2, 1, 1)), d.array((2,))
    last = bool(d.int(0, 1))
    shape = (1, 3, 2, 2) if last else (1, 2, 3, 2)

    def convolved(xs: Any) -> list[Array]:
        equation = "nhwc,oc->nhwo" if last else "nchw,oc->nohw"
        y = np.einsum(equation, xs["x0"], weight[:, :, 0, 0]) + (bias if last else bias[:, None, None])
        return [act(y + xs["x3"])]

    attrs = {"kernel_shape": [1, 1], "activation": activation, **({"activation_params": values} if values else {})}
    args = [bounded(d, shape), weight, bias, bounded(d, shape)]
    return One("NhwcFusedConv" if last else "FusedConv", args, attrs, **ms, function=convolved)


FAMILIES = [
    einsum, products, fourier, selections, grid_sample, affine_grid, regions, deformed, losses, gates, states, machine_learning, fused,
]  # fmt: skip
# Affine in the image, the signal, the features: the Jacobian is the whole truth, in input 0.
LINEAR = {"DFT", "STFT", "Col2Im", "Compress", "CenterCropPad", "AffineGrid", "Scaler", "LinearRegressor", "NegativeLogLikelihoodLoss"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@settings(max_examples=40)
@given(seed=seeds)
def test_certified_is_never_exceeded(family: Any, seed: int) -> None:
    draw = Draw(seed)
    one = family(draw)
    with np.errstate(all="ignore"):
        check_range(one, one.rule.range(one.site, one.ranges), draw.rng)
        check_pairs(one, draw.rng, 4)
    if one.op in LINEAR or (
        one.op in ("GridSample", "RoiAlign", "Einsum") and list(one.sources) == ["x0"] and one.attrs.get("mode") != "max"
    ):
        matrix = one.jacobian("x0")
        for norm in NORMS:
            gain = one.gain(0, norm)
            assert isinstance(gain, Finite), gain
            assert float(gain.slope) >= norm_of(matrix, norm), (one.op, norm, one.attrs)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_families_are_finite(family: Any) -> None:
    """Of 40 draws almost all have a finite constant: the comparison above is not empty."""
    found = [
        all(isinstance(one.gain(i), Finite) for i, x in enumerate(one.args) if isinstance(x, Moving))
        for one in map(family, map(Draw, range(40)))
    ]
    assert sum(found) >= 30
