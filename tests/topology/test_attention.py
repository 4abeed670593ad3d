"""The core of attention in all spellings: recognised, and the same function."""

from __future__ import annotations

import pytest

from tests.topology.spelled import check_same_function, fused, recognised
from tests.topology.test_activations import constants

GIVEN = constants(root=0.5, s=0.25, d=4.0, zero=0.0, cap=5.0, big=-3.4028234663852886e38)
HEAD = "(float[1,2,5,16] q, float[1,2,5,16] k, float[1,2,5,16] v"

CORES = {
    "after": "t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t) m = Mul(l, s) p = Softmax<axis=-1>(m) y = MatMul(p, v)",
    "after, divided": "t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t) m = Div(l, d) p = Softmax<axis=3>(m) y = MatMul(p, v)",
    "before, on both": "t = Transpose<perm=[0,1,3,2]>(k) a = Mul(q, root) b = Mul(t, root) l = MatMul(a, b) p = "
    "Softmax<axis=-1>(l) y = MatMul(p, v)",
    "before, on the key": "b = Mul(k, s) t = Transpose<perm=[0,1,3,2]>(b) l = MatMul(q, t) p = Softmax<axis=-1>(l) y = MatMul(p, v)",
    "before, on the query": "t = Transpose<perm=[0,1,3,2]>(k) a = Div(q, d) l = MatMul(a, t) p = Softmax<axis=-1>(l) y = MatMul(p, v)",
    "guarded": (
        "t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t) m = Mul(s, l) p0 = Softmax<axis=-1>(m) n = IsNaN(p0) p = "
        "Where(n, zero, p0) y = MatMul(p, v)"
    ),
    "dropout and casts": (
        "t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t) m = Mul(l, s) c = Cast<to=1>(m) p0 = Softmax<axis=-1>(c) p1 = Cast<to=1>(p0) "
        "p = Dropout(p1) y = MatMul(p, v)"
    ),
    "einsum": 'l = Einsum<equation="bhid,bhjd->bhij">(q, k) m = Mul(l, s) p = Softmax<axis=-1>(m) y = '
    'Einsum<equation="bhij,bhjd->bhid">(p, v)',
}


@pytest.mark.parametrize("spelling", CORES)
def test_core(spelling: str) -> None:
    topology = recognised(f"g {HEAD}) => (float[1,2,5,16] y) {{ {GIVEN} {CORES[spelling]} }}")
    (node,) = topology.graph.nodes
    assert node.kind == "lipaudit::Attention" and node.inputs == ("q", "k", "v", "") and node.outputs == ("y",)
    expected = {"k_transposed": 0, "scale": 0.25, "causal": 0, "softcap": 0.0, "nan_guard": int(spelling == "guarded")}
    assert node.attrs == expected
    check_same_function(topology)


def test_key_stored_transposed() -> None:
    topology = recognised(
        "g (float[1,2,5,16] q, float[1,5,2,16] k0, float[1,2,5,16] v) => (float[1,2,5,16] y) "
        "{ k = Transpose<perm=[0,2,3,1]>(k0) l = MatMul(q, k) p = Softmax<axis=-1>(l) y = MatMul(p, v) }"
    )
    (node,) = fused(topology)
    assert node.attrs["k_transposed"] == 1 and node.inputs[1] == "k" and node.attrs["scale"] == 1.0
    check_same_function(topology)


LOGITS = "t = Transpose<perm=[0,1,3,2]>(k) l0 = MatMul(q, t) l = Mul(l0, s) "
REST = " p = Softmax<axis=-1>(m) y = MatMul(p, v) "
LOWER = ", ".join(str(float(j <= i)) for i in range(5) for j in range(5))
FLOATS = f"fl = Constant<value_floats=[{LOWER}]>() sq = Constant<value_ints=[5,5]>() lo = Reshape(fl, sq) "
CAUSAL = FLOATS + "mask = Cast<to=9>(lo) minus = Log(zero) "

