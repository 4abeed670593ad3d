"""Operators whose parameters move too, and the rarer modes of Resize: nothing certified is exceeded, simple cases are attained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipaudit.bounds.scalar import Norm
from lipaudit.operators.base import Finite, Unbounded, Unknown
from lipaudit.operators.range import Range
from tests.operators.onenode import NORMS, Moving, One, check_pairs, check_range, norm_of
from tests.operators.test_random_nodes import Draw, i64

Array = Any
seeds = st.integers(0, 2**32 - 1)


# ------------------------------------------------------------------ Pad, ScatterElements, ScatterND


@pytest.mark.parametrize("norm", NORMS)
def test_a_padding_value_that_moves_is_copied_to_what_is_new(norm: Norm) -> None:
    one = One("Pad", [Moving((2, 3)), i64([1, 0, 0, 2]), Moving(())])
    filled = 3 * 5 - 2 * 3
    copies = {"l1": filled, "l2": math.sqrt(filled), "linf": 1.0}[norm]
    assert norm_of(one.jacobian("x2"), norm) <= one.slope(2, norm) <= copies * (1 + 1e-12)
    assert one.slope(0, norm) == 1.0
    check_pairs(one, np.random.default_rng(0))


def scatter(d: Draw) -> One:
    shape = d.shape(1, 2)
    bounds = d.pick((-1.0, 1.0), (-2.0, 0.5), (0.5, 3.0))
    data = Moving(shape, *bounds)
    if d.rng.random() < 0.5:
        axis = d.int(0, len(shape) - 1)
        own = tuple(d.int(1, n) for n in shape)
        indices = d.rng.integers(-shape[axis], shape[axis], own)
        return One("ScatterElements", [data, indices, Moving(own, -1.5, 2.0)], {"axis": axis, "reduction": "mul"}, opset=18)
    depth = d.int(1, len(shape))
    indices = np.stack([d.rng.integers(0, n, 3) for n in shape[:depth]], axis=-1)
    return One("ScatterND", [data, indices, Moving((3, *shape[depth:]), -1.5, 2.0)], {"reduction": "mul"}, opset=18)


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_products_in_cells_are_sound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = scatter(Draw(rng))
    check_pairs(one, rng)
    check_range(one, one.rule.range(one.site, one.ranges), rng)


@pytest.mark.parametrize("norm", NORMS)
def test_products_in_cells_are_attained(norm: Norm) -> None:
    """Two updates of one cell, at the corner where all factors are largest."""
    one = One("ScatterElements", [Moving((3,), -1, 2), i64([1, 1]), Moving((2,), -3, 1)], {"reduction": "mul"}, opset=18)
    corner = {"x0": np.full(3, 2.0), "x2": np.full(2, -3.0)}
    rows = {"l1": 6.0, "l2": 6.0 * math.sqrt(2), "linf": 12.0}
    assert rows[norm] * (1 - 1e-12) <= one.slope(2, norm) <= rows[norm] * (1 + 1e-12)
    assert norm_of(one.jacobian("x0", corner), norm) <= one.slope(0, norm) <= 9.0 * (1 + 1e-12)


def test_products_of_unbounded_factors_are_named() -> None:
    one = One("ScatterElements", [Moving((3,)), i64([1]), Moving((1,))], {"reduction": "mul"}, opset=18)
    assert isinstance(one.gain(0), Unbounded) and isinstance(one.gain(2), Unbounded)


# ------------------------------------------------------------------ ConvTranspose


def transposed(d: Draw) -> One:
    groups, rank = d.pick(1, 1, 2), d.pick(1, 2)
    c_in, c_out = groups * d.int(1, 2), d.int(1, 2)
    x = Moving((d.int(1, 2), c_in, *(d.int(1, 4) for _ in range(rank))), *d.pick((-1.0, 1.0), (0.0, 2.0)))
    kernel = tuple(d.int(1, 3) for _ in range(rank))
    w = Moving((c_in, c_out, *kernel), *d.pick((-1.0, 1.0), (-0.5, 2.0)))
    strides, dilations = [d.int(1, 3) for _ in range(rank)], [d.int(1, 2) for _ in range(rank)]
    attrs: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    spans = zip(x.shape[2:], kernel, strides, dilations, strict=True)
    image = tuple(s * (n - 1) + (k - 1) * step + 1 for n, k, s, step in spans)

    def run(xs: Any) -> list[Array]:
        data, weight, bias = (xs[name] for name in ("x0", "x1", "x2"))
        y = np.zeros((data.shape[0], groups * c_out, *image)) + bias.reshape(1, -1, *(1,) * rank)
        for c in range(c_in):
            first = c // (c_in // groups) * c_out
            for at in np.ndindex(*data.shape[2:]):
                for tap in np.ndindex(*kernel):
                    place = tuple(s * i + step * k for s, i, step, k in zip(strides, at, dilations, tap, strict=True))
                    y[(slice(None), slice(first, first + c_out), *place)] += (
                        data[(slice(None), c, *at)][:, None] * weight[(c, slice(None), *tap)]
                    )
        return [y]

    return One(
        "ConvTranspose", [x, w, Moving((groups * c_out,), -1, 1)], attrs, shapes=((x.shape[0], groups * c_out, *image),), function=run
    )


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_a_transposed_kernel_that_moves_is_sound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = transposed(Draw(rng))
    corner = {name: arg.sample(rng) for name, arg in one.sources.items()}
    for norm in NORMS:
        for i, name in enumerate(one.names[:2]):
            assert norm_of(one.jacobian(name, corner), norm) <= one.slope(i, norm)
    check_pairs(one, rng, pairs=3)


def test_the_gain_of_a_transposed_kernel_is_attained_in_l1() -> None:
    one = One("ConvTranspose", [Moving((1, 2, 5), 0, 3), Moving((2, 1, 3), -1, 1)], {"strides": [2]})
    top = norm_of(one.jacobian("x1", {"x0": np.full((1, 2, 5), 3.0)}), "l1")
    assert top <= one.slope(1, "l1") <= top * (1 + 1e-9)


# ------------------------------------------------------------------ BatchNormalization


def normalized(x: Array, g: Array, b: Array, m: Array, v: Array, eps: float) -> Array:
    tail = (1, -1, *(1,) * (x.ndim - 2))
    return (x - m.reshape(tail)) * g.reshape(tail) / np.sqrt(v.reshape(tail) + eps) + b.reshape(tail)


def batch_norm(d: Draw, *, training: bool) -> One:
    c = d.int(1, 2)
    x = Moving((d.int(1, 3), c, *d.shape(0, 2, 2)), *d.pick((-1.0, 1.0), (1.0, 4.0)))
    momentum = 0.75
    g, b, m, v = Moving((c,), -1, 2), Moving((c,), -1, 1), Moving((c,), -0.5, 1), Moving((c,), 0.25, 2)
    names = ("x0", "x1", "x2", "x3", "x4")

    def run(xs: Any) -> list[Array]:
        data, scale, bias, mean, var = (xs[name] for name in names)
        if not training:
            return [normalized(data, scale, bias, mean, var, float(np.float32(1e-2)))]
        axes = tuple(axis for axis in range(data.ndim) if axis != 1)
        own_mean, own_var = data.mean(axis=axes), data.var(axis=axes)
        y = normalized(data, scale, bias, own_mean, own_var, float(np.float32(1e-2)))
        return [y, momentum * mean + (1 - momentum) * own_mean, momentum * var + (1 - momentum) * own_var]

    attrs = {"epsilon": 1e-2, "momentum": momentum, "training_mode": int(training)}
    shapes = (x.shape, (c,), (c,)) if training else (x.shape,)
    return One("BatchNormalization", [x, g, b, m, v], attrs, opset=15, outputs=len(shapes), shapes=shapes, function=run)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, training=st.booleans())
def test_batch_normalization_with_all_five_moving_is_sound(seed: int, training: bool) -> None:
    rng = np.random.default_rng(seed)
    one = batch_norm(Draw(rng), training=training)
    check_pairs(one, rng)
    check_range(one, one.rule.range(one.site, one.ranges), rng)
    for i in range(5):
        for norm in NORMS:
            assert isinstance(one.gain(i, norm), Finite)


def test_the_running_statistics_move_no_more_than_certified() -> None:
    """Outputs 1 and 2 jointly with output 0, which ``check_pairs`` does not look at."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        one = batch_norm(Draw(rng), training=True)
        for norm in NORMS:
            bound = one.slope(0, norm)
            xs = {name: arg.sample(rng) for name, arg in one.sources.items()}
            ys = xs | {"x0": one.sources["x0"].sample(rng)}
            a, b = (np.concatenate([y.ravel() for y in one.run(point)]) for point in (xs, ys))
            p = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
            moved = np.linalg.norm((xs["x0"] - ys["x0"]).ravel(), p)
            assert np.linalg.norm(a - b, p) * (1 - 1e-12) <= bound * moved


