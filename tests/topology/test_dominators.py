"""Dominators against networkx on random DAGs, and the shapes that networkx is slow on."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from lipaudit.topology.dominators import immediate_dominators, immediate_post_dominators


def random_dag(size: int, density: float, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[p for p in range(v) if rng.random() < density or (p == v - 1 and rng.random() < 0.5)] for v in range(size)]


def reversed_edges(predecessors: list[list[int]]) -> list[list[int]]:
    successors: list[list[int]] = [[] for _ in predecessors]
    for vertex, sources in enumerate(predecessors):
        for source in sources:
            successors[source].append(vertex)
    return successors


def oracle(edges: list[tuple[int, int]], start: int, size: int) -> list[int]:
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(range(size))
    found = dict(nx.immediate_dominators(graph, start))
    found[start] = start  # left out from networkx 3.6 on
    return [found.get(v, -1) for v in range(size)]


@pytest.mark.parametrize("seed", range(60))
def test_random_dags_agree_with_networkx(seed: int) -> None:
    size = 2 + seed % 40
    predecessors = random_dag(size, 0.03 + 0.3 * (seed % 7) / 7, seed)
    edges = [(p, v) for v, sources in enumerate(predecessors) for p in sources]
    assert immediate_dominators(predecessors) == oracle(edges, 0, size)
    assert immediate_post_dominators(reversed_edges(predecessors)) == oracle([(v, p) for p, v in edges], size - 1, size)


def test_empty_and_single() -> None:
    assert immediate_dominators([]) == []
    assert immediate_dominators([[]]) == [0]
    assert immediate_post_dominators([[]]) == [0]


def test_unreachable_predecessors_do_not_count() -> None:
    # 1 has no path from 0; 3 is reached from 0 through 2 alone.
    assert immediate_dominators([[], [], [0], [1, 2]]) == [0, -1, 0, 2]


def test_parallel_edges() -> None:
    assert immediate_dominators([[], [0, 0], [1, 1, 1]]) == [0, 0, 1]


def comb(size: int) -> list[list[int]]:
    half = size // 2
    chain: list[list[int]] = [[], *([v - 1] for v in range(1, half))]
    return [*chain, *([half - 1, 0] for _ in range(size - half))]


def test_a_comb_of_100_000() -> None:
    assert immediate_dominators(comb(100_000))[60_000] == 0  # networkx needs minutes for it; the time is in tests/benchmarks


def test_a_long_chain_does_not_recurse() -> None:
    size = 200_000
    assert immediate_dominators([[], *([v - 1] for v in range(1, size))])[-1] == size - 2
