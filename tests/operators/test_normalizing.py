"""Normalizations: exact constants, floors on boxes, ranges, epsilon in every place, every grouping."""

# ruff: noqa: B023 (the closures are used up inside their own turn of the loop)

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lipaudit.bounds.scalar import Norm
from lipaudit.operators.base import Finite, Unbounded, Unknown
from lipaudit.operators.outputs import PerOutput
from lipaudit.operators.radial import Radial, centred_scale_norm
from tests.operators.structured import NORMS, OneNode, attained, box, holds, inside, jacobian, norm_of, points, size_of


def normalize(x: Any, axes: tuple[int, ...], *, centred: bool = True, eps: float = 0.0, place: str = "root", m: int = 0) -> Any:
    n = math.prod(x.shape[axis] for axis in axes)
    z = x - x.mean(axis=axes, keepdims=True) if centred else x
    mean_square = (z * z).sum(axis=axes, keepdims=True) / (m or n)
    if place == "root":
        return z / np.sqrt(mean_square + eps)
    if place == "outside":
        return z / (np.sqrt(mean_square) + eps)
    root = np.sqrt(mean_square)
    return z / np.where(root.real > eps, root, eps)


def spots(one: OneNode, rng: np.random.Generator, count: int) -> list[Any]:
    """Points of the domain, and for open domains also (almost) constant groups at all scales."""
    found = points(one.ranges[0], rng, count)
    if not one.ranges[0].is_bounded:
        shape = one.ranges[0].shape
        for scale in (1e-9, 1e-3, 0.03, 0.3, 1.0, 10.0):
            found.append(rng.standard_normal((*shape[:-1], 1)) * 0 + scale * rng.standard_normal(shape))
            spike = np.zeros(shape)
            spike.reshape(-1)[0] = scale * 3
            found.append(spike)
    return found


def check(one: OneNode, f: Any, rng: np.random.Generator, count: int = 8) -> None:
    """Jacobians and pairs never beat the certificate, outputs lie in the range."""
    found = {norm: one.gain(0, norm) for norm in NORMS}
    claimed = one.range()[0]
    xs = spots(one, rng, count)
    for x in xs:
        inside(f(x), claimed)
        matrix = jacobian(f, x)
        for norm in NORMS:
            gain = found[norm]
            if isinstance(gain, Finite):
                holds(float(gain.slope), norm_of(matrix, norm))
    for x, y in pairwise(xs):
        for norm in NORMS:
            gain = found[norm]
            if isinstance(gain, Finite) and size_of(x - y, norm) > 0:
                holds(float(gain.slope) * size_of(x - y, norm), size_of(f(x) - f(y), norm) * (1 - 1e-11) - 1e-13)


DOMAINS = [(-math.inf, math.inf), (-2.0, 2.0), (1.0, 2.0)]


@pytest.mark.parametrize(("lo", "hi"), DOMAINS)
@pytest.mark.parametrize(("shape", "axis"), [((2, 5), -1), ((2, 3, 2), 1), ((3, 1), -1), ((2, 2), -1), ((1, 9), -1)])
def test_layer_normalization(shape: Any, axis: int, lo: float, hi: float) -> None:
    rng = np.random.default_rng(3)
    for eps in (1e-5, 0.1):
        own = shape[axis % len(shape) :]
        g, b = rng.standard_normal(own), rng.standard_normal(own)
        one = OneNode("LayerNormalization", [box(shape, lo, hi), g, b], [shape], {"axis": axis, "epsilon": eps}, version=17)
        axes = tuple(range(axis % len(shape), len(shape)))
        check(one, lambda x: normalize(x, axes, eps=eps) * g + b, rng)


@pytest.mark.parametrize(("lo", "hi"), DOMAINS)
@pytest.mark.parametrize("n", [1, 2, 4, 5, 9, 30])
def test_rms_normalization(n: int, lo: float, hi: float) -> None:
    rng = np.random.default_rng(4)
    for eps in (1e-5, 0.1):
        g = rng.standard_normal(n)
        one = OneNode("RMSNormalization", [box((2, n), lo, hi), g], [(2, n)], {"axis": -1, "epsilon": eps}, version=23)
        check(one, lambda x: normalize(x, (1,), centred=False, eps=eps) * g, rng)


