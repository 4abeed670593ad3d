"""GELU, SiLU, HardSwish and Mish in the spellings of exporters: recognised, and the same function."""

from __future__ import annotations

import pytest

from tests.topology.spelled import check_same_function, elementwise, fused, recognised

C = "c = Constant<value_float={}>() "


def constants(**values: float) -> str:
    return " ".join(f"{name} = Constant<value_float={value!r}>()" for name, value in values.items()) + " "


GELU_ERF = {
    "torch": "a = Div(x, s) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "half on the left": "h = Mul(half, x) a = Div(x, s) b = Erf(a) c = Add(one, b) y = Mul(h, c)",
    "half inside": "a = Div(x, s) b = Erf(a) c = Add(b, one) d = Mul(half, c) y = Mul(x, d)",
    "half distributed": "a = Div(x, s) b = Erf(a) e = Mul(b, half) c = Add(e, half) y = Mul(c, x)",
    "multiplied argument": "a = Mul(x, r) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "divided by two": "a = Mul(r, x) b = Erf(a) c = Add(b, one) d = Mul(c, x) y = Div(d, two)",
    "casts and identities": "i = Identity(x) a = Div(i, s) b = Erf(a) q = Cast<to=1>(b) c = Add(q, one) d = Mul(x, c) y = Mul(d, half)",
    "dropout between": "a = Div(x, s) b = Erf(a) c = Add(b, one) d = Mul(x, c) e = Dropout(d) y = Mul(e, half)",
    "without half": "a = Div(x, s) b = Erf(a) c = Add(b, one) y = Mul(x, c)",
}


@pytest.mark.parametrize("spelling", GELU_ERF)
def test_erf_gelu(spelling: str) -> None:
    given = constants(half=0.5, one=1.0, two=2.0, s=1.4142135381698608, r=0.7071067690849304)
    topology = elementwise(given + GELU_ERF[spelling])
    (node,) = fused(topology)
    assert (node.kind, node.attrs["approximate"], node.inputs, node.outputs) == ("lipaudit::Gelu", "none", ("x",), ("y",))
    assert node.attrs["k"] == (1.0 if spelling == "without half" else 0.5)
    assert len(topology.graph.nodes) == 1
    check_same_function(topology)


GELU_TANH = {
    "pow": "p = Pow(x, three) q = Mul(p, k) r = Add(x, q) t = Mul(r, s) u = Tanh(t) v = Add(u, one) w = Mul(x, half) y = Mul(w, v)",
    "products": "xx = Mul(x, x) p = Mul(xx, x) q = Mul(k, p) r = Add(q, x) t = Mul(s, r) u = Tanh(t) v = Add(one, u) "
    "w = Mul(v, half) y = Mul(x, w)",
    "factored": "xx = Mul(x, x) q = Mul(xx, k) o = Add(q, one) r = Mul(x, o) t = Mul(s, r) u = Tanh(t) v = Add(one, "
    "u) w = Mul(v, x) y = Mul(w, half)",
    "casts": "p = Pow(x, three) q = Mul(p, k) r = Add(x, q) t = Mul(r, s) c = Cast<to=1>(t) u = Tanh(c) v = Add(u, "
    "one) w = Mul(x, half) y = Mul(w, v)",
}


@pytest.mark.parametrize("spelling", GELU_TANH)
def test_tanh_gelu(spelling: str) -> None:
    given = constants(half=0.5, one=1.0, three=3.0, k=0.044714998453855515, s=0.7978845834732056)
    topology = elementwise(given + GELU_TANH[spelling])
    (node,) = fused(topology)
    assert (node.kind, node.attrs["approximate"]) == ("lipaudit::Gelu", "tanh")
    assert node.attrs["a"] == 0.7978845834732056 and node.attrs["b"] == 0.7978845834732056 * 0.044714998453855515
    assert len(topology.graph.nodes) == 1
    check_same_function(topology)


