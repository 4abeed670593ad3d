"""What the methods for whole regions see, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lipaudit.bounds.scalar import Norm, Upper
from lipaudit.certify.node_gains import NodeGains
from lipaudit.graph.ir import Graph, Node
from lipaudit.operators.base import Finite, Rule, Site, Unbounded
from lipaudit.operators.range import Range

__all__ = ["Proposal", "Workspace"]

_Kept = TypeVar("_Kept")


@dataclass(frozen=True, slots=True)
class Proposal:
    """``|d exit| <= slope |d source|`` for one region, by a method that looks at it as a whole.

    Attributes
    ----------
    source
        The value that the bound counts from: the entry of the region, or what the normalization before it reads.
    slope
        Certified gain, no offset.
    method
        Short name, for reports.
    rule
        What was proved, for the derivation.
    evidence
        The numbers that the proof used (JSON-able).
    row_max
        Gain in the largest-row norm ``max_i |x_i|`` on both sides, where the method has one.
    """

    source: str
    slope: Upper
    method: str
    rule: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    row_max: Upper | None = None


@dataclass(frozen=True, eq=False)
class Workspace:
    """The graph with everything that was found about its nodes."""

    graph: Graph
    nodes: Mapping[str, Node]
    order: Mapping[str, int]
    sites: Mapping[str, Site]
    rules: Mapping[str, Rule | None]
    gains: Mapping[str, NodeGains]
    ranges: Mapping[str, Range]
    norm: Norm
    wholes: bool = True
    """Whether methods for whole regions may be asked."""
    _memo: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def sorted(self, names: Iterable[str]) -> list[Node]:
        """Nodes in the order of the graph."""
        return [self.nodes[name] for name in sorted(names, key=self.order.__getitem__)]

    def moving(self, node: Node) -> list[int]:
        """The inputs of a node that depend on a source."""
        return [i for i, moves in enumerate(self.sites[node.name].moving) if moves]

    def gain(self, node: Node, i: int) -> Finite | None:
        """The gain of input ``i`` if it is finite and without an offset."""
        asked = self.gains.get(node.name)
        found = asked.gains[i] if asked is not None else None
        return found if isinstance(found, Finite) and found.slope.is_finite and found.offset.is_zero else None

    def is_barred(self, node: Node, i: int) -> bool:
        """Nothing may be said about input ``i``: it has no rule, is not defined everywhere, jumps, or was never asked."""
        asked = self.gains.get(node.name)
        found = asked.gains[i] if asked is not None else None
        return not isinstance(found, (Finite, Unbounded)) or (isinstance(found, Finite) and not found.offset.is_zero)

    def of(self, node: Node) -> list[Range | None]:
        """Ranges of a node's inputs."""
        return [self.ranges.get(name) if name else None for name in node.inputs]

    def once(self, key: tuple[Any, ...], make: Callable[[], _Kept]) -> _Kept:
        """``make()``, asked once per key."""
        if key not in self._memo:
            self._memo[key] = make()
        found: _Kept = self._memo[key]
        return found
