"""Frobenius norm and stable rank as facts: of tensors, regions and the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lipaudit.certify import certify
from lipaudit.certify.domain import parse_boxes
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.judge.subjects import subjects
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import recognise
from lipaudit.topology.laws import walk


def test_the_facts_bound_what_numpy_finds(samples: Path) -> None:
    catalogue = Catalogue.load()
    graph = simplify(load(str(samples / "residual_cnn.onnx")).graph, {}, operators=catalogue.operators())
    topology = recognise(graph)
    found = list(subjects(topology, certify(topology, catalogue, parse_boxes([]), "l2"), catalogue))
    ranks: dict[str, float] = {}
    for subject in found:
        weight = subject.facts.get("weight")
        if weight is None:
            continue
        if not weight["is_matrix"]:
            assert weight["stable_rank"] is None and weight["frobenius"] is None
            continue
        matrix = graph.constants[weight["name"]].float64().reshape(weight["rows"], weight["cols"])
        values = np.linalg.svd(matrix, compute_uv=False)
        true = float((values**2).sum() / values[0] ** 2)
        assert true * (1 - 1e-12) <= weight["stable_rank"] <= min(true * 1.01, *matrix.shape)
        assert np.linalg.norm(matrix) * (1 - 1e-12) <= weight["frobenius"] <= np.linalg.norm(matrix) * (1 + 1e-9)
        ranks[subject.node] = weight["stable_rank"]
    assert ranks
    for subject in found:
        if subject.scope == "model":
            assert subject.facts["model"]["stable_rank"] == min(ranks.values())
        if subject.scope == "region" and subject.region != topology.root.path:
            nodes = next(region.nodes for region in walk(topology.root) if region.path == subject.region)
            own = [ranks[name] for name in nodes if name in ranks]
            assert subject.facts["region"]["stable_rank"] == (min(own) if own else None)
