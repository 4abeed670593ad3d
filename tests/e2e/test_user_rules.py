"""Rules of the user: an operator of a custom domain gets a bound by nodes, by a slope or by a constant; wrong files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser

import lipaudit
from lipaudit.errors import UsageError
from lipaudit.explain import explain
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.records import Audit

QONNX = Path(__file__).parents[2] / "samples" / "user_rules" / "qonnx"
MODEL = """<ir_version: 10, opset_import: ["": 18, "my.domain": 1]>
g (float[4] x) => (float[4] y) <float h = {3.0}> { a = my.domain.Odd(x)  y = Mul(a, h) }"""


def audit(tmp_path: Path, rule: str, *, norm: str = "l2", boxes: tuple[str, ...] = (), model: str = MODEL) -> Audit:
    folder = tmp_path / "rules" / "operators"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "odd.toml").write_text(rule, encoding="utf-8")
    path = tmp_path / "model.onnx"
    path.write_bytes(parser.parse_model(model).SerializeToString())
    return lipaudit.audit(path, rules=[tmp_path / "rules"], norm=norm, boxes=list(boxes), measure=False)  # pyright: ignore[reportArgumentType]


def number(text: str | None) -> float:
    return float(text or "0")


def test_without_a_rule_the_operator_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(parser.parse_model(MODEL).SerializeToString())
    found = lipaudit.audit(path, measure=False)
    assert found.certified.status == "unknown"
    assert "LIP701" in {finding.code for finding in found.findings}


def test_a_slope_and_a_jump(tmp_path: Path) -> None:
    found = audit(tmp_path, 'op = "my.domain::Odd"\nslope = ["-1/2", "2"]\njump = "0.5"\nlike = 0\n')
    assert found.certified.status == "finite"
    assert 6 <= number(found.certified.upper) <= 6.001 and 3 <= number(found.certified.offset) <= 3.001


def test_a_constant_of_the_whole_tensor_per_norm(tmp_path: Path) -> None:
    rule = 'op = "my.domain::Odd"\nlike = 0\nrange = ["-1", "1"]\n[[gain]]\ninput = 0\nl2 = "1/3"\nlinf = "2"\noffset = { linf = "1" }\n'
    found = audit(tmp_path, rule)
    assert 1 <= number(found.certified.upper) <= 1.0001 and number(found.certified.offset) == 0
    found = audit(tmp_path, rule, norm="linf")
    assert 6 <= number(found.certified.upper) <= 6.001 and 3 <= number(found.certified.offset) <= 3.001
    assert audit(tmp_path, rule, norm="l1").certified.status == "unknown"


def test_other_attribute_values_than_those_accepted_have_no_rule(tmp_path: Path) -> None:
    rule = '''op = "my.domain::Odd"
like = 0
accepts = { mode = ["fast"] }
function = """
<domain: "my.domain", opset_import: ["": 18]>
Odd (x) => (y) { t = Tanh(x)  y = Add(x, t) }
"""
'''
    fast = MODEL.replace("Odd(x)", 'Odd <mode = "fast"> (x)')
    exact = MODEL.replace("Odd(x)", 'Odd <mode = "exact"> (x)')
    assert 6 <= number(audit(tmp_path, rule, model=fast).certified.upper) <= 6.001
    refused = audit(tmp_path, rule, model=exact)
    assert refused.certified.status == "unknown" and any("odd.toml" in reason.reason for reason in refused.certified.reasons)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ('op = "my.domain::Odd"\nfunction = "Odd (x) => (y"\n', "ONNX text"),
        ('op = "my.domain::Odd"\n[[gain]]\ninput = 0\n', "at least one of l1, l2, linf"),
        ('op = "my.domain::Odd"\n[[gain]]\nl2 = "-1"\n', "at least 0"),
        ('op = "my.domain::Odd"\n[[gain]]\nl2 = "inf"\n', "at least 0"),
        ('op = "my.domain::Odd"\n[[gain]]\nl2 = "1"\n[[gain]]\nl2 = "2"\n', "same input"),
        ('op = "my.domain::Odd"\nslope = ["0", "1"]\n[[gain]]\nl2 = "1"\n', "not several"),
        ('op = "my.domain::Odd"\naccepts = { mode = ["fast"] }\nslope = ["0", "1"]\n', "goes with a function"),
        ('op = "my.domain::Odd"\n[[gain]]\nl2 = "1"\noffset = { l3 = "1" }\n', "go by"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, rule: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        audit(tmp_path, rule)
    assert "odd.toml" in str(caught.value)


def test_explain_prints_a_rule_of_the_user() -> None:
    text = explain("finn.custom_op.general::Quant", [str(QONNX)])
    assert "rounded = Round (inside)" in text and "rounding_mode" in text
    with pytest.raises(UsageError):
        explain("finn.custom_op.general::Quant")


def quantised(x: np.ndarray, scale: float, bits: int, *, signed: bool, narrow: bool) -> np.ndarray:
    """QONNX's Quant with zero point 0: clamp the scaled value to the integer range, round half to even, scale back."""
    if signed:
        lo, hi = -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    else:
        lo, hi = 0, 2**bits - 1 - narrow
    return np.rint(np.clip(x / scale, lo, hi)) * scale


@pytest.mark.parametrize(("signed", "narrow"), [(True, False), (True, True), (False, False), (False, True)])
def test_the_rule_of_quant_is_quant(tmp_path: Path, signed: bool, narrow: bool) -> None:
    """On a constant the nodes are computed: the result must be the quantised constant, to the bit."""
    values = np.linspace(-2, 2, 41).astype(np.float32)
    listed = ", ".join(repr(float(v)) for v in values)
    text = f"""<ir_version: 10, opset_import: ["": 18, "finn.custom_op.general": 1]>
    g (float[41] x) => (float[41] y) <float[41] w = {{{listed}}}, float s = {{0.25}}, float z = {{0}}, float b = {{3}}> {{
      q = finn.custom_op.general.Quant <signed = {int(signed)}, narrow = {int(narrow)}, rounding_mode = "ROUND"> (w, s, z, b)
      y = Add(x, q) }}"""
    path = tmp_path / "model.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    graph = simplify(load(str(path)).graph, operators=Catalogue.load([QONNX]).operators())
    (add,) = graph.nodes
    (name,) = (name for name in add.inputs if name in graph.constants)
    np.testing.assert_array_equal(graph.constants[name].array(), quantised(values, 0.25, 3, signed=signed, narrow=narrow))


def test_jettagging_is_finite_with_the_rule_of_quant(models: Path) -> None:
    path = models / "qonnx_jettagging.onnx"
    without = lipaudit.audit(path, measure=False)
    assert without.certified.status == "unknown" and "LIP701" in {finding.code for finding in without.findings}
    found = lipaudit.audit(path, rules=[QONNX], effort="quick")
    assert found.certified.status == "finite" and number(found.certified.offset) > 0
    assert "LIP701" not in {finding.code for finding in found.findings}
    assert 0 < number(found.measured.lower) <= number(found.certified.upper)
