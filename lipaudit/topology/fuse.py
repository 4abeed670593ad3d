"""Recognised computations become one node each; the law: the same values at the same names, in real arithmetic.

The fused node stands where the last node that it covers stood, so the order stays topological. A node is claimed once, by
the first pattern that matches in graph order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lipaudit.graph.ir import Constant, Graph, Node, Value
from lipaudit.topology.match import Match, Mismatch, Pattern, Refusal, View
from lipaudit.topology.patterns.attention import attention
from lipaudit.topology.patterns.choice import choice
from lipaudit.topology.patterns.gelu import erf_gelu, tanh_gelu
from lipaudit.topology.patterns.l2_attention import l2_attention
from lipaudit.topology.patterns.linear_attention import linear_attention
from lipaudit.topology.patterns.magnitude import magnitude
from lipaudit.topology.patterns.normalization import normalization
from lipaudit.topology.patterns.pair_attention import pair_attention
from lipaudit.topology.patterns.products import einsum
from lipaudit.topology.patterns.quantised import dynamic_matmul
from lipaudit.topology.patterns.softmax import softmax
from lipaudit.topology.patterns.swish import clip_hard_swish, hard_swish, mish, swish

__all__ = ["EARLY", "PATTERNS", "Fused", "fuse"]

EARLY: Mapping[str, tuple[tuple[str, Pattern], ...]] = MappingProxyType(
    {
        "ai.onnx::Exp": (("softmax", softmax),),
        "ai.onnx::Where": (("choice", choice),),
        "ai.onnx::Einsum": (("product", einsum),),
    }
)
"""Patterns whose result is an operator of ONNX: they come first, so that the others see it."""

PATTERNS: Mapping[str, tuple[tuple[str, Pattern], ...]] = MappingProxyType(
    {
        "ai.onnx::Erf": (("GELU", erf_gelu),),
        "ai.onnx::Tanh": (("Mish", mish), ("GELU", tanh_gelu)),
        "ai.onnx::Sigmoid": (("SiLU", swish), ("sigmoid attention", pair_attention)),
        "ai.onnx::Relu": (("ReLU attention", pair_attention),),
        "ai.onnx::Div": (("linear attention", linear_attention),),
        "ai.onnx::Reciprocal": (("linear attention", linear_attention),),
        "ai.onnx::HardSigmoid": (("HardSwish", hard_swish),),
        "ai.onnx::Clip": (("HardSwish", clip_hard_swish),),
        "ai.onnx::Sqrt": (("normalization", normalization), ("magnitude", magnitude)),
        "ai.onnx::Pow": (("normalization", normalization), ("magnitude", magnitude)),
        "ai.onnx::ReduceL2": (("normalization", normalization),),
        "ai.onnx::Softmax": (("L2 attention", l2_attention), ("attention", attention)),
        "ai.onnx::MatMulInteger": (("dynamically quantised product", dynamic_matmul),),
    }
)
"""The patterns by the operator that they pivot on."""


@dataclass(frozen=True, slots=True)
class Fused:
    """The abstract graph, and why pivots were not recognised."""

    graph: Graph
    refusals: tuple[Refusal, ...]


def fuse(graph: Graph, moving: frozenset[str]) -> Fused:
    """Replace every recognised computation on moving values by one node."""
    first = _fuse(graph, moving, EARLY)
    second = _fuse(first.graph, moving, PATTERNS)
    return Fused(second.graph, (*first.refusals, *second.refusals))


def _fuse(graph: Graph, moving: frozenset[str], table: Mapping[str, tuple[tuple[str, Pattern], ...]]) -> Fused:
    view = View(graph, moving)
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    claimed: dict[str, str] = {}
    matches: dict[int, Match] = {}
    refusals: list[Refusal] = []
    for pivot in graph.nodes:
        patterns = table.get(pivot.kind)
        if patterns is None or not any(name in moving for name in pivot.inputs):
            continue
        for label, pattern in patterns:
            try:
                match = pattern(view, pivot)
                if match is None:
                    continue
                other = next((claimed[node.name] for node in match.covered if node.name in claimed), None)
                if other is not None:
                    raise Mismatch(f"a part of it belongs to the pattern around {other!r}")
            except Mismatch as reason:
                refusals.append(Refusal(pivot.name, label, str(reason)))
                continue
            claimed.update((node.name, pivot.name) for node in match.covered)
            matches[max(position[node.name] for node in match.covered)] = match
            break
    return Fused(_replace(graph, position, claimed, matches) if matches else graph, tuple(refusals))


def _replace(graph: Graph, position: Mapping[str, int], claimed: Mapping[str, str], matches: Mapping[int, Match]) -> Graph:
    nodes: list[Node] = []
    constants: dict[str, Constant] = dict(graph.constants)
    values: dict[str, Value] = dict(graph.values)
    helpers: set[str] = set()
    for i, node in enumerate(graph.nodes):
        match = matches.get(i)
        if match is None:
            if node.name not in claimed:
                nodes.append(node)
            continue
        for constant in match.constants:
            constants[constant.name] = constant
        for helper in match.helpers:
            if helper.name not in helpers:
                helpers.add(helper.name)
                nodes.append(helper)
                source = graph.value(helper.inputs[0])
                values[helper.outputs[0]] = Value(helper.outputs[0], source.dtype, source.shape)
        ordered = sorted(match.covered, key=lambda covered: position[covered.name])
        covers = tuple(name for covered in ordered for name in (covered.covers or (covered.name,)))
        nodes.append(match.fused.renamed(name=node.name, covers=covers))
    nodes = _without_twins(graph, nodes, claimed)
    inside = {name for match in matches.values() for node in match.covered for name in node.outputs}
    kept = {name for node in nodes for name in node.outputs}
    inside.update(name for node in graph.nodes for name in node.outputs if name not in kept)
    for name in inside - kept:
        values.pop(name, None)
    return graph.with_nodes(tuple(nodes), constants=constants, values=values)


def _without_twins(graph: Graph, nodes: list[Node], claimed: Mapping[str, str]) -> list[Node]:
    """Without nodes that only computed again what a fused node reads once; it covers them too."""
    read = {name for node in nodes for name in (*node.inputs, *graph.captured_by(node))} | set(graph.outputs)
    twins: dict[str, list[str]] = {}
    owner = dict(claimed)
    kept: list[Node] = []
    for node in reversed(nodes):
        readers = [user for name in node.outputs for user in graph.consumers.get(name, ())]
        dead = bool(readers) and node.domain != "lipaudit" and not any(name in read for name in node.outputs)
        if dead and all(user.name in owner for user in readers):
            owner[node.name] = owner[readers[0].name]
            twins.setdefault(owner[node.name], []).extend(node.covers or (node.name,))
            continue
        kept.append(node)
    found: list[Node] = []
    for node in reversed(kept):
        extra = twins.get(claimed.get(node.name, ""), [])
        found.append(node.renamed(covers=(*node.covers, *reversed(extra))) if extra and len(node.covers) > 1 else node)
    return found
