"""GraphProto -> :class:`~lipaudit.graph.ir.Graph`: names resolved, nodes sorted and named, weights turned into constants.

What changes on the way: initializers listed as inputs (IR version 3) are not inputs; ``Constant`` nodes become constants;
nodes without a name, or with one already taken, get one; nodes are sorted if the file is not. Stored ``value_info`` is kept
only as a hint for operators that nobody can infer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, ValueInfoProto, defs

from lipaudit.errors import ModelError
from lipaudit.graph.dtypes import dtype_name
from lipaudit.graph.ir import Constant, Graph, Node, Value
from lipaudit.graph.limits import Limits
from lipaudit.graph.order import reads, topological
from lipaudit.graph.tensors import TensorReader, checked_shape

__all__ = ["Converter", "checked", "default_domain", "since_version"]

_Dims = tuple[int | str, ...]


def default_domain(domain: str) -> str:
    """The domain with "ai.onnx" spelled as the empty string."""
    return "" if domain == "ai.onnx" else domain


def since_version(op: str, domain: str, opsets: Mapping[str, int]) -> int:
    """The version of the schema that the opset selects; 1 for com.microsoft (onnx has no schemas of it), 0 if there is none."""
    if domain == "com.microsoft":
        return 1
    opset = opsets.get(domain)
    if opset is None:
        return 0
    try:
        return int(defs.get_schema(op, opset, domain).since_version)
    except defs.SchemaError:
        return 0


def checked(name: str) -> str:
    """The name itself. Protobuf hands out ``bytes`` where a name is not valid UTF-8: that raises UnicodeDecodeError here."""
    return name.decode("utf-8") if isinstance(name, bytes) else name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class _Scope:
    """Names visible in a graph: its own, then those of the graphs around it."""

    own: set[str]
    outer: _Scope | None

    def __contains__(self, name: str) -> bool:
        return name in self.own or (self.outer is not None and name in self.outer)


@dataclass
class Converter:
    """Converts the graphs of one model.

    Parameters
    ----------
    reader
        Reads tensors.
    opsets
        Version by domain.
    limits
        What is still accepted.
    payloads
        Payloads cut out of the main graph's initializers, by index.
    """

    reader: TensorReader
    opsets: Mapping[str, int]
    limits: Limits
    payloads: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    nodes: int = 0
    tensors: int = 0
    _versions: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The file, for messages."""
        return self.reader.path

    def main(self, proto: GraphProto) -> Graph:
        """The model's graph.

        Raises
        ------
        ModelError
            If names, order, types or tensors are wrong.
        """
        return self._graph(proto, self.where, None, 1, main=True)

    def nested(self, proto: GraphProto, name: str, outer: set[str]) -> Graph:
        """A graph that reads the names ``outer`` of a graph around it."""
        return self._graph(proto, name, _Scope(outer, None), 1)

    def _graph(self, proto: GraphProto, name: str, outer: _Scope | None, depth: int, *, main: bool = False) -> Graph:
        if depth > self.limits.depth:
            raise ModelError(f"graphs are nested more than {self.limits.depth} deep", where=self.where)
        constants: dict[str, Constant] = {}
        for index, tensor in enumerate(proto.initializer):
            payload = self.payloads.get(index) if main else None
            self._add(constants, self.reader.constant(tensor, checked(tensor.name), "initializer", payload))
        for sparse in proto.sparse_initializer:
            label = checked(sparse.values.name)
            self._add(constants, self.reader.sparse(sparse, label, "sparse initializer", self.limits.fold_bytes))
        inputs: list[Value] = []
        symbols: dict[str, _Dims] = {}
        for info in proto.input:
            if checked(info.name) not in constants:
                value, dims = self._input(info, main)
                if value.name in symbols:
                    raise ModelError(f"two inputs have the name {value.name!r}", where=self.where)
                inputs.append(value)
                symbols[value.name] = dims
        hints = {info.name: value for info in (*proto.value_info, *proto.output) if (value := _static(info)) is not None}
        defined = self._defined(proto, {*constants, *symbols})
        visible = _Scope(defined, outer)
        nodes = self._nodes(proto, constants, visible, depth)
        outputs = tuple(checked(info.name) for info in proto.output)
        for output in outputs:
            if output not in visible:
                raise ModelError(f"the graph output {output!r} is not computed by any node", where=self.where)
        captures = dict.fromkeys(n for node in nodes for n in reads(node) if n and n not in defined)
        captures.update(dict.fromkeys(n for n in outputs if n not in defined))
        values = hints | {value.name: value for value in inputs} | {n: c.value for n, c in constants.items()}
        return Graph(name, nodes, tuple(inputs), outputs, constants, values, self.opsets, captures=tuple(captures), symbols=symbols)

    def _add(self, constants: dict[str, Constant], constant: Constant) -> None:
        if not constant.name:
            raise ModelError("an initializer has no name", where=self.where)
        if constant.name in constants:
            raise ModelError(f"the value {constant.name!r} is defined twice (two initializers)", where=self.where)
        constants[constant.name] = constant
        self._count_tensor()

    def _count_tensor(self) -> None:
        self.tensors += 1
        if self.tensors > self.limits.tensors:
            raise ModelError(f"the model has more than {self.limits.tensors:,} tensors", where=self.where)

    def _defined(self, proto: GraphProto, defined: set[str]) -> set[str]:
        """Every name that the graph itself defines; each only once."""
        for node in proto.node:
            for output in map(checked, node.output):
                if not output:
                    continue
                if output in defined:
                    raise ModelError(f"the value {output!r} is defined twice; the second time by {_label(node)}", where=self.where)
                defined.add(output)
        return defined

    def _input(self, info: ValueInfoProto, main: bool) -> tuple[Value, _Dims]:
        """Type and declared dims of an input; a dim that the file leaves open is its symbol, or "" if it has none."""
        if not info.name:
            raise ModelError("an input has no name", where=self.where)
        kind = info.type.WhichOneof("value")
        if kind != "tensor_type":
            if not main:
                return Value(info.name, "", None), ()
            what = f"is a {kind.removesuffix('_type')}" if kind else "has no type"
            raise ModelError(f"the input {info.name!r} {what}; only tensors can be audited", where=self.where)
        tensor = info.type.tensor_type
        dtype = dtype_name(tensor.elem_type)
        if not dtype and main:
            raise ModelError(f"the input {info.name!r} has the unknown element type {tensor.elem_type}", where=self.where)
        if not tensor.HasField("shape"):
            if main:
                raise ModelError(f"the input {info.name!r} declares no shape, not even its rank", where=self.where)
            return Value(info.name, dtype, None), ()
        dims: list[int | str] = []
        for dim in tensor.shape.dim:
            open_ended = not dim.HasField("dim_value") or dim.dim_value == -1
            dims.append(checked(dim.dim_param) if open_ended else int(dim.dim_value))
        fixed = tuple(d for d in dims if isinstance(d, int))
        checked_shape(fixed, f"the input {info.name!r}", self.where)
        return Value(info.name, dtype, fixed if len(fixed) == len(dims) else None), tuple(dims)

    def _nodes(self, proto: GraphProto, constants: dict[str, Constant], visible: _Scope, depth: int) -> tuple[Node, ...]:
        taken = {checked(node.name) for node in proto.node if node.name}
        used: set[str] = set()
        nodes: list[Node] = []
        for index, raw in enumerate(proto.node):
            self.nodes += 1
            if self.nodes > self.limits.nodes:
                raise ModelError(f"the model has more than {self.limits.nodes:,} nodes", where=self.where)
            domain, op = default_domain(checked(raw.domain)), checked(raw.op_type)
            if not op:
                raise ModelError(f"{_label(raw)} has no operator type", where=self.where)
            if op == "Constant" and domain == "" and len(raw.output) == 1 and raw.output[0]:
                constants[raw.output[0]] = self._constant_node(raw)
                continue
            name = raw.name if raw.name and raw.name not in used else _fresh(raw.name or f"{op}_{index}", taken, used)
            used.add(name)
            inputs = tuple(map(checked, raw.input))
            for value in inputs:
                if value and value not in visible:
                    message = f"{_label(raw, name)} reads {value!r}, which nothing defines"
                    raise ModelError(message, where=self.where)
            attrs: dict[str, Any] = {}
            for attribute in raw.attribute:
                attrs[checked(attribute.name)] = self._attribute(attribute, name, visible, depth)
            key = (domain, op)
            if key not in self._versions:
                self._versions[key] = since_version(op, domain, self.opsets)
            nodes.append(Node(name, op, inputs, tuple(raw.output), domain, self._versions[key], attrs, (name,)))
        return topological(nodes, self.where)

    def _attribute(self, attribute: AttributeProto, node: str, visible: _Scope, depth: int) -> Any:
        label = f"{node}.{attribute.name}"
        if attribute.ref_attr_name:
            message = f"the attribute {attribute.name!r} of node {node!r} refers to a function's attribute outside a function"
            raise ModelError(message, where=self.where)
        kind = attribute.type or _guessed_type(attribute)
        plain = _PLAIN.get(kind)
        if plain is not None:
            return plain(attribute)
        if kind == AttributeProto.GRAPH:
            return self._graph(attribute.g, label, visible, depth + 1)
        if kind == AttributeProto.GRAPHS:
            return tuple(self._graph(graph, label, visible, depth + 1) for graph in attribute.graphs)
        self._count_tensor()
        if kind == AttributeProto.TENSOR:
            return self.reader.constant(attribute.t, label, "attribute")
        if kind == AttributeProto.TENSORS:
            return tuple(self.reader.constant(tensor, label, "attribute") for tensor in attribute.tensors)
        if kind == AttributeProto.SPARSE_TENSOR:
            return self.reader.sparse(attribute.sparse_tensor, label, "attribute", self.limits.fold_bytes)
        raise ModelError(f"the attribute {attribute.name!r} of node {node!r} has the unsupported type {kind}", where=self.where)

    def _constant_node(self, node: NodeProto) -> Constant:
        name = node.output[0]
        self._count_tensor()
        attributes = [a for a in node.attribute if checked(a.name) in ("value", "sparse_value") or a.name.startswith("value_")]
        if len(attributes) != 1 or node.input:
            raise ModelError(f"{_label(node)} must have no input and exactly one value attribute", where=self.where)
        attribute = attributes[0]
        if attribute.name == "value" and attribute.HasField("t"):
            return self.reader.constant(attribute.t, name, "Constant node")
        if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
            return self.reader.sparse(attribute.sparse_tensor, name, "Constant node", self.limits.fold_bytes)
        plain = _CONSTANT_FORMS.get(attribute.name)
        if plain is None:
            raise ModelError(f"{_label(node)} has a malformed attribute {attribute.name!r}", where=self.where)
        array = plain(attribute)
        dtype = "string" if array.dtype == object else str(array.dtype)
        return Constant(name, dtype, array.shape, lambda: array, source="Constant node")


