"""The linear parts of a graph, and their numbers: norms from both sides, Frobenius norm, stable rank, smallest singular value.

Parts are looked at in parallel; each answer depends on its part alone, and a gate keeps large weights from being held at the same time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lipaudit.bounds.operator import VerifiedNorm
from lipaudit.bounds.scalar import ONE, Lower, Norm, Upper
from lipaudit.bounds.smallest import smallest_singular_value
from lipaudit.bounds.spectrum import Interval, core_shape, frobenius, stable_rank
from lipaudit.bounds.threads import single_threaded
from lipaudit.certify.gate import LARGE, Gate
from lipaudit.certify.sites import shape_problem, sites_of
from lipaudit.graph.ir import Graph, Node
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.parts import Part

__all__ = ["Measures", "linear_parts", "measure", "measure_all", "slack"]


@dataclass(frozen=True, slots=True)
class Measures:
    """The numbers of one part.

    ``norms`` by norm; ``size`` is the Frobenius norm, ``rank`` the stable rank; ``smallest`` a verified lower bound of the smallest
    singular value of the smaller side. What is not known is None; ``reason`` says why nothing is.
    """

    shape: tuple[int, int] | None
    norms: dict[Norm, VerifiedNorm]
    size: Interval | None = None
    rank: Interval | None = None
    smallest: Lower | None = None
    reason: str = ""
    nonfinite: int = 0


def linear_parts(graph: Graph, catalogue: Catalogue) -> list[tuple[Node, Part]]:
    """Every stored weight of the graph that acts linearly on data, in graph order.

    What is not constant counts as data here, whether it depends on a float input or not.
    """
    data = frozenset(name for node in graph.nodes for name in node.inputs if name and name not in graph.constants)
    found: list[tuple[Node, Part]] = []
    for site in sites_of(graph, data).values():
        rule = catalogue.rule(site.node)
        if rule is None or shape_problem(site) is not None or not any(site.moving):
            continue
        found += [(site.node, part) for part in rule.parts(site)]
    return found


def measure(part: Part, node: str, *, smallest: bool = True) -> Measures:
    """The numbers of one part; ``smallest=False`` leaves the smallest singular value out (it takes about as long as the norm)."""
    if isinstance(part.operator, str):
        return Measures(None, {}, reason=part.operator)
    shape = core_shape(part.operator)
    spectral = part.norm("l2")
    bad = spectral.evidence.get("nonfinite")
    if bad:
        return Measures(shape, {}, reason=f"weight {part.weight!r} of node {node!r} holds {bad} non-finite values", nonfinite=int(bad))
    norms: dict[Norm, VerifiedNorm] = {"l1": part.norm("l1"), "l2": spectral, "linf": part.norm("linf")}
    size = frobenius(part.operator)
    rank = None if size is None else stable_rank(spectral, size, shape)
    least = smallest_singular_value(part.operator) if smallest and min(shape) > 0 else None
    return Measures(shape, norms, size, rank, least)


def measure_all(
    parts: Sequence[tuple[Node, Part]],
    *,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
    most_work: float = math.inf,
) -> list[Measures]:
    """The numbers of many parts, in their order; smallest singular values of those that take at most ``most_work`` operations."""
    gate = Gate(LARGE)

    def of(pair: tuple[Node, Part]) -> Measures:
        node, part = pair
        sides = (1, 1) if isinstance(part.operator, str) else core_shape(part.operator)
        work = float(min(sides)) * math.prod(sides)
        with gate.of(8 * math.prod(part.shape)):
            return measure(part, node.name, smallest=work <= most_work)

    found: list[Measures] = []
    with single_threaded(), ThreadPoolExecutor(max_workers=threads or max(1, os.cpu_count() or 1)) as pool:
        for answer in pool.map(of, parts):
            found.append(answer)
            if progress is not None:
                progress(len(found) / len(parts))
    return found


def slack(norm: VerifiedNorm) -> float | None:
    """``upper / lower - 1``, rounded up: how much of the bound may be in excess at most; None where the lower value is 0."""
    if norm.lower.is_zero or not norm.upper.is_finite:
        return None
    ratio: Upper = norm.upper / norm.lower
    return max(0.0, math.nextafter(float(ratio) - float(ONE), math.inf))
