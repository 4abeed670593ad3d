"""Attention: certificates against Jacobians of float64 attention, attained examples, masks, heads, caches, contrib operators."""

# ruff: noqa: B023 (the closures are used up inside their own turn of the loop)

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lipaudit.bounds.scalar import Norm, Upper
from lipaudit.operators.attention_core import Heads, Mask, Rows, mask_facts, rows_of
from lipaudit.operators.base import Finite, Unbounded, Unknown
from lipaudit.operators.outputs import PerOutput
from lipaudit.operators.range import Range
from tests.operators.structured import NORMS, OneNode, attained, box, holds, inside, jacobian, norm_of, points, size_of


def softmax(x: Any) -> Any:
    top = np.max(x.real, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        e = np.where(np.isneginf(x.real), 0, np.exp(np.where(np.isneginf(x.real), 0, x - np.where(np.isneginf(top), 0, top))))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total.real == 0, 1, total)


def attention(
    q: Any, k: Any, v: Any, bias: Any = 0.0, *, scale: float = 1.0, cap: float = 0.0, causal: bool = False, offset: int = 0
) -> Any:
    """``[.., n, d]`` attention; rows without a key give 0."""
    scores = scale * q @ np.swapaxes(k, -1, -2)
    if cap:
        scores = cap * np.tanh(scores / cap)
    scores = scores + bias
    if causal:
        allowed = np.tri(q.shape[-2], k.shape[-2], offset, dtype=bool)
        scores = np.where(allowed, scores, -np.inf)
    return softmax(scores) @ v


def at(range_: Range, rng: np.random.Generator, k: int) -> Any:
    return points(range_, rng, k + 1)[k]


def compare(one: OneNode, f: Callable[..., Any], moving: tuple[int, ...], rng: np.random.Generator, count: int = 9) -> None:
    """Every path at sampled points, pairs of points, and the range of the first output."""
    certified = {(i, norm): one.gain(i, norm) for i in moving for norm in NORMS}
    claimed = one.range()[0]
    previous: dict[int, Any] | None = None
    for k in range(count):
        xs = {i: at(range_, rng, k) for i, range_ in enumerate(one.ranges) if range_ is not None}
        y = f(xs)
        inside(y, claimed)
        for i in moving:
            matrix = jacobian(lambda v: f({**xs, i: v}), xs[i])
            for norm in NORMS:
                gain = certified[i, norm]
                if isinstance(gain, Finite):
                    holds(float(gain.slope), norm_of(matrix, norm))
            if previous is not None:
                moved = f({**xs, i: previous[i]})
                for norm in NORMS:
                    gain = certified[i, norm]
                    if isinstance(gain, Finite):
                        step = size_of(xs[i] - previous[i], norm)
                        holds(float(gain.slope) * step, size_of(y - moved, norm) - 1e-12 * (1 + size_of(y, norm)))
        previous = xs


SCALES = [0.05, 1.0, 8.0]


@pytest.mark.parametrize("seed", range(12))
def test_fused_core_on_random_shapes_scales_and_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_q, n_k, d, d_v = (int(rng.integers(1, 5)) for _ in range(4))
    lead = [(), (2,), (1, 2)][seed % 3]
    shift = rng.standard_normal(d) * 3
    size = float(rng.choice(SCALES))
    scale, cap, causal = float(rng.choice([0.3, -1.5, 4.0])), float(rng.choice([0.0, 0.0, 1.5])), bool(rng.random() < 0.4)
    transposed = bool(rng.random() < 0.4)
    k_shape = (*lead, d, n_k) if transposed else (*lead, n_k, d)
    centre = shift[:, None] if transposed else shift
    q, k = box((*lead, n_q, d), -size, size), box(k_shape, centre - size, centre + size)
    v = box((*lead, n_k, d_v), -1 + np.arange(d_v), 1.5 + np.arange(d_v))
    kind = seed % 4
    args: list[Any] = [q, k, v]
    moving: tuple[int, ...] = (0, 1, 2)
    if kind == 1:
        mask = np.where(rng.random((n_q, n_k)) < 0.4, -np.inf, rng.standard_normal((n_q, n_k)))
        args.append(mask)
    elif kind == 2:
        args.append(box((n_q, n_k), -2, 2))
        moving = (0, 1, 2, 3)
    elif kind == 3:
        args.append(box((*lead, 1, n_k) if lead else (1, n_k)))
        moving = (0, 1, 2, 3)
    attrs = {"scale": abs(scale), "k_transposed": int(transposed), "causal": int(causal), "softcap": cap}
    one = OneNode("Attention", args, [(*lead, n_q, d_v)], attrs, domain="lipaudit")

    def f(xs: dict[int, Any]) -> Any:
        key = np.swapaxes(xs[1], -1, -2) if transposed else xs[1]
        bias = args[3] if kind == 1 else xs[3] if kind > 1 else 0.0
        return attention(xs[0], key, xs[2], bias, scale=scale, cap=cap, causal=causal)

    compare(one, f, moving, rng)


