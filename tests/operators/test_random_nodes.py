"""Random one-node graphs against sampled pairs, exact Jacobians and sampled outputs: nothing certified is ever exceeded.

Each strategy draws a node of a family with random shapes, attributes, constants and ranges. Checked for all three norms: every
input alone, all inputs together through the partition calculus, one input cut into parts, and the range with its row norms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipaudit.operators.base import Finite
from tests.operators.onenode import NORMS, Moving, One, _compare, check_pairs, check_range, norm_of

seeds = st.integers(0, 2**32 - 1)


class Draw:
    """Short names for what the builders draw."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def int(self, lo: int, hi: int) -> int:
        return int(self.rng.integers(lo, hi + 1))

    def pick(self, *choices: Any) -> Any:
        return choices[self.int(0, len(choices) - 1)]

    def shape(self, lo: int = 1, hi: int = 3, most: int = 4) -> tuple[int, ...]:
        return tuple(self.int(1, most) for _ in range(self.int(lo, hi)))

    def moving(self, shape: tuple[int, ...], *, away: bool = False, name: str = "") -> Moving:
        if away:
            lo = self.pick(0.5, 1.0)
            return Moving(shape, lo, lo + self.pick(0.5, 3.0), name)
        if len(shape) >= 2 and self.rng.random() < 0.25:
            return Moving(shape, name=name, row=self.pick(0.5, 2.0), centred=bool(self.int(0, 1)))
        lo, hi = self.pick((-1.0, 1.0), (-2.0, 0.5), (0.0, 2.0), (-math.inf, math.inf), (0.25, 3.0), (-3.0, -1.0))
        return Moving(shape, lo, hi, name)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(self.rng.integers(-4, 5, shape) * self.pick(0.5, 1.0))

    def either(self, shape: tuple[int, ...]) -> Moving | np.ndarray:
        return self.moving(shape) if self.rng.random() < 0.6 else self.array(shape)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        kept = shape[self.int(0, len(shape)) :]
        return tuple(1 if self.rng.random() < 0.3 else n for n in kept)

    def indices(self, n: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(self.rng.integers(-n, n, shape), dtype=np.int64)


def i64(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def sums(d: Draw) -> One:
    op = d.pick("Add", "Sub", "Sum", "Mean", "Max", "Min")
    shape = d.shape()
    count = 2 if op in ("Add", "Sub") else d.int(1, 3)
    args: list[Any] = [d.moving(shape), *(d.either(d.broadcast(shape)) for _ in range(count - 1))]
    if d.rng.random() < 0.3:
        source = d.moving(shape, name="x")
        args = [source] * count
    # The reference evaluator's Mean adds in place, into its first operand.
    order = range(count) if op == "Mean" else d.rng.permutation(count)
    return One(op, [args[k] for k in order])


def products(d: Draw) -> One:
    shape = d.shape()
    a, b = shape, d.broadcast(shape)
    if d.rng.random() < 0.2:
        source = d.moving(shape, name="x")
        return One("Mul", [source, source])
    if d.rng.random() < 0.5:
        args: list[Any] = [d.moving(a), d.either(b)]
        if d.rng.random() < 0.4:
            args.reverse()
        return One("Mul", args)
    if d.rng.random() < 0.5:
        a, b = b, a
    divisor = d.moving(b, away=True) if d.rng.random() < 0.6 else np.asarray(np.where(d.rng.random(b) < 0.5, 0.5, -4.0))
    return One("Div", [d.moving(a), divisor])


def masks(d: Draw) -> One:
    shape = d.shape()
    mask = np.asarray(d.rng.random(d.broadcast(shape)) < 0.5)
    if d.rng.random() < 0.2:
        source = d.moving(shape, name="x")
        return One("Where", [mask, source, source])
    return One("Where", [mask, d.moving(shape), d.either(d.broadcast(shape))])


def movement(d: Draw) -> One:
    op = d.pick("Transpose", "Reshape", "Expand", "Tile", "Slice", "Pad", "Gather", "GatherElements", "Trilu", "Flatten", "Concat")
    shape = d.shape(1, 3)
    x = d.moving(shape)
    rank = len(shape)
    axis = d.int(0, rank - 1)
    if op == "Transpose":
        return One(op, [x], {"perm": [int(k) for k in d.rng.permutation(rank)]})
    if op == "Reshape":
        size = math.prod(shape)
        new = d.pick((size,), (1, size), (size, 1), shape[::-1], (*shape, 1), (shape[0], size // shape[0]), (size // shape[-1], shape[-1]))
        return One(op, [x, i64(new)])
    if op == "Expand":
        source = d.moving(d.broadcast(shape))
        return One(op, [source, i64(shape)])
    if op == "Tile":
        return One(op, [x, i64([d.int(1, 3) for _ in shape])])
    if op == "Slice":
        ends = [(d.int(-n - 1, n), d.int(-n - 1, n + 2), d.pick(1, 1, 2, -1, -2)) for n in shape]
        starts, stops, steps = (i64(list(part)) for part in zip(*ends, strict=True))
        return One(op, [x, starts, stops, i64(range(rank)), steps])
    if op == "Pad":
        mode = d.pick("constant", "edge", "reflect", "wrap")
        pads = [d.int(0, max(0, n - 1)) for n in (*shape, *shape)]
        return One(op, [x, i64(pads)], {"mode": mode})
    if op == "Gather":
        n = shape[axis]
        return One(op, [x, d.indices(n, d.pick((), (2,), (3,), (2, 2)))], {"axis": axis})
    if op == "GatherElements":
        index = tuple(d.int(1, 4) if k == axis else n for k, n in enumerate(shape))
        return One(op, [x, d.indices(shape[axis], index)], {"axis": axis})
    if op == "Trilu":
        return One(op, [d.moving((*shape, d.int(1, 3))), np.array(d.int(-2, 2), dtype=np.int64)], {"upper": d.int(0, 1)})
    if op == "Concat":
        parts = [tuple(d.int(1, 3) if k == axis else n for k, n in enumerate(shape)) for _ in range(d.int(1, 3))]
        return One(op, [d.moving(parts[0]), *(d.either(part) for part in parts[1:])], {"axis": axis})
    return One(op, [x], {"axis": axis})


def scatter(d: Draw) -> One:
    shape = d.shape(1, 2)
    axis = d.int(0, len(shape) - 1)
    index = tuple(d.int(1, n if k != axis else 3) for k, n in enumerate(shape))
    reduction = d.pick("none", "add", "max", "min")
    indices = d.indices(shape[axis], index)
    if reduction == "none":  # the order in which duplicates are written is not specified
        indices = np.broadcast_to(i64(d.int(0, shape[axis] - 1)), tuple(1 if k == axis else n for k, n in enumerate(index)))
    return One(
        "ScatterElements", [d.moving(shape), np.ascontiguousarray(indices), d.moving(indices.shape)], {"axis": axis, "reduction": reduction}
    )


def reductions(d: Draw) -> One:
    op = d.pick("Sum", "Mean", "Max", "Min", "L1", "L2", "LogSumExp", "SumSquare", "Prod", "LogSum")
    shape = d.shape(1, 3)
    rank = len(shape)
    axes = [int(k) for k in d.rng.choice(rank, size=d.int(1, rank), replace=False)]
    x = d.moving(shape, away=op == "LogSum")
    return One(f"Reduce{op}", [x, i64(axes)], {"keepdims": d.int(0, 1)})


def order(d: Draw) -> One:
    shape = d.shape(1, 3)
    axis = d.int(0, len(shape) - 1)
    x = d.moving(shape)
    if d.rng.random() < 0.5:
        return One("CumSum", [x, np.array(axis, dtype=np.int64)], {"exclusive": d.int(0, 1), "reverse": d.int(0, 1)})
    return One("TopK", [x, i64([d.int(1, shape[axis])])], {"axis": axis, "largest": d.int(0, 1)}, outputs=2)


def pooling(d: Draw) -> One:
    rank = d.int(1, 2)
    image = tuple(d.int(4, 6) for _ in range(rank))
    kernel = [d.int(1, 3) for _ in image]
    op = d.pick("MaxPool", "AveragePool", "LpPool")
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [d.int(1, 3) for _ in image],
        "dilations": [1 if d.rng.random() < 0.6 else 2 for _ in image],
        "pads": [d.int(0, k // 2) for k in (*kernel, *kernel)],
        "ceil_mode": d.int(0, 1),
    }
    if op == "AveragePool":
        attrs["count_include_pad"] = d.int(0, 1)
    if op == "LpPool":
        attrs["p"] = d.int(1, 3)
    shape = (1, d.int(1, 2), *image)
    return One(op, [d.moving(shape)], attrs, opset=19, function=lambda xs: [pooled(xs["x0"], op, attrs)])


def pooled(x: np.ndarray, op: str, attrs: dict[str, Any]) -> np.ndarray:
    """Pooling in float64, written from the operator's definition, window by window (the reference evaluator stumbles over some)."""
    rank = x.ndim - 2
    image = x.shape[2:]
    spans = []
    for k in range(rank):
        n, size, stride, dilation = image[k], attrs["kernel_shape"][k], attrs["strides"][k], attrs["dilations"][k]
        begin, end = attrs["pads"][k], attrs["pads"][k + rank]
        free = n + begin + end - dilation * (size - 1) - 1
        count = (-(-free // stride) if attrs["ceil_mode"] else free // stride) + 1
        if attrs["ceil_mode"] and (count - 1) * stride >= n + begin:
            count -= 1
        starts = [o * stride - begin for o in range(count)]
        taps = [[start + dilation * t for t in range(size)] for start in starts]
        spans.append([([i for i in own if 0 <= i < n], sum(-begin <= i < n + end for i in own)) for own in taps])
    out = np.zeros((*x.shape[:2], *(len(span) for span in spans)))
    for place in np.ndindex(*out.shape[2:]):
        chosen = [span[o] for span, o in zip(spans, place, strict=True)]
        part = x[np.ix_(range(x.shape[0]), range(x.shape[1]), *(inside for inside, _ in chosen))].reshape(*x.shape[:2], -1)
        at = (slice(None), slice(None), *place)
        if op == "MaxPool":
            out[at] = part.max(axis=-1)
        elif op == "LpPool":
            out[at] = (np.abs(part) ** attrs["p"]).sum(axis=-1) ** (1 / attrs["p"])
        else:
            counted = math.prod(padded if attrs["count_include_pad"] else len(inside) for inside, padded in chosen)
            out[at] = part.sum(axis=-1) / counted
    return out


def convolution(d: Draw) -> One:
    rank = d.int(1, 2)
    image = tuple(d.int(3, 5) for _ in range(rank))
    kernel = tuple(d.int(1, 3) for _ in image)
    groups = d.pick(1, 1, 2)
    attrs = {"strides": [d.int(1, 2) for _ in image], "group": groups, "pads": [d.int(0, 1) for _ in range(2 * rank)]}
    shape, weight = (d.int(1, 2), 2 * groups, *image), (2 * groups, 2, *kernel)
    moves = d.rng.random() < 0.3
    return One("Conv", [d.moving(shape), d.moving(weight) if moves else d.array(weight), d.array((2 * groups,))], attrs)


def matrices(d: Draw) -> One:
    n, k, m, b = (d.int(1, 3) for _ in range(4))
    if d.rng.random() < 0.4:
        ta, tb = d.int(0, 1), d.int(0, 1)
        a, w = ((k, n) if ta else (n, k)), ((m, k) if tb else (k, m))
        c = d.pick((m,), (n, 1), (1, m), (n, m), (1,))
        attrs = {"transA": ta, "transB": tb, "alpha": d.pick(1.0, 0.5, -3.0), "beta": d.pick(1.0, 2.0, 0.25)}
        return One("Gemm", [d.moving(a), d.either(w), d.either(c)], attrs)
    left, right = d.pick(
        ((n, k), (k, m)),
        ((b, n, k), (k, m)),
        ((n, k), (b, k, m)),
        ((b, n, k), (b, k, m)),
        ((k,), (k, m)),
        ((n, k), (k,)),
        ((b, 1, n, k), (2, k, m)),
    )
    args: list[Any] = [d.moving(left), d.either(right)]
    if d.rng.random() < 0.3:
        args[0] = d.array(left)
        args[1] = d.moving(right)
    return One("MatMul", args)


def normalization(d: Draw) -> One:
    c = d.int(1, 3)
    shape = (d.int(1, 2), c, *(d.int(1, 3) for _ in range(d.int(0, 2))))
    if d.rng.random() < 0.3 and len(shape) == 4:
        return One(
            "LRN", [d.moving((shape[0], 3, *shape[2:]))], {"size": d.pick(1, 3), "alpha": d.pick(0.1, 10.0), "bias": d.pick(1.0, 2.0)}
        )
    params = [d.array((c,)), d.array((c,)), d.array((c,)), np.abs(d.array((c,)))]
    return One("BatchNormalization", [d.moving(shape), *params], {"epsilon": d.pick(1e-5, 0.125)}, opset=d.pick(15, 21))


def resizing(d: Draw) -> One:
    image = tuple(d.int(2, 5) for _ in range(d.int(1, 2)))
    scales = np.array([1, 1, *(d.pick(0.5, 1.0, 1.5, 2.0, 3.0) for _ in image)], dtype=np.float32)
    mode = d.pick("nearest", "linear", "cubic")
    attrs = {"mode": mode, "coordinate_transformation_mode": d.pick("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")}
    if mode == "nearest":
        attrs["nearest_mode"] = d.pick("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    args = [d.moving((1, 1, *image)), np.array([], dtype=np.float32), scales]
    return One("Resize", args, attrs, opset=19, function=None if mode == "nearest" else lambda xs: [interpolated(xs["x0"], scales, attrs)])


def interpolated(x: np.ndarray, scales: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """Linear and cubic interpolation in float64, written from the operator's definition, one axis after the other."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        scale, count = float(scales[axis]), int(np.floor(n * float(scales[axis])))
        out = []
        for o in range(count):
            at = {
                "half_pixel": (o + 0.5) / scale - 0.5,
                "pytorch_half_pixel": (o + 0.5) / scale - 0.5 if count > 1 else 0.0,
                "asymmetric": o / scale,
                "align_corners": o * (n - 1) / (count - 1) if count > 1 else 0.0,
            }[attrs["coordinate_transformation_mode"]]
            base = int(np.floor(at))
            reach = range(base - 1, base + 3) if attrs["mode"] == "cubic" else range(base, base + 2)
            terms = [weight(abs(at - k), attrs["mode"]) * x.take(min(max(k, 0), n - 1), axis=axis) for k in reach]
            out.append(sum(terms))
        x = np.stack(out, axis=axis)
    return x


def weight(s: float, mode: str, a: float = -0.75) -> float:
    """Kernel of the interpolation at distance s."""
    if mode == "linear":
        return max(0.0, 1 - s)
    if s <= 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


FAMILIES = [sums, products, masks, movement, scatter, reductions, order, pooling, convolution, matrices, normalization, resizing]
# Affine in each single source with the others held at 0 or anywhere: the Jacobian is the whole truth.
LINEAR = {
    "Add", "Sub", "Sum", "Mean", "Transpose", "Reshape", "Expand", "Tile", "Slice", "Gather", "GatherElements", "Trilu", "Flatten",
    "Concat", "ReduceSum", "ReduceMean", "CumSum", "AveragePool", "BatchNormalization",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@settings(max_examples=40)
@given(seed=seeds)
def test_certified_is_never_exceeded(family: Any, seed: int) -> None:
    draw = Draw(seed)
    one = family(draw)
    with np.errstate(all="ignore"):
        found = one.rule.range(one.site, one.ranges)
        check_range(one, found, draw.rng)
        check_pairs(one, draw.rng, 4)
        _check_parts(one, draw)
        _check_jacobian(one)


def _check_parts(one: One, draw: Draw) -> None:
    """One source cut along one of its axes."""
    for name, source in one.sources.items():
        axes = [axis for axis, n in enumerate(source.shape) if n > 1]
        if not axes:
            continue
        axis = axes[draw.int(0, len(axes) - 1)]
        first = draw.int(1, source.shape[axis] - 1)
        cut = (axis, (first, source.shape[axis] - first))
        cuts = {other: cut if other == name else None for other in one.sources}
        for norm in NORMS:
            slope, offset = one.through(cuts, norm)
            xs = {key: arg.sample(draw.rng) for key, arg in one.sources.items()}
            ys = {key: arg.sample(draw.rng) for key, arg in one.sources.items()}
            _compare(one, xs, ys, list(one.sources), float(slope), float(offset), norm)


def _check_jacobian(one: One) -> None:
    """Exact for linear operators, and their lazy form is that matrix."""
    if one.op not in LINEAR:
        if one.op in ("Mul", "Div", "MatMul", "Gemm", "Conv") and len(one.sources) == 1 and len(set(one.names)) == len(one.names):
            if not (one.op == "Div" and isinstance(one.args[1], Moving)):
                _check_matrix(one)
        return
    _check_matrix(one)


def _check_matrix(one: One) -> None:
    for name in one.sources:
        matrix = one.jacobian(name)
        for norm in NORMS:
            gains = [one.gain(i, norm) for i, own in enumerate(one.names) if own == name]
            assert all(isinstance(gain, Finite) for gain in gains), gains
            slope = sum(float(gain.slope) for gain in gains if isinstance(gain, Finite))
            assert slope >= norm_of(matrix, norm), (one.op, norm, slope)
        i = one.names.index(name)
        operator = one.rule.linear(one.site, i)
        if operator is not None and len(one.sources) == 1:
            point = np.linspace(-1.0, 2.0, matrix.shape[1])
            image = operator.apply(point.reshape(one.site.shape(i)))
            assert image.shape == one.site.out_shape()
            np.testing.assert_allclose(image.ravel(), matrix @ point, atol=1e-9)
