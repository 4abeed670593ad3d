"""What every pattern is made of: a view of the graph to look at, and the answer, a match or the reason why not.

A pattern is a function ``(View, Node) -> Match | Refusal | None``. It is called with each node of the operators that it
names as pivots, walks from there and claims the nodes that one fused node will stand for. Real arithmetic is what counts:
conversions between float types and inference-time Dropout are looked through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite

from lipaudit.graph.ir import Constant, Graph, Node

__all__ = ["WIDE", "Match", "Mismatch", "Pattern", "Refusal", "View", "exact_float", "exact_ratio", "float_above", "float_below"]


WIDE = frozenset({"float16", "bfloat16", "float32", "float64"})
"""Formats whose rounding is not part of a bound; that of the 8-bit formats and narrower is, as a jump."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A pivot that began like a pattern but is none: the node, the pattern's name and the reason, for ``inspect --why``."""

    node: str
    pattern: str
    reason: str


@dataclass(frozen=True, slots=True)
class Match:
    """A recognised computation: the node that stands for it (its ``covers`` are filled in by ``fuse``).

    ``covered`` are the nodes that it replaces; the last of them in graph order produces ``fused.outputs[0]``.
    ``constants`` and ``helpers`` are stored values and (unmoving) nodes that the fused node needs and the graph lacks.
    """

    fused: Node
    covered: tuple[Node, ...]
    constants: tuple[Constant, ...] = ()
    helpers: tuple[Node, ...] = ()


class Mismatch(Exception):
    """Raised inside a pattern to leave it with a reason; never leaves ``fuse``."""


Pattern = Callable[["View", Node], Match | None]
"""Returns None where the pivot does not even begin like the pattern; raises :class:`Mismatch` with the reason where it does."""


