"""Types through If, Loop and Scan: their bodies are walked like any graph, with the outer types and constants in sight.

Law: the bodies keep their function. A type given to a value of a loop body holds in every iteration: the type of a
carried value is an invariant, found by walking the body with the initial type and giving up what the body changes.

References
----------
Onnx If-1, Loop-1 (trip count, condition, carried values; scan outputs are stacked on a new first axis), Scan-8 (with a batch axis), Scan-9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import TypeProto

from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.simplify.open_shapes import typed
from lipaudit.graph.simplify.types import tensor_type

__all__ = ["Walk", "infer_control", "meet"]

# (body, types of its inputs, nesting) -> (body with types and folded constants, types of its outputs)
Walk = Callable[[Graph, Sequence[TypeProto | None]], tuple[Graph, list[TypeProto | None]]]

_Types = list[TypeProto | None]


def infer_control(
    node: Node, types: Mapping[str, TypeProto], constants: Mapping[str, Constant], walk: Walk, *, exact: bool
) -> tuple[Node, _Types]:
    """The node with simplified bodies, and the types of its outputs.

    Parameters
    ----------
    node
        A node with subgraphs.
    types, constants
        Of its inputs.
    walk
        Walks a body.
    exact
        False (deep nesting) skips the search for loop invariants: carried shapes are unknown then.
    """
    if node.domain == "" and node.op == "If":
        return _if(node, walk)
    if node.domain == "" and node.op == "Loop" and isinstance(node.attrs.get("body"), Graph):
        return _loop(node, types, constants, walk, exact=exact)
    if node.domain == "" and node.op == "Scan" and isinstance(node.attrs.get("body"), Graph):
        return _scan(node, types, walk, exact=exact) if node.version >= 9 else _batched_scan(node, types, walk, exact=exact)
    if node.domain == "ai.onnx.preview" and node.op == "FlexAttention":
        return node, [typed(node, types, constants), *(None for _ in node.outputs[1:])]
    return node, [None] * len(node.outputs)


def meet(left: TypeProto | None, right: TypeProto | None) -> TypeProto | None:
    """What two types have in common: equal dims stay, others become unknown; None if they are no tensors of one type."""
    if left is None or right is None or left.WhichOneof("value") != "tensor_type" or right.WhichOneof("value") != "tensor_type":
        return None
    one, two = left.tensor_type, right.tensor_type
    if one.elem_type != two.elem_type:
        return None
    if left == right:
        return left
    common = TypeProto()
    common.tensor_type.elem_type = one.elem_type
    if one.HasField("shape") and two.HasField("shape") and len(one.shape.dim) == len(two.shape.dim):
        common.tensor_type.shape.SetInParent()
        for a, b in zip(one.shape.dim, two.shape.dim, strict=True):
            dim = common.tensor_type.shape.dim.add()
            if a.HasField("dim_value") and b.HasField("dim_value") and a.dim_value == b.dim_value:
                dim.dim_value = a.dim_value
    return common


def _without_shape(kind: TypeProto | None) -> TypeProto | None:
    if kind is None or kind.WhichOneof("value") != "tensor_type":
        return None
    bare = TypeProto()
    bare.tensor_type.elem_type = kind.tensor_type.elem_type
    return bare


def _changed(node: Node, **attrs: Any) -> Node:
    return node.renamed(attrs={**node.attrs, **attrs})


def _if(node: Node, walk: Walk) -> tuple[Node, _Types]:
    then, else_ = node.attrs["then_branch"], node.attrs["else_branch"]
    then, then_types = walk(then, ())
    else_, else_types = walk(else_, ())
    found = [meet(a, b) for a, b in zip(then_types, else_types, strict=False)]
    found += [None] * (len(node.outputs) - len(found))
    return _changed(node, then_branch=then, else_branch=else_), found[: len(node.outputs)]


def _invariant(body: Graph, initial: _Types, carried: slice, walk: Walk, first: int, *, exact: bool) -> tuple[Graph, _Types]:
    """Walk a body with types that hold in every iteration; ``first`` is the output that feeds back the first carried input."""
    current = list(initial)
    if not exact:
        current[carried] = [_without_shape(kind) for kind in current[carried]]
    for _ in range(2):
        walked, outputs = walk(body, current)
        after = outputs[first : first + len(current[carried])]
        kept = [meet(a, b) for a, b in zip(current[carried], after, strict=False)]
        if kept == current[carried]:
            return walked, outputs
        current[carried] = kept
    current[carried] = [_without_shape(kind) for kind in current[carried]]
    return walk(body, current)


def _stacked(kind: TypeProto | None, axis: int, size: int | None) -> TypeProto | None:
    """The type with one more axis."""
    if kind is None or kind.WhichOneof("value") != "tensor_type":
        return None
    more = TypeProto()
    more.tensor_type.elem_type = kind.tensor_type.elem_type
    if not kind.tensor_type.HasField("shape"):
        return more
    dims = list(kind.tensor_type.shape.dim)
    at = axis + len(dims) + 1 if axis < 0 else axis
    more.tensor_type.shape.SetInParent()
    for index in range(len(dims) + 1):
        dim = more.tensor_type.shape.dim.add()
        if index == at:
            if size is not None:
                dim.dim_value = size
        else:
            dim.CopyFrom(dims[index - (index > at)])
    return more


def _loop(node: Node, types: Mapping[str, TypeProto], constants: Mapping[str, Constant], walk: Walk, *, exact: bool) -> tuple[Node, _Types]:
    body: Graph = node.attrs["body"]
    state = [types.get(name) for name in node.inputs[2:]]
    initial: _Types = [tensor_type("int64", ()), tensor_type("bool", ()), *state]
    initial += [None] * (len(body.inputs) - len(initial))
    initial = initial[: len(body.inputs)]
    walked, outputs = _invariant(body, initial, slice(2, 2 + len(state)), walk, 1, exact=exact)
    found: _Types = [meet(a, b) for a, b in zip(state, outputs[1 : 1 + len(state)], strict=False)]
    trips = _trip_count(node, walked, constants)
    found += [_stacked(kind, 0, trips) for kind in outputs[1 + len(state) :]]
    found += [None] * (len(node.outputs) - len(found))
    return _changed(node, body=walked), found[: len(node.outputs)]


def _trip_count(node: Node, body: Graph, constants: Mapping[str, Constant]) -> int | None:
    """The number of iterations, if nothing can stop the loop early."""
    limit = constants.get(node.inputs[0]) if node.inputs else None
    start = node.inputs[1] if len(node.inputs) > 1 else ""
    begins = not start or (start in constants and bool(constants[start].array().reshape(-1)[0]))
    if limit is None or limit.size != 1 or not begins or len(body.inputs) < 2 or not body.outputs:
        return None
    goes_on = body.outputs[0]
    producer = body.producer.get(goes_on)
    while producer is not None and producer.op == "Identity" and not producer.domain:
        goes_on = producer.inputs[0]
        producer = body.producer.get(goes_on)
    constant = body.constants.get(goes_on) or constants.get(goes_on)
    forever = goes_on == body.inputs[1].name or (constant is not None and bool(constant.array().reshape(-1)[0]))
    return max(0, int(limit.array().reshape(-1)[0])) if forever else None


def _scan(node: Node, types: Mapping[str, TypeProto], walk: Walk, *, exact: bool) -> tuple[Node, _Types]:
    body: Graph = node.attrs["body"]
    scanned = int(node.attrs.get("num_scan_inputs", 0))
    states = len(node.inputs) - scanned
    axes = node.attrs.get("scan_input_axes") or (0,) * scanned
    kinds = [types.get(name) for name in node.inputs]
    length: int | None = None
    slices: _Types = []
    for kind, axis in zip(kinds[states:], axes, strict=False):
        part, size = _slice_type(kind, axis)
        slices.append(part)
        length = size if size is not None else length
    initial: _Types = [*kinds[:states], *slices]
    initial = (initial + [None] * len(body.inputs))[: len(body.inputs)]
    walked, outputs = _invariant(body, initial, slice(0, states), walk, 0, exact=exact)
    found: _Types = [meet(a, b) for a, b in zip(kinds[:states], outputs[:states], strict=False)]
    out_axes = node.attrs.get("scan_output_axes") or (0,) * (len(outputs) - states)
    found += [_stacked(kind, axis, length) for kind, axis in zip(outputs[states:], out_axes, strict=False)]
    found += [None] * (len(node.outputs) - len(found))
    return _changed(node, body=walked), found[: len(node.outputs)]


def _batched_scan(node: Node, types: Mapping[str, TypeProto], walk: Walk, *, exact: bool) -> tuple[Node, _Types]:
    """Scan-8: ``sequence_lens`` comes first, then states ``[batch, ..]`` and scanned inputs ``[batch, length, ..]``."""
    body: Graph = node.attrs["body"]
    scanned = int(node.attrs.get("num_scan_inputs", 0))
    states = len(node.inputs) - 1 - scanned
    kinds = [types.get(name) for name in node.inputs[1:]]
    batch: int | None = None
    length: int | None = None
    initial: _Types = []
    for k, kind in enumerate(kinds):
        part, size = _slice_type(kind, 0)
        batch = size if size is not None else batch
        if k >= states:
            part, size = _slice_type(part, 0)
            length = size if size is not None else length
        initial.append(part)
    initial = (initial + [None] * len(body.inputs))[: len(body.inputs)]
    walked, outputs = _invariant(body, initial, slice(0, states), walk, 0, exact=exact)
    found: _Types = [_stacked(meet(a, b), 0, batch) for a, b in zip(initial[:states], outputs[:states], strict=False)]
    found += [_stacked(_stacked(kind, 0, length), 0, batch) for kind in outputs[states:]]
    found += [None] * (len(node.outputs) - len(found))
    return _changed(node, body=walked), found[: len(node.outputs)]


def _slice_type(kind: TypeProto | None, axis: int) -> tuple[TypeProto | None, int | None]:
    """The type without one axis, and the size of that axis."""
    if kind is None or kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return _without_shape(kind), None
    dims = list(kind.tensor_type.shape.dim)
    at = axis + len(dims) if axis < 0 else axis
    if not 0 <= at < len(dims):
        return _without_shape(kind), None
    less = TypeProto()
    less.tensor_type.elem_type = kind.tensor_type.elem_type
    less.tensor_type.shape.SetInParent()
    for index, dim in enumerate(dims):
        if index != at:
            less.tensor_type.shape.dim.add().CopyFrom(dim)
    return less, int(dims[at].dim_value) if dims[at].HasField("dim_value") else None
