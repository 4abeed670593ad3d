"""The whole graph in the largest-row norm beside the flattened one (``certify.row_max``); the least bound wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lipaudit.bounds.scalar import ZERO, matrix_norm
from lipaudit.certify.bound import Bound
from lipaudit.certify.ledger import Ledger
from lipaudit.certify.methods import Workspace
from lipaudit.certify.row_max import row_gains
from lipaudit.topology import Topology

__all__ = ["by_rows"]

_RULE = "gains to the largest row beside those to the whole value: rows are counted once"
_METHOD = "largest rows"
_FREE = "largest rows, which holds for every sequence length"
_EVERY = "no factor of this bound depends on the number of tokens: it holds for every sequence length on which the ranges hold"


def by_rows(
    work: Workspace, topology: Topology, outputs: Sequence[str], headline: Bound, matrix: Mapping[tuple[str, str], Bound], ledger: Ledger
) -> tuple[Bound, dict[tuple[str, str], Bound]]:
    """``headline`` and ``matrix`` (source x output, l2), each replaced where the largest rows say less."""
    found = dict(matrix)
    every = True
    for source in (source.value.name for source in topology.sources):
        reached = row_gains(work, topology.root, source)
        for output in outputs:
            gain, known = reached.get(output), found[source, output]
            if gain is None or not gain.flat < known.slope or not (known.offset.is_zero or known.status != "finite"):
                every = every and known.slope.is_zero
                continue
            evidence = {"tokens": _EVERY} if gain.free else {"tokens": "their number enters once"}
            step = ledger.add("gain", f"{source} -> {output}", _RULE, gain.flat, evidence=evidence)
            found[source, output] = Bound(gain.flat, ZERO, _FREE if gain.free else _METHOD, (), step)
            every = every and gain.free
    rows = [[found[source.value.name, output].slope for source in topology.sources] for output in outputs]
    slope = matrix_norm(rows, "l2") if topology.sources else ZERO
    changed = [bound.step for key, bound in found.items() if bound is not matrix[key] and bound.step is not None]
    offsets = all(bound.offset.is_zero for bound in found.values())
    if not changed or not offsets or not slope < headline.slope:
        return headline, found
    operands = [bound.step for bound in found.values() if bound.step is not None]
    evidence = {"tokens": _EVERY} if every else {}
    step = ledger.add("gain", "all sources -> all outputs", "l2 norm of the matrix of gains", slope, operands=operands, evidence=evidence)
    return Bound(slope, ZERO, _FREE if every else _METHOD, (), step), found
