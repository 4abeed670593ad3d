"""The roles of the inputs and outputs of a Loop or Scan, and which of its values move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lipaudit.graph.ir import Graph
from lipaudit.operators.base import Site
from lipaudit.operators.range import Range

__all__ = ["Plan", "dependent", "own_inputs"]

_SHAPE_ONLY = frozenset({"ai.onnx::Shape", "ai.onnx::Size"})


@dataclass(frozen=True, eq=False)
class Plan:
    """A Loop or Scan, sorted.

    Attributes
    ----------
    body
        The graph of one turn.
    states, slices, captured
        ``(index of the node's input, name in the body)`` of carried values, scanned inputs and outer values.
    initial
        Ranges of the carried values before the first turn, parallel to ``states``.
    given
        Ranges of everything else that the body reads, by name.
    counter
        The input of the body that counts turns, "" if there is none or it is not read.
    first
        Index of the body's output that is the next value of the first state.
    fewest, most
        Number of turns (``most`` None: no limit is known).
    varies
        The number of turns can depend on a source.
    deciders
        Inputs of the node that say when to stop and are not in the lists above.
    moving
        Inputs of the body that move in some turn.
    stack_axes
        Axis of each stacked output.
    batch
        Samples that run side by side, each through its own turns (Scan-8: the first axis of states, slices and outputs); 0: no such axis.
    """

    body: Graph
    states: tuple[tuple[int, str], ...]
    slices: tuple[tuple[int, str], ...]
    captured: tuple[tuple[int, str], ...]
    initial: tuple[Range, ...]
    given: Mapping[str, Range]
    counter: str
    first: int
    fewest: int
    most: int | None
    varies: bool
    deciders: frozenset[int]
    moving: frozenset[str]
    stack_axes: tuple[int, ...]
    batch: int = 0

    @property
    def stacked(self) -> range:
        """Indices of the body's outputs that are stacked."""
        return range(self.first + len(self.states), len(self.body.outputs))


def own_inputs(site: Site) -> int:
    """Number of inputs before the captured values."""
    graphs = [attr for attr in site.node.attrs.values() if isinstance(attr, Graph)]
    captured = dict.fromkeys(name for graph in graphs for name in graph.captures)
    return len(site.node.inputs) - len(captured)


def dependent(body: Graph, moving: Sequence[str], states: Sequence[str], first: int) -> tuple[frozenset[str], frozenset[str]]:
    """What moves in some turn: ``(inputs and captured values, all values of the body)``.

    A state moves if its initial value does, or if the body computes its next value from something that moves.
    """
    found = set(moving)
    while True:
        reached = set(found)
        for node in body.nodes:
            if node.kind not in _SHAPE_ONLY and any(name in reached for name in (*node.inputs, *body.captured_by(node))):
                reached.update(name for name in node.outputs if name)
        more = {name for k, name in enumerate(states) if body.outputs[first + k] in reached} - found
        if not more:
            return frozenset(found), frozenset(reached)
        found |= more
