"""GELU spelled out with Erf or with Tanh (Hendrycks, Gimpel 2016), with any placement of its constants.

    erf form    y = k x (1 + erf(x num / den))             exporters store num = 1, den = float32(sqrt 2), k = 1/2
    tanh form   y = k x (1 + tanh(a x + b x^3))            a = float32(sqrt(2/pi)), b = a * float32(0.044715), k = 1/2

The stored constants are kept: the slope of the nominal function is not that of the stored one. ``a`` and ``b`` are quotients of two
doubles (the attributes ``a / aden`` and ``b / bden``), since a constant may be divided by.
"""

from __future__ import annotations

from fractions import Fraction

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View, exact_float, exact_ratio
from lipaudit.topology.patterns.factors import multiples, polynomial, product

__all__ = ["erf_gelu", "tanh_gelu"]

_HALF = Fraction(1, 2)


def erf_gelu(view: View, erf: Node) -> Match | None:
    """Pivot Erf."""
    gate, scale, nodes = _one_plus(view, erf.outputs[0])
    found = product(view, gate, multiples(view, erf.inputs[0]), _HALF / scale)
    k, num, den = exact_float(found.k * scale), exact_float(found.num), exact_float(found.den)
    if k is None or num is None or den is None:
        raise Mismatch("a product of its constants is no double")
    if num * den <= 0:
        raise Mismatch("the argument of Erf is a negative multiple of the value that it multiplies")
    view.same_shape(found.final, found.x)
    covered = view.close((*nodes, erf, *found.nodes), found.final)
    attrs = {"approximate": "none", "k": k, "num": num, "den": den}
    return Match(Node("", "Gelu", (found.x,), (found.final,), "lipaudit", 1, attrs), covered)


def tanh_gelu(view: View, tanh: Node) -> Match | None:
    """Pivot Tanh. Not one where Tanh is not followed by an addition of its own factor."""
    after = view.sole_user(view.beyond(tanh.outputs[0])[0])
    if after is None or after.op not in ("Add", "Mul") or after.domain:
        return None
    try:
        gate, scale, nodes = _one_plus(view, tanh.outputs[0])
    except Mismatch:
        return None  # tanh(g(x)) * x and tanh gates are something else
    for argument in _arguments(view, gate):
        terms = polynomial(view, tanh.inputs[0], argument)
        if terms is None or set(terms[0]) != {1, 3}:
            continue
        found = product(view, gate, multiples(view, argument)[:1], _HALF / scale)
        k, a, b = exact_float(found.k * scale), exact_ratio(terms[0][1]), exact_ratio(terms[0][3])
        if k is None or a is None or b is None:
            raise Mismatch("a product of its constants is no double")
        view.same_shape(found.final, found.x)
        covered = view.close((*nodes, tanh, *terms[1], *found.nodes), found.final)
        attrs = {"approximate": "tanh", "k": k, "a": a[0], "aden": a[1], "b": b[0], "bden": b[1]}
        return Match(Node("", "Gelu", (found.x,), (found.final,), "lipaudit", 1, attrs), covered)
    raise Mismatch("the argument of Tanh is no polynomial a x + b x^3 of the value that it multiplies")


def _one_plus(view: View, value: str) -> tuple[str, Fraction, list[Node]]:
    """``c + c * value``, with any constant factors before the sum; returns the sum, c and the nodes."""
    scale, nodes = Fraction(1), []
    for _ in range(4):
        value, passed = view.beyond(value)
        nodes.extend(passed)
        user = view.sole_user(value)
        other = view.other(user, value) if user is not None else None
        constant = view.scalar(other) if other is not None else None
        if user is None or user.domain or constant is None:
            raise Mismatch("its result is not added to a constant 1")
        nodes.append(user)
        if user.op == "Add":
            if Fraction(constant) != scale:
                raise Mismatch(f"{user.name!r} adds {constant}, not 1")
            return user.outputs[0], scale, nodes
        if user.op == "Mul" and constant:
            scale *= Fraction(constant)
        elif user.op == "Div" and constant and user.inputs[0] == value:
            scale /= Fraction(constant)
        else:
            raise Mismatch("its result is not added to a constant 1")
        value = user.outputs[0]
    raise Mismatch("its result is not added to a constant 1")


def _arguments(view: View, gate: str) -> list[str]:
    """Candidates for x: the other factors that the gate meets, and what they are multiples of."""
    value = gate
    for _ in range(4):
        value, _ = view.beyond(value)
        user = view.sole_user(value)
        other = view.other(user, value) if user is not None and user.op in ("Mul", "Div") else None
        if user is None or other is None:
            return []
        if view.scalar(other) is None:
            return [scaled.name for scaled in multiples(view, other)]
        value = user.outputs[0]
    return []
