"""Quantised operators: pairs of integers and reals never move farther than slope and step allow; the step is attained."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lipaudit.operators.base import Finite, Unbounded, Unknown
from lipaudit.operators.grid import along_axis, grid_of
from lipaudit.operators.outputs import PerOutput
from tests.operators.structured import NORMS, OneNode, attained, box, holds, inside, jacobian, norm_of, points, size_of


def quantize(x: Any, s: Any, z: Any, lo: int = 0, hi: int = 255) -> Any:
    return np.clip(np.rint(x / s) + z, lo, hi)


def u8(value: Any) -> Any:
    return np.asarray(value, dtype=np.uint8)


def f32(value: Any) -> Any:
    return np.asarray(value, dtype=np.float32)


def integers(shape: tuple[int, ...], lo: float = 0, hi: float = 255) -> Any:
    return box(shape, lo, hi, integral=True)


def compare(one: OneNode, f: Callable[[Any], Any], xs: list[Any], i: int = 0) -> None:
    """All neighbours in a list of points."""
    claimed = one.range()[0]
    for x in xs:
        inside(f(x), claimed)
    for norm in NORMS:
        gain = one.gain(i, norm)
        assert isinstance(gain, Finite), gain
        for x, y in pairwise(xs):
            step = size_of(x - y, norm)
            holds(float(gain.slope) * step * (1 + 1e-12) + float(gain.offset), size_of(f(x) - f(y), norm) * (1 - 1e-12))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int4", "uint4", "int16"])
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-1.0, 2.0)])
def test_quantize_per_axis(dtype: str, bounds: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    grid = grid_of(dtype)
    assert grid is not None
    scale, zero = f32([0.1, 0.02, 0.7]), np.asarray([3, 0, 1], dtype=np.int8)
    one = OneNode("QuantizeLinear", [box((2, 3), *bounds), scale, zero], [(2, 3)], {"axis": 1}, version=21, dtype=dtype)
    wide = scale.astype(np.float64)
    compare(one, lambda x: quantize(x, wide, zero, int(grid.lo), int(grid.hi)), points(one.ranges[0], rng, 40))


def test_the_step_of_quantisation_is_a_whole_one() -> None:
    one = OneNode("QuantizeLinear", [box((5,)), f32(0.5), u8(7)], [(5,)], version=13, dtype="uint8")
    low, high = np.full(5, 0.25 - 1e-12), np.full(5, 0.25 + 1e-12)
    for norm in NORMS:
        gain = one.gain(0, norm)
        assert isinstance(gain, Finite)
        attained(float(gain.offset), size_of(quantize(high, 0.5, 7) - quantize(low, 0.5, 7), norm) * (1 - 1e-9))
        far = size_of(quantize(low + 50, 0.5, 7) - quantize(low, 0.5, 7), norm) / size_of(np.full(5, 50.0), norm)
        attained(float(gain.slope), far * (1 - 1e-12))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_small_floats_have_the_gap_below_their_largest_number(name: str) -> None:
    grid = grid_of(name)
    assert grid is not None
    every = np.arange(256, dtype=np.uint8)
    kind = getattr(ml_dtypes, name)
    values = every[:16].view(kind) if name == "float4_e2m1fn" else every.view(kind)
    finite = np.unique(values.astype(np.float64)[np.isfinite(values.astype(np.float64))])
    assert finite[-1] == grid.hi and finite[0] == grid.lo
    assert np.max(np.diff(finite)) == grid.gap
    one = OneNode("QuantizeLinear", [box((2,)), f32(2.0), None], [(2,)], {"saturate": 0}, version=19, dtype="float8_e4m3fn")
    assert isinstance(one.gain(0), Unknown)


def test_dequantize_per_axis_and_block() -> None:
    rng = np.random.default_rng(2)
    scale, zero = f32([0.5, 2.0]), u8([3, 250])
    one = OneNode("DequantizeLinear", [integers((2, 3)), scale, zero], [(2, 3)], {"axis": 0}, version=13)
    f = lambda q: (q - zero.astype(float)[:, None]) * scale.astype(float)[:, None]  # noqa: E731
    compare(one, f, [np.rint(x) for x in points(one.ranges[0], rng, 12)])
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(jacobian(lambda q: (q - 1.0) * scale.astype(float)[:, None], np.zeros((2, 3))), norm))
    blocks = f32([[0.5, 1.0], [2.0, 4.0]])
    one = OneNode("DequantizeLinear", [integers((2, 3)), blocks, None], [(2, 3)], {"axis": 1, "block_size": 2}, version=21)
    wide = along_axis(blocks.astype(np.float64), (2, 3), 1, 2)
    assert wide is not None and wide.tolist() == [[0.5, 0.5, 1.0], [2.0, 2.0, 4.0]]
    compare(one, lambda q: q * wide, [np.rint(x) for x in points(one.ranges[0], rng, 12)])


def test_dequantize_with_a_moving_scale() -> None:
    one = OneNode("DequantizeLinear", [integers((4,)), box((), 0.0, 2.0), integers((), 0, 255)], [(4,)], version=13)
    q, z = np.array([0.0, 0, 0, 0]), 255.0
    for norm in NORMS:
        attained(one.slope(1, norm), norm_of(jacobian(lambda s: (q - z) * s, np.asarray(1.0)), norm))
        attained(one.slope(2, norm), norm_of(jacobian(lambda v: (q - v) * 2.0, np.asarray(1.0)), norm))
    free = OneNode("DequantizeLinear", [integers((4,)), box(())], [(4,)], version=13)
    assert isinstance(free.gain(0), Unbounded)


def test_dynamic_quantisation() -> None:
    one = OneNode("DynamicQuantizeLinear", [box((3,), -1, 2)], [(3,), (), ()], version=11)
    rng = np.random.default_rng(3)

    def parts(x: Any) -> list[Any]:
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        s = (high - low) / 255 or 1e-300
        z = np.clip(np.rint(-low / s), 0, 255)
        return [quantize(x, s, z), np.asarray(s), np.asarray(z)]

    xs = points(one.ranges[0], rng, 40)
    for x, y in pairwise(xs):
        for k, claimed in enumerate(one.range()):
            inside(parts(x)[k], claimed)
        for norm in NORMS:
            gain = one.gain(0, norm)
            assert isinstance(gain, PerOutput)
            for own, a, b in zip(gain.outputs, parts(x), parts(y), strict=True):
                holds(float(own.slope) * size_of(x - y, norm) + float(own.offset), size_of(a - b, norm) * (1 - 1e-12))
    for norm, low, high in (("linf", [-1, 0, 1.0], [0, 0, 0.0]), ("l2", [-1, 0, 1.0], [-0.5, 0, 0.5]), ("l1", [0, 0, 0.5], [0, 0, 0.0])):
        gain = one.gain(0, norm)  # type: ignore[arg-type]
        assert isinstance(gain, PerOutput)
        moved = abs(parts(np.array(low))[1] - parts(np.array(high))[1]) / size_of(np.subtract(low, high), norm)  # type: ignore[arg-type]
        attained(float(gain.outputs[1].slope), float(moved) * (1 - 1e-12))
    assert isinstance(OneNode("DynamicQuantizeLinear", [box((3,))], [(3,), (), ()], version=11).gain(0), Unbounded)


@pytest.mark.parametrize("seed", range(4))
def test_integer_products(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lead = (2,) if seed % 2 else ()
    a, b = integers((*lead, 2, 3)), rng.integers(0, 256, (3, 2)).astype(np.uint8)
    z_a, z_b = u8(7), u8([3, 200])
    one = OneNode("MatMulInteger", [a, b, z_a, z_b], [(*lead, 2, 2)], version=10)
    other = b.astype(float) - z_b
    f = lambda x: (x - 7.0) @ other  # noqa: E731
    compare(one, f, [np.rint(x) for x in points(a, rng, 8)])
    right = OneNode("MatMulInteger", [b.T.copy(), integers((3, 2)), None, None], [(2, 2)], version=10)
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(jacobian(f, np.zeros(a.shape)), norm))
        attained(right.slope(1, norm), norm_of(jacobian(lambda x: b.T.astype(float) @ x, np.zeros((3, 2))), norm))
    both = OneNode("MatMulInteger", [a, integers((3, 2), 0, 9)], [(*lead, 2, 2)], version=10)
    for norm in NORMS:
        attained(both.slope(0, norm), norm_of(jacobian(lambda x: x @ np.full((3, 2), 9.0), np.zeros(a.shape)), norm))
        holds(both.slope(1, norm), norm_of(jacobian(lambda x: np.full(a.shape, 255.0) @ x, np.zeros((3, 2))), norm))
    zero = OneNode("MatMulInteger", [a, b, integers(()), None], [(*lead, 2, 2)], version=10)
    for norm in NORMS:
        holds(zero.slope(2, norm), norm_of(jacobian(lambda z: (np.zeros(a.shape) - z) @ b.astype(float), np.asarray(0.0)), norm))
    wide = OneNode("MatMulInteger", [integers((1, 40000)), np.full((40000, 1), 255, dtype=np.uint8)], [(1, 1)], version=10)
    assert isinstance(wide.gain(0), Unknown)


def convolve(x: Any, w: Any, stride: int, pads: tuple[int, int]) -> Any:
    n, _, length = x.shape
    k = w.shape[2]
    padded = np.concatenate((np.zeros((n, x.shape[1], pads[0])), x, np.zeros((n, x.shape[1], pads[1]))), axis=2)
    count = (length + sum(pads) - k) // stride + 1
    return np.stack([np.tensordot(padded[:, :, t * stride : t * stride + k], w, axes=([1, 2], [1, 2])) for t in range(count)], axis=2)


def test_quantised_convolution() -> None:
    rng = np.random.default_rng(5)
    x, w = integers((1, 2, 6)), rng.integers(-128, 128, (3, 2, 3)).astype(np.int8)
    s_w, z_w = f32([0.5, 0.01, 0.2]), np.asarray([0, 5, -3], dtype=np.int8)
    attrs = {"strides": (2,), "pads": (1, 1)}
    args = [x, f32(0.1), u8(9), w, s_w, z_w, f32(0.3), u8(100), None]
    one = OneNode("QLinearConv", args, [(1, 3, 3)], attrs, version=10, dtype="uint8")
    real_w = (w.astype(float) - z_w[:, None, None]) * s_w.astype(float)[:, None, None]
    s_x, s_y = float(f32(0.1)), float(f32(0.3))
    linear = lambda v: convolve((v - 9.0) * s_x, real_w, 2, (1, 1)) / s_y  # noqa: E731
    compare(one, lambda v: np.clip(np.rint(linear(v)) + 100, 0, 255), [np.rint(p) for p in points(x, rng, 20)])
    columns = np.stack([(linear(9.0 + e.reshape(1, 2, 6)) - linear(np.full((1, 2, 6), 9.0))).ravel() for e in np.eye(12)], axis=1)
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(columns, norm), 0.99)
    bare = OneNode("ConvInteger", [x, w, u8(9), None], [(1, 3, 3)], attrs, version=10, dtype="int32")
    compare(bare, lambda v: convolve(v - 9.0, w.astype(float), 2, (1, 1)), [np.rint(p) for p in points(x, rng, 10)])
    same = OneNode("ConvInteger", [x, w], [(1, 3, 6)], {"auto_pad": "SAME_UPPER"}, version=10, dtype="int32")
    compare(same, lambda v: convolve(v, w.astype(float), 1, (1, 1)), [np.rint(p) for p in points(x, rng, 10)])


def test_quantised_products() -> None:
    rng = np.random.default_rng(6)
    a, b = integers((2, 3)), rng.integers(0, 256, (3, 2)).astype(np.uint8)
    s_b, z_b = f32([0.1, 0.5]), u8([1, 2])
    s_a, s_y = float(f32(0.2)), float(f32(0.4))
    one = OneNode("QLinearMatMul", [a, f32(0.2), u8(5), b, s_b, z_b, f32(0.4), u8(10)], [(2, 2)], version=10, dtype="uint8")
    real = (b.astype(float) - z_b) * s_b.astype(float)
    compare(one, lambda v: np.clip(np.rint((v - 5) * s_a @ real / s_y) + 10, 0, 255), [np.rint(p) for p in points(a, rng, 30)])
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(jacobian(lambda v: v * s_a @ real / s_y, np.zeros((2, 3))), norm))
    right = OneNode(
        "QLinearMatMul",
        [b.T.copy(), s_b, z_b, a.replace(shape=(3, 2)), f32(0.2), u8(5), f32(0.4), u8(10)],
        [(2, 2)],
        version=10,
        dtype="uint8",
    )
    for norm in NORMS:
        attained(right.slope(3, norm), norm_of(jacobian(lambda v: real.T @ v * s_a / s_y, np.zeros((3, 2))), norm))
    gemm = OneNode(
        "QGemm",
        [a, f32(0.2), u8(5), b.T.copy(), s_b, z_b, None, f32(0.4), u8(10)],
        [(2, 2)],
        {"transB": 1, "alpha": 2.0},
        domain="com.microsoft",
        dtype="uint8",
    )
    compare(gemm, lambda v: np.clip(np.rint(2 * (v - 5) * s_a @ real / s_y) + 10, 0, 255), [np.rint(p) for p in points(a, rng, 30)])


def test_products_with_real_inputs() -> None:
    rng = np.random.default_rng(7)
    b, s_b, z_b = rng.integers(0, 256, (3, 2)).astype(np.uint8), f32([0.01, 0.02]), u8([100, 140])
    real = (b.astype(float) - z_b) * s_b.astype(float)
    one = OneNode("DynamicQuantizeMatMul", [box((4, 3), -1, 2), b, s_b, z_b], [(4, 2)], domain="com.microsoft")

    def f(x: Any) -> Any:
        s = (max(x.max(), 0) - min(x.min(), 0)) / 255
        z = np.rint(-min(x.min(), 0) / s)
        return (quantize(x, s, z) - z) * s @ real

    compare(one, f, points(one.ranges[0], rng, 30))
    low, high = np.full((4, 3), 0.0), np.full((4, 3), 0.0)
    for x, edge in ((low, -1e-9), (high, 1e-9)):
        x[0, 0], x[0, 1] = -1.0, 2.0
        x.reshape(-1)[2:] = 3 / 255 * 0.5 + edge
    assert size_of(f(low) - f(high), "linf") > 0.5 * float(one.gain(0, "linf").offset) * np.abs(real).sum(axis=0).max() / float(
        one.slope(0, "linf")
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(("bits", "zeros"), [(4, None), (4, "packed"), (8, None), (8, "packed"), (4, "real")])
def test_weight_only_products(bits: int, zeros: str | None) -> None:
    rng = np.random.default_rng(8)
    k, n, block = 20, 3, 16
    blocks = 2
    codes = rng.integers(0, 2**bits, (n, blocks, block))
    steps = f32(rng.uniform(0.1, 1.0, n * blocks))
    z = rng.integers(0, 2**bits, (n, blocks)) if zeros else np.full((n, blocks), 2 ** (bits - 1))
    pack = lambda q: (q[..., ::2] + 16 * q[..., 1::2] if bits == 4 else q).astype(np.uint8)  # noqa: E731
    stored = None if zeros is None else f32(z).ravel() if zeros == "real" else pack(z).ravel()
    weight = ((codes - z[..., None]) * steps.astype(float).reshape(n, blocks, 1)).reshape(n, -1)[:, :k].T
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block}
    one = OneNode("MatMulNBits", [box((2, k), -1, 1), pack(codes), steps, stored], [(2, n)], attrs, domain="com.microsoft")
    compare(one, lambda x: x @ weight, points(one.ranges[0], rng, 8))
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(jacobian(lambda x: x @ weight, np.zeros((2, k))), norm))


Z = [f32(0.5), u8(3)]
OUT = [f32(0.25), u8(8)]


def real(q: Any) -> Any:
    return (q - 3.0) * 0.5


def requantized(y: Any) -> Any:
    return np.clip(np.rint(y / 0.25) + 8, 0, 255)


@pytest.mark.parametrize(
    ("op", "args", "shape", "f", "attrs", "i"),
    [
        ("QLinearAdd", [integers((2, 3)), *Z, u8([[1, 2, 3]]), *Z, *OUT], (2, 3), lambda q: real(q) + real(np.array([[1.0, 2, 3]])), {}, 0),
        (
            "QLinearAdd",
            [np.ones((2, 3), dtype=np.uint8), *Z, integers((3,)), *Z, *OUT],
            (2, 3),
            lambda q: real(np.ones((2, 3))) + real(q),
            {},
            3,
        ),
        (
            "QLinearMul",
            [integers((2, 3)), *Z, u8([[10, 2, 3]]), *Z, *OUT],
            (2, 3),
            lambda q: real(q) * real(np.array([[10.0, 2, 3]])),
            {},
            0,
        ),
        (
            "QLinearConcat",
            [*OUT, integers((2, 3)), *Z, u8([[1, 2, 3]]), *Z],
            (3, 3),
            lambda q: np.concatenate((real(q), real(np.array([[1.0, 2, 3]])))),
            {"axis": 0},
            2,
        ),
        (
            "QLinearWhere",
            [np.eye(3) > 0, integers((3, 3)), *Z, u8(3), *Z, *OUT],
            (3, 3),
            lambda q: np.where(np.eye(3) > 0, real(q), 0.0),
            {},
            1,
        ),
        ("QLinearSigmoid", [integers((4,)), *Z, *OUT], (4,), lambda q: 1 / (1 + np.exp(-real(q))), {}, 0),
        (
            "QLinearLeakyRelu",
            [integers((4,)), *Z, *OUT],
            (4,),
            lambda q: np.where(real(q) > 0, real(q), -1.5 * real(q)),
            {"alpha": -1.5},
            0,
        ),
        (
            "QLinearSoftmax",
            [integers((2, 3)), *Z, *OUT],
            (2, 3),
            lambda q: np.exp(real(q)) / np.exp(real(q)).sum(axis=-1, keepdims=True),
            {},
            0,
        ),
        (
            "QLinearReduceMean",
            [integers((2, 3)), *Z, *OUT],
            (2, 1),
            lambda q: real(q).mean(axis=1, keepdims=True),
            {"axes": (1,), "keepdims": 1},
            0,
        ),
        ("QLinearGlobalAveragePool", [integers((1, 2, 3)), *Z, *OUT], (1, 2, 1), lambda q: real(q).mean(axis=2, keepdims=True), {}, 0),
    ],
)
def test_elementwise_and_means(op: str, args: Any, shape: Any, f: Any, attrs: Any, i: int) -> None:
    rng = np.random.default_rng(9)
    one = OneNode(op, args, [shape], attrs, domain="com.microsoft", dtype="uint8")
    compare(one, lambda q: requantized(f(q)), [np.rint(p) for p in points(one.ranges[i], rng, 25)], i)  # type: ignore[arg-type]


LINEAR = {
    "QLinearAdd": ([integers((2, 3)), *Z, u8(4), *Z, *OUT], (2, 3), lambda q: q * 2),
    "QLinearMul": ([integers((3,)), *Z, integers((3,)), *Z, *OUT], (3,), lambda q: q * 2 * 0.5 * 252),
    "QLinearLeakyRelu": ([integers((3,)), *Z, *OUT], (3,), lambda q: q * 2),
    "QLinearGlobalAveragePool": ([integers((1, 2, 3)), *Z, *OUT], (1, 2, 1), lambda q: 2 * q.mean(axis=2, keepdims=True)),
    "QLinearReduceMean": ([integers((2, 3)), *Z, *OUT], (2, 1), lambda q: 2 * q.mean(axis=1, keepdims=True)),
    "QLinearSigmoid": ([integers((3,)), *Z, *OUT], (3,), lambda q: q * 2 / 4),
    "QLinearSoftmax": ([integers((1, 2)), *Z, *OUT], (1, 2), lambda q: np.stack((q[:, 0] - q[:, 1], q[:, 1] - q[:, 0]), axis=1) / 2),
}


@pytest.mark.parametrize("op", LINEAR)
def test_constants_of_the_real_rules(op: str) -> None:
    args, shape, f = LINEAR[op]
    one = OneNode(op, args, [shape], {}, domain="com.microsoft", dtype="uint8")
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(jacobian(f, np.zeros(args[0].shape)), norm))


@pytest.mark.parametrize(("n", "kernel", "stride", "pads"), [(6, 2, 2, (0, 0)), (6, 3, 1, (1, 1)), (5, 2, 1, (0, 1)), (4, 3, 2, (1, 1))])
def test_average_pooling(n: int, kernel: int, stride: int, pads: tuple[int, int]) -> None:
    rng = np.random.default_rng(10)
    count = (n + sum(pads) - kernel) // stride + 1

    def f(q: Any) -> Any:
        windows = [[i for i in range(t * stride - pads[0], t * stride - pads[0] + kernel) if 0 <= i < n] for t in range(count)]
        return np.stack([real(q)[..., window].mean(axis=-1) for window in windows], axis=-1)

    attrs = {"kernel_shape": (kernel,), "strides": (stride,), "pads": pads}
    one = OneNode("QLinearAveragePool", [integers((1, 1, n)), *Z, *OUT], [(1, 1, count)], attrs, domain="com.microsoft", dtype="uint8")
    compare(one, lambda q: requantized(f(q)), [np.rint(p) for p in points(one.ranges[0], rng, 20)])
    matrix = jacobian(lambda q: f(q) / 0.25, np.zeros((1, 1, n)))
    for norm in ("l1", "linf"):
        attained(one.slope(0, norm), norm_of(matrix, norm))
    holds(one.slope(0, "l2"), norm_of(matrix, "l2"))


def test_refusals_have_reasons() -> None:
    bad = OneNode("QuantizeLinear", [box((2,)), f32(0.0), u8(0)], [(2,)], version=13, dtype="uint8")
    assert isinstance(bad.gain(0), Unknown)
    moving = OneNode("QuantizeLinear", [box((2,)), box(()), u8(0)], [(2,)], version=13, dtype="uint8")
    assert isinstance(moving.gain(0), Unknown) and isinstance(moving.gain(1), Unknown)
    for op in ("If", "Loop", "Scan", "RandomNormalLike", "Multinomial"):
        found = OneNode(op, [box((2,))], [(2,)], version=25).gain(0)
        assert isinstance(found, Unknown) and found.reason
