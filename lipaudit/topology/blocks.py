"""Blocks: what lies between two neighbours on a spine when paths part and join again.

The node that joins the paths decides: a sum with one side that is (nearly) its entry is a residual block, a concatenation with the
entry is a dense block, a product is a gate, attention joins its queries, keys and values.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from lipaudit.graph.ir import Node
from lipaudit.topology.draft import Draft
from lipaudit.topology.grouping import sequence
from lipaudit.topology.nodes import ATTENTION, SKIP_NORMALIZATIONS, Roles
from lipaudit.topology.special import special_kind

__all__ = ["Strand", "block"]

_SUMS = frozenset({"ai.onnx::Add", "ai.onnx::Sum", "ai.onnx::Sub", "com.microsoft::QLinearAdd"})
_CONCATENATIONS = frozenset({"ai.onnx::Concat", "com.microsoft::QLinearConcat"})
_PRODUCTS = frozenset({"ai.onnx::Mul", "com.microsoft::QLinearMul"})
_MOST_LEVELS = 6
_ROTATING = frozenset({"ai.onnx::Neg", "ai.onnx::Sub"})


@dataclass(eq=False)
class Strand:
    """A chain inside a block: its items in order and the value that it ends in ("" if it ends in a node)."""

    items: list[Draft]
    tail: str

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes in order."""
        return [node for item in self.items for node in item.nodes()]


@dataclass(frozen=True)
class _Block:
    """What classification looks at."""

    roles: Roles
    entries: frozenset[str]
    strands: list[Strand]
    fork: Draft | None
    join: Node

    @cached_property
    def by_tail(self) -> dict[str, Strand]:
        """The strand that ends in a value."""
        return {strand.tail: strand for strand in self.strands if strand.tail}

    @cached_property
    def owner(self) -> dict[str, int]:
        """The strand (by position) that computes a value."""
        return {name: i for i, strand in enumerate(self.strands) for node in strand.nodes for name in node.outputs if name}

    def is_clean(self, strand: Strand) -> bool:
        """True if the strand reads nothing of the block but its entries."""
        own = self.owner[strand.nodes[0].outputs[0]]
        return all(self.owner.get(name, own) == own for node in strand.nodes for name in self.roles.reads(node))


def block(roles: Roles, entries: frozenset[str], strands: list[Strand], fork: Draft | None, join: Node | None, *, level: int = 0) -> Draft:
    """Classify one block: by its join, and by what lies on its paths where the join says too little (:func:`_by_join`)."""
    found = _by_join(roles, entries, strands, fork, join, level=level)
    if join is not None and found.kind in ("other", "concat", "dense-concat"):
        kind = special_kind(roles, found.kind, [strand.nodes for strand in strands], join)
        if kind != found.kind:
            found.kind, found.reason = kind, ""
    return found


def _by_join(roles: Roles, entries: frozenset[str], strands: list[Strand], fork: Draft | None, join: Node | None, *, level: int) -> Draft:
    """The block by the node in which its paths meet.

    ``fork`` is a node that only takes the entry apart (Split) and belongs to the block, ``join`` the node in which all paths meet
    (None at the outputs of the graph). ``level`` counts blocks that were found inside blocks by untangling.
    """
    if join is None:
        parts = [*_leading(fork), *_parts(roles, strands, "part")]
        where = ", ".join(sorted(entries)[:3])
        return Draft("other", children=parts, reason=f"the outputs are computed from {where} on separate paths")
    found = _Block(roles, entries, strands, fork, join)
    if _is_linear_block(found):
        return _linear(found)
    operands, inner = _moving_operands(roles, join), []
    if join.kind in _SUMS or join.kind in SKIP_NORMALIZATIONS:
        operands, inner = _summands(found)
        sums = {node.name for node in inner}
        rest = [strand for strand in strands if not (strand.items and all(node.name in sums for node in strand.nodes))]
        found = _Block(roles, entries, rest, fork, join)
    if level < _MOST_LEVELS:
        found = _untangled(found, operands, level)
    if join.kind in ATTENTION:
        return _attention(found)
    if join.kind in _SUMS or join.kind in SKIP_NORMALIZATIONS:
        return _residual(found, operands, inner)
    if join.kind in _CONCATENATIONS:
        return _concatenation(found)
    if join.kind in _PRODUCTS:
        if _is_quantized_product(found):
            return Draft.flat("quantized", [*_leading(found.fork), *(item for strand in found.strands for item in strand.items)], join)
        return Draft("gate", children=[*_leading(found.fork), *_parts(roles, found.strands, "part"), _join(found)])
    return _other(found, f"{join.op} joins paths from {', '.join(sorted(entries)[:3])}")


