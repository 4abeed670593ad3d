"""The core of dot-product attention: ``softmax(s Q K' + B) V``, however it is spelled.

The pivot is Softmax. Forward from it: conversions, a guard against rows that are masked everywhere (IsNaN with Where), the
product with V. Backward: masks and bias, soft-cap, constant factors on the logits, on Q or on K, the product of Q and K.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import inf

import numpy as np

from lipaudit.graph.ir import Constant, Node
from lipaudit.topology.match import Match, Mismatch, View, float_above
from lipaudit.topology.patterns.masks import is_causal, only_causal
from lipaudit.topology.patterns.products import product_of, product_with_values, scores_behind, swaps_last

__all__ = ["Core", "attention", "logits", "operands", "same_shapes"]

_LIMIT = 12


@dataclass
class Core:
    """What the walk has read so far."""

    nodes: list[Node]
    values: str = ""
    final: str = ""
    guard: bool = False
    query: str = ""
    key: str = ""
    key_transposed: bool = True
    scale: Fraction = Fraction(1)
    bias: str = ""
    softcap: float = 0.0
    constants: list[Constant] = field(default_factory=list)
    helpers: list[Node] = field(default_factory=list)


def attention(view: View, softmax: Node) -> Match | None:
    """Pivot Softmax over the last axis."""
    found = Core([softmax])
    _forward(view, softmax.outputs[0], found)
    shape = view.shape(softmax.inputs[0])
    axis = int(softmax.attrs.get("axis", -1 if softmax.version >= 13 else 1))
    if axis != -1 and (shape is None or axis % len(shape) != len(shape) - 1):
        raise Mismatch("its Softmax is not over the last axis")
    logits(view, softmax.inputs[0], found)
    operands(view, found)
    if found.scale <= 0:
        raise Mismatch("the factor on its logits is not positive")
    same_shapes(view, found)
    causal = _mask(view, found)
    covered = view.close(found.nodes, found.final)
    attrs = {
        "k_transposed": int(found.key_transposed),
        "scale": float_above(found.scale),
        "causal": int(causal),
        "softcap": found.softcap,
        "nan_guard": int(found.guard),
    }
    fused = Node("", "Attention", (found.query, found.key, found.values, found.bias), (found.final,), "lipaudit", 1, attrs)
    return Match(fused, covered, tuple(found.constants), tuple(found.helpers))


def _forward(view: View, value: str, found: Core) -> None:
    """From the weights to the product with V."""
    for _ in range(_LIMIT):
        value, passed = view.beyond(value)
        found.nodes += passed
        users = view.users(value)
        guard = _guard(view, users, value)
        if guard is not None:
            found.nodes += list(users)
            found.guard, value = True, guard
            continue
        user = view.sole_user(value)
        if user is None:
            raise Mismatch(f"its weights {value!r} have several readers or are an output")
        met = product_with_values(view, value)
        if met is None or met[1].factor != 1:
            raise Mismatch(f"its weights go into {user.kind} {user.name!r}, not into a product with values")
        found.nodes.append(user)
        found.values, found.final = met[1].second, user.outputs[0]
        return
    raise Mismatch("no product with values follows its weights")


def _guard(view: View, users: tuple[Node, ...], value: str) -> str | None:
    """``Where(IsNaN(p), 0, p)``: rows that are masked everywhere give 0."""
    if len(users) != 2 or value in view.outputs:
        return None
    test = next((u for u in users if not u.domain and u.op == "IsNaN"), None)
    choice = next((u for u in users if not u.domain and u.op == "Where"), None)
    if test is None or choice is None or choice.inputs[0] != test.outputs[0] or choice.inputs[2] != value:
        return None
    return choice.outputs[0] if view.scalar(choice.inputs[1]) == 0.0 else None


def logits(view: View, value: str, found: Core) -> None:
    """Back from the input of Softmax to the product of Q and K."""
    for _ in range(_LIMIT):
        value, passed = view.behind(value)
        found.nodes += passed
        node = view.producer(value)
        if node is None:
            raise Mismatch("its logits are an input of the graph")
        product = product_of(node)
        if product is not None:
            query, key, query_swapped, key_swapped, factor = product
            if query_swapped:
                raise Mismatch(f"{node.name!r} transposes its first operand")
            if query not in view.moving and key not in view.moving:
                raise Mismatch("its logits do not depend on data")
            found.nodes.append(node)
            found.query, found.key, found.key_transposed = query, key, not key_swapped
            found.scale *= factor
            return
        if node.domain or node.op not in ("Add", "Mul", "Div", "Where"):
            raise Mismatch(f"its logits come from {node.kind} {node.name!r}, not from a product of queries and keys")
        found.nodes.append(node)
        value = {"Add": _bias, "Where": _where}.get(node.op, _factor)(view, node, found)
    raise Mismatch("no product of queries and keys before its Softmax")


def _bias(view: View, node: Node, found: Core) -> str:
    """An additive mask or bias; the other operand leads to the product."""
    if found.bias:
        raise Mismatch("its logits have two masks or biases")
    if found.scale != 1 or found.softcap:
        raise Mismatch(f"a bias is added in {node.name!r}, before its logits are scaled or capped")
    products = [name for name in node.inputs if name in view.moving and scores_behind(view, name)]
    if len(products) != 1 or len(node.inputs) != 2:
        raise Mismatch(
            f"{node.name!r} adds several products of queries and keys"
            if products
            else f"no product of queries and keys goes into {node.name!r}"
        )
    found.bias = view.other(node, products[0]) or ""
    if not found.bias:
        raise Mismatch(f"{node.name!r} adds its logits to themselves")
    return products[0]


def _where(view: View, node: Node, found: Core) -> str:
    """A boolean mask: entries that are not selected are exactly -inf."""
    if found.bias:
        raise Mismatch("its logits have two masks or biases")
    if found.softcap:
        raise Mismatch(f"a mask is applied in {node.name!r}, before its logits are capped: masked keys keep a weight")
    condition, yes, no = node.inputs
    if condition in view.moving:
        raise Mismatch(f"the mask {condition!r} depends on data")
    fill_yes, fill_no = view.scalar(yes), view.scalar(no)
    fill = fill_no if fill_no is not None else fill_yes
    if fill is None:
        raise Mismatch(f"{node.name!r} chooses between two values")
    if fill != -inf:
        raise Mismatch(f"masked logits are set to {fill:g}, not to -inf: they keep a weight that no additive mask describes")
    if fill_no is not None:
        found.bias = condition
        return yes
    found.bias = _negated(view, condition, found)
    return no


def _negated(view: View, condition: str, found: Core) -> str:
    """The name of ``not condition``: True where a key takes part, as the operator Attention has it."""
    maker = view.made_by(condition, "Not")
    if maker is not None:
        return maker.inputs[0]
    name = f"{condition}/not"
    constant = view.constant(condition)
    if constant is not None:
        found.constants.append(Constant.of(name, ~constant.array().astype(bool)))
    else:
        found.helpers.append(Node(name, "Not", (condition,), (name,), "", 1))
    return name


def _factor(view: View, node: Node, found: Core) -> str:
    """A constant factor on the logits, or the last step of a soft-cap ``c tanh(logits / c)``."""
    constants = [i for i, name in enumerate(node.inputs) if view.scalar(name) is not None]
    if len(constants) != 1 or (node.op == "Div" and constants != [1]):
        raise Mismatch(f"{node.name!r} multiplies its logits by a value that is not one constant")
    constant = view.scalar(node.inputs[constants[0]])
    inner = node.inputs[1 - constants[0]]
    assert constant is not None
    if constant == 0:
        raise Mismatch("a factor on its logits is 0")
    factor = Fraction(constant) if node.op == "Mul" else 1 / Fraction(constant)
    plain, passed = view.behind(inner)
    tanh = view.made_by(plain, "Tanh")
    if tanh is None:
        found.scale *= factor
        return inner
    if found.softcap or found.scale != 1 or factor <= 0:
        raise Mismatch("its soft-cap is followed by another factor")
    found.nodes += [*passed, tanh]
    within, between = view.behind(tanh.inputs[0])
    scaled = view.made_by(within, "Mul", "Div")
    if scaled is not None:
        position = next((i for i, name in enumerate(scaled.inputs) if view.scalar(name) is not None), None)
        if position is not None and not (scaled.op == "Div" and position == 0):
            divisor = Fraction(view.scalar(scaled.inputs[position]) or 1.0)
            divisor = divisor if scaled.op == "Div" else 1 / divisor
            if divisor != factor:
                found.scale *= factor / divisor  # c tanh(l / d) = c tanh((c / d) l / c)
            found.softcap = float(constant) if node.op == "Mul" else float_above(factor)
            found.nodes += [*between, scaled]
            return scaled.inputs[1 - position]
    raise Mismatch("its soft-cap does not divide the logits by its own constant")


def operands(view: View, found: Core) -> None:
    """Constant factors on Q and K, and the transposition of K."""
    _side(view, found, key=False)
    _side(view, found, key=True)


def _side(view: View, found: Core, *, key: bool) -> None:
    """Constant factors on Q or on K, and the transposition of K, where nothing else reads them."""
    value = found.key if key else found.query
    pending: list[Node] = []
    scale, swapped = found.scale, found.key_transposed
    for _ in range(_LIMIT):
        node = view.producer(value)
        if node is None or node.domain or view.sole_user(value) is None:
            return
        if view.is_transparent(node):
            pending.append(node)
            value = node.inputs[0]
            continue
        if node.op in ("Mul", "Div"):
            at = next((i for i, name in enumerate(node.inputs) if view.scalar(name) is not None), None)
            if at is None or (node.op == "Div" and at == 0) or not (constant := view.scalar(node.inputs[at])):
                return
            scale = scale * Fraction(constant) if node.op == "Mul" else scale / Fraction(constant)
            value = node.inputs[1 - at]
        elif key and node.op == "Transpose" and swaps_last(view, node):
            swapped = not swapped
            value = node.inputs[0]
        else:
            return
        pending.append(node)
        found.nodes += pending
        pending = []
        found.scale, found.key_transposed = scale, swapped
        if key:
            found.key = value
        else:
            found.query = value


def same_shapes(view: View, found: Core) -> None:
    """The mask must not broadcast the result beyond what Q, K and V give."""
    shapes = [view.shape(name) for name in (found.query, found.key, found.values)]
    result, query, values = view.shape(found.final), shapes[0], shapes[2]
    if result is None or query is None or values is None or shapes[1] is None:
        return
    if min(len(shape) for shape in shapes if shape is not None) < 2:
        raise Mismatch("queries, keys or values are vectors")
    try:
        lead = np.broadcast_shapes(*(shape[:-2] for shape in shapes if shape is not None))
    except ValueError:
        raise Mismatch("queries, keys and values do not fit together") from None
    if result != (*lead, query[-2], values[-1]):
        raise Mismatch("its mask broadcasts the result")
    if shapes[1][-1 if found.key_transposed else -2] != values[-2]:
        raise Mismatch("its mask broadcasts the keys")


def _mask(view: View, found: Core) -> bool:
    """Whether the mask is causal; a mask that is nothing else is dropped."""
    query, key = view.shape(found.query), view.shape(found.key)
    if not found.bias or query is None or key is None:
        return False
    rows, columns = query[-2], key[-1] if found.key_transposed else key[-2]
    if rows != columns or rows < 2:
        return False
    extra = {constant.name: constant for constant in found.constants}
    if not is_causal(view, found.bias, rows, extra):
        return False
    if only_causal(view, found.bias, rows, extra):
        found.bias = ""
        found.constants.clear()
    return True
