"""From the numbers of linear parts to their rows in the records."""

from __future__ import annotations

from lipaudit import records
from lipaudit.certify.parts import Measures, slack
from lipaudit.graph.ir import Node
from lipaudit.operators.parts import Part

__all__ = ["weight_row"]

_DIGITS = 8


def weight_row(node: Node, part: Part, found: Measures) -> records.WeightRow:
    """One row of the table of linear parts: bounds as decimal texts on their safe side."""
    spectral, l1, linf = (found.norms.get(norm) for norm in ("l2", "l1", "linf"))
    return records.WeightRow(
        name=part.weight,
        node=node.name,
        op=node.kind,
        kind=part.kind,
        shape=list(part.shape),
        operator_shape=None if found.shape is None else list(found.shape),
        norm=records.WeightNorm(
            upper=None if spectral is None or not spectral.upper.is_finite else spectral.upper.decimal(_DIGITS),
            lower=None if spectral is None else spectral.lower.decimal(_DIGITS),
            slack=None if spectral is None else slack(spectral),
            method="" if spectral is None else spectral.method,
        ),
        l1=None if l1 is None or not l1.upper.is_finite else l1.upper.decimal(_DIGITS),
        linf=None if linf is None or not linf.upper.is_finite else linf.upper.decimal(_DIGITS),
        fro=None if found.size is None else found.size.upper.decimal(_DIGITS),
        stable_rank=None
        if found.rank is None
        else records.WeightRank(found.rank.lower.decimal(_DIGITS), found.rank.upper.decimal(_DIGITS)),
        sigma_min=None if found.smallest is None else found.smallest.decimal(_DIGITS),
        reason=found.reason,
        nonfinite=found.nonfinite,
    )
