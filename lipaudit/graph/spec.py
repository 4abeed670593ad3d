"""What a legal graph is: checked after loading and again after simplification.

Shape inference and ``onnx.checker`` let many illegal attributes pass (group 0, stride 0, a permutation that is none), which
then crash arithmetic far away. Cases, each a :class:`~lipaudit.errors.ModelError` that names the node:

1. fewer or more inputs or outputs than the operator's schema has, or a required input left out;
2. a required attribute missing, or an attribute of another type than the schema's;
3. an attribute out of its range: ``perm``, ``group``, ``strides``, ``dilations``, ``kernel_shape``, ``pads``, ``axis``, ``blocksize``, ...;
4. a value used before it is defined, or defined twice; an output that nothing defines;
5. (where shapes are known) a convolution whose weights do not fit its input.

References
----------
Onnx operator schemas (``onnx.defs``) of the version that the model's opset selects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from functools import cache
from typing import Any

from onnx import defs

from lipaudit.errors import ModelError
from lipaudit.graph.dtypes import dtype_name
from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.order import reads

__all__ = ["check"]

_POSITIVE = ("group", "blocksize", "num_heads", "q_num_heads", "kv_num_heads", "hidden_size", "num_groups", "num_outputs", "block_size")
_POSITIVE_LISTS = ("strides", "dilations", "kernel_shape")
_MAX_ATTRIBUTE = 1 << 31

# Operators whose `axis` counts from the rank of the first input; those in the second set allow axis == rank.
_AXIS_OPS = frozenset(
    {
        "ArgMax",
        "ArgMin",
        "Compress",
        "Concat",
        "DequantizeLinear",
        "Gather",
        "GatherElements",
        "Hardmax",
        "LayerNormalization",
        "LogSoftmax",
        "LpNormalization",
        "RMSNormalization",
        "Scatter",
        "ScatterElements",
        "Softmax",
        "Split",
        "TopK",
    }
)
_AXIS_OR_END = frozenset({"Flatten"})


def check(graph: Graph) -> None:
    """Raise if the graph, or one nested in it, is not legal.

    Raises
    ------
    ModelError
        Naming file, node and what is wrong.
    """
    _check(graph, frozenset(), graph.name)


def _check(graph: Graph, outer: Set[str], where: str) -> None:
    known: set[str] = {*outer, *graph.constants, *(value.name for value in graph.inputs)}
    own: set[str] = {*graph.constants, *(value.name for value in graph.inputs)}
    for node in graph.nodes:
        for name in reads(node):
            if name and name not in known:
                raise _error(node, f"reads {name!r} before anything defines it", where)
        _check_schema(node, where)
        _check_attributes(node, graph, where)
        for attr in node.attrs.values():
            for nested in (attr,) if isinstance(attr, Graph) else attr if isinstance(attr, tuple) else ():
                if isinstance(nested, Graph):
                    # Only what it captures: checked above to be known, and far smaller than all that is.
                    _check(nested, frozenset(nested.captures), where)
        for name in node.outputs:
            if name in own:
                raise _error(node, f"defines {name!r} a second time", where)
            if name:
                own.add(name)
                known.add(name)
    for name in graph.outputs:
        if name not in known:
            raise ModelError(f"the graph output {name!r} is not computed by any node", where=where)


def _error(node: Node, message: str, where: str) -> ModelError:
    op = node.op if node.op.isidentifier() else repr(node.op)
    return ModelError(f"node {node.name!r} ({op}) {message}", where=where)


@cache
def _schema(op: str, version: int, domain: str) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, version, domain)
    except defs.SchemaError:
        return None


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "INT": int,
    "FLOAT": float,
    "STRING": str,
    "TENSOR": Constant,
    "GRAPH": Graph,
    "SPARSE_TENSOR": Constant,
}
_ELEMENTS: Mapping[str, type] = {"INTS": int, "FLOATS": float, "STRINGS": str, "TENSORS": Constant, "GRAPHS": Graph}


@cache
def _requirements(op: str, version: int, domain: str) -> tuple[int, int, int, int, tuple[int, ...], tuple[str, ...], dict[str, str]] | None:
    """(least and most inputs, least and most outputs, positions that must be given, required attributes, types of attributes)."""
    schema = _schema(op, version, domain)
    if schema is None:
        return None
    single = defs.OpSchema.FormalParameterOption.Single
    given = tuple(index for index, formal in enumerate(schema.inputs) if formal.option == single)
    required = tuple(name for name, attribute in schema.attributes.items() if attribute.required)
    types = {name: str(attribute.type).rpartition(".")[2] for name, attribute in schema.attributes.items()}
    return schema.min_input, schema.max_input, schema.min_output, schema.max_output, given, required, types


def _check_schema(node: Node, where: str) -> None:
    needs = _requirements(node.op, node.version, node.domain) if node.version > 0 else None
    if needs is None:
        return
    least_in, most_in, least_out, most_out, given, required, types = needs
    for count, least, most, what in (
        (len(node.inputs), least_in, most_in, "inputs"),
        (len(node.outputs), least_out, most_out, "outputs"),
    ):
        if not least <= count <= most:
            allowed = f"{least}" if least == most else f"at least {least}" if count < least else f"at most {most}"
            raise _error(node, f"has {count} {what}; {allowed} are needed", where)
    for index in given:
        if index < len(node.inputs) and not node.inputs[index]:
            raise _error(node, f"leaves out input {index}, which is required", where)
    for name in required:
        if name not in node.attrs:
            raise _error(node, f"lacks the attribute {name!r}", where)
    for name, value in node.attrs.items():
        kind = types.get(name, "")
        if kind in _TYPES and not isinstance(value, _TYPES[kind]):
            raise _error(node, f"has the attribute {name!r} of type {type(value).__name__}, not {kind}", where)
        if kind in _ELEMENTS and not (isinstance(value, tuple) and all(isinstance(item, _ELEMENTS[kind]) for item in value)):
            raise _error(node, f"has the attribute {name!r} of another type than {kind}", where)


def _ints(value: Any) -> tuple[int, ...] | None:
    return value if isinstance(value, tuple) and all(isinstance(item, int) for item in value) else None


def _check_attributes(node: Node, graph: Graph, where: str) -> None:
    attrs = node.attrs
    rank = _rank(graph, node, 0)
    for name in _POSITIVE:
        value = attrs.get(name)
        # block_size 0 means "not blocked" (QuantizeLinear-21); kv_num_heads and the like of 0 are left to their operators' defaults.
        least = 0 if name in ("block_size", "q_num_heads", "kv_num_heads") else 1
        if isinstance(value, int) and not least <= value < _MAX_ATTRIBUTE:
            raise _error(node, f"has {name} = {value}", where)
    for name in _POSITIVE_LISTS:
        values = _ints(attrs.get(name))
        if values is not None and not all(0 < value < _MAX_ATTRIBUTE for value in values):
            raise _error(node, f"has {name} = {list(values)}; each must be at least 1", where)
    pads = _ints(attrs.get("pads"))
    if pads is not None and (len(pads) % 2 or any(abs(pad) >= _MAX_ATTRIBUTE for pad in pads)):
        raise _error(node, f"has pads = {list(pads)[:8]}; begins and ends are needed for each axis", where)
    perm = _ints(attrs.get("perm"))
    if perm is not None and node.op == "Transpose":
        if sorted(perm) != list(range(len(perm))):
            raise _error(node, f"has perm = {list(perm)}, which is not a permutation", where)
        if rank is not None and rank != len(perm):
            raise _error(node, f"has perm = {list(perm)} but its input has {rank} axes", where)
    axis = attrs.get("axis")
    if isinstance(axis, int) and rank is not None and not node.domain and node.op in _AXIS_OPS | _AXIS_OR_END:
        most = rank if node.op in _AXIS_OR_END else max(rank - 1, 0)
        if not -max(rank, 1) <= axis <= most:
            raise _error(node, f"has axis = {axis} but its input has {rank} axes", where)
    to = attrs.get("to")
    if node.op == "Cast" and not node.domain and isinstance(to, int) and not dtype_name(to):
        raise _error(node, f"casts to the unknown element type {to}", where)
    for name in ("epsilon", "alpha", "beta"):
        value = attrs.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise _error(node, f"has {name} = {value}", where)
    if node.domain == "" and node.op in ("Conv", "ConvTranspose"):
        _check_convolution(node, graph, where)


def _rank(graph: Graph, node: Node, index: int) -> int | None:
    if index >= len(node.inputs) or not node.inputs[index]:
        return None
    shape = graph.value(node.inputs[index]).shape
    return None if shape is None else len(shape)


def _check_convolution(node: Node, graph: Graph, where: str) -> None:
    """Conv-1, ConvTranspose-1: X (N, C, spatial...), W (M, C/group, kernel...) or, transposed, (C, M/group, kernel...)."""
    weight = graph.value(node.inputs[1]).shape
    if weight is None:
        return
    spatial = len(weight) - 2
    if spatial < 1:
        raise _error(node, f"has weights of shape {list(weight)}; at least three axes are needed", where)
    if any(size == 0 for size in weight):
        raise _error(node, f"has empty weights of shape {list(weight)}", where)
    for name, times in (("strides", 1), ("dilations", 1), ("kernel_shape", 1), ("pads", 2), ("output_padding", 1)):
        values = node.attrs.get(name)
        if isinstance(values, tuple) and len(values) != times * spatial:
            raise _error(node, f"has {name} = {list(values)} for {spatial} spatial axes", where)
    kernel = node.attrs.get("kernel_shape")
    if isinstance(kernel, tuple) and kernel != tuple(weight[2:]):
        raise _error(node, f"has kernel_shape = {list(kernel)} but weights of shape {list(weight)}", where)
    group = int(node.attrs.get("group", 1))
    if weight[0] % group:
        raise _error(node, f"has group = {group}, which does not divide the weights of shape {list(weight)}", where)
    data = graph.value(node.inputs[0]).shape
    if data is None:
        return
    channels = weight[1] * group if node.op == "Conv" else weight[0]
    if len(data) != len(weight) or data[1] != channels:
        raise _error(node, f"has weights of shape {list(weight)} and group {group} for an input of shape {list(data)}", where)
    bias = graph.value(node.inputs[2]).shape if len(node.inputs) > 2 and node.inputs[2] else None
    outputs = weight[0] if node.op == "Conv" else weight[1] * group
    if bias is not None and bias != (outputs,):
        raise _error(node, f"has a bias of shape {list(bias)} for {outputs} output channels", where)