def rows(count: int, width: int, *, row: float, diameter: float) -> Rows:
    """Rows of which only the norm and the diameter are known."""
    return rows_of(box((1, count, width), row=row, diameter=diameter))


def heads(q: Rows, k: Rows, v: Rows, *, scale: float = 1.0, cap: float = 0.0, mask: Mask | None = None, **more: Any) -> Heads:
    return Heads(q, k, v, Upper(scale), mask or mask_facts(q.count, k.count), Upper(cap), **more)


def test_query_gain_is_attained_by_two_keys_of_equal_weight() -> None:
    k, v = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[0.0, 3.0], [0.0, -3.0]])
    h = heads(rows(1, 2, row=9.0, diameter=0.0), rows(2, 2, row=9.0, diameter=2.0), rows(2, 2, row=9.0, diameter=6.0), scale=0.5)
    attained(float(h.query_gain("l2")), norm_of(jacobian(lambda q: attention(q, k, v, scale=0.5), np.zeros((1, 2))), "l2"))


@pytest.mark.parametrize("m", [1, 3])
def test_key_gain_is_attained_by_equal_queries(m: int) -> None:
    q, v = np.tile([[2.0, 0.0]], (m, 1)), np.array([[3.0], [-3.0]])
    h = heads(rows(m, 2, row=2.0, diameter=0.0), rows(2, 2, row=9.0, diameter=9.0), rows(2, 1, row=3.0, diameter=6.0), scale=0.5)
    attained(float(h.key_gain("l2")), norm_of(jacobian(lambda k: attention(q, k, v, scale=0.5), np.zeros((2, 2))), "l2"))


