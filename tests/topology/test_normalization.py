"""Layer, RMS and L2 normalization in all spellings: recognised, and the same function."""

from __future__ import annotations

from typing import Any

import pytest

from tests.topology.spelled import check_same_function, elementwise, fused, recognised
from tests.topology.test_activations import constants

GIVEN = constants(two=2.0, half=0.5, minus=-0.5, one=1.0, eps=9.999999747378752e-06) + "ax = Constant<value_ints=[-1]>() "
AFFINE = "g = Constant<value_floats=[1.0,2.0,-3.0,0.5,1.0,1.5,0.25,1.0]>() b = Constant<value_floats=[0.5,0.0,1.0,0.0,0.0,0.0,0.0,2.0]>() "

LAYER = {
    "pow, sqrt, div": "m = ReduceMean(x, ax) c = Sub(x, m) q = Pow(c, two) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(c, r)",
    "product": "m = ReduceMean(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(eps, v) r = Sqrt(s) y = Div(c, r)",
    "reciprocal": "m = ReduceMean(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(v, eps) r = "
    "Sqrt(s) i = Reciprocal(r) y = Mul(c, i)",
    "one over": "m = ReduceMean(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) "
    "i = Div(one, r) y = Mul(i, c)",
    "power -0.5": "m = ReduceMean(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(v, eps) i = Pow(s, minus) y = Mul(c, i)",
    "power 0.5": "m = ReduceMean(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(v, eps) r = Pow(s, half) y = Div(c, r)",
    "two subtractions": "m = ReduceMean(x, ax) c = Sub(x, m) d = Sub(x, m) q = Pow(c, two) v = ReduceMean(q, ax) s = "
    "Add(v, eps) r = Sqrt(s) y = Div(d, r)",
    "two means": (
        "m = ReduceMean(x, ax) k = ReduceMean(x, ax) c = Sub(x, m) d = Sub(x, k) q = Pow(c, two) v = ReduceMean(q, ax) "
        "s = Add(v, eps) r = Sqrt(s) y = Div(d, r)"
    ),
    "two moments": "m = ReduceMean(x, ax) q = Mul(x, x) e = ReduceMean(q, ax) w = Mul(m, m) v = Sub(e, w) s = Add(v, "
    "eps) r = Sqrt(s) c = Sub(x, m) y = Div(c, r)",
    "casts": (
        "m = ReduceMean(x, ax) c = Sub(x, m) k = Cast<to=1>(c) q = Pow(k, two) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) "
        "t = Cast<to=1>(r) y = Div(c, t)"
    ),
}
SCALED = {
    "scale and bias": ("{} ", "u = Mul(y0, g) y = Add(u, b)", ("g", "b")),
    "scale first operand": ("{} ", "u = Mul(g, y0) y = Add(b, u)", ("g", "b")),
    "scale only": ("{} ", "y = Mul(y0, g)", ("g", "")),
    "cast before scale": ("{} ", "k = Cast<to=1>(y0) u = Mul(g, k) y = Add(u, b)", ("g", "b")),
}


def attrs(topology: Any) -> tuple[Any, ...]:
    (node,) = fused(topology)
    assert node.kind == "lipaudit::Normalization" and node.inputs[0] == "x"
    a = node.attrs
    return a["kind"], a["axes"], a["epsilon"], a["eps_place"], a["sum"], a["unbiased"]


@pytest.mark.parametrize("spelling", LAYER)
def test_layer_normalization(spelling: str) -> None:
    topology = elementwise(GIVEN + LAYER[spelling])
    assert attrs(topology) == ("layer", (2,), 9.999999747378752e-06, "root", 0, 0)
    assert len(topology.graph.nodes) == 1
    check_same_function(topology)


@pytest.mark.parametrize("affine", SCALED)
@pytest.mark.parametrize("spelling", ["pow, sqrt, div", "reciprocal"])
def test_affine_part(spelling: str, affine: str) -> None:
    before, after, inputs = SCALED[affine]
    core = LAYER[spelling].replace("y = ", "y0 = ")
    topology = elementwise(GIVEN + AFFINE + before.format(core) + after)
    (node,) = topology.graph.nodes
    assert node.inputs == ("x", *inputs)
    check_same_function(topology)


