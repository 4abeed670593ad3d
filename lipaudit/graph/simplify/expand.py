"""Operators that nobody has a rule for are replaced by the nodes that define them.

Law: same function. An operator of onnx with a function body *is* that body; of a custom operator the caller says what it is.

Cases: (1) onnx's function body, of the newest opset that the model's does not precede; (2) bodies that depend on the attributes
and input types (``SoftmaxCrossEntropyLoss``); defaults of attributes are those of the schema; (3) a function that the caller
supplies. Operators with nested graphs stay as they are. A body may need expanding itself; their total size is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from onnx import FunctionProto, ModelProto, TypeProto, defs, helper, inliner

from lipaudit.errors import ModelError
from lipaudit.graph.convert import Converter
from lipaudit.graph.export import IR_VERSION, to_node
from lipaudit.graph.external import ExternalFiles
from lipaudit.graph.ir import Graph, Node
from lipaudit.graph.limits import Limits
from lipaudit.graph.tensors import TensorReader

__all__ = ["NOTHING", "Operators", "definition", "expand"]

_DOMAIN = "lipaudit.expansion"


def _always(node: Node) -> bool:
    return True


def _never(node: Node) -> FunctionProto | None:
    return None


@dataclass(frozen=True)
class Operators:
    """What the caller knows of operators.

    Attributes
    ----------
    has_rule
        True for nodes that must stay as they are.
    function
        The definition of a node by other nodes (asked first), or None.
    like
        By kind: index of the input whose type and shape all outputs have. For operators that no shape inference knows.
    """

    has_rule: Callable[[Node], bool] = _always
    function: Callable[[Node], FunctionProto | None] = _never
    like: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def without_bodies(self) -> Operators:
        """The same, but onnx's own function bodies are left alone."""
        return replace(self, has_rule=_always)


NOTHING = Operators()
"""No operator is expanded."""


def expand(
    node: Node, types: Mapping[str, TypeProto], opsets: Mapping[str, int], operators: Operators, limits: Limits, where: str
) -> Graph | None:
    """The body of ``node``, which reads the node's inputs as outer values; None if it stays.

    Raises
    ------
    ModelError
        If a function of the caller does not fit the node.
    """
    if any(isinstance(attr, Graph) for attr in node.attrs.values()):
        return None
    given = operators.function(node)
    if given is None and (not node.version or operators.has_rule(node)):
        return None
    return _put_in_place(node, given, types, opsets, limits, where)


def definition(node: Node, types: Mapping[str, TypeProto], limits: Limits) -> Graph | None:
    """Onnx's own body of ``node``, whether or not there is a rule, of nodes with nested graphs too. Parameters as :func:`expand`."""
    return _put_in_place(node, None, types, {"": defs.onnx_opset_version()}, limits, node.name)


def _put_in_place(
    node: Node, given: FunctionProto | None, types: Mapping[str, TypeProto], opsets: Mapping[str, int], limits: Limits, where: str
) -> Graph | None:
    try:
        function = given if given is not None else _defined(node, types, opsets)
        if function is None:
            return None
        model = _inlined(node, function)
    except Exception as error:  # the C++ side throws bare RuntimeError and its own types
        if given is None:
            return None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the function for {node.kind} cannot be put in place of node {node.name!r}: {reason}", where=where) from None
    imports = {("" if i.domain == "ai.onnx" else i.domain): int(i.version) for i in model.opset_import}
    imports.setdefault("", opsets.get("") or defs.onnx_opset_version())  # bodies of preview operators do not say
    converter = Converter(TensorReader(where, b"", ExternalFiles(where, None, False)), imports, limits)
    body = converter.nested(model.graph, node.name, {name for name in node.inputs if name})
    # Parallel to the node's outputs; what stands for an omitted one is never read.
    named = iter(body.outputs)
    return body.with_nodes(body.nodes, outputs=tuple(next(named) if name else body.outputs[0] for name in node.outputs))


def _defined(node: Node, types: Mapping[str, TypeProto], opsets: Mapping[str, int]) -> FunctionProto | None:
    """Onnx's own body of an operator."""
    try:
        schema: Any = defs.get_schema(node.op, node.version, node.domain)  # its type stubs lack the bodies of functions
    except defs.SchemaError:
        return None
    opset = opsets.get("", 1)
    if schema.has_function:
        version = _newest(schema.function_opset_versions, opset)
        raw = schema.get_function_with_opset_version(version)
    elif schema.has_context_dependent_function:
        if any(name and name not in types for name in node.inputs):
            return None
        kinds = [types[name].SerializeToString() if name else b"" for name in node.inputs]
        version = _newest(schema.context_dependent_function_opset_versions, opset)
        raw = schema.get_context_dependent_function_with_opset_version(version, to_node(_with_defaults(node)).SerializeToString(), kinds)
    else:
        return None
    return FunctionProto.FromString(raw) if raw else None


def _newest(versions: list[int], opset: int) -> int:
    return max((v for v in versions if v <= opset), default=min(versions))


def _with_defaults(node: Node) -> Node:
    """The node with the defaults of its schema written out: a body refers to attributes by name."""
    try:
        schema = defs.get_schema(node.op, node.version, node.domain)
    except defs.SchemaError:
        return node
    attrs = dict(node.attrs)
    for name, attribute in schema.attributes.items():
        if name not in attrs and attribute.default_value.name:
            value = helper.get_attribute_value(attribute.default_value)
            attrs[name] = value.decode() if isinstance(value, bytes) else tuple(value) if isinstance(value, list) else value
    return node.renamed(attrs=attrs)


def _inlined(node: Node, function: FunctionProto) -> ModelProto:
    local = FunctionProto()
    local.CopyFrom(function)
    local.domain, local.name, local.overload = _DOMAIN, "Body", ""
    if len(node.inputs) > len(local.input) or len(node.outputs) > len(local.output):
        raise ValueError("the node has more inputs or outputs than the function")
    call = to_node(_with_defaults(node))
    call.domain, call.op_type = _DOMAIN, "Body"
    said = {attribute.name for attribute in call.attribute}
    # The inliner does not look at the defaults of a function's attributes.
    call.attribute.extend(default for default in local.attribute_proto if default.name not in said)
    graph = helper.make_graph([call], "body", [], [helper.make_empty_tensor_value_info(name) for name in node.outputs if name])
    imports = [*local.opset_import, helper.make_opsetid(_DOMAIN, 1)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=imports, functions=[local])
    return inliner.inline_local_functions(model)