def _is_quantized_product(found: _Block) -> bool:
    """An integer product and the product of its scales, multiplied: one linear layer with dynamic quantization."""
    nodes = [node for strand in found.strands for node in strand.nodes]
    integer = [node for node in nodes if node.op in ("MatMulInteger", "ConvInteger")]
    return bool(integer) and all(node in integer or found.roles.is_linear(node) or node.kind in _PRODUCTS for node in nodes)


def _leading(fork: Draft | None) -> list[Draft]:
    return [fork.as_role("split")] if fork is not None else []


def _parts(roles: Roles, strands: list[Strand], role: str) -> list[Draft]:
    return [sequence(roles, strand.items).as_role(role) for strand in strands if strand.items]


def _join(found: _Block, *nodes: Node) -> Draft:
    kind, reason = found.roles.leaf_kind(found.join)
    if kind in ("other", "affine-chain"):
        kind, reason = "join", ""
    return Draft(kind, (*nodes, found.join), role="join", reason=reason)


def _other(found: _Block, reason: str, *inner: Node) -> Draft:
    return Draft(
        "other", children=[*_leading(found.fork), *_parts(found.roles, found.strands, "part"), _join(found, *inner)], reason=reason
    )


# ---------------------------------------------------------------------- paths that cross


def _untangled(found: _Block, operands: list[str], level: int) -> _Block:
    """Strands that feed only one operand of the join become one strand with a block of its own at its head.

    An identity shortcut around attention hides that the attention has one entry: queries, keys and values begin where the shortcut
    does. What feeds an operand meets in the first node of the strand that ends in it.
    """
    feeders = _feeders(found)
    if not any(feeders.values()):
        return found
    numbers = {id(strand): i for i, strand in enumerate(found.strands)}
    claimed: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for name in dict.fromkeys(name for name in operands if name in found.by_tail):
        last = numbers[id(found.by_tail[name])]
        group = _closure(feeders, last)
        if any(claimed.setdefault(i, last) != last for i in (last, *group)):
            return found
        groups[last] = group
    strands: list[Strand] = []
    for i, strand in enumerate(found.strands):
        if i not in claimed and strand.items:
            return found
        if i not in groups:
            continue
        if not groups[i] or len(strand.items[0].own) != 1:
            if groups[i]:
                return found
            strands.append(strand)
            continue
        inner = block(found.roles, found.entries, [found.strands[k] for k in groups[i]], None, strand.items[0].own[0], level=level + 1)
        strands.append(Strand([inner, *strand.items[1:]], strand.tail))
    return _Block(found.roles, found.entries, strands, found.fork, found.join)


def _feeders(found: _Block) -> dict[int, set[int]]:
    """For each strand the others whose values it reads."""
    feeders: dict[int, set[int]] = {}
    for i, strand in enumerate(found.strands):
        feeders[i] = {found.owner[name] for node in strand.nodes for name in found.roles.reads(node) if name in found.owner} - {i}
    return feeders


def _closure(feeders: dict[int, set[int]], last: int) -> list[int]:
    """All strands that lead to ``last``, in order."""
    reached: set[int] = set()
    stack = list(feeders[last])
    while stack:
        i = stack.pop()
        if i not in reached:
            reached.add(i)
            stack.extend(feeders[i])
    return sorted(reached)


# ---------------------------------------------------------------------- linear blocks


def _is_linear_block(found: _Block) -> bool:
    """True if the block is one affine map: all its nodes are linear. A residual with weights stays a residual."""
    roles = found.roles
    if not roles.is_linear_join(found.join) or found.join.kind in SKIP_NORMALIZATIONS:
        return False
    nodes = [node for strand in found.strands for node in strand.nodes]
    if not all(roles.is_linear(node) or roles.is_linear_join(node) for node in nodes):
        return False
    has_identity = any(name in found.entries for name in roles.reads(found.join))
    return not (has_identity and any(roles.is_weight_layer(node) for node in nodes))


def _linear(found: _Block) -> Draft:
    """One leaf; a rotation of pairs by position (RoPE) is marked."""
    draft = Draft.flat("affine-block", [*_leading(found.fork), *(item for strand in found.strands for item in strand.items)], found.join)
    kinds = [node.kind for node in draft.own]
    if (
        kinds.count("ai.onnx::Mul") >= 2
        and any(kind in _ROTATING for kind in kinds)
        and not any(map(found.roles.is_weight_layer, draft.own))
    ):
        draft.facts["rotary"] = True
    return draft


# ---------------------------------------------------------------------- sums


