"""The table of certified over measured by family of models (tools/families.py)."""

from __future__ import annotations

from typing import Any

from tools.families import COLUMNS, TITLE, before, family, unexplained


def audit(operators: list[str], kinds: list[str]) -> dict[str, Any]:
    """What the tool reads of an audit: the regions nested in one another."""
    tree: list[dict[str, Any]] = []
    for kind in reversed(kinds):
        tree = [{"kind": kind, "children": tree}]
    return {"operators": [{"op": op} for op in operators], "regions": tree}


def test_families_are_read_off_operators_and_regions() -> None:
    assert family(audit(["ai.onnx::Gemm", "ai.onnx::Relu"], [])) == "fully connected and other"
    assert family(audit(["ai.onnx::Conv"], ["stem"])) == "convolutional"
    assert family(audit(["ai.onnx::Conv", "ai.onnx::Add"], ["stack", "residual"])) == "residual convolutional"
    assert family(audit(["ai.onnx::Conv", "ai.onnx::MatMul"], ["stack", "residual", "attention"])) == "transformer"
    assert family(audit(["ai.onnx::LSTM", "ai.onnx::Conv"], [])) == "recurrent"
    assert family(audit(["ai.onnx::QLinearConv"], ["residual"])) == "quantised"


def test_a_median_that_grows_wants_a_reason() -> None:
    rows: list[list[object]] = [["transformer", 3, 3, 3, "2.0000", "5.0000"], ["recurrent", 1, 0, 0, "none", "none"]]
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    page = f"# Benchmarks\n\n## {TITLE}\n\nnote\n\n{head}| transformer | 3 | 3 | 3 | 1.9900 | 5 |\n"
    old = before(page + "\n## Another\n\n| recurrent | 1 | 1 | 1 | 0.5 | 5 |\n")
    assert old == {"transformer": 1.99}
    assert unexplained(rows, old, "## [Unreleased]\n\n- nothing\n") == ["transformer"]
    assert unexplained(rows, old, "## [Unreleased]\n\n- family transformer: a reason\n") == []
    assert unexplained(rows, old, "## [Unreleased]\n\n- no\n## [0.1]\n\n- family transformer: an old reason\n") == ["transformer"]
    assert unexplained(rows, {"transformer": 1.999}, "## [Unreleased]\n") == []
    assert before("# Benchmarks\n") == {}
