"""Regions in the making: mutable until the whole tree stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lipaudit.graph.ir import Node

__all__ = ["Draft"]


@dataclass(eq=False)
class Draft:
    """A region without its path, entries and exit.

    ``role`` is what it is in its parent ("branch", "shortcut", "query", ...; "" for a member of a sequence). ``own`` are its nodes
    if it has no children. ``is_sequence``: its children follow each other, and the runs of weight layers in it are counted.
    """

    kind: str
    own: tuple[Node, ...] = ()
    children: list[Draft] = field(default_factory=list)
    role: str = ""
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    is_sequence: bool = False

    def nodes(self) -> list[Node]:
        """All nodes, in the order of the leaves."""
        found: list[Node] = []
        stack: list[Draft] = [self]
        while stack:
            draft = stack.pop()
            found.extend(draft.own)
            stack.extend(reversed(draft.children))
        return found

    def as_role(self, role: str) -> Draft:
        """Itself, with a role."""
        self.role = role
        return self

    @classmethod
    def flat(cls, kind: str, drafts: Iterable[Draft], *nodes: Node, reason: str = "") -> Draft:
        """One leaf of all nodes of ``drafts`` and ``nodes``."""
        return cls(kind, tuple(node for draft in drafts for node in draft.nodes()) + nodes, reason=reason)
