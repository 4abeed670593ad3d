"""Products of two matrices, however they are spelled, and the search for the product of scores that all kinds of attention share."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from lipaudit.graph.ir import Constant, Node
from lipaudit.topology.match import Match, View

__all__ = ["Product", "einsum", "product_of", "product_with_values", "scores_behind", "swaps_last", "transposed"]

_LIMIT = 12
_BETWEEN = frozenset({"Add", "Mul", "Div", "Tanh", "Where"})
"""What may stand between a product of scores and the weights: biases and masks, factors, a soft cap."""


class Product(NamedTuple):
    """``factor * op(first) op(second)`` on the last two axes; op swaps them where ``.._turned``."""

    first: str
    second: str
    first_turned: bool
    second_turned: bool
    factor: Fraction


def product_of(node: Node | None) -> Product | None:
    """What a product of two matrices computes; None for any other node (Einsum: :func:`einsum` comes before)."""
    if node is None:
        return None
    if node.kind == "ai.onnx::MatMul":
        return Product(node.inputs[0], node.inputs[1], False, False, Fraction(1))
    fused = node.kind == "com.microsoft::FusedMatMul" and not node.attrs.get("transBatchA") and not node.attrs.get("transBatchB")
    if fused or (node.kind == "ai.onnx::Gemm" and len([name for name in node.inputs if name]) == 2):
        alpha = Fraction(float(node.attrs.get("alpha", 1.0)))
        return Product(node.inputs[0], node.inputs[1], bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0)), alpha)
    return None


def product_with_values(view: View, weights: str) -> tuple[Node, Product] | None:
    """The only reader of ``weights``, if it multiplies them from the left to something else, untransposed."""
    user = view.sole_user(weights)
    product = product_of(user)
    if user is None or product is None or product.first != weights or product.second == weights:
        return None
    return None if product.first_turned or product.second_turned else (user, product)


def scores_behind(view: View, name: str) -> bool:
    """True if a product of two moving matrices (scaled, capped, biased, masked) lies behind ``name``."""
    for _ in range(_LIMIT):
        name, _passed = view.behind(name)
        node = view.producer(name)
        product = product_of(node)
        if product is not None:
            return product.first in view.moving and product.second in view.moving
        if node is None or node.domain or node.op not in _BETWEEN:
            return False
        behind = [operand for operand in node.inputs if operand in view.moving]
        if len(behind) != 1:
            return False
        name = behind[0]
    return False


def swaps_last(view: View, node: Node) -> bool:
    """Whether a Transpose swaps the last two axes and leaves the others."""
    perm = node.attrs.get("perm")
    if perm is None:
        shape = view.shape(node.inputs[0])
        return shape is not None and len(shape) == 2
    n = len(perm)
    return n >= 2 and tuple(perm) == (*range(n - 2), n - 1, n - 2)


def transposed(view: View, name: str, nodes: list[Node]) -> str | None:
    """B, where ``name`` is ``B'`` on the last two axes; what lies between is appended to ``nodes``."""
    plain, passed = view.behind(name)
    node = view.made_by(plain, "Transpose")
    if node is None or not swaps_last(view, node):
        return None
    nodes += [*passed, node]
    return node.inputs[0]


# ---------------------------------------------------------------------- Einsum


def einsum(view: View, node: Node) -> Match | None:
    """Pivot Einsum: one that is a batched product becomes MatMul, or FusedMatMul where an operand is transposed."""
    read = _batched(str(node.attrs.get("equation", ""))) if len(node.inputs) == 2 else None
    if read is None:
        return None
    order, turned, batched = read
    names = [node.inputs[i] for i in order]
    constants: list[Constant] = []
    if not batched:  # a matrix for all members of the batch: MatMul broadcasts it, FusedMatMul is not asked to
        stored = view.constant(names[1])
        if turned[0] or (turned[1] and stored is None):
            return None
        if turned[1] and stored is not None:
            flipped = _flipped(stored)
            constants, names[1], turned = [flipped], flipped.name, (False, False)
    final = node.outputs[0]
    if not any(turned):
        fused = Node("", "MatMul", tuple(names), (final,), "", 13)
    else:
        attrs = {"transA": int(turned[0]), "transB": int(turned[1])}
        fused = Node("", "FusedMatMul", tuple(names), (final,), "com.microsoft", 1, attrs)
    return Match(fused, (node,), tuple(constants))


def _flipped(stored: Constant) -> Constant:
    return Constant(f"{stored.name}/transposed", stored.dtype, stored.shape[::-1], lambda: np.swapaxes(stored.array(), 0, 1))


def _batched(equation: str) -> tuple[tuple[int, int], tuple[bool, bool], bool] | None:
    """Order of the operands, which are transposed, and whether the second has the batch; None if it is no such product."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2:
        return None
    for order in ((0, 1), (1, 0)):
        a, b = terms[order[0]], terms[order[1]]
        batch, i, k = out[:-2], out[-2:-1], out[-1:]
        letters = batch.replace("...", "", 1) + i + k
        if not i or "." in letters or len(set(letters)) != len(letters) or not a.startswith(batch) or a.count(".") != batch.count("."):
            continue
        own, other = a[len(batch) :], b[len(batch) :] if b.startswith(batch) else b
        batched = b.startswith(batch)
        if len(own) != 2 or len(other) != 2 or i not in own or k not in other:
            continue
        j = own.replace(i, "", 1)
        if j in letters or other.replace(k, "", 1) != j or not j.isalpha():
            continue
        return order, (own[0] != i, other[0] != j), batched
    return None
