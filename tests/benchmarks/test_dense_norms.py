"""Verified norms of matrices as ratios to one BLAS product and to all singular values, in the same run (`make bench`).

One BLAS thread, minimum of at least three runs. Without ``--benchmark-enable`` a small case runs once and no time is judged.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.linalg import svdvals

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.kernels import dsyrk
from lipaudit.bounds.threads import single_threaded
from tests.benchmarks.ratios import Ratio, fastest, holding, judge

# Asked of every matrix: norm at most `limit` times one dsyrk, at least `svd` times faster than svdvals.
CASES = {
    "1024x1024": (1024, 1024, 2.5, 7.0),
    "2048x2048": (2048, 2048, 2.5, 7.0),
    "4096x4096": (4096, 4096, 2.5, 7.0),
    "768x3072": (768, 3072, 1.6, 6.0),
    "50000x768": (50000, 768, 1.6, 6.0),
}
# A float32 factorisation would halve dpotrf, but proves no more than about n 2^-24 of the norm: 1e-4, where 1e-6 is asked.
# By case and ratio: what is held where the promise is not kept, and why. This list only shrinks.
SHORT: dict[str, dict[str, tuple[float, str]]] = {
    "1024x1024": {
        "svdvals / time": (4.3, "svdvals takes 9 dsyrk where measured; dsyrk and dpotrf alone, the least of this method, take 1.5")
    },
    "2048x2048": {"svdvals / time": (6.3, "svdvals takes 11 to 13 dsyrk where measured; this norm 1.5")},
    "768x3072": {"svdvals / time": (4.3, "svdvals takes 7 dsyrk where measured; this norm 1.3")},
    "50000x768": {"svdvals / time": (3.2, "svdvals takes 4 dsyrk where measured; this norm 1.07")},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.mark.parametrize("name", list(CASES))
def test_dense(benchmark: BenchmarkFixture, name: str) -> None:
    m, n, limit, svd = CASES[name]
    if benchmark.disabled:
        m, n = m // 32, n // 32
    matrix = np.random.default_rng(0).standard_normal((m, n))
    found = benchmark.pedantic(lambda: dense_norm(matrix, "l2"), rounds=1)
    assert float(found.upper) >= float(found.lower)
    if benchmark.disabled:
        return
    runs: dict[str, Callable[[], object]] = {
        "own": lambda: dense_norm(matrix, "l2"),
        "product": lambda: dsyrk(1.0, matrix.T, trans=0 if m >= n else 1, lower=1),
    }
    times = fastest(runs, seconds=2.0)
    values = fastest({"svdvals": lambda: svdvals(matrix)})["svdvals"]
    ratios = [
        Ratio("time / dsyrk", times["own"] / times["product"], limit),
        Ratio("svdvals / time", values / times["own"], svd, ">="),
        Ratio("slack over the lower bound", float(found.upper) / float(found.lower) - 1, 1e-6),
    ]
    judge(benchmark, f"dense {name}", *holding(ratios, SHORT.get(name, {})))


@pytest.mark.parametrize("shape", [(2048, 2048), (20000, 512)])
def test_memory_over_the_weight(benchmark: BenchmarkFixture, shape: tuple[int, int]) -> None:
    """Peak of what NumPy allocates, against the float64 Gram matrix, its float32 half and 64 MB."""
    m, n = (size // 16 for size in shape) if benchmark.disabled else shape
    matrix = np.random.default_rng(0).standard_normal((m, n)).astype(np.float32)
    benchmark.pedantic(lambda: dense_norm(matrix, "l2"), rounds=1)
    tracemalloc.start()
    dense_norm(matrix, "l2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    allowed = 8 * n * n + 4 * n * n + (64 << 20)
    judge(benchmark, f"dense {shape[0]}x{shape[1]} float32", Ratio("peak bytes / (Gram + half Gram + 64 MB)", peak / allowed, 1.0))
