"""Facts that guidelines look at."""

from __future__ import annotations

from typing import Any

import pytest

from lipaudit.topology import Region, Topology
from lipaudit.topology.laws import walk
from tests.topology.spelled import recognised
from tests.topology.test_activations import constants
from tests.topology.test_regions import only, tree


def norm(topology: Topology) -> dict[str, Any]:
    (found,) = [region.facts["norm"] for region in walk(topology.root) if "norm" in region.facts]
    return found


def test_layer_normalization() -> None:
    text = (
        "g (float16[2,4] x) => (float16[2,4] y) <float[4] s1 = {1.0, 1.0, 1.0, 1.0}, float[4] b1 = {0.0, 0.0, 0.0, 0.0}> "
        "{ s = Cast<to=10>(s1) b = Cast<to=10>(b1) y = LayerNormalization<epsilon=1e-8>(x, s, b) }"
    )
    facts = norm(recognised(text))
    assert (facts["kind"], facts["width"], facts["dtype"], facts["stat_dtype"]) == ("layer", 4, "float16", "float32")
    assert facts["has_floor"] and facts["affine_default"] and facts["gain_max"] == 1.0 and facts["epsilon"] == pytest.approx(1e-8)


def test_spelled_out_statistics_in_half() -> None:
    given = "two = Cast<to=10>(two32) eps = Cast<to=10>(eps32) ax = Constant<value_ints=[-1]>() "
    body = "q = Pow(x, two) v = ReduceMean(q, ax) s = Add(v, eps) r = Sqrt(s) y = Div(x, r)"
    facts = norm(recognised(f"g (float16[2,8] x) => (float16[2,8] y) {{ {constants(two32=2.0, eps32=1e-3)} {given} {body} }}"))
    assert (facts["kind"], facts["width"], facts["stat_dtype"]) == ("rms", 8, "float16")


def test_spelled_out_statistics_in_single_around_half() -> None:
    body = (
        "c = Cast<to=1>(x) ax = Constant<value_ints=[-1]>() q = Pow(c, two) v = ReduceMean(q, ax) s = Add(v, eps) "
        "r = Sqrt(s) d = Div(c, r) y = Cast<to=10>(d)"
    )
    facts = norm(recognised(f"g (float16[2,8] x) => (float16[2,8] y) {{ {constants(two=2.0, eps=1e-6)} {body} }}"))
    assert (facts["kind"], facts["stat_dtype"]) == ("rms", "float32")


def batch(gamma: str, beta: str, mean: str, variance: str, attributes: str = "") -> dict[str, Any]:
    text = (
        f"g (float[1,2,3,3] x) => (float[1,2,3,3] y) <float[2] g = {{{gamma}}}, float[2] b = {{{beta}}}, float[2] m = "
        f"{{{mean}}}, float[2] v = {{{variance}}}> "
        f"{{ y = BatchNormalization{attributes}(x, g, b, m, v) }}"
    )
    return norm(recognised(text))


def test_batch_normalization() -> None:
    trained = batch("2.0, -3.0", "0.0, 0.0", "0.5, 0.0", "1.0, 0.0", "<epsilon=0.25>")
    assert trained["kind"] == "batch" and trained["collapsed"] == 1 and trained["scale_max"] == pytest.approx(6.0)
    assert not trained["stats_default"] and not trained["affine_default"]
    untouched = batch("2.0, 1.0", "0.0, 0.0", "0.0, 0.0", "1.0, 1.0")
    assert untouched["stats_default"] and not untouched["affine_default"]
    fresh = batch("1.0, 1.0", "0.0, 0.0", "0.0, 0.0", "1.0, 1.0")
    assert fresh["stats_default"] and fresh["affine_default"]


def test_a_batch_normalization_in_an_affine_chain_keeps_its_facts() -> None:
    text = (
        "g (float[1,2,3,3] x) => (float[1,2,3,3] y) <float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[2] s = {1.0, 2.0}> "
        "{ a = Conv(x, w) b = BatchNormalization(a, s, s, s, s) y = Relu(b) }"
    )
    topology = recognised(text)
    chain = topology.root.children[0]
    assert chain.kind == "affine-chain" and len(chain.children) == 2
    assert norm(topology)["kind"] == "batch"


def test_group_normalization_spelled_with_reshapes() -> None:
    text = (
        "g (float[1,4,3,3] x) => (float[1,4,3,3] y) <float[2] s = {1.0, 1.0}, float[2] b = {0.0, 0.0}, int64[3] k = "
        "{1, 2, -1}, int64[4] o = {1, 4, 3, 3}> "
        "{ a = Reshape(x, k) c = InstanceNormalization(a, s, b) y = Reshape(c, o) }"
    )
    facts = norm(recognised(text))
    assert (facts["kind"], facts["width"]) == ("group", 18)


