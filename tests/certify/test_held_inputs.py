"""Boxes on inputs that are no sources, and masks of zeros and ones that no box names."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipaudit.certify.domain import parse_boxes
from lipaudit.certify.masks import assumed_masks
from lipaudit.errors import UsageError
from tests.pipeline import certificate, topology


def _pooled(*, forbids: bool) -> onnx.ModelProto:
    """Mean over the tokens that an integer mask keeps; ``forbids``: the mask also forbids keys of an attention."""
    nodes = [
        helper.make_node("Cast", ["attend"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["column"]),
        helper.make_node("Mul", ["x", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["y"], keepdims=0),
    ]
    if forbids:
        nodes += [
            helper.make_node("Sub", ["one", "m"], ["off"]),
            helper.make_node("Mul", ["off", "low"], ["bias"]),
            helper.make_node("Add", ["y", "bias"], ["z"]),
        ]
    graph = helper.make_graph(
        nodes, "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4]),
            helper.make_tensor_value_info("attend", TensorProto.INT64, [1, 4]),
        ],
        [helper.make_tensor_value_info("z" if forbids else "y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([2], np.int64), "last"), numpy_helper.from_array(np.array([1], np.int64), "tokens"),
            numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.float32(-1e4), "low"),
        ],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def test_a_box_on_an_integer_input_bounds_what_it_multiplies() -> None:
    model = _pooled(forbids=False)
    assert certificate(model).headline.status == "unknown"
    found = certificate(model, boxes=["attend=0:3"]).headline
    assert found.status == "finite"
    assert 6.0 <= float(found.slope) < 6.001  # 3 sqrt(4), attained


def test_a_mask_of_zeros_and_ones_is_assumed_only_where_it_forbids_keys() -> None:
    assert assumed_masks(topology(_pooled(forbids=False)).graph) == ()
    model = _pooled(forbids=True)
    assert assumed_masks(topology(model).graph) == ("attend",)
    assert 2.0 <= float(certificate(model).headline.slope) < 2.001
    assert 6.0 <= float(certificate(model, boxes=["attend=0:3"]).headline.slope) < 6.001


def test_a_box_that_names_nothing_is_refused() -> None:
    found = topology(_pooled(forbids=False))
    with pytest.raises(UsageError, match="mask"):
        parse_boxes(["mask=0:1"]).check(found.sources, "m.onnx", found.simplified.inputs)
    parse_boxes(["attend=0:1"]).check(found.sources, "m.onnx", found.simplified.inputs)


def test_a_box_of_integers_holds_one() -> None:
    found = topology(_pooled(forbids=False))
    with pytest.raises(UsageError, match="integer"):
        certificate(_pooled(forbids=False), boxes=["attend=1/4:3/4"])
    ends = parse_boxes(["attend=1/4:5/4"]).inner(found.sources, found.simplified.inputs)["attend"]
    assert [float(end) for end in ends] == [1.0, 1.0]
