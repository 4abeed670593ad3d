"""Simplify: passes that make the graph smaller and keep its function; one pass a file.

Order: :mod:`pin` (symbolic dims become numbers), :mod:`propagate` (types, constants, branches, definitions), :mod:`sequences` (tensors
instead of sequences), :mod:`bypass` (nodes that do nothing), :mod:`cancel` (neighbours that undo each other), :mod:`dead` (what no
output needs). Each module's docstring states the law that it keeps and its cases. Functions are inlined at loading
(:mod:`lipaudit.graph.functions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lipaudit.errors import ModelError
from lipaudit.graph import spec
from lipaudit.graph.export import to_model
from lipaudit.graph.ir import Graph
from lipaudit.graph.limits import DEFAULT, Limits
from lipaudit.graph.simplify.bypass import bypass
from lipaudit.graph.simplify.cancel import cancel
from lipaudit.graph.simplify.dead import remove_dead
from lipaudit.graph.simplify.expand import NOTHING, Operators
from lipaudit.graph.simplify.pin import DEFAULTS, pin
from lipaudit.graph.simplify.propagate import Contradiction, propagate
from lipaudit.graph.simplify.runtime import session
from lipaudit.graph.simplify.sequences import resolve_sequences

__all__ = ["NOTHING", "Operators", "simplify"]

_NO_DIMS: Mapping[str, int] = MappingProxyType({})


def simplify(graph: Graph, dims: Mapping[str, int] = _NO_DIMS, *, operators: Operators = NOTHING, limits: Limits = DEFAULT) -> Graph:
    """The same function with static shapes, fewer nodes and its constants computed.

    Parameters
    ----------
    graph
        As :func:`lipaudit.graph.load.load` gives it.
    dims
        Sizes for symbolic dims, by symbol or ``input[axis]``. Others: 1 for the first axis, else a default; see
        :mod:`lipaudit.graph.simplify.pin`. All are recorded in ``Graph.pinned``.
    operators
        What the caller knows of operators: those without a rule are replaced by what defines them (:mod:`expand`).
    limits
        Ceilings for single values and for folding.

    Returns
    -------
    A graph that is legal again (:func:`lipaudit.graph.spec.check`).

    Raises
    ------
    UsageError
        If ``dims`` names an unknown dimension.
    ModelError
        If the model contradicts itself (shapes that do not fit), or asks for a tensor beyond the limits.
    """
    best: tuple[Graph, list[Contradiction]] | None = None
    chosen = DEFAULTS[0]
    for defaults in DEFAULTS:
        pinned, used_default = pin(graph, dims, defaults)
        walked, found = propagate(pinned, limits, operators)
        if best is None or len(found) < len(best[1]):
            best, chosen = (walked, found), defaults
        if not found or not used_default:
            break
    if best is None:
        raise ModelError("there is no default for its open dimensions", where=graph.name)
    walked, found = best
    if found:
        # Some of onnx's bodies do not pass onnx's own inference; the operator itself does.
        plain, left = propagate(pin(graph, dims, chosen)[0], limits, operators.without_bodies())
        walked, found = (plain, left) if len(left) < len(found) else best
    if found:
        _refuse_if_broken(walked, found)
    while (resolved := resolve_sequences(walked)) is not walked:  # each round removes one at least
        walked, _ = propagate(resolved, limits, operators)
    simplified = remove_dead(bypass(cancel(bypass(walked))))
    spec.check(simplified)
    return simplified


def _refuse_if_broken(graph: Graph, found: list[Contradiction]) -> None:
    """Raise if the runtime refuses the graph too; inference alone is sometimes wrong about rare operators."""
    try:
        runs = session(to_model(graph)) is not None
    except ModelError:  # too large to ask
        return
    if not runs:
        node, message = found[0].node, found[0].message
        pinned = ", ".join(f"{name}={size}" for name, size in graph.pinned.items())
        hint = f"Open dimensions were set to {pinned}; choose others with --dim." if pinned else ""
        raise ModelError(f"node {node.name!r} ({node.op}) does not fit its inputs: {message}", where=graph.name, hint=hint)
