"""Residual blocks from both sides: branch, shortcut and lower gains against singular values of searched Jacobians."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from lipaudit.bounds.scalar import Norm
from lipaudit.judge.region_facts import certified_facts
from tests.certify.blocks import jacobian
from tests.pipeline import certificate, make_model

Array = NDArray[Any]
_WIDTH, _BLOCKS = 5, 3


def _weights(size: float) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(8)
    made: list[tuple[Array, Array]] = []
    for _ in range(_BLOCKS):
        a, b = rng.standard_normal((_WIDTH, _WIDTH)), rng.standard_normal((_WIDTH, _WIDTH))
        made.append((np.float32(a / np.linalg.norm(a, 2)), np.float32(size * b / np.linalg.norm(b, 2))))
    return made


def _model(size: float, *, join: str = "Add", shortcut: float = 1.0) -> onnx.ModelProto:
    """``x -> shortcut x +- tanh(x A) B``, several times."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {"factor": np.float32(shortcut)}
    x = "x"
    for k, (a, b) in enumerate(_weights(size)):
        constants |= {f"a{k}": a, f"b{k}": b}
        nodes += [
            helper.make_node("MatMul", [x, f"a{k}"], [f"h{k}"]),
            helper.make_node("Tanh", [f"h{k}"], [f"t{k}"]),
            helper.make_node("MatMul", [f"t{k}", f"b{k}"], [f"f{k}"]),
        ]
        short = x
        if shortcut != 1.0:
            nodes.append(helper.make_node("Mul", [x, "factor"], [f"s{k}"]))
            short = f"s{k}"
        x = f"y{k}"
        nodes.append(helper.make_node(join, [short, f"f{k}"], [x]))
    return make_model(nodes, {"x": [2, _WIDTH]}, [x], constants)


def _twin(size: float, sign: float, shortcut: float, count: int) -> Any:
    def twin(x: Array) -> Array:
        for a, b in _weights(size)[:count]:
            x = shortcut * x + sign * np.tanh(x @ a.astype(float)) @ b.astype(float)
        return x

    return twin


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize(("join", "shortcut"), [("Add", 1.0), ("Sub", 1.0), ("Add", 0.75)])
def test_no_difference_shrinks_more_than_certified(norm: Norm, join: str, shortcut: float) -> None:
    size = 0.2
    found = certificate(_model(size, join=join, shortcut=shortcut), norm)
    blocks = [item for item in found.regions.values() if item.region.kind == "residual"]
    assert len(blocks) == _BLOCKS
    for block in blocks:
        assert block.branch is not None and block.shortcut is not None
        assert abs(float(block.shortcut) - shortcut) < 1e-6
        if norm == "l2":
            k = int(block.region.exit[1:])
            a, b = _weights(size)[k]
            at_zero = float(np.linalg.norm(a.astype(float) @ b.astype(float), 2))
            assert at_zero <= float(block.branch) <= size * (1 + 1e-4)
            assert shortcut - size - 1e-4 <= float(block.lower) <= shortcut - float(block.branch) + 1e-9
        assert float(block.lower) <= float(block.joint.slope)
    stack = next(item for item in found.regions.values() if item.region.kind == "stack")
    product = 1.0
    for block in blocks:
        product *= float(block.lower)
    assert 0 < float(stack.lower) <= product * (1 + 1e-9)
    rng = np.random.default_rng(9)
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    for count, lower in ((1, float(blocks[0].lower)), (_BLOCKS, float(stack.lower))):
        twin = _twin(size, -1.0 if join == "Sub" else 1.0, shortcut, count)
        for scale in (0.0, 0.1, 1.0):
            inverse = np.linalg.inv(jacobian(twin, scale * rng.standard_normal((1, _WIDTH))))
            assert lower <= 1 / np.linalg.norm(inverse, order)


def test_nothing_is_certified_from_below_where_the_branch_may_undo_the_shortcut() -> None:
    found = certificate(_model(4.0))
    assert all(float(item.lower) == 0 for item in found.regions.values() if item.region.kind in ("residual", "stack"))


def test_a_value_that_the_sum_reads_twice_is_no_shortcut() -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Mul", ["t", "small"], ["f"]),
        helper.make_node("Sub", ["x", "f"], ["s"]),
        helper.make_node("Sub", ["s", "x"], ["y"]),
    ]
    found = certificate(make_model(nodes, {"x": [2, 3]}, ["y"], {"small": np.float32(0.01)}))
    assert all(float(item.lower) <= 0.01 for item in found.regions.values() if item.region.exit == "y")


def test_facts_for_guidelines() -> None:
    model = _model(0.2)
    found = certificate(model)
    regions = {item.region.path: item.region for item in found.regions.values()}
    facts = {path: certified_facts(region, found) for path, region in regions.items()}
    path = next(path for path, region in regions.items() if region.kind == "residual")
    block, bound = facts[path], found.regions[path]
    assert bound.branch is not None and 0.1 < float(bound.branch) < 0.2
    assert block["residual"]["branch_log10_gain"] == pytest.approx(np.log10(float(bound.branch)), abs=1e-6)
    assert abs(block["residual"]["shortcut_log10_gain"]) < 1e-6
    assert block["region"]["log10_lower"] == pytest.approx(np.log10(1 - float(bound.branch)), abs=1e-6)
    stack = next(facts[path]["stack"] for path, region in regions.items() if region.kind == "stack")
    assert 0 <= stack["gain_spread"] < 0.05 and stack["kind_gap"] is None
    blocks = [float(item.joint.slope) for item in found.regions.values() if item.region.kind == "residual"]
    assert stack["log10_gain"] == pytest.approx(sum(np.log10(blocks)), abs=1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_profile_looks_both_ways(norm: Norm) -> None:
    """Before a block: the Jacobian of what comes first; after it: of what is left."""
    found = certificate(_model(0.2), norm)
    blocks = sorted((item for item in found.regions.values() if item.region.kind == "residual"), key=lambda item: item.region.exit)
    rng = np.random.default_rng(10)
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    weights = _weights(0.2)
    for k, block in enumerate(blocks):
        assert float(block.before) * float(block.joint.slope) * float(block.after) <= float(found.headline.slope) * 1.001

        def rest(x: Array, first: int = k + 1) -> Array:
            for a, b in weights[first:]:
                x = x + np.tanh(x @ a.astype(float)) @ b.astype(float)
            return x

        for scale in (0.0, 0.3):
            x = scale * rng.standard_normal((1, _WIDTH))
            assert np.linalg.norm(jacobian(rest, x), order) <= float(block.after)
            if k:
                assert np.linalg.norm(jacobian(_twin(0.2, 1.0, 1.0, k), x), order) <= float(block.before)
