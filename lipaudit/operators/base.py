"""The questions that every operator answers; the traversal that asks them is written once, in ``lipaudit.certify``.

A rule is stateless. It answers for one application of its operator (:class:`Site`) with the ranges of its inputs:
how far can the outputs reach (:meth:`Rule.range`), how much can they move with input i (:meth:`Rule.gain`), is it affine
in input i (:meth:`Rule.linear`), and how do parts of the outputs depend on parts of the inputs (:meth:`Rule.flow`).
Mathematics never raises: a rule returns :class:`Unbounded` or :class:`Unknown` with the reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import onnx.defs
import onnx.helper

from lipaudit.bounds.scalar import ZERO, Norm, Upper
from lipaudit.graph.ir import Constant, Graph, Node, Value
from lipaudit.operators.flow import Flow, Reason, flatten, total
from lipaudit.operators.range import Range

if TYPE_CHECKING:
    from lipaudit.bounds.operator import LinearOperator
    from lipaudit.operators.parts import Part

__all__ = ["Bodies", "BodyBound", "Finite", "Gain", "Rule", "Site", "Unbounded", "Unknown", "joint_flow", "scaled"]


@dataclass(frozen=True, slots=True)
class Finite:
    """``|f(x) - f(y)| <= slope * |x - y| + offset`` for all x, y of the range (other inputs held, uniformly in them).

    ``method`` names how the constant was had ("slope interval", "verified Cholesky", ...); ``evidence`` holds what a
    checker needs to verify it again (JSON-able: str, int, float, lists, dicts of these).
    """

    slope: Upper
    offset: Upper = ZERO
    method: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unbounded:
    """No affine bound exists on this range (or none is provable): the reason, in words a user understands."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The rule does not apply (unsupported attribute, unknown shape, undefined values): the reason."""

    reason: str


Gain = Finite | Unbounded | Unknown