def test_affine_folded_into_the_division() -> None:
    """Keras: x * (g / s) + (b - mean * (g / s))."""
    body = (
        "m = ReduceMean(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) i = Reciprocal(r) "
        "k = Mul(i, g) p = Mul(x, k) t = Mul(m, k) o = Sub(b, t) y = Add(p, o)"
    )
    topology = elementwise(GIVEN + AFFINE + body)
    (node,) = topology.graph.nodes
    assert node.inputs == ("x", "g", "b")
    check_same_function(topology)


RMS = {
    "llama": "q = Pow(x, two) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) i = Div(one, r) y = Mul(x, i)",
    "reciprocal": "q = Pow(x, two) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) i = Reciprocal(r) y = Mul(i, x)",
    "division": "q = Mul(x, x) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(x, r)",
    "sum over n": "n = Constant<value_float=8.0>() q = Mul(x, x) t = ReduceSum(q, ax) v = Div(t, n) s = Add(v, eps) r "
    "= Sqrt(s) y = Div(x, r)",
}


@pytest.mark.parametrize("spelling", RMS)
def test_rms_normalization(spelling: str) -> None:
    topology = elementwise(GIVEN + RMS[spelling])
    assert attrs(topology) == ("rms", (2,), 9.999999747378752e-06, "root", 0, 0)
    assert len(topology.graph.nodes) == 1
    check_same_function(topology)


L2 = {
    "sum, root": ("q = Mul(x, x) v = ReduceSum(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(x, r)", "root"),
    "sum of squares": ("v = ReduceSumSquare(x, ax) s = Add(v, eps) r = Sqrt(s) y = Div(x, r)", "root"),
    "outside": ("r = ReduceL2(x, ax) s = Add(r, eps) y = Div(x, s)", "outside"),
    "max": ("r = ReduceL2(x, ax) s = Max(r, eps) y = Div(x, s)", "max"),
    "clip and expand": ("r = ReduceL2(x, ax) s = Clip(r, eps) k = Constant<value_ints=[2,4,8]>() e = Expand(s, k) y = Div(x, e)", "max"),
    "root of the sum by parts": ("v = ReduceSumSquare(x, ax) r = Sqrt(v) s = Clip(r, eps) y = Div(x, s)", "max"),
}


@pytest.mark.parametrize("spelling", L2)
def test_l2_normalization(spelling: str) -> None:
    body, place = L2[spelling]
    topology = elementwise(GIVEN + body)
    assert attrs(topology) == ("l2", (2,), 9.999999747378752e-06, place, 1, 0)
    assert len(topology.graph.nodes) == 1
    check_same_function(topology)


def test_maximum_under_the_root_rounds_the_root_of_epsilon_down() -> None:
    topology = elementwise(GIVEN + "v = ReduceSumSquare(x, ax) s = Max(v, eps) r = Sqrt(s) y = Div(x, r)")
    kind, _, epsilon, place, _, _ = attrs(topology)
    assert (kind, place) == ("l2", "max")
    assert 0 < epsilon**2 <= 9.999999747378752e-06 and epsilon**2 > 9.9999997473787e-06 * (1 - 1e-12)
    check_same_function(topology)


def test_standard_deviation_with_n_minus_1() -> None:
    body = (
        "n = Constant<value_float=8.0>() k = Constant<value_float=7.0>() m = ReduceMean(x, ax) c = Sub(x, m) q = "
        "Mul(c, c) v = ReduceMean(q, ax) "
        "w = Mul(v, n) u = Div(w, k) r = Sqrt(u) s = Add(r, eps) y = Div(c, s)"
    )
    topology = elementwise(GIVEN + body)
    assert attrs(topology) == ("layer", (2,), 9.999999747378752e-06, "outside", 0, 1)
    check_same_function(topology)


