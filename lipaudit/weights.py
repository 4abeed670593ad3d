"""The numbers of every linear part of a model: what ``lipaudit weights`` prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lipaudit import records
from lipaudit.assemble import model_record, version_of
from lipaudit.assemble_weights import weight_row
from lipaudit.certify.parts import linear_parts, measure_all
from lipaudit.errors import UsageError
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import recognise

__all__ = ["SORTS", "weights"]

SCHEMA = "lipaudit.weights/1"

SORTS: Mapping[str, Callable[[records.WeightRow], float]] = {
    "graph": lambda row: 0.0,
    "norm": lambda row: -_number(row.norm.upper),
    "slack": lambda row: -(float("inf") if row.norm.slack is None else row.norm.slack),
    "size": lambda row: -_size(row),
}
"""Orders of the rows; those without a number come first."""


def weights(
    path: str | os.PathLike[str],
    *,
    dims: Mapping[str, int] | None = None,
    rules: Sequence[str] = (),
    sort: str = "graph",
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> records.Weights:
    """Verified norms of every stored weight that acts linearly on data, as the operator that it is at its node.

    Parameters
    ----------
    path
        ``.onnx`` or ``.onnx.gz`` file; ``"-"`` reads standard input.
    dims
        Sizes of symbolic dimensions: the norm of a convolution depends on the size of its image.
    rules
        Folders with further rules.
    sort
        "graph" (the order of the nodes), "norm", "slack" or "size", largest first.
    threads
        How many weights are looked at at the same time (default: as many as there are processors). The numbers do not depend on it.
    progress
        Called with a stage and the fraction of it that is done.

    Returns
    -------
    Weights
        Bounds are decimal strings, upper ones rounded up and lower ones rounded down. A weight with values that are not finite has
        a row with the reason and without numbers.

    Raises
    ------
    UsageError
        An option makes no sense (exit code 2).
    ModelError
        The model cannot be read (exit code 3).
    """
    if sort not in SORTS:
        raise UsageError(f"{sort!r} is not an order; choose one of {', '.join(SORTS)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot do any work.")
    tell = progress or (lambda stage, fraction: None)
    catalogue = Catalogue.load([Path(folder) for folder in rules])
    tell("load", 0.0)
    loaded = load(os.fspath(path))
    tell("simplify", 0.0)
    topology = recognise(simplify(loaded.graph, dict(dims or {}), operators=catalogue.operators()))
    parts = linear_parts(topology.simplified, catalogue)
    tell("weights", 0.0)
    found = measure_all(parts, threads=threads, progress=lambda fraction: tell("weights", fraction))
    rows = [weight_row(node, part, measures) for (node, part), measures in zip(parts, found, strict=True)]
    return records.Weights(SCHEMA, model_record(loaded, topology), sorted(rows, key=SORTS[sort]), version_of("lipaudit") or "0+unknown")


def _number(decimal: str | None) -> float:
    return float("inf") if decimal is None else float(decimal)


def _size(row: records.WeightRow) -> int:
    size = 1
    for n in row.shape:
        size *= n
    return size
