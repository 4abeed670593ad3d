"""Builds the ONNX model of a derivative.

The model takes intermediate values of the forward run (*taps*) and tangents or cotangents with a leading axis of K probes:
the tangent of a value of shape S has shape ``[K, *S]``. Forward values are computed once per point by another session, in
the model's own opset, and serve every probe; this model is always written in opset 18 and float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lipaudit.graph.dtypes import elem_type
from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.operators.base import Site

__all__ = ["Builder", "Local", "Maybe", "NoDerivative", "Rule", "Slope"]

OPSET = 18
IR_VERSION = 9
# Weights above this many elements are passed at run time instead of being stored in the model.
_STORED_ELEMENTS = 8_000_000

Maybe = str | None
# What a tangent is multiplied by: a tensor without the axis of probes, or a number.
Slope = str | float


class NoDerivative(Exception):
    """A node has no derivative rule (or not for its attributes); the message names the operator."""


@dataclass(frozen=True, slots=True)
class Local:
    """The derivative of one node.

    ``tangent`` maps the tangents of the inputs (None: does not move) to those of the outputs, ``adjoint`` the cotangents of
    the outputs to those of the inputs. Both are called at most once and add nodes to the builder.
    """

    tangent: Callable[[Sequence[Maybe]], Sequence[Maybe]]
    adjoint: Callable[[Sequence[Maybe]], Sequence[Maybe]]


class Builder:
    """Collects nodes, constants and taps of one derivative model of ``graph``; ``moving`` are the values with a derivative."""

    def __init__(self, graph: Graph, moving: set[str]) -> None:
        self.graph = graph
        self.moving = moving
        self.taps: dict[str, str] = {}
        self.large: dict[str, NDArray[Any]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._stored: dict[tuple[Any, ...], str] = {}
        self._primal: dict[str, str] = {}
        # A product of slopes as its first factor, which carries the probes, and the product of the others, which is the same for all.
        self._scaled: dict[str, tuple[str, Slope]] = {}
        self._count = 0
        self.probe_count: str | None = None

    def _fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node with one output; its name."""
        return self.nodes_of(op, inputs, 1, **attrs)[0]

    def nodes_of(self, op: str, inputs: Sequence[str], outputs: int, **attrs: Any) -> list[str]:
        """Add a node with several outputs; their names."""
        names = [self._fresh(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attrs))
        return names

    def constant(self, array: NDArray[Any], *, key: tuple[Any, ...] | None = None) -> str:
        """A stored tensor (float64 becomes float32); small equal ones are stored once."""
        array = np.asarray(array)
        if array.dtype.kind == "f" or "float" in array.dtype.name:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        key = key if key is not None else (str(array.dtype), array.shape, array.tobytes()) if array.size <= 4096 else None
        if key is not None and key in self._stored:
            return self._stored[key]
        name = self._fresh("constant")
        if array.size > _STORED_ELEMENTS:
            self.large[name] = np.array(array, order="C")
            self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
        else:
            self._initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        if key is not None:
            self._stored[key] = name
        return name

    def ints(self, *values: int) -> str:
        """A stored int64 vector."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A stored float scalar."""
        return self.constant(np.array(value, dtype=np.float32))

    def shape(self, name: str) -> tuple[int, ...]:
        """Static shape of a value of the graph."""
        shape = self.graph.value(name).shape
        if shape is None:
            raise NoDerivative(f"the shape of {name!r} is not known")
        return shape

    def stored(self, name: str) -> Constant | None:
        """The constant of that name, if it is one."""
        return self.graph.constants.get(name)

    def weight(self, constant: Constant, how: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> str:
        """A stored weight after ``change`` (done now, not at each run); ``how`` names the change."""
        key = ("weight", constant.name, how)
        found = self._stored.get(key)
        return found if found is not None else self.constant(change(np.asarray(constant.array())), key=key)

    def primal(self, name: str) -> str:
        """The forward value ``name`` in this model: a stored constant or a tap; float types become float32."""
        found = self._primal.get(name)
        if found is not None:
            return found
        constant = self.stored(name)
        if constant is not None:
            result = self.constant(np.asarray(constant.array()), key=("weight", name, ""))
        else:
            value = self.graph.value(name)
            dtype = elem_type(value.dtype)
            if not dtype:
                raise NoDerivative(f"the type of {name!r} is not known")
            result = self._fresh("tap")
            self.taps[name] = result
            self.inputs.append(helper.make_tensor_value_info(result, dtype, self.shape(name)))
            if value.is_float and dtype != TensorProto.FLOAT:
                result = self.node("Cast", result, to=TensorProto.FLOAT)
        self._primal[name] = result
        return result

    def seed(self, shape: tuple[int, ...], hint: str) -> str:
        """An input of the model: tangents or cotangents of shape ``[K, *shape]``."""
        name = self._fresh(hint)
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["K", *shape]))
        if self.probe_count is None:
            whole = self.node("Shape", name)
            self.probe_count = self.node("Slice", whole, self.ints(0), self.ints(1))
        return name

    def result(self, name: str, shape: tuple[int, ...]) -> None:
        """Make ``name`` an output."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["K", *shape]))

    def zeros(self, shape: tuple[int, ...]) -> str:
        """Zeros of shape ``[K, *shape]``."""
        assert self.probe_count is not None
        target = self.node("Concat", self.probe_count, self.ints(*shape), axis=0) if shape else self.probe_count
        return self.node("ConstantOfShape", target)

    def reshape(self, t: str, shape: tuple[int, ...]) -> str:
        """``[K, ...]`` to ``[K, *shape]``."""
        return self.node("Reshape", t, self.ints(-1, *shape))

    def fold(self, t: str, shape: tuple[int, ...]) -> str:
        """``[K, N, ...]`` to ``[K * N, ...]`` for operators with one batch axis; ``shape`` is the value's own."""
        return self.node("Reshape", t, self.ints(-1, *shape[1:]))

    def lift(self, t: str, shape: tuple[int, ...], rank: int) -> str:
        """``[K, *shape]`` with ones behind K so that the value has ``rank`` axes."""
        return t if len(shape) >= rank else self.reshape(t, (1,) * (rank - len(shape)) + shape)

    def expand(self, t: str, shape: tuple[int, ...], out: tuple[int, ...]) -> str:
        """Broadcast ``[K, *shape]`` to ``[K, *out]``."""
        return t if shape == out else self.node("Expand", self.lift(t, shape, len(out)), self.ints(1, *out))

    def unbroadcast(self, c: str, out: tuple[int, ...], shape: tuple[int, ...]) -> str:
        """The adjoint of :meth:`expand`: sums over the axes that were repeated."""
        if shape == out:
            return c
        lead = len(out) - len(shape)
        lifted = (1,) * lead + shape
        axes = [i + 1 for i, (a, b) in enumerate(zip(lifted, out, strict=True)) if a == 1 and b != 1]
        if axes:
            c = self.node("ReduceSum", c, self.ints(*axes), keepdims=1)
        return self.reshape(c, shape) if lead else c

    def times(self, t: str, slope: Slope) -> str:
        """``slope`` times ``t``, elementwise; ``slope`` broadcasts to the axes of ``t`` behind K.

        Slopes in a row are multiplied with each other first, once for all probes: that costs no more for one probe, and K times less for K.
        """
        base, before = self._scaled.get(t, (t, 1.0))
        whole = self._product(before, slope)
        if whole == 1.0:
            return base
        if isinstance(whole, str):
            result = self.node("Mul", base, whole)
        else:
            result = self.node("Neg", base) if whole == -1.0 else self.node("Mul", base, self.number(whole))
        self._scaled[result] = base, whole
        return result

    def _product(self, a: Slope, b: Slope) -> Slope:
        if isinstance(a, str) and isinstance(b, str):
            return self.node("Mul", a, b)
        if not isinstance(a, str) and not isinstance(b, str):
            return a * b
        tensor, number = (a, b) if isinstance(a, str) else (b, a)
        assert isinstance(tensor, str)
        assert not isinstance(number, str)
        return tensor if number == 1.0 else self.node("Mul", tensor, self.number(number))

    def _total(self, slopes: Sequence[Slope]) -> Slope:
        numbers = [slope for slope in slopes if not isinstance(slope, str)]
        tensors = [slope for slope in slopes if isinstance(slope, str)]
        if not tensors:
            return sum(numbers)
        return self.node("Sum", *tensors, *([self.number(sum(numbers))] if numbers else []))

    def sum(self, terms: Sequence[Maybe]) -> Maybe:
        """Sum of the terms that move; multiples of the same tangent become one."""
        groups: dict[str, list[tuple[str, Slope]]] = {}
        for term in terms:
            if term is not None:
                base, slope = self._scaled.get(term, (term, 1.0))
                groups.setdefault(base, []).append((term, slope))
        parts = [
            members[0][0] if len(members) == 1 else self.times(base, self._total([slope for _, slope in members]))
            for base, members in groups.items()
        ]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else self.node("Sum", *parts)

    def site(self, node: Node) -> Site:
        """The node with its types and constants."""
        return Site(
            node,
            tuple(self.graph.value(name) if name else None for name in node.inputs),
            tuple(self.graph.value(name) if name else None for name in node.outputs),
            tuple(self.graph.constants.get(name) for name in node.inputs),
            tuple(name in self.moving for name in node.inputs),
        )

    def model(self) -> onnx.ModelProto:
        """The finished model, without the nodes that no output needs."""
        needed = {value.name for value in self.outputs}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(node.input)
        kept.reverse()
        for name in [name for name, tap in self.taps.items() if tap not in needed]:
            del self.taps[name]
        for name in [name for name in self.large if name not in needed]:
            del self.large[name]
        keep = {*self.taps.values(), *self.large}
        inputs = [value for value in self.inputs if value.name in keep or value.name.startswith("seed")]
        graph = helper.make_graph(
            kept, "derivative", inputs, self.outputs, [tensor for tensor in self._initializers if tensor.name in needed]
        )
        return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])


Rule = Callable[[Builder, Site], Local]
