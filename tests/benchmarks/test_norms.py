"""Verified norms as ratios to one BLAS product, to all singular values and to one FFT, in the same run (`make bench`).

One BLAS thread, minimum of at least three runs. Without ``--benchmark-enable`` a small case runs once and no time is judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.fft
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.linalg import svdvals

from lipaudit.bounds.below import iterate
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.kernels import dsyrk
from lipaudit.bounds.symbol import symbol_norm
from lipaudit.bounds.threads import single_threaded

Floats = NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


def fastest(run: Callable[[], Any], rounds: int = 3) -> float:
    """Shortest of several runs in seconds."""
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def report(benchmark: BenchmarkFixture, name: str, **facts: float | str) -> None:
    """Keep the ratios with the timing and show them."""
    benchmark.extra_info |= {key: round(value, 9) if isinstance(value, float) else value for key, value in facts.items()}
    shown = ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items())
    print(f"\n{name}: {benchmark.stats.stats.min:.3f} s, {shown}")


@pytest.mark.parametrize(
    ("m", "n", "limit", "svd"),
    [(1024, 1024, 2.5, 7.0), (2048, 2048, 2.5, 7.0), (4096, 4096, 2.5, 0.0), (768, 3072, 1.6, 6.0), (50000, 768, 1.6, 6.0)],
)
def test_dense(benchmark: BenchmarkFixture, m: int, n: int, limit: float, svd: float) -> None:
    if benchmark.disabled:
        m, n = m // 32, n // 32
    matrix = np.random.default_rng(0).standard_normal((m, n))
    found = dense_norm(matrix, "l2")
    if benchmark.disabled:
        benchmark(lambda: dense_norm(matrix, "l2"))
        return
    product = fastest(lambda: dsyrk(1.0, matrix.T, trans=0 if m >= n else 1, lower=1))
    benchmark.pedantic(lambda: dense_norm(matrix, "l2"), rounds=3)
    own = benchmark.stats.stats.min
    facts: dict[str, float | str] = {"dsyrk": own / product, "limit": limit, "slack": float(found.upper) / float(found.lower) - 1}
    if svd:
        facts |= {"svdvals": fastest(lambda: svdvals(matrix), 1) / own, "svdvals_least": svd}
    report(benchmark, f"dense {m} x {n}", **facts)
    assert facts["slack"] <= 1.1e-6


CONVOLUTIONS = {
    # o, c, kernel, stride, image, pad, largest slack over the iterated lower value, largest ratio to rfft2
    "64x3x7x7/2@224": (64, 3, 7, 2, 224, 3, 1e-3, 1.0),
    "64x64x3x3@56": (64, 64, 3, 1, 56, 1, 1e-3, 1.0),
    "128x64x3x3/2@56": (128, 64, 3, 2, 56, 1, 1e-3, 1.0),
    "128x128x3x3@28": (128, 128, 3, 1, 28, 1, 2e-3, 1.0),
    "256x256x3x3@14": (256, 256, 3, 1, 14, 1, 1e-2, 1.0),
    "512x512x3x3@7": (512, 512, 3, 1, 7, 1, 4e-2, 2.5),
    "64x64x3x3@32": (64, 64, 3, 1, 32, 1, 2e-3, 3.0),
    "128x128x3x3@16": (128, 128, 3, 1, 16, 1, 1e-2, 4.0),
    "256x256x3x3@8": (256, 256, 3, 1, 8, 1, 4e-2, 6.0),
}


@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_convolution(benchmark: BenchmarkFixture, name: str) -> None:
    o, c, k, stride, size, pad, slack, limit = CONVOLUTIONS[name]
    if benchmark.disabled:
        o, c = max(1, o // 16), max(1, c // 16)
    weight = np.random.default_rng(0).standard_normal((o, c, k, k)) * np.sqrt(2 / (c * k * k))
    operator = Convolution(weight, (size, size), strides=(stride, stride), pads=((pad, pad),) * 2)
    kernel = weight.reshape(1, o, c, -1)
    if benchmark.disabled:
        benchmark(lambda: symbol_norm(kernel, operator.window, 1e-6))
        return
    benchmark.pedantic(lambda: symbol_norm(kernel, operator.window, 1e-6), rounds=3)
    own = benchmark.stats.stats.min
    found = symbol_norm(kernel, operator.window, 1e-6)
    sizes = found.evidence["torus"]
    phases = weight.reshape(o, -1, k, k) if stride == 1 else np.zeros((o, c * stride * stride, -(-k // stride), -(-k // stride)))
    transform = fastest(lambda: scipy.fft.rfft2(phases, s=sizes))
    x = iterate(operator, 60)
    reached = float(np.linalg.norm(operator.apply(x)) / np.linalg.norm(x))
    excess = float(found.upper) / reached - 1
    report(benchmark, name, rfft2=own / transform, limit=limit, slack=excess, slack_limit=slack, method=found.method)
    assert 0 <= excess <= slack
