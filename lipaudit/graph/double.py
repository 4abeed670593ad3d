"""The same graph evaluated in float64: what validation confirms its pairs with.

Cases:

1. constants and values of type float16, bfloat16 or float32 become float64 (exact);
2. ``Cast`` to a float type, and the ``dtype`` attribute of generators, point to float64;
3. an input that the schema does not allow to be float64 (the scales of Resize, the scale of QuantizeLinear before opset 23)
   keeps its type: through a copy of the constant, or a Cast in front;
4. an output that the schema does not allow to be float64 is cast behind the node.

Float8 and narrower types are storage formats of quantisation and stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, defs

from lipaudit.graph.dtypes import DOUBLE, dtype_name, elem_type
from lipaudit.graph.ir import Constant, Graph, Node, Value

__all__ = ["in_double"]

_WIDENED = frozenset({"float16", "bfloat16", "float32"})


def in_double(graph: Graph) -> Graph:
    """The graph with every computation in float64.

    Parameters
    ----------
    graph
        Any graph; names stay the same. Inputs of float type become float64.
    """
    return _widened(graph, {})


def _wide_value(value: Value) -> Value:
    return Value(value.name, "float64", value.shape) if value.dtype in _WIDENED else value


def _wide_constant(constant: Constant) -> Constant:
    if constant.dtype not in _WIDENED:
        return constant
    return Constant(
        constant.name, "float64", constant.shape, lambda: constant.array().astype(np.float64), fill=constant.fill, source=constant.source
    )


def _widened(graph: Graph, outer: Mapping[str, str]) -> Graph:
    original = {name: value.dtype for name, value in graph.values.items()}
    original |= {name: constant.dtype for name, constant in graph.constants.items()}
    dtypes = {**outer, **original}
    constants = {name: _wide_constant(constant) for name, constant in graph.constants.items()}
    nodes: list[Node] = []
    for node in graph.nodes:
        attrs = {name: _wide_attribute(node, name, value, dtypes) for name, value in node.attrs.items()}
        before, after, inputs, outputs = _kept_types(node, dtypes, graph.constants, constants)
        nodes += [*before, node.renamed(attrs=attrs, inputs=inputs, outputs=outputs), *after]
    values = {name: _wide_value(value) for name, value in graph.values.items()}
    return graph.with_nodes(tuple(nodes), constants=constants, values=values, inputs=tuple(_wide_value(value) for value in graph.inputs))


def _wide_attribute(node: Node, name: str, value: Any, dtypes: Mapping[str, str]) -> Any:
    if isinstance(value, Graph):
        return _widened(value, dtypes)
    if isinstance(value, Constant):
        return _wide_constant(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Graph):
        return tuple(_widened(graph, dtypes) for graph in value)
    if name in ("to", "dtype", "output_dtype") and isinstance(value, int) and dtype_name(value) in _WIDENED:
        return DOUBLE
    return value


@cache
def _double_allowed(op: str, version: int, domain: str) -> tuple[tuple[bool, ...], tuple[bool, ...], bool, bool]:
    """Whether each formal input and output can be float64, and whether the last of each is variadic."""
    try:
        schema = defs.get_schema(op, version, domain) if version else None
    except defs.SchemaError:
        schema = None
    if schema is None:
        return (), (), False, False
    variadic = defs.OpSchema.FormalParameterOption.Variadic
    inputs = tuple("tensor(double)" in formal.types or not _some_float(formal.types) for formal in schema.inputs)
    outputs = tuple("tensor(double)" in formal.types or not _some_float(formal.types) for formal in schema.outputs)
    return (
        inputs,
        outputs,
        bool(schema.inputs) and schema.inputs[-1].option == variadic,
        bool(schema.outputs) and schema.outputs[-1].option == variadic,
    )


def _some_float(types: Any) -> bool:
    return any(kind in types for kind in ("tensor(float)", "tensor(float16)", "tensor(bfloat16)"))


def _allowed(flags: tuple[bool, ...], variadic: bool, index: int) -> bool:
    if index < len(flags):
        return flags[index]
    return flags[-1] if flags and variadic else True


def _kept_types(
    node: Node, dtypes: Mapping[str, str], stored: Mapping[str, Constant], constants: dict[str, Constant]
) -> tuple[list[Node], list[Node], tuple[str, ...], tuple[str, ...]]:
    """Cases 3 and 4: Casts before and behind the node, and its new inputs and outputs. New constants are added to ``constants``."""
    takes, gives, more_in, more_out = _double_allowed(node.op, node.version, node.domain)
    before: list[Node] = []
    after: list[Node] = []
    inputs, outputs = list(node.inputs), list(node.outputs)
    for index, name in enumerate(node.inputs):
        dtype = dtypes.get(name, "")
        if dtype not in _WIDENED or _allowed(takes, more_in, index):
            continue
        narrow = f"{name}__{dtype}"
        if name in stored:
            old = stored[name]
            constants[narrow] = Constant(narrow, dtype, old.shape, old.array, fill=old.fill, source=old.source)
        else:
            narrow = f"{narrow}__{node.name}_{index}"
            before.append(_cast(name, narrow, elem_type(dtype)))
        inputs[index] = narrow
    for index, name in enumerate(node.outputs):
        dtype = dtypes.get(name, "")
        if name and dtype in _WIDENED and not _allowed(gives, more_out, index):
            outputs[index] = f"{name}__{dtype}"
            after.append(_cast(outputs[index], name, int(TensorProto.DOUBLE)))
    return before, after, tuple(inputs), tuple(outputs)


def _cast(source: str, target: str, to: int) -> Node:
    return Node(f"{target}__cast", "Cast", (source,), (target,), "", 13, {"to": to})