@pytest.mark.parametrize("norm", NORMS)
def test_the_gain_of_a_moving_variance_is_attained(norm: Norm) -> None:
    one = One(
        "BatchNormalization",
        [Moving((1, 1, 3), 1, 2), np.array([2.0]), np.array([0.0]), np.array([0.0]), Moving((1,), 0.25, 1)],
        {"epsilon": 0.0}, opset=15,
    )  # fmt: skip
    # d/dv of 2 x v^(-1/2) at x = 2, v = 1/4 is -16 for each of three elements.
    top = {"l1": 48.0, "l2": 16 * math.sqrt(3), "linf": 16.0}[norm]
    assert top * (1 - 1e-12) <= one.slope(4, norm) <= top * (1 + 1e-9)


def test_a_variance_that_may_be_negative_has_no_bound() -> None:
    args = [Moving((1, 1, 3), 1, 2), *(np.array([1.0]) for _ in range(3)), Moving((1,), -1, 1)]
    assert isinstance(One("BatchNormalization", args, opset=15, shapes=((1, 1, 3),)).gain(0), Unknown)


# ------------------------------------------------------------------ Resize


def keys(x: float, a: float = -0.75) -> float:
    """The cubic convolution kernel."""
    s = abs(x)
    if s <= 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def interpolation(n: int, places: list[float], mode: str, squeeze: float = 1.0, crop: bool = False) -> Array:
    """Rows of weights at the ``places``: the kernel narrowed by ``squeeze``, normalised, edges repeated; zero outside of a crop."""
    kernel = keys if mode == "cubic" else triangle
    rows = np.zeros((len(places), n))
    for row, x in zip(rows, places, strict=True):
        if crop and not 0 <= x <= n - 1:
            continue
        if mode == "nearest":
            row[min(max(math.ceil(x - 0.5), 0), n - 1)] = 1.0
            continue
        around = range(math.floor(x) - 8, math.floor(x) + 10)
        weights = [kernel((k - x) * squeeze) for k in around]
        for k, weight in zip(around, weights, strict=True):
            row[min(max(k, 0), n - 1)] += weight / (sum(weights) if squeeze < 1 else 1.0)
    return rows