def test_key_gain_at_equal_weights_is_attained() -> None:
    n = 8  # column sums are 1, so half of the diameter of V is all that one query can see
    q, v = np.tile([[2.0]], (n, 1)), np.tile([[1.0], [-1.0]], (n // 2, 1))
    h = heads(rows(n, 1, row=2.0, diameter=0.0), rows(n, 1, row=1.0, diameter=0.0), rows(n, 1, row=1.0, diameter=2.0))
    attained(float(h.key_gain("l2")), norm_of(jacobian(lambda k: attention(q, k, v), np.zeros((n, 1))), "l2"))


def test_column_sum_of_one_dominant_key_is_attained() -> None:
    q, k = np.full((3, 1), 0.5), np.array([[1.0], [-1.0], [-1.0], [-1.0]])
    h = heads(rows(3, 1, row=0.5, diameter=0.0), rows(4, 1, row=1.0, diameter=2.0), rows(4, 1, row=1.0, diameter=2.0))
    weights = attention(q, k, np.eye(4))
    attained(float(h.column_sum()), float(weights.sum(axis=0).max()) * (1 - 1e-12))


@pytest.mark.parametrize("causal", [False, True])
def test_value_gain_is_attained_when_all_look_at_one_key(causal: bool) -> None:
    q, k = np.full((4, 1), 40.0), np.array([[1.0], [-1.0], [-1.0], [-1.0]])
    h = heads(rows(4, 1, row=40.0, diameter=0.0), rows(4, 1, row=1.0, diameter=2.0), rows(4, 1, row=1.0, diameter=2.0))
    for norm in NORMS:
        attained(float(h.value_gain(norm)), norm_of(jacobian(lambda v: attention(q, k, v, causal=causal), np.zeros((4, 1))), norm))


def test_bias_gain_is_attained() -> None:
    v = np.array([[1.0, 0.0], [-1.0, 0.0]])
    h = heads(rows(1, 1, row=1.0, diameter=0.0), rows(2, 1, row=1.0, diameter=2.0), rows_of(box((1, 2, 2), [-1.0, 0.0], [1.0, 0.0])))
    f = lambda bias: attention(np.zeros((1, 1)), np.zeros((2, 1)), v, bias)  # noqa: E731
    for norm in NORMS:
        attained(float(h.bias_gain(norm, 1)), norm_of(jacobian(f, np.zeros((1, 2))), norm))
    shared = lambda bias: attention(np.zeros((3, 1)), np.zeros((2, 1)), v, bias)  # noqa: E731
    attained(float(h.bias_gain("l2", 3)), norm_of(jacobian(shared, np.zeros((1, 2))), "l2"))
    attained(float(h.bias_gain("l1", 3)), norm_of(jacobian(shared, np.zeros((1, 2))), "l1"))


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_sums_of_one_head_are_attained(norm: Norm) -> None:
    q, k, v = np.array([[0.7, -0.7]]), np.array([[1.0, 1.0], [-1.0, -1.0]]), np.array([[2.0], [-2.0]])
    one = OneNode(
        "Attention",
        [box((1, 1, 2), -0.7, 0.7), box((1, 2, 2), -1, 1), box((1, 2, 1), -2, 2)],
        [(1, 1, 1)],
        {"scale": 0.5},
        domain="lipaudit",
    )
    attained(one.slope(0, norm), norm_of(jacobian(lambda x: attention(x, k, v, scale=0.5), q * 0), norm))
    attained(one.slope(1, norm), norm_of(jacobian(lambda x: attention(q, x, v, scale=0.5), k * 0), norm))


def test_uniform_weights_have_small_column_sums() -> None:
    h = heads(rows(6, 2, row=1.0, diameter=2.0), rows(6, 2, row=1.0, diameter=0.0), rows(6, 2, row=1.0, diameter=2.0))
    assert float(h.column_sum()) == pytest.approx(1.0)
    causal = heads(h.q, h.k, h.v, mask=mask_facts(6, 6, causal=True))
    attained(float(causal.column_sum()), sum(1 / i for i in range(1, 7)) * (1 - 1e-12))
    biased = heads(h.q, h.k, h.v, mask=Mask((6,) * 6, 6, 1000.0))
    assert float(biased.column_sum()) == 6


@pytest.mark.parametrize("seed", range(6))
def test_column_sums_and_all_paths_at_bounded_spread(seed: int) -> None:
    rng = np.random.default_rng(40 + seed)
    n = 5
    q, k, v = box((1, n, 2), -0.4, 0.4), box((1, n, 2), 2.6, 3.0), box((1, n, 2), -1, 1)
    bias = rng.uniform(-0.5, 0.5, (n, n))
    attrs = {"scale": 1.0, "causal": seed % 2}
    one = OneNode("Attention", [q, k, v, bias], [(1, n, 2)], attrs, domain="lipaudit")
    assert one.slope(2) < math.sqrt(n)
    compare(one, lambda xs: attention(xs[0], xs[1], xs[2], bias, causal=bool(seed % 2)), (0, 1, 2), rng, 15)


def test_soft_cap_loses_the_centering_of_the_keys() -> None:
    k, v = np.array([[10.0, -0.5], [10.0, 0.5]]), np.array([[0.5], [-0.5]])
    q, k_range = np.array([[1.0, -20.0]]), box((1, 2, 2), [[10.0, -0.5]], [[10.0, 0.5]])
    one = OneNode(
        "Attention", [box((1, 1, 2), -20, 20), k_range, box((1, 2, 1), -0.5, 0.5)], [(1, 1, 1)], {"softcap": 1.0}, domain="lipaudit"
    )
    measured = norm_of(jacobian(lambda x: attention(x, k, v, cap=1.0), q), "l2")
    assert measured > 0.25 * 1.0 * 1.0 * 7  # far above |s| D_K D_V / 4
    holds(one.slope(), measured)


@pytest.mark.parametrize("norm", NORMS)
def test_soft_cap_gain_is_attained_by_opposite_keys(norm: Norm) -> None:
    k, v = np.array([[1.0], [-1.0]]), np.array([[1.0], [-1.0]])
    one = OneNode(
        "Attention", [box((1, 1, 1), -1, 1), box((1, 2, 1), -1, 1), box((1, 2, 1), -1, 1)], [(1, 1, 1)], {"softcap": 3.0}, domain="lipaudit"
    )
    attained(one.slope(0, norm), norm_of(jacobian(lambda q: attention(q, k, v, cap=3.0), np.zeros((1, 1))), norm))


def test_why_attention_on_all_reals_is_unbounded() -> None:
    one = OneNode("Attention", [box((1, 2, 2)), box((1, 2, 2)), box((1, 2, 2))], [(1, 2, 2)], {}, domain="lipaudit")
    for i, name in ((0, "keys and values"), (1, "queries and values")):
        found = one.gain(i)
        assert isinstance(found, Unbounded) and name in found.reason and "two unbounded activations" in found.reason
    assert isinstance(one.gain(2), Finite)
    values = OneNode("Attention", [box((1, 2, 2)), box((1, 2, 2), -1, 1), box((1, 2, 2))], [(1, 2, 2)], {}, domain="lipaudit")
    found = values.gain(0)
    assert isinstance(found, Unbounded) and "the values are unbounded" in found.reason
    alone = OneNode("Attention", [box((1, 3, 2)), box((1, 1, 2)), box((1, 1, 2))], [(1, 3, 2)], {}, domain="lipaudit")
    assert alone.slope(0) == 0 and alone.slope(1) == 0  # one key has weight 1


def test_equal_values_do_not_move() -> None:
    one = OneNode("Attention", [box((1, 2, 2)), box((1, 2, 2)), box((1, 2, 1), 3, 3)], [(1, 2, 1)], {}, domain="lipaudit")
    assert one.slope(0) == 0 and one.slope(1) == 0


def test_a_matrix_without_samples_ignores_the_diameter() -> None:
    found = rows_of(box((3, 2), -1, 1, diameter=0.0))
    assert float(found.diameter) == pytest.approx(math.sqrt(8))


def test_tiny_numbers_do_not_vanish() -> None:
    found = rows_of(box((1, 3, 2), -1e-200, 1e-200))
    assert float(found.row) >= 1.4e-200 and float(found.diameter) >= 2.8e-200


def split(x: Any, count: int) -> Any:
    b, n, d = x.shape
    return x.reshape(b, n, count, d // count).transpose(0, 2, 1, 3)


def merge(x: Any) -> Any:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


@pytest.mark.parametrize("seed", range(10))
def test_onnx_attention(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    h_k = int(rng.integers(1, 3))
    group = int(rng.integers(1, 3))
    h_q, n_q, n_k, d, d_v = h_k * group, int(rng.integers(1, 4)), int(rng.integers(1, 4)), 2, int(rng.integers(1, 3))
    inside_rows = bool(seed % 2)
    past = 2 if seed % 3 == 0 else 0
    causal = bool(rng.random() < 0.5)
    cap = float(rng.choice([0.0, 2.0]))
    size = float(rng.choice([0.3, 2.0]))
    if inside_rows:
        q, k, v = box((1, n_q, h_q * d), -size, size), box((1, n_k, h_k * d), -1, 2), box((1, n_k, h_k * d_v), -1, 1)
        out: tuple[int, ...] = (1, n_q, h_q * d_v)
        attrs: dict[str, Any] = {"q_num_heads": h_q, "kv_num_heads": h_k}
    else:
        q, k, v = box((1, h_q, n_q, d), -size, size), box((1, h_k, n_k, d), -1, 2), box((1, h_k, n_k, d_v), -1, 1)
        out = (1, h_q, n_q, d_v)
        attrs = {}
    attrs |= {"is_causal": int(causal), "softcap": cap}
    args: list[Any] = [q, k, v, None]
    moving: tuple[int, ...] = (0, 1, 2)
    total = n_k + past
    if seed % 4 == 1:
        args[3] = rng.random((n_q, total)) < 0.6
    elif seed % 4 == 2:
        args[3] = box((1, 1, n_q, total), -1, 1)
        moving = (*moving, 3)
    if past:
        args += [box((1, h_k, past, d), -3, 1), box((1, h_k, past, d_v), 0, 3)]
        moving = (*moving, 4, 5)
    one = OneNode("Attention", args, [out], attrs, version=23)

    def f(xs: dict[int, Any]) -> Any:
        query, key, value = (split(xs[0], h_q), split(xs[1], h_k), split(xs[2], h_k)) if inside_rows else (xs[0], xs[1], xs[2])
        if past:
            key, value = np.concatenate((xs[4], key), axis=2), np.concatenate((xs[5], value), axis=2)
        key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
        bias = 0.0
        if args[3] is not None:
            bias = np.where(args[3], 0.0, -np.inf) if isinstance(args[3], np.ndarray) else xs[3]
        y = attention(query, key, value, bias, scale=1 / math.sqrt(d), cap=cap, causal=causal, offset=past)
        return merge(y) if inside_rows else y

    compare(one, f, moving, rng, 7)


def test_grouped_heads_pay_for_sharing() -> None:
    q, k, v = box((1, 2, 1, 1)), box((1, 1, 2, 1), 0, 0), box((1, 1, 2, 1), -1, 1)
    one = OneNode("Attention", [q, k, v], [(1, 2, 1, 1)], {"scale": 1.0}, version=23)
    f = lambda x: attention(np.zeros((1, 2, 1, 1)), np.zeros((1, 2, 2, 1)), np.repeat(x, 2, axis=1))  # noqa: E731
    attained(one.slope(2), norm_of(jacobian(f, np.zeros((1, 1, 2, 1))), "l2"))
    attained(one.slope(2, "l1"), norm_of(jacobian(f, np.zeros((1, 1, 2, 1))), "l1"))


def test_cache_outputs_copy() -> None:
    args = [
        box((1, 1, 2, 2), -1, 1),
        box((1, 1, 2, 2), -1, 1),
        box((1, 1, 2, 2), -1, 1),
        None,
        box((1, 1, 3, 2), -2, 2),
        box((1, 1, 3, 2), -2, 2),
    ]
    one = OneNode("Attention", args, [(1, 1, 2, 2), (1, 1, 5, 2), (1, 1, 5, 2)], {}, version=23)
    for i, expected in ((1, (1, 0)), (2, (0, 1)), (4, (1, 0)), (5, (0, 1)), (0, (0, 0))):
        gain = one.gain(i)
        assert isinstance(gain, PerOutput)
        assert tuple(float(part.slope) for part in gain.outputs[1:]) == expected
    claimed = one.range()
    assert claimed[1].magnitude() == 2 and claimed[1].shape == (1, 1, 5, 2)


def test_refusals_of_onnx_attention() -> None:
    q = box((1, 2, 2, 2), -1, 1)
    odd = OneNode("Attention", [box((1, 3, 2, 2), -1, 1), q, q], [(1, 3, 2, 2)], {}, version=23)
    assert isinstance(odd.gain(0), Unknown)


@pytest.mark.parametrize("seed", range(8))
def test_packed_attention_of_onnxruntime(seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    h, n, width, inner = int(rng.integers(1, 3)), int(rng.integers(1, 4)), 3, 2
    w, b = rng.standard_normal((inner, 3 * h * width)), rng.standard_normal(3 * h * width)
    past = 2 if seed % 2 else 0
    args: list[Any] = [box((1, n, inner), -1, 1), w, b, None, box((2, 1, h, past, width), -1, 2) if past else None]
    one = OneNode("Attention", args, [(1, n, h * width)], {"num_heads": h, "unidirectional": int(seed % 3 == 0)}, domain="com.microsoft")

    def f(xs: dict[int, Any]) -> Any:
        q, k, v = (split(part, h) for part in np.split(xs[0] @ w + b, 3, axis=-1))
        if past:
            k, v = np.concatenate((xs[4][0], k), axis=2), np.concatenate((xs[4][1], v), axis=2)
        return merge(attention(q, k, v, scale=1 / math.sqrt(width), causal=seed % 3 == 0, offset=past))

    compare(one, f, (0, 4) if past else (0,), rng, 7)


def test_packed_attention_stack_beats_the_triangle() -> None:
    w = np.concatenate((np.eye(4), np.eye(4), np.eye(4)), axis=1) * np.concatenate((np.ones(4), np.ones(4), np.full(4, 1.0)))
    w[:, :4] *= np.array([1.0, 0, 0, 0])
    w[:, 4:8] *= np.array([0, 1.0, 0, 0])
    w[:, 8:] *= np.array([0, 0, 1.0, 1.0])
    one = OneNode("Attention", [box((1, 3, 4), -1, 1), w], [(1, 3, 4)], {"num_heads": 1}, domain="com.microsoft")
    gain = one.gain(0)
    assert isinstance(gain, Finite) and gain.method.endswith("weighted stack")
    f = lambda x: attention(x @ w[:, :4], x @ w[:, 4:8], x @ w[:, 8:], scale=0.5)  # noqa: E731
    rng = np.random.default_rng(0)
    for x in points(one.ranges[0], rng, 30):
        holds(float(gain.slope), norm_of(jacobian(f, x), "l2"))


@pytest.mark.parametrize("seed", range(4))
def test_multi_head_attention_of_onnxruntime(seed: int) -> None:
    rng = np.random.default_rng(300 + seed)
    h, n_q, n_k, d = 2, 2, 3, 2
    bias = rng.standard_normal(3 * h * d) if seed % 2 else None
    crossed = seed >= 2
    kv = (1, h, n_k, d) if crossed else (1, n_k, h * d)
    args: list[Any] = [box((1, n_q, h * d), -1, 1), box(kv, -1, 1), box(kv, -1, 2), bias]
    one = OneNode("MultiHeadAttention", args, [(1, n_q, h * d)], {"num_heads": h}, domain="com.microsoft")

    def f(xs: dict[int, Any]) -> Any:
        parts = np.split(bias, 3) if bias is not None else (0.0, 0.0, 0.0)
        q = split(xs[0] + parts[0], h)
        k, v = (
            (x + np.reshape(part, (h, 1, d)) if bias is not None else x) if crossed else split(x + part, h)
            for x, part in ((xs[1], parts[1]), (xs[2], parts[2]))
        )
        return merge(attention(q, k, v, scale=1 / math.sqrt(d)))

    compare(one, f, (0, 1, 2), rng, 7)


def turn(x: Any, cos: Any, sin: Any) -> Any:
    """Rotation of halves; tables [n, d/2]."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * cos - b * sin, a * sin + b * cos), axis=-1)


@pytest.mark.parametrize("seed", range(6))
def test_group_query_attention_of_onnxruntime(seed: int) -> None:
    rng = np.random.default_rng(400 + seed)
    h_q, h_k, n, d = 4, 2, 3, 2
    packed, rotate, sink = seed % 2 == 1, seed % 3 == 1, seed % 3 == 2
    angles = rng.uniform(0, 6, (n, d // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first = (
        [box((1, n, (h_q + 2 * h_k) * d), -1, 1), None, None]
        if packed
        else [box((1, n, h_q * d), -1, 1), *(box((1, n, h_k * d), -1, 2) for _ in range(2))]
    )
    tables: list[Any] = [cos, sin] if rotate else [None, None]
    args = [*first, None, None, None, None, *tables]
    attrs = {"num_heads": h_q, "kv_num_heads": h_k, "do_rotary": int(rotate), "smooth_softmax": int(sink)}
    one = OneNode("GroupQueryAttention", args, [(1, n, h_q * d)], attrs, domain="com.microsoft")

    def f(xs: dict[int, Any]) -> Any:
        whole = xs[0]
        q, k, v = (
            (whole[..., : h_q * d], whole[..., h_q * d : (h_q + h_k) * d], whole[..., (h_q + h_k) * d :])
            if packed
            else (xs[0], xs[1], xs[2])
        )
        q, k, v = split(q, h_q), split(k, h_k), split(v, h_k)
        if rotate:
            q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
        scores = np.where(np.tri(n, dtype=bool), q @ np.swapaxes(k, -1, -2) / math.sqrt(d), -np.inf)
        if sink:
            p = softmax(np.concatenate((scores, np.zeros((*scores.shape[:-1], 1))), axis=-1))[..., :-1]
        else:
            p = softmax(scores)
        return merge(p @ v)

    compare(one, f, (0,) if packed else (0, 1, 2), rng, 7)


def test_rotation_is_an_isometry_up_to_its_tables() -> None:
    angles = np.array([[0.3], [2.0]])
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    one = OneNode("RotaryEmbedding", [box((1, 1, 2, 2), -1, 1), cos, sin], [(1, 1, 2, 2)], {}, version=23)
    f = lambda x: turn(x, cos.astype(np.float64), sin.astype(np.float64))  # noqa: E731
    rng = np.random.default_rng(1)
    for x in points(one.ranges[0], rng, 9):
        inside(f(x), one.range()[0])
    for norm in NORMS:
        attained(one.slope(0, norm), norm_of(jacobian(f, np.zeros((1, 1, 2, 2))), norm))
    grown = OneNode("RotaryEmbedding", [box((1, 1, 2, 2), -1, 1), cos * 2, sin * 2], [(1, 1, 2, 2)], {}, version=23)
    assert 1.99 < grown.slope() < 2.01
    free = OneNode("RotaryEmbedding", [box((1, 1, 2, 2)), box((2, 1)), box((2, 1))], [(1, 1, 2, 2)], {}, version=23, still=(1, 2))
    assert isinstance(free.gain(0), Unknown)


def test_masks_are_read_as_the_operators_do() -> None:
    allow = np.array([[True, False, True], [False, False, False]])
    found = mask_facts(2, 3, bias=box((2, 3), 0, 1, integral=True), stored=allow)
    assert found.allowed == (2, 1) and found.may_be_empty and found.most == 2
    added = np.array([[0.0, -np.inf, 3.0], [1.0, 1.0, 1.0]])
    found = mask_facts(2, 3, bias=box((2, 3)), stored=added)
    assert found.allowed == (2, 3) and not found.may_be_empty and 3 <= found.spread < 3.001
    short = mask_facts(2, 4, bias=box((2, 3), 0, 1, integral=True), stored=np.ones((2, 3), dtype=bool))
    assert short.allowed == (3, 3)
    unknown = mask_facts(2, 3, bias=box((2, 3), 0, 1, integral=True))
    assert unknown.allowed == (1, 1) and unknown.most == 2 and unknown.may_be_empty
    computed = mask_facts(2, 3, bias=box((2, 3), -5, 5))
    assert computed.allowed == (3, 3) and 10 <= computed.spread < 10.001
    assert mask_facts(2, 4, bias=box((2, 3), -5, 5)).spread == math.inf


def test_all_combinations_of_one_token_one_head_width_one() -> None:
    rng = np.random.default_rng(9)
    for n_q, n_k, d in itertools.product((1, 2), repeat=3):
        one = OneNode(
            "Attention",
            [box((1, n_q, d), -9, 9), box((1, n_k, d), -9, 9), box((1, n_k, 1), -1, 3)],
            [(1, n_q, 1)],
            {"scale": 2.0},
            domain="lipaudit",
        )
        compare(one, lambda xs: attention(xs[0], xs[1], xs[2], scale=2.0), (0, 1, 2), rng, 6)
