"""Linear attention ``A (B' V) / (A B' 1 + e)``, from its division (a Div, or a Reciprocal with its Mul).

The numerator is ``A (B' V)`` or ``(A B') ..``, where the normalized weights then meet V; the denominator sums ``A B'`` over the keys, in
any of the ways to write that: ``A (B' 1)``, the sum of ``A * (1' B)``, or the sum of the weights themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View, float_below
from lipaudit.topology.patterns.products import product_of, product_with_values, transposed

__all__ = ["linear_attention"]


@dataclass(frozen=True)
class _Sum:
    """The denominator: features A and B (rows are tokens), e, and its nodes."""

    a: str
    b: str
    epsilon: float
    nodes: tuple[Node, ...]


def linear_attention(view: View, division: Node) -> Match | None:
    """Pivot Div (numerator by denominator, or 1 by it) or Reciprocal."""
    nodes = [division]
    if division.op == "Div" and view.scalar(division.inputs[0]) != 1.0:
        top, bottom, final = division.inputs[0], division.inputs[1], division.outputs[0]
        if top not in view.moving or bottom not in view.moving:
            return None
    else:
        bottom = division.inputs[-1]
        user = view.sole_user(division.outputs[0])
        other = view.other(user, division.outputs[0]) if user is not None and user.kind == "ai.onnx::Mul" else None
        if user is None or other is None or other not in view.moving:
            return None
        top, final = other, user.outputs[0]
        nodes.append(user)
    node, passed = _product_behind(view, top)
    product = product_of(node)
    if node is None or product is None or product.first_turned or product.factor != 1:
        return None
    nodes += [*passed, node]
    inner, between = _product_behind(view, product.second)
    if inner is not None and not product.second_turned:
        parts = product_of(inner)
        if parts is None or parts.second_turned or parts.factor != 1:
            return None
        nodes += [*between, inner]
        values = parts.second
        keys = parts.first if parts.first_turned else transposed(view, parts.first, nodes)
    else:  # (A B') / .. and then the product with V
        after, passed = view.beyond(final)
        met = product_with_values(view, after)
        if met is None or met[1].second not in view.moving or met[1].factor != 1:
            return None
        nodes += [*passed, met[0]]
        values, final = met[1].second, met[0].outputs[0]
        keys = product.second if product.second_turned else transposed(view, product.second, nodes)
    if keys is None:
        return None
    a = product.first
    total = _denominator(view, bottom, a, keys, node)
    if total is None:
        raise Mismatch("what it divides by is not the sum of its weights over the keys")
    shape = view.shape(final)
    shapes = [view.shape(name) for name in (a, keys, values)]
    if shape is None or any(one is None or len(one) != len(shape) or one[:-2] != shape[:-2] for one in shapes):
        raise Mismatch("its queries, keys and values have other leading axes than its result")
    covered = view.close([*nodes, *total.nodes], final)
    fused = Node("", "LinearAttention", (a, keys, values), (final,), "lipaudit", 1, {"epsilon": total.epsilon})
    return Match(fused, covered)


def _product_behind(view: View, name: str) -> tuple[Node | None, list[Node]]:
    """The product of two moving values that makes ``name``, and the transparent nodes between."""
    name, passed = view.behind(name)
    node = view.producer(name)
    product = product_of(node)
    return (node if product is not None and product.first in view.moving and product.second in view.moving else None), passed


def _denominator(view: View, name: str, a: str, b: str, product: Node) -> _Sum | None:
    """The sum over the keys of ``A B'``, plus a constant."""
    name, passed = view.behind(name)
    nodes = list(passed)
    epsilon = 0.0
    added = view.made_by(name, "Add")
    if added is not None:
        at = next((i for i, operand in enumerate(added.inputs) if view.scalar(operand) is not None), None)
        if at is None:
            return None
        constant = view.scalar(added.inputs[at]) or 0.0
        if constant < 0:
            return None
        epsilon = float_below(Fraction(constant)) if constant else 0.0
        nodes.append(added)
        name, between = view.behind(added.inputs[1 - at])
        nodes += between
    found = _by_product(view, name, a, b) or _by_sum(view, name, a, b, product)
    return None if found is None else _Sum(a, b, epsilon, (*nodes, *found))


def _by_product(view: View, name: str, a: str, b: str) -> list[Node] | None:
    """``A (sum_j b_j)'``, the sum kept as a column or turned into one."""
    node = view.producer(name)
    product = product_of(node)
    if node is None or product is None or product.first_turned or product.factor != 1:
        return None
    if view.behind(product.first)[0] != view.behind(a)[0]:
        return None
    column, passed = view.behind(product.second)
    nodes = [node, *view.behind(product.first)[1], *passed]
    summed = view.made_by(column, "ReduceSum")
    if summed is not None and product.second_turned:  # the row itself
        return [*nodes, summed] if view.same(summed.inputs[0], b) and _over(view, summed, -2) else None
    if summed is not None:  # over the last axis of B'
        keys = transposed(view, summed.inputs[0], nodes)
        return [*nodes, summed] if keys is not None and view.same(keys, b) and _over(view, summed, -1) else None
    keys = transposed(view, column, nodes)
    summed = None if keys is None or product.second_turned else view.made_by(keys, "ReduceSum")
    return [*nodes, summed] if summed is not None and view.same(summed.inputs[0], b) and _over(view, summed, -2) else None


def _by_sum(view: View, name: str, a: str, b: str, product: Node) -> list[Node] | None:
    """The sum over the last axis of ``A * sum_j b_j``, or of the weights ``A B'``."""
    summed = view.made_by(name, "ReduceSum")
    if summed is None or not _over(view, summed, -1):
        return None
    inner, passed = view.behind(summed.inputs[0])
    if inner == product.outputs[0]:
        return [summed, *passed] if _is_weights(view, product, b) else None
    times = view.made_by(inner, "Mul")
    if times is None:
        return None
    for i in (0, 1):
        row = view.made_by(view.behind(times.inputs[1 - i])[0], "ReduceSum")
        if view.same(times.inputs[i], a) and row is not None and view.same(row.inputs[0], b) and _over(view, row, -2):
            return [summed, *passed, times, *view.behind(times.inputs[1 - i])[1], row]
    return None


def _is_weights(view: View, product: Node, b: str) -> bool:
    """``A B'`` itself."""
    parts = product_of(product)
    if parts is None:
        return False
    return (parts.second if parts.second_turned else transposed(view, parts.second, [])) == b


def _over(view: View, node: Node, axis: int) -> bool:
    """A sum over one axis that keeps it."""
    shape = view.shape(node.inputs[0])
    return shape is not None and bool(int(node.attrs.get("keepdims", 1))) and view.axes(node, len(shape)) == (len(shape) + axis,)
