"""Types of a node's outputs, from the types of its inputs and from constants that shapes depend on.

Three oracles, all static (nothing is run, so a shape never depends on data): onnx's own inference of one node; what the text of an
operator says where that inference leaves a shape open (:mod:`~lipaudit.graph.simplify.open_shapes`); and for operators that onnx has
no schema of, onnxruntime's inference of a model that holds only this node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

from onnx import NodeProto, TensorProto, TypeProto, ValueInfoProto, checker, defs, helper, shape_inference

from lipaudit.graph.dtypes import dtype_name, elem_type
from lipaudit.graph.export import IR_VERSION, to_node, to_tensor
from lipaudit.graph.ir import Constant, Node, Value
from lipaudit.graph.simplify.open_shapes import typed
from lipaudit.graph.simplify.runtime import session

__all__ = ["InconsistentError", "infer", "tensor_type", "value_of"]

# Shapes depend on small constants only (targets of Reshape, pads, axes, scales of Resize).
_SHAPE_DATA = 4096


class InconsistentError(Exception):
    """Inference found a contradiction (shapes that do not broadcast, an axis out of range)."""


@lru_cache(maxsize=4096)
def tensor_type(dtype: str, shape: tuple[int, ...] | None) -> TypeProto:
    """The TypeProto of a tensor. Shared: do not change it."""
    return helper.make_tensor_type_proto(elem_type(dtype), shape)


def value_of(name: str, kind: TypeProto | None) -> Value:
    """Static type of a value; dims that are not all known make the shape unknown."""
    if kind is None or kind.WhichOneof("value") != "tensor_type":
        return Value(name, "", None)
    tensor = kind.tensor_type
    shape: tuple[int, ...] | None = None
    if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        shape = tuple(int(dim.dim_value) for dim in tensor.shape.dim)
    return Value(name, dtype_name(tensor.elem_type), shape)


@cache
def _schema(op: str, version: int, domain: str) -> defs.OpSchema | None:
    if version <= 0:
        return None
    try:
        return defs.get_schema(op, version, domain)
    except defs.SchemaError:
        return None


def infer(node: Node, types: Mapping[str, TypeProto], constants: Mapping[str, Constant], opsets: Mapping[str, int]) -> dict[str, TypeProto]:
    """Types of the outputs of a node without subgraphs.

    Parameters
    ----------
    node
        The node.
    types
        Types of its inputs; unknown ones are missing.
    constants
        Those of its inputs that are constants.
    opsets
        Of the model.

    Raises
    ------
    InconsistentError
        If the inputs contradict each other.
    """
    schema = _schema(node.op, node.version, node.domain)
    if schema is None:
        return _ask_runtime(node, types, constants, opsets) if node.version else {}
    if any(name and name not in types for name in node.inputs):
        return {}
    proto = to_node(node)
    data = {
        name: to_tensor(constants[name])
        for name in node.inputs
        if name in constants and constants[name].size <= _SHAPE_DATA and constants[name].dtype != "string"
    }
    ids = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        found = shape_inference.infer_node_outputs(
            schema, proto, {name: types[name] for name in node.inputs if name}, data, opset_imports=ids, ir_version=IR_VERSION
        )
    except (checker.ValidationError, shape_inference.InferenceError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise InconsistentError(_first_line(error)) from None
    _refuse_impossible(node, types, constants, found)
    first = typed(node, types, constants)
    if first is not None and not _has_shape(found.get(node.outputs[0])):
        found[node.outputs[0]] = first
    if not all(_has_rank(found.get(name)) for name in node.outputs if name):
        # Operators that are functions (GroupNormalization) have a schema but no inference of their own.
        for name, kind in _ask_runtime(node, types, constants, opsets).items():
            if not _has_rank(found.get(name)):
                found[name] = kind
    return found


def _has_rank(kind: TypeProto | None) -> bool:
    """Whether a type needs no second opinion: a tensor of known rank, or no tensor at all."""
    return kind is not None and (kind.WhichOneof("value") != "tensor_type" or kind.tensor_type.HasField("shape"))


def _has_shape(kind: TypeProto | None) -> bool:
    """Whether all dims are known."""
    if kind is None or kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return False
    return all(dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim)


def _dims(kind: TypeProto | None) -> list[int]:
    """The known dims of a tensor type, -1 for others."""
    if kind is None or kind.WhichOneof("value") != "tensor_type":
        return []
    return [int(dim.dim_value) if dim.HasField("dim_value") else -1 for dim in kind.tensor_type.shape.dim]


_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "MaxUnpool", "QLinearConv", "ConvInteger"})


def _refuse_impossible(
    node: Node, types: Mapping[str, TypeProto], constants: Mapping[str, Constant], found: Mapping[str, TypeProto]
) -> None:
    """What onnx's inference lets pass and every runtime refuses.

    Cases: (1) a negative dim; (2) a window larger than the padded input, which leaves an empty output; (3) a reflection by
    as much as the axis is long, or more.
    """
    for kind in found.values():
        if kind.WhichOneof("value") == "tensor_type" and any(
            dim.HasField("dim_value") and dim.dim_value < 0 for dim in kind.tensor_type.shape.dim
        ):
            raise InconsistentError("an output would have a negative dimension")
    if node.domain:
        return
    shape = _dims(types.get(node.inputs[0])) if node.inputs else []
    if node.op in _WINDOWED and 0 not in shape and any(0 in _dims(kind) for kind in found.values()):
        raise InconsistentError(f"its window is larger than its input of shape {shape}")
    if node.op == "Pad" and node.attrs.get("mode", "constant") == "reflect":
        pads = constants[node.inputs[1]].array().reshape(-1).tolist() if len(node.inputs) > 1 and node.inputs[1] in constants else None
        pads = list(node.attrs.get("pads", ())) if pads is None else pads
        axes = list(range(len(shape)))
        if len(node.inputs) > 3 and node.inputs[3] in constants:
            axes = [int(axis) % max(len(shape), 1) for axis in constants[node.inputs[3]].array().reshape(-1)]
        if len(pads) == 2 * len(axes):
            for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
                if shape[axis] >= 0 and max(before, after) >= max(shape[axis], 1):
                    raise InconsistentError(f"it reflects {max(before, after)} elements of axis {axis}, which has {shape[axis]}")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return " ".join(text.split())[:300] if text else type(error).__name__


def _ask_runtime(
    node: Node, types: Mapping[str, TypeProto], constants: Mapping[str, Constant], opsets: Mapping[str, int]
) -> dict[str, TypeProto]:
    """What onnxruntime infers for this one node; empty if it does not know the operator or the input types."""
    names = list(dict.fromkeys(name for name in node.inputs if name))
    if not all(name in types for name in names):
        return {}
    key_types = tuple((name, types[name].SerializeToString()) for name in names)
    data = {name: constants[name] for name in names if name in constants and constants[name].size <= _SHAPE_DATA}
    initializers = tuple((name, to_tensor(constant).SerializeToString()) for name, constant in data.items())
    imports = tuple(sorted({**opsets, node.domain: opsets.get(node.domain, 1)}.items()))
    # Names do not matter to the types: layers that look alike share one question.
    rename = {name: f"i{index}" for index, name in enumerate(names)} | {
        name: f"o{index}" for index, name in enumerate(node.outputs) if name
    }
    plain = node.renamed(
        name="n", inputs=tuple(rename.get(n, "") for n in node.inputs), outputs=tuple(rename.get(n, "") for n in node.outputs)
    )
    found = _runtime_types(
        to_node(plain).SerializeToString(),
        tuple((rename[name], kind) for name, kind in key_types),
        tuple((rename[name], raw) for name, raw in initializers),
        imports,
    )
    return {name: found[rename[name]] for name in node.outputs if name and rename[name] in found}


@lru_cache(maxsize=512)
def _runtime_types(
    node: bytes, inputs: Sequence[tuple[str, bytes]], initializers: Sequence[tuple[str, bytes]], imports: Sequence[tuple[str, int]]
) -> dict[str, TypeProto]:
    proto = NodeProto.FromString(node)
    stored = {name for name, _ in initializers}
    graph = helper.make_graph(
        [proto],
        "one",
        [ValueInfoProto(name=name, type=TypeProto.FromString(kind)) for name, kind in inputs if name not in stored],
        [ValueInfoProto(name=name) for name in proto.output if name],
    )
    for name, raw in initializers:
        tensor = TensorProto.FromString(raw)
        tensor.name = name
        graph.initializer.append(tensor)
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid(d, v) for d, v in imports])
    built = session(model)
    if built is None:
        return {}
    types: dict[str, TypeProto] = {}
    for output in built.get_outputs():
        dtype = _RUNTIME_TYPES.get(output.type)
        if dtype is None:
            continue
        shape = tuple(output.shape)
        # Rank 0 is also what an output of unknown rank is reported as, so it is never believed.
        certain = bool(shape) and all(isinstance(dim, int) for dim in shape)
        types[output.name] = tensor_type(dtype, shape if certain else None)
    return types


_RUNTIME_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}