def test_boxes_off_centre_have_a_floor() -> None:
    rng = np.random.default_rng(5)
    for _ in range(25):
        n = int(rng.integers(2, 8))
        centre = rng.standard_normal((3, n)) * 3
        half = np.abs(rng.standard_normal((3, n))) * 10.0 ** rng.uniform(-3, 0)
        g = rng.standard_normal(n)
        for op, centred in (("LayerNormalization", True), ("RMSNormalization", False)):
            one = OneNode(op, [box((3, n), centre - half, centre + half), g], [(3, n)], {"axis": -1, "epsilon": 1e-6}, version=23)
            check(one, lambda x: normalize(x, (1,), centred=centred, eps=1e-6) * g, rng, 6)


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_floor_is_attained_on_a_point(op: str) -> None:
    x = np.array([[3.0, -1.0, 2.0, 5.0]])
    one = OneNode(op, [box((1, 4), x, x), np.ones(4)], [(1, 4)], {"axis": -1, "epsilon": 0.25}, version=23)
    matrix = jacobian(lambda v: normalize(v, (1,), centred=op[0] == "L", eps=0.25), x)
    attained(one.slope(), norm_of(matrix, "l2"), 1 - 1e-9)


def test_two_elements_gain_one_over_s0_between_mirror_points() -> None:
    # The Jacobian on {spread >= 1} is tiny; the secant from (1, -1) to (-1, 1) is not, and no box contains only that set.
    one = OneNode("LayerNormalization", [box((1, 2), -1, 1), np.ones(2)], [(1, 2)], {"axis": -1, "epsilon": 1e-4}, version=17)
    x = np.array([[1.0, -1.0]])
    holds(one.slope(), size_of(normalize(x, (1,), eps=1e-4) * 2, "l2") / size_of(2 * x, "l2"))


@pytest.mark.parametrize(
    ("scale", "expected"), [([2.0, -2.0, 1.0], 2.0), ([3.0, 0.0], 3 * math.sqrt(0.5)), ([1.0, 0.0, 0.0], math.sqrt(2 / 3))]
)
def test_scale_over_root_of_epsilon_is_attained_at_constant_groups(scale: list[float], expected: float) -> None:
    g, n = np.array(scale), len(scale)
    one = OneNode("LayerNormalization", [box((2, n)), g], [(2, n)], {"axis": -1, "epsilon": 1e-4}, version=17)
    matrix = jacobian(lambda x: normalize(x, (1,), eps=1e-4) * g, np.ones((2, n)))
    attained(one.slope(), norm_of(matrix, "l2"), 1 - 1e-9)
    assert one.slope() == pytest.approx(expected * 100, rel=1e-8)


def test_norm_of_a_centred_scale() -> None:
    rng = np.random.default_rng(6)
    for _ in range(300):
        n = int(rng.integers(2, 40))
        g = rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 3, n)
        true = float(np.linalg.norm(g[:, None] * (np.eye(n) - 1 / n), 2))
        attained(centred_scale_norm(g), true * (1 - 1e-13), 1 - 1e-8)
    assert centred_scale_norm(np.array([1.0, 1.0, 0.5])) == 1.0
    assert centred_scale_norm(np.zeros(3)) == 0.0


def _row_sum(u: Any, t: float, centred: bool, i: int) -> float:
    n = u.size
    own = np.full(n, -1 / n) if centred else np.zeros(n)
    own[i] += 1.0
    return float(np.abs(own - t * u[i] * u).sum())


@pytest.mark.parametrize("n", [2, 4, 5, 9, 16, 100])
def test_sums_of_rows_of_rms_are_attained(n: int) -> None:
    k = (math.sqrt(n) - 1) / 2
    t = max(0.0, (2 * k - 1) / (3 * k))
    share = (1 - 1 / math.sqrt(n)) / 2
    u = np.full(n, math.sqrt((1 - share) / (n - 1)))
    u[0] = -math.sqrt(share)
    eps = 0.01
    r = math.sqrt(t / (1 - t) * n * eps)
    g = np.ones(n)
    one = OneNode("RMSNormalization", [box((1, n)), g], [(1, n)], {"axis": -1, "epsilon": eps}, version=23)
    matrix = jacobian(lambda x: normalize(x, (1,), centred=False, eps=eps), (r * u)[None])
    for norm in ("l1", "linf"):
        attained(one.slope(0, norm), norm_of(matrix, norm), 1 - 1e-9)