def cropped(n: int, outputs: int, begin: float, end: float) -> list[float]:
    if outputs == 1:
        return [(begin + end) / 2 * (n - 1)]
    return [(begin + (end - begin) * o / (outputs - 1)) * (n - 1) for o in range(outputs)]


def half_pixel(outputs: int, scale: float) -> list[float]:
    return [(o + 0.5) / scale - 0.5 for o in range(outputs)]


CROPS = [(4, 3, (0.0, 0.25, 1.0, 0.8)), (4, 5, (-0.4, 0.6, 0.7, 1.4)), (1, 5, (1.0, 0.6, 0.0, 0.2)), (5, 4, (0.0, 0.0, 1.0, 1.0))]


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize(("height", "width", "roi"), CROPS)
def test_cropping(mode: str, height: int, width: int, roi: tuple[float, ...]) -> None:
    stored = np.array(roi, np.float32)
    exact = [float(x) for x in stored]
    sizes = zip((5, 4), (height, width), exact[:2], exact[2:], strict=True)
    matrix = np.kron(*(interpolation(n, cropped(n, o, begin, end), mode, crop=True) for n, o, begin, end in sizes))
    attrs = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.0}
    shape = (height, width)

    def run(xs: Any) -> list[Array]:  # onnx's reference computes coordinates in float32
        return [np.where(np.any(matrix != 0, axis=1), matrix @ xs["x0"].ravel(), 3.0).reshape(shape)]

    one = One("Resize", [Moving((5, 4), -1, 2), stored, None, i64(shape)], attrs, opset=19, shapes=(shape,), function=run)
    compare(one, matrix, mode)
    check_range(one, one.rule.range(one.site, one.ranges), np.random.default_rng(0))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [(0.6, 0.4), (0.6, 2.5), (0.5, 0.5), (0.3, 1.0)])
def test_antialiasing(mode: str, scales: tuple[float, float]) -> None:
    stored = np.array(scales, np.float32)
    lengths = [(n, int(n * float(s)), float(s)) for n, s in zip((9, 8), stored, strict=True)]
    matrix = np.kron(*(interpolation(n, half_pixel(o, s), mode, min(1.0, s)) for n, o, s in lengths))
    one = One("Resize", [Moving((9, 8), -1, 2), None, stored], {"mode": mode, "antialias": 1}, opset=19)
    compare(one, matrix, mode, loose=1.7)  # the border may be read in another way
    check_range(one, one.rule.range(one.site, one.ranges), np.random.default_rng(0))


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize(
    ("policy", "sizes"), [("not_larger", (7, 9)), ("not_smaller", (3, 2)), ("not_larger", (3, 2)), ("not_smaller", (6, 9))]
)
def test_keeping_the_aspect_ratio(mode: str, policy: str, sizes: tuple[int, int]) -> None:
    scale = (min if policy == "not_larger" else max)(sizes[0] / 5, sizes[1] / 4)
    lengths = [(n, int(scale * n + 0.5)) for n in (5, 4)]
    matrix = np.kron(*(interpolation(n, half_pixel(o, scale), mode) for n, o in lengths))
    one = One("Resize", [Moving((5, 4), -1, 2), None, None, i64(sizes)], {"mode": mode, "keep_aspect_ratio_policy": policy}, opset=19)
    compare(one, matrix, mode)


