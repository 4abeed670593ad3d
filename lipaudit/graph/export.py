"""Graph -> ModelProto, for onnxruntime, for the reference evaluator and for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    StringStringEntryProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    defs,
    helper,
    numpy_helper,
    version_converter,
)

from lipaudit.errors import ModelError
from lipaudit.graph.double import in_double
from lipaudit.graph.dtypes import PACKED_BITS, elem_type, stored_bytes
from lipaudit.graph.ir import Constant, Graph, Node, Value

__all__ = ["EMBEDDED_BYTES", "IR_VERSION", "External", "to_model", "to_node", "to_tensor", "to_type", "weight_bytes"]

# onnxruntime refuses the newest IR versions that onnx would stamp.
IR_VERSION = 10

_NEWER = "lipaudit.newer"

# Protobuf ends at 2 GiB; beyond this the weights must go elsewhere.
EMBEDDED_BYTES = 1_500_000_000

# Says where a large constant was written: (location, offset, length) relative to the folder of the model.
External = Callable[[Constant], tuple[str, int, int]]


def weight_bytes(graph: Graph) -> int:
    """Bytes of all tensors that a model of ``graph`` would hold (uniform ones are computed, not held)."""
    return sum(
        stored_bytes(constant.dtype, constant.size)
        for part in (graph, *graph.subgraphs())
        for constant in part.constants.values()
        if constant.fill is None and constant.dtype != "string"
    )


def to_model(graph: Graph, *, taps: Sequence[str] = (), double: bool = False, external: External | None = None) -> ModelProto:
    """The graph as a model that onnxruntime and ``onnx.reference`` run.

    Parameters
    ----------
    graph
        A simplified graph (or a loaded one; open dims stay open then).
    taps
        Names of further values to output, after the graph's own outputs; names that are outputs already are not repeated.
    double
        Everything floating-point becomes float64, see :func:`lipaudit.graph.double.in_double`.
    external
        Called for constants over 1 KiB if all together exceed :data:`EMBEDDED_BYTES`.

    Raises
    ------
    ModelError
        If the weights do not fit a protobuf and no ``external`` is given.
    """
    if double:
        graph = in_double(graph)
    total = weight_bytes(graph)
    large = total > EMBEDDED_BYTES
    if large and external is None:
        raise ModelError(f"its weights take {total:,} bytes, more than one protobuf can hold", where=graph.name)
    outputs = tuple(dict.fromkeys((*graph.outputs, *taps)))
    proto = _graph_proto(graph, outputs, external if large else None, main=True)
    opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(_opsets(graph).items())]
    model = helper.make_model(proto, ir_version=IR_VERSION, opset_imports=opsets, producer_name="lipaudit")
    newest = max((node.version for part in (graph, *graph.subgraphs()) for node in part.nodes if not node.domain), default=0)
    return _raised(model, newest, graph) if newest > graph.opsets.get("", newest) else model


def _raised(model: ModelProto, opset: int, graph: Graph) -> ModelProto:
    """A model of which some nodes (put in place of others) are of a newer opset than the rest: the rest is converted to it.

    The newer nodes wait in a domain of their own, which the converter leaves alone. The model as it was if it cannot be converted.
    """
    newer = {
        node.name for part in (graph, *graph.subgraphs()) for node in part.nodes if not node.domain and node.version > graph.opsets[""]
    }
    waiting = ModelProto()
    waiting.CopyFrom(model)
    waiting.opset_import.append(helper.make_opsetid(_NEWER, 1))
    for node in waiting.graph.node:
        if node.name in newer:
            node.domain = _NEWER
    try:
        raised = version_converter.convert_version(waiting, opset)
    except Exception:  # the C++ side throws bare RuntimeError and its own types
        return model
    for node in raised.graph.node:
        if node.domain == _NEWER:
            node.domain = ""
    kept = [item for item in raised.opset_import if item.domain != _NEWER]
    del raised.opset_import[:]
    raised.opset_import.extend(kept)
    return raised


def _opsets(graph: Graph) -> dict[str, int]:
    """Imports, with those that a file forgot (at least version 1, and what the nodes need)."""
    forgotten: dict[str, int] = {}
    for part in (graph, *graph.subgraphs()):
        for node in part.nodes:
            if node.domain not in graph.opsets:
                forgotten[node.domain] = max(forgotten.get(node.domain, 1), node.version)
    return {**graph.opsets, **forgotten}


def _graph_proto(graph: Graph, outputs: Sequence[str], external: External | None, *, main: bool) -> GraphProto:
    proto = GraphProto(name="graph" if main else "subgraph")
    proto.input.extend(to_value_info(value) for value in graph.inputs)
    proto.node.extend(_fills(graph.constants.values()))
    for constant in graph.constants.values():
        if constant.fill is None:
            proto.initializer.append(to_tensor(constant, external=external))
    proto.node.extend(to_node(node, external) for node in graph.nodes)
    own = set(graph.constants)
    for name in outputs:
        if not main and name in own:
            # A subgraph must compute its outputs; an initializer alone is not accepted everywhere.
            proto.node.append(NodeProto(op_type="Identity", input=[name], output=[f"{name}__out"]))
            proto.output.append(to_value_info(_renamed(graph.value(name), f"{name}__out")))
        else:
            proto.output.append(to_value_info(graph.value(name)))
    return proto


def _renamed(value: Value, name: str) -> Value:
    return Value(name, value.dtype, value.shape)


def _fills(constants: Iterable[Constant]) -> list[NodeProto]:
    """Uniform tensors as ConstantOfShape nodes: the model stays small."""
    nodes: list[NodeProto] = []
    for constant in constants:
        if constant.fill is None:
            continue
        shape, value = f"{constant.name}__shape", np.full(1, constant.fill)
        nodes.append(_constant(shape, np.array(constant.shape, dtype=np.int64)))
        one = Constant(f"{constant.name}__value", constant.dtype, (1,), lambda c=constant: c.array().reshape(-1)[:1], source="fill")
        if not constant.size:
            one = Constant(one.name, constant.dtype, (1,), lambda c=constant, v=value: v.astype(c.array().dtype), source="fill")
        attribute = AttributeProto(name="value", type=AttributeProto.TENSOR, t=to_tensor(one))
        nodes.append(NodeProto(op_type="ConstantOfShape", input=[shape], output=[constant.name], attribute=[attribute]))
    return nodes


def _constant(name: str, array: np.ndarray) -> NodeProto:
    return NodeProto(
        op_type="Constant",
        output=[name],
        attribute=[AttributeProto(name="value", type=AttributeProto.TENSOR, t=numpy_helper.from_array(array, name))],
    )


def to_type(value: Value) -> TypeProto | None:
    """The tensor type of a value; None if its element type is unknown."""
    number = elem_type(value.dtype)
    return helper.make_tensor_type_proto(number, value.shape) if number else None


def to_value_info(value: Value) -> ValueInfoProto:
    """Name and, where known, type."""
    kind = to_type(value)
    return ValueInfoProto(name=value.name, type=kind) if kind is not None else ValueInfoProto(name=value.name)


def to_tensor(constant: Constant, *, external: External | None = None) -> TensorProto:
    """A constant as a TensorProto, in raw form where the type has one."""
    proto = TensorProto(name=constant.name, dims=constant.shape, data_type=elem_type(constant.dtype))
    if external is not None and constant.dtype != "string" and stored_bytes(constant.dtype, constant.size) > 1024:
        location, offset, length = external(constant)
        proto.data_location = TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.append(StringStringEntryProto(key=key, value=text))
        return proto
    array = constant.array()
    if constant.dtype == "string":
        proto.string_data.extend(item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1))
    elif constant.dtype in PACKED_BITS:
        return numpy_helper.from_array(np.ascontiguousarray(array).reshape(constant.shape), constant.name)
    else:
        proto.raw_data = array.tobytes()
    return proto


def to_node(node: Node, external: External | None = None) -> NodeProto:
    """A node as a NodeProto, nested graphs included."""
    proto = NodeProto(name=node.name, op_type=node.op, domain=node.domain, input=node.inputs, output=node.outputs)
    for name, value in node.attrs.items():
        proto.attribute.append(_attribute(node, name, value, external))
    return proto


def _attribute(node: Node, name: str, value: Any, external: External | None) -> AttributeProto:
    kinds = AttributeProto
    if isinstance(value, bool | int):
        return AttributeProto(name=name, type=kinds.INT, i=int(value))
    if isinstance(value, float):
        return AttributeProto(name=name, type=kinds.FLOAT, f=value)
    if isinstance(value, str):
        return AttributeProto(name=name, type=kinds.STRING, s=value.encode())
    if isinstance(value, Constant):
        return AttributeProto(name=name, type=kinds.TENSOR, t=to_tensor(value))
    if isinstance(value, Graph):
        return AttributeProto(name=name, type=kinds.GRAPH, g=_graph_proto(value, value.outputs, external, main=False))
    if isinstance(value, TypeProto):
        return AttributeProto(name=name, type=kinds.TYPE_PROTO, tp=value)
    items = tuple(value)
    first = items[0] if items else None
    if isinstance(first, float):
        return AttributeProto(name=name, type=kinds.FLOATS, floats=items)
    if isinstance(first, str):
        return AttributeProto(name=name, type=kinds.STRINGS, strings=[item.encode() for item in items])
    if isinstance(first, Constant):
        return AttributeProto(name=name, type=kinds.TENSORS, tensors=[to_tensor(item) for item in items])
    if isinstance(first, Graph):
        graphs = [_graph_proto(item, item.outputs, external, main=False) for item in items]
        return AttributeProto(name=name, type=kinds.GRAPHS, graphs=graphs)
    if items:
        return AttributeProto(name=name, type=kinds.INTS, ints=items)
    return AttributeProto(name=name, type=_list_type(node, name))


def _list_type(node: Node, name: str) -> AttributeProto.AttributeType:
    """The type of an empty list: the schema tells, integers otherwise."""
    kinds = defs.OpSchema.AttrType
    try:
        declared = defs.get_schema(node.op, node.version, node.domain).attributes[name].type
    except (defs.SchemaError, KeyError):
        return AttributeProto.INTS
    lists = {
        kinds.FLOATS: AttributeProto.FLOATS,
        kinds.STRINGS: AttributeProto.STRINGS,
        kinds.TENSORS: AttributeProto.TENSORS,
        kinds.GRAPHS: AttributeProto.GRAPHS,
    }
    return lists.get(declared, AttributeProto.INTS)
