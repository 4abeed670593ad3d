"""Tangents and adjoints agree with each other and with central differences in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from lipaudit.graph.ir import Constant, Graph, Value
from lipaudit.validate import engine
from lipaudit.validate.adjoints import NoDerivative, jvp
from lipaudit.validate.adjoints.derive import RULES
from lipaudit.validate.engine import Engine
from lipaudit.validate.exact import Evaluator, NotExact, evaluated
from lipaudit.validate.lowering import lower
from lipaudit.validate.problem import Part, Problem, prepare
from lipaudit.validate.session import Deadline
from tests.validate.small import graph_of, real_graph
from tests.validate.suite import Case, cases


@pytest.fixture(autouse=True)
def _both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SMALL", -1)


def errors(problem: Problem, point: np.ndarray, probes: int = 3) -> tuple[float, float] | str:
    """Relative disagreement of J't with J'c, and of J t with central differences; or why there is no derivative."""
    made = Engine(problem, "cpu", Deadline(None))
    if not made.differentiable:
        return made.why_no_derivative
    rng = np.random.default_rng(1)
    state = made.state(point)
    cotangents, tangents = rng.standard_normal((probes, made.outputs)), rng.standard_normal((probes, problem.size))
    pulled, pushed = made.pull(state, cotangents), made.push(state, tangents)
    size = np.linalg.norm(pushed) * np.linalg.norm(cotangents) + 1e-30
    dot = float(np.abs(pulled @ tangents.T - cotangents @ pushed.T).max() / size)
    exact = Evaluator(lower(problem.graph, evaluated).graph)

    def value(x: np.ndarray) -> np.ndarray:
        found = exact.run(problem.feeds(x, double=True), problem.outputs)
        return np.concatenate([found[name].reshape(-1) for name in problem.outputs])

    step = 1e-6
    slopes = np.array([(value(point + step * t) - value(point - step * t)) / (2 * step) for t in tangents])
    return dot, float(np.linalg.norm(slopes - pushed) / (np.linalg.norm(slopes) + 1e-12))


def _problem(case: Case, moving: Sequence[str]) -> tuple[Problem, np.ndarray] | None:
    types = {name: Value(name, str(array.dtype), array.shape) for name, array in (case.feeds | case.expected).items()}
    outputs = [name for name, array in case.expected.items() if array.dtype in (np.float32, np.float64) and array.size][:1]
    if not outputs:
        return None
    held = {name: Constant.of(name, array) for name, array in case.feeds.items() if name not in moving}
    graph: Graph = replace(
        case.graph, inputs=tuple(types[name] for name in moving), outputs=tuple(outputs),
        constants={**case.graph.constants, **held}, values={**case.graph.values, **types},
    )  # fmt: skip
    parts, start = [], 0
    for name in moving:
        parts.append(Part(name, types[name].shape or (), types[name].dtype, slice(start, start + case.feeds[name].size)))
        start = parts[-1].place.stop
    point = np.concatenate([case.feeds[name].reshape(-1).astype(np.float64) for name in moving])
    # Off ties and kinks, where no derivative is right.
    point = point + 0.01 * np.random.default_rng(2).standard_normal(point.size)
    # Inside of where the operator is defined, not on its edge.
    point = np.maximum(point, 1.1) if case.op == "Acosh" else point
    return Problem(graph, tuple(parts), tuple(outputs), np.full(start, -np.inf), np.full(start, np.inf), {}), point


# onnxruntime has no kernel for these types, or not at this version.
NO_KERNEL = "NOT_IMPLEMENTED", "INVALID_GRAPH", "not implemented", "Could not find", "mod_internal"


def test_onnx_operator_suite() -> None:
    wrong: list[str] = []
    checked: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for case in cases():
        floats = [name for name, array in case.feeds.items() if array.dtype in (np.float32, np.float64) and array.size]
        if not floats or tried[case.op] >= 4 or "fullymasked" in case.name or "robustness" in case.name:
            continue
        for moving in {tuple(floats[:1]), tuple(floats)}:
            made = _problem(case, moving)
            if made is None:
                continue
            tried[case.op] += 1
            try:
                found = errors(*made)
            except RuntimeError as error:
                if not any(text in str(error) for text in NO_KERNEL):
                    wrong.append(f"{case.name}: {error}")
                continue
            except NotExact:
                continue
            if isinstance(found, str):
                continue
            checked[case.op] += 1
            if found[0] > 1e-5 or not found[1] < 2e-3:
                wrong.append(f"{case.name} {moving}: dot {found[0]:.1e}, differences {found[1]:.1e}")
    assert wrong == []
    # These have no case with static float data; the tests below and those of test_every_derivative have them.
    elsewhere = {
        "Affine", "Cast", "ConvInteger", "CumSum", "DequantizeLinear", "Dropout", "DynamicQuantizeLinear", "GlobalLpPool", "MatMulInteger",
        "Pad", "ParametricSoftplus", "QuantizeLinear", "Resize", "ScaledTanh", "Trilu", "Upsample",
    }  # fmt: skip
    assert sorted(set(RULES) - set(checked) - elsewhere) == []


def _own(op: str) -> Graph:
    x = {"x": [1, 2, 4, 4]}
    if op == "Pad":
        return graph_of([helper.make_node("Pad", ["x", "p"], ["y"])], x, ["y"], {"p": np.array([0, 0, 1, 0, 0, 0, -1, 2])})
    if op == "Pad reflect":
        return graph_of([helper.make_node("Pad", ["x", "p"], ["y"], mode="reflect")], x, ["y"], {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])})
    if op == "CumSum":
        return graph_of([helper.make_node("CumSum", ["x", "a"], ["y"], exclusive=1)], x, ["y"], {"a": np.array(2)})
    if op == "Trilu":
        return graph_of([helper.make_node("Trilu", ["x"], ["y"])], x, ["y"])
    if op == "Cast":
        nodes = [
            helper.make_node("Cast", ["x"], ["d"], to=11),
            helper.make_node("Mul", ["d", "d"], ["e"]),
            helper.make_node("Cast", ["e"], ["y"], to=1),
        ]
        return graph_of(nodes, x, ["y"])
    if op == "Resize linear":
        node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")
        return graph_of([node], x, ["y"], {"s": np.array([1, 1, 2, 2.0])})
    if op == "Resize nearest":
        return graph_of([helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")], x, ["y"], {"s": np.array([1, 1, 2, 1.5])})
    if op == "Upsample":
        return graph_of(
            [helper.make_node("Upsample", ["x", "s"], ["y"], mode="nearest")], x, ["y"], {"s": np.array([1, 1, 2, 2.0])}, opset=9
        )
    if op == "ConvTranspose":
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 1], output_padding=[1, 0], pads=[1, 0, 0, 1], group=2)
        return graph_of([node], x, ["y"], {"w": np.random.default_rng(0).standard_normal((2, 3, 3, 2))})
    if op == "Conv dilated":
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 1], dilations=[1, 2], pads=[1, 0, 0, 2])
        return graph_of([node], x, ["y"], {"w": np.random.default_rng(0).standard_normal((3, 2, 2, 2)), "b": np.ones(3)})
    if op == "Conv same":
        node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], auto_pad="SAME_LOWER")
        return graph_of([node], x, ["y"], {"w": np.random.default_rng(0).standard_normal((3, 2, 2, 3))})
    if op == "uniform":
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["y"]),
        ]
        graph = graph_of(nodes, x, ["y"], {"w": np.full((300, 2, 3, 3), 0.5), "m": np.full((4800, 5), 0.1)})
        fills = {"w": Constant("w", "float32", (300, 2, 3, 3), graph.constants["w"].array, fill=0.5),
                 "m": Constant("m", "float32", (4800, 5), graph.constants["m"].array, fill=float(np.float32(0.1)))}  # fmt: skip
        return graph.with_nodes(graph.nodes, constants=fills)
    raise AssertionError(op)


@pytest.mark.parametrize(
    "op",
    [
        "Pad",
        "Pad reflect",
        "CumSum",
        "Trilu",
        "Cast",
        "Resize linear",
        "Resize nearest",
        "Upsample",
        "ConvTranspose",
        "Conv dilated",
        "Conv same",
        "uniform",
    ],
)
def test_own_cases(op: str) -> None:
    graph = _own(op)
    problem = prepare(graph, [_source(graph, "x")], {}, None, 0, None)
    assert isinstance(problem, Problem)
    found = errors(problem, np.random.default_rng(3).standard_normal(problem.size))
    assert not isinstance(found, str), found
    assert found[0] < 1e-5
    assert found[1] < 1e-3


def _source(graph: Graph, name: str):  # noqa: ANN202
    from lipaudit.topology.sources import Source

    return Source(name, "input", graph.value(name), name)


@pytest.mark.parametrize(
    ("name", "most"),
    [("cifar10_resnet_2b", 1e-5), ("cgan_32_1", 1e-2), ("vnn_tinyyolo", 1e-5), ("vnn_vit_ibp_3_3_8", 1e-4), ("exports/vit.dyn18", 1e-4),
     ("exports/vit.dyn23", 1e-4), ("exports/convnext.dyn18", 1e-4), ("exports/sdpa_rmsnorm.dyn23", 1e-4), ("exports/gpt2.dyn18", 1e-4),
     ("exports/llama.dyn18", 1e-4), ("exports/resnet50_external", 1e-4), ("exports/unet_gn_silu.dyn18", 1e-4), ("ml4acopf_14", 1e-4),
     ("exports/bert_ortfused", 1e-4), ("genai_gpt2_fp32", 1e-4), ("exports/loop_scripted.legacy17", 1e-4), ("silero_vad_ifless", 1e-4),
     ("silero_vad_op15", 1e-4), ("silero_vad_sequence", 1e-4), ("romanizer_encoder", 1e-4), ("brainmaze_seizure_a", 1e-4)],
)  # fmt: skip
def test_real_models(models: Path, name: str, most: float) -> None:
    from lipaudit.topology.sources import find_sources

    graph = real_graph(models / f"{name}.onnx")
    problem = prepare(graph, find_sources(graph), {}, None, 0, None)
    assert isinstance(problem, Problem)
    found = errors(problem, problem.clip(np.random.default_rng(0).standard_normal(problem.size)), 1)
    assert not isinstance(found, str), found
    assert found[0] < 1e-5
    assert found[1] < most


def test_a_layer_quantised_on_the_fly_has_the_slope_of_the_real_layer() -> None:
    rng = np.random.default_rng(4)
    weight, zero, scale = rng.integers(-90, 90, (6, 5)).astype(np.int8), np.array(3, dtype=np.int8), np.float32(0.02)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "w0"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Mul", ["s", "ws"], ["both"]),
        helper.make_node("Mul", ["f", "both"], ["y"]),
    ]
    graph = graph_of(nodes, {"x": [2, 6]}, ["y"], {"w": weight, "w0": zero, "ws": scale})
    problem = prepare(graph, [_source(graph, "x")], {}, None, 0, None)
    assert isinstance(problem, Problem)
    made = Engine(problem, "cpu", Deadline(None))
    state = made.state(rng.standard_normal(12))
    tangents, cotangents = rng.standard_normal((3, 12)), rng.standard_normal((3, 10))
    real = (weight.astype(np.float64) - 3) * float(scale)
    np.testing.assert_allclose(made.push(state, tangents), (tangents.reshape(3, 2, 6) @ real).reshape(3, -1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made.pull(state, cotangents), (cotangents.reshape(3, 2, 5) @ real.T).reshape(3, -1), rtol=1e-5, atol=1e-5)


def test_a_missing_rule_is_named() -> None:
    graph = graph_of([helper.make_node("Multinomial", ["x"], ["y"], name="die", dtype=6)], {"x": [1, 3]}, ["y"])
    with pytest.raises(NoDerivative, match="Multinomial 'die'"):
        jvp(graph, ["x"], ["y"])
