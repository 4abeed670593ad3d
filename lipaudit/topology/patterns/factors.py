"""Products with constants: the common part of all spelled-out activations.

An activation is spelled as ``k * x * g(u)`` where u is a multiple (or a polynomial) of the same x; exporters place the
constant factors anywhere. These helpers walk back to candidates for x and forward over the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Mismatch, View, exact_float

__all__ = ["Product", "Scaled", "multiples", "polynomial", "product"]

_STEPS = 4


@dataclass(frozen=True, slots=True)
class Scaled:
    """``name * num / den`` is the value that was asked about; ``nodes`` lie between."""

    name: str
    num: Fraction
    den: Fraction
    nodes: tuple[Node, ...] = ()


def _step_back(view: View, name: str) -> tuple[str, Fraction, Fraction, Node] | None:
    """One constant factor (or transparent node) behind ``name``: what lies behind, factor, divisor, node."""
    node = view.producer(name)
    if node is None or node.domain:
        return None
    if view.is_transparent(node):
        return node.inputs[0], Fraction(1), Fraction(1), node
    if node.op == "Neg":
        return node.inputs[0], Fraction(-1), Fraction(1), node
    if node.op == "Mul" and len(node.inputs) == 2:
        for i in (0, 1):
            factor = view.scalar(node.inputs[i])
            if factor is not None and view.scalar(node.inputs[1 - i]) is None:
                return node.inputs[1 - i], Fraction(factor), Fraction(1), node
    if node.op == "Div" and (divisor := view.scalar(node.inputs[1])) is not None and divisor != 0:
        return node.inputs[0], Fraction(1), Fraction(divisor), node
    return None


def multiples(view: View, name: str) -> list[Scaled]:
    """Values of which ``name`` is a constant multiple, nearest first: itself, what a Mul by a constant was applied to, ..."""
    found = [Scaled(name, Fraction(1), Fraction(1))]
    while len(found) <= _STEPS and (step := _step_back(view, found[-1].name)) is not None:
        last = found[-1]
        found.append(Scaled(step[0], last.num * step[1], last.den * step[2], (*last.nodes, step[3])))
    return found


@dataclass(frozen=True, slots=True)
class Product:
    """``final = k * x * g``: x, the constant k, and what lies between g and ``final``.

    ``num`` and ``den``: the argument of g is ``x * num / den`` (only if g's argument was given as multiples).
    """

    final: str
    x: str
    k: Fraction
    num: Fraction
    den: Fraction
    nodes: tuple[Node, ...]


def product(view: View, gate: str, arguments: list[Scaled], wanted: Fraction | None) -> Product:
    """Follow ``gate`` forward to ``k * x * gate``, with x one of ``arguments``.

    Trailing constant factors after x are taken in only while they lead to k == ``wanted`` (0.5 for GELU).

    Raises
    ------
    Mismatch
        The value is used otherwise.
    """
    value, k, nodes = gate, Fraction(1), []
    for _ in range(2 * _STEPS):
        value, passed = view.beyond(value)
        nodes.extend(passed)
        user = view.sole_user(value)
        if user is None:
            raise Mismatch(f"{value!r} has several readers or is an output, so it is not one factor of a product with its argument")
        if user.domain or user.op not in ("Mul", "Div") or (user.op == "Div" and user.inputs[0] != value):
            raise Mismatch(f"its result goes to {user.op} {user.name!r}, not into a product with its argument")
        other = view.other(user, value)
        if other is None:
            raise Mismatch(f"{user.name!r} multiplies the value with itself")
        nodes.append(user)
        constant = view.scalar(other)
        if constant is not None:
            if constant == 0:
                raise Mismatch(f"a factor in {user.name!r} is 0")
            k = k * Fraction(constant) if user.op == "Mul" else k / Fraction(constant)
            value = user.outputs[0]
            continue
        if user.op == "Div":
            raise Mismatch(f"{user.name!r} divides by a value that is not constant")
        for factor in multiples(view, other):
            for argument in arguments:
                if view.same(factor.name, argument.name):
                    k = k * factor.num / factor.den
                    value, k, trailing = _trailing(view, user.outputs[0], k, wanted)
                    inner = (*arguments_between(argument), *factor.nodes)
                    return Product(value, argument.name, k, argument.num, argument.den, (*inner, *nodes, *trailing))
        raise Mismatch(f"{user.name!r} multiplies it with another value than its own argument")
    raise Mismatch("too many constant factors")


def arguments_between(argument: Scaled) -> tuple[Node, ...]:
    """The nodes between an argument and the function."""
    return argument.nodes


def _trailing(view: View, value: str, k: Fraction, wanted: Fraction | None) -> tuple[str, Fraction, list[Node]]:
    """Constant factors after the product, if they make k the wanted one."""
    if wanted is None or k == wanted:
        return value, k, []
    at, factor, nodes = value, k, []
    for _ in range(_STEPS):
        at, passed = view.beyond(at)
        user = view.sole_user(at)
        if user is None or user.domain or user.op not in ("Mul", "Div"):
            break
        other = view.other(user, at)
        constant = view.scalar(other) if other is not None else None
        if not constant or (user.op == "Div" and user.inputs[0] != at):
            break
        factor = factor * Fraction(constant) if user.op == "Mul" else factor / Fraction(constant)
        nodes += [*passed, user]
        at = user.outputs[0]
        if factor == wanted:
            return at, factor, nodes
    return value, k, []


def polynomial(view: View, name: str, x: str, limit: int = 16) -> tuple[dict[int, Fraction], list[Node]] | None:
    """Coefficients by degree of ``name`` as a polynomial in ``x``, exactly, and the nodes that spell it.

    None if another value than x and stored scalars takes part, if the degree exceeds 3, or after ``limit`` nodes.
    """
    memo: dict[str, dict[int, Fraction]] = {}
    nodes: list[Node] = []
    stack = [name]
    while stack:
        current = stack[-1]
        if current in memo:
            stack.pop()
            continue
        if current == x or view.same(current, x):
            memo[stack.pop()] = {1: Fraction(1)}
            continue
        constant = view.scalar(current)
        if constant is not None:
            memo[stack.pop()] = {0: Fraction(constant)} if constant else {}
            continue
        node = view.producer(current)
        if (
            node is None
            or node.domain
            or len(nodes) >= limit
            or not (node.op in ("Add", "Sub", "Mul", "Div", "Pow", "Neg") or view.is_transparent(node))
        ):
            return None
        missing = [operand for operand in node.inputs if operand not in memo]
        if missing:
            stack.extend(missing)
            continue
        result = _combine(node.op, [memo[operand] for operand in node.inputs])
        if result is None or max(result, default=0) > 3:
            return None
        memo[stack.pop()] = result
        nodes.append(node)
    return memo[name], nodes


def _combine(op: str, terms: list[dict[int, Fraction]]) -> dict[int, Fraction] | None:
    a = terms[0]
    if op in ("Add", "Sub"):
        sign = 1 if op == "Add" else -1
        total = {d: a.get(d, Fraction(0)) + sign * terms[1].get(d, Fraction(0)) for d in {*a, *terms[1]}}
    elif op == "Mul":
        total = _times(a, terms[1])
    elif op == "Div":
        if set(terms[1]) != {0}:
            return None
        total = {d: c / terms[1][0] for d, c in a.items()}
    elif op == "Pow":
        exponent = exact_float(terms[1].get(0, Fraction(0)))
        if set(terms[1]) != {0} or exponent not in (1.0, 2.0, 3.0):
            return None
        total = {0: Fraction(1)}
        for _ in range(int(exponent)):
            total = _times(total, a)
    elif op == "Neg":
        total = {d: -c for d, c in a.items()}
    else:
        total = a
    return {d: c for d, c in total.items() if c}


def _times(a: dict[int, Fraction], b: dict[int, Fraction]) -> dict[int, Fraction]:
    total: dict[int, Fraction] = {}
    for i, p in a.items():
        for j, q in b.items():
            total[i + j] = total.get(i + j, Fraction(0)) + p * q
    return total
