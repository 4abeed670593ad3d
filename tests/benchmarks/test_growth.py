"""Recognition and ranges of generated graphs of 100,000 nodes, and what doubling a graph costs (`make bench`)."""

from __future__ import annotations

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lipaudit.certify.bodies import Bodies
from lipaudit.certify.domain import Domain
from lipaudit.certify.ranges import propagate
from lipaudit.certify.sites import sites_of, with_captures
from lipaudit.graph.ir import Graph
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import recognise
from lipaudit.topology.sources import moving
from tests.benchmarks.ratios import Ratio, judge
from tests.topology.generated import SHAPES

SIZE = 100_000
SECONDS = 60.0
# Twice the nodes at most 2.3 times the time: near-linear.
DOUBLING = 2.3


def seconds(graph: Graph, catalogue: Catalogue) -> float:
    """Processor time of recognition and of the ranges of all values."""
    begin = time.process_time()
    found = recognise(graph)
    whole = with_captures(found.graph)
    sites = sites_of(whole, moving(whole, found.sources), Bodies(catalogue))
    propagate(whole, found.sources, catalogue, Domain({}), sites)
    return time.process_time() - begin


@pytest.mark.parametrize("shape", ["chain", "fan_out", "nested", "residuals"])
def test_growth(benchmark: BenchmarkFixture, shape: str) -> None:
    if benchmark.disabled:
        pytest.skip("timings are judged in `make bench` only")
    catalogue = Catalogue.load()
    half, full = SHAPES[shape](SIZE // 2), SHAPES[shape](SIZE)
    small = min(seconds(half, catalogue) for _ in range(2))
    found: list[float] = []
    benchmark.pedantic(lambda: found.append(seconds(full, catalogue)), rounds=2)
    judge(
        benchmark,
        shape,
        Ratio("twice the nodes", min(found) / small, DOUBLING),
        Ratio("of the minute promised for 100,000 nodes", min(found) / SECONDS, 1.0),
    )
