"""Formulas of the catalogue: a small arithmetic language, evaluated over balls, Taylor series or arrays of intervals.

Numbers are exact decimals and integers (``1.5(2)`` means 1.5 +- 0.2 in the last digit), names are the variable x, pi, inf and
attributes, ``^`` and ``**`` are the power, ``where(a < b, f, g)`` chooses a piece. There is no access to anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol, Self, TypeVar

from lipaudit.bounds.ball import Ball

__all__ = ["Condition", "Formula", "Real", "parse", "parse_condition"]

_UNARY = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf", "erfc", "exp", "floor", "log", "round", "sigmoid",
    "sign", "sin", "sinh", "softplus", "sqrt", "tan", "tanh",
})  # fmt: skip
_SMOOTH_TAILS = frozenset({"erf", "erfc", "exp", "sigmoid", "softplus", "tanh"})
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?(?:\(\d+\))?|\.\d+"
_TOKEN = re.compile(rf"\s*(?:({_NUMBER})|([A-Za-z_]\w*)|(\*\*|<=|>=|==|[-+*/^(),<>]))")
_DEPTH = 60
_LENGTH = 500


class Real(Protocol):
    """What a formula can be evaluated over."""

    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __mul__(self, other: Self, /) -> Self: ...
    def __truediv__(self, other: Self, /) -> Self: ...
    def __neg__(self) -> Self: ...
    def __pow__(self, exponent: int, /) -> Self: ...
    def __abs__(self) -> Self: ...

    def maximum(self, other: Self, /) -> Self:
        """max(x, y)."""
        ...

    def minimum(self, other: Self, /) -> Self:
        """min(x, y)."""
        ...

    @staticmethod
    def select(test: Any, negative: Any, positive: Any) -> Any:
        """``negative`` where the test is < 0, ``positive`` where it is > 0, both where it is open."""
        ...


R = TypeVar("R", bound=Real)


@dataclass(frozen=True, slots=True)
class _Tree:
    """An operation with its operands; ``number`` and ``name`` are leaves."""

    op: str
    parts: tuple[_Tree, ...] = ()
    text: str = ""


class Formula:
    """A parsed formula. ``names`` are the free names (x included, pi and inf not)."""

    def __init__(self, text: str, tree: _Tree) -> None:
        self.text = text
        self.tree = tree
        found = {node.text for node in _walk(tree) if node.op == "name"}
        self.names = frozenset(found - {"pi", "inf"})
        self.has_flat_tails = any(node.op in _SMOOTH_TAILS for node in _walk(tree))

    def evaluate(self, names: Mapping[str, R], lift: Callable[[Ball], R]) -> R:
        """Value over any kind of :class:`Real`; ``lift`` turns a constant into that kind. All ``names`` must be given."""
        return _value(self.tree, names, lift)

    def ball(self, names: Mapping[str, Ball]) -> Ball:
        """Value over balls."""
        return _value(self.tree, names, lambda constant: constant)


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of two formulas."""

    left: Formula
    relation: str
    right: Formula

    def holds(self, names: Mapping[str, Ball]) -> bool | None:
        """True, False, or None where balls leave it open."""
        a, b = self.left.ball(names), self.right.ball(names)
        if self.relation in (">", ">="):
            a, b = b, a
        if self.relation == "==":
            return (True if a.not_above(b) and b.not_above(a) else None) if a.meets(b) else False
        if self.relation in ("<", ">"):
            return True if a.below(b) else (False if b.not_above(a) else None)
        return True if a.not_above(b) else (False if b.below(a) else None)


def _walk(tree: _Tree) -> list[_Tree]:
    found = [tree]
    for node in found:
        found.extend(node.parts)
    return found


def _value(tree: _Tree, names: Mapping[str, R], lift: Callable[[Ball], R]) -> R:
    match tree.op:
        case "number":
            return lift(_number(tree.text))
        case "name":
            if tree.text == "pi":
                return lift(Ball.pi())
            return lift(Ball.of("inf")) if tree.text == "inf" else names[tree.text]
        case "**":
            base, exponent = _value(tree.parts[0], names, lift), tree.parts[1]
            return base ** int(exponent.text) if exponent.op == "number" else base ** -int(exponent.parts[0].text)
        case _:
            parts = [_value(part, names, lift) for part in tree.parts]
    match tree.op:
        case "+":
            return parts[0] + parts[1]
        case "-":
            return parts[0] - parts[1]
        case "*":
            return parts[0] * parts[1]
        case "/":
            return parts[0] / parts[1]
        case "neg":
            return -parts[0]
        case "abs":
            return abs(parts[0])
        case "max":
            return parts[0].maximum(parts[1])
        case "min":
            return parts[0].minimum(parts[1])
        case "where":
            return type(parts[0]).select(parts[0] - parts[1], parts[2], parts[3])
        case function:
            result: R = getattr(parts[0], function)()
            return result


