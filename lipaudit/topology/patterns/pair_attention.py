"""Attention with a weight for each score by itself: ``w(s Q K' + B) V``, w the sigmoid or ReLU.

The pivot is the activation. Forward from it: constant factors (1/n) and the product with V; backward what dot-product attention has
(``patterns.attention``), without a soft cap.
"""

from __future__ import annotations

from fractions import Fraction

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View, float_above
from lipaudit.topology.patterns.attention import Core, logits, operands, same_shapes
from lipaudit.topology.patterns.products import product_with_values, scores_behind

__all__ = ["pair_attention"]

_LIMIT = 6


def pair_attention(view: View, activation: Node) -> Match | None:
    """Pivot Sigmoid or Relu on a product of two moving values, followed by a product with a third one."""
    found = Core([activation])
    factor = _forward(view, activation.outputs[0], found)
    if factor is None or not scores_behind(view, activation.inputs[0]):
        return None
    if factor == 0:
        raise Mismatch("a factor on its weights is 0")
    logits(view, activation.inputs[0], found)
    operands(view, found)
    if found.scale <= 0 or found.softcap:
        raise Mismatch("the factor on its scores is not positive, or they are capped")
    same_shapes(view, found)
    covered = view.close(found.nodes, found.final)
    attrs = {
        "k_transposed": int(found.key_transposed),
        "scale": float_above(found.scale),
        "factor": float_above(abs(factor)),
        "activation": activation.op.lower(),
    }
    fused = Node("", "PairAttention", (found.query, found.key, found.values, found.bias), (found.final,), "lipaudit", 1, attrs)
    return Match(fused, covered, tuple(found.constants), tuple(found.helpers))


def _forward(view: View, value: str, found: Core) -> Fraction | None:
    """From the weights to the product with moving values: the constant factor between them; None if there is no such product."""
    factor = Fraction(1)
    for _ in range(_LIMIT):
        value, passed = view.beyond(value)
        user = view.sole_user(value)
        if user is None:
            return None
        found.nodes += passed
        met = product_with_values(view, value)
        if met is not None:
            if met[1].second not in view.moving:
                return None
            found.nodes.append(user)
            found.values, found.final = met[1].second, user.outputs[0]
            return factor * met[1].factor
        if user.domain or user.op not in ("Mul", "Div"):
            return None
        at = next((i for i, name in enumerate(user.inputs) if view.scalar(name) is not None), None)
        if at is None or (user.op == "Div" and at == 0):
            return None
        constant = Fraction(view.scalar(user.inputs[at]) or 0.0)
        if user.op == "Div" and constant == 0:
            return None
        factor = factor * constant if user.op == "Mul" else factor / constant
        found.nodes.append(user)
        value = user.outputs[0]
    return None
