"""Hand-derived constants of reductions, pooling, resizing, convolutions, matrix products; (l1, l2, linf) each."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lipaudit.operators.base import Finite, Unbounded, Unknown
from tests.operators.onenode import NORMS, Moving, One, norm_of
from tests.operators.test_exact_arithmetic import near
from tests.operators.test_exact_movement import i64, times, x

R2, R3, R5 = math.sqrt(2), math.sqrt(3), math.sqrt(5)


def within(one: One, i: int = 0, excess: float = 2e-6) -> None:
    """Certified is not below the exact Jacobian, and close to it."""
    matrix = one.jacobian(one.names[i])
    for norm in NORMS:
        truth = norm_of(matrix, norm)
        assert truth <= one.slope(i, norm) <= truth * (1 + excess) + 1e-12, (norm, truth, one.gain(i, norm))


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("ReduceSum", (1, R3, 3)),
        ("ReduceMean", (1 / 3, 1 / R3, 1)),
        ("ReduceMax", (1, 1, 1)),
        ("ReduceMin", (1, 1, 1)),
        ("ReduceL1", (1, R3, 3)),
        ("ReduceL2", (1, 1, R3)),
        ("ReduceLogSumExp", (1, 1, 1)),
    ],
)
def test_reductions(op: str, wanted: tuple[float, ...]) -> None:
    near(One(op, [x(2, 3), i64(1)]).slopes(), wanted)
    near(One(op, [x(2, 3), i64(-1)], {"keepdims": 0}).slopes(), wanted)
    near(One(op, [x(2, 3)], {"axes": [1]}, opset=11).slopes(), wanted)
    if op in ("ReduceSum", "ReduceMean"):
        within(One(op, [x(2, 3), i64(0, 1)], {"keepdims": 0}))


def test_reduction_of_nothing_and_of_everything() -> None:
    near(One("ReduceSum", [x(2, 3)]).slopes(), (1, math.sqrt(6), 6))
    near(One("ReduceSum", [x(2, 3), i64()], {"noop_with_empty_axes": 1}, shapes=((2, 3),)).slopes(), (1, 1, 1))
    near(One("GlobalAveragePool", [x(1, 2, 2, 2)]).slopes(), (0.25, 0.5, 1))
    near(One("GlobalMaxPool", [x(1, 2, 2, 2)]).slopes(), (1, 1, 1))


def test_reductions_on_a_range() -> None:
    box = Moving((1, 4), -1, 2)
    near(One("ReduceSumSquare", [box, i64(1)]).slopes(), (4, 8, 16))
    near(One("ReduceLogSum", [Moving((1, 4), 0.5, 2), i64(1)]).slopes(), (0.5, 1, 2))
    near(One("ReduceProd", [box, i64(1)]).slopes(), (8, 16, 32))
    for op in ("ReduceSumSquare", "ReduceLogSum", "ReduceProd"):
        assert isinstance(One(op, [x(1, 4), i64(1)]).gain(), Unbounded)


def test_linear_reductions_are_operators() -> None:
    for keepdims in (0, 1):
        one = One("ReduceMean", [x(2, 3, 2), i64(1)], {"keepdims": keepdims})
        operator = one.rule.linear(one.site, 0)
        assert operator is not None and operator.out_shape == one.site.out_shape()
        point = np.arange(12.0).reshape(2, 3, 2)
        np.testing.assert_allclose(operator.apply(point), one.run({"x0": point})[0], rtol=1e-15)
        assert float(operator.norm("l2").upper) >= 1 / R3


def test_sorting_ranking_accumulating() -> None:
    near(One("TopK", [x(5), i64(2)], outputs=2).slopes(), (1, 1, 1))
    found = One("ArgMax", [x(4, 3)]).gain(0, "l1")
    assert isinstance(found, Finite) and float(found.offset) == 9 and found.slope.is_zero
    for attrs in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        for n in (1, 2, 5):
            within(One("CumSum", [x(n, 2), np.array(0, dtype=np.int64)], attrs), excess=1e-10)


@pytest.mark.parametrize(
    ("shape", "attrs", "copies"),
    [
        ((1, 1, 6), {"kernel_shape": [3]}, 3),
        ((1, 1, 6, 6), {"kernel_shape": [3, 3]}, 9),
        ((1, 1, 6), {"kernel_shape": [2], "strides": [2]}, 1),
        ((1, 1, 9), {"kernel_shape": [3], "strides": [2]}, 2),
        ((1, 1, 9), {"kernel_shape": [3], "strides": [2], "dilations": [2]}, 3),
        ((1, 1, 5), {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}, 2),
        ((1, 1, 4), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}, 2),
        ((1, 1, 2), {"kernel_shape": [3], "pads": [1, 1]}, 2),
    ],
)
def test_max_pool(shape: tuple[int, ...], attrs: dict[str, object], copies: int) -> None:
    shapes = ((1, 1, 2),) if shape == (1, 1, 2) else None
    near(One("MaxPool", [Moving(shape)], attrs, shapes=shapes).slopes(), times(copies))


def test_overlapping_max_pool_is_attained() -> None:
    """A single peak is seen by three windows."""
    one = One("MaxPool", [x(1, 1, 5)], {"kernel_shape": [3]})
    peak = np.zeros((1, 1, 5))
    peak[0, 0, 2] = 1
    assert np.linalg.norm(one.run({"x0": peak})[0] - one.run({"x0": 0 * peak})[0]) == R3 <= one.slope()


@pytest.mark.parametrize(
    ("shape", "attrs", "wanted"),
    [
        ((1, 1, 2), {"kernel_shape": [2], "pads": [1, 1]}, (1.5, math.sqrt(1.5), 1)),
        ((1, 1, 2), {"kernel_shape": [2], "pads": [1, 1], "count_include_pad": 1}, (1, math.sqrt(0.75), 1)),
        ((1, 1, 4), {"kernel_shape": [2], "strides": [2]}, (0.5, R2 / 2, 1)),
        ((1, 2, 4, 4), {"kernel_shape": [2, 2], "strides": [2, 2]}, (0.25, 0.5, 1)),
    ],
)
def test_average_pool(shape: tuple[int, ...], attrs: dict[str, object], wanted: tuple[float, ...]) -> None:
    one = One("AveragePool", [Moving(shape)], attrs)
    if "count_include_pad" not in attrs:
        near(one.slopes(), wanted)
    within(one)


@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [2, 2], "dilations": [2, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1, "pads": [0, 0, 1, 1]},
    ],
)
def test_average_pool_against_its_matrix(attrs: dict[str, object]) -> None:
    one = One("AveragePool", [x(1, 1, 6, 5)], attrs)
    within(one)
    operator = one.rule.linear(one.site, 0)
    assert operator is not None
    point = np.random.default_rng(0).normal(size=(1, 1, 6, 5))
    np.testing.assert_allclose(operator.apply(point), one.run({"x0": point})[0], atol=1e-12)


def test_lp_pool() -> None:
    near(One("LpPool", [x(1, 1, 6)], {"kernel_shape": [3]}).slopes(), (3, R3, R3))
    near(One("LpPool", [x(1, 1, 6)], {"kernel_shape": [3], "p": 1}).slopes(), (3, 3, 3))


NONE = np.array([], dtype=np.float32)


def resized(shape: tuple[int, ...], scales: list[float], **attrs: object) -> One:
    return One("Resize", [Moving(shape), NONE, np.array(scales, dtype=np.float32)], attrs, opset=19)


def test_resize_nearest() -> None:
    near(resized((1, 1, 2, 2), [1, 1, 2, 2]).slopes(), times(4))
    near(resized((1, 1, 4), [1, 1, 0.5], coordinate_transformation_mode="asymmetric", nearest_mode="floor").slopes(), times(1))
    three = resized((1, 1, 2), [1, 1, 3.0]).slope(0, "l1")
    assert three >= 3
    old = One("Upsample", [x(1, 1, 2, 3), np.array([1, 1, 2, 3], dtype=np.float32)], {}, opset=9, shapes=((1, 1, 4, 9),))
    assert old.slope(0, "l1") >= 6


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("transformation", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"])
@pytest.mark.parametrize("scale", [2.0, 0.5, 1.5])
def test_resize_against_its_matrix(mode: str, transformation: str, scale: float) -> None:
    one = resized((1, 1, 6), [1, 1, scale], mode=mode, coordinate_transformation_mode=transformation)
    matrix = one.jacobian("x0")
    operator = one.rule.linear(one.site, 0)
    assert operator is not None
    own = np.stack([operator.apply(row.reshape(1, 1, 6)).ravel() for row in np.eye(6)], axis=1)
    np.testing.assert_allclose(own, matrix, atol=1e-6)  # the reference computes coordinates in float32
    for norm in NORMS:
        assert norm_of(own, norm) <= one.slope(0, norm) <= norm_of(own, norm) * (1 + 1e-6)


def test_cubic_overshoots() -> None:
    """Half way between pixels the weights are -0.09375, 0.59375 twice: sum of sizes 1.375."""
    one = resized((1, 1, 9), [1, 1, 2.0], mode="cubic", coordinate_transformation_mode="asymmetric")
    near((one.slope(0, "linf"),), (1.375,))
    two = resized((1, 1, 9, 9), [1, 1, 2.0, 2.0], mode="cubic", coordinate_transformation_mode="asymmetric")
    near((two.slope(0, "linf"),), (1.375**2,))


def test_resize_refusals() -> None:
    for attrs in ({"mode": "lanczos"}, {"coordinate_transformation_mode": "tf_crop_and_resize"}):
        one = One("Resize", [x(1, 1, 4), NONE, np.array([1, 1, 2.0], np.float32)], attrs, opset=19, shapes=((1, 1, 8),))
        assert isinstance(one.gain(), Unknown)


KERNEL = np.random.default_rng(1).integers(-3, 4, (4, 2, 3)).astype(np.float64)
KERNEL2 = np.random.default_rng(2).integers(-3, 4, (2, 2, 2, 3)).astype(np.float64)


@pytest.mark.parametrize(
    ("shape", "weight", "attrs"),
    [
        ((1, 2, 7), KERNEL, {}),
        ((2, 2, 7), KERNEL, {"strides": [2], "pads": [1, 0]}),
        ((1, 2, 7), KERNEL, {"dilations": [2], "pads": [2, 2]}),
        ((1, 4, 7), KERNEL, {"group": 2}),
        ((1, 2, 7), KERNEL, {"strides": [2], "auto_pad": "SAME_UPPER"}),
        ((1, 2, 6), KERNEL, {"strides": [2], "auto_pad": "SAME_LOWER"}),
        ((1, 2, 5, 4), KERNEL2, {"strides": [2, 1], "pads": [0, 1, 1, 1]}),
        ((1, 4, 5, 4), KERNEL2, {"group": 2, "dilations": [1, 1]}),
    ],
)
def test_conv_against_its_matrix(shape: tuple[int, ...], weight: np.ndarray, attrs: dict[str, object]) -> None:
    bias = np.arange(weight.shape[0], dtype=np.float64)
    one = One("Conv", [Moving(shape, name="x0"), weight, bias], attrs)
    within(one, excess=1e-5)
    box = One("Conv", [Moving(shape, -1, 2, name="x0"), weight, bias], attrs)
    found = box.rule.range(box.site, box.ranges)[0]
    lo, hi = found.full()
    matrix = one.jacobian("x0")
    offset = one.run({"x0": np.zeros(shape)})[0].ravel()
    best = np.maximum(matrix, 0).sum(axis=1) * 2 - np.minimum(matrix, 0).sum(axis=1) + offset
    worst = np.minimum(matrix, 0).sum(axis=1) * 2 - np.maximum(matrix, 0).sum(axis=1) + offset
    assert np.all(hi.ravel() >= best) and np.all(lo.ravel() <= worst)
    np.testing.assert_allclose(hi.ravel(), best, atol=1e-9)
    np.testing.assert_allclose(lo.ravel(), worst, atol=1e-9)


def test_reshaped_kernel_is_not_the_norm() -> None:
    one = One("Conv", [x(1, 1, 60), np.ones((1, 1, 3))], {"pads": [1, 1]})
    assert one.slope() >= 2.99


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2]},
        {"strides": [2], "pads": [1, 1], "output_padding": [1]},
        {"dilations": [2], "pads": [1, 0]},
        {"group": 2, "strides": [3]},
        {"strides": [2], "output_shape": [8]},
        {"strides": [2], "output_shape": [8], "auto_pad": "SAME_UPPER"},
        {"strides": [2], "auto_pad": "SAME_UPPER"},
        {"strides": [2], "auto_pad": "SAME_LOWER"},
    ],
)
def test_conv_transpose_against_its_matrix(attrs: dict[str, object]) -> None:
    """Small integers: float32 is exact, so onnxruntime can serve (the reference evaluator has no groups here)."""
    weight = np.random.default_rng(3).integers(-3, 4, (4, 2, 3)).astype(np.float64)
    one = One("ConvTranspose", [x(1, 4, 4), weight], attrs, float32=True)
    within(one, excess=1e-5)


def test_bias_from_the_source() -> None:
    near(One("Conv", [np.ones((2, 1, 5)), np.ones((3, 1, 2)), x(3)], {}).slopes(2), (8, math.sqrt(8), 1))


def test_kernel_from_the_source() -> None:
    one = One("Conv", [Moving((1, 1, 4), -1, 2), Moving((1, 1, 3), -1, 1)])
    assert float(one.slope(0, "linf")) >= 3 and float(one.slope(1, "linf")) >= 6
    assert isinstance(One("Conv", [x(1, 1, 4), x(1, 1, 3)]).gain(0), Unbounded)


W = np.array([[1.0, 0.0], [1.0, 0.0]])


def test_matmul() -> None:
    near(One("MatMul", [x(1, 2), W]).slopes(0)[::2], (1, 2))
    near(One("MatMul", [W, x(2, 1)]).slopes(1)[::2], (2, 1))
    weight = np.random.default_rng(0).integers(-4, 5, (3, 5)).astype(np.float64)
    within(One("MatMul", [x(2, 4, 3), weight]))
    within(One("MatMul", [weight, x(2, 5, 2)]), 1)
    within(One("MatMul", [x(3), weight]))
    batched = np.random.default_rng(0).integers(-4, 5, (2, 3, 5)).astype(np.float64)
    within(One("MatMul", [x(2, 4, 3), batched]))
    within(One("MatMul", [x(4, 3), batched]))
    bad = weight.copy()
    bad[0, :3] = np.nan
    found = One("MatMul", [x(1, 3), bad]).gain()
    assert isinstance(found, Unknown) and "3 non-finite" in found.reason


def test_matmul_of_two_sources() -> None:
    one = One("MatMul", [Moving((2, 3), -1, 1), Moving((3, 4), -1, 1)])
    near(one.slopes(0), (4, math.sqrt(12), 3))
    near(one.slopes(1), (2, math.sqrt(6), 3))
    shared = One("MatMul", [Moving((2, 3), -1, 1), Moving((5, 3, 4), -1, 1)])
    near(shared.slopes(0), (20, math.sqrt(60), 3))
    assert isinstance(One("MatMul", [x(2, 3), x(3, 4)]).gain(0), Unbounded)


def test_gemm() -> None:
    weight = np.random.default_rng(0).integers(-4, 5, (5, 3)).astype(np.float64)
    c = np.array([1.0, -2.0, 3.0, 0.5, 7.0])
    for alpha in (1.0, 0.5, -3.0):
        within(One("Gemm", [x(2, 3), weight.astype(np.float32).astype(np.float64), c], {"transB": 1, "alpha": alpha}))
        within(One("Gemm", [x(3, 2), weight], {"transA": 1, "transB": 1, "alpha": alpha}))
        within(One("Gemm", [weight, x(3, 2)], {"alpha": alpha}), 1)
    near(One("Gemm", [np.ones((3, 2)), np.eye(2), x(2)], {"beta": 0.5}).slopes(2), (1.5, R3 / 2, 0.5))
    near(One("Gemm", [np.ones((3, 2)), np.eye(2), x(2)], {"beta": 0.0}).slopes(2), (0, 0, 0))


def test_rows_through_a_matrix() -> None:
    """|row(xW)| <= row(x) |W|, and each element at most row(x) |W_j|: better than the box alone."""
    one = One("MatMul", [Moving((1, 2, 4), -1, 1), np.eye(4)])
    source = one.ranges[0]
    assert source is not None
    found = one.rule.range(one.site, [source.replace(row=1.0, diameter=0.5), one.ranges[1]])[0]
    assert 1 <= found.row <= 1.00001 and 0.5 <= found.diameter <= 0.50001
    wide = One("MatMul", [Moving((1, 2, 4), -1, 1), np.ones((4, 1))])
    source = wide.ranges[0]
    assert source is not None
    hi = wide.rule.range(wide.site, [source.replace(row=1.0), wide.ranges[1]])[0].hi
    assert 2 <= np.max(hi) <= 2.00001


def bn(shape: tuple[int, ...], g: list[float], v: list[float], **attrs: object) -> One:
    c = len(g)
    params = [np.array(g), np.arange(c) * 1.0, np.arange(c) - 1.0, np.array(v)]
    return One("BatchNormalization", [Moving(shape, name="x0"), *params], attrs, opset=15)


def test_batch_normalization() -> None:
    near(bn((1, 2, 3), [1.0, -3.0], [1.0, 2.25], epsilon=0.0).slopes(), (2, 2, 2))
    one = bn((2, 3, 2), [1.0, -3.0, 0.1], [1.0, 1e-10, 0.0])
    within(one, excess=1e-12)
    assert one.slope() >= 3 / math.sqrt(1e-10 + 1e-5) * (1 - 1e-6)
    assert isinstance(bn((1, 2, 3), [1.0, 1.0], [-1.0, 1.0]).gain(), Unknown)
    # Training: the statistics are those of the batch, and the stored variance does not matter.
    assert bn((1, 2, 3), [1.0, 1.0], [-1.0, 1.0], training_mode=1).slope() >= 1 / math.sqrt(1e-5) * (1 - 1e-6)
    old = One("BatchNormalization", [x(1, 2, 3), *[np.ones(2)] * 4], {}, opset=6, shapes=((1, 2, 3),))
    assert old.slope() >= 1 / math.sqrt(1e-5) * (1 - 1e-6)
    tested = One("BatchNormalization", [x(1, 2, 3), *[np.ones(2)] * 4], {"is_test": 1, "epsilon": 0.0}, opset=6, shapes=((1, 2, 3),))
    near(tested.slopes(), (1, 1, 1))


def test_local_response_normalization() -> None:
    one = One("LRN", [x(1, 5, 1, 1)], {"size": 3})
    assert 1 <= one.slope() <= 1.643
