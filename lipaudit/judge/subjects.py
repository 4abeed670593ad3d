"""What guidelines look at: the model, its regions, nodes and stored tensors, each with its documented facts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lipaudit.certify import Certificate
from lipaudit.graph.ir import Node
from lipaudit.judge.guideline import documented_facts
from lipaudit.judge.region_facts import certified_facts
from lipaudit.judge.weights import WeightFacts, weight_facts
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import Topology
from lipaudit.topology.laws import walk

__all__ = ["Subject", "subjects"]

Facts = Mapping[str, Mapping[str, Any]]

_QUANTIZED = ("Quantize", "QLinear", "Integer", "QGemm", "QAttention", "NBits")


@dataclass(frozen=True)
class Subject:
    """One thing to judge: its scope, where it is, and the facts about it (those of the model are always among them)."""

    scope: str
    region: str
    node: str
    facts: Facts


def subjects(
    topology: Topology, certificate: Certificate, catalogue: Catalogue, measured: Mapping[str, Facts] = MappingProxyType({})
) -> Iterator[Subject]:
    """All subjects: the model first, then regions in tree order, nodes in graph order, tensors by name.

    ``measured`` adds facts of regions, by path; those of the model under ``""``.
    """
    weights = weight_facts(topology.graph)
    model = _model(topology, certificate, catalogue, weights)
    root = topology.root
    whole = {"path": root.path, "kind": root.kind, "nodes": len(root.nodes), "status": certificate.headline.status}
    whole |= {"log10_gain": _log10(certificate.headline.slope), **root.facts.get("region", {})}
    ranks = _ranks(weights)
    whole["stable_rank"] = model["stable_rank"]
    yield Subject("model", "", "", {"model": model, "region": whole, **measured.get("", {})})
    if "run_without_shortcut" in whole:
        yield Subject("region", root.path, "", {"model": model, "region": whole})
    place: dict[str, str] = {}
    for region in walk(root):
        place.update(dict.fromkeys(region.nodes, region.path))
        if region is root:
            continue
        bound = certificate.regions[region.path].joint
        facts: dict[str, Any] = {"path": region.path, "kind": region.kind, "nodes": len(region.nodes), "status": bound.status}
        facts |= {"log10_gain": _log10(bound.slope), **region.facts.get("region", {})}
        facts["stable_rank"] = min((ranks[name] for name in region.nodes if name in ranks), default=None)
        groups = {name: group for name, group in region.facts.items() if isinstance(group, dict) and name != "region"}
        certified = certified_facts(region, certificate)
        facts |= certified.pop("region")
        groups |= {name: {**groups.get(name, {}), **group} for name, group in certified.items()}
        groups |= {name: {**groups.get(name, {}), **group} for name, group in measured.get(region.path, {}).items()}
        first = region.nodes[0] if len(region.nodes) == 1 else ""
        yield Subject("region", region.path, first, {"model": model, "region": facts, **groups})
    for node in topology.graph.nodes:
        facts = _node(node, topology, certificate, catalogue)
        yield Subject("node", place.get(node.name, ""), node.name, {"model": model, "node": facts})
    for found in weights:
        yield Subject("tensor", place.get(found.node, ""), found.node, {"model": model, "weight": found.facts})


def _log10(gain: Any) -> float | None:
    value = gain.log10()
    return value if math.isfinite(value) else None


def _ranks(weights: list[WeightFacts]) -> dict[str, float]:
    """Smallest stable rank by the node that reads the matrices first."""
    found: dict[str, float] = {}
    for weight in weights:
        rank = weight.facts["stable_rank"]
        if rank is not None:
            found[weight.node] = min(rank, found.get(weight.node, rank))
    return found


def _model(topology: Topology, certificate: Certificate, catalogue: Catalogue, weights: list[WeightFacts]) -> dict[str, Any]:
    graph = topology.graph
    ratios = [found.facts["edge_ratio"] for found in weights if found.facts["edge_ratio"] is not None]
    defined = documented_facts()
    edge, trained = defined["model.edge_share"].params, defined["model.looks_trained"].params
    at_edge = [ratio for ratio in ratios if edge["lowest"] <= ratio <= edge["highest"]]
    share = len(at_edge) / len(ratios) if ratios else 0.0
    dtypes = Counter(value.dtype for value in graph.values.values() if value.is_float)
    headline = certificate.headline
    batch = {f"{value.name}[0]" for value in graph.inputs}
    return {
        "nodes": len(topology.simplified.nodes),
        "dtype": dtypes.most_common(1)[0][0] if dtypes else "float32",
        "quantized": any(word in node.op for node in graph.nodes for word in _QUANTIZED),
        "domain": certificate.domain,
        "status": headline.status,
        "log10_gain": _log10(headline.slope),
        "offset": float(headline.offset) if headline.offset.is_finite else None,
        "pinned_dims": sum(1 for name, size in graph.pinned.items() if name not in batch and size != 1),
        "skipped_ops": sum(1 for node in graph.nodes if catalogue.rule(node) is None),
        "edge_count": len(ratios),
        "edge_share": share,
        "stable_rank": min(_ranks(weights).values(), default=None),
        "looks_trained": not (len(ratios) >= trained["matrices"] and share >= trained["noise"]),
    }


def _node(node: Node, topology: Topology, certificate: Certificate, catalogue: Catalogue) -> dict[str, Any]:
    moving = any(certificate.sites[node.name].moving)
    facts: dict[str, Any] = {
        "name": node.name,
        "op": node.op,
        "domain": node.domain or "ai.onnx",
        "has_rule": catalogue.rule(node) is not None or catalogue.refusal(node.kind) is not None or not moving,
        "log_of_softmax": False,
        "softmax_of_softmax": False,
        "bare_exp_sum": False,
        "exp_input_max": None,
    }
    facts |= topology.node_facts.get(node.name, {})
    if facts["bare_exp_sum"]:
        exponent = certificate.ranges.get(node.inputs[0])
        facts["exp_input_max"] = math.inf if exponent is None or exponent.size == 0 else float(exponent.hi.max())
    return facts
