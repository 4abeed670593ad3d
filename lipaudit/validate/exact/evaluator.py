"""Runs a graph node by node in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lipaudit.graph.dtypes import numpy_dtype
from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.operators.base import Site
from lipaudit.validate.exact import contrib, elementwise, linear, movement, normalization, quantized, recurrent, reduction, resize
from lipaudit.validate.exact.call import Array, Call, NotExact, Operator, is_float
from lipaudit.validate.exact.reference import reference

__all__ = ["OPERATORS", "Evaluator", "evaluated"]

OPERATORS: Mapping[str, Operator] = {
    **elementwise.OPERATORS,
    **linear.OPERATORS,
    **movement.OPERATORS,
    **normalization.OPERATORS,
    **quantized.OPERATORS,
    **recurrent.OPERATORS,
    **reduction.OPERATORS,
    **resize.OPERATORS,
}
# Constants above this many elements are converted anew at each use: the copies would not fit beside the model.
_CACHED_ELEMENTS = 4_000_000

# onnx.reference computes these in float32, or not at all; spelled in other operators they are evaluated in float64.
_SPELLED = frozenset({
    "AffineGrid", "CausalConvWithState", "CumProd", "DeformConv", "GridSample", "LinearAttention", "MaxRoiPool",
    "MeanVarianceNormalization", "RoiAlign", "Scan", "SimplifiedLayerNormalization",
})  # fmt: skip


def evaluated(node: Node) -> bool:
    """Whether :class:`Evaluator` knows the kind of a node: most of the standard domain (onnx.reference stands behind), some others."""
    if node.op in _SPELLED and node.op not in OPERATORS:
        return False
    if node.attrs.get("training_mode", 0) or (node.op == "DequantizeLinear" and node.attrs.get("block_size", 0)):
        return False
    return node.domain in {"", "ai.onnx"} or (node.domain == "com.microsoft" and node.op in contrib.OPERATORS)


class Evaluator:
    """Evaluates ``graph`` in ``floating`` precision.

    Parameters
    ----------
    graph
        Static shapes are not needed; every operator works on the arrays at hand.
    floating
        float64, or float32 for comparisons.
    check
        Called before every node; raise from it to stop (deadlines).
    """

    def __init__(self, graph: Graph, *, floating: Any = np.float64, check: Callable[[], None] = lambda: None) -> None:
        self.graph = graph
        self.floating = np.dtype(floating)
        self._check = check
        self._constants: dict[str, Array] = {}
        self._plans: dict[int, _Plan] = {}

    def run(self, feeds: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
        """Values of ``names`` (any values of the graph) for inputs ``feeds``; float arrays in the working precision.

        Raises
        ------
        NotExact
            If a node has no evaluation in this precision, with its name and operator.
        """
        return dict(self.stream(feeds, names))

    def stream(self, feeds: Mapping[str, Array], names: Iterable[str]) -> Iterator[tuple[str, Array]]:
        """As :meth:`run`, each value when it is there; values are dropped after their last use.

        The order depends on the graph and ``names`` alone, so that streams of several points run in lockstep.
        """
        wanted = frozenset(names)
        values = {name: self._working(array) for name, array in feeds.items()}
        for name in sorted(wanted):
            if name in values:
                yield name, values[name]
            elif name in self.graph.constants:
                yield name, self._constant(self.graph.constants[name])
            elif name not in self.graph.producer:
                raise NotExact(f"value {name!r} is not computed")
        for name in self._run(self.graph, values, wanted):
            yield name, values[name]

    def _working(self, array: Array) -> Array:
        return array.astype(self.floating) if is_float(array) else array

    def _constant(self, constant: Constant) -> Array:
        found = self._constants.get(constant.name)
        if found is not None:
            return found
        if constant.fill is not None and constant.size > 1:
            one = np.asarray(constant.fill).astype(numpy_dtype(constant.dtype))
            found = np.broadcast_to(self._working(one), constant.shape)
        else:
            found = self._working(np.asarray(constant.array()))
        if constant.fill is not None or constant.size <= _CACHED_ELEMENTS:
            self._constants[constant.name] = found
        return found

    def _run(self, graph: Graph, values: dict[str, Array], wanted: frozenset[str], *, keep: bool = False) -> Iterator[str]:
        """Fill ``values``; yields each wanted name once it is there. ``keep`` keeps wanted values to the end."""
        plan = self._plans.get(id(graph))
        if plan is None or plan.wanted != wanted:
            plan = self._plans[id(graph)] = _Plan(graph, wanted)
        for node, site, free in plan.steps:
            self._check()
            with np.errstate(all="ignore"):
                xs = [self._input(graph, values, name) for name in node.inputs]
                outputs = self._apply(node, site, xs, values)
            for name, output in zip(node.outputs, outputs, strict=False):
                if name:
                    values[name] = np.asarray(output)
            for name in node.outputs:
                if name in wanted:
                    yield name
            for name in free:
                if not (keep and name in wanted):
                    values.pop(name, None)

    def _input(self, graph: Graph, values: Mapping[str, Array], name: str) -> Array | None:
        if not name:
            return None
        found = values.get(name)
        if found is not None:
            return found
        constant = graph.constants.get(name) or self.graph.constants.get(name)
        if constant is None:
            raise NotExact(f"value {name!r} is not computed")
        return self._constant(constant)

    def _apply(self, node: Node, site: Site, xs: list[Array | None], values: dict[str, Array]) -> tuple[Array, ...]:
        call = Call(site, xs, self.floating)
        try:
            if node.domain in {"", "ai.onnx"}:
                if node.op == "If":
                    return self._branch(node, xs, values)
                if node.op == "Loop":
                    return self._loop(node, xs, values)
                operator = OPERATORS.get(node.op)
            else:
                operator = contrib.OPERATORS.get(node.op) if node.domain == "com.microsoft" else None
            result = operator(call) if operator is not None else reference(call)
        except NotExact as error:
            raise NotExact(f"{node.op} {node.name!r} has no float64 evaluation: {error}") from None
        except (ValueError, IndexError, TypeError, KeyError, AttributeError, ArithmeticError, MemoryError) as error:
            raise NotExact(f"{node.op} {node.name!r} has no float64 evaluation: {str(error)[:200]}") from None
        return result if isinstance(result, tuple) else (result,)

    def _nested(self, graph: Graph, outer: Mapping[str, Array], inner: Mapping[str, Array]) -> tuple[Array, ...]:
        """Outputs of a subgraph that sees the values around it."""
        values = {**outer, **inner}
        for _ in self._run(graph, values, frozenset(graph.outputs), keep=True):
            pass
        return tuple(x for x in (self._input(graph, values, name) for name in graph.outputs) if x is not None)

    def _branch(self, node: Node, xs: list[Array | None], values: dict[str, Array]) -> tuple[Array, ...]:
        condition = bool(np.asarray(xs[0]).reshape(-1)[0])
        graph = node.attrs["then_branch" if condition else "else_branch"]
        return self._nested(graph, values, {})

    def _loop(self, node: Node, xs: list[Array | None], values: dict[str, Array]) -> tuple[Array, ...]:
        body: Graph = node.attrs["body"]
        trips = None if xs[0] is None else int(xs[0].reshape(-1)[0])
        going = xs[1] is None or bool(xs[1].reshape(-1)[0])
        state = [x for x in xs[2:] if x is not None]
        scans: list[list[Array]] = [[] for _ in range(len(body.outputs) - 1 - len(state))]
        names = [value.name for value in body.inputs]
        i = 0
        while going and (trips is None or i < trips):
            self._check()
            heads = [np.array(i, dtype=np.int64), np.array(going), *state]
            results = self._nested(body, values, dict(zip(names, heads, strict=True)))
            going = bool(results[0].reshape(-1)[0])
            state = list(results[1 : 1 + len(state)])
            for scan, piece in zip(scans, results[1 + len(state) :], strict=True):
                scan.append(piece)
            i += 1
        return (*state, *(np.stack(scan) if scan else np.zeros((0,)) for scan in scans))


class _Plan:
    """The nodes that ``wanted`` needs, and which values can be dropped after each."""

    def __init__(self, graph: Graph, wanted: frozenset[str]) -> None:
        self.wanted = wanted
        needed, nodes = set(wanted), list[Node]()
        for node in reversed(graph.nodes):
            if any(name in needed for name in node.outputs):
                nodes.append(node)
                needed.update(node.inputs)
                needed.update(graph.captured_by(node))
        nodes.reverse()
        last: dict[str, int] = {}
        for i, node in enumerate(nodes):
            for name in (*node.inputs, *graph.captured_by(node), *node.outputs):
                last[name] = i
        free: list[list[str]] = [[] for _ in nodes]
        for name, i in last.items():
            if name:
                free[i].append(name)
        self.steps = [(node, _site(graph, node), tuple(names)) for node, names in zip(nodes, free, strict=True)]


def _site(graph: Graph, node: Node) -> Site:
    return Site(
        node,
        tuple(graph.value(name) if name else None for name in node.inputs),
        tuple(graph.value(name) if name else None for name in node.outputs),
        tuple(graph.constants.get(name) for name in node.inputs),
        tuple(False for _ in node.inputs),
    )
