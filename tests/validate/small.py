"""Small models for the tests of validation."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipaudit.graph.ir import Graph
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.topology.sources import find_sources
from lipaudit.validate import QUICK, Measurements, validate


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    types: Mapping[str, int] | None = None,
    domains: Sequence[str] = (),
) -> Graph:
    """A simplified graph; constants are float32 unless they are integers."""
    stored = {}
    for name, value in (constants or {}).items():
        array = np.asarray(value)
        stored[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    proto = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), list(shape)) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(proto, ir_version=10, opset_imports=imports)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return simplify(load(str(path)).graph)


def real_graph(path: Path) -> Graph:
    """A model file, simplified."""
    return simplify(load(str(path)).graph)


def measure(graph: Graph, box: tuple[float, float] | None = None, **options: Any) -> Measurements:
    """Quick validation on the CPU, all sources in one box (or the reals)."""
    sources = find_sources(graph)
    domain = {} if box is None else {source.value.name: (np.array(box[0]), np.array(box[1])) for source in sources}
    options.setdefault("budget", QUICK)
    options.setdefault("device", "cpu")
    return validate(graph, sources, domain, **options)


def mlp(weights: Sequence[np.ndarray], *, activation: str = "Relu", biases: Sequence[np.ndarray] | None = None) -> Graph:
    """x -> ... W2 act(W1 x + b1) ...; weights as [in, out]."""
    nodes, constants, name = [], {}, "x"
    for i, w in enumerate(weights):
        constants[f"w{i}"] = w
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"m{i}"], name=f"matmul{i}"))
        name = f"m{i}"
        if biases is not None:
            constants[f"b{i}"] = biases[i]
            nodes.append(helper.make_node("Add", [name, f"b{i}"], [f"s{i}"], name=f"add{i}"))
            name = f"s{i}"
        if i + 1 < len(weights):
            nodes.append(helper.make_node(activation, [name], [f"a{i}"], name=f"act{i}"))
            name = f"a{i}"
    return graph_of(nodes, {"x": [1, weights[0].shape[0]]}, [name], constants)