@lru_cache(maxsize=1024)
def _number(text: str) -> Ball:
    digits, _, uncertainty = text.partition("(")
    value = Ball.of(digits)
    if not uncertainty:
        return value if "e" in digits.lower() or "." in digits else Ball.of(int(digits))
    decimals = len(digits.partition(".")[2])
    radius = Fraction(int(uncertainty.rstrip(")")), 10**decimals)
    return Ball.between(Fraction(digits) - radius, Fraction(digits) + radius)


class _Parser:
    """Precedence climbing; raises ``ValueError`` with what was expected."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise ValueError(f"unexpected {text[position:].strip()[:10]!r} in {text!r}")
            kind = "number" if match.group(1) else "name" if match.group(2) else "symbol"
            self.tokens.append((kind, match.group(match.lastindex or 0)))
            position = match.end()
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, symbol: str) -> None:
        if self.peek() != symbol:
            raise ValueError(f"expected {symbol!r} before {self.peek()!r} in {self.text!r}")
        self.at += 1

    def sum(self) -> _Tree:
        self.depth += 1
        if self.depth > _DEPTH:
            raise ValueError("the formula is nested too deeply")
        tree = self.product()
        while (symbol := self.peek()) in ("+", "-"):
            self.at += 1
            tree = _Tree(symbol, (tree, self.product()))
        self.depth -= 1
        return tree

    def product(self) -> _Tree:
        tree = self.signed()
        while (symbol := self.peek()) in ("*", "/"):
            self.at += 1
            tree = _Tree(symbol, (tree, self.signed()))
        return tree

    def signed(self) -> _Tree:
        sign = False
        while self.peek() in ("-", "+"):
            sign ^= self.peek() == "-"
            self.at += 1
        tree = self.power()
        return _Tree("neg", (tree,)) if sign else tree

    def power(self) -> _Tree:
        base = self.atom()
        if self.peek() not in ("**", "^"):
            return base
        self.at += 1
        exponent = self.signed()
        number = exponent.parts[0] if exponent.op == "neg" else exponent
        if number.op != "number" or not number.text.isdigit() or int(number.text) > 64:
            raise ValueError(f"exponents are small integers, in {self.text!r}")
        return _Tree("**", (base, exponent))

    def atom(self) -> _Tree:
        if self.at >= len(self.tokens):
            raise ValueError(f"{self.text!r} ends too early")
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return _Tree("number", (), text)
        if text == "(":
            tree = self.sum()
            self.take(")")
            return tree
        if kind != "name":
            raise ValueError(f"unexpected {text!r} in {self.text!r}")
        if self.peek() != "(":
            return _Tree("name", (), text)
        self.at += 1
        tree = self.where() if text == "where" else self.call(text)
        self.take(")")
        return tree

    def call(self, name: str) -> _Tree:
        if name in _UNARY or name == "abs":
            return _Tree(name, (self.sum(),))
        if name not in ("max", "min"):
            raise ValueError(f"unknown function {name!r} in {self.text!r}")
        tree = self.sum()
        while self.peek() == ",":
            self.at += 1
            tree = _Tree(name, (tree, self.sum()))
        return tree

    def where(self) -> _Tree:
        """``where(a < b, f, g)``; which piece the border belongs to does not matter to any bound."""
        left = self.sum()
        symbol = self.peek()
        if symbol not in ("<", ">", "<=", ">="):
            raise ValueError(f"where() starts with a comparison, in {self.text!r}")
        self.at += 1
        right = self.sum()
        self.take(",")
        first = self.sum()
        self.take(",")
        second = self.sum()
        return _Tree("where", (left, right, first, second) if symbol[0] == "<" else (right, left, first, second))


@lru_cache(maxsize=4096)
def parse(text: str) -> Formula:
    """Read a formula; ``ValueError`` says what is wrong with it."""
    if len(text) > _LENGTH:
        raise ValueError(f"a formula has at most {_LENGTH} characters")
    parser = _Parser(text)
    tree = parser.sum()
    if parser.at < len(parser.tokens):
        raise ValueError(f"unexpected {parser.peek()!r} in {text!r}")
    return Formula(text, tree)


@lru_cache(maxsize=512)
def parse_condition(text: str) -> Condition:
    """Read a comparison such as ``alpha < 0``."""
    sides = re.split(r"(<=|>=|==|<|>)", text)
    if len(sides) != 3:
        raise ValueError(f"{text!r} is not one comparison")
    return Condition(parse(sides[0]), sides[1], parse(sides[2]))