SELF_GATES = {
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", "ai.onnx::Swish"),
    "silu swapped": ("s = Sigmoid(x) y = Mul(s, x)", "ai.onnx::Swish"),
    "quick gelu": ("c = Constant<value_float=1.7020000219345093>() t = Mul(x, c) s = Sigmoid(t) y = Mul(x, s)", "ai.onnx::Swish"),
    "mish": ("s = Softplus(x) t = Tanh(s) y = Mul(x, t)", "ai.onnx::Mish"),
    "mish by logarithm": ("e = Exp(x) o = Constant<value_float=1.0>() p = Add(o, e) s = Log(p) t = Tanh(s) y = Mul(t, x)", "ai.onnx::Mish"),
    "hard swish by clip": (
        (
            "t = Constant<value_float=3.0>() l = Constant<value_float=0.0>() h = Constant<value_float=6.0>() "
            "a = Add(x, t) c = Clip(a, l, h) m = Mul(x, c) y = Div(m, h)"
        ),
        "ai.onnx::HardSwish",
    ),
    "hard swish divided first": (
        (
            "t = Constant<value_float=3.0>() l = Constant<value_float=0.0>() h = Constant<value_float=6.0>() "
            "a = Add(t, x) c = Clip(a, l, h) d = Div(c, h) y = Mul(d, x)"
        ),
        "ai.onnx::HardSwish",
    ),
    "hard sigmoid": ("s = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, s)", "lipaudit::HardSwish"),
    "hard sigmoid by default": ("s = HardSigmoid(x) y = Mul(s, x)", "lipaudit::HardSwish"),
}


@pytest.mark.parametrize("spelling", SELF_GATES)
def test_self_gated(spelling: str) -> None:
    body, kind = SELF_GATES[spelling]
    topology = elementwise(body)
    (node,) = topology.graph.nodes
    assert node.kind == kind and node.inputs == ("x",) and node.outputs == ("y",)
    check_same_function(topology, scale=4.0)


REFUSED = {
    "another value is gated": ("g (float[4] x, float[4] z) => (float[4] y) { s = Sigmoid(x) y = Mul(z, s) }", "another value"),
    "the gate is an output": ("g (float[4] x) => (float[4] y, float[4] s) { s = Sigmoid(x) y = Mul(x, s) }", "readers or is an output"),
    "adds 0.9": (
        "g (float[4] x) => (float[4] y) { o = Constant<value_float=0.9>() e = Erf(x) a = Add(e, o) y = Mul(a, x) }",
        "adds 0.8999",
    ),
    "erf of another value": (
        "g (float[4] x, float[4] z) => (float[4] y) { o = Constant<value_float=1.0>() e = Erf(z) a = Add(e, o) y = Mul(a, x) }",
        "another value",
    ),
    "fourth power": (
        (
            "g (float[4] x) => (float[4] y) { o = Constant<value_float=1.0>() f = Constant<value_float=4.0>() p = Pow(x, f) q = Add(x, p) "
            "t = Tanh(q) a = Add(t, o) y = Mul(a, x) }"
        ),
        "no polynomial",
    ),
    "clip ends elsewhere": (
        (
            "g (float[4] x) => (float[4] y) { t = Constant<value_float=3.0>() l = Constant<value_float=0.0>() "
            "h = Constant<value_float=6.0>() s = Constant<value_float=7.0>() a = Add(x, t) c = Clip(a, l, h) m = Mul(x, c) y = Div(m, s) }"
        ),
        "the clip ends at 6",
    ),
    "broadcast": (
        "g (float[4] x) => (float[3,4] y) { s = Sigmoid(x) k = Constant<value_ints=[3,4]>() e = Expand(s, k) y = Mul(x, e) }",
        "goes to Expand",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    text, reason = REFUSED[name]
    topology = recognised(text)
    assert not fused(topology, "Swish", "Mish", "HardSwish")
    assert [refusal for refusal in topology.refusals if reason in refusal.reason], topology.refusals


def test_covers_are_the_original_nodes() -> None:
    topology = elementwise("s = Sigmoid(x) y = Mul(x, s)")
    assert set(topology.graph.nodes[0].covers) == {node.name for node in topology.simplified.nodes}
