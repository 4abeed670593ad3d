"""Mechanical changes of spelling: each rewrites a whole ONNX model into another model of the same function in real arithmetic.

A rewrite is applied wherever it can be. Those of :data:`EXACT` keep every stored number, up to powers of two; :data:`ROUNDED` write
``1/c`` for a stored c, rounded to its type, so that the function itself moves by that rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["EXACT", "REWRITES", "ROUNDED", "rewritten"]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass
class Rewriting:
    """A model that is being rewritten: its nodes anew, and what is known of its values."""

    model: onnx.ModelProto
    prefix: str = "rewritten"
    nodes: list[NodeProto] = field(default_factory=list)
    count: int = 0
    turned: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        self.types = {
            v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.input, *inferred.output) if v.type.HasField("tensor_type")
        }
        self.stored = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
            if value is not None:
                self.stored[node.output[0]] = value
            elif node.op_type == "Identity" and node.input[0] in self.stored:
                self.stored[node.output[0]] = self.stored[node.input[0]]

    def is_float(self, name: str) -> bool:
        """A value (not a stored one) of type float32 or float64."""
        kind = self.types.get(name)
        return kind is not None and name not in self.stored and kind.elem_type in _FLOATS

    def rank(self, name: str) -> int | None:
        """The rank, where inference knows it."""
        if name in self.stored:
            return len(self.stored[name].dims)
        kind = self.types.get(name)
        return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else None

    def array(self, name: str) -> np.ndarray[Any, Any] | None:
        """A stored float tensor."""
        tensor = self.stored.get(name)
        return numpy_helper.to_array(tensor) if tensor is not None and tensor.data_type in _FLOATS else None

    def constant(self, value: Any) -> str:
        """The name of a new stored tensor."""
        self.count += 1
        name = f"{self.prefix}_constant_{self.count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: Sequence[str], out: str = "", **attrs: Any) -> str:
        """Append a node; the name of its output."""
        self.count += 1
        out = out or f"{self.prefix}_{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{self.prefix}_node_{self.count}", **attrs))
        return out


Rewrite = Callable[[Rewriting, NodeProto], bool]
"""Appends what stands for one node; False if it leaves the node as it is (and has appended nothing)."""


def rewritten(model: onnx.ModelProto, *names: str) -> tuple[onnx.ModelProto, int]:
    """``model`` after the named rewrites, one after the other, and the number of places that changed."""
    places = 0
    for stage, name in enumerate(names):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        work = Rewriting(changed, f"rewritten_{stage}")
        for node in model.graph.node:
            nested = any(attr.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attr in node.attribute)
            if node.domain not in ("", "ai.onnx") or nested or not REWRITES[name](work, node):
                work.nodes.append(node)
            else:
                places += 1
        del changed.graph.node[:]
        changed.graph.node.extend(work.nodes)
        model = changed
    return model, places


# ---------------------------------------------------------------------- orders of operands


def _reversed(*ops: str) -> Rewrite:
    def rewrite(work: Rewriting, node: NodeProto) -> bool:
        if node.op_type not in ops or len(node.input) < 2:
            return False
        work.add(node.op_type, list(node.input)[::-1], node.output[0])
        return True

    return rewrite


def _choice(work: Rewriting, node: NodeProto) -> bool:
    """``Where(c, a, b)`` as ``Where(not c, b, a)``."""
    if node.op_type != "Where":
        return False
    work.add("Where", [work.add("Not", node.input[:1]), node.input[2], node.input[1]], node.output[0])
    return True


def _subtraction(work: Rewriting, node: NodeProto) -> bool:
    """``a - b`` as ``a + (-b)``."""
    if node.op_type != "Sub" or not work.is_float(node.output[0]):
        return False
    work.add("Add", [node.input[0], work.add("Neg", node.input[1:])], node.output[0])
    return True


# ---------------------------------------------------------------------- quotients, squares and roots


def _reciprocal(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(1 / value.astype(np.float64), value.dtype)


def _is_exact(value: np.ndarray[Any, Any]) -> bool:
    return bool(np.all(np.frexp(np.abs(value))[0] == 0.5))


def _by_constant(op: str, other: str, *, exact: bool) -> Rewrite:
    """Mul by a stored number as Div by its inverse, or the other way round."""

    def rewrite(work: Rewriting, node: NodeProto) -> bool:
        if node.op_type != op:
            return False
        at = next((i for i in (1, 0) if work.array(node.input[i]) is not None), None)
        stored = None if at is None else work.array(node.input[at])
        if at is None or stored is None or stored.size != 1 or (op == "Div" and at == 0):
            return False
        if not np.all(np.isfinite(stored) & (np.abs(stored) > 1e-30)):
            return False
        if exact and not _is_exact(stored):
            return False
        work.add(other, [node.input[1 - at], work.constant(_reciprocal(stored))], node.output[0])
        return True

    return rewrite


def _quotient(work: Rewriting, node: NodeProto) -> bool:
    """``a / b`` as ``a * (1/b)`` with b computed."""
    if node.op_type != "Div" or not all(map(work.is_float, node.input)):
        return False
    work.add("Mul", [node.input[0], work.add("Reciprocal", node.input[1:])], node.output[0])
    return True


def _inverse(work: Rewriting, node: NodeProto) -> bool:
    """``Reciprocal(b)`` as ``1 / b``."""
    if node.op_type != "Reciprocal" or not work.is_float(node.input[0]):
        return False
    one = np.float32(1) if work.types[node.input[0]].elem_type == TensorProto.FLOAT else np.float64(1)
    work.add("Div", [work.constant(one), node.input[0]], node.output[0])
    return True


def _square(work: Rewriting, node: NodeProto) -> bool:
    """``x^2`` as ``x * x``."""
    exponent = work.stored.get(node.input[1]) if node.op_type == "Pow" else None
    if exponent is None or numpy_helper.to_array(exponent).size != 1 or float(numpy_helper.to_array(exponent).ravel()[0]) != 2:
        return False
    work.add("Mul", [node.input[0], node.input[0]], node.output[0])
    return True


def _power(work: Rewriting, node: NodeProto) -> bool:
    """``x * x`` as ``x^2``."""
    if node.op_type != "Mul" or node.input[0] != node.input[1]:
        return False
    work.add("Pow", [node.input[0], work.constant(np.float32(2))], node.output[0])
    return True


def _root(work: Rewriting, node: NodeProto) -> bool:
    """``Sqrt`` as a power."""
    if node.op_type != "Sqrt" or not work.is_float(node.input[0]):
        return False
    work.add("Pow", [node.input[0], work.constant(np.float32(0.5))], node.output[0])
    return True


# ---------------------------------------------------------------------- nodes that do nothing


def _after(append: Callable[[Rewriting, str, str, int], None], *, ranked: bool = False) -> Rewrite:
    """Each float output is computed under another name, and comes back through ``append(work, hidden, name, rank)``."""

    def rewrite(work: Rewriting, node: NodeProto) -> bool:
        chosen = [name for name in node.output if work.is_float(name) and (not ranked or work.rank(name) is not None)]
        if not chosen or node.op_type == "Constant":
            return False
        hidden = {name: f"{name}/{work.prefix}_{work.count}" for name in chosen}
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.output[:]
        copy.output.extend(hidden.get(name, name) for name in node.output)
        work.nodes.append(copy)
        for name in chosen:
            append(work, hidden[name], name, work.rank(name) or 0)
        return True

    return rewrite


def _identity(work: Rewriting, hidden: str, name: str, rank: int) -> None:
    work.add("Identity", [hidden], name)


def _dropout(work: Rewriting, hidden: str, name: str, rank: int) -> None:
    work.add("Dropout", [hidden], name)


def _cast(work: Rewriting, hidden: str, name: str, rank: int) -> None:
    own = work.types[name].elem_type
    work.add("Cast", [work.add("Cast", [hidden], to=TensorProto.DOUBLE)], name, to=own)


def _same_reshape(work: Rewriting, hidden: str, name: str, rank: int) -> None:
    work.add("Reshape", [hidden, work.constant(np.zeros(rank, np.int64))], name)


def _reshape_and_back(work: Rewriting, hidden: str, name: str, rank: int) -> None:
    longer = work.constant(np.array([*np.zeros(rank, np.int64), 1], np.int64))
    work.add("Reshape", [work.add("Reshape", [hidden, longer]), work.constant(np.zeros(rank, np.int64))], name)


def _unsqueeze_and_back(work: Rewriting, hidden: str, name: str, rank: int) -> None:
    axes = work.constant(np.array([0], np.int64))
    work.add("Squeeze", [work.add("Unsqueeze", [hidden, axes]), axes], name)


def _transpose_and_back(work: Rewriting, hidden: str, name: str, rank: int) -> None:
    perm = [*range(1, rank), 0]
    back = [int(i) for i in np.argsort(perm)]
    work.add("Transpose", [work.add("Transpose", [hidden], perm=perm)], name, perm=back)


# ---------------------------------------------------------------------- transpositions and products


def _attr(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _in_two_steps(work: Rewriting, node: NodeProto) -> bool:
    """A Transpose of at least three axes as two: the swap of the last two comes by itself, as ``k.transpose(-1, -2)`` is exported."""
    perm = _attr(node, "perm", None)
    if node.op_type != "Transpose" or perm is None or len(perm) < 3:
        return False
    first = [*perm[:-2], perm[-1], perm[-2]]
    n = len(perm)
    if first == list(range(n)):
        return False
    work.add("Transpose", [work.add("Transpose", node.input, perm=first)], node.output[0], perm=[*range(n - 2), n - 1, n - 2])
    return True


def _weight(work: Rewriting, node: NodeProto) -> bool:
    """A stored matrix as the transposition of what is stored."""
    matrix = work.array(node.input[1]) if node.op_type == "MatMul" else None
    if matrix is None or matrix.ndim != 2:
        return False
    if node.input[1] not in work.turned:
        work.turned[node.input[1]] = work.add("Transpose", [work.constant(np.ascontiguousarray(matrix.T))], perm=[1, 0])
    work.add("MatMul", [node.input[0], work.turned[node.input[1]]], node.output[0])
    return True


def _gemm(work: Rewriting, node: NodeProto) -> bool:
    """Gemm as a product and a sum."""
    if node.op_type != "Gemm" or _attr(node, "alpha", 1.0) != 1.0 or _attr(node, "beta", 1.0) != 1.0:
        return False
    a, b = node.input[:2]
    a = work.add("Transpose", [a], perm=[1, 0]) if _attr(node, "transA", 0) else a
    b = work.add("Transpose", [b], perm=[1, 0]) if _attr(node, "transB", 0) else b
    if len(node.input) < 3:
        work.add("MatMul", [a, b], node.output[0])
    else:
        work.add("Add", [work.add("MatMul", [a, b]), node.input[2]], node.output[0])
    return True


def _rows(work: Rewriting, node: NodeProto) -> bool:
    """A product of tokens with a stored matrix as one Gemm of all rows, between Reshapes (the shape must be static)."""
    matrix = work.array(node.input[1]) if node.op_type == "MatMul" else None
    kind = work.types.get(node.input[0]) if matrix is not None else None
    if matrix is None or matrix.ndim != 2 or kind is None or not kind.HasField("shape"):
        return False
    shape = [d.dim_value for d in kind.shape.dim]
    if len(shape) < 3 or not all(shape):
        return False
    flat = work.add("Reshape", [node.input[0], work.constant(np.array([-1, matrix.shape[0]], np.int64))])
    if node.input[1] not in work.turned:
        work.turned[node.input[1]] = work.constant(np.ascontiguousarray(matrix.T))
    product = work.add("Gemm", [flat, work.turned[node.input[1]]], transB=1)
    work.add("Reshape", [product, work.constant(np.array([*shape[:-1], matrix.shape[1]], np.int64))], node.output[0])
    return True


def _einsum(work: Rewriting, node: NodeProto) -> bool:
    """A product of two computed values of four axes as Einsum."""
    if node.op_type != "MatMul" or any(work.rank(name) != 4 or not work.is_float(name) for name in node.input):
        return False
    work.add("Einsum", node.input, node.output[0], equation="abij,abjk->abik")
    return True


EXACT: Mapping[str, Rewrite] = {
    "order of sums": _reversed("Add", "Sum"),
    "order of products": _reversed("Mul"),
    "order of extrema": _reversed("Max", "Min"),
    "choice by the opposite": _choice,
    "difference as sum": _subtraction,
    "quotient as product": _quotient,
    "reciprocal as quotient": _inverse,
    "factor as divisor, powers of two": _by_constant("Mul", "Div", exact=True),
    "divisor as factor, powers of two": _by_constant("Div", "Mul", exact=True),
    "square as product": _square,
    "product as square": _power,
    "root as power": _root,
    "Identity": _after(_identity),
    "Dropout": _after(_dropout),
    "Cast": _after(_cast),
    "Reshape": _after(_same_reshape, ranked=True),
    "Reshape and back": _after(_reshape_and_back, ranked=True),
    "Unsqueeze and back": _after(_unsqueeze_and_back, ranked=True),
    "Transpose and back": _after(_transpose_and_back, ranked=True),
    "Transpose in two steps": _in_two_steps,
    "weight transposed": _weight,
    "Gemm as product and sum": _gemm,
    "product as Gemm": _rows,
    "product as Einsum": _einsum,
}
ROUNDED: Mapping[str, Rewrite] = {
    "factor as divisor": _by_constant("Mul", "Div", exact=False),
    "divisor as factor": _by_constant("Div", "Mul", exact=False),
}
REWRITES: Mapping[str, Rewrite] = {**EXACT, **ROUNDED}
