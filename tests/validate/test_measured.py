"""What a search reports: never above the truth, and near it where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from lipaudit.bounds.scalar import Lower, Norm, Upper
from lipaudit.validate import Measurement, to_record
from tests.validate.small import graph_of, measure, mlp

RNG = np.random.default_rng(0)


def lower(measurement: Measurement) -> float:
    assert measurement.status == "measured", measurement.reason
    assert measurement.lower is not None
    return float(measurement.lower)


def norm_of_matrix(w: np.ndarray, norm: Norm) -> float:
    """Operator norm of x -> x w (rows are inputs)."""
    w = w.astype(np.float32).astype(np.float64)
    return {"l2": lambda: np.linalg.norm(w, 2), "l1": lambda: np.abs(w).sum(1).max(), "linf": lambda: np.abs(w).sum(0).max()}[norm]()


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("shape", [(3, 2), (40, 30), (30, 60), (200, 5)])
def test_linear_map_is_measured_at_its_norm(shape: tuple[int, int], norm: Norm) -> None:
    w = np.random.default_rng(shape[0]).standard_normal(shape)
    truth = norm_of_matrix(w, norm)
    for box in (None, (-1.0, 2.0)):
        found = lower(measure(mlp([w]), box, norm=norm).headline)
        # The mixed norms of large matrices are a combinatorial search; the l2 one is not.
        floor = 1 - 1e-4 if norm == "l2" or min(shape) <= 24 else 0.9
        assert truth * floor <= found <= truth * (1 + 1e-15)


def test_linear_convolution_is_measured_at_its_norm() -> None:
    w = np.random.default_rng(1).standard_normal((4, 2, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])
    graph = graph_of([node], {"x": [1, 2, 6, 6]}, ["y"], {"w": w})
    columns = []
    for i in range(72):
        padded = np.pad(np.eye(72)[i].reshape(2, 6, 6), [(0, 0), (1, 1), (1, 1)])
        image = [
            [np.sum(w.astype(np.float64) * padded[None, :, r : r + 3, c : c + 3], axis=(1, 2, 3)) for c in (0, 2, 4)] for r in (0, 2, 4)
        ]
        columns.append(np.array(image).transpose(2, 0, 1).reshape(-1))
    truth = np.linalg.norm(np.array(columns), 2)
    assert truth * (1 - 1e-4) <= lower(measure(graph).headline) <= truth * (1 + 1e-14)


def test_a_kink_far_from_the_origin_is_found() -> None:
    # Slope 1 everywhere but where x sums to more than 3 (of at most 4): there it is 10.
    w1 = np.concatenate([np.eye(4), np.ones((4, 1))], axis=1)
    w2 = np.concatenate([np.full((4, 1), 0.5), [[4.5]]])
    graph = mlp([w1, w2], biases=[np.array([0, 0, 0, 0, -3.0]), np.array([0.0])])
    truth = np.linalg.norm(0.5 + 4.5 * np.ones(4))
    found = lower(measure(graph, (0.0, 1.0)).headline)
    assert 0.99 * truth <= found <= truth


def test_absolute_values_in_a_chain() -> None:
    # |x| twice: every sign pattern has the same gain, the product of the norms in the right direction.
    q = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    graph = mlp([2 * np.eye(6), q.T.copy()], activation="Abs")
    assert 2 * (1 - 1e-4) <= lower(measure(graph).headline) <= 2 * (1 + 1e-6)


def test_sigmoid_is_steepest_at_its_middle() -> None:
    node = helper.make_node("Sigmoid", ["s"], ["y"])
    shift = helper.make_node("Add", ["x", "b"], ["s"])
    graph = graph_of([shift, node], {"x": [1, 3]}, ["y"], {"b": np.array([0.5, -1.0, 0.25])})
    assert 0.99 * 0.25 <= lower(measure(graph, (-2.0, 2.0)).headline) <= 0.25


def test_two_inputs_are_measured_jointly_and_alone() -> None:
    a, b = np.array([[3.0]]), np.array([[4.0]])
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]), helper.make_node("MatMul", ["z", "b"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]), helper.make_node("Neg", ["p"], ["v"]),
    ]  # fmt: skip
    graph = graph_of(nodes, {"x": [1, 1], "z": [1, 1]}, ["y", "v"], {"a": a, "b": b})
    found = measure(graph, outputs=["y"])
    assert 5 * (1 - 1e-4) <= lower(found.headline) <= 5
    assert 3 * (1 - 1e-4) <= lower(found.matrix["x", "y"]) <= 3
    assert 4 * (1 - 1e-4) <= lower(found.matrix["z", "y"]) <= 4
    both = measure(graph)
    assert set(both.matrix) == {("x", "y"), ("x", "v"), ("z", "y"), ("z", "v")}
    assert both.matrix["z", "v"].status == "not-measured"
    truth = np.linalg.norm([[3, 4], [-3, 0]], 2)
    assert truth * (1 - 1e-4) <= lower(both.headline) <= truth


def test_regions_are_measured_from_their_own_entry() -> None:
    w1, w2 = 5 * np.eye(3), np.diag([0.5, 0.25, 2.0])
    graph = mlp([w1, w2])
    regions = [("first", ("x",), "m0"), ("second", ("a0",), "m1"), ("whole", ("x",), "m1"), ("absent", ("x",), "nowhere")]
    found = measure(graph, (0.5, 1.0), regions=regions)
    assert 5 * (1 - 1e-4) <= lower(found.regions["first"]) <= 5
    assert 2 * (1 - 1e-4) <= lower(found.regions["second"]) <= 2
    assert lower(found.regions["whole"]) <= 10
    assert found.regions["absent"].status == "not-measured"


def test_a_constant_function_is_not_measured() -> None:
    nodes = [helper.make_node("Mul", ["x", "zero"], ["z"]), helper.make_node("Add", ["z", "one"], ["y"])]
    found = measure(graph_of(nodes, {"x": [1, 4]}, ["y"], {"zero": np.zeros((1, 4)), "one": np.ones((1, 4))})).headline
    assert found.status == "not-measured"
    assert found.lower is None
    assert "No difference" in found.reason


def test_equal_logits_do_not_count_as_a_difference() -> None:
    # Softmax of equal logits is constant; rounding alone moves it.
    nodes = [helper.make_node("MatMul", ["x", "w"], ["l"]), helper.make_node("Softmax", ["l"], ["y"])]
    found = measure(graph_of(nodes, {"x": [1, 50]}, ["y"], {"w": np.full((50, 10), 0.3)})).headline
    assert found.status == "not-measured"


def test_tiny_outputs_are_measured() -> None:
    w = np.full((3, 3), 1e-25)
    assert 3e-25 * (1 - 1e-3) <= lower(measure(mlp([w])).headline) <= 3.0001e-25


def test_the_box_is_kept_exactly() -> None:
    # 0.1 and 0.7 are no float32 numbers; the witness must lie inside all the same.
    found = measure(mlp([RNG.standard_normal((6, 4))]), (0.1, 0.7))
    for key in ("x:x", "y:x"):
        point = found.witness_arrays[key].astype(np.float64)
        assert point.min() >= 0.1
        assert point.max() <= 0.7


def test_an_input_fixed_at_an_odd_number_stays_there() -> None:
    w = RNG.standard_normal((2, 2))
    graph = mlp([w])
    from lipaudit.topology.sources import find_sources
    from lipaudit.validate import QUICK, validate

    lo, hi = np.array([[0.1, -1.0]]), np.array([[0.1, 1.0]])
    found = validate(graph, find_sources(graph), {"x": (lo, hi)}, budget=QUICK, device="cpu")
    assert found.witness_arrays["x:x"][0, 0] == found.witness_arrays["y:x"][0, 0] == 0.1
    truth = np.linalg.norm(w.astype(np.float32).astype(np.float64)[1])
    assert truth * (1 - 1e-4) <= lower(found.headline) <= truth * (1 + 1e-15)


def test_embedding_starts_at_table_rows_and_cuts_the_graph() -> None:
    table = np.random.default_rng(3).standard_normal((7, 4))
    w = np.random.default_rng(4).standard_normal((4, 2))
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    graph = graph_of(nodes, {"ids": [1, 3]}, ["y"], {"table": table, "w": w}, types={"ids": TensorProto.INT64})
    found = measure(graph)
    truth = np.linalg.norm(w.astype(np.float32).astype(np.float64), 2)
    assert truth * (1 - 1e-4) <= lower(found.headline) <= truth * (1 + 1e-15)
    assert set(found.witness_arrays) == {"x:e", "y:e"}


def test_quotient_parts_are_consistent() -> None:
    headline = measure(mlp([RNG.standard_normal((5, 5))])).headline
    assert headline.difference is not None
    assert headline.distance is not None
    assert headline.lower is not None
    assert not headline.lower.exceeds(Upper(float(headline.difference)) / Lower(float(headline.distance)) * Upper("1.0001"))
    record = to_record(headline)
    assert record.status == "measured"
    assert record.lower is not None
    assert float(record.lower) <= float(headline.lower)
    assert record.witness["seed"] == 0


def test_given_inputs_are_a_start() -> None:
    # The only slope is in a spot that nobody finds by chance.
    spot = np.linspace(0.15, 0.85, 12)
    nodes = [
        helper.make_node("Sub", ["x", "spot"], ["d"]), helper.make_node("Mul", ["d", "d"], ["q"]),
        helper.make_node("ReduceSum", ["q"], ["r"], keepdims=1), helper.make_node("Sub", ["small", "r"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]  # fmt: skip
    graph = graph_of(nodes, {"x": [1, 12]}, ["y"], {"spot": spot[None], "small": np.array([[0.001]])})
    blind = measure(graph, (0.0, 1.0)).headline
    told = measure(graph, (0.0, 1.0), inputs={"x": spot[None] + 0.002}).headline
    assert told.status == "measured"
    assert blind.lower is None or told.lower is None or not blind.lower.exceeds(Upper(float(told.lower)))
