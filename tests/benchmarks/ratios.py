"""Ratios that benchmarks measure, kept where the table of docs/benchmarks.md finds them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ["Ratio", "fastest", "holding", "judge"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """What was measured, what is promised of it and, where the promise is not kept yet, what is held instead and why."""

    what: str
    value: float
    limit: float
    sense: Literal["<=", ">="] = "<="
    held: float | None = None
    note: str = ""

    @property
    def fails(self) -> bool:
        """Whether it is worse than what is held."""
        bar = self.limit if self.held is None else self.held
        return not (self.value <= bar if self.sense == "<=" else self.value >= bar)


def holding(ratios: list[Ratio], short: Mapping[str, tuple[float, str]]) -> list[Ratio]:
    """The ratios, with what is held and why for those (by ``what``) of which the promise is not kept."""
    return [replace(ratio, held=short[ratio.what][0], note=short[ratio.what][1]) if ratio.what in short else ratio for ratio in ratios]


def fastest(runs: Mapping[str, Callable[[], object]], rounds: int = 3, seconds: float = 0.0) -> dict[str, float]:
    """Shortest processor time of each in seconds, of at least ``rounds`` runs and as many as fit in ``seconds`` of elapsed time.

    They take turns, so that a busy moment of the machine meets all of them. Processor time, because everything measured so runs in
    one thread and other processes are to count as little as they can.
    """
    best = dict.fromkeys(runs, float("inf"))
    end, done = time.perf_counter() + seconds, 0
    while done < rounds or time.perf_counter() < end:
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
        done += 1
    return best


def judge(benchmark: BenchmarkFixture, name: str, *ratios: Ratio) -> None:
    """Keep the ratios with the timing, show them, and fail if one is worse than what is held."""
    benchmark.extra_info["ratios"] = [asdict(ratio) | {"value": round(ratio.value, 9)} for ratio in ratios]
    print(f"\n{name}: " + ", ".join(f"{ratio.what} {ratio.value:.3g} ({ratio.sense} {ratio.limit:.3g})" for ratio in ratios))
    failed = [f"{ratio.what}: {ratio.value:.4g}" for ratio in ratios if ratio.fails]
    assert not failed, failed
