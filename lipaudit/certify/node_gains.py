"""The gain of every node with respect to every moving input: the constants that the DAG calculus combines.

Verified norms dominate the cost of an audit, so nodes are asked in parallel; each answer depends on its node alone, so the
result does not depend on the number of threads (BLAS itself runs on one). A gate keeps large weights from being held together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lipaudit.bounds.scalar import INFINITE, Norm
from lipaudit.certify.definitions import better_gains
from lipaudit.certify.gate import LARGE, Gate
from lipaudit.certify.integers import rounded
from lipaudit.certify.ledger import Ledger
from lipaudit.certify.ranges import Ranges
from lipaudit.certify.sites import shape_problem
from lipaudit.graph.ir import Node
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.catalogue import Catalogue

__all__ = ["NodeGains", "ask"]


@dataclass(frozen=True)
class NodeGains:
    """Gains of one node, parallel to its inputs (None: the input does not move), and the derivation steps behind them."""

    gains: tuple[Gain | None, ...]
    steps: tuple[int, ...]


def ask(
    nodes: Sequence[Node],
    sites: Mapping[str, Site],
    ranges: Ranges,
    catalogue: Catalogue,
    norm: Norm,
    ledger: Ledger,
    random: Set[str] = frozenset(),
    progress: Callable[[float], None] | None = None,
) -> dict[str, NodeGains]:
    """Gains of ``nodes`` by name; steps are recorded in graph order. ``random``: values that hold random numbers."""
    rules = {node.name: catalogue.rule(node) for node in nodes}  # rule modules are imported here, not in the threads

    def of(node: Node) -> tuple[Gain | None, ...]:
        site = sites[node.name]
        rule = rules[node.name]
        if rule is None:
            reason = Unknown(catalogue.refusal(node.kind) or "no rule for this operator")
            return tuple(reason if moving else None for moving in site.moving)
        problem = shape_problem(site)
        if any(name in random for name in node.inputs):
            problem = "it reads random numbers, so it is not a function of its input"
        wrapped = next((value for value in site.outputs if value is not None and value.name in ranges.overflowing), None)
        if wrapped is not None:
            problem = f"{wrapped.name!r} may overflow its type {wrapped.dtype} on this domain"
        if problem is not None:
            return tuple(Unknown(problem) if moving else None for moving in site.moving)
        xs = ranges.of(site)
        found = tuple(rule.gain(site, i, norm, xs) if moving else None for i, moving in enumerate(site.moving))
        found = better_gains(site, xs, found, norm, catalogue)
        return tuple(rounded(site, gain, norm) if gain is not None else None for gain in found)

    gate = Gate(LARGE)

    def gated(node: Node) -> tuple[Gain | None, ...]:
        stored = (constant.size for constant in sites[node.name].constants if constant is not None and constant.fill is None)
        with gate.of(8 * sum(stored)):
            return of(node)

    answers: dict[str, tuple[Gain | None, ...]] = {}
    with ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1)) as pool:
        for count, (node, answer) in enumerate(zip(nodes, pool.map(gated, nodes), strict=True), 1):
            answers[node.name] = answer
            if progress is not None:
                progress(count / len(nodes))
    return {node.name: _recorded(node, answers[node.name], ledger) for node in nodes}


def _recorded(node: Node, gains: tuple[Gain | None, ...], ledger: Ledger) -> NodeGains:
    steps: list[int] = []
    for i, gain in enumerate(gains):
        if isinstance(gain, Finite):
            evidence = {"method": gain.method, "input": i, "covers": list(node.covers), **gain.evidence}
            steps.append(ledger.add("gain", node.name, node.kind, gain.slope, offset=gain.offset, evidence=evidence))
        elif isinstance(gain, (Unbounded, Unknown)):
            status = "unbounded" if isinstance(gain, Unbounded) else "unknown"
            evidence = {"input": i, "status": status, "reason": gain.reason}
            steps.append(ledger.add("gain", node.name, node.kind, INFINITE, offset=INFINITE, evidence=evidence))
    return NodeGains(gains, tuple(steps))
