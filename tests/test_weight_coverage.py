"""Every operator that can hold a weight is in the table of linear parts, or is left out for a reason that is written here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import onnx.helper as oh
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema  # pyright: ignore[reportMissingModuleSource]

import lipaudit
from lipaudit.graph.ir import Node
from lipaudit.operators.base import Rule
from lipaudit.operators.catalogue import Catalogue
from lipaudit.weights import weights
from tests.test_weights import agrees, f32, only, save

NAMED_LIKE_WEIGHTS = re.compile(
    r"^(w|r|b|weights?|kernel|filter|scale|gamma|slope|.*weight.*|fc\d.*|.*embedding.*|.*_table|b_scale|data)$", re.IGNORECASE
)
"""Names of inputs that may hold a weight."""

LEFT_OUT = {
    "ai.onnx::PRelu": "slopes of an activation: not linear",
    "ai.onnx::NegativeLogLikelihoodLoss": "weights of classes in a mean",
    "ai.onnx::SoftmaxCrossEntropyLoss": "weights of classes in a mean",
    "com.microsoft::GroupQueryAttention": "scales of normalized heads, inside of the attention",
}
"""Operators that hold something like a weight which is no linear part."""

SECOND_OPERANDS = {
    "ai.onnx": "Add And Equal Greater GreaterOrEqual Less LessOrEqual Mod Or Sub SwiGLU Xor",
    "com.microsoft": "BiasGelu QLinearAdd QLinearMul",
}
"""B is another operand, a bias or an activation."""

NOT_A_TABLE = re.compile(
    "^(Arg.*|Dropout|QLinearReduce.*|Identity|Reshape|Flatten|Squeeze|Unsqueeze|Transpose|Slice|Split|Shape|Size|Reduce.*|Pad|Resize|Upsample|Scatter.*|Gather.+|Compress"
    "|Unique|ReverseSequence|CenterCropPad|Expand|Tile|.*Pool|Trilu|.*Loss|Cast|DepthToSpace|SpaceToDepth)$"
)
"""Operators that read their ``data`` from the graph."""


def holding() -> list[tuple[str, list[str]]]:
    """Operators with a rule, and their inputs that may be weights by their names."""
    schemas = {f"{s.domain or 'ai.onnx'}::{s.name}": [i.name for i in s.inputs] for s in onnx.defs.get_all_schemas()}
    for s in get_all_operator_schema():
        schemas.setdefault(f"{s.domain or 'ai.onnx'}::{s.name}", [i.name for i in s.inputs])
    found: list[tuple[str, list[str]]] = []
    for kind, names in sorted(schemas.items()):
        domain, op = kind.split("::")
        like = [name for name in names if NAMED_LIKE_WEIGHTS.match(name) and not (name == "data" and NOT_A_TABLE.match(op))]
        if like and kind in CATALOGUE.entries and op not in SECOND_OPERANDS.get(domain, "").split():
            found.append((kind, like))
    return found


CATALOGUE = Catalogue.load()


@pytest.mark.parametrize(("kind", "names"), holding(), ids=[kind for kind, _ in holding()])
def test_operators_with_weights_have_parts(kind: str, names: list[str]) -> None:
    domain, op = kind.split("::")
    entry = CATALOGUE.entry(kind)
    assert entry is not None
    if entry.function:
        return  # spelled in operators that are looked at here
    rule = CATALOGUE.rule(
        Node(name="n", op=op, domain="" if domain == "ai.onnx" else domain, version=99, inputs=("x",), outputs=("y",), attrs={})
    )
    assert rule is not None
    listed = type(rule).parts is not Rule.parts
    assert listed != (kind in LEFT_OUT), f"{names} of {kind}: in the table of linear parts, or a reason in this file"


def test_enough_operators_are_looked_at() -> None:
    kinds = {kind for kind, _ in holding()}
    assert len(kinds) >= 35
    assert {"ai.onnx::Gather", "ai.onnx::LSTM", "ai.onnx::DeformConv", "com.microsoft::MatMulNBits", "com.microsoft::Attention"} <= kinds
    assert set(LEFT_OUT) <= kinds


def test_einsum(tmp_path: Path) -> None:
    w = f32(4, 3)
    for equation, stored, x, y, matrix in (
        ("bij,jk->bik", w, [2, 5, 4], [2, 5, 3], w.T),
        ("bij,kj->bik", w.T.copy(), [2, 5, 4], [2, 5, 3], w.T),
        ("...j,jk->...k", w, [5, 4], [5, 3], w.T),
        ("ij,j->ij", w[:, 0].copy(), [3, 4], [3, 4], np.diag(w[:, 0])),
    ):
        row = only(
            save(tmp_path, [oh.make_node("Einsum", ["x", "w"], ["y"], "n", equation=equation)], {"w": stored}, {"x": x, "y": y}, {"": 17})
        )
        agrees(row, matrix)
    heads = f32(2, 4, 3)
    node = oh.make_node("Einsum", ["w", "x"], ["y"], "n", equation="hjk,bhj->bkh")
    row = only(save(tmp_path, [node], {"w": heads}, {"x": [5, 2, 4], "y": [5, 3, 2]}, {"": 17}))
    full = np.zeros((6, 8))
    for k in range(2):
        full[3 * k : 3 * k + 3, 4 * k : 4 * k + 4] = heads[k].T
    assert row.kind == "batched matrix"
    agrees(row, full)
    node = oh.make_node("Einsum", ["x", "w"], ["y"], "n", equation="ij,jk->i")
    row = only(save(tmp_path, [node], {"w": w}, {"x": [5, 4], "y": [5]}, {"": 17}))
    assert row.norm.upper is None and "summed" in row.reason


def test_kernels_on_samples(tmp_path: Path) -> None:
    w = f32(4, 2, 2, 2)
    node = oh.make_node("DeformConv", ["x", "w", "o"], ["y"], "n", group=2, kernel_shape=[2, 2])
    row = only(save(tmp_path, [node], {"w": w, "o": np.zeros((1, 8, 3, 3), np.float32)}, {"x": [1, 4, 4, 4], "y": [1, 4, 3, 3]}, {"": 19}))
    full = np.zeros((4, 16))
    full[:2, :8], full[2:, 8:] = w[:2].reshape(2, 8), w[2:].reshape(2, 8)
    agrees(row, full)


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "lstm", "nan_weight", "prenorm_transformer"])
def test_an_audit_has_the_rows_of_the_table(name: str, samples: Path) -> None:
    """The same numbers, but for smallest singular values that would cost too much beside an audit."""
    table = weights(samples / f"{name}.onnx").weights
    rows = lipaudit.audit(samples / f"{name}.onnx", measure=False).weights
    assert [(row.name, row.node, row.norm, row.l1, row.fro, row.stable_rank) for row in rows] == [
        (row.name, row.node, row.norm, row.l1, row.fro, row.stable_rank) for row in table
    ]
    assert all(row.sigma_min in (None, other.sigma_min) for row, other in zip(rows, table, strict=True))
    assert lipaudit.audit(samples / f"{name}.onnx", measure=False, norm="linf").weights == []
