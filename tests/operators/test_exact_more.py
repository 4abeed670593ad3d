"""Hand-derived constants of the rarer operators in (l1, l2, linf), and the steps of quantised outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from lipaudit.bounds.scalar import Norm
from lipaudit.operators.base import Finite, Unbounded, Unknown
from tests.operators.onenode import NORMS, Moving, One
from tests.operators.structured import OneNode, box
from tests.operators.test_random_nodes import i64

R2, R3 = math.sqrt(2), math.sqrt(3)


def near(found: Sequence[float], expected: Sequence[float], slack: float = 1e-9) -> None:
    """Not below the exact value, and not by more than ``slack`` above it (verified norms of matrices are not sharper)."""
    for a, b in zip(found, expected, strict=True):
        assert b * (1 - 4e-16) <= a <= b * (1 + slack) + 1e-12, (found, expected)


def x(*shape: int, lo: float = -math.inf, hi: float = math.inf) -> Moving:
    return Moving(shape, lo, hi)


ROW = np.array([[1.0, 2.0], [0.0, -2.0]])
PAIR = np.array([3.0, 1.0])
GOLDEN = (1 + math.sqrt(5)) / 2
CASES: list[tuple[One, int, tuple[float, float, float]]] = [
    # x M: row sums of |M| in l1, column sums in linf, the larger singular value sqrt((9 + sqrt(65))/2) in l2
    (One("Einsum", [x(1, 2), ROW], {"equation": "ij,jk->ik"}), 0, (3, math.sqrt((9 + math.sqrt(65)) / 2), 4)),
    (One("Einsum", [x(2, 3), np.ones((2, 3))], {"equation": "ij,ij->"}), 0, (1, math.sqrt(6), 6)),
    (One("Einsum", [x(3, 3)], {"equation": "ii->"}), 0, (1, R3, 3)),
    (One("Einsum", [x(2), np.array([1.0, 2.0, 2.0])], {"equation": "i,j->ij"}), 0, (5, 3, 2)),
    (One("Einsum", [x(2, 2, lo=-1, hi=1), x(2, 2, lo=-1, hi=3)], {"equation": "ij,jk->ik"}), 0, (6, 6, 6)),
    (One("Det", [x(2, 2, lo=-1, hi=2)]), 0, (2, 4, 8)),
    (One("Det", [x(3, 3, lo=-1, hi=1)]), 0, (3, 3 * R3, 9 * R3)),
    (One("CumProd", [x(2, lo=-1, hi=1), np.asarray(0)], opset=26), 0, (2, GOLDEN, 2)),
    (One("DFT", [x(1, 4, 2), np.asarray(4), np.asarray(1)]), 0, (4, 2, 4)),
    (One("DFT", [x(1, 4, 2), np.asarray(4), np.asarray(1)], {"inverse": 1}), 0, (1, 0.5, 1)),
    (One("DFT", [x(1, 3, 2), np.asarray(4), np.asarray(1)], {"inverse": 1, "onesided": 1}), 0, (1, R2 / 2, 1)),
    (One("STFT", [x(1, 8, 1), np.asarray(2), None, np.asarray(4)], {"onesided": 0}, shapes=((1, 3, 4, 2),)), 0, (8, 2 * R2, 4)),
    (One("AffineGrid", [x(1, 2, 3), i64([1, 1, 2, 2])], {"align_corners": 1}), 0, (4, 2, 3)),
    (One("Col2Im", [x(1, 4, 4), i64([3, 3]), i64([2, 2])]), 0, (1, 2, 4)),
    (One("NegativeLogLikelihoodLoss", [x(2, 2), i64([0, 1]), PAIR], {"reduction": "sum"}, opset=13), 0, (3, math.sqrt(10), 4)),
    (One("NegativeLogLikelihoodLoss", [x(2, 2), i64([0, 1]), PAIR], opset=13), 0, (0.75, math.sqrt(10) / 4, 1)),
    (One("SoftmaxCrossEntropyLoss", [x(2, 3), i64([0, 1]), PAIR], {"reduction": "sum"}, opset=13), 0, (3, math.sqrt(20), 8)),
    (One("SoftmaxCrossEntropyLoss", [x(2, 3), i64([0, 1])], {"reduction": "none"}, opset=13, outputs=2), 0, (3, math.sqrt(5), 2)),
    (One("SwiGLU", [x(2, lo=0, hi=1), x(2, lo=-2, hi=1)], opset=28), 1, (1 / (1 + math.exp(-1)),) * 3),
    (One("Scaler", [x(2, 2)], {"scale": [2.0, -3.0], "offset": [1.0]}, opset=1, domain="ai.onnx.ml"), 0, (3, 3, 3)),
    (One("LinearRegressor", [x(2, 2)], {"coefficients": [3.0, 4.0]}, opset=1, domain="ai.onnx.ml", shapes=((2, 1),)), 0, (4, 5, 7)),
    (One("Normalizer", [x(1, 3, lo=1, hi=2)], {"norm": "L1"}, opset=1, domain="ai.onnx.ml"), 0, (2 / 3, 2 / 3, 2 / 3)),
    (One("Normalizer", [x(1, 3, lo=1, hi=2)], {"norm": "MAX"}, opset=1, domain="ai.onnx.ml"), 0, (2, 2, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "i", "expected"), CASES, ids=[f"{k}-{one.op}" for k, (one, _, _) in enumerate(CASES)])
def test_constants(one: One, i: int, expected: tuple[float, float, float]) -> None:
    near(one.slopes(i), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_grid_sample(norm: Norm) -> None:
    """Two samples at one pixel; in the grid, D sqrt(C) sqrt(sum size^2)/2 with D = 3, C = 2, sizes 2 and 1 (align_corners)."""
    twice = np.array([[[[-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]]])
    image = OneNode("GridSample", [box((1, 1, 1, 3)), twice], [(1, 1, 1, 3)], {"align_corners": 1}, version=22)
    near((image.slope(0, norm),), ({"l1": 2.0, "l2": R2, "linf": 1.0}[norm],))
    grid = OneNode("GridSample", [box((1, 2, 2, 3), -1, 2), box((1, 1, 1, 2), -1, 1)], [(1, 2, 1, 1)], {"align_corners": 1}, version=22)
    near((grid.slope(1, norm),), ({"l1": 6.0, "l2": 1.5 * R2 * math.sqrt(5), "linf": 4.5}[norm],))


@pytest.mark.parametrize("norm", NORMS)
def test_deform_conv(norm: Norm) -> None:
    """1 x 1 kernel [2, -1] over two channels: V = 3 or sqrt(5) or 2 (row, l2, column); D = 2, two axes, two channels."""
    weight = np.array([[[[2.0]], [[-1.0]]]])
    one = OneNode("DeformConv", [box((1, 2, 3, 3), -1, 1), weight, box((1, 2, 3, 3))], [(1, 1, 3, 3)], {"kernel_shape": (1, 1)}, version=19)
    size = {"l1": 2.0, "l2": math.sqrt(5), "linf": 3.0}[norm]
    near((one.slope(2, norm),), (size * 2 * {"l1": 2.0, "l2": 2.0, "linf": 2.0}[norm],))
    still = OneNode("DeformConv", [box((1, 2, 3, 3)), weight, np.zeros((1, 2, 3, 3))], [(1, 1, 3, 3)], {"kernel_shape": (1, 1)}, version=19)
    near((still.slope(0, norm),), (size,), 1e-9)


def test_indices_jump_and_selections_do_not_grow() -> None:
    unpool = OneNode("MaxUnpool", [box((1, 1, 2), 0, 1), box((1, 1, 2), 0, 3)], [(1, 1, 4)], {"kernel_shape": (2,)}, version=11)
    assert [unpool.slope(0, norm) for norm in NORMS] == [1, 1, 1]
    found = unpool.gain(1, "l1")
    assert isinstance(found, Finite) and found.slope.is_zero
    near((float(found.offset),), (4,))
    assert isinstance(OneNode("MaxUnpool", [box((1, 1, 2)), box((1, 1, 2))], [(1, 1, 4)], version=11).gain(1), Unbounded)
    cache = One("TensorScatter", [x(1, 4, 2), x(1, 2, 2), i64([1])], {}, opset=24)
    near(tuple(float(cache.joint(norm)[0]) for norm in NORMS), (1, R2, 2))


@pytest.mark.parametrize(
    ("op", "operands", "shape", "attrs"),
    [
        ("QLinearAdd", 2, (4,), {}),
        ("QLinearMul", 2, (4,), {}),
        ("QLinearSigmoid", 1, (4,), {}),
        ("QLinearLeakyRelu", 1, (4,), {"alpha": 0.5}),
        ("QLinearSoftmax", 1, (4,), {}),
        ("QLinearReduceMean", 1, (4,), {}),
        ("QLinearAveragePool", 1, (1, 1, 4), {"kernel_shape": (1,)}),
        ("QLinearGlobalAveragePool", 1, (1, 1, 4), {}),
    ],
)
def test_a_quantised_output_moves_by_one_step_more(op: str, operands: int, shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
    triple: list[Any] = [box(shape, 0, 255), np.array(0.5), np.zeros((), dtype=np.uint8)]
    args = triple * operands + [np.array(0.25), np.zeros((), dtype=np.uint8)]
    one = OneNode(op, args, [shape], attrs, domain="com.microsoft", version=1, dtype="uint8")
    n = math.prod(shape)
    near(tuple(offset(one, 0, norm) for norm in NORMS), (n, math.sqrt(n), 1))


def offset(one: OneNode, i: int, norm: Norm) -> float:
    found = one.gain(i, norm)
    assert isinstance(found, Finite), found
    return float(found.offset)


def test_steps_of_concat_where_and_products() -> None:
    half, zero = np.array(0.5), np.zeros((), dtype=np.uint8)
    q = box((1, 2), 0, 255)
    pair = np.ones((2, 3), dtype=np.uint8)
    mask, kernel = np.ones((1, 2), dtype=bool), np.ones((1, 1, 1), dtype=np.uint8)
    stored = [half, zero]
    ms: dict[str, Any] = {"domain": "com.microsoft", "dtype": "uint8"}
    image = box((1, 1, 3), 0, 255)
    cases = [
        (OneNode("QLinearConcat", [*stored, q, *stored], [(1, 2)], {"axis": 0}, **ms), 2, 2),
        (OneNode("QLinearWhere", [mask, q, *stored, q, *stored, *stored], [(1, 2)], **ms), 1, 2),
        (OneNode("QGemm", [q, *stored, pair, *stored, None, *stored], [(1, 3)], **ms), 0, 3),
        (OneNode("QLinearMatMul", [q, *stored, pair, *stored, *stored], [(1, 3)], version=21, dtype="uint8"), 0, 3),
        (OneNode("QLinearConv", [image, *stored, kernel, *stored, *stored], [(1, 1, 3)], version=10, dtype="uint8"), 0, 3),
        (
            OneNode("QuantizeLinear", [box((3,), -9, 9), half, np.zeros((), np.uint16)], [(3,)], domain="com.microsoft", dtype="uint16"),
            0,
            3,
        ),
    ]
    near([cases[-1][0].slope(0, norm) for norm in NORMS], (2, 2, 2))
    for one, i, n in cases:
        near(tuple(offset(one, i, norm) for norm in NORMS), (n, math.sqrt(n), 1))


def test_tree_ensemble_of_version_5() -> None:
    """Two trees over one feature: leaves 1 | 3.5 and -1 | 1; the sum moves by 2.5 + 2, for each of two samples."""

    def tensor(*values: float) -> Any:
        from lipaudit.graph.ir import Constant

        return Constant.of("t", np.array(values))

    attrs = {
        "tree_roots": (0, 1), "nodes_trueleafs": (1, 1), "nodes_falseleafs": (1, 1), "nodes_truenodeids": (0, 2),
        "nodes_falsenodeids": (1, 3), "leaf_targetids": (0, 0, 0, 0), "leaf_weights": tensor(1.0, 3.5, -1.0, 1.0), "n_targets": 1,
    }  # fmt: skip
    one = OneNode("TreeEnsemble", [box((2, 1))], [(2, 1)], attrs, domain="ai.onnx.ml", version=5)
    near(tuple(offset(one, 0, norm) for norm in NORMS), (9, 4.5 * R2, 4.5))
    average = OneNode("TreeEnsemble", [box((2, 1))], [(2, 1)], {**attrs, "aggregate_function": 0}, domain="ai.onnx.ml", version=5)
    near((offset(average, 0, "linf"),), (2.25,))
    found = one.range()[0]
    assert found.lo <= 0 and found.hi >= 4.5


def test_what_cannot_be_said() -> None:
    assert isinstance(
        OneNode(
            "FlexAttention", [box((1, 1, 2, 2), -1, 1)] * 3, [(1, 1, 2, 2)], {"score_mod": object()}, domain="ai.onnx.preview", version=1
        ).gain(0),
        Unknown,
    )
    assert isinstance(
        OneNode("Normalizer", [box((1, 2), -1, 1)], [(1, 2)], {"norm": "MAX"}, domain="ai.onnx.ml", version=1).gain(0), Unknown
    )
    probit = OneNode(
        "LinearRegressor", [box((1, 1))], [(1, 1)], {"coefficients": (1.0,), "post_transform": "PROBIT"}, domain="ai.onnx.ml", version=1
    )
    assert isinstance(probit.gain(0), Unknown)
    assert isinstance(One("Einsum", [x(2, 2), np.full((2, 2), np.inf)], {"equation": "ij,jk->ik"}).gain(0), Unknown)
    assert isinstance(One("Einsum", [x(2, 2), x(2, 2)], {"equation": "ij,jk->ik"}).gain(0), Unbounded)


def test_cubic_samples_behind_the_border_are_bounded_as_runtimes_read_them() -> None:
    """The reference clips the sample, onnxruntime the pixels that it reads: the bound holds for both."""
    grid = np.stack([np.linspace(-1.5, 1.5, 8), np.full(8, 0.1)], axis=-1)[None, None].astype(np.float32)
    attrs = {"mode": "cubic", "padding_mode": "border", "align_corners": 1}
    node = helper.make_node("GridSample", ["x", "g"], ["y"], **attrs)
    infos = [helper.make_tensor_value_info("x", 1, [20, 1, 4, 5]), helper.make_tensor_value_info("g", 1, [20, 1, 8, 2])]
    graph = helper.make_graph([node], "one", infos, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    feeds = {"x": np.eye(20, dtype=np.float32).reshape(20, 1, 4, 5), "g": np.repeat(grid, 20, axis=0)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    read = session.run(None, feeds)[0].reshape(20, 8)
    clipped = ReferenceEvaluator(model).run(None, feeds)[0].reshape(20, 8)
    assert np.abs(read - clipped).max() > 0.05
    matrix = np.einsum("pi,pj->pij", *(_keys(grid[0, 0, :, axis].astype(np.float64), n) for axis, n in ((1, 4), (0, 5)))).reshape(8, 20)
    np.testing.assert_allclose(matrix, read.T, atol=1e-5)
    one = OneNode("GridSample", [box((1, 1, 4, 5)), grid.astype(np.float64)], [(1, 1, 1, 8)], attrs, version=20)
    for norm, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
        assert one.slope(0, norm) >= np.linalg.norm(matrix, order)


def _keys(g: np.ndarray, n: int) -> np.ndarray:
    """Weights of every pixel of one axis at aligned coordinates g, each of the four pixels clipped: [samples, n]."""
    x = (g + 1) / 2 * (n - 1)
    weights = np.zeros((g.size, n))
    for k in range(-1, 3):
        pixel = np.floor(x) + k
        s = np.abs(x - pixel)
        near = (1.25 * s - 2.25) * s * s + 1
        far = -0.75 * (((s - 5) * s + 8) * s - 4)
        np.add.at(weights, (np.arange(g.size), np.clip(pixel, 0, n - 1).astype(int)), np.where(s <= 1, near, far))
    return weights