def compare(one: One, matrix: Array, mode: str, loose: float = 1 + 1e-9) -> None:
    """Norms of Kronecker products are exact; those of a selection count both neighbours near a tie."""
    for norm in NORMS:
        found, truth = one.slope(0, norm), norm_of(matrix, norm)
        assert truth <= found
        if mode != "nearest":
            assert found <= truth * loose * (1.25 if norm == "l2" else 1.0) + 1e-9
    assert one.rule.linear(one.site, 0) is None or np.allclose(one.jacobian("x0"), matrix, atol=1e-5)


def test_what_resize_needs_to_know_is_named() -> None:
    crop = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    moving = One("Resize", [Moving((4,)), Moving((2,), 0, 1), None, i64([3])], crop, opset=19)
    found = moving.gain(0)
    assert isinstance(found, Unknown) and "roi" in found.reason


# ------------------------------------------------------------------ what an operand can decide


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_of_clip_count_the_elements_that_they_may_decide(norm: Norm) -> None:
    from tests.operators.structured import OneNode, box

    x = Range((4,), np.array([-5.0, 0.0, 0.0, 5.0]), np.array([-4.0, 1.0, 1.0, 6.0]))
    node = OneNode("Clip", [x, box((), -1.5, -1.0), box((), 2.0, 3.0)], [(4,)], version=13)
    assert node.slope(1, norm) == 1.0 and node.slope(2, norm) == 1.0
    least = OneNode("Max", [x, box((), -1.5, -1.0)], [(4,)], version=13)
    assert least.slope(1, norm) == 1.0


@pytest.mark.parametrize("norm", NORMS)
def test_elements_with_intervals_of_their_own_are_asked_one_by_one(norm: Norm) -> None:
    from tests.operators.structured import OneNode

    x = Range((2,), np.array([-4.0, 1.0]), np.array([-2.0, 2.0]))
    assert OneNode("Reciprocal", [x], [(2,)], version=13).slope(0, norm) == pytest.approx(1.0, rel=1e-12)
    assert OneNode("Reciprocal", [x], [(2,)], version=13).slope(0, norm) >= 1.0
    far = Range((2,), np.array([-6.0, 4.0]), np.array([-5.0, 5.0]))
    truth = math.exp(-4) / (1 + math.exp(-4)) ** 2
    assert truth * (1 - 1e-12) <= OneNode("Sigmoid", [far], [(2,)], version=13).slope(0, norm) <= truth * (1 + 1e-12)
    touching = Range((2,), np.array([-4.0, 0.0]), np.array([-2.0, 2.0]))
    assert isinstance(OneNode("Reciprocal", [touching], [(2,)], version=13).gain(0, norm), Unbounded)


def test_the_inverse_deviation_on_a_box_away_from_constant_rows() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        n = int(rng.integers(2, 6))
        centre, half = rng.normal(size=n) * 3, rng.uniform(0.01, 0.3)
        eps = float(np.float32(10.0 ** rng.uniform(-6, 0)))
        from tests.operators.structured import OneNode

        x = Range((1, n), (centre - half)[None], (centre + half)[None])
        node = OneNode("LayerNormalization", [x, np.ones(n)], [(1, n), (1, 1), (1, 1)], {"epsilon": eps}, version=17)
        bounds = node.gain(0, "l2")
        assert isinstance(bounds, Finite)
        third = bounds.outputs[2]  # type: ignore[attr-defined]
        for _ in range(20):
            a = centre + rng.uniform(-half, half, n)
            centred = a - a.mean()
            s = math.sqrt(float(np.mean(centred * centred)) + eps)
            steepness = float(np.linalg.norm(centred)) / (n * s**3)
            assert steepness * (1 - 1e-12) <= float(third.slope)
            lo, hi = (float(end) for end in (node.range()[2].lo, node.range()[2].hi))
            assert lo <= 1 / s <= hi * (1 + 1e-12)