@dataclass(frozen=True)
class View:
    """A graph with the questions that patterns ask of it."""

    graph: Graph
    moving: frozenset[str]
    outputs: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", frozenset(self.graph.outputs))

    def producer(self, name: str) -> Node | None:
        """The node that computes ``name``."""
        return self.graph.producer.get(name)

    def made_by(self, name: str, *ops: str) -> Node | None:
        """The node that computes ``name`` as its first output, if it is one of the ai.onnx operators ``ops``."""
        node = self.graph.producer.get(name)
        return node if node is not None and not node.domain and node.op in ops and node.outputs[0] == name else None

    def users(self, name: str) -> tuple[Node, ...]:
        """The nodes that read ``name``."""
        return self.graph.consumers.get(name, ())

    def sole_user(self, name: str) -> Node | None:
        """The only node that reads ``name``; None if there are others or if it is a graph output."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Static shape, if known."""
        return self.graph.value(name).shape

    def constant(self, name: str) -> Constant | None:
        """The stored tensor behind ``name``."""
        return self.graph.constants.get(name)

    def scalar(self, name: str) -> float | None:
        """The value of a stored tensor of one element, exactly; None for anything else."""
        constant = self.graph.constants.get(name)
        if constant is None or constant.size != 1 or constant.dtype in ("string", ""):
            return None
        if constant.fill is not None:
            return float(constant.fill)
        return float(constant.array().reshape(-1)[0])

    def other(self, node: Node, name: str) -> str | None:
        """The other operand of a binary node; None if both are ``name`` or the node is not binary."""
        if len(node.inputs) != 2 or name not in node.inputs or node.inputs[0] == node.inputs[1]:
            return None
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]

    def is_transparent(self, node: Node) -> bool:
        """A conversion to a wide float type, an Identity, or a Dropout at inference: the identity in real arithmetic."""
        if node.domain:
            return False
        if node.op == "Cast":
            return self.graph.value(node.inputs[0]).is_float and self.graph.value(node.outputs[0]).dtype in WIDE
        if node.op == "Dropout":
            return all(not name for name in node.outputs[1:]) and (len(node.inputs) < 3 or self.scalar(node.inputs[2]) == 0.0)
        return node.op == "Identity"

    def behind(self, name: str) -> tuple[str, list[Node]]:
        """The value behind transparent nodes, and those nodes."""
        passed: list[Node] = []
        while (node := self.producer(name)) is not None and self.is_transparent(node):
            passed.append(node)
            name = node.inputs[0]
        return name, passed

    def beyond(self, name: str) -> tuple[str, list[Node]]:
        """The value after a run of transparent nodes that are the only reader each, and those nodes."""
        passed: list[Node] = []
        while (node := self.sole_user(name)) is not None and self.is_transparent(node):
            passed.append(node)
            name = node.outputs[0]
        return name, passed

    def same(self, a: str, b: str, depth: int = 4) -> bool:
        """True if two values are computed alike from the same values (value numbering on demand)."""
        stack = [(a, b, depth)]
        while stack:
            left, right, left_depth = stack.pop()
            left, right = self.behind(left)[0], self.behind(right)[0]
            if left == right:
                continue
            one, two = self.scalar(left), self.scalar(right)
            if one is not None and one == two and self.shape(left) == self.shape(right):
                continue
            first, second = self.producer(left), self.producer(right)
            if left_depth == 0 or first is None or second is None or first.kind != second.kind or dict(first.attrs) != dict(second.attrs):
                return False
            if len(first.inputs) != len(second.inputs) or first.outputs.index(left) != second.outputs.index(right):
                return False
            if first.op.startswith(("Random", "Bernoulli", "Multinomial")):
                return False
            stack.extend((x, y, left_depth - 1) for x, y in zip(first.inputs, second.inputs, strict=True))
        return True

    def axes(self, node: Node, rank: int) -> tuple[int, ...] | None:
        """Reduced axes of a Reduce* node, sorted and non-negative, from the attribute or the second input."""
        axes = node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1]:
            constant = self.constant(node.inputs[1])
            if constant is None:
                return None
            axes = tuple(int(a) for a in constant.array().reshape(-1))
        if not axes:
            if int(node.attrs.get("noop_with_empty_axes", 0)):
                return None
            return tuple(range(rank))
        if any(not -rank <= a < rank for a in axes):
            return None
        return tuple(sorted({int(a) % rank for a in axes}))

    def close(self, covered: Iterable[Node], final: str) -> tuple[Node, ...]:
        """``covered`` without repeats, after a check that nothing outside reads what is inside.

        Raises
        ------
        Mismatch
            A value other than ``final`` is a graph output or has another reader.
        """
        nodes = {node.name: node for node in covered}
        for node in nodes.values():
            for name in node.outputs:
                if not name or name == final:
                    continue
                if name in self.outputs:
                    raise Mismatch(f"{name!r} inside it is an output of the graph")
                outsider = next((user for user in self.users(name) if user.name not in nodes), None)
                if outsider is not None:
                    raise Mismatch(f"{name!r} inside it is also read by {outsider.name!r}")
        return tuple(nodes.values())

    def same_shape(self, final: str, x: str) -> None:
        """Raises :class:`Mismatch` if an elementwise result is known to be broadcast beyond its argument ``x``."""
        one, two = self.shape(final), self.shape(x)
        if one is not None and two is not None and one != two:
            raise Mismatch(f"the result has shape {list(one)}, its argument {list(two)}")


def exact_float(value: Fraction) -> float | None:
    """``value`` as a double, if it is one."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) and Fraction(number) == value else None


def exact_ratio(value: Fraction) -> tuple[float, float] | None:
    """``value`` as a quotient of two doubles, if its terms (less powers of two) are doubles."""
    if value == 0:
        return 0.0, 1.0
    low = value.denominator & -value.denominator  # a power of two belongs to the numerator, where it is a matter of the exponent
    num, den = exact_float(Fraction(value.numerator, low)), exact_float(Fraction(value.denominator // low))
    return None if num is None or den is None else (num, den)


def float_above(value: Fraction) -> float:
    """The least double that is not below ``value`` > 0."""
    from math import inf, nextafter

    try:
        number = float(value)
    except OverflowError:
        return inf
    return number if Fraction(number) >= value else nextafter(number, inf)


def float_below(value: Fraction) -> float:
    """The largest double that is not above ``value`` > 0."""
    from math import nextafter

    number = float(value)
    return number if Fraction(number) <= value else nextafter(number, 0.0)
