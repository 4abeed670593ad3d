"""Small graphs as ONNX text, and a second implementation of the fused nodes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf

from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph, Node
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.topology import Topology, recognise

Array = NDArray[Any]


class Erf(OpRun):  # type: ignore[misc]
    """The reference evaluator rounds Erf to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (erf(x),)


def parsed(text: str, *, opset: int = 18, domains: str = "") -> Graph:
    """The simplified graph of one ONNX text function body ``name (inputs) => (outputs) { ... }``."""
    imports = f'"" : {opset}{domains}'
    model = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{imports}]>\n{text}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return simplify(load(str(path)).graph)


def recognised(text: str, *, opset: int = 18, domains: str = "") -> Topology:
    """Recognise one ONNX text."""
    return recognise(parsed(text, opset=opset, domains=domains))


def elementwise(body: str, *, shape: str = "2,4,8", opset: int = 18) -> Topology:
    """Recognise ``y`` as ``body`` computes it from ``x``."""
    return recognised(f"g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}", opset=opset)


def fused(topology: Topology, *ops: str) -> list[Node]:
    """Nodes of the abstract graph that stand for several, or are of the given operators."""
    return [node for node in topology.graph.nodes if node.domain == "lipaudit" or node.op in ops]


def check_same_function(topology: Topology, *, seed: int = 0, scale: float = 2.0, trials: int = 2) -> None:
    """Every fused node computes, from the values at its inputs, the value that the original nodes compute (in float64)."""
    original = {node.name for node in topology.simplified.nodes}
    replaced = [node for node in topology.graph.nodes if len(node.covers) > 1 or node.domain == "lipaudit"]
    computed = set(topology.simplified.producer) | {value.name for value in topology.simplified.inputs}
    taps = {name for node in replaced for name in (*node.inputs, *node.outputs) if name in computed}
    taps -= {value.name for value in topology.simplified.inputs}
    session = ReferenceEvaluator(to_model(topology.simplified, taps=sorted(taps), double=True), new_ops=[Erf])
    rng = np.random.default_rng(seed)
    for _ in range(trials):
        feeds = {value.name: _sample(rng, value.dtype, value.shape, scale) for value in topology.simplified.inputs}
        with np.errstate(all="ignore"):
            results = session.run(None, feeds)
        values: dict[str, Array] = {**feeds, **dict(zip(session.output_names, results, strict=True))}
        for node in replaced:
            assert set(node.covers) <= original
            inputs = [_value(topology.graph, values, name) for name in node.inputs]
            with np.errstate(all="ignore"):
                got = evaluate(node, inputs)
            np.testing.assert_allclose(got, values[node.outputs[0]], rtol=1e-9, atol=1e-11, err_msg=f"{node.kind} {node.name}")


def _sample(rng: np.random.Generator, dtype: str, shape: tuple[int, ...] | None, scale: float) -> Array:
    assert shape is not None
    if dtype == "bool":
        return rng.random(shape) < 0.7
    if dtype.startswith("int"):
        return rng.integers(0, 2, shape).astype(dtype)
    return scale * rng.standard_normal(shape)


def _value(graph: Graph, values: Mapping[str, Array], name: str) -> Array | None:
    if not name:
        return None
    constant = graph.constants.get(name)
    if constant is not None:
        return constant.array() if constant.dtype == "bool" else constant.float64()
    if name in values:
        return values[name]
    helper = graph.producer[name]
    assert helper.op == "Not"
    inner = _value(graph, values, helper.inputs[0])
    assert inner is not None
    return ~inner


def evaluate(node: Node, inputs: list[Array | None]) -> Array:
    """What a fused node computes, in float64."""
    x, attrs = inputs[0], node.attrs
    assert x is not None
    x = np.asarray(x, dtype=np.float64)
    match node.kind:
        case "ai.onnx::Swish":
            return x / (1 + np.exp(-attrs["alpha"] * x))
        case "ai.onnx::Mish":
            return x * np.tanh(np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0))
        case "ai.onnx::HardSwish":
            return x * np.clip(x / 6 + 0.5, 0, 1)
        case "lipaudit::HardSwish":
            return x * np.clip(attrs["alpha"] * x + attrs["beta"], 0, 1)
        case "lipaudit::Gelu":
            if attrs["approximate"] == "none":
                return attrs["k"] * x * (1 + erf(x * attrs["num"] / attrs["den"]))
            return attrs["k"] * x * (1 + np.tanh(attrs["a"] * x / attrs["aden"] + attrs["b"] * x**3 / attrs["bden"]))
        case "lipaudit::Normalization":
            return _normalization(node, x, inputs[1], inputs[2])
        case "lipaudit::Attention":
            return _attention(node, inputs)
        case "lipaudit::Magnitude":
            begins, axis = attrs["begins"], attrs["axis"]
            parts = (
                [np.take(x, range(b, b + attrs["count"]), axis) for b in begins]
                if begins
                else [part for part in inputs if part is not None]
            )
            return np.sqrt(sum(part**2 for part in parts) + attrs["epsilon"])
        case "lipaudit::L2Attention":
            return _l2_attention(node, inputs)
        case _:
            raise AssertionError(node.kind)


def _normalization(node: Node, x: Array, scale: Array | None, bias: Array | None) -> Array:
    attrs, axes = node.attrs, node.attrs["axes"]
    centred = x - x.mean(axis=axes, keepdims=True) if attrs["kind"] == "layer" else x
    n = np.prod([x.shape[a] for a in axes])
    divisor = 1 if attrs["sum"] else n - 1 if attrs["unbiased"] else n
    square = np.sum(centred**2, axis=axes, keepdims=True) / divisor
    epsilon = attrs["epsilon"]
    root = {
        "root": lambda: np.sqrt(square + epsilon),
        "outside": lambda: np.sqrt(square) + epsilon,
        "max": lambda: np.maximum(np.sqrt(square), epsilon),
    }[attrs["eps_place"]]()
    z = centred / root
    z = z if scale is None else z * scale
    return z if bias is None else z + bias


def _attention(node: Node, inputs: list[Array | None]) -> Array:
    q, k, v, bias = inputs
    attrs = node.attrs
    assert q is not None and k is not None and v is not None
    logits = attrs["scale"] * (q @ (k if attrs["k_transposed"] else np.swapaxes(k, -1, -2)))
    if attrs["softcap"]:
        logits = attrs["softcap"] * np.tanh(logits / attrs["softcap"])
    if bias is not None:
        logits = np.where(bias, logits, -np.inf) if bias.dtype == np.bool_ else logits + bias
    if attrs["causal"]:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    if attrs["nan_guard"]:
        weights = np.where(np.isnan(weights), 0.0, weights)
    return weights @ v


def _l2_attention(node: Node, inputs: list[Array | None]) -> Array:
    q, weight, bias = inputs
    assert q is not None
    logits = -node.attrs["tau"] * np.sum((q[..., :, None, :] - q[..., None, :, :]) ** 2, axis=-1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    values = q if weight is None else q @ weight
    return weights / weights.sum(axis=-1, keepdims=True) @ (values if bias is None else values + bias)