def residual(body: str) -> dict[str, Any]:
    return only(tree(body), "residual").facts["residual"]


def test_dead_branches() -> None:
    zero = "z = Sub(w, w) "
    assert residual(zero + "a = MatMul(x, w) b = Relu(a) c = MatMul(b, z) y = Add(x, c)")["branch_zero"]
    assert residual(constants(k=0.0) + "a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Mul(c, k) y = Add(x, d)")["branch_zero"]
    assert not residual("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Add(x, c)")["branch_zero"]
    # A shift after the zero is still added.
    assert not residual(zero + constants(k=1.0) + "a = MatMul(x, w) b = Relu(a) c = MatMul(b, z) d = Add(c, k) y = Add(x, d)")[
        "branch_zero"
    ]


def test_scales() -> None:
    facts = residual(constants(k=0.25) + "a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Mul(c, k) y = Add(x, d)")
    assert (facts["branch_scale"], facts["shortcut_scale"]) == (0.25, 1.0)
    facts = residual(constants(k=2.0) + "a = MatMul(x, w) b = Relu(a) s = Mul(x, k) y = Add(s, b)")
    assert (facts["branch_scale"], facts["shortcut_scale"]) == (1.0, 2.0)


def test_runs_of_weight_layers() -> None:
    plain = tree("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) y = MatMul(d, w)")
    assert plain.root.facts["region"]["run_without_shortcut"] == 3
    bridged = tree("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) e = Add(b, d) y = MatMul(e, w)")
    assert bridged.root.facts["region"]["run_without_shortcut"] == 1


def test_saturating_runs() -> None:
    layers = "a = MatMul(x, w) b = Sigmoid(a) c = MatMul(b, w) d = Sigmoid(c) e = MatMul(d, w) "
    assert tree(layers + "y = Sigmoid(e)").root.facts["region"]["saturating_run"] == 3
    assert tree(layers + "y = Relu(e)").root.facts["region"]["saturating_run"] == 2


NODES = {
    "log of softmax": ("p = Softmax(x) r = Identity(p) y = Log(r)", "log_of_softmax"),
    "double softmax": ("p = Softmax<axis=-1>(x) s = Mul(p, k) y = Softmax<axis=-1>(s)", "softmax_of_softmax"),
    "bare exponential": ("e = Exp(x) s = ReduceSum<keepdims=1>(e, ax) y = Div(e, s)", "bare_exp_sum"),
}
SOUND = {
    "log with a floor": "p = Softmax(x) r = Add(p, k) y = Log(r)",
    "softmax of another axis": "p = Softmax<axis=1>(x) y = Softmax<axis=2>(p)",
    "softmax after a layer": "p = Softmax(x) m = Exp(p) y = Softmax(m)",
    "maximum taken off": "m = ReduceMax<keepdims=1>(x, ax) c = Sub(x, m) e = Exp(c) s = ReduceSum<keepdims=1>(e, ax) y = Div(e, s)",
    "maximum by way of Max and Reshape": (
        "m0 = ReduceMax<keepdims=0>(x, ax) f = Constant<value_float=-1e38>() m1 = Max(m0, f) sh = "
        "Constant<value_ints=[1,4,1]>() m = Reshape(m1, sh) "
        "c = Sub(x, m) e = Exp(c) s = ReduceSum<keepdims=1>(e, ax) y = Div(e, s)"
    ),
}


def node_facts(body: str) -> set[str]:
    text = f"g (float[1,4,8] x) => (float[1,4,8] y) {{ {constants(k=0.5)} ax = Constant<value_ints=[2]>() {body} }}"
    return {name for facts in recognised(text).node_facts.values() for name in facts}


@pytest.mark.parametrize("name", NODES)
def test_numeric_traps(name: str) -> None:
    body, fact = NODES[name]
    assert node_facts(body) == {fact}


@pytest.mark.parametrize("name", SOUND)
def test_sound_spellings(name: str) -> None:
    assert node_facts(SOUND[name]) == set()


def test_attentions_in_a_row() -> None:
    one = (
        "q{0} = MatMul({1}, w) k{0} = MatMul({1}, w) v{0} = MatMul({1}, w) t{0} = Transpose<perm=[0,2,1]>(k{0}) l{0} = MatMul(q{0}, t{0}) "
        "p{0} = Softmax<axis=-1>(l{0}) o{0} = MatMul(p{0}, v{0}) "
    )
    topology = tree(one.format(1, "x") + one.format(2, "o1") + "y = MatMul(o2, w)")
    regions: list[Region] = [region for region in walk(topology.root) if region.kind == "attention"]
    assert sorted(region.facts["attention"]["serial"] for region in regions) == [1, 2]
