"""Activations forward and gradients backward where both are known, and what the report gets of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import lipaudit
from lipaudit.judge.guideline import documented_facts
from lipaudit.records import Region
from lipaudit.report import render
from lipaudit.validate.adjoints import derive
from tests.validate.small import graph_of, measure, mlp


def rotation(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def test_a_chain_of_scaled_rotations() -> None:
    graph = mlp([3 * rotation(8, 0), 0.1 * rotation(8, 1)], activation="Identity")
    given = np.random.default_rng(2).standard_normal((5, 1, 8)).astype(np.float32)
    regions = [("first", ("x",), "m0"), ("second", ("a0",), "m1"), ("gone", ("x",), "nowhere")]
    facts = measure(graph, regions=regions, inputs={"x": given}).facts
    assert set(facts) == {"", "first", "second"}
    first, second = facts["first"], facts["second"]
    # Typical points are the five given ones and three draws; a rotation keeps the size of each.
    assert first["flow"]["backward_log10"] == pytest.approx(-1.0, abs=2e-3)
    assert first["flow"]["backward_spread"] == 0.0
    assert second["flow"]["backward_log10"] == 0.0
    assert second["flow"]["forward_rms_log10"] - first["flow"]["forward_rms_log10"] == pytest.approx(-1.0, abs=2e-3)
    assert first["activation"]["nonfinite"] == 0


def test_the_given_inputs_are_what_is_looked_at() -> None:
    graph = mlp([np.diag([2.0, 1.0]), np.eye(2)])
    given = np.zeros((8, 1, 2), dtype=np.float32)
    given[:, 0, 0] = [1, 2, 3, 4, 5, 6, 7, 100]
    found = measure(graph, regions=[("first", ("x",), "m0")], inputs={"x": given}).facts["first"]
    assert found["activation"]["max_abs"] == 200.0
    assert found["activation"]["headroom_bits"] == pytest.approx(np.log2(65504 / 200), abs=0.01)
    assert found["flow"]["forward_rms_log10"] == pytest.approx(np.log10(9 / np.sqrt(2)), abs=2e-2)
    assert found["flow"]["forward_rms_spread"] == pytest.approx(2.0, abs=2e-3)


def test_gradients_of_all_paths_meet() -> None:
    # h = 2x, k = 5h, y = h + k: behind h the gain is 6, although k is looked at as well.
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["k"]),
        helper.make_node("Add", ["h", "k"], ["y"]),
    ]  # fmt: skip
    graph = graph_of(nodes, {"x": [1, 3]}, ["y"], {"a": 2 * np.eye(3), "b": 5 * np.eye(3)})
    regions = [("h", ("x",), "h"), ("k", ("h",), "k"), ("y", ("h", "k"), "y")]
    facts = measure(graph, (-1.0, 1.0), regions=regions).facts
    assert facts["h"]["flow"]["backward_log10"] == pytest.approx(np.log10(6), abs=1e-3)
    assert facts["k"]["flow"]["backward_log10"] == facts["y"]["flow"]["backward_log10"] == 0.0


def test_several_outputs_share_one_direction() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"]), helper.make_node("Relu", ["h"], ["z"])]
    graph = graph_of(nodes, {"x": [1, 4]}, ["y", "z"])
    facts = measure(graph, (0.5, 1.0), regions=[("y", ("x",), "y")]).facts["y"]["flow"]
    # Half of a random unit direction of eight entries points at y, on average.
    assert -0.5 < facts["backward_log10"] < 0.0


def test_overflow_is_counted() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["h"]), helper.make_node("Reciprocal", ["h"], ["y"])]
    graph = graph_of(nodes, {"x": [1, 4]}, ["y"])
    facts = measure(graph, (95.0, 96.0), regions=[("h", ("x",), "h")]).facts["h"]
    assert facts["activation"]["nonfinite"] == 4
    assert "max_abs" not in facts["activation"]


def test_without_derivatives_the_forward_half_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "RULES", {op: rule for op, rule in derive.RULES.items() if op != "Acos"})
    nodes = [helper.make_node("Acos", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]
    facts = measure(graph_of(nodes, {"x": [1, 4]}, ["y"]), (-0.5, 0.5), regions=[("h", ("x",), "h")]).facts["h"]["flow"]
    assert set(facts) == {"forward_rms_log10", "forward_rms_spread"}


def test_float32_errors_are_those_of_float32() -> None:
    rng = np.random.default_rng(0)
    graph = mlp([rng.standard_normal((64, 64)), rng.standard_normal((64, 8))], activation="Tanh")
    facts = measure(graph, (-1.0, 1.0), regions=[("first", ("x",), "a0"), ("last", ("a0",), "m1")]).facts
    for path in ("first", "last"):
        assert 2**-30 < facts[path]["activation"]["float32_error"] < 64 * 2**-24
        assert facts[path]["activation"]["half_error"] == pytest.approx(2**13 * facts[path]["activation"]["float32_error"], rel=1e-2)


def regions_of(found: Iterable[Region]) -> Iterable[Region]:
    for region in found:
        yield region
        yield from regions_of(region.children)


RULE = """
code = "USR901"
name = "activations-seen"
status = "stable"
since = "0.1"
severity = "warning"
on = "region"
when = 'flow.forward_rms_log10 > -9.0 && activation.nonfinite == 0'
message = "{region.path}: activations of size 10^{flow.forward_rms_log10}"
why = "A test."
fix = "Nothing."
cite = []

[[example]]
facts = { flow = { forward_rms_log10 = 1.0 }, activation = { nonfinite = 0 } }
fires = true

[[example]]
facts = { flow = { forward_rms_log10 = -10.0 }, activation = { nonfinite = 0 } }
fires = false
"""


def test_facts_reach_the_record_the_page_and_the_guidelines(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "guidelines").mkdir()
    (tmp_path / "guidelines" / "USR901-activations-seen.toml").write_text(RULE, encoding="utf-8")
    found = lipaudit.audit(samples / "digits_mlp.onnx", boxes={"x": (0, 1)}, device="cpu", rules=[tmp_path])
    documented = set(documented_facts())
    seen: set[str] = set()
    for region in regions_of(found.regions):
        for space in ("flow", "activation"):
            seen |= {f"{space}.{name}" for name in region.facts.get(space, {})}
    assert seen
    assert {name for name in documented if name.startswith(("flow.", "activation."))} == seen
    assert "flow.forward_rms_log10" in render("html", found).replace("<wbr>", "")
    assert {finding.region for finding in found.findings if finding.code == "USR901"} == {
        region.path for region in regions_of(found.regions) if "flow" in region.facts
    }
    silent = lipaudit.audit(samples / "digits_mlp.onnx", boxes={"x": (0, 1)}, measure=False, rules=[tmp_path])
    assert not any("flow" in region.facts for region in regions_of(silent.regions))
    assert not any(finding.code == "USR901" for finding in silent.findings)