def _floats(attribute: AttributeProto) -> tuple[float, ...]:
    return tuple(float(x) for x in attribute.floats)


_PLAIN: Mapping[int, Callable[[AttributeProto], Any]] = {
    AttributeProto.FLOAT: lambda a: float(a.f),
    AttributeProto.INT: lambda a: int(a.i),
    AttributeProto.STRING: lambda a: _text(a.s),
    AttributeProto.FLOATS: _floats,
    AttributeProto.INTS: lambda a: tuple(int(x) for x in a.ints),
    AttributeProto.STRINGS: lambda a: tuple(_text(x) for x in a.strings),
    AttributeProto.TYPE_PROTO: lambda a: a.tp,
}

_CONSTANT_FORMS: Mapping[str, Callable[[AttributeProto], Any]] = {
    "value_float": lambda a: np.array(a.f, dtype=np.float32),
    "value_floats": lambda a: np.array(_floats(a), dtype=np.float32),
    "value_int": lambda a: np.array(a.i, dtype=np.int64),
    "value_ints": lambda a: np.array(list(a.ints), dtype=np.int64),
    "value_string": lambda a: np.array(_text(a.s), dtype=object),
    "value_strings": lambda a: np.array([_text(x) for x in a.strings], dtype=object),
}


def _guessed_type(attribute: AttributeProto) -> int:
    """Files of IR version 1 leave the type out: the field that is there tells."""
    for field_name, kind in (("f", 1), ("i", 2), ("s", 3), ("t", 4), ("g", 5)):
        if attribute.HasField(field_name):
            return kind
    for field_name, kind in (("floats", 6), ("ints", 7), ("strings", 8), ("tensors", 9), ("graphs", 10)):
        if len(getattr(attribute, field_name)):
            return kind
    return int(AttributeProto.INTS)


def _static(info: ValueInfoProto) -> Value | None:
    """A declared type whose shape is fully given, else None."""
    if info.type.WhichOneof("value") != "tensor_type" or not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    dtype = dtype_name(info.type.tensor_type.elem_type)
    if not dtype or not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    return Value(info.name, dtype, tuple(int(dim.dim_value) for dim in dims))


def _fresh(base: str, taken: set[str], used: set[str]) -> str:
    name, number = base, 1
    while name in taken or name in used:
        number += 1
        name = f"{base}_{number}"
    return name


def _label(node: NodeProto, name: str = "") -> str:
    """A node in a sentence: by name, else by what it computes."""
    if name or node.name:
        return f"the node {(name or node.name)!r} ({_plain(node.op_type)})"
    outputs = ", ".join(repr(output) for output in node.output)
    return f"the {_plain(node.op_type)} node that computes {outputs}" if outputs else f"a {_plain(node.op_type)} node"


def _plain(op: str) -> str:
    """An operator type as it is if it is an ordinary word, else quoted (it may hold control characters)."""
    return op if op.isidentifier() else repr(op)
