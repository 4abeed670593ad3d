"""The region tree on small graphs: kinds, parts, entries and exits."""

from __future__ import annotations

import random

import pytest

from lipaudit.topology import Region, Topology, recognise
from lipaudit.topology.laws import check, walk
from tests.topology.generated import SHAPES, Builder
from tests.topology.spelled import recognised

W = "float[8,8] w = {" + ",".join("1.0" if i % 9 == 0 else "0.1" for i in range(64)) + "}"


def tree(body: str, *, inputs: str = "float[1,4,8] x", outputs: str = "float[1,4,8] y", domains: str = "") -> Topology:
    topology = recognised(f"g ({inputs}) => ({outputs}) <{W}> {{ {body} }}", domains=domains)
    check(topology)
    return topology


def kinds(topology: Topology) -> list[str]:
    return [region.kind for region in walk(topology.root)]


def only(topology: Topology, kind: str) -> Region:
    (found,) = [region for region in walk(topology.root) if region.kind == kind]
    return found


def child(region: Region, role: str) -> Region:
    return next(c for c in region.children if c.path.rsplit("/", 1)[1].startswith(role))


RESIDUAL = {
    "identity": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Add(x, c)", "identity"),
    "other order": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Add(c, x)", "identity"),
    "sum": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Sum(x, c)", "identity"),
    "subtracted": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Sub(x, c)", "identity"),
    "projected": ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) s = MatMul(x, w) y = Add(s, c)", "projection"),
    "scaled": ("k = Constant<value_float=0.5>() a = MatMul(x, w) b = Relu(a) s = Mul(x, k) y = Add(b, s)", "scaled"),
    "cast": ("a = MatMul(x, w) b = Relu(a) h = Cast<to=10>(x) s = Cast<to=1>(h) y = Add(b, s)", "identity"),
    "two branches": ("a = MatMul(x, w) b = Relu(a) c = MatMul(x, w) d = Tanh(c) e = Add(x, b) y = Add(e, d)", "identity"),
    "one sum of two branches": ("a = MatMul(x, w) b = Relu(a) c = MatMul(x, w) d = Tanh(c) e = Add(b, d) y = Add(e, x)", "identity"),
    "sum of three": ("a = MatMul(x, w) b = Relu(a) c = MatMul(x, w) d = Tanh(c) y = Sum(b, x, d)", "identity"),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual(name: str) -> None:
    body, shortcut = RESIDUAL[name]
    topology = tree(body)
    region = only(topology, "residual")
    assert region.facts["shortcut"] == shortcut
    assert region.entries == ("x",) and region.exit == "y"
    assert region.facts["branches"] == (2 if "branches" in name or "three" in name else 1)
    assert set(region.nodes) == {node.name for node in topology.graph.nodes}


def test_the_activation_after_the_join_is_outside() -> None:
    topology = tree("a = MatMul(x, w) b = Relu(a) c = Add(x, b) y = Relu(c)")
    assert [c.kind for c in topology.root.children] == ["residual", "activation"]


def test_an_addition_of_a_bias_is_no_join() -> None:
    topology = tree("k = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]>() a = MatMul(x, w) b = Add(a, k) y = Relu(b)")
    assert kinds(topology) == ["model", "affine-chain", "activation"]
    assert topology.root.children[0].nodes == tuple(node.name for node in topology.graph.nodes[:2])


def test_a_value_added_to_itself_is_linear() -> None:
    assert kinds(tree("a = Add(x, x) y = MatMul(a, w)")) == ["model", "affine-chain"]


def test_two_nonlinear_sides_are_no_residual() -> None:
    topology = tree("a = MatMul(x, w) b = Relu(a) c = MatMul(x, w) d = Tanh(c) y = Add(b, d)")
    assert "residual" not in kinds(topology)
    assert "nonlinear" in only(topology, "other").reason


def test_rotary_embedding_is_one_linear_map() -> None:
    body = (
        "a = Constant<value_floats=[0.8,0.6,0.8,0.6,0.8,0.6,0.8,0.6]>() b = Constant<value_floats=[0.6,0.8,0.6,0.8,0.6,0.8,0.6,0.8]>() "
        "z = Constant<value_ints=[0]>() h = Constant<value_ints=[4]>() e = Constant<value_ints=[8]>() ax = Constant<value_ints=[2]>() "
        "p = Slice(x, z, h, ax) q = Slice(x, h, e, ax) n = Neg(q) r = Concat<axis=2>(n, p) c = Mul(x, a) s = Mul(r, b) y = Add(c, s)"
    )
    topology = tree(body)
    assert kinds(topology) == ["model", "affine-block"]
    assert only(topology, "affine-block").facts["rotary"]


