"""The derivation of every certified number, as data.

A step says which quantity of which target was bounded, by which rule, from which earlier steps, and with what evidence.
Steps are numbered in the order of the proof, so that a reader (or a separate checker) can follow them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lipaudit.bounds.scalar import ZERO, Upper
from lipaudit.records import Step

__all__ = ["Ledger"]


class Ledger:
    """Collects steps; ids are positions."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def add(
        self,
        quantity: str,
        target: str,
        rule: str,
        value: Upper,
        *,
        offset: Upper = ZERO,
        operands: Sequence[int] = (),
        evidence: Mapping[str, Any] | None = None,
    ) -> int:
        """Record a step and return its id."""
        dyadic = value.dyadic()
        step = Step(
            id=len(self._steps),
            quantity=quantity,
            target=target,
            rule=rule,
            operands=sorted(set(operands)),
            value=value.decimal(),
            exact=None if dyadic is None else [str(dyadic[0]), str(dyadic[1])],
            offset=offset.decimal(),
            evidence=dict(evidence or {}),
        )
        self._steps.append(step)
        return step.id

    @property
    def steps(self) -> list[Step]:
        """All steps so far, in order."""
        return list(self._steps)
