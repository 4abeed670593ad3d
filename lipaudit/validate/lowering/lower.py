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

from lipaudit.errors import ModelError
from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.graph.limits import DEFAULT
from lipaudit.graph.simplify.expand import Operators
from lipaudit.graph.simplify.propagate import propagate
from lipaudit.validate.lowering import attention, fused, loops, quantized, recurrent
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS", "Lowered", "lower"]

LOWERINGS: Mapping[str, Lowering] = {
    **attention.LOWERINGS,
    **fused.LOWERINGS,
    **loops.LOWERINGS,
    **quantized.LOWERINGS,
    **recurrent.LOWERINGS,
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
    result = replace(
        graph, inputs=tuple(value for value in graph.inputs if value.name not in held), constants={**graph.constants, **stored}
    )
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
    return Lowered(result, reasons)


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
    for source, target in zip(results, node.outputs, strict=True):
        if target and source != target:
            name = emitter.fresh("output")
            emitter.nodes.append(Node(name, "Identity", (source,), (target,), "", 1, {}, node.covers or (node.name,)))
    return emitter
