"""How the outputs of a node move jointly, input by input and output by output: the answer of rules that certify bodies.

A constant per input alone would add an offset for each input and the outputs of all branches; the whole matrix does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lipaudit.bounds.scalar import ZERO, Norm, Upper, combine
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown, joint_flow
from lipaudit.operators.flow import Flow, Reason, Row, flatten, may_be_undefined, merged

__all__ = ["Branch", "Moves", "OpenMoves", "Outcome", "flow_of", "gain_of"]


@dataclass(frozen=True, slots=True)
class Branch:
    """One way the node can compute: per output the gain of each input (missing: 0), and the offset when all move at once."""

    slopes: tuple[Mapping[int, Upper], ...]
    offsets: tuple[Upper, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All ways; the outputs move like the worst of them.

    ``jumps`` (per output) is what a change of the way itself adds, which the inputs ``chooses`` can cause:
    ``A(x) - B(y) = A(x) - A(y) + A(y) - B(y)``. ``reasons`` say why something is infinite; those without ``op`` are not of a body.
    """

    branches: tuple[Branch, ...]
    jumps: tuple[Upper, ...] = ()
    chooses: frozenset[int] = frozenset()
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Moves(Finite):
    """A finite constant of one input together with the outcome that it was read from."""

    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class OpenMoves(Unbounded):
    """As :class:`Moves` where an output has no bound; the others may have one."""

    outcome: Outcome | None = None


def gain_of(outcome: Outcome, i: int, norm: Norm, method: str) -> Gain:
    """The constant of input ``i`` alone to all outputs jointly."""
    slopes: list[Upper] = []
    offsets: list[Upper] = []
    for branch in outcome.branches:
        slopes.append(combine([row.get(i, ZERO) for row in branch.slopes], norm))
        offsets.append(combine(branch.offsets, norm))
    slope, offset = max(slopes, default=ZERO), max(offsets, default=ZERO)
    if i in outcome.chooses:
        offset = offset + combine(outcome.jumps, norm)
    if slope.is_finite and offset.is_finite:
        return Moves(slope, offset, method, {"branches": [s.decimal() for s in slopes]}, outcome)
    if any(reason.status == "unknown" for reason in outcome.reasons):
        return Unknown(_said(outcome))
    return OpenMoves(_said(outcome), outcome)


def _said(outcome: Outcome) -> str:
    words = [f"inside its body, {reason.op}: {reason.reason}" if reason.op else reason.reason for reason in outcome.reasons[:3]]
    return "; ".join(dict.fromkeys(words)) or "its body has no finite bound on this range"


def flow_of(site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
    """Flow of each output: the contributions of the inputs add within a branch, and the worst branch counts column by column."""
    moving = [(i, flow, gain) for i, (flow, gain) in enumerate(zip(flows, gains, strict=True)) if flow is not None and gain is not None]
    outcome = next((gain.outcome for _, _, gain in moving if isinstance(gain, (Moves, OpenMoves))), None)
    undefined = [flow for _, flow, _ in moving if may_be_undefined(flow)]
    if outcome is None or any(not isinstance(gain, (Moves, OpenMoves)) for _, _, gain in moving):
        return joint_flow(site, flows, gains, norm)
    if undefined:
        # A body is certified on ranges of defined values: comparisons inside would decide by them.
        why = Reason(site.node.name, site.node.kind, "unknown", "its body may read an undefined value")
        joint = joint_flow(site, flows, gains, norm)
        return tuple(Flow(flow.rows, reasons=merged((flow.reasons, (why,)))).broken(why) for flow in joint)
    reasons = merged([flow.reasons for _, flow, _ in moving])
    rows = {i: flatten(flow, norm).rows[0] for i, flow, _ in moving}
    jumps = any(i in outcome.chooses and not _still(row) for i, row in rows.items())
    found: list[Flow] = []
    for o in range(len(site.outputs)):
        worst: Row | None = None
        for branch in outcome.branches:
            row = _row(branch, o, rows)
            worst = row if worst is None else _larger(worst, row)
        assert worst is not None
        row = Row(worst.gains, worst.offset + outcome.jumps[o] if jumps else worst.offset)
        open_ended = not (row.offset.is_finite and all(gain.is_finite for gain in row.gains))
        why = (Reason(site.node.name, site.node.kind, "unbounded", _reason_at(outcome, gains)),) if open_ended else ()
        found.append(Flow((row,), reasons=merged((reasons, why))))
    return tuple(found)


def _reason_at(outcome: Outcome, gains: Sequence[Gain | None]) -> str:
    said = [gain.reason for gain in gains if isinstance(gain, Unbounded)]
    return said[0] if said else _said(outcome)


def _still(row: Row) -> bool:
    return row.offset.is_zero and all(gain.is_zero for gain in row.gains)


def _row(branch: Branch, output: int, rows: Mapping[int, Row]) -> Row:
    """One output through one branch; the offsets of the inputs are carried by their slopes, the branch's own counts once."""
    slopes = branch.slopes[output]
    width = len(next(iter(rows.values())).gains)
    total = Row(tuple(ZERO for _ in range(width)))
    for i, row in rows.items():
        total = total.plus(row.scaled(slopes.get(i, ZERO)))
    return Row(total.gains, total.offset + branch.offsets[output])


def _larger(a: Row, b: Row) -> Row:
    return Row(tuple(max(x, y) for x, y in zip(a.gains, b.gains, strict=True)), max(a.offset, b.offset))
