"""Shapes that onnx's inference leaves open and stored inputs decide; the reference evaluator agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify

HEAD = '<ir_version: 10, opset_import: ["": 20, "ai.onnx.preview": 1]>\n'

MODELS = {
    "Compress along an axis": "g (float[2,3] x) => (float[N,M] y) <bool[3] c = {1, 0, 1}> { y = Compress<axis=-1>(x, c) }",
    "Compress with a short condition": "g (float[2,3] x) => (float[N,M] y) <bool[2] c = {0, 1}> { y = Compress<axis=1>(x, c) }",
    "Compress of all": "g (float[2,2] x) => (float[N] y) <bool[4] c = {1, 0, 1, 1}> { y = Compress(x, c) }",
    "OneHot": "g (float[2] v) => (float[N,M] y) <int64[3] i = {0, 2, 5}, int64 d = {4}> { y = OneHot<axis=0>(i, d, v) }",
    "MaxUnpool": """g (float[1,1,2,2] x) => (float[N,C,H,W] y) <int64[1,1,2,2] i = {0, 2, 8, 10}, int64[4] s = {1, 1, 5, 5}> {
        y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i, s) }""",
    "MelWeightMatrix": """g (float hi) => (float[N,M] y) <int64 b = {8}, int64 l = {16}, int64 r = {8192}, float lo = {0.0}> {
        y = MelWeightMatrix(b, l, r, lo, hi) }""",
    "MeanVarianceNormalization": "g (float[2,3,2,2] x) => (float[N,C,H,W] y) { y = MeanVarianceNormalization(x) }",
}


def simplified(text: str, folder: Path) -> tuple[object, object]:
    model = parser.parse_model(HEAD + text)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return model, simplify(load(str(path)).graph)


@pytest.mark.parametrize("name", MODELS)
def test_the_shape_is_that_of_the_result(name: str, tmp_path: Path) -> None:
    model, graph = simplified(MODELS[name], tmp_path)
    (value,) = graph.inputs  # type: ignore[attr-defined]
    feed = {value.name: np.full(value.shape, 4000.0 if name == "MelWeightMatrix" else 1.0, np.float32)}
    (y,) = ReferenceEvaluator(model).run(None, feed)
    assert graph.value("y").shape == y.shape  # type: ignore[attr-defined]
    assert graph.value("y").dtype == str(y.dtype)  # type: ignore[attr-defined]


def test_what_is_not_stored_stays_open(tmp_path: Path) -> None:
    _, graph = simplified("g (float[2,3] x, bool[3] c) => (float[N,M] y) { y = Compress<axis=1>(x, c) }", tmp_path)
    assert graph.value("y").shape is None  # type: ignore[attr-defined]


def test_a_modified_attention_has_the_rows_of_its_queries(tmp_path: Path) -> None:
    text = """g (float[1,2,3,4] q, float[1,2,5,4] k, float[1,2,5,6] v) => (float[A,B,C,D] y) {
      y = ai.onnx.preview.FlexAttention <score_mod = m (float[1,2,3,5] s) => (float[1,2,3,5] t) { t = Tanh(s) }> (q, k, v) }"""
    _, graph = simplified(text, tmp_path)
    assert graph.value("y").shape == (1, 2, 3, 6)  # type: ignore[attr-defined]


def test_scan_of_opset_8_has_a_batch_axis(tmp_path: Path) -> None:
    text = """<ir_version: 4, opset_import: ["": 8]> g (float[3,2] s, float[3,5,2] x) => (float[A,B] y, float[C,D,E] z) {
      y, z = Scan <num_scan_inputs = 1, body = b (float[2] a, float[2] n) => (float[2] t, float[2] o) { t = Add(a, n)  o = Identity(t) }>
        ("", s, x) }"""
    model = parser.parse_model(text)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    graph = simplify(load(str(path)).graph)
    assert graph.value("y").shape == (3, 2) and graph.value("z").shape == (3, 5, 2)
