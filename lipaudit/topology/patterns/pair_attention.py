"""Attention with a weight for each score by itself: ``w(s Q K' + B) V``, w the sigmoid or ReLU.

The pivot is the activation. Forward from it: constant factors (1/n) and the product with V; backward what dot-product attention has
(``patterns.attention``), without a soft cap.
"""

from __future__ import annotations

from fractions import Fraction

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View, float_above
from lipaudit.topology.patterns.attention import Core, logits, operands, product_of, same_shapes

__all__ = ["pair_attention"]

_LIMIT = 6


def pair_attention(view: View, activation: Node) -> Match | None:
    """Pivot Sigmoid or Relu on a product of two moving values, followed by a product with a third one."""
    found = Core([activation])
    factor = _forward(view, activation.outputs[0], found)
    if factor is None or not _is_of_scores(view, activation.inputs[0]):
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
        product = product_of(view, user)
        if product is not None:
            first, second, turned, second_turned, alpha = product
            if first != value or second == value or second not in view.moving or turned or second_turned:
                return None
            found.nodes.append(user)
            found.values, found.final = second, user.outputs[0]
            return factor * alpha
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


def _is_of_scores(view: View, name: str) -> bool:
    """Whether a product of two moving values lies behind, through factors, biases and masks."""
    for _ in range(2 * _LIMIT):
        name, _passed = view.behind(name)
        node = view.producer(name)
        if node is None:
            return False
        product = product_of(view, node)
        if product is not None:
            return product[0] in view.moving and product[1] in view.moving
        if node.domain or node.op not in ("Add", "Mul", "Div", "Where"):
            return False
        behind = [operand for operand in node.inputs if operand in view.moving]
        if len(behind) != 1:
            return False
        name = behind[0]
    return False