def test_sums_of_rows_of_the_centred_form_are_approached() -> None:
    # The constant of the mean (n = 2, at constant groups) and that of the quadratic term (long groups).
    core = Radial(True, 2, 2, 0.25)
    attained(float(core.slope("linf", 0.0)), _row_sum(np.array([1.0, -1.0]) / math.sqrt(2), 0.0, True, 0) / 0.5)
    n = 400_000
    core = Radial(True, n, n, 1.0)
    best = 0.0
    for share in (0.3, 0.32, 1 / 3, 0.35, 0.5):
        for t in (0.6, 2 / 3, 0.7):
            u = np.empty(n)
            u[0] = math.sqrt(share)
            half = (n - 1) // 2
            u[1 : half + 1], u[half + 1 :] = 1.0, -1.0
            u[1:] *= math.sqrt((1 - share) / (n - 1))
            u[1:] -= u.sum() / (n - 1)
            u /= np.linalg.norm(u)
            best = max(best, _row_sum(u, t, True, 0) * math.sqrt(1 - t))
    attained(float(core.slope("linf", 0.0)), best * (1 - 1e-9))


@pytest.mark.parametrize(("kind", "place", "extra"), [
    ("layer", "root", {}), ("layer", "root", {"unbiased": 1}), ("layer", "outside", {}), ("layer", "outside", {"unbiased": 1}),
    ("layer", "max", {}), ("rms", "root", {}), ("rms", "outside", {}), ("rms", "root", {"sum": 1}), ("rms", "max", {}),
    ("l2", "root", {}), ("l2", "outside", {}), ("l2", "max", {}),
])  # fmt: skip
@pytest.mark.parametrize(("lo", "hi"), [(-math.inf, math.inf), (1.0, 2.0)])
def test_spelled_out_normalizations(kind: str, place: str, extra: Any, lo: float, hi: float) -> None:
    rng = np.random.default_rng(7)
    for n in (2, 6, 20):
        eps = 0.2
        g, b = rng.standard_normal(n), rng.standard_normal(n)
        m = 1 if kind == "l2" or extra.get("sum") else n - 1 if extra.get("unbiased") else n
        attrs = {"kind": kind, "axes": (1,), "epsilon": eps, "eps_place": place, **extra}
        one = OneNode("Normalization", [box((2, n), lo, hi), g, b], [(2, n)], attrs, domain="lipaudit")
        check(one, lambda x: normalize(x, (1,), centred=kind == "layer", eps=eps, place=place, m=m) * g + b, rng)


@pytest.mark.parametrize(("kind", "place", "n"), [("rms", "outside", 4), ("layer", "outside", 2), ("rms", "max", 1), ("l2", "max", 4)])
def test_epsilon_outside_the_root_is_attained(kind: str, place: str, n: int) -> None:
    attrs = {"kind": kind, "axes": (1,), "epsilon": 1e-3, "eps_place": place}
    one = OneNode("Normalization", [box((1, n))], [(1, n)], attrs, domain="lipaudit")
    assert one.slope() == pytest.approx(1000, rel=1e-12)
    x = np.zeros((1, n))
    x[0, 0] = 1e-9
    y = normalize(x, (1,), centred=kind == "layer", eps=1e-3, place=place, m=1 if kind == "l2" else 0)
    attained(one.slope(), size_of(y, "l2") / size_of(x - x.mean() if kind == "layer" else x, "l2") * (1 - 1e-9))


def test_projection_in_linf_is_attained() -> None:
    n = 9
    attrs = {"kind": "l2", "axes": (1,), "epsilon": 1.0, "eps_place": "max"}
    one = OneNode("Normalization", [box((1, n))], [(1, n)], attrs, domain="lipaudit")
    share = (1 - 1 / math.sqrt(n)) / 2
    u = np.full(n, math.sqrt((1 - share) / (n - 1)))
    u[0] = -math.sqrt(share)
    matrix = jacobian(lambda x: normalize(x, (1,), centred=False, eps=1.0, place="max", m=1), u[None] * (1 + 1e-9))
    attained(one.slope(0, "linf"), norm_of(matrix, "linf"), 1 - 1e-6)


