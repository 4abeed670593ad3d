"""Each scalar operator as a one-node model: onnxruntime (or onnx's reference) computes what the formula says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.defs
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import InferenceSession

from lipaudit.operators.base import Unknown
from lipaudit.operators.elements import Elements
from lipaudit.operators.law import Law, law_of
from tests.rules.entries import CATALOGUE, SCALAR, as_attributes, named, schema_domain, settings_of, versions

# Fused by lipaudit itself, or without any implementation here.
SPELLED = ("lipaudit::Gelu", "lipaudit::HardSwish")
NEITHER = ("ai.onnx::Affine", "ai.onnx::ParametricSoftplus", "ai.onnx::ScaledTanh")
CASES = [
    pytest.param(kind, attributes, version, id=f"{named(kind, attributes)}-{version}")
    for kind in SCALAR
    if CATALOGUE.entries[kind].formula and kind not in (*SPELLED, *NEITHER)
    for attributes in settings_of(kind)
    for version in (versions(kind)[-2:] or (1,))
]


def points(law: Law) -> Any:
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.uniform(-6, 6, 400), rng.uniform(-0.1, 0.1, 40), rng.uniform(-30, 30, 40), np.arange(-4, 4.5, 0.5)])
    if law.domain is not None:
        lo, hi = law.domain.floats()
        x = np.clip(x, max(lo, -30), min(hi, 30))
    for pole in law.poles:
        x = x[np.abs(x - pole.floats()[0]) > 1e-3]
    return x.astype(np.float32)


def run(kind: str, attributes: dict[str, Any], version: int, x: Any) -> Any:
    domain, op = schema_domain(kind)
    bias = CATALOGUE.entries[kind].bias
    inputs = ["x", "b"] if bias else ["x"]
    elem = TensorProto.BOOL if kind == "ai.onnx::Not" else TensorProto.FLOAT
    node = helper.make_node(op, inputs, ["y"], domain=domain, **attributes)
    infos = [helper.make_tensor_value_info("x", elem, x.shape)]
    if bias:
        infos.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [x.shape[-1]]))
    graph = helper.make_graph([node], "one", infos, [helper.make_tensor_value_info("y", elem, x.shape)])
    opsets = [helper.make_opsetid("", version if not domain else 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    feed = {"x": x} | ({"b": np.zeros(x.shape[-1], np.float32)} if bias else {})
    try:
        return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    except Exception:
        return ReferenceEvaluator(model).run(None, feed)[0]


@pytest.mark.parametrize(("kind", "attributes", "version"), CASES)
def test_operator_computes_the_formula(kind: str, attributes: dict[str, Any], version: int) -> None:
    law = law_of(CATALOGUE.entries[kind], attributes, version)
    assert isinstance(law, Law)
    x = np.asarray([[False, True]]) if kind == "ai.onnx::Not" else points(law)[None, :]
    y = np.asarray(run(kind, attributes, version, x), dtype=np.float64)
    claimed = law.values(Elements.points(x.astype(np.float64)))
    # float32 evaluation: relative 1e-5 (ScaledTanh and Mish approximate), absolute 1e-6 where terms cancel.
    slack = 2e-6 + 1e-5 * np.abs(y)
    jumps = np.zeros(x.shape, dtype=bool)
    for place in law.jump_at:
        jumps |= np.abs(x - place.floats()[0]) < 1e-6
    ok = (y >= claimed.lo - slack) & (y <= claimed.hi + slack)
    assert np.all(ok | jumps), (x[~ok][:3], y[~ok][:3], claimed.lo[~ok][:3])


def test_defaults_of_old_versions_are_used() -> None:
    """Selu 1 has other constants than Selu 6: the law follows the schema of the version."""
    entry = CATALOGUE.entries["ai.onnx::Selu"]
    slopes = []
    for version in (1, 6):
        defaults = {
            name: helper.get_attribute_value(a.default_value)
            for name, a in onnx.defs.get_schema("Selu", version, "").attributes.items()
            if a.default_value.name
        }
        law = law_of(entry, defaults, version)
        assert isinstance(law, Law)
        slopes.append(float(law.slope.magnitude()))
    assert slopes[0] != slopes[1]
    assert slopes == pytest.approx([1.6732 * 1.0507, 1.7580993408], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("lipaudit::Gelu", {"approximate": "tanh", "k": 0.5, "a": 0.8, "b": 0.5}),
        ("lipaudit::Gelu", {"approximate": "tanh", "k": 0.5, "a": -0.8, "b": 0.03}),
        ("lipaudit::Gelu", {"approximate": "none", "k": -0.5, "num": 1.0, "den": 1.4}),
        ("lipaudit::Gelu", {"approximate": "none", "k": 0.5, "num": -1.0, "den": 1.4}),
        ("lipaudit::Gelu", {"approximate": "none"}),
        ("lipaudit::Gelu", {"approximate": "tanh", "k": 0.5, "a": 0.8}),
        ("lipaudit::HardSwish", {"alpha": -1.0, "beta": 0.5}),
        ("ai.onnx::Celu", {"alpha": 0.0}),
    ],
)
def test_attributes_out_of_reach_are_refused(kind: str, attributes: dict[str, Any]) -> None:
    assert isinstance(law_of(CATALOGUE.entries[kind], attributes, 0), Unknown)


@pytest.mark.parametrize("kind", SPELLED)
def test_spelled_out_forms_are_what_exporters_write(kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-6, 6, 300)
    for sample in CATALOGUE.entries[kind].samples:
        values = as_attributes(sample)
        law = law_of(CATALOGUE.entries[kind], values, 0)
        assert isinstance(law, Law)
        y = _spelled(kind, values, x)
        claimed = law.values(Elements.points(x))
        slack = 1e-13 * (1 + np.abs(x))
        assert np.all((y >= claimed.lo - slack) & (y <= claimed.hi + slack))


def _spelled(kind: str, v: dict[str, Any], x: Any) -> Any:
    from scipy.special import erf

    if kind == "lipaudit::HardSwish":
        return x * np.clip(v["alpha"] * x + v["beta"], 0, 1)
    if v["approximate"] == "none":
        return v["k"] * x * (1 + erf(x * v["num"] / v["den"]))
    return v["k"] * x * (1 + np.tanh(v["a"] * x / v.get("aden", 1.0) + v["b"] * x**3 / v.get("bden", 1.0)))
