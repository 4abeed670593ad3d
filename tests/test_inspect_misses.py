"""``inspect --why`` on near misses: the reason names what stands in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from lipaudit.inspect import inspect_text
from tests.pipeline import make_model

_RNG = np.random.default_rng(0)
_WEIGHTS = {
    "w": _RNG.standard_normal((8, 8)), "v": _RNG.standard_normal((8, 8)), "u": _RNG.standard_normal((8, 8)),
    "half": np.float32(0.5), "two": np.float32(2), "eps": np.float32(1e-3), "last": np.array([-1]), "rows": np.array([1]),
    "bias": _RNG.standard_normal((4, 4)), "big": np.float32(-1e4), "mask": np.tri(4, dtype=bool), "wide": np.array([1, 4, 8]),
    "bias8": _RNG.standard_normal((4, 8)),
}  # fmt: skip
_QKV = "q = MatMul(x, w) k = MatMul(x, v) a = MatMul(x, u) t = Transpose<perm=[0,2,1]>(k) "
MISSES = {
    # the body, the node that is asked about, what the answer must say
    "softmax over queries": (_QKV + "l = MatMul(q, t) p = Softmax<axis=1>(l) y = MatMul(p, a)", "Softmax", "not over the last axis"),
    "scores read twice": (
        _QKV + "l = MatMul(q, t) p = Softmax<axis=-1>(l) o = MatMul(p, a) r = ReduceMean(l, last) y = Add(o, r)",
        "Softmax",
        "is also read by",
    ),
    "weights read twice": (
        _QKV + "l = MatMul(q, t) p = Softmax<axis=-1>(l) o = MatMul(p, a) r = ReduceMean(p, last) y = Add(o, r)",
        "Softmax",
        "have several readers",
    ),
    "a bias before the factor": (
        _QKV + "l = MatMul(q, t) b = Add(l, bias) s = Mul(b, half) p = Softmax<axis=-1>(s) y = MatMul(p, a)",
        "Softmax",
        "before its logits are scaled",
    ),
    "a mask that leaves a weight": (
        _QKV + "l = MatMul(q, t) b = Where(mask, l, big) p = Softmax<axis=-1>(b) y = MatMul(p, a)",
        "Softmax",
        "they keep a weight",
    ),
    "a variance over other axes than the mean": (
        (
            "m = ReduceMean(x, rows) c = Sub(x, m) s = Pow(c, two) e = ReduceMean(s, last) f = Add(e, eps) r = Sqrt(f) "
            "z = Div(x, r) y = MatMul(z, w)"
        ),
        "Sqrt",
        "divides another value than the one whose squares are averaged",
    ),
    "a normalization without a floor": (
        "m = ReduceMean(x, last) c = Sub(x, m) s = Pow(c, two) e = ReduceMean(s, last) r = Sqrt(e) y = Div(c, r)",
        "Sqrt",
        "has no epsilon",
    ),
    "a sum of two shapes": (
        "m = ReduceMean(x, rows) a = MatMul(m, w) b = Expand(a, wide) c = Add(b, bias8) d = Relu(c) y = Add(m, d)",
        "Add",
        "is copied to the shape [1, 4, 8]",
    ),
    "two nonlinear sides": ("a = MatMul(x, w) b = Relu(a) c = MatMul(x, v) d = Tanh(c) y = Add(b, d)", "Add", "nonlinear"),
    "a GELU of another argument": (
        "a = MatMul(x, w) e = Erf(a) o = Add(e, two) y = Mul(o, a)",
        "Erf",
        "adds 2.0, not 1",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_the_reason_of_a_near_miss(tmp_path: Path, name: str) -> None:
    body, op, words = MISSES[name]
    nodes = onnx.parser.parse_graph(f"g (float[1] x) => (float[1] y) {{ {body} }}").node
    for i, node in enumerate(nodes):
        node.name = f"{node.op_type}_{i}"
    asked = [node.name for node in nodes if node.op_type == op][-1]
    names = {operand for node in nodes for operand in node.input}
    model = make_model(list(nodes), {"x": [1, 4, 8]}, ["y"], {key: value for key, value in _WEIGHTS.items() if key in names})
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    answer = " ".join(inspect_text(str(path), dims={}, why=asked).split())
    assert words in answer, answer
