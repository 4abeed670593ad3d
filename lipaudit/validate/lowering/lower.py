"""Spells compound operators in standard nodes, so that derivatives and evaluation in float64 need no rule for each.

The values of the graph keep their names; what the new nodes compute in between is new. Only nodes that the caller cannot handle are
touched: a graph without any is returned as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import defs

from lipaudit.errors import ModelError
from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.limits import DEFAULT
from lipaudit.graph.simplify.expand import Operators
from lipaudit.graph.simplify.propagate import propagate
from lipaudit.validate.lowering import attention, defined, fused, learned, loops, movement, parameters, quantized, recurrent, sampling
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS", "Lowered", "lower"]

LOWERINGS: Mapping[str, Lowering] = {
    **attention.LOWERINGS,
    **defined.LOWERINGS,
    **fused.LOWERINGS,
    **learned.LOWERINGS,
    **loops.LOWERINGS,
    **movement.LOWERINGS,
    **parameters.LOWERINGS,
    **quantized.LOWERINGS,
    **recurrent.LOWERINGS,
    **sampling.LOWERINGS,
}

# A body may hold compound operators itself.
_ROUNDS = 4


@dataclass(frozen=True)
class Lowered:
    """A graph with the same inputs (less those that became constants), outputs and value names.

    ``reasons`` says of the nodes that could not be spelled out why, by name.
    """

    graph: Graph
    reasons: Mapping[str, str]


def lower(graph: Graph, known: Callable[[Node], bool], fixed: Mapping[str, NDArray[Any]] | None = None) -> Lowered:
    """Replace the nodes that are not ``known``.

    Parameters
    ----------
    graph
        Simplified: static shapes.
    known
        True for nodes that the caller handles.
    fixed
        Values of inputs that never change: with them an If may have one branch, and a Loop a number of turns.
    """
    reasons: dict[str, str] = {}
    if all(known(node) for node in graph.nodes):
        return Lowered(graph, reasons)
    held = {name: array for name, array in (fixed or {}).items() if name not in graph.outputs}
    stored = {name: Constant.of(name, np.asarray(array)) for name, array in held.items()}
    # A graph of other domains alone says nothing of the standard operators that it is spelled in.
    opsets = {"": 18, **graph.opsets}
    inputs = tuple(value for value in graph.inputs if value.name not in held)
    result = replace(graph, opsets=opsets, inputs=inputs, constants={**graph.constants, **stored})
    # Nested graphs stay to themselves: what lies in the branch that is taken is looked at in the next round.
    operators = Operators(has_rule=lambda node: known(node) or node.kind in LOWERINGS)
    for _ in range(_ROUNDS):
        nodes: list[Node] = []
        constants: dict[str, Constant] = {}
        changed = False
        for node in result.nodes:
            made = None if known(node) else _made(result, node, reasons)
            if made is None:
                nodes.append(node)
                continue
            changed = True
            nodes.extend(made.nodes)
            constants.update(made.constants)
        before = len(nodes)
        try:
            walked, wrong = propagate(replace(result, nodes=tuple(nodes), constants={**result.constants, **constants}), DEFAULT, operators)
        except ModelError as error:
            return Lowered(graph, {**reasons, "": str(error)})
        if wrong:
            return Lowered(graph, {**reasons, wrong[0].node.name: wrong[0].message})
        result = walked
        if not changed and len(result.nodes) == before:
            break
    return Lowered(replace(result, opsets=_imported(result)), reasons)


def _imported(graph: Graph) -> Mapping[str, int]:
    """The oldest opset where every standard node has the version that it has: what is spelled out may need no newest one any more.

    onnxruntime refuses opsets that are newer than itself, whatever the nodes.
    """
    nodes = [node for part in (graph, *graph.subgraphs()) for node in part.nodes if not node.domain and node.version]
    # Identity means the same in all versions.
    kinds = {(node.op, node.version) for node in nodes if node.op != "Identity"}
    used = {node.domain for part in (graph, *graph.subgraphs()) for node in part.nodes}
    opsets = {domain: version for domain, version in graph.opsets.items() if not domain or domain in used}
    own = opsets[""]
    for opset in range(max((version for _, version in kinds), default=own), own):
        try:
            if all(defs.get_schema(op, opset).since_version == version for op, version in kinds):
                return {**opsets, "": opset}
        except defs.SchemaError:
            break
    return opsets


def _made(graph: Graph, node: Node, reasons: dict[str, str]) -> Emitter | None:
    rule = LOWERINGS.get(node.kind)
    if rule is None:
        return None
    emitter = Emitter(graph, node)
    if any(name and graph.value(name).shape is None for name in node.inputs):
        reasons[node.name] = f"{node.op} with inputs of unknown shape"
        return None
    try:
        results = rule(emitter, emitter.site())
    except NotLowered as error:
        reasons[node.name] = str(error)
        return None
    identity = int(defs.get_schema("Identity", emitter.opset).since_version)
    for source, target in zip(results, node.outputs, strict=True):
        if target and source and source != target:
            name = emitter.fresh("output")
            emitter.nodes.append(Node(name, "Identity", (source,), (target,), "", identity, {}, node.covers or (node.name,)))
    return emitter
