"""A Where that chooses by a comparison of what it chooses between: continuous, though a mask that moves jumps.

    a < b ? a : b = min(a, b)      a < b ? b : a = max(a, b)      x < 0 ? s x : x = PRelu(x, s)

and the same with <=, > and >= (both sides agree where they meet).
"""

from __future__ import annotations

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, View

__all__ = ["choice"]

_LESS = ("Less", "LessOrEqual")
_GREATER = ("Greater", "GreaterOrEqual")


def choice(view: View, where: Node) -> Match | None:
    """Pivot Where."""
    mask, x, y = where.inputs
    compared = view.made_by(mask, *_LESS, *_GREATER)
    if compared is None or view.sole_user(mask) is None:
        return None
    a, b = compared.inputs if compared.op in _LESS else reversed(compared.inputs)
    final = where.outputs[0]
    # a < b chooses x.
    if view.same(a, x) and view.same(b, y):
        fused = Node("", "Min", (x, y), (final,), "", 13)
    elif view.same(a, y) and view.same(b, x):
        fused = Node("", "Max", (x, y), (final,), "", 13)
    else:
        return _leaky(view, where, compared, a, b)
    return Match(fused, view.close((compared, where), final))


def _leaky(view: View, where: Node, compared: Node, a: str, b: str) -> Match | None:
    """The linear branch below 0 may be chosen by ``x < 0`` or given up by ``0 < x``."""
    _, x, y = where.inputs
    if view.scalar(b) == 0.0:
        value, branch, product = a, y, x
    elif view.scalar(a) == 0.0:
        value, branch, product = b, x, y
    else:
        return None
    times = view.made_by(product, "Mul")
    if value != branch or times is None or view.sole_user(product) is None:
        return None
    slope = view.other(times, value)
    own = view.shape(slope) if slope is not None else None
    shape, final = view.shape(value), where.outputs[0]
    if slope is None or own is None or shape is None or view.shape(final) != shape or view.shape(product) != shape:
        return None
    return Match(Node("", "PRelu", (value, slope), (final,), "", 16), view.close((times, compared, where), final))