def test_gate_concat_and_dense_concat() -> None:
    gate = tree("a = MatMul(x, w) s = Sigmoid(a) c = Neg(w) b = MatMul(x, c) y = Mul(s, b)")
    assert only(gate, "gate").exit == "y"
    dense = tree("a = MatMul(x, w) b = Relu(a) y = Concat<axis=2>(x, b)", outputs="float[1,4,16] y")
    assert only(dense, "dense-concat").entries == ("x",)
    parallel = tree("a = MatMul(x, w) b = Relu(a) c = Tanh(x) y = Concat<axis=2>(b, c)", outputs="float[1,4,16] y")
    assert only(parallel, "concat").entries == ("x",)


def test_a_mixture_of_experts() -> None:
    """Weights of one Softmax, split, times experts of their own; a sum of gates of their own is none."""
    body = (
        "r = MatMul(x, w) p = Softmax<axis=2>(r) z = Constant<value_ints=[0]>() o = Constant<value_ints=[1]>() "
        "t = Constant<value_ints=[2]>() ax = Constant<value_ints=[2]>() "
        "g1 = Slice(p, z, o, ax) g2 = Slice(p, o, t, ax) a = MatMul(x, w) e1 = Relu(a) c = MatMul(x, w) "
        "e2 = Tanh(c) m1 = Mul(g1, e1) m2 = Mul(e2, g2) "
    )
    assert only(tree(body + "y = Add(m1, m2)"), "mixture-of-experts").exit == "y"
    apart = "r = MatMul(x, w) p = Sigmoid(r) q = Tanh(r) a = MatMul(x, w) c = MatMul(x, w) m1 = Mul(p, a) m2 = Mul(q, c) y = Add(m1, m2)"
    assert "mixture-of-experts" not in kinds(tree(apart))


def test_a_recurrence_that_was_unrolled() -> None:
    """Each step reads the next token and what the step before it left, through the same matrices."""
    steps = "one = Constant<value_ints=[1]>() "
    for k in range(5):
        steps += f"i{k} = Constant<value_ints=[{k}]>() j{k} = Constant<value_ints=[{k + 1}]>() x{k} = Slice(x, i{k}, j{k}, one) "
    steps += "h0 = Tanh(x0) "
    for k in range(1, 4):
        steps += f"u{k} = MatMul(h{k - 1}, w) s{k} = Add(u{k}, x{k}) h{k} = Tanh(s{k}) "
    recurrent = tree(steps + "y = Concat<axis=1>(h0, h1, h2, h3)")
    assert "unrolled-recurrence" in kinds(recurrent)
    twice = "a = MatMul(x, w) b = Relu(a) c = MatMul(x, w) d = Tanh(c) y = Add(b, d)"
    assert "unrolled-recurrence" not in kinds(tree(twice))


def test_mlp_and_gated_mlp() -> None:
    plain = tree("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)")
    assert only(plain, "mlp").facts["gated"] is False
    gated = tree("a = MatMul(x, w) s = Sigmoid(a) t = Mul(a, s) c = Neg(w) b = MatMul(x, c) g = Mul(t, b) y = MatMul(g, w)")
    assert only(gated, "mlp").facts["gated"] is True
    assert [c.kind for c in only(gated, "mlp").children] == ["gate", "affine-chain"]


ATTENTION = (
    "q = MatMul({0}, w) k = MatMul({0}, w) v = MatMul({0}, w) t = Transpose<perm=[0,2,1]>(k) l = MatMul(q, t) "
    "p = Softmax<axis=-1>(l) o = MatMul(p, v) z = MatMul(o, w) "
)


def test_attention_inside_a_residual_block() -> None:
    """The shortcut begins where queries, keys and values do: the attention is still one region with one entry."""
    topology = tree(ATTENTION.format("x") + "y = Add(z, x)")
    region = only(topology, "attention")
    assert region.entries == ("x",) and region.exit == "z"
    assert [c.path.rsplit("/", 1)[1].split(":")[0] for c in region.children] == ["query", "key", "value", "core", "output"]
    assert child(region, "query").exit == "q" and child(region, "value").exit == "v"
    assert only(topology, "residual").facts["shortcut"] == "identity"


def test_packed_projection() -> None:
    body = (
        "a = Concat<axis=1>(w, w, w) h = MatMul(x, a) q, k, v = Split<axis=2, num_outputs=3>(h) t = "
        "Transpose<perm=[0,2,1]>(k) l = MatMul(q, t) "
        "p = Softmax<axis=-1>(l) o = MatMul(p, v) z = MatMul(o, w) y = Add(x, z)"
    )
    region = only(tree(body), "attention")
    assert region.entries == ("x",) and next(c.path.rsplit("/", 1)[1].split(":")[0] for c in region.children) == "query-key-value"


