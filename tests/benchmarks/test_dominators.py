"""Dominators are linear where networkx is quadratic: a comb against a chain of the same size, as a ratio in one run (`make bench`)."""

from __future__ import annotations

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lipaudit.topology.dominators import immediate_dominators
from tests.benchmarks.ratios import Ratio, judge

SIZE = 100_000
# Two edges a vertex in half of the comb, and ancestors to find; quadratic work would be thousands of times a chain.
LIMIT = 6.0


def comb(size: int) -> list[list[int]]:
    """A chain, then vertices that all read its end and the start."""
    half = size // 2
    return [[], *([v - 1] for v in range(1, half)), *([half - 1, 0] for _ in range(size - half))]


def chain(size: int) -> list[list[int]]:
    """Each vertex reads the one before it."""
    return [[], *([v - 1] for v in range(1, size))]


def test_a_comb_costs_little_more_than_a_chain(benchmark: BenchmarkFixture) -> None:
    if benchmark.disabled:
        pytest.skip("timings are judged in `make bench` only")
    times: list[float] = []
    straight = chain(SIZE)
    for _ in range(3):
        begin = time.perf_counter()
        immediate_dominators(straight)
        times.append(time.perf_counter() - begin)
    benchmark.pedantic(immediate_dominators, args=(comb(SIZE),), rounds=3)
    judge(benchmark, "comb", Ratio("of a chain", benchmark.stats.stats.min / min(times), LIMIT))
