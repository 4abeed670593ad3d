"""The options of one audit, as the report repeats them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from lipaudit.certify.domain import Domain

__all__ = ["EFFORTS", "NORMS", "Options"]

NORMS = ("l2", "l1", "linf")
EFFORTS = ("quick", "normal", "thorough")


@dataclass(frozen=True)
class Options:
    """What the user asked for; everything that changes the result is here."""

    dims: dict[str, int]
    norm: str
    effort: str
    measure: bool
    device: str
    seed: int
    record: dict[str, Any]

    @classmethod
    def of(
        cls, *, domain: Domain, dims: dict[str, int], norm: str, effort: str, measure: bool, device: str, seed: int,
        time_limit: float | None, select: list[str], ignore: list[str],
    ) -> Self:  # fmt: skip
        """Collect the options of one call."""
        record: dict[str, Any] = {
            "input": {name: f"{box.lo_text}:{box.hi_text}" for name, box in domain.boxes.items()},
            "dim": dims, "norm": norm, "effort": effort, "measure": measure, "device": device, "seed": seed,
            "time_limit": time_limit, "select": select, "ignore": ignore,
        }  # fmt: skip
        return cls(dims, norm, effort, measure, device, seed, record)
