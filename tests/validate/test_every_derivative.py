"""Every operator of the catalogue has a tangent and an adjoint, is flat, or stands here with the reason why it has none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper

from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph, Value
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology.sources import Source
from lipaudit.validate import engine
from lipaudit.validate.adjoints import spelled, vjp
from lipaudit.validate.adjoints.derive import FLAT, RULES
from lipaudit.validate.exact import Evaluator, evaluated
from lipaudit.validate.lowering import LOWERINGS, lower
from lipaudit.validate.problem import Problem, prepare
from tests.validate.small import graph_of
from tests.validate.test_adjoints import errors
from tests.validate.test_lowering import One

ML = "ai.onnx.ml"
SEQUENCE = "sequences of known length are names of tensors before anything is measured; of another length they have no static shape"
WITHOUT = {
    "ai.onnx::Bernoulli": "draws anew at every call",
    "ai.onnx::BitwiseNot": "integers in and out",
    "ai.onnx::ConcatFromSequence": SEQUENCE,
    "ai.onnx::Constant": "has no input",
    "ai.onnx::If": "the branch that a fixed condition takes is put in its place; between branches the function jumps",
    "ai.onnx::Multinomial": "draws anew at every call",
    "ai.onnx::Optional": SEQUENCE,
    "ai.onnx::RandomNormal": "has no input",
    "ai.onnx::RandomUniform": "has no input",
    "ai.onnx::SequenceAt": SEQUENCE,
    "ai.onnx::SequenceConstruct": SEQUENCE,
    "ai.onnx::SequenceEmpty": SEQUENCE,
    "ai.onnx::SequenceErase": SEQUENCE,
    "ai.onnx::SequenceInsert": SEQUENCE,
    "ai.onnx::SequenceMap": SEQUENCE,
    "ai.onnx::SplitToSequence": SEQUENCE,
    "com.microsoft::EmbedLayerNormalization": "takes integer ids: its output is the source",
}


def _has_body(kind: str) -> bool:
    domain, op = kind.split("::")
    try:
        schema: Any = defs.get_schema(op, domain="" if domain == "ai.onnx" else domain)
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def test_every_operator_of_the_catalogue() -> None:
    catalogue = Catalogue.load()
    covered = {f"ai.onnx::{op}" for op in RULES} | FLAT | set(LOWERINGS)
    covered |= {kind for kind, entry in catalogue.entries.items() if entry.function}
    # What is recognised stands for nodes of the model; these are measured, never it (see validate/run.py).
    kinds = {kind for kind in catalogue.entries if not kind.startswith("lipaudit::")}
    open_ = {kind for kind in kinds if kind not in covered and kind not in WITHOUT and not _has_body(kind)}
    assert sorted(open_) == []
    assert sorted(set(WITHOUT) - kinds) == []
    assert sorted(set(WITHOUT) & covered) == []


def _n(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.5 * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def _std(op: str, inputs: Sequence[str], given: dict[str, list[int]], stored: dict[str, Any] | None = None, **rest: Any) -> One:
    rest.setdefault("domain", "")
    rest.setdefault("opset", 20)
    return One(op, inputs, given, stored or {}, rest.pop("outputs", ("y",)), **rest)


def _ml(op: str, outputs: Sequence[str] = ("y",), given: dict[str, list[int]] | None = None, **attrs: Any) -> One:
    free = given or {"x": [3, 4]}
    return One(op, list(free), free, {}, outputs, attrs, ML)


MACHINE = {"kernel_params": [0.3, 0.2, 2.0], "support_vectors": _n(5, 4).reshape(-1).tolist()}
GRID = {"x": [2, 2, 4, 5], "g": [2, 3, 2, 2]}
ROIS = {"r": np.float32([[0.6, 0.3, 5.2, 4.7], [2.1, 1.4, 6.3, 6.8], [-3.3, 0.7, 1.6, 9.2]]), "i": np.array([0, 1, 0])}
QX = {"xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.05), "yz": np.uint8(110)}
U8 = {"x": TensorProto.UINT8, "z": TensorProto.UINT8}

CASES: dict[str, One] = {
    **{
        f"GridSample {mode} {padding} {align}": _std("GridSample", ["x", "g"], GRID, attrs={
            "mode": mode, "padding_mode": padding, "align_corners": align})
        for mode, padding, align in itertools.product(("linear", "cubic", "nearest"), ("zeros", "border", "reflection"), (0, 1))
        if (mode, padding) != ("cubic", "border")
    },
    "GridSample volume": _std("GridSample", ["x", "g"], {"x": [1, 2, 3, 4, 3], "g": [1, 2, 3, 2, 3]}, attrs={"mode": "linear"}),
    "ms GridSample": One("GridSample", ["x", "g"], GRID, attrs={"mode": "bicubic", "padding_mode": "reflection"}),
    "AffineGrid": _std("AffineGrid", ["t", "s"], {"t": [2, 2, 3]}, {"s": np.array([2, 3, 4, 5])}, attrs={"align_corners": 1}),
    "AffineGrid volume": _std("AffineGrid", ["t", "s"], {"t": [1, 3, 4]}, {"s": np.array([1, 2, 2, 3, 2])}),
    "RoiAlign": _std("RoiAlign", ["x", "r", "i"], {"x": [2, 3, 8, 8]}, ROIS, attrs={"output_height": 2, "output_width": 3}),
    "RoiAlign pixels": _std("RoiAlign", ["x", "r", "i"], {"x": [2, 3, 8, 8]}, ROIS, attrs={
        "output_height": 2, "output_width": 3, "sampling_ratio": 2, "coordinate_transformation_mode": "output_half_pixel"}),
    "RoiAlign max": _std("RoiAlign", ["x", "r", "i"], {"x": [2, 3, 8, 8]}, ROIS, attrs={
        "output_height": 2, "output_width": 2, "mode": "max"}),
    "RoiAlign regions": _std("RoiAlign", ["x", "r", "i"], {"x": [1, 1, 8, 8], "r": [2, 4]}, {"i": np.array([0, 0])}, attrs={
        "output_height": 2, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 2.0}),
    "DeformConv": _std("DeformConv", ["x", "w", "o", "b", "m"], {
        "x": [1, 4, 5, 5], "w": [4, 2, 2, 3], "o": [1, 24, 2, 4], "b": [4], "m": [1, 12, 2, 4]},
        attrs={"group": 2, "offset_group": 2, "kernel_shape": [2, 3], "pads": [0, 1, 0, 0], "strides": [2, 1], "dilations": [1, 1]}),
    "ReverseSequence": _std("ReverseSequence", ["x", "n"], {"x": [4, 3, 2]}, {"n": np.array([4, 1, 3])}),
    "ReverseSequence rows": _std("ReverseSequence", ["x", "n"], {"x": [3, 4]}, {"n": np.array([4, 1, 3])}, attrs={
        "batch_axis": 0, "time_axis": 1}),
    "Compress": _std("Compress", ["x", "c"], {"x": [3, 4]}, {"c": np.array([True, False, True])}, attrs={"axis": 0}),
    "OptionalGetElement": _std("OptionalGetElement", ["x"], {"x": [3, 4]}),
    "Compress flat": _std("Compress", ["x", "c"], {"x": [3, 4]}, {"c": np.array([False, True, False, True, True])}),
    "TensorScatter": _std("TensorScatter", ["x", "u", "w"], {"x": [2, 3, 5, 2], "u": [2, 3, 2, 2]}, {"w": np.array([1, 3])}, opset=24),
    "TensorScatter ring": _std("TensorScatter", ["x", "u", "w"], {"x": [2, 5, 2], "u": [2, 2, 2]}, {"w": np.array([4, 3])}, opset=24,
                               attrs={"mode": "circular"}),
    **{
        f"CumProd {exclusive} {reverse}": _std("CumProd", ["x", "a"], {"x": [2, 4]}, {"a": np.array(1)}, opset=26, attrs={
            "exclusive": exclusive, "reverse": reverse})
        for exclusive, reverse in itertools.product((0, 1), (0, 1))
    },
    "MaxRoiPool": _std("MaxRoiPool", ["x", "r"], {"x": [2, 2, 6, 6]}, {
        "r": np.float32([[0, 0, 0, 3, 4], [1, 1, 2, 5, 5], [1, 4, 1, 4, 1]])}, attrs={"pooled_shape": [2, 3]}, opset=18),
    "STFT": _std("STFT", ["x", "s", "w"], {"x": [2, 12, 1]}, {"s": np.array(3), "w": _n(6)}, opset=18),
    "STFT two-sided": _std("STFT", ["x", "s", "", "n"], {"x": [1, 12, 2]}, {"s": np.array(4), "n": np.array(4)}, attrs={"onesided": 0}),
    "DFT": _std("DFT", ["x"], {"x": [2, 5, 2]}, opset=18),
    "DFT real half": _std("DFT", ["x", "n"], {"x": [2, 6, 1]}, {"n": np.array(8)}, attrs={"onesided": 1}),
    "DFT cut": _std("DFT", ["x", "n", "a"], {"x": [5, 3, 1]}, {"n": np.array(4), "a": np.array(0)}),
    "DFT inverse": _std("DFT", ["x", "n"], {"x": [2, 3, 2]}, {"n": np.array(5)}, attrs={"inverse": 1}),
    "Det one": _std("Det", ["x"], {"x": [3, 1, 1]}), "Det": _std("Det", ["x"], {"x": [2, 3, 3]}),
    "Det single": _std("Det", ["x"], {"x": [4, 4]}),
    "Col2Im": _std("Col2Im", ["x", "s", "k"], {"x": [2, 12, 12]}, {"s": np.array([5, 6]), "k": np.array([2, 3])}, attrs={
        "pads": [1, 0, 1, 0], "strides": [2, 1], "dilations": [1, 1]}),
    "TopK": _std("TopK", ["x", "k"], {"x": [3, 6]}, {"k": np.array([2])}, outputs=("y", "i")),
    "TopK least": _std("TopK", ["x", "k"], {"x": [6, 3]}, {"k": np.array([4])}, outputs=("y", "i"), attrs={"largest": 0, "axis": 0}),
    "MaxUnpool": _std("MaxUnpool", ["x", "i"], {"x": [1, 2, 2, 2]}, {"i": np.array([[[[1, 2], [8, 15]], [[16, 19], [25, 30]]]])}, attrs={
        "kernel_shape": [2, 2], "strides": [2, 2]}),
    **{f"LpPool {p}": _std("LpPool", ["x"], {"x": [1, 2, 5, 5]}, attrs={
        "kernel_shape": [2, 3], "strides": [2, 1], "p": p}) for p in (1, 2, 3)},
    **{f"GlobalLpPool {p}": _std("GlobalLpPool", ["x"], {"x": [2, 2, 3, 2]}, attrs={"p": p}) for p in (1, 2, 3)},
    **{f"LpNormalization {p}": _std("LpNormalization", ["x"], {"x": [2, 4, 3]}, attrs={"p": p, "axis": 1}) for p in (1, 2)},
    **{
        f"{op} {mode}": _std(op, ["x", "i", "u"], {"x": [4, 3], "u": [3, 3] if op == "ScatterND" else [3, 2]}, {
            "i": np.array([[2], [0], [2]]) if op == "ScatterND" and mode != "none" else
            np.array([[2], [0], [-1]]) if op == "ScatterND" else np.array([[1, 2], [-4, 2], [3, 1]])}, attrs={"reduction": mode})
        for op, mode in itertools.product(("ScatterND", "ScatterElements"), ("none", "add", "mul", "max", "min"))
    },
    "Scatter": _std("Scatter", ["x", "i", "u"], {"x": [4, 3], "u": [2, 2]}, {"i": np.array([[1, 2], [0, 0]])}, opset=10),
    "Mod": _std("Mod", ["x", "z"], {"x": [3, 4], "z": [4]}, attrs={"fmod": 1}),
    "Acosh": _std("Acosh", ["a"], {"a": [5]}),
    "PRelu": _std("PRelu", ["x", "s"], {"x": [3, 4], "s": [4]}), "Pow": _std("Pow", ["a", "p"], {"a": [3, 4], "p": [4]}),
    "Affine": One("Affine", ["x"], {"x": [3]}, attrs={"alpha": 2.0, "beta": 3.0}, domain="", opset=9),
    "ParametricSoftplus": One("ParametricSoftplus", ["x"], {"x": [3]}, attrs={"alpha": 2.0, "beta": 3.0}, domain="", opset=9),
    "ScaledTanh": One("ScaledTanh", ["x"], {"x": [3]}, attrs={"alpha": 2.0, "beta": 3.0}, domain="", opset=9),
    "SimplifiedLayerNormalization": _std("SimplifiedLayerNormalization", ["x", "s"], {"x": [3, 4], "s": [4]}),
    "Conv weight": _std("Conv", ["x", "w", "b"], {"x": [2, 4, 5, 5], "w": [6, 2, 2, 3], "b": [6]}, attrs={
        "group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 0, 2]}),
    "ConvTranspose weight": _std("ConvTranspose", ["x", "w", "b"], {"x": [2, 4, 3, 3], "w": [4, 3, 2, 3], "b": [6]}, attrs={
        "group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 0, 2], "output_padding": [1, 0]}),
    "BatchNormalization": _std("BatchNormalization", ["x", "s", "b", "m", "a"], {
        "x": [3, 2, 2], "s": [2], "b": [2], "m": [2], "a": [2]}),
    "BatchNormalization training": _std("BatchNormalization", ["x", "s", "b", "m", "a"], {"x": [3, 2, 2], "m": [2], "a": [2]}, {
        "s": _n(2), "b": _n(2)}, outputs=("y", "m2", "a2"), attrs={"training_mode": 1, "momentum": 0.7}),
    "InstanceNormalization": _std("InstanceNormalization", ["x", "s", "b"], {"x": [2, 3, 4], "s": [3], "b": [3]}),
    "LayerNormalization": _std("LayerNormalization", ["x", "s", "b"], {"x": [2, 3, 4], "s": [4], "b": [4]}),
    "DequantizeLinear blocks": _std("DequantizeLinear", ["x", "s", "z"], {"s": [2, 3]}, {
        "x": np.arange(10, dtype=np.int8).reshape(2, 5), "z": np.int8([[1, 2, 3], [4, 5, 6]])}, attrs={"block_size": 2}, opset=21),
    "ConvInteger": _std("ConvInteger", ["x", "w", "z0"], {"x": [1, 2, 5, 5]}, {
        "w": np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3), "z0": np.uint8(100)}, types={"x": TensorProto.UINT8}, opset=10),
    "QAttention": One("QAttention", ["x", "w", "b", "xs", "ws", "m", "xz", "wz"], {"x": [1, 3, 4]}, {
        "w": np.random.default_rng(0).integers(0, 255, (4, 12)).astype(np.uint8), "b": _n(12), "xs": np.float32(0.02),
        "ws": np.float32(0.02), "m": np.array([[1, 1, 0]], dtype=np.int32), "xz": np.uint8(120), "wz": np.uint8(130)},
        attrs={"num_heads": 2}, types=U8, steps=1e-5),
    "QLinearReduceMean": One("QLinearReduceMean", ["x", "xs", "xz", "ys", "yz"], {"x": [2, 3, 4]}, QX, attrs={
        "axes": [1], "keepdims": 0}, types=U8, steps=1.0, opset=13),
    "QLinearWhere": One("QLinearWhere", ["c", "x", "xs", "xz", "z", "xs", "xz", "ys", "yz"], {"x": [2, 3], "z": [2, 3]}, {
        **QX, "c": np.array([[True, False, True]] * 2)}, types=U8, steps=1.0),
    "NhwcMaxPool": One("NhwcMaxPool", ["x"], {"x": [1, 5, 5, 2]}, attrs={"kernel_shape": [2, 2], "strides": [2, 2]}, types=U8),
    "ms Trilu": One("Trilu", ["x", "k"], {"x": [3, 4]}, {"k": np.array(1)}, attrs={"upper": 0}),
    "Scaler": _ml("Scaler", offset=[0.1, 0.2, 0.3, 0.4], scale=[2.0, 1.0, -1.0, 0.5]),
    **{f"Normalizer {norm}": _ml("Normalizer", norm=norm) for norm in ("MAX", "L1", "L2")},
    "Imputer": _ml("Imputer", imputed_value_floats=[0.5, 0.6, 0.7, 0.8], replaced_value_float=float("nan")),
    "FeatureVectorizer": _ml("FeatureVectorizer", given={"x": [2, 3], "z": [2, 2]}, inputdimensions=[3, 2]),
    "ArrayFeatureExtractor": One("ArrayFeatureExtractor", ["x", "i"], {"x": [3, 4]}, {"i": np.array([[3, 1]])}, domain=ML),
    "LinearRegressor": _ml("LinearRegressor", coefficients=_n(8).tolist(), intercepts=[0.1, 0.2], targets=2),
    **{
        f"LinearClassifier {transform}": _ml("LinearClassifier", ("l", "y"), coefficients=_n(12).tolist(), intercepts=[0.1, 0.2, 0.3],
                                             classlabels_ints=[0, 1, 2], post_transform=transform)
        for transform in ("NONE", "LOGISTIC", "SOFTMAX")
    },
    **{
        f"SVMRegressor {kernel}": _ml("SVMRegressor", coefficients=_n(5).tolist(), rho=[0.3], n_supports=5, kernel_type=kernel, **MACHINE)
        for kernel in ("LINEAR", "RBF", "POLY", "SIGMOID")
    },
    "SVMClassifier": _ml("SVMClassifier", ("l", "y"), coefficients=_n(10).tolist(), rho=[0.1, 0.2, 0.3], classlabels_ints=[0, 1, 2],
                         vectors_per_class=[2, 1, 2], kernel_type="RBF", **MACHINE),
}  # fmt: skip

# onnxruntime has no kernel of these, or none for these attributes, or another reading of them (see the lowerings): only derivatives.
ONLY_DERIVATIVES = {
    "BatchNormalization training", "CumProd 0 0", "CumProd 0 1", "CumProd 1 0", "CumProd 1 1", "Det single", "QLinearReduceMean",
    "STFT two-sided",
}  # fmt: skip


def _graph(case: One) -> Graph:
    graph = case.graph()
    if case.op in {"Affine", "ParametricSoftplus", "ScaledTanh"}:  # of no schema: files say the type of what they compute
        graph = replace(graph, values={**graph.values, "y": replace(graph.value("x"), name="y")})
    if case.op == "SVMClassifier":  # whose scores no inference types
        graph = replace(graph, values={**graph.values, "y": Value("y", "float32", (3, 3))})
    return replace(graph, outputs=tuple(name for name in graph.outputs if graph.value(name).is_float) or graph.outputs[:1])


def _feeds(graph: Graph, seed: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for value in graph.inputs:
        assert value.shape is not None
        free = rng.standard_normal(value.shape) if value.is_float else rng.integers(60, 180, value.shape)
        # Inputs called a are above 1: of the operators that are defined there; regions have their corners in order.
        free = 1.2 + np.abs(free) if value.name == "a" else free
        if value.name == "r":
            free = np.array([0.31, 0.47, 2.13, 2.71]) + 0.2 * free
        feeds[value.name] = free.astype(value.dtype)
    return feeds


@pytest.mark.parametrize("name", list(CASES))
def test_tangent_and_adjoint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SMALL", -1)
    graph = _graph(CASES[name])
    feeds = _feeds(graph)
    inputs = [value.name for value in graph.inputs]
    if not all(value.is_float for value in graph.inputs) or not graph.value(graph.outputs[0]).is_float:
        # Steps: their middle line is followed, which differences do not see. Both directions exist.
        lowered = spelled(graph, inputs, graph.outputs, {}).graph
        assert any(vjp(lowered, inputs, graph.outputs).results)
        return
    sources = [Source(value.name, "input", value, value.name) for value in graph.inputs]
    problem = prepare(graph, sources, {}, None, 0, None)
    assert isinstance(problem, Problem)
    point = np.concatenate([feeds[part.name].reshape(-1) for part in problem.parts]).astype(np.float64)
    found = errors(problem, point)
    assert not isinstance(found, str), found
    assert found[0] < 1e-5
    assert found[1] < 2e-3


@pytest.mark.parametrize("name", [name for name in CASES if name not in ONLY_DERIVATIVES])
def test_the_spelled_graph_computes_what_onnxruntime_does(name: str) -> None:
    case = CASES[name]
    graph = _graph(case)
    feeds = _feeds(graph)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(to_model(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = dict(zip(graph.outputs, session.run(list(graph.outputs), feeds), strict=True))
    found = Evaluator(lower(graph, lambda node: evaluated(node) and node.kind not in LOWERINGS).graph).run(feeds, graph.outputs)
    for output in graph.outputs:
        off = np.abs(found[output].astype(np.float64) - wanted[output].astype(np.float64))
        assert off.max() <= 1e-5 * max(1.0, float(np.abs(wanted[output]).max())) + case.steps, output


def test_every_rule_and_every_spelling_of_this_package_has_a_case() -> None:
    from tests.validate.test_lowering import CASES as COMPOUND

    tried = {f"{case.domain or 'ai.onnx'}::{case.op}" for case in (*CASES.values(), *COMPOUND.values())}
    # A body that reads nested graphs, which no one-node case of this table has: below.
    assert sorted(set(LOWERINGS) - tried - {"ai.onnx.preview::FlexAttention"}) == []


def test_a_score_function_inside_an_attention() -> None:
    score = helper.make_graph(
        [helper.make_node("Tanh", ["s"], ["t"])], "score", [helper.make_tensor_value_info("s", 1, [1, 2, 3, 4])],
        [helper.make_tensor_value_info("t", 1, [1, 2, 3, 4])],
    )  # fmt: skip
    node = helper.make_node("FlexAttention", ["q", "k", "v"], ["y"], domain="ai.onnx.preview", score_mod=score)
    given = {"q": [1, 2, 3, 5], "k": [1, 2, 4, 5], "v": [1, 2, 4, 5]}
    graph = graph_of([node], given, ["y"], opset=min(26, onnx.defs.onnx_opset_version()), domains=["ai.onnx.preview"])
    problem = prepare(graph, [Source(value.name, "input", value, value.name) for value in graph.inputs], {}, None, 0, None)
    assert isinstance(problem, Problem)
    found = errors(problem, np.random.default_rng(0).standard_normal(problem.size))
    assert not isinstance(found, str), found
    assert found[0] < 1e-5
    assert found[1] < 2e-3
