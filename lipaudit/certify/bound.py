"""A certified bound of a map, with the step of the derivation that says so."""

from __future__ import annotations

from dataclasses import dataclass

from lipaudit.bounds.scalar import Upper
from lipaudit.operators.flow import Reason

__all__ = ["Bound"]


@dataclass(frozen=True, slots=True)
class Bound:
    """``|df| <= slope |dx| + offset``, how it was had, and the step of the derivation that says so."""

    slope: Upper
    offset: Upper
    method: str
    reasons: tuple[Reason, ...] = ()
    step: int | None = None

    @property
    def status(self) -> str:
        """One of "finite", "unbounded" (no constant exists or is provable) or "unknown" (no rule applies)."""
        if self.slope.is_finite and self.offset.is_finite:
            return "finite"
        return "unknown" if any(reason.status == "unknown" for reason in self.reasons) else "unbounded"