def test_refusals_have_reasons() -> None:
    x = box((2, 4))
    assert isinstance(OneNode("LayerNormalization", [x, np.ones(4)], [(2, 4)], {"epsilon": 0.0}, version=17).gain(), Unbounded)
    assert isinstance(OneNode("LayerNormalization", [x, np.ones(4)], [(2, 4)], {"epsilon": -1.0}, version=17).gain(), Unknown)
    fused = {"kind": "batch", "axes": (1,), "epsilon": 0.1, "eps_place": "root"}
    assert isinstance(OneNode("Normalization", [x], [(2, 4)], fused, domain="lipaudit").gain(), Unknown)
    lone = {"kind": "layer", "axes": (1,), "epsilon": 0.1, "eps_place": "root", "unbiased": 1}
    assert isinstance(OneNode("Normalization", [box((2, 1))], [(2, 1)], lone, domain="lipaudit").gain(), Unknown)


@pytest.mark.parametrize("version", [18, 21])
def test_group_normalization(version: int) -> None:
    rng = np.random.default_rng(8)
    shape = (2, 4, 3)
    g, b = (rng.standard_normal(2 if version == 18 else 4) for _ in range(2))
    one = OneNode("GroupNormalization", [box(shape), g, b], [shape], {"epsilon": 0.1, "num_groups": 2}, version=version)
    wide_g, wide_b = (np.repeat(v, 2) if version == 18 else v for v in (g, b))

    def f(x: Any) -> Any:
        z = normalize(x.reshape(2, 2, 6), (2,), eps=0.1).reshape(shape)
        return z * wide_g[:, None] + wide_b[:, None]

    check(one, f, rng)


def test_instance_and_mean_variance_normalization() -> None:
    rng = np.random.default_rng(9)
    shape = (2, 3, 4)
    g, b = rng.standard_normal(3), rng.standard_normal(3)
    one = OneNode("InstanceNormalization", [box(shape), g, b], [shape], {"epsilon": 0.1}, version=6)
    check(one, lambda x: normalize(x, (2,), eps=0.1) * g[:, None] + b[:, None], rng)
    one = OneNode("MeanVarianceNormalization", [box((2, 3, 2, 2), 1.0, 5.0)], [(2, 3, 2, 2)], {"axes": (1, 3)}, version=13)
    check(one, lambda x: normalize(x, (1, 3), eps=1e-9, place="outside"), rng)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_lp_normalization(p: int, n: int) -> None:
    rng = np.random.default_rng(10)
    lo = np.concatenate((np.full(1, 0.5), np.full(n - 1, -1.0)))
    one = OneNode("LpNormalization", [box((3, n), np.broadcast_to(lo, (3, n)), 2.0)], [(3, n)], {"axis": -1, "p": p}, version=1)

    def f(x: Any) -> Any:
        size = np.where(x.real < 0, -x, x).sum(axis=1, keepdims=True) if p == 1 else np.sqrt((x * x).sum(axis=1, keepdims=True))
        return x / size

    check(one, f, rng, 12)
    assert isinstance(OneNode("LpNormalization", [box((3, n))], [(3, n)], {"p": p}, version=1).gain(), Unbounded)


def test_moving_scale_and_bias() -> None:
    rng = np.random.default_rng(11)
    one = OneNode("LayerNormalization", [box((3, 4)), box((4,), -2, 2), box((4,))], [(3, 4)], {"epsilon": 0.1}, version=17)
    for norm in NORMS:
        for x in spots(one, rng, 4):
            z = normalize(x, (1,), eps=0.1)
            holds(one.slope(1, norm), norm_of(jacobian(lambda g: z * g, np.zeros(4)), norm))
            holds(one.slope(2, norm), norm_of(jacobian(lambda b: z + b, np.zeros(4)), norm))
            holds(one.slope(0, norm), norm_of(jacobian(lambda v: normalize(v, (1,), eps=0.1) * 2, x), norm))
    free = OneNode("LayerNormalization", [box((3, 4)), box((4,))], [(3, 4)], {"epsilon": 0.1}, version=17)
    assert isinstance(free.gain(0), Unbounded)


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_are_outputs_too(norm: Norm) -> None:
    rng = np.random.default_rng(12)
    args = [box((2, 5)), np.ones(5)]
    one = OneNode("LayerNormalization", args, [(2, 5), (2, 1), (2, 1)], {"epsilon": 0.2}, version=17)
    gain = one.gain(0, norm)
    assert isinstance(gain, PerOutput)

    def parts(x: Any) -> list[Any]:
        z = x - x.mean(axis=1, keepdims=True)
        inverse = 1 / np.sqrt((z * z).mean(axis=1, keepdims=True) + 0.2)
        return [z * inverse, x.mean(axis=1, keepdims=True), inverse]

    for x in spots(one, rng, 9):
        for k, claimed in enumerate(one.range()):
            inside(parts(x)[k], claimed)
            holds(float(gain.outputs[k].slope), norm_of(jacobian(lambda v: parts(v)[k], x), norm))
        whole = jacobian(lambda v: np.concatenate([part.ravel() for part in parts(v)]), x)
        holds(float(gain.slope), norm_of(whole, norm))


