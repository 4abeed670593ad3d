"""The float64 evaluation means what onnx and onnxruntime mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Constant
from lipaudit.validate.exact import Evaluator, NotExact
from lipaudit.validate.exact.evaluator import OPERATORS
from tests.validate.small import graph_of, real_graph
from tests.validate.suite import Case, cases

# Where onnx and onnxruntime differ we follow onnxruntime, which runs the model.
RUNTIME_DECIDES = {
    "test_resize_downsample_scales_linear_align_corners",  # onnx scales by the unrounded output length
    "test_resize_downsample_scales_cubic_align_corners",
    "test_dynamicquantizelinear",  # a tie that float32 breaks
}


def _wrong(case: Case) -> str:
    """Why the evaluation of a case is wrong; "" if it is right or refused."""
    try:
        found = Evaluator(case.graph).run(case.feeds, list(case.expected))
    except NotExact:
        return "refused"
    for name, expected in case.expected.items():
        value = found[name]
        if value.shape != expected.shape:
            return f"{case.name}: shape {value.shape} for {expected.shape}"
        tolerance = 2e-2 if any(a.dtype == np.float16 for a in case.feeds.values()) else 1e-3
        if not np.allclose(value.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=1e-5, equal_nan=True):
            return f"{case.name}: {value.reshape(-1)[:4]} for {expected.reshape(-1)[:4]}"
    return ""


def test_onnx_operator_suite() -> None:
    outcomes = {case.name: _wrong(case) for case in cases() if case.op in OPERATORS and case.name not in RUNTIME_DECIDES}
    assert [text for text in outcomes.values() if text not in {"", "refused"}] == []
    right = sum(text == "" for text in outcomes.values())
    assert right >= 650
    assert right >= 0.85 * len(outcomes)


@pytest.mark.parametrize(
    "name",
    ["cgan_32_1", "cgan_32_3_upsample", "vnn_tinyyolo", "silero_vad_sequence", "micro_kws_qdq", "magika_v3_3", "exports/unet_gn_silu.dyn23",
     "exports/llama.dyn23", "exports/lstm_torch.dyn18", "exports/vit.legacy17", "exports/bert_ortfused", "exports/gpt2.dyn23"],
)  # fmt: skip
def test_real_models_agree_with_onnxruntime(models: Path, name: str) -> None:
    graph = real_graph(models / f"{name}.onnx")
    rng = np.random.default_rng(0)
    feeds = {}
    for value in graph.inputs:
        assert value.shape is not None
        draw = rng.standard_normal(value.shape) if value.is_float else np.ones(value.shape)
        feeds[value.name] = draw.astype(value.dtype)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_model(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(dict.fromkeys(graph.outputs))
    found = Evaluator(graph).run(feeds, names)
    for name, expected in zip(names, session.run(names, feeds), strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-5 * (1 + np.abs(expected).max()))


def test_batch_normalization_uses_stored_statistics_whatever_its_momentum() -> None:
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], momentum=0.8)
    constants = {"s": [2.0, 3.0], "b": [0.5, -1.0], "m": [1.0, 0.0], "v": [4.0, 0.25]}
    graph = graph_of([node], {"x": [2, 2, 2]}, ["y"], {k: np.array(v) for k, v in constants.items()}, opset=9)
    x = np.arange(8.0).reshape(2, 2, 2)
    s, b, m, v = (np.array(constants[k])[None, :, None] for k in "sbmv")
    expected = s * (x - m) / np.sqrt(v + np.float32(1e-5)) + b
    np.testing.assert_allclose(Evaluator(graph).run({"x": x}, ["y"])["y"], expected, rtol=1e-12)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_uniform_weights_are_not_materialised(op: str) -> None:
    shapes = {"MatMul": ((2, 30), (30, 20)), "Gemm": ((2, 30), (20, 30)), "Conv": ((1, 4, 6, 6), (8, 2, 3, 3))}[op]
    attrs = {"MatMul": {}, "Gemm": {"transB": 1}, "Conv": {"group": 2, "pads": [1, 1, 1, 1]}}[op]
    node = helper.make_node(op, ["x", "w"], ["y"], **attrs)
    plain = graph_of([node], {"x": shapes[0]}, ["y"], {"w": np.full(shapes[1], 0.3)})

    def refuse() -> np.ndarray:
        raise AssertionError("the uniform weight was read")

    fill = Constant("w", "float32", shapes[1], refuse, fill=float(np.float32(0.3)))
    lazy = plain.with_nodes(plain.nodes, constants={"w": fill})
    x = np.random.default_rng(0).standard_normal(shapes[0])
    np.testing.assert_allclose(Evaluator(lazy).run({"x": x}, ["y"])["y"], Evaluator(plain).run({"x": x}, ["y"])["y"], rtol=1e-12)


def test_a_loop_runs_and_can_be_stopped() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["s", "s"], ["t"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("t", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    graph = graph_of([node], {"x": [2], "n": []}, ["y"], types={"n": TensorProto.INT64})
    feeds = {"x": np.ones(2), "n": np.array(5)}
    np.testing.assert_array_equal(Evaluator(graph).run(feeds, ["y"])["y"], [32, 32])
    steps = []

    def check() -> None:
        steps.append(1)
        if len(steps) > 100:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        Evaluator(graph, check=check).run(feeds | {"n": np.array(10**12)}, ["y"])


def test_an_unknown_operator_is_named() -> None:
    graph = graph_of([helper.make_node("Mystery", ["x"], ["y"], domain="nowhere")], {"x": [1]}, ["y"], domains=["nowhere"])
    with pytest.raises(NotExact, match="Mystery"):
        Evaluator(graph).run({"x": np.ones(1)}, ["y"])
