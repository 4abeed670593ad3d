"""The function bodies of onnx as a second opinion: never worse than the rule, sound between sampled points, not asked for large nodes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from lipaudit.bounds.scalar import Norm
from lipaudit.certify import Certificate, certify, definitions
from lipaudit.certify.domain import Domain, ElementBox
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import Topology, recognise

HEAD = '<ir_version: 10, opset_import: ["": 24, "ai.onnx.preview": 1]>\n'
ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
MODELS = {
    "attention": "g (double[1,2,3,4] q, double[1,2,5,4] k, double[1,2,5,4] v) => (double[1,2,3,4] y) { y = Attention(q, k, v) }",
    "one input": "g (double[1,2,3,4] q) => (double[1,2,3,4] y) { y = Attention(q, q, q) }",
    "scores": """g (double[1,2,3,4] q, double[1,1,5,4] k, double[1,1,5,4] v, double[3,5] b) => (double[1,2,3,4] y, double[1,2,3,5] s) {
        y, pk, pv, s = Attention<qk_matmul_output_mode = MODE>(q, k, v, b) }""",
    "modified": """g (double[1,2,3,4] q, double[1,2,5,4] k, double[1,2,5,4] v) => (double[1,2,3,4] y) {
        y = ai.onnx.preview.FlexAttention <score_mod = m (double[1,2,3,5] s) => (double[1,2,3,5] t) { t = Tanh(s) }> (q, k, v) }""",
}


def opened(text: str, folder: Path) -> tuple[Any, Topology]:
    model = parser.parse_model(HEAD + text)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return model, recognise(simplify(load(str(path)).graph, operators=Catalogue.load().operators()))


def boxes(topology: Topology, rng: np.random.Generator, half: float) -> dict[str, ElementBox]:
    found = {}
    for source in topology.sources:
        centre = rng.normal(size=source.value.shape)
        found[source.label] = ElementBox(centre - half, centre + half)
    return found


def attack(model: Any, found: Certificate, around: dict[str, ElementBox], rng: np.random.Generator, norm: Norm) -> None:
    session = ReferenceEvaluator(model)
    picks = [session.output_names.index(name) for name in found.outputs]
    slope, offset = float(found.headline.slope), float(found.headline.offset)
    for k in range(12):
        first = {name: rng.uniform(box.lo, box.hi) for name, box in around.items()}
        step = 1.0 if k % 2 else 1e-4
        second = {name: x + step * (rng.uniform(around[name].lo, around[name].hi) - x) for name, x in first.items()}
        moved = np.concatenate([(first[name] - second[name]).ravel() for name in around])
        a, b = (np.concatenate([np.asarray(session.run(None, point)[p]).ravel() for p in picks]) for point in (first, second))
        noise = 1e-13 * float(np.linalg.norm(a, ORDER[norm]))
        assert float(np.linalg.norm(a - b, ORDER[norm])) - noise <= slope * float(np.linalg.norm(moved, ORDER[norm])) + offset


@pytest.mark.parametrize("name", [*(name for name in MODELS if name != "scores"), "scores 0", "scores 1", "scores 2", "scores 3"])
@pytest.mark.parametrize("half", [0.02, 0.7])
def test_the_smaller_of_both_is_sound(name: str, half: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, _, mode = name.rpartition(" ") if name.startswith("scores") else (name, "", "")
    model, topology = opened(MODELS[kind].replace("MODE", mode), tmp_path)
    rng = np.random.default_rng(3)
    around = boxes(topology, rng, half)
    for norm in ("l1", "l2", "linf"):
        both = certify(topology, Catalogue.load(), Domain({}, around), norm)
        assert both.headline.status == "finite"
        attack(model, both, around, rng, norm)
        with monkeypatch.context() as patch:
            patch.setattr(definitions, "_SMALL", 0)
            patch.setattr(definitions, "_OPEN", 0)
            alone = certify(topology, Catalogue.load(), Domain({}, around), norm)
        if alone.headline.status == "finite":
            attack(model, alone, around, rng, norm)
            assert both.headline.slope <= alone.headline.slope


def test_the_scores_have_a_rule_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the definition: one query and one key on boxes, ``s |k|`` and ``s |q|`` for the raw scores."""
    monkeypatch.setattr(definitions, "_OPEN", 0)
    monkeypatch.setattr(definitions, "_SMALL", 0)
    text = """g (double[1,1,1,2] q) => (double[1,1,1,2] y, double[1,1,1,1] s)
        <double[1,1,1,2] k = {3.0, 4.0}, double[1,1,1,2] v = {0.0, 0.0}> {
        y, pk, pv, s = Attention<scale = 2.0>(q, k, v) }"""
    _, topology = opened(text, tmp_path)
    for norm, truth in (("l1", 8.0), ("l2", 10.0), ("linf", 14.0)):
        found = certify(topology, Catalogue.load(), Domain({}), norm).matrix["q", "s"]  # type: ignore[arg-type]
        assert truth * (1 - 1e-12) <= float(found.slope) <= truth * (1 + 1e-9)


