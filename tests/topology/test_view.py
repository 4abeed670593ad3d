"""The networkx view, and what networkx says of the regions that the recogniser finds without it."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
from onnx.helper import make_node

from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import recognise
from lipaudit.topology.laws import walk
from lipaudit.topology.view import END, START, value_graph
from tests.conftest import ROOT
from tests.pipeline import make_model, topology

SAMPLES = sorted((ROOT / "samples" / "models").glob("*.onnx"))


def test_one_value_read_twice() -> None:
    graph = value_graph(topology(make_model([make_node("Add", ["x", "x"], ["y"], name="sum")], {"x": [1, 3]}, ["y"])))
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph.edges) == {
        (START, ("value", "x")),
        (("value", "x"), ("node", "sum")),
        (("node", "sum"), ("value", "y")),
        (("value", "y"), END),
    }
    assert graph.nodes["node", "sum"]["op"] == "ai.onnx::Add"


@pytest.mark.parametrize("path", SAMPLES, ids=[path.stem for path in SAMPLES])
def test_residual_blocks_are_single_entry_single_exit(path: Path) -> None:
    """The entry dominates the exit and the exit post-dominates the entry, by networkx."""
    found = recognise(simplify(load(str(path)).graph, {}, operators=Catalogue.load().operators()))
    graph = value_graph(found)
    reached = nx.descendants(graph, START) & (nx.ancestors(graph, END) | {END})
    graph = graph.subgraph(reached | {START}).copy()
    before, after = nx.immediate_dominators(graph, START), nx.immediate_dominators(graph.reverse(), END)

    def above(tree: dict[tuple[str, str], tuple[str, str]], vertex: tuple[str, str]) -> set[tuple[str, str]]:
        chain: set[tuple[str, str]] = set()
        while vertex in tree and tree[vertex] != vertex:
            vertex = tree[vertex]
            chain.add(vertex)
        return chain

    for region in walk(found.root):
        if region.kind == "residual":
            entry, leave = ("value", region.entries[0]), ("value", region.exit)
            assert entry in above(before, leave)
            assert leave in above(after, entry)
