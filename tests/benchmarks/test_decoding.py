"""Memory of narrow and quantised weights, which are decoded block by block (`make bench`)."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lipaudit.certify import certify
from lipaudit.certify.domain import parse_boxes
from lipaudit.graph.ir import Graph
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import recognise
from tests.benchmarks.ratios import Ratio, judge
from tests.e2e.test_decoding_memory import build


@pytest.mark.parametrize("kind", ["MatMulNBits", "int4", "int8", "bfloat16"])
def test_decoding(benchmark: BenchmarkFixture, kind: str, tmp_path: Path) -> None:
    """Peak of what NumPy allocates to certify one product, against its weight in float64 twice (promised: 2 GB and that)."""
    rows, columns = (512, 64) if benchmark.disabled else (16384, 1024)
    path = str(build(kind, tmp_path, rows, columns))
    first, second = load(path).graph, load(path).graph  # norms are kept with the weights of a graph
    catalogue = Catalogue.load()

    def run(loaded: Graph) -> None:
        certify(recognise(simplify(loaded, {}, operators=catalogue.operators())), catalogue, parse_boxes([]), "l2")

    benchmark.pedantic(lambda: run(first), rounds=1)
    tracemalloc.start()
    run(second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if not benchmark.disabled:
        judge(benchmark, kind, Ratio("peak bytes / weight in float64 twice", peak / (16 * rows * columns), 1.0))