@pytest.mark.parametrize("rms", [False, True])
def test_residual_normalization_keeps_the_stream_apart(rms: bool) -> None:
    rng = np.random.default_rng(13)
    shape = (2, 3, 4)
    g, beta, bias = rng.standard_normal(4), rng.standard_normal(4), rng.standard_normal(4)
    op = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
    args = [box(shape, -2, 2), box((3, 4), -1, 1), g, *([] if rms else [beta]), bias]
    one = OneNode(op, args, [shape, None, None, shape], {"epsilon": 0.1}, domain="com.microsoft")

    def parts(x: Any, skip: Any) -> list[Any]:
        total = x + skip + bias
        return [normalize(total, (2,), centred=not rms, eps=0.1) * g + (0 if rms else beta), total]

    for x, skip in zip(points(one.ranges[0], rng, 9), points(one.ranges[1], rng, 9), strict=True):
        claimed = one.range()
        inside(parts(x, skip)[0], claimed[0])
        inside(parts(x, skip)[1], claimed[3])
        for norm in NORMS:
            for i, f in ((0, lambda v, k: parts(v, skip)[k]), (1, lambda v, k: parts(x, v)[k])):
                gain = one.gain(i, norm)
                assert isinstance(gain, PerOutput)
                at = x if i == 0 else skip
                holds(float(gain.outputs[0].slope), norm_of(jacobian(lambda v: f(v, 0), at), norm))
                stream = norm_of(jacobian(lambda v: f(v, 1), at), norm)
                attained(float(gain.outputs[3].slope), stream)


def test_embedding_range() -> None:
    rng = np.random.default_rng(14)
    words, places, g, b = (rng.standard_normal(shape) for shape in ((7, 4), (3, 4), (4,), (4,)))
    ids = box((1, 3), 0, 6)
    one = OneNode(
        "EmbedLayerNormalization", [ids, None, words, places, None, g, b], [(1, 3, 4), (1,), (1, 3, 4)], {"epsilon": 1e-5},
        domain="com.microsoft", still=(0,),
    )  # fmt: skip
    claimed = one.range()
    for _ in range(20):
        total = words[rng.integers(0, 7, (1, 3))] + places
        inside(total, claimed[2])
        inside(normalize(total, (2,), eps=1e-5) * g + b, claimed[0])


@pytest.mark.parametrize("norm", NORMS)
def test_inverse_deviation_is_attained_in_its_norm(norm: Norm) -> None:
    # |z|^2 = n/3; in l1 one element carries nearly nothing more than the others, so only l2 and linf are sharp.
    n, eps = 2, 0.2
    one = OneNode("LayerNormalization", [box((1, n)), np.ones(n)], [(1, n), None, (1, 1)], {"epsilon": eps}, version=17)
    gain = one.gain(0, norm)
    assert isinstance(gain, PerOutput)
    x = np.array([[1.0, -1.0]]) * math.sqrt(eps / 2)

    def inverse(v: Any) -> Any:
        z = v - v.mean(axis=1, keepdims=True)
        return 1 / np.sqrt((z * z).mean(axis=1, keepdims=True) + eps)

    measured = norm_of(jacobian(inverse, x), norm)
    if norm == "l1":
        holds(float(gain.outputs[2].slope), measured)
    else:
        attained(float(gain.outputs[2].slope), measured)


def test_opposite_rows_are_a_diameter_apart() -> None:
    one = OneNode("LayerNormalization", [box((1, 2, 2)), np.full(2, 3.0)], [(1, 2, 2)], {"epsilon": 1e-5}, version=17)
    y = 3 * normalize(np.array([[[1e6, -1e6], [-1e6, 1e6]]]), (2,), eps=1e-5)
    attained(one.range()[0].diameter, float(np.linalg.norm(y[0, 0] - y[0, 1])) * (1 - 1e-12))
    attained(one.range()[0].row, float(np.linalg.norm(y[0, 0])) * (1 - 1e-12))
