"""How hard to search, counted in evaluations of the graph so that two runs do exactly the same work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from lipaudit.graph.ir import Graph, Node

__all__ = ["BUDGETS", "NORMAL", "OVERHEAD", "QUICK", "THOROUGH", "Budget", "flops"]

# What a node costs whatever its size, in floating-point operations.
OVERHEAD = 1e4


@dataclass(frozen=True, slots=True)
class Budget:
    """Effort of one search.

    Attributes
    ----------
    name
        Printed in the method.
    evaluations
        Most evaluations (one forward run of the graph is 1; a derivative counts by what it costs beside it).
    work
        Floating-point operations that the whole search may spend: large graphs get ``work / flops`` evaluations.
    least
        Evaluations that even the largest graph gets.
    seconds
        Safety net: the search stops there and says so. It is chosen far above what ``work`` takes.
    stages
        How many searches one after another, each longer than the one before: a short time limit meets one that has come to its end.
    """

    name: str
    evaluations: int
    work: float
    least: int
    seconds: float
    stages: int = 1

    def for_graph(self, graph: Graph) -> int:
        """Evaluations for ``graph``: the same number on every machine."""
        return max(self.least, min(self.evaluations, int(self.work / max(flops(graph), 1.0))))


QUICK = Budget("quick", 10_000, 2e10, 10, 60.0)
NORMAL = Budget("normal", 130_000, 4e11, 60, 300.0, stages=3)
THOROUGH = Budget("thorough", 2_000_000, 1e13, 400, 3600.0, stages=5)
BUDGETS: Mapping[str, Budget] = {budget.name: budget for budget in (QUICK, NORMAL, THOROUGH)}


def flops(graph: Graph) -> float:
    """Estimate of the floating-point operations of one forward run (an overhead a node included)."""
    return sum(_node_flops(graph, node) for node in graph.nodes)


def _node_flops(graph: Graph, node: Node) -> float:
    sizes = [_size(graph, name) for name in node.outputs if name]
    out = max(sizes, default=1)
    shapes = [graph.value(name).shape or () for name in node.inputs if name]
    if node.op in {"Conv", "ConvTranspose", "QLinearConv", "ConvInteger"} and len(shapes) > 1:
        weight = next((s for s in shapes[1:] if len(s) > 2), shapes[1])
        per_output = 2 * prod(weight[1:])
        base = prod(shapes[0]) if node.op == "ConvTranspose" else out
        return OVERHEAD + float(base) * per_output
    if node.op in {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "MatMulNBits"} and shapes and shapes[0]:
        inner = shapes[0][0] if node.attrs.get("transA", 0) else shapes[0][-1]
        return OVERHEAD + 2.0 * out * inner
    if node.op in {"Attention", "LSTM", "GRU", "RNN", "Einsum"}:
        return OVERHEAD + 2.0 * out * max((s[-1] for s in shapes if s), default=1) * 8
    if any(isinstance(attr, Graph) for attr in node.attrs.values()):
        return OVERHEAD + sum(flops(attr) for attr in node.attrs.values() if isinstance(attr, Graph))
    return OVERHEAD + 4.0 * out


def _size(graph: Graph, name: str) -> int:
    shape = graph.value(name).shape
    return prod(shape) if shape is not None else 1
