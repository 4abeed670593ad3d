"""From a graph to a tree of regions."""

from __future__ import annotations

from lipaudit.topology.match import Refusal
from lipaudit.topology.recognise import Topology, recognise
from lipaudit.topology.regions import Region
from lipaudit.topology.sources import Source, find_sources
from lipaudit.topology.view import value_graph

__all__ = ["Refusal", "Region", "Source", "Topology", "find_sources", "recognise", "value_graph"]
