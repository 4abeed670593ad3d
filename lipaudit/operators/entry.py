"""One operator of the catalogue as its TOML file states it: data only, no behaviour beyond printing itself.

Numbers are text: exact decimals, rationals or formulas of the node's attributes; the ends of ``slope`` and ``range`` are
rounded outward by whoever wrote them. A zero of a derivative carries its uncertainty: ``"1.41850(1)"`` is 1.41850 +- 0.00001.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Argument", "Case", "Check", "Entry", "Stated"]

Pair = tuple[str, str]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A TOML table; an unknown key is an error that names it."""


class Argument(Table, frozen=True):
    """An input of a ``[[check]]``: a stored tensor (``value``), or one of a ``shape`` whose elements lie in [lo, hi].

    The latter depends on a source unless it is ``still``. An argument of dtype "" is omitted.
    """

    shape: tuple[int, ...] = ()
    lo: str = "-inf"
    hi: str = "inf"
    value: Any = None
    dtype: str = "float32"
    still: bool = False


class Check(Table, frozen=True):
    """An example with a known answer, run by the generic tests.

    ``on`` is the interval of the only input of a scalar operator; a structured one lists ``inputs``. ``gain`` and ``offset``
    hold ``at_least`` and ``at_most``; ``status`` is "finite", "unbounded" or "unknown". ``range`` encloses the range of output 0.
    """

    on: Pair | None = None
    inputs: list[Argument] = []
    outputs: list[list[int]] = []
    wrt: int = 0
    attrs: dict[str, Any] = {}
    version: int = 0
    norm: str = "l2"
    status: str = "finite"
    gain: dict[str, str] = {}
    offset: dict[str, str] = {}
    range: Pair | None = None
    why: str = ""


class Case(Table, frozen=True):
    """What differs for some attributes or versions; the first case that applies wins.

    ``when`` is a comparison of formulas ("alpha < 0"), ``before`` a version ("before opset 6"), ``attrs`` exact values. The
    other keys replace those of the entry; ``refuse`` says that the operator has no rule here, and why.
    """

    when: str = ""
    before: int = 0
    attrs: dict[str, str | int] = {}
    refuse: str = ""
    formula: str | None = None
    slope: Pair | None = None
    range: Pair | None = None
    turns: list[str] | None = None
    kinks: list[str] | None = None
    extrema: list[str] | None = None
    limits: Pair | None = None
    slope_limits: Pair | None = None
    jump: str | None = None
    jump_at: list[str] | None = None


class Stated(Table, frozen=True):
    """Constants that hold for input ``input`` with the others held, per norm; ``offset`` is 0 where it is not given."""

    input: int = 0
    l1: str = ""
    l2: str = ""
    linf: str = ""
    offset: dict[str, str] = {}


class Entry(Table, frozen=True):
    """One operator.

    Attributes
    ----------
    op
        ``domain::name`` ("ai.onnx::Relu").
    since
        The oldest version that the rule covers.
    cite
        Keys of rules/sources.bib, or the derivation in a few words.
    about, conditions
        One line on what the rule says; when it holds.
    family
        For the documentation; the name of the folder if empty.
    rule, params
        ``module:Class`` under ``lipaudit.operators`` for a structured operator, and what the class is told.
    formula
        f(x) of a scalar operator; names of attributes are numbers.
    slope, range
        Hull of f' and of f on all reals (of its domain).
    turns, kinks, extrema
        Interior extrema of f'; points where f' jumps; interior extrema of f.
    limits, slope_limits
        Of f and f' at -inf and +inf.
    domain
        Closed hull of where f is defined; outside it is NaN.
    poles, period
        Where f is infinite; turns, extrema and poles repeat with this period.
    jump, jump_at
        Largest jump of f, and where it can jump (anywhere if empty).
    contracts
        ``|f(x)| <= |x|``: norms of rows about 0 survive.
    integral
        Values of f are integers; ``fixes_integers``: f is the identity on integers.
    bias
        Index of an optional input that is added to x first.
    needs
        What a finite slope needs, in words.
    attributes
        Defaults where onnx ships no schema.
    samples
        Attribute values at which the generic tests prove the entry.
    gain
        For a custom operator: constants of the whole map, one ``[[gain]]`` per input; ``range`` then holds for all its outputs.
    function, accepts
        For a custom operator: its definition by other nodes, a function in ONNX text syntax; and the attribute values for which it
        holds (others have no rule).
    definition
        Onnx's function body of the operator is certified too, where the node is small or the rule has no bound: the smaller counts.
    like
        Index of the input whose type and shape all outputs have, for operators that no shape inference knows.
    """

    op: str
    since: int = 1
    cite: str | list[str] = ""
    about: str = ""
    conditions: str | list[str] = ""
    family: str = ""
    rule: str = ""
    params: dict[str, Any] = {}
    formula: str = ""
    slope: Pair | None = None
    range: Pair = ("-inf", "inf")
    turns: list[str] = []
    kinks: list[str] = []
    extrema: list[str] = []
    limits: Pair | None = None
    slope_limits: Pair | None = None
    domain: Pair | None = None
    poles: list[str] = []
    period: str = ""
    jump: str = ""
    jump_at: list[str] = []
    contracts: bool = False
    integral: bool = False
    fixes_integers: bool = False
    bias: int = 0
    needs: str = ""
    attributes: dict[str, str] = {}
    samples: list[dict[str, str]] = []
    gain: list[Stated] = []
    function: str = ""
    accepts: dict[str, list[str | int]] = {}
    definition: bool = False
    like: int | None = None
    case: list[Case] = []
    check: list[Check] = []

    def describe(self) -> str:
        """The rule in a few words."""
        if self.about:
            return self.about
        if self.rule:
            return self.rule
        if self.function:
            return "a composition of other operators"
        if self.gain:
            return "; ".join(_stated(stated) for stated in self.gain)
        if self.slope is None:
            return "no rule"
        jump = f", jumps by at most {self.jump}" if self.jump else ""
        return f"slope in [{self.slope[0]}, {self.slope[1]}]{jump}"

    def citations(self) -> list[str]:
        """``cite`` as a list."""
        return [self.cite] if isinstance(self.cite, str) and self.cite else list(self.cite)


def _stated(stated: Stated) -> str:
    norms = [(norm, getattr(stated, norm)) for norm in ("l1", "l2", "linf")]
    parts = [
        f"{text} in {norm}" + (f" and a jump of {stated.offset[norm]}" if norm in stated.offset else "") for norm, text in norms if text
    ]
    return f"gain from input {stated.input}: {', '.join(parts)}"