def test_cross_attention_has_several_entries() -> None:
    body = (
        "q = MatMul(x, w) k = MatMul(m, w) v = MatMul(m, w) t = Transpose<perm=[0,2,1]>(k) l = MatMul(q, t) "
        "p = Softmax<axis=-1>(l) o = MatMul(p, v) y = MatMul(o, w) "
    )
    topology = tree(body, inputs="float[1,4,8] x, float[1,4,8] m")
    region = only(topology, "attention")
    assert len(region.entries) >= 2 and region.exit == "y"


def test_stack_and_head() -> None:
    block = "a{0} = MatMul({1}, w) b{0} = Relu(a{0}) c{0} = MatMul(b{0}, w) x{0} = Add({1}, c{0}) "
    body = "x0 = MatMul(x, w) " + "".join(block.format(i, f"x{i - 1}") for i in range(1, 5)) + "r = Relu(x4) y = MatMul(r, w)"
    topology = tree(body)
    stack = only(topology, "stack")
    assert stack.facts["layers"] == 4 and stack.facts["stack"]["blocks"] == 4
    assert next(c.path for c in topology.root.children).startswith("model/stem")
    assert topology.root.children[-1].path.startswith("model/head")


def test_a_cache_does_not_hide_the_blocks() -> None:
    """An input and an output in the middle of the network are beside the trunk."""
    body = "a = MatMul(x, w) b = Add(a, cache) seen = Relu(b) y0 = Add(x, seen) d = MatMul(y0, w) e = Relu(d) side = Tanh(e) y = Add(e, y0)"
    topology = tree(body, inputs="float[1,4,8] x, float[1,4,8] cache", outputs="float[1,4,8] y, float[1,4,8] seen, float[1,4,8] side")
    blocks = [region for region in walk(topology.root) if region.kind == "residual"]
    assert [block.exit for block in blocks] == ["y0", "y"]
    assert blocks[0].entries == ("x", "cache")
    assert any("beside the main one" in region.reason for region in walk(topology.root))


def test_two_towers_join() -> None:
    topology = tree(
        "a = MatMul(x, w) b = Relu(a) c = MatMul(z, w) d = Tanh(c) e = Concat<axis=2>(b, d) y = Relu(e)",
        inputs="float[1,4,8] x, float[1,4,8] z",
        outputs="float[1,4,16] y",
    )
    assert only(topology, "concat").entries == ("x", "z")


def test_a_recurrent_cell_is_one_leaf() -> None:
    text = (
        "g (float[3,1,2] x) => (float[3,1,1,2] y, float[1,1,2] h) <float[1,6,2] w = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,1.1,1.2}, "
        "float[1,6,2] r = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,1.1,1.2}> { y, h = GRU<hidden_size=2>(x, w, r) }"
    )
    topology = recognised(text)
    check(topology)
    (leaf,) = topology.root.children
    assert leaf.kind == "recurrent" and set(leaf.facts["exits"]) == {"y", "h"}


def test_unused_outputs_do_not_break_the_law() -> None:
    tree("a = MatMul(x, w) p, q = Split<axis=2, num_outputs=2>(a) y0 = Relu(p) y = Concat<axis=2>(y0, y0)")


@pytest.mark.parametrize("shape", SHAPES)
def test_deep_and_wide_graphs(shape: str) -> None:
    """More nodes than Python may recurse."""
    topology = recognise(SHAPES[shape](2_400))
    check(topology)
    if shape == "residuals":
        assert sum(region.kind == "residual" for region in walk(topology.root)) == 600


@pytest.mark.parametrize("seed", range(120))
def test_the_law_holds_on_random_graphs(seed: int) -> None:
    rng = random.Random(seed)
    build = Builder()
    values = ["x"]
    for _ in range(rng.randint(1, 40)):
        recent = values[-rng.choice((1, 2, 4, 40)) :]
        a, b = rng.choice(recent), rng.choice(recent)
        op = rng.choice(["Relu", "MatMul", "Add", "Mul", "Concat", "Split", "Sigmoid", "Sum"])
        if op == "MatMul":
            values.append(build.add(op, a, "w"))
        elif op in ("Add", "Mul", "Concat", "Sum"):
            values.append(build.add(op, a, b, *(rng.sample(values, 1) if op == "Sum" else [])))
        elif op == "Split":
            first = build.add(op, a, outputs=2)
            values += [first, f"{first}_1"]
        else:
            values.append(build.add(op, a))
    outputs = [values[-1], *rng.sample(values, min(len(values), rng.randint(0, 3)))]
    topology = recognise(build.graph(*outputs))
    check(topology)


def test_recognise_is_deterministic() -> None:
    one, two = recognise(SHAPES["dense"](300)), recognise(SHAPES["dense"](300))
    assert [(r.path, r.kind, r.nodes, r.entries, r.exit) for r in walk(one.root)] == [
        (r.path, r.kind, r.nodes, r.entries, r.exit) for r in walk(two.root)
    ]
