"""Softmax, minima, maxima and leaky branches spelled out: recognised where they are meant, left alone where they are not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from lipaudit.certify import certify
from lipaudit.certify.domain import Domain
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import Topology, recognise

HEAD = '<ir_version: 10, opset_import: ["": 18]>\n'
AXES = "<int64[1] a = {-1}>"
ONE = "g (double[2,4] x) => (double[2,4] y)"
TWO = "g (double[2,4] x, double[4] b) => (double[2,4] y)"
LEAK = "<double z = {0.0}, double s = {-3.0}>"
SHIFT = "m = ReduceMax(x, a) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, a)"


def opened(text: str, folder: Path) -> tuple[Any, Topology]:
    model = parser.parse_model(HEAD + text)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return model, recognise(simplify(load(str(path)).graph))


RECOGNISED = {
    "softmax": ("Softmax", f"{ONE} {AXES} {{ {SHIFT} y = Div(e, s) }}"),
    "softmax without a shift": ("Softmax", f"{ONE} {AXES} {{ e = Exp(x) s = ReduceSum(e, a) y = Div(e, s) }}"),
    "softmax along the first axis": (
        "Softmax", f"{ONE} <int64[1] a = {{0}}> {{ {SHIFT} y = Div(e, s) }}"),
    "log-softmax": (
        "LogSoftmax",
        f"{ONE} {AXES} {{ {SHIFT} l = Log(s) y = Sub(z, l) }}"),
    "maximum": ("Max", TWO + "{ c = Less(x, b) y = Where(c, b, x) }"),
    "minimum": ("Min", TWO + "{ c = GreaterOrEqual(b, x) y = Where(c, x, b) }"),
    "minimum from above": ("Min", TWO + "{ c = Greater(x, b) y = Where(c, b, x) }"),
    "leaky branch": ("PRelu", ONE + LEAK + "{ c = Less(x, z) n = Mul(s, x) y = Where(c, n, x) }"),
    "leaky branch kept above": ("PRelu", ONE + LEAK + "{ c = Greater(x, z) n = Mul(x, s) y = Where(c, x, n) }"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOGNISED)
def test_spelled_out(name: str, tmp_path: Path) -> None:
    """One node; the certificate has no jump and holds between random points."""
    op, text = RECOGNISED[name]
    model, topology = opened(text, tmp_path)
    (node,) = topology.graph.nodes
    assert node.op == op and len(node.covers) == len(topology.simplified.nodes)
    found = certify(topology, Catalogue.load(), Domain({}), "l2").headline
    assert found.status == "finite" and found.offset.is_zero
    session, rng = ReferenceEvaluator(model), np.random.default_rng(0)
    for _ in range(30):
        points = [{value.name: rng.normal(size=value.shape) * 3 for value in topology.simplified.inputs} for _ in range(2)]
        a, b = (np.asarray(session.run(None, point)[0]) for point in points)
        moved = math.sqrt(sum(float(np.sum((points[0][k] - points[1][k]) ** 2)) for k in points[0]))
        assert float(np.linalg.norm(a - b)) * (1 - 1e-12) <= float(found.slope) * moved


LEFT_ALONE = {
    "two axes": ONE + " <int64[2] a = {0, 1}> { e = Exp(x) s = ReduceSum(e, a) y = Div(e, s) }",
    "another numerator": f"{ONE} {AXES} {{ e = Exp(x) f = Exp(e) s = ReduceSum(e, a) y = Div(f, s) }}",
    "the sum is read elsewhere": f"{ONE[:-1]}, double[2,1] s) {AXES} {{ e = Exp(x) s = ReduceSum(e, a) y = Div(e, s) }}",
    "the wrong branch": TWO + "<double h = {1.0}> { c = Less(x, b) d = Add(b, h) y = Where(c, d, x) }",
    "not at zero": ONE + "<double z = {1.0}, double s = {2.0}> { c = Less(x, z) n = Mul(x, s) y = Where(c, n, x) }",
    "another variable": TWO + LEAK + "{ c = Less(b, z) n = Mul(x, s) y = Where(c, n, x) }",
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str, tmp_path: Path) -> None:
    _, topology = opened(LEFT_ALONE[name], tmp_path)
    assert not {node.op for node in topology.graph.nodes} & {"Softmax", "LogSoftmax", "Max", "Min", "PRelu"}


def test_a_shift_along_the_axis_is_no_shift(tmp_path: Path) -> None:
    """What differs along the axis belongs to the argument: the softmax is one of x - w."""
    text = f"g (double[2,4] x, double[2,4] w) => (double[2,4] y) {AXES} {{ z = Sub(x, w) e = Exp(z) s = ReduceSum(e, a) y = Div(e, s) }}"
    _, topology = opened(text, tmp_path)
    assert [node.op for node in topology.graph.nodes] == ["Sub", "Softmax"]