def _residual(found: _Block, operands: list[str], inner: list[Node]) -> Draft:
    """``shortcut + branch``; ``inner`` sums belong to the join."""
    strands = found.strands
    identity = [name for name in operands if name in found.entries]
    by_operand = {name: found.by_tail[name] for name in operands if name in found.by_tail}
    shortcuts = [s for s in by_operand.values() if s.items and found.is_clean(s) and all(found.roles.is_shortcut(n) for n in s.nodes)]
    join = _join(found, *inner)
    wide = found.roles.graph.value(found.join.outputs[0]).shape
    copied = [name for name in (*identity, *(s.tail for s in shortcuts)) if _is_copied(found.roles, name, wide)]
    identity = [name for name in identity if name not in copied]
    shortcuts = [strand for strand in shortcuts if strand.tail not in copied]
    if copied and not identity and not shortcuts:
        shape = list(found.roles.graph.value(copied[0]).shape or ())
        return _other(found, f"its shortcut {copied[0]!r} of shape {shape} is copied to the shape {list(wide or ())} of the sum", *inner)
    if identity:
        rest = [strand for strand in strands if strand.items]
        return _made(found, "identity", [], rest, by_operand, join)
    if not shortcuts:
        reason = "both sides of the addition are nonlinear in its entry" if len(by_operand) > 1 else "the paths into the addition cross"
        return _other(found, reason, *inner)
    chosen = min(shortcuts, key=lambda s: (sum(map(found.roles.is_weight_layer, s.nodes)), len(s.nodes)))
    if all(found.roles.is_identity(node) for node in chosen.nodes):
        kind = "identity"
    elif not any(found.roles.is_weight_layer(node) for node in chosen.nodes) and all(
        found.roles.is_identity(node) or node.op in ("Mul", "Div", "Neg") for node in chosen.nodes
    ):
        kind = "scaled"
    else:
        kind = "projection"
    return _made(found, kind, chosen.items, [s for s in strands if s is not chosen and s.items], by_operand, join)


def _is_copied(roles: Roles, name: str, wide: tuple[int, ...] | None) -> bool:
    """Whether a summand is broadcast: then the sum is no map from a space to itself plus something."""
    own = roles.graph.value(name).shape
    return own is not None and wide is not None and tuple(n for n in own if n != 1) != tuple(n for n in wide if n != 1)


def _summands(found: _Block) -> tuple[list[str], list[Node]]:
    """The summands of the join, after inner sums that nothing else reads, and those inner sums."""
    roles, graph = found.roles, found.roles.graph
    outputs = frozenset(graph.outputs)
    repeats = _repeats(found.join)
    operands: list[str] = []
    inner: list[Node] = []
    stack = [(name, name not in repeats) for name in reversed(_moving_operands(roles, found.join))]
    while stack:
        name, once = stack.pop()
        node, strand = graph.producer.get(name), found.by_tail.get(name)
        alone = strand is not None and len(strand.nodes) == 1 and strand.nodes[0] is node
        read_once = once and len(graph.consumers.get(name, ())) == 1 and name not in outputs
        if node is not None and alone and read_once and node.kind in _SUMS and len(roles.reads(node)) > 1:
            inner.append(node)
            twice = _repeats(node)
            stack.extend((operand, operand not in twice) for operand in reversed(_moving_operands(roles, node)))
        else:
            operands.append(name)
    return operands, inner[::-1]


def _repeats(node: Node) -> frozenset[str]:
    """The values that a node reads more than once."""
    counts = Counter(node.inputs)
    return frozenset(name for name, count in counts.items() if count > 1)


def _moving_operands(roles: Roles, node: Node) -> list[str]:
    return [name for name in node.inputs if name in roles.moving]


def _made(found: _Block, kind: str, shortcut: list[Draft], rest: list[Strand], by_operand: dict[str, Strand], join: Draft) -> Draft:
    """The residual region with its parts."""
    tails = {id(strand) for strand in by_operand.values()}
    direct = [strand for strand in rest if id(strand) in tails]
    if len(direct) == len(rest):
        branches = [sequence(found.roles, strand.items).as_role("branch") for strand in rest]
    else:  # paths cross inside the branch
        branches = [Draft("other", children=_parts(found.roles, rest, "part"), role="branch", reason="paths cross inside the branch")]
    children = [*_leading(found.fork), *branches]
    if shortcut:
        children.append(sequence(found.roles, shortcut).as_role("shortcut"))
    return Draft("residual", children=[*children, join], facts={"shortcut": kind, "branches": len(branches)})


# ---------------------------------------------------------------------- concatenations and attention


def _concatenation(found: _Block) -> Draft:
    """A dense block keeps its entry; parallel branches (inception) do not."""
    operands = _moving_operands(found.roles, found.join)
    kind = "dense-concat" if any(name in found.entries for name in operands) else "concat"
    return Draft(kind, children=[*_leading(found.fork), *_parts(found.roles, found.strands, "branch"), _join(found)])


def _attention(found: _Block) -> Draft:
    """Queries, keys and values by the operand that they end in."""
    labels = dict(zip(found.join.inputs, ("query", "key", "value", "bias"), strict=False))
    children = [sequence(found.roles, strand.items).as_role(labels.get(strand.tail, "input")) for strand in found.strands if strand.items]
    core = Draft("attention-core", (found.join,), role="core")
    return Draft("attention", children=[*_leading(found.fork), *children, core])
