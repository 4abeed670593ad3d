"""onnx.reference for the operators that have no evaluation of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lipaudit.graph.ir import Constant, Graph
from lipaudit.validate.exact.call import Array, Call, NotExact

__all__ = ["reference"]


def reference(call: Call) -> tuple[Array, ...]:
    """Evaluate one node of the standard domain by onnx.reference, in the precision of its inputs."""
    node = call.site.node
    if node.domain not in {"", "ai.onnx"}:
        raise NotExact(f"domain {node.domain!r} is unknown")
    if any(isinstance(value, Graph) for value in node.attrs.values()):
        raise NotExact("it holds a subgraph")
    inputs = [f"x{i}" if x is not None else "" for i, x in enumerate(call.xs)]
    outputs = [f"y{i}" if name else "" for i, name in enumerate(node.outputs)]
    proto = onnx.helper.make_node(node.op, inputs, outputs, **{key: _attribute(value) for key, value in node.attrs.items()})
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), None)
         for name, x in zip(inputs, call.xs, strict=True) if x is not None],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in outputs if name],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", max(node.version, 1))])
    feeds = {name: np.array(x, order="C") for name, x in zip(inputs, call.xs, strict=True) if x is not None}
    try:
        found = ReferenceEvaluator(model).run([name for name in outputs if name], feeds)
    except Exception as error:  # onnx.reference raises whatever its numpy code runs into
        raise NotExact(f"onnx.reference failed: {str(error)[:200]}") from None
    results = iter(found)
    return tuple(np.asarray(next(results)) if name else np.zeros(()) for name in outputs)


def _attribute(value: Any) -> Any:
    if isinstance(value, Constant):
        return numpy_helper.from_array(np.asarray(value.array()), value.name)
    return list(value) if isinstance(value, tuple) else value
