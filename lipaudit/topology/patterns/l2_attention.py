"""L2 attention with tied queries and keys: ``softmax_j(-tau |q_i - q_j|^2) (q_j M + b)`` (Kim, Papamakarios, Mnih 2021, arXiv 2006.04710).

The pivot is Softmax. Backward from it, the logits are read as ``a |q_i|^2 + b |q_j|^2 + c q_i.q_j``; the first term is the same for
all keys and cancels, the others must be ``-tau`` and ``2 tau``. The values must be the queries themselves or a linear map of
them: other values have no constant on all reals (x may move along the kernel of the queries).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View
from lipaudit.topology.patterns.products import Product, product_of, product_with_values, swaps_last, transposed

__all__ = ["l2_attention"]

_LIMIT = 24


@dataclass
class _Logits:
    """Coefficients of ``|q_i|^2`` (rows), ``|q_j|^2`` (columns) and ``q_i.q_j``, the rows q, and the nodes that compute them."""

    nodes: list[Node]
    query: str = ""
    columns: Fraction = Fraction(0)
    products: Fraction = Fraction(0)
    pending: list[tuple[str, Fraction]] = field(default_factory=list)

    def rows_are(self, name: str) -> None:
        """All terms must be of the same rows."""
        if self.query not in ("", name):
            raise Mismatch(f"its logits are of {self.query!r} and of {name!r}: queries and keys are not tied")
        self.query = name


def l2_attention(view: View, softmax: Node) -> Match | None:
    """Pivot Softmax over the last axis."""
    shape = view.shape(softmax.inputs[0])
    axis = int(softmax.attrs.get("axis", -1 if softmax.version >= 13 else 1))
    if shape is None or len(shape) < 2 or shape[-1] != shape[-2] or axis % len(shape) != len(shape) - 1:
        return None
    found = _Logits([softmax])
    found.pending.append((softmax.inputs[0], Fraction(1)))
    while found.pending:
        if len(found.nodes) > _LIMIT:
            return None
        if not _term(view, *found.pending.pop(), found):
            return None  # the logits are of another form, of which the pattern of dot products speaks
    if found.columns == 0:
        return None
    if found.columns >= 0 or found.products != -2 * found.columns:
        raise Mismatch(f"its logits are {found.columns}|q_j|^2 + {found.products} q_i.q_j, which is no negative squared distance")
    product, values, weight, bias = _values(view, softmax, found)
    rows = view.shape(found.query)
    if rows is None or shape != (*rows[:-1], rows[-2]) or view.shape(product.outputs[0]) is None:
        raise Mismatch("its logits are broadcast")
    covered = view.close([*found.nodes, *values, product], product.outputs[0])
    attrs = {"tau": float(-found.columns)}
    return Match(Node("", "L2Attention", (found.query, weight, bias), (product.outputs[0],), "lipaudit", 1, attrs), covered)


def _values(view: View, softmax: Node, found: _Logits) -> tuple[Node, list[Node], str, str]:
    """The product with the values, the nodes that make them, and their weight and bias ("" for none)."""
    weights, passed = view.beyond(softmax.outputs[0])
    met = product_with_values(view, weights)
    if met is None or met[1].factor != 1:
        raise Mismatch("its weights do not go into one product with values")
    product = met[0]
    nodes, bias = list(passed), ""
    value = _behind(view, met[1].second, nodes)
    if value == found.query:
        return product, nodes, "", ""
    added = view.made_by(value, "Add")
    if added is not None:
        stored = [name for name in added.inputs if view.constant(name) is not None]
        if len(stored) != 1 or len(view.shape(stored[0]) or ()) != 1:
            raise Mismatch("its values are a sum")
        bias = stored[0]
        nodes.append(added)
        value = _behind(view, view.other(added, bias) or "", nodes)
    linear = view.made_by(value, "MatMul")
    if linear is None or _behind(view, linear.inputs[0], nodes) != found.query or view.constant(linear.inputs[1]) is None:
        raise Mismatch("its values are not a linear map of the same rows as its queries: on all reals there is no constant")
    return product, [*nodes, linear], linear.inputs[1], bias


def _behind(view: View, name: str, nodes: list[Node]) -> str:
    value, passed = view.behind(name)
    nodes += passed
    return value


def _term(view: View, name: str, factor: Fraction, found: _Logits) -> bool:
    """One summand of the logits; False if it is none of the known ones."""
    name = _behind(view, name, found.nodes)
    node = view.producer(name)
    if node is None:
        return False
    product = product_of(node)
    if product is not None:
        return _product(view, node, product, factor, found)
    if node.domain:
        return False
    if node.op in ("Add", "Sub") and len(node.inputs) == 2:
        found.nodes.append(node)
        found.pending += [(node.inputs[0], factor), (node.inputs[1], -factor if node.op == "Sub" else factor)]
        return True
    if node.op == "Neg":
        found.nodes.append(node)
        found.pending.append((node.inputs[0], -factor))
        return True
    if node.op in ("Mul", "Div"):
        at = next((i for i, operand in enumerate(node.inputs) if view.scalar(operand) is not None), None)
        constant = None if at is None else view.scalar(node.inputs[at])
        if at is None or not constant or (node.op == "Div" and at == 0):
            return False
        found.nodes.append(node)
        found.pending.append((node.inputs[1 - at], factor * Fraction(constant) if node.op == "Mul" else factor / Fraction(constant)))
        return True
    if node.op == "ReduceSum":
        return _squares(view, node, factor, found, transposed=False)
    if node.op == "Transpose" and swaps_last(view, node):
        inner = view.made_by(_behind(view, node.inputs[0], found.nodes), "ReduceSum")
        found.nodes.append(node)
        return inner is not None and _squares(view, inner, factor, found, transposed=True)
    return False


def _product(view: View, node: Node, product: Product, factor: Fraction, found: _Logits) -> bool:
    """``q q'``."""
    if product.first_turned:
        return False
    nodes: list[Node] = [node]
    left = _behind(view, product.first, nodes)
    right = product.second if product.second_turned else transposed(view, product.second, nodes)
    if right is None or _behind(view, right, nodes) != left:
        return False
    found.nodes += nodes
    found.rows_are(left)
    found.products += factor * product.factor
    return True


def _squares(view: View, node: Node, factor: Fraction, found: _Logits, *, transposed: bool) -> bool:
    """``|q_i|^2`` as a column, ``|q_j|^2`` as its transposition."""
    name = node.inputs[0]
    shape = view.shape(name)
    if shape is None or view.axes(node, len(shape)) != (len(shape) - 1,) or not int(node.attrs.get("keepdims", 1)):
        return False
    nodes: list[Node] = [node]
    square = view.producer(_behind(view, name, nodes))
    if square is None or square.domain:
        return False
    doubled = square.op == "Mul" and square.inputs[0] == square.inputs[1]
    if not doubled and not (square.op == "Pow" and view.scalar(square.inputs[1]) == 2.0):
        return False
    nodes.append(square)
    found.rows_are(_behind(view, square.inputs[0], nodes))
    found.nodes += nodes
    if transposed:
        found.columns += factor
    return True