MASKS = {
    # masks, extra inputs, causal, a bias that remains
    "additive float input": (", float[1,1,5,5] w", "m = Add(l, w)", 0, "w"),
    "additive, other order": (", float[1,1,5,5] w", "m = Add(w, l)", 0, "w"),
    "causal, chosen": ("", CAUSAL + "m = Where(mask, l, minus)", 1, ""),
    "causal, inverted": ("", CAUSAL + "up = Not(mask) m = Where(up, minus, l)", 1, ""),
    "causal, added": ("", CAUSAL + "w = Where(mask, zero, minus) m = Add(l, w)", 1, ""),
    "causal and padding": (
        ", bool[1,1,1,5] pad",
        CAUSAL + "both = And(mask, pad) w = Where(both, zero, minus) m = Add(l, w)",
        1,
        "w",
    ),
    "padding, chosen": (", bool[1,1,1,5] pad", CAUSAL + "m = Where(pad, l, minus)", 0, "pad"),
    "padding, inverted": (", bool[1,1,1,5] pad", CAUSAL + "m = Where(pad, minus, l)", 0, "pad/not"),
    "finite numbers mask nothing": ("", CAUSAL + "w = Where(mask, zero, big) m = Add(l, w)", 0, "w"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    inputs, mask, causal, bias = MASKS[name]
    topology = recognised(f"g {HEAD}{inputs}) => (float[1,2,5,16] y) {{ {GIVEN} {LOGITS} {mask} {REST} }}")
    (node,) = fused(topology)
    assert (node.attrs["causal"], node.inputs[3]) == (causal, bias)
    if "padding" not in name:  # a row without any key is NaN, in both
        check_same_function(topology)


def test_soft_cap() -> None:
    body = LOGITS + "c0 = Div(l, cap) c1 = Tanh(c0) m = Mul(c1, cap)" + REST
    topology = recognised(f"g {HEAD}) => (float[1,2,5,16] y) {{ {GIVEN} {body} }}")
    (node,) = fused(topology)
    assert node.attrs["softcap"] == 5.0 and node.attrs["scale"] == 0.25
    check_same_function(topology, scale=4.0)


def test_scale_is_rounded_up() -> None:
    third = 0.3333333432674408
    body = f"c = Constant<value_float={third}>() t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t) m = Div(l, c)" + REST
    topology = recognised(f"g {HEAD}) => (float[1,2,5,16] y) {{ {body} }}")
    (node,) = fused(topology)
    assert node.attrs["scale"] * third >= 1.0


REFUSED = {
    "softmax over queries": (LOGITS + "p = Softmax<axis=2>(l) y = MatMul(p, v)", "not over the last axis"),
    "weights are an output": (LOGITS + "p = Softmax<axis=-1>(l) y = MatMul(p, v)", "are an output"),
    "scaled after a bias": (LOGITS + "m0 = Add(l, w) m = Mul(m0, s)" + REST, "before its logits are scaled"),
    "masked by a finite number": (
        LOGITS + "n = Constant<value_float=-1e4>() h = Cast<to=9>(w) m = Where(h, l, n)" + REST,
        "depends on data",
    ),
    "logits of one value": ("m = Mul(q, s) p = Softmax<axis=-1>(m) t = Transpose<perm=[0,1,3,2]>(p) y = MatMul(p, t) ", "several readers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    body, reason = REFUSED[name]
    extra = ", float[1,2,5,5] p" if name == "weights are an output" else ""
    shape = "1,2,5,5" if name == "logits of one value" else "1,2,5,16"
    topology = recognised(f"g {HEAD}, float[1,1,5,5] w) => (float[{shape}] y{extra}) {{ {GIVEN} {body} }}")
    assert not fused(topology)
    assert [refusal for refusal in topology.refusals if reason in refusal.reason], topology.refusals


def test_finite_fill_of_a_boolean_mask_is_refused() -> None:
    """The masked logits do not move at all: that is neither a mask nor a bias."""
    body = LOGITS + CAUSAL + "m = Where(mask, l, big)" + REST
    topology = recognised(f"g {HEAD}) => (float[1,2,5,16] y) {{ {GIVEN} {body} }}")
    assert not fused(topology)
    assert any("keep a weight" in refusal.reason for refusal in topology.refusals)


def test_a_classifier_is_no_attention() -> None:
    topology = recognised("g (float[1,8] x) => (float[1,8] y) { y = Softmax<axis=-1>(x) }")
    assert not fused(topology)
