"""onnxruntime as an oracle for single nodes: their types, and their values on constants.

Law of :func:`evaluate`: the result is the constant that the graph computes in its own arithmetic, because the runtime
that runs the graph computes it, unfused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from lipaudit.graph.dtypes import elem_type
from lipaudit.graph.export import IR_VERSION, to_node
from lipaudit.graph.ir import Node

__all__ = ["evaluate", "session"]

Array = NDArray[Any]

# Types that onnxruntime exchanges with numpy arrays.
_EXCHANGED = frozenset(
    "float16 float32 float64 int8 uint8 int16 uint16 int32 uint32 int64 uint64 bool".split()  # noqa: SIM905
)


def session(model: ModelProto) -> Any | None:
    """A CPU session without graph optimisation, or None if onnxruntime refuses the model."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime raises its own classes, which share no public base
        return None


def evaluate(node: Node, inputs: Sequence[Array | None], opsets: dict[str, int]) -> tuple[Array, ...] | None:
    """The outputs of one node on given arrays, or None if onnxruntime cannot say.

    Parameters
    ----------
    node
        Deterministic, without subgraphs.
    inputs
        One array for each input; None where it is left out.
    opsets
        Of the model.
    """
    if any(array is not None and str(array.dtype) not in _EXCHANGED for array in inputs):
        return None
    names = tuple("" if array is None else f"i{index}" for index, array in enumerate(inputs))
    outputs = tuple(f"o{index}" if name else "" for index, name in enumerate(node.outputs))
    infos = [
        helper.make_tensor_value_info(name, elem_type(str(array.dtype)), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    graph = helper.make_graph(
        [to_node(node.renamed(name="n", inputs=names, outputs=outputs))],
        "one",
        infos,
        [ValueInfoProto(name=name) for name in outputs if name],
    )
    imports = {**opsets, node.domain: opsets.get(node.domain, 1)}
    built = session(helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid(d, v) for d, v in imports.items()]))
    if built is None:
        return None
    feed = {name: np.array(array, order="C") for name, array in zip(names, inputs, strict=True) if array is not None}
    try:
        computed = built.run(None, feed)
    except Exception:  # as above
        return None
    return tuple(np.asarray(array) for array in computed)