def test_channel_axes() -> None:
    body = (
        "cx = Constant<value_ints=[1]>() m = ReduceMean(x, cx) c = Sub(x, m) q = Pow(c, two) v = ReduceMean(q, cx) s "
        "= Add(v, eps) r = Sqrt(s) z = Div(c, r) "
        "sh = Constant<value_ints=[4,1]>() w = Constant<value_floats=[1.0,2.0,3.0,4.0]>() g = Reshape(w, sh) y = Mul(z, g)"
    )
    topology = elementwise(GIVEN + body)
    (node,) = topology.graph.nodes
    assert node.attrs["axes"] == (1,) and node.inputs[1] == "g"
    check_same_function(topology)


def test_a_scale_across_groups_stays_outside() -> None:
    body = (
        "sh = Constant<value_ints=[4,1]>() w = Constant<value_floats=[1.0,2.0,3.0,4.0]>() g = Reshape(w, sh) "
        + RMS["division"].replace("y =", "z =")
        + " y = Mul(z, g)"
    )
    topology = elementwise(GIVEN + body)
    assert [node.op for node in topology.graph.nodes] == ["Normalization", "Mul"]
    check_same_function(topology)


REFUSED = {
    "no epsilon": ("q = Mul(x, x) v = ReduceMean(q, ax) r = Sqrt(v) y = Div(x, r)", "no epsilon"),
    "other axes": (
        "m = ReduceMean(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(x, r)",
        "another value",
    ),
    "another numerator": ("z = Exp(x) q = Mul(x, x) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(z, r)", "another value"),
    "scaled statistic": (
        "q = Mul(x, x) v = ReduceMean(q, ax) w = Mul(v, two) s = Add(w, eps) r = Sqrt(s) y = Div(x, r)",
        "2 times the mean",
    ),
    "epsilon twice": (
        "q = Mul(x, x) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) t = Add(r, eps) y = Div(x, t)",
        "another one outside",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    body, reason = REFUSED[name]
    topology = elementwise(GIVEN + body)
    assert not fused(topology)
    assert [refusal for refusal in topology.refusals if reason in refusal.reason], topology.refusals


def test_exponent_three_is_no_square() -> None:
    topology = elementwise(
        GIVEN + "t = Constant<value_float=3.0>() q = Pow(x, t) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(x, r)"
    )
    assert not fused(topology)


def test_a_statistic_that_is_read_elsewhere() -> None:
    text = f"g (float[2,8] x) => (float[2,8] y, float[2,1] v) {{ {GIVEN} {RMS['division']} }}"
    topology = recognised(text)
    assert not fused(topology)
    assert any("output of the graph" in refusal.reason for refusal in topology.refusals)


def test_a_statistic_that_dropped_its_axes_meets_other_rows() -> None:
    """On a square value, x / sqrt(mean_i) without keepdims divides column i by the root of row i."""
    body = "q = Mul(x, x) v = ReduceMean<keepdims=0>(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(x, r)"
    topology = elementwise(GIVEN + body, shape="8,8")
    assert not fused(topology)
    assert any("does not meet the rows" in refusal.reason for refusal in topology.refusals)


def test_a_mean_that_dropped_its_axes() -> None:
    body = "m = ReduceMean<keepdims=0>(x, ax) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(c, r)"
    topology = elementwise(GIVEN + body, shape="8,8")
    (node,) = fused(topology)
    assert node.attrs["kind"] == "rms" and node.inputs[0] == "c"
    check_same_function(topology)


def test_a_dropped_axis_put_back() -> None:
    body = "q = Mul(x, x) v = ReduceMean<keepdims=0>(q, ax) s = Add(v, eps) r = Sqrt(s) u = Unsqueeze(r, ax) y = Div(x, u)"
    topology = elementwise(GIVEN + body, shape="8,8")
    (node,) = fused(topology)
    assert node.attrs["kind"] == "rms"
    check_same_function(topology)
