"""Hand-derived constants: what the certificate must give to the last digit that its slack allows, in every norm.

Where the exact constant is attained the certificate may exceed it only by the slack of a verified norm (1e-6) and never lie
below it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.helper import make_node

from lipaudit.bounds.scalar import Lower, Norm
from tests.pipeline import certificate, make_model

NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")
R2, R3 = math.sqrt(2), math.sqrt(3)

Case = tuple[str, Sequence[onnx.NodeProto], Mapping[str, Sequence[int]], Sequence[str], Mapping[str, Any], tuple[float, float, float]]

ONES3 = np.ones((1, 1, 3))
CASES: list[Case] = [
    ("identity", [make_node("Identity", ["x"], ["y"])], {"x": [1, 3]}, ["y"], {}, (1, 1, 1)),
    ("x used twice", [make_node("Add", ["x", "x"], ["y"])], {"x": [1, 3]}, ["y"], {}, (2, 2, 2)),
    ("x minus x", [make_node("Sub", ["x", "x"], ["y"])], {"x": [1, 3]}, ["y"], {}, (0, 0, 0)),
    ("concat of x twice", [make_node("Concat", ["x", "x"], ["y"], axis=1)], {"x": [1, 3]}, ["y"], {}, (2, R2, 1)),
    (
        "gather repeats, negative index",
        [make_node("Gather", ["x", "i"], ["y"], axis=1)],
        {"x": [1, 4]},
        ["y"],
        {"i": np.array([0, -4, 2, 0])},
        (3, R3, 1),
    ),
    ("broadcast add", [make_node("Add", ["x", "c"], ["y"])], {"x": [1, 1]}, ["y"], {"c": np.zeros((1, 5))}, (5, math.sqrt(5), 1)),
    ("expand", [make_node("Expand", ["x", "s"], ["y"])], {"x": [1, 2]}, ["y"], {"s": np.array([4, 2])}, (4, 2, 1)),
    (
        "max pool 3 stride 1 overlaps",
        [make_node("MaxPool", ["x"], ["y"], kernel_shape=[3])],
        {"x": [1, 1, 8]},
        ["y"],
        {},
        (3, R3, 1),
    ),
    (
        "max pool 3x3 stride 1",
        [make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3])],
        {"x": [1, 1, 8, 8]},
        ["y"],
        {},
        (9, 3, 1),
    ),
    (
        "max pool without overlap",
        [make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[2])],
        {"x": [1, 1, 8]},
        ["y"],
        {},
        (1, 1, 1),
    ),
    (
        "average pool excluding pads",
        [make_node("AveragePool", ["x"], ["y"], kernel_shape=[2], pads=[1, 1])],
        {"x": [1, 1, 2]},
        ["y"],
        {},
        (1.5, math.sqrt(1.5), 1),
    ),
    ("global average", [make_node("GlobalAveragePool", ["x"], ["y"])], {"x": [1, 2, 3, 3]}, ["y"], {}, (1 / 9, 1 / 3, 1)),
    ("softmax", [make_node("Softmax", ["x"], ["y"])], {"x": [1, 4]}, ["y"], {}, (0.5, 0.5, 0.5)),
    ("softmax of one", [make_node("Softmax", ["x"], ["y"])], {"x": [1, 1]}, ["y"], {}, (0, 0, 0)),
    (
        "residual with a negative branch counts both",
        [make_node("Relu", ["x"], ["r"]), make_node("Mul", ["r", "c"], ["b"]), make_node("Add", ["x", "b"], ["y"])],
        {"x": [1, 3]},
        ["y"],
        {"c": np.full((1, 3), 2.0)},
        (3, 3, 3),
    ),
    (
        "concat of dependent branches",
        [make_node("Mul", ["x", "a"], ["u"]), make_node("Mul", ["x", "b"], ["v"]), make_node("Concat", ["u", "v"], ["y"], axis=1)],
        {"x": [1, 2]},
        ["y"],
        {"a": np.full((1, 2), 3.0), "b": np.full((1, 2), 4.0)},
        (7, 5, 4),
    ),
    (
        "split then concat is free",
        [
            make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
            make_node("Relu", ["a"], ["r"]),
            make_node("Concat", ["b", "r"], ["y"], axis=1),
        ],
        {"x": [1, 4]},
        ["y"],
        {},
        (1, 1, 1),
    ),
    (
        "split then concat with a repeat",
        [make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), make_node("Concat", ["a", "a", "b"], ["y"], axis=1)],
        {"x": [1, 4]},
        ["y"],
        {},
        (2, R2, 1),
    ),
    (
        "two outputs of one input",
        [make_node("Relu", ["x"], ["y"]), make_node("Tanh", ["x"], ["z"])],
        {"x": [1, 3]},
        ["y", "z"],
        {},
        (2, R2, 1),
    ),
    ("two inputs, one sum", [make_node("Add", ["x", "z"], ["y"])], {"x": [1, 3], "z": [1, 3]}, ["y"], {}, (1, R2, 2)),
    (
        "two inputs, two outputs",
        [make_node("Relu", ["x"], ["y"]), make_node("Relu", ["z"], ["w"])],
        {"x": [1, 3], "z": [1, 3]},
        ["y", "w"],
        {},
        (1, 1, 1),
    ),
    ("two inputs concatenated", [make_node("Concat", ["x", "z"], ["y"], axis=1)], {"x": [1, 3], "z": [1, 2]}, ["y"], {}, (1, 1, 1)),
    ("pad reflect", [make_node("Pad", ["x", "p"], ["y"], mode="reflect")], {"x": [1, 3]}, ["y"], {"p": np.array([0, 2, 0, 0])}, (2, R2, 1)),
    ("reduce sum", [make_node("ReduceSum", ["x", "a"], ["y"])], {"x": [1, 4]}, ["y"], {"a": np.array([1])}, (1, 2, 4)),
    ("reduce l2", [make_node("ReduceL2", ["x", "a"], ["y"])], {"x": [1, 4]}, ["y"], {"a": np.array([1])}, (1, 1, 2)),
    ("log softmax l1", [make_node("LogSoftmax", ["x"], ["y"])], {"x": [1, 4]}, ["y"], {}, (3, 2, 2)),
    (
        "matmul right: rows for l1, columns for linf",
        [make_node("MatMul", ["x", "w"], ["y"])],
        {"x": [1, 2]},
        ["y"],
        {"w": np.array([[1.0, 0.0], [1.0, 0.0]])},
        (1, R2, 2),
    ),
    (
        "two linear layers are one",
        [make_node("MatMul", ["x", "a"], ["h"]), make_node("MatMul", ["h", "b"], ["y"])],
        {"x": [1, 2]},
        ["y"],
        {"a": np.array([[3.0, 0.0], [0.0, 1.0]]), "b": np.array([[1.0, 0.0], [0.0, 5.0]])},
        (5, 5, 5),
    ),
    (
        "conv 1-D all ones, padded",
        [make_node("Conv", ["x", "w"], ["y"], pads=[1, 1])],
        {"x": [1, 1, 7]},
        ["y"],
        {"w": ONES3},
        (3, 1 + 2 * math.cos(math.pi / 8), 3),
    ),
    (
        "conv with stride 3 does not overlap",
        [make_node("Conv", ["x", "w"], ["y"], strides=[3])],
        {"x": [1, 1, 9]},
        ["y"],
        {"w": ONES3},
        (1, R3, 3),
    ),
    (
        "conv dilated 2, padded",
        [make_node("Conv", ["x", "w"], ["y"], dilations=[2], pads=[2, 2])],
        {"x": [1, 1, 14]},
        ["y"],
        {"w": ONES3},
        (3, 1 + 2 * math.cos(math.pi / 8), 3),
    ),
    (
        "conv in groups is the largest group",
        [make_node("Conv", ["x", "w"], ["y"], group=2, kernel_shape=[1])],
        {"x": [1, 2, 5]},
        ["y"],
        {"w": np.array([[[2.0]], [[-7.0]]])},
        (7, 7, 7),
    ),
    (
        "transposed conv swaps l1 and linf",
        [make_node("ConvTranspose", ["x", "w"], ["y"], strides=[3], kernel_shape=[3])],
        {"x": [1, 1, 3]},
        ["y"],
        {"w": ONES3},
        (3, R3, 1),
    ),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_exact_constant(case: Case, norm: Norm) -> None:
    _, nodes, inputs, outputs, constants, expected = case
    found = certificate(make_model(nodes, inputs, outputs, constants), norm).headline
    truth = expected[NORMS.index(norm)]
    assert found.status == "finite", found.reasons
    assert found.offset.is_zero
    assert not Lower(truth * (1 - 2**-50)).exceeds(found.slope), found.slope
    assert float(found.slope) <= truth * (1 + 2e-6)


def test_layer_normalization_scale_over_root_epsilon() -> None:
    nodes = [make_node("LayerNormalization", ["x", "g", "b"], ["y"], epsilon=1e-2)]
    found = certificate(make_model(nodes, {"x": [1, 4]}, ["y"], {"g": np.full(4, 3.0), "b": np.ones(4)})).headline
    truth = 3.0 / math.sqrt(float(np.float32(1e-2)))
    assert truth * (1 - 1e-12) <= float(found.slope) <= truth * (1 + 1e-6)


def test_matrix_of_gains_beside_the_joint_bound() -> None:
    nodes = [make_node("Mul", ["x", "two"], ["u"]), make_node("Add", ["u", "z"], ["y"])]
    found = certificate(make_model(nodes, {"x": [1, 2], "z": [1, 2]}, ["y"], {"two": np.full((1, 2), 2.0)}))
    assert [float(found.matrix[source, "y"].slope) for source in ("x", "z")] == [2.0, 1.0]
    assert float(found.headline.slope) == pytest.approx(math.sqrt(5), abs=1e-12)
    assert float(found.headline.slope) ** 2 >= 5.0


def test_product_of_two_unbounded_values_is_named() -> None:
    nodes = [
        make_node("Relu", ["x"], ["a"]),
        make_node("Sin", ["x"], ["s"]),
        make_node("Exp", ["a"], ["e"], name="the_exp"),
        make_node("Mul", ["e", "s"], ["y"], name="product"),
    ]
    found = certificate(make_model(nodes, {"x": [1, 3]}, ["y"])).headline
    assert found.status == "unbounded"
    assert {reason.node for reason in found.reasons} & {"the_exp", "product"}
    assert certificate(make_model(nodes, {"x": [1, 3]}, ["y"]), boxes=["x=-1:1"]).headline.status == "finite"


def test_rounding_carries_a_full_step() -> None:
    nodes = [make_node("Round", ["x"], ["r"]), make_node("Mul", ["r", "c"], ["y"])]
    found = certificate(make_model(nodes, {"x": [1, 4]}, ["y"], {"c": np.full((1, 4), 3.0)})).headline
    assert float(found.slope) == 3.0
    assert float(found.offset) == 6.0  # 3 * sqrt(4) * a full step


def test_box_makes_slopes_local() -> None:
    nodes = [make_node("Sigmoid", ["x"], ["y"])]
    found = certificate(make_model(nodes, {"x": [1, 2]}, ["y"]), boxes=["x=2:3"]).headline
    sigmoid = 1 / (1 + math.exp(-2.0))
    truth = sigmoid * (1 - sigmoid)
    assert truth * (1 - 1e-12) <= float(found.slope) <= truth * (1 + 1e-9)
    far = certificate(make_model(nodes, {"x": [1, 2]}, ["y"])).headline
    assert float(far.slope) == 0.25


def test_output_that_does_not_depend_on_the_input() -> None:
    nodes = [make_node("Shape", ["x"], ["s"]), make_node("Cast", ["s"], ["y"], to=1)]
    assert certificate(make_model(nodes, {"x": [1, 3]}, ["y"])).headline.slope.is_zero


def test_unknown_operator_is_named() -> None:
    nodes = [make_node("Strange", ["x"], ["h"], domain="custom", name="odd"), make_node("Relu", ["h"], ["y"])]
    found = certificate(make_model(nodes, {"x": [1, 3]}, ["y"], domains={"custom": 1})).headline
    assert found.status == "unknown"
    assert found.reasons[0].node == "odd"


@pytest.mark.parametrize(("norm", "truth"), [("l1", 1.0), ("l2", R2), ("linf", 2.0)])
def test_gain_to_the_outputs_behind_a_split(norm: Norm, truth: float) -> None:
    """Parts of one value that are added again: a change of all of them arrives twice in linf, and once in l1."""
    nodes = [
        make_node("Relu", ["x"], ["h"]),
        make_node("Split", ["h"], ["a", "b"], axis=1, num_outputs=2),
        make_node("Add", ["a", "b"], ["y"]),
    ]
    found = certificate(make_model(nodes, {"x": [1, 4]}, ["y"]), norm)
    after = [bound.after for bound in found.regions.values() if bound.region.exit == "h"]
    assert after
    for bound in after:
        assert not Lower(truth * (1 - 2**-50)).exceeds(bound), bound
