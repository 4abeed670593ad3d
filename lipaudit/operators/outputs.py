"""Gains of operators with several outputs: one constant per output, so that a residual stream does not pay for its norm.

A fused residual normalization returns the sum beside the normalized sum. Jointly they move with ``|(1, g)|_p``; the sum
alone moves with 1. The flow of each output uses its own constant, the gain of the node the joint one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lipaudit.bounds.scalar import INFINITE, ZERO, Norm, Upper, combine
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown, scaled
from lipaudit.operators.flow import Flow, total

__all__ = ["PerOutput", "SeveralOutputs", "finite_or", "jointly"]


@dataclass(frozen=True, slots=True)
class PerOutput(Finite):
    """A joint constant together with that of each output alone (parallel to the node's outputs)."""

    outputs: tuple[Finite, ...] = ()


def jointly(parts: Sequence[Gain], norm: Norm) -> Gain:
    """Gain to all outputs from the gains to each: ``|(dy_1, .., dy_m)|_p <= |(L_k)|_p |dx| + |(d_k)|_p``.

    The first part without a constant decides, because the outputs are asked for jointly.
    """
    finite: list[Finite] = []
    for part in parts:
        if not isinstance(part, Finite):
            return part
        finite.append(part)
    if len(finite) == 1:
        return finite[0]
    slope = combine((part.slope for part in finite), norm)
    offset = combine((part.offset for part in finite), norm)
    evidence = {"outputs": [part.slope.decimal() for part in finite], **finite[0].evidence}
    return PerOutput(slope, offset, finite[0].method, evidence, outputs=tuple(finite))


class SeveralOutputs(Rule):
    """A rule whose gains may be :class:`PerOutput`: each output then moves with its own constant."""

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """The contributions of the inputs add, output by output."""
        moved = [(flow, gain) for flow, gain in zip(flows, gains, strict=True) if flow is not None and gain is not None]
        return tuple(total([scaled(site, flow, _alone(gain, k), norm) for flow, gain in moved]) for k in range(len(site.outputs)))


def _alone(gain: Gain, k: int) -> Gain:
    return gain.outputs[k] if isinstance(gain, PerOutput) and k < len(gain.outputs) else gain


def finite_or(slope: Upper, reason: str, method: str, *, offset: Upper = ZERO, unknown: bool = False) -> Gain:
    """:class:`Finite` if ``slope`` is finite; otherwise :class:`Unbounded` (or :class:`Unknown`) with ``reason``."""
    if slope != INFINITE and offset != INFINITE:
        return Finite(slope, offset, method)
    return Unknown(reason) if unknown else Unbounded(reason)