@lru_cache(maxsize=4096)
def _schema_defaults(op: str, version: int, domain: str) -> Mapping[str, Any]:
    """Attribute defaults of the schema of exactly that version; empty if onnx ships no such schema."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return {}
    defaults: dict[str, Any] = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            defaults[name] = value.decode() if isinstance(value, bytes) else value
    return defaults


@dataclass(frozen=True, slots=True)
class BodyBound:
    """How the outputs of a nested graph move with its inputs and captured values, on given ranges.

    ``|d out_o| <= sum_name gains[o][name] |d name| + offsets[o]`` when all of them move at once; names that are missing have
    gain 0. ``reasons`` say why an entry is not finite, or why an output may be undefined.
    """

    gains: tuple[Mapping[str, Upper], ...]
    offsets: tuple[Upper, ...]
    reasons: tuple[Reason, ...]


class Bodies(Protocol):
    """Certifies nested graphs (If, Loop, Scan); offered by ``lipaudit.certify``, which rules cannot import.

    ``given`` holds the ranges of the body's inputs and captured values by name, ``moving`` the names among them that move.
    """

    steps: int
    """How many iterations of a loop may be followed one by one."""

    def definition(self, site: Site) -> Graph | None:
        """Onnx's function body of the node as a graph with inputs ``x0``, ``x1``, .. (those that are not stored); None if there is none."""
        ...

    def ranges(self, site: Site, body: Graph, given: Mapping[str, Range], moving: Set[str]) -> tuple[Range | None, ...]:
        """Ranges of the outputs of ``body`` (None: shape unknown)."""
        ...

    def bound(self, site: Site, body: Graph, given: Mapping[str, Range], moving: Set[str], norm: Norm) -> BodyBound:
        """Certified bounds of ``body``."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """One application of an operator, as its rule sees it.

    Attributes
    ----------
    node
        The node; ``node.version`` is the since_version of its schema.
    inputs, outputs
        Types, parallel to ``node.inputs`` / ``node.outputs``; None where the name is "".
    constants
        Parallel to ``node.inputs``: the stored tensor where the input is constant, else None.
    moving
        Parallel to ``node.inputs``: True where the input depends on a source (so its gain matters).
    bodies
        Certifies the nested graphs of the node; None where nobody can. Values that they capture follow the node's own inputs.
    """

    node: Node
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value | None, ...]
    constants: tuple[Constant | None, ...]
    moving: tuple[bool, ...]
    bodies: Bodies | None = None

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute ``name``: as stored, else the default of this schema version, else ``default``."""
        if name in self.node.attrs:
            return self.node.attrs[name]
        found = _schema_defaults(self.node.op, self.node.version, self.node.domain).get(name)
        return default if found is None else found

    def has(self, i: int) -> bool:
        """True if optional input ``i`` is given."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def constant(self, i: int) -> Constant | None:
        """The stored tensor of input ``i``, or None if it is omitted or not constant."""
        return self.constants[i] if i < len(self.constants) else None

    def shape(self, i: int) -> tuple[int, ...]:
        """Static shape of input ``i``. The traversal guarantees it for every given input of a rule that it asks."""
        value = self.inputs[i]
        assert value is not None and value.shape is not None
        return value.shape

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        """Static shape of output ``i``; guaranteed like :meth:`shape`."""
        value = self.outputs[i]
        assert value is not None and value.shape is not None
        return value.shape


class Rule(ABC):
    """What lipaudit knows about one operator (all its versions).

    ``params`` are the remaining keys of its catalogue entry; a rule class may serve many operators.
    """

    deterministic: ClassVar[bool] = True
    """False for operators that draw random numbers: whatever depends on them is no function of the input."""

    def __init__(self, kind: str, params: Mapping[str, Any]) -> None:
        self.kind = kind
        self.params = params

    @abstractmethod
    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Range of each output for inputs in ``xs`` (parallel to the node's inputs; None where omitted).

        Never fails: ``reals(shape)`` is always an answer.
        """

    @abstractmethod
    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Constant from input ``i`` alone to all float outputs jointly, uniform over the ranges of the other inputs.

        Asked only for inputs with ``site.moving[i]``.
        """

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The linear part of output 0 as a function of input ``i`` when it is affine and all other inputs are constant.

        None if it is not, or if the operator has no lazy form.
        """
        return None

    def summands(self, site: Site) -> Mapping[int, LinearOperator] | None:
        """Where output 0 is affine in all moving inputs jointly: its linear part in each, by input (equal names once).

        ``f(x_1, .., x_k) = sum_i A_i x_i + c``. None if it is not, or if an operator has no lazy form. The default knows one moving input.
        """
        moving = [i for i, moves in enumerate(site.moving) if moves]
        found = self.linear(site, moving[0]) if len(moving) == 1 else None
        return None if found is None else {moving[0]: found}

    def parts(self, site: Site) -> tuple[Part, ...]:
        """What the stored weights of the node do to the data, one linear map each (``lipaudit weights``)."""
        return ()

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How each output moves, given how each input moves (None: it does not) and the gain of each moving input.

        The default knows nothing of parts: the contributions of the inputs add (one variable used twice counts twice).
        Override where parts survive (elementwise maps, Concat, Split, Slice, movement) or where inputs touch disjoint
        parts of the output (Concat, Where with a fixed mask, Max).
        """
        return joint_flow(site, flows, gains, norm)


def joint_flow(site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
    """Every output moves at most as the sum of the contributions of all moving inputs (see :meth:`Rule.flow`)."""
    parts = [scaled(site, flow, gain, norm) for flow, gain in zip(flows, gains, strict=True) if flow is not None and gain is not None]
    joint = total(parts)
    return tuple(joint for _ in site.outputs)


def scaled(site: Site, flow: Flow, gain: Gain, norm: Norm, *, keep_parts: bool = False) -> Flow:
    """``flow`` through a map of constant ``gain``; unbounded and unknown gains become infinite rows with their reason.

    ``keep_parts`` is for maps that act on each part by itself (elementwise, block diagonal): the offset then applies to
    each part, which is valid because the offset of the whole bounds the offset of a part.
    """
    source = flow if keep_parts else flatten(flow, norm)
    if isinstance(gain, Finite):
        return source.scaled(gain.slope, gain.offset)
    status = "unbounded" if isinstance(gain, Unbounded) else "unknown"
    return source.broken(Reason(site.node.name, site.node.kind, status, gain.reason))
