"""Nodes whose inputs are all constants become constants.

Law: the value is the constant that the graph computes in its own arithmetic. Data movement, integers, comparisons and
casts are exact; float arithmetic is rounded in the type that the graph gives it, as the runtime that runs the graph
rounds it. So a weight behind DequantizeLinear or Mul is the weight that the deployed model uses.

Cases:

1. ``Shape`` and ``Size`` of a value of known shape: the value itself need not be constant;
2. ``ConstantOfShape``, ``Expand`` of one element, and movement or elementwise arithmetic of uniform tensors: a uniform
   tensor, kept as one number (``Constant.fill``);
3. movement that is a view (``Transpose``, ``Slice``, ...): a view, whatever the size;
4. other operators with a numpy kernel; results over the budget are computed when they are read, unless they are much
   larger than what they are computed from (then the node stays);
5. any other deterministic operator: evaluated by the runtime, within the budget.

Never folded: random operators, nodes with subgraphs, unknown operators, anything whose result size is not known before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.errors import ModelError
from lipaudit.graph.dtypes import numpy_dtype, stored_bytes
from lipaudit.graph.ir import Constant, Graph, Node, Value
from lipaudit.graph.limits import Limits
from lipaudit.graph.simplify import runtime
from lipaudit.graph.simplify.bypass import is_inactive
from lipaudit.graph.simplify.kernels import KERNELS, VIEWS

__all__ = ["Budget", "fold"]

Array = NDArray[Any]

_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"})
# Sequences, optionals and texts are no tensors that a bound could use.
_NOT_TENSORS = ("Sequence", "Optional", "String", "ConcatFromSequence", "SplitToSequence", "RegexFullMatch", "TfIdfVectorizer")

_UNIFORM_MOVEMENT = frozenset(
    {"Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice", "Split", "Tile", "Gather"}
)
_UNIFORM_ARITHMETIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Reciprocal", "Not", "Equal", "Less", "Greater", "And", "Or", "Where", "Cast"}
)

# How much larger than its inputs a result may be that is computed whenever it is read (int4 weights grow eightfold).
_GROWTH = 16
# Multiply-adds that folding a product or a convolution may take.
_WORK = 4_000_000_000


@dataclass
class Budget:
    """Bytes that folding may still hold.

    Attributes
    ----------
    each
        For one result.
    left
        For all that are still to come.
    """

    each: int
    left: int

    @classmethod
    def of(cls, limits: Limits) -> Budget:
        """A fresh budget."""
        return cls(limits.fold_bytes, limits.fold_total)

    def fits(self, size: int) -> bool:
        """Whether a result of that many bytes may be held."""
        return size <= min(self.each, self.left)

    def take(self, size: int) -> None:
        """Book a result."""
        self.left -= size


def fold(
    node: Node,
    outputs: Sequence[Value],
    shapes: Mapping[str, Value],
    constants: Mapping[str, Constant],
    opsets: Mapping[str, int],
    budget: Budget,
) -> list[Constant] | None:
    """The outputs of a node as constants, or None if it stays.

    Parameters
    ----------
    node
        The node.
    outputs
        Inferred types of its outputs, in order.
    shapes
        Types of the values known so far.
    constants
        Those of its inputs that are constants.
    opsets
        Of the model.
    budget
        What may still be held; reduced by what is.
    """
    if node.version == 0 or any(_is_graph(attr) for attr in node.attrs.values()) or not outputs:
        return None
    if not node.domain and node.op in ("Shape", "Size"):
        return _shape(node, shapes)
    if node.op == "Dropout" and not node.domain and [value.name for value in outputs if value.name] == list(node.outputs[:1]):
        node = node.renamed(op="Identity", version=13, inputs=node.inputs[:1], attrs={}) if is_inactive(node, constants) else node
    if node.op in _RANDOM or node.op.startswith(_NOT_TENSORS) or not any(node.inputs):
        return None
    if any(name and name not in constants for name in node.inputs):
        return None
    given = [constants[name] if name else None for name in node.inputs]
    if any(constant is not None and constant.dtype == "string" for constant in given):
        return None
    data_dependent = node.op == "NonZero" and prod(given[0].shape if given[0] is not None else (0,)) <= 1 << 20
    named = [value for value in outputs if value.name]
    if not data_dependent and any(value.shape is None or not value.dtype for value in named):
        return None
    for attempt in (_uniform, _numpy, _by_runtime):
        found = attempt(node, outputs, given, opsets, budget)
        if found is not None:
            return found
    return None


def _is_graph(attr: Any) -> bool:
    return isinstance(attr, Graph) or (isinstance(attr, tuple) and bool(attr) and isinstance(attr[0], Graph))


def _shape(node: Node, shapes: Mapping[str, Value]) -> list[Constant] | None:
    """Case 1. Shape-15 has ``start`` and ``end``."""
    shape = shapes[node.inputs[0]].shape if node.inputs[0] in shapes else None
    if shape is None:
        return None
    if node.op == "Size":
        return [Constant.of(node.outputs[0], np.array(prod(shape), dtype=np.int64))]
    start, end = node.attrs.get("start", 0), node.attrs.get("end", len(shape))
    rank = len(shape)
    start, end = (min(max(edge + rank if edge < 0 else edge, 0), rank) for edge in (start, end))
    return [Constant.of(node.outputs[0], np.array(shape[start:end], dtype=np.int64))]


def uniform(value: Value, fill: Any) -> Constant:
    """A constant of one repeated number; its array is a view of that number."""
    shape = value.shape or ()
    number = np.asarray(fill).astype(numpy_dtype(value.dtype)).reshape(())
    return Constant(value.name, value.dtype, shape, lambda: np.broadcast_to(number, shape), fill=number.item(), source="folded")


def _uniform(
    node: Node, outputs: Sequence[Value], given: Sequence[Constant | None], opsets: Mapping[str, int], budget: Budget
) -> list[Constant] | None:
    """Case 2."""
    first = given[0]
    if node.domain or first is None:
        return None
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        if isinstance(value, Constant):
            return [uniform(outputs[0], value.array().reshape(-1)[0])] if value.size == 1 else None
        return [uniform(outputs[0], 0)]
    if node.op in _UNIFORM_MOVEMENT:
        if first.fill is not None:
            return [
                uniform(value, first.array().reshape(-1)[:1].reshape(()) if first.size else first.fill) for value in outputs if value.name
            ]
        if node.op == "Expand" and first.size == 1 and prod(outputs[0].shape or ()) > 1:
            return [uniform(outputs[0], first.array().reshape(()))]
        return None
    if node.op in _UNIFORM_ARITHMETIC and any(c is not None and c.fill is not None for c in given):
        scalars: list[Array | None] = []
        for constant in given:
            if constant is None or constant.size == 0 or (constant.fill is None and constant.size > 1):
                return None
            scalars.append(constant.array()[(0,) * len(constant.shape)].reshape(()))
        result = _call(node.renamed(version=max(node.version, 7)), scalars)
        if result is not None and str(result[0].dtype) == outputs[0].dtype:
            return [uniform(outputs[0], result[0])]
    return None


def _call(node: Node, arrays: Sequence[Array | None]) -> Sequence[Array] | None:
    kernel = KERNELS.get(node.op)
    if kernel is None or node.domain:
        return None
    try:
        return kernel(node, arrays)
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError):
        return None


def _numpy(
    node: Node, outputs: Sequence[Value], given: Sequence[Constant | None], opsets: Mapping[str, int], budget: Budget
) -> list[Constant] | None:
    """Cases 3 and 4."""
    if node.domain or node.op not in KERNELS:
        return None
    size = sum(stored_bytes(value.dtype, value.size) for value in outputs if value.name)
    view = node.op in VIEWS
    if not view and not budget.fits(size):
        source = sum(stored_bytes(constant.dtype, constant.size) for constant in given if constant is not None and constant.fill is None)
        if len(outputs) > 1 or size > _GROWTH * source:
            return None
        return [_deferred(node, outputs[0], given)]
    result = _call(node, [None if constant is None else constant.array() for constant in given])
    if result is None:
        return None
    if not view:
        budget.take(size)
    return _named(outputs, result)


def _deferred(node: Node, value: Value, given: Sequence[Constant | None]) -> Constant:
    """A result that is computed at each reading and never held."""

    def load() -> Array:
        result = _call(node, [None if constant is None else constant.array() for constant in given])
        if result is None:
            raise ModelError(f"the constant {value.name!r}, computed by node {node.name!r}, cannot be evaluated")
        return np.asarray(result[0]).reshape(value.shape or ())

    return Constant(value.name, value.dtype, value.shape or (), load, source="folded")


def _named(outputs: Sequence[Value], arrays: Sequence[Array]) -> list[Constant] | None:
    """The arrays as constants, if they have the inferred types."""
    constants: list[Constant] = []
    for value, array in zip(outputs, arrays, strict=False):
        if not value.name:
            continue
        if (value.shape is not None and array.shape != value.shape) or (value.dtype and str(array.dtype) != value.dtype):
            return None
        constants.append(Constant.of(value.name, array))
    return constants if len(constants) == sum(bool(value.name) for value in outputs) else None


def _by_runtime(
    node: Node, outputs: Sequence[Value], given: Sequence[Constant | None], opsets: Mapping[str, int], budget: Budget
) -> list[Constant] | None:
    """Case 5."""
    size = sum(stored_bytes(value.dtype, value.size) for value in outputs if value.name and value.shape is not None and value.dtype)
    source = sum(stored_bytes(constant.dtype, constant.size) for constant in given if constant is not None)
    if not budget.fits(size) or source > 4 * budget.each or _work(node, outputs, given) > _WORK:
        return None
    computed = runtime.evaluate(node, [None if constant is None else constant.array() for constant in given], dict(opsets))
    if computed is None:
        return None
    constants = _named([value for value in outputs if value.name], computed)
    if constants is not None:
        budget.take(size)
    return constants


def _work(node: Node, outputs: Sequence[Value], given: Sequence[Constant | None]) -> int:
    """Multiply-adds, for the operators where they exceed the size of the result by much."""
    first, second = given[0], given[1] if len(given) > 1 else None
    if outputs[0].shape is None or first is None:
        return 0
    size = outputs[0].size
    if node.op in ("MatMul", "Gemm", "MatMulInteger") and first.shape:
        return size * max(first.shape)
    if node.op in ("Conv", "ConvTranspose", "ConvInteger") and second is not None:
        return size * prod(second.shape[1:])
    if node.op in ("Einsum", "LSTM", "GRU", "RNN", "Attention", "DeformConv"):
        return size * max((constant.size for constant in given if constant is not None), default=0)
    return 0
