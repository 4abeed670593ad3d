"""Ratios that benchmarks measure, kept where the table of docs/benchmarks.md finds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ["Ratio", "judge"]


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


def judge(benchmark: BenchmarkFixture, name: str, *ratios: Ratio) -> None:
    """Keep the ratios with the timing, show them, and fail if one is worse than what is held."""
    benchmark.extra_info["ratios"] = [asdict(ratio) | {"value": round(ratio.value, 9)} for ratio in ratios]
    print(f"\n{name}: " + ", ".join(f"{ratio.what} {ratio.value:.3g} ({ratio.sense} {ratio.limit:.3g})" for ratio in ratios))
    failed = [f"{ratio.what}: {ratio.value:.4g}" for ratio in ratios if ratio.fails]
    assert not failed, failed
