"""How long the command line takes, as a ratio to ``python -c "import numpy"`` measured in the same run (`make bench`).

Without ``--benchmark-enable`` each command runs once and no time is judged.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks.ratios import Ratio, judge

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "samples" / "models" / "untrained.onnx"  # 21 nodes

# Of an idle machine, where importing numpy takes 0.07 s: 0.3 s for --help, 1.5 s for an audit.
LIMITS = {"help": 4.3, "audit": 21.0}


def call(*command: str) -> Callable[[], None]:
    """Return a function that runs the interpreter once."""

    def run() -> None:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300)

    return run


def fastest(run: Callable[[], None], rounds: int) -> float:
    """Return the shortest of several runs in seconds."""
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("help", ("-m", "lipaudit", "--help")),
        ("audit", ("-m", "lipaudit", "audit", str(MODEL.relative_to(ROOT)), "--exit-zero")),
    ],
    ids=["help", "audit"],
)
def test_startup(benchmark: BenchmarkFixture, name: str, command: tuple[str, ...]) -> None:
    run = call(*command)
    if benchmark.disabled:
        benchmark(run)
        return
    reference = fastest(call("-c", "import numpy"), 9)
    benchmark.pedantic(run, rounds=9, warmup_rounds=1)
    judge(benchmark, name, Ratio("of `import numpy`", benchmark.stats.stats.min / reference, LIMITS[name]))
