"""If: one of two bodies."""

from __future__ import annotations

from collections.abc import Sequence

from lipaudit.bounds.scalar import INFINITE, ZERO, Norm, Upper
from lipaudit.graph.ir import Graph
from lipaudit.operators.alike import computed_alike
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.flow import Flow
from lipaudit.operators.hull import distance, hull
from lipaudit.operators.moves import Branch, OpenMoves, Outcome, flow_of, gain_of
from lipaudit.operators.range import Range, reals

__all__ = ["If", "named_ranges"]


class If(Rule):
    """The worst of the branches that the range of the condition leaves open.

    A condition that depends on the source adds, per element, the largest difference of the two branches:
    ``A(x) - B(y) = A(x) - A(y) + A(y) - B(y)``; nothing where both compute it alike. The branches
    read captured values only; these follow the condition.
    """

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Hull over the open branches."""
        bodies = site.bodies
        if bodies is None:
            return tuple(reals(value.shape) if value is not None and value.shape is not None else reals(()) for value in site.outputs)
        given, moving = named_ranges(site, xs), _moving(site)
        found = [bodies.ranges(site, body, given, moving & set(body.captures)) for body in self._open(site, xs)]
        return tuple(_joined(site, o, [ranges[o] for ranges in found]) for o in range(len(site.outputs)))

    def _open(self, site: Site, xs: Sequence[Range | None]) -> list[Graph]:
        """The branches that can be taken."""
        then, other = site.node.attrs["then_branch"], site.node.attrs["else_branch"]
        condition = xs[0]
        if condition is not None and condition.size == 1:
            if float(condition.lo.reshape(-1)[0]) >= 1:
                return [then]
            if float(condition.hi.reshape(-1)[0]) <= 0:
                return [other]
        return [then, other]

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """See the class."""
        bodies = site.bodies
        if bodies is None:
            return Unknown("graphs are nested too deeply here: the branches are not analysed")
        given, moving = named_ranges(site, xs), _moving(site)
        position = {name: k for k, name in enumerate(site.node.inputs)}
        branches: list[Branch] = []
        ends: list[tuple[Graph, tuple[Range | None, ...]]] = []
        reasons = []
        for body in self._open(site, xs):
            names = moving & set(body.captures)
            bound = bodies.bound(site, body, given, names, norm)
            branches.append(Branch(tuple({position[n]: slope for n, slope in row.items()} for row in bound.gains), bound.offsets))
            ends.append((body, bodies.ranges(site, body, given, names)))
            reasons.extend(bound.reasons)
        if any(reason.status == "unknown" for reason in reasons):
            first = next(reason for reason in reasons if reason.status == "unknown")
            return Unknown(f"inside a branch, {first.op or first.node}: {first.reason}")
        jumps = (
            [self._jump(ends, o, norm) for o in range(len(site.outputs))]
            if site.moving[0] and len(ends) == 2
            else [ZERO] * len(site.outputs)
        )
        outcome = Outcome(tuple(branches), tuple(jumps), frozenset({0}), tuple(dict.fromkeys(reasons)))
        found = gain_of(outcome, i, norm, "worst branch")
        if i == 0 and not isinstance(found, Finite) and not reasons:
            return OpenMoves(
                "the condition depends on the input, and the two branches differ by an unbounded amount on this range", outcome
            )
        return found

    def _jump(self, ends: Sequence[tuple[Graph, tuple[Range | None, ...]]], o: int, norm: Norm) -> Upper:
        """Largest difference of output ``o`` of the two branches."""
        (then, a), (other, b) = ends
        if computed_alike(then, then.outputs[o], other, other.outputs[o]):
            return ZERO
        x, y = a[o], b[o]
        return INFINITE if x is None or y is None else distance(x, y, norm)

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """The branches, each with all that moves."""
        return flow_of(site, flows, gains, norm)


def named_ranges(site: Site, xs: Sequence[Range | None]) -> dict[str, Range]:
    """Ranges of the inputs of a node by name (captured values among them)."""
    return {name: x for name, x in zip(site.node.inputs, xs, strict=True) if name and x is not None}


def _moving(site: Site) -> set[str]:
    return {name for name, moves in zip(site.node.inputs, site.moving, strict=True) if moves}


def _joined(site: Site, o: int, ranges: Sequence[Range | None]) -> Range:
    value = site.outputs[o]
    shape = value.shape if value is not None and value.shape is not None else ()
    known = [x for x in ranges if x is not None and x.shape == shape]
    return hull(known) if len(known) == len(ranges) and known else reals(shape)
