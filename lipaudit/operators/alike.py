"""Whether two nested graphs compute the same value: equal operators on equal values, down to what both capture."""

from __future__ import annotations

import numpy as np

from lipaudit.graph.ir import Constant, Graph, Node

__all__ = ["computed_alike"]

_MOST = 256


def computed_alike(first: Graph, left: str, second: Graph, right: str) -> bool:
    """True if ``left`` of one graph and ``right`` of the other are certainly one function of the captured values.

    Both graphs read no inputs of their own (branches of If). Nodes with nested graphs, random numbers and large graphs count as different.
    """
    stack, seen = [(left, right)], set[tuple[str, str]]()
    while stack:
        pair = stack.pop()
        if pair in seen:
            continue
        seen.add(pair)
        if len(seen) > _MOST:
            return False
        a, b = pair
        if not a or not b:
            if a != b:
                return False
            continue
        one, two = first.producer.get(a), second.producer.get(b)
        if one is None and two is None:
            if not _same_leaf(first, a, second, b):
                return False
        elif one is None or two is None or not _same_operator(one, two) or one.outputs.index(a) != two.outputs.index(b):
            return False
        else:
            stack.extend(zip(one.inputs, two.inputs, strict=True))
    return True


def _same_leaf(first: Graph, a: str, second: Graph, b: str) -> bool:
    one, two = first.constants.get(a), second.constants.get(b)
    if one is None and two is None:
        return a == b and a in first.captures and a in second.captures
    return one is not None and two is not None and _same_constant(one, two)


def _same_constant(one: Constant, two: Constant) -> bool:
    if (one.dtype, one.shape) != (two.dtype, two.shape) or one.size > 1 << 16:
        return False
    return bool(np.array_equal(one.array(), two.array()))


def _same_operator(one: Node, two: Node) -> bool:
    if (one.kind, one.version, len(one.inputs), one.attrs.keys()) != (two.kind, two.version, len(two.inputs), two.attrs.keys()):
        return False
    if one.op.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")):
        return False
    for name, value in one.attrs.items():
        other = two.attrs[name]
        if isinstance(value, Graph) or isinstance(other, Graph):
            return False
        if isinstance(value, Constant) or isinstance(other, Constant):
            if not (isinstance(value, Constant) and isinstance(other, Constant) and _same_constant(value, other)):
                return False
        elif value != other:
            return False
    return True
