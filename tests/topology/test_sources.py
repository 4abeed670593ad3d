"""Where gains start, and what moves with it."""

from __future__ import annotations

import numpy as np

from lipaudit.topology.sources import find_sources, moving
from tests.topology.spelled import parsed, recognised

TABLE = "t = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0,6.0]>() sh = Constant<value_ints=[3,2]>() table = Reshape(t, sh) "


def names(text: str) -> list[tuple[str, str]]:
    return [(source.kind, source.name) for source in find_sources(parsed(text))]


def test_float_inputs_are_sources_and_integers_are_not() -> None:
    text = "g (float[2] x, int64[2] n, float16[2] h) => (float[2] y) { a = Cast<to=1>(n) b = Cast<to=1>(h) c = Add(x, a) y = Add(c, b) }"
    assert names(text) == [("input", "x"), ("input", "h")]


def test_weights_listed_as_inputs_are_not_sources() -> None:
    graph = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add(x, w) }")
    assert [source.name for source in find_sources(graph)] == ["x"]


def test_embedding_lookup() -> None:
    graph = parsed(f"g (int64[1,4] ids) => (float[1,4,2] y) {{ {TABLE} e = Gather(table, ids) y = Relu(e) }}")
    (source,) = find_sources(graph)
    assert (source.kind, source.name, source.indices) == ("embedding", "e", "ids")
    assert source.value.shape == (1, 4, 2) and source.table is not None
    np.testing.assert_array_equal(source.table.array(), [[1, 2], [3, 4], [5, 6]])
    assert moving(graph, [source]) == {"e", "y"}


def test_a_table_read_by_computed_positions_is_constant() -> None:
    text = (
        f"g (float[1,3,2] x) => (float[1,3,2] y) {{ {TABLE} s = Shape<start=1, end=2>(x) p = "
        "Constant<value_ints=[0,1,2]>() e = Gather(table, p) y = Add(x, e) }"
    )
    assert names(text) == [("input", "x")]


def test_a_rotary_table_is_no_source() -> None:
    text = f"g (float[1,4,2] x, int64[1,4] pos) => (float[1,4,2] y) {{ {TABLE} e = Gather(table, pos) u = Identity(e) y = Mul(x, u) }}"
    assert names(text) == [("input", "x")]


def test_quantized_table() -> None:
    text = (
        "g (int64[4] ids) => (float[4,2] y) <int8[3,2] q = {1, 2, 3, 4, 5, -6}, float s = {0.5}, int8 z = {1}> "
        "{ e = Gather(q, ids) d = DequantizeLinear(e, s, z) y = Relu(d) }"
    )
    (source,) = find_sources(parsed(text))
    assert source.name == "d" and source.table is not None
    np.testing.assert_array_equal(source.table.array(), [[0.0, 0.5], [1.0, 1.5], [2.0, -3.5]])


def test_no_source_lies_behind_another() -> None:
    """A codebook read by ArgMax of activations: the activations are the source, the lookup is a jump."""
    text = (
        f"g (int64[1,4] ids) => (float[1,4,2] y) {{ {TABLE} e = Gather(table, ids) k = ArgMax<axis=2, "
        "keepdims=0>(e) y = Gather(table, k) }"
    )
    graph = parsed(text)
    assert [source.name for source in find_sources(graph)] == ["e"]
    assert "y" in moving(graph, find_sources(graph))


def test_conversions_are_the_last_resort() -> None:
    text = "g (uint8[2,3] image) => (float[2,3] y) { f = Cast<to=1>(image) i = Cast<to=6>(f) y = Cast<to=1>(i) }"
    assert names(text) == [("embedding", "f")]


def test_shapes_do_not_move() -> None:
    graph = parsed("g (float[2,3] x) => (int64[2] y, float[2,3] z) { z = Relu(x) y = Shape(z) }")
    assert "y" not in moving(graph, find_sources(graph))


def test_subgraphs_move_with_what_they_capture() -> None:
    text = (
        "g (float[2] x, bool c) => (float[2] y) { y = If (c) "
        "<then_branch = a () => (float[2] u) { u = Relu(x) }, else_branch = b () => (float[2] v) { v = Neg(x) }> }"
    )
    topology = recognised(text)
    assert topology.root.nodes == (topology.graph.nodes[0].name,) and topology.root.entries == ("x",)
