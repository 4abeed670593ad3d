"""Small models, written to disk, loaded, and run before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify

onnxruntime.set_default_logger_severity(4)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    types: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model; inputs are float unless ``types`` says otherwise, constants are stored as the arrays they are."""
    types = types or {}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), list(shape)) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in sorted({n.domain for n in nodes} - {""}))]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=list(functions))


def write(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> str:
    """The path of the model, written into a folder."""
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return str(path)


def simplified(proto: onnx.ModelProto, folder: Path, dims: Mapping[str, int] | None = None) -> Graph:
    """Loaded from disk and simplified."""
    return simplify(load(write(proto, folder)).graph, dims or {})


def session(proto: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    """A session that rewrites nothing, so that both sides run the same kernels."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    source = proto if isinstance(proto, str) else proto.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def feed(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for the inputs of a simplified graph."""
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for value in graph.inputs:
        if "float" in value.dtype:
            values[value.name] = np.asarray(rng.standard_normal(value.shape), dtype=value.dtype)
        elif value.dtype == "bool":
            values[value.name] = np.ones(value.shape or (), dtype=bool)
        else:
            most = 2 if "mask" in value.name or "type" in value.name else 20
            values[value.name] = np.asarray(rng.integers(0, most, value.shape), dtype=value.dtype)
    return values


def assert_same_function(before: onnx.ModelProto | str, graph: Graph, *, rtol: float = 0.0, seeds: Sequence[int] = (0, 1)) -> None:
    """Both give the same outputs, and every value of the graph has the type and shape that it claims.

    ``rtol`` relates to the largest element: a folded weight may take another kernel (prepacked) than a computed one.
    """
    original = session(before)
    taps = [name for node in graph.nodes for name in node.outputs if name]
    rebuilt = session(to_model(graph, taps=taps))
    for seed in seeds:
        values = feed(graph, seed)
        names = [output.name for output in rebuilt.get_outputs()]
        after = dict(zip(names, rebuilt.run(None, values), strict=True))
        for output, expected in zip(original.get_outputs(), original.run(None, values), strict=True):
            got = after[output.name]
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            scale = float(np.max(np.abs(expected), initial=0.0)) if expected.dtype.kind == "f" else 0.0
            np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * scale if rtol else 0.0)
        for name, array in after.items():
            claimed = graph.value(name)
            if claimed.shape is not None:
                assert (claimed.dtype, claimed.shape) == (str(array.dtype), array.shape), name