def test_large_nodes_are_left_to_their_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, topology = opened("g (double[1,4,64,32] q) => (double[1,4,64,32] y) { y = Attention(q, q, q) }", tmp_path)
    monkeypatch.setattr(definitions, "define", lambda *_: pytest.fail("asked"))
    around = {"q": ElementBox(np.full((1, 4, 64, 32), -1.0), np.full((1, 4, 64, 32), 1.0))}
    assert certify(topology, Catalogue.load(), Domain({}, around), "l2").headline.status == "finite"


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_a_boolean_mask_that_moves_jumps(norm: Norm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value attended flips from one end to the other: no multiple of the distance of the inputs, so an offset."""
    for size in (definitions._SMALL, 0):
        monkeypatch.setattr(definitions, "_SMALL", size)
        text = """g (double[1,2] x) => (double[1,1,1,1] y) <double z = {0.0}, double[1,1,1,1] q = {1.0}, double[1,1,2,1] k = {0.0, 0.0},
            double[1,1,2,1] v = {-3.0, 5.0}> { m = Greater(x, z)  y = Attention(q, k, v, m) }"""
        model, topology = opened(text, tmp_path)
        found = certify(topology, Catalogue.load(), Domain({}, {"x": ElementBox(np.full((1, 2), -1.0), np.full((1, 2), 1.0))}), norm)
        session = ReferenceEvaluator(model)
        a, b = (float(session.run(None, {"x": np.array([point])})[0].item()) for point in ((1e-9, -1e-9), (-1e-9, 1e-9)))
        assert math.isclose(abs(a - b), 8.0)
        assert found.headline.status != "finite" or float(found.headline.slope) * 4e-9 + float(found.headline.offset) >= 8.0


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_what_only_the_definition_knows_is_exact_for_one_key(norm: Norm, tmp_path: Path) -> None:
    """One key has weight 1, whatever its score: the output is the value, copied to both queries: (2, sqrt 2, 1)."""
    text = """g (double[1,1,2,3] q, double[1,1,1,3] k, double[1,1,1,3] v) => (double[1,1,2,3] y) {
        y = ai.onnx.preview.FlexAttention <score_mod = m (double[1,1,2,1] s) => (double[1,1,2,1] t) { t = Tanh(s) }> (q, k, v) }"""
    _, topology = opened(text, tmp_path)
    around = boxes(topology, np.random.default_rng(0), 0.5)
    truth = {"l1": 2.0, "l2": math.sqrt(2), "linf": 1.0}[norm]
    found = certify(topology, Catalogue.load(), Domain({}, around), norm).matrix["v", "y"]
    assert truth * (1 - 4e-16) <= float(found.slope) <= truth * (1 + 1e-9)
