"""Facts for guidelines that can be had by looking at the graph alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lipaudit.graph.ir import Graph
from lipaudit.topology.draft import Draft

__all__ = ["annotate"]


def annotate(graph: Graph, moving: frozenset[str], root: Draft) -> Mapping[str, Mapping[str, Any]]:
    """Write facts into the drafts and return those of nodes."""
    return {}
