"""Neighbours that undo each other go, those that only look so stay; the graph computes the same to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.graph.running import assert_same_function, model, simplified

N = helper.make_node
SHAPES = {
    "flat": np.array([6]),
    "pair": np.array([1, 2, 3, 1]),
    "back": np.array([1, 2, 3]),
    "axes": np.array([0]),
    "other": np.array([3, 2]),
}
TOGETHER = {
    # nodes between h = Relu(x) [1, 2, 3] and y = Neg(i), and what is left
    "transposes that undo each other": ([N("Transpose", ["h"], ["a"], perm=[2, 0, 1]), N("Transpose", ["a"], ["i"], perm=[1, 2, 0])], []),
    "two transposes": (
        [N("Transpose", ["h"], ["a"], perm=[2, 0, 1]), N("Transpose", ["a"], ["i"], perm=[0, 2, 1])],
        ["Transpose"],
    ),
    "three transposes": (
        [N("Transpose", ["h"], ["a"]), N("Transpose", ["a"], ["b"], perm=[1, 2, 0]), N("Transpose", ["b"], ["i"], perm=[2, 1, 0])],
        ["Transpose"],
    ),
    "shapes that come back": ([N("Reshape", ["h", "flat"], ["a"]), N("Reshape", ["a", "back"], ["i"])], []),
    "shapes that come back on a detour": (
        [N("Unsqueeze", ["h", "axes"], ["a"]), N("Reshape", ["a", "flat"], ["b"]), N("Reshape", ["b", "back"], ["i"])],
        [],
    ),
    "casts to a wider type": ([N("Cast", ["h"], ["a"], to=TensorProto.DOUBLE), N("Cast", ["a"], ["i"], to=TensorProto.FLOAT)], []),
    "a difference as a sum": ([N("Neg", ["x"], ["a"]), N("Add", ["h", "a"], ["i"])], ["Sub"]),
    "a difference as a sum, other order": ([N("Neg", ["x"], ["a"]), N("Add", ["a", "h"], ["i"])], ["Sub"]),
    "a choice by the opposite": (
        [N("Greater", ["x", "h"], ["c"]), N("Not", ["c"], ["d"]), N("Where", ["d", "h", "x"], ["i"])],
        ["Greater", "Where"],
    ),
}
APART = {
    "casts to a narrower type": [N("Cast", ["h"], ["a"], to=TensorProto.FLOAT16), N("Cast", ["a"], ["i"], to=TensorProto.FLOAT)],
    "a shape of other rows": [N("Reshape", ["h", "flat"], ["a"]), N("Reshape", ["a", "other"], ["i"])],
    "a transpose between shapes": [
        N("Reshape", ["h", "other"], ["a"]), N("Transpose", ["a"], ["b"]), N("Reshape", ["b", "back"], ["i"]),
    ],
    "a negation that is read twice": [N("Neg", ["h"], ["a"]), N("Add", ["x", "a"], ["b"]), N("Mul", ["a", "b"], ["i"])],
    "a transpose that is read twice": [
        N("Transpose", ["h"], ["a"], perm=[0, 2, 1]), N("Transpose", ["a"], ["b"], perm=[1, 0, 2]), N("Mul", ["a", "b"], ["i"]),
    ],
}  # fmt: skip


def proto(nodes: list[Any], *outputs: str) -> Any:
    return model([N("Relu", ["x"], ["h"]), *nodes, N("Neg", ["i"], ["y"])], {"x": [1, 2, 3]}, ["y", *outputs], SHAPES)


@pytest.mark.parametrize("case", TOGETHER)
def test_neighbours_are_taken_together(tmp_path: Path, case: str) -> None:
    nodes, left = TOGETHER[case]
    before = proto(nodes)
    graph = simplified(before, tmp_path)
    assert [node.op for node in graph.nodes] == ["Relu", *left, "Neg"]
    assert_same_function(before, graph)


@pytest.mark.parametrize("case", APART)
def test_neighbours_that_only_look_so_stay(tmp_path: Path, case: str) -> None:
    before = proto(APART[case])
    graph = simplified(before, tmp_path)
    assert [node.op for node in graph.nodes] == ["Relu", *(node.op_type for node in APART[case]), "Neg"]
    assert_same_function(before, graph)


@pytest.mark.parametrize("case", TOGETHER)
def test_values_between_that_are_outputs_stay(tmp_path: Path, case: str) -> None:
    nodes, _ = TOGETHER[case]
    between = [name for node in nodes for name in node.output if name not in ("i", "c", "d")]
    before = proto(nodes, *between, "i")
    graph = simplified(before, tmp_path)
    assert graph.outputs == ("y", *between, "i")
    assert_same_function(before, graph)


def test_an_inactive_dropout_of_constants_is_folded(tmp_path: Path) -> None:
    nodes = [N("Dropout", ["w"], ["v"]), N("Mul", ["x", "v"], ["y"])]
    before = model(nodes, {"x": [1, 3]}, ["y"], {"w": np.arange(3, dtype=np.float32)})
    graph = simplified(before, tmp_path)
    assert [node.op for node in graph.nodes] == ["Mul"]
    assert_same_function(before, graph)
    training = model([N("Dropout", ["w", "r", "t"], ["v"]), N("Mul", ["x", "v"], ["y"])], {"x": [1, 3]}, ["y"],
                     {"w": np.arange(3, dtype=np.float32), "r": np.float32(0.5), "t": np.array(True)})  # fmt: skip
    assert [node.op for node in simplified(training, tmp_path).nodes] == ["Dropout", "Mul"]
