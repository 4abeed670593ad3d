"""The tree of single-entry single-exit regions of an abstract graph.

Law: every moving node of the graph is in exactly one leaf; the children of a region partition its nodes; a region's entries are
the moving values that it reads from outside. ``lipaudit.topology.laws`` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lipaudit.graph.ir import Graph, Node
from lipaudit.topology.blocks import Strand, block
from lipaudit.topology.draft import Draft
from lipaudit.topology.grouping import group, runs, sequence
from lipaudit.topology.nodes import Roles
from lipaudit.topology.sources import Source
from lipaudit.topology.spine import Chain, Skeleton, skeleton
from lipaudit.topology.stacks import arrange
from lipaudit.topology.trunk import Trunk, trunk

__all__ = ["DEEPEST", "Region", "build", "finish"]

DEEPEST = 24
"""Chains nested deeper than this become one leaf: no reader follows them, and no tool recurses over them."""

_COUNTED = frozenset(
    {"affine-chain", "affine-block", "activation", "pooling", "quantized", "other", "join", "chain", "normalization", "recurrent"}
)
_FORKS = frozenset({"Split", "DynamicQuantizeLinear"})
"""Nodes that only take a value apart: they belong to the block that puts the parts together."""


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the network.

    Attributes
    ----------
    path
        Unique and stable, "model/stack-1/layer-2/block-1:residual/branch".
    kind
        chain, affine-chain, affine-block, residual, dense-concat, concat, gate, attention, attention-core, normalization, activation,
        mlp, mixture-of-experts, u-skip, pooling, recurrent, unrolled-recurrence, quantized, join, embedding, stem, head, layer, stack,
        model, or other.
    nodes
        Names of nodes of the abstract graph; those of all children for a region that has children.
    entries
        Moving values that it reads from outside.
    exit
        The value that leaves it; if several do, the first of its last node, and ``facts["exits"]`` lists all.
    children
        They partition ``nodes``.
    facts
        What is known by looking, by namespace ("region", "residual", "attention", "norm", "stack") and single marks.
    reason
        Why it is nothing more specific.
    """

    path: str
    kind: str
    nodes: tuple[str, ...]
    entries: tuple[str, ...]
    exit: str
    children: tuple[Region, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __repr__(self) -> str:
        return f"Region({self.path!r}, {len(self.nodes)} nodes, {self.entries} -> {self.exit!r})"


# ---------------------------------------------------------------------- from the graph to drafts


def build(graph: Graph, moving: frozenset[str], sources: Sequence[Source]) -> Draft:
    """The tree of drafts: the trunk, and what lies beside it."""
    roles = Roles(graph, moving)
    cuts = {source.name for source in sources}
    nodes = [node for node in graph.nodes if roles.reads(node) and not cuts.intersection(node.outputs)]
    # Where a cache is as deep as the embedding, the embedding is the main way in.
    ranked = sorted(sources, key=lambda source: source.kind != "embedding")
    found = trunk(roles, nodes, [source.name for source in ranked], graph.outputs)
    items = _items(roles, found.nodes, found.starts, found.ends)
    root = Draft("model", is_sequence=True, facts={"region": runs(roles, items)})
    from_embeddings = bool(sources) and all(source.kind == "embedding" for source in sources)
    root.children = arrange(graph, group(roles, items), from_embeddings=from_embeddings)
    before, after = _aside(roles, found)
    root.children = [*before, *root.children, *after]
    return root


def _aside(roles: Roles, found: Trunk) -> tuple[list[Draft], list[Draft]]:
    """Regions beside the trunk: one for each connected part, before it or after it."""
    before: list[Draft] = []
    after: list[Draft] = []
    main = {name for node in found.nodes for name in node.outputs if name} | set(found.starts)
    useful = _useful(roles, found.aside, main)
    for part in _connected(roles, found.aside):
        own = {name for node in part for name in node.outputs if name}
        starts = list(dict.fromkeys(name for node in part for name in roles.reads(node) if name not in own))
        ends = [
            name
            for name in own
            if name in roles.graph.outputs or any(user.name not in {n.name for n in part} for user in _users(roles, name))
        ]
        living = [node for node in part if node.name in useful]
        lost = [node for node in part if node.name not in useful]
        late = any(name in main for name in starts)
        drafts: list[Draft] = []
        if living:
            draft = sequence(roles, _items(roles, living, starts, ends)).as_role("side-output" if late else "side-input")
            draft.reason = draft.reason or ("an output beside the main one" if late else "it joins the main path from another source")
            drafts.append(draft)
        drafts.extend(_leaf(roles, node).as_role("unused") for node in lost)
        for draft in drafts:
            if draft.role == "unused":
                draft.reason = "no output needs it"
        (after if late else before).extend(drafts)
    return before, after


def _users(roles: Roles, name: str) -> list[Node]:
    return [node for node in roles.graph.consumers.get(name, ()) if roles.reads(node)]


def _useful(roles: Roles, nodes: Sequence[Node], main: set[str]) -> set[str]:
    """Nodes from which an output of the graph or the trunk is reached."""
    own = {node.name for node in nodes}
    found: set[str] = set()
    for node in reversed(nodes):
        for name in node.outputs:
            if name and (name in roles.graph.outputs or any(u.name in found or u.name not in own for u in _users(roles, name))):
                found.add(node.name)
    return found


def _connected(roles: Roles, nodes: Sequence[Node]) -> list[list[Node]]:
    """Weakly connected parts, each in topological order, in the order of their first nodes."""
    parent = {node.name: node.name for node in nodes}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in nodes:
        for name in roles.reads(node):
            maker = roles.graph.producer.get(name)
            if maker is not None and maker.name in parent:
                parent[root(node.name)] = root(maker.name)
    parts: dict[str, list[Node]] = {}
    for node in nodes:
        parts.setdefault(root(node.name), []).append(node)
    return list(parts.values())


def _items(roles: Roles, nodes: Sequence[Node], starts: Sequence[str], ends: Sequence[str]) -> list[Draft]:
    """The outermost sequence of a part of the graph, everything nested in it classified."""
    found = skeleton(nodes, starts, ends, roles.reads)
    deep: dict[int, list[int]] = {}
    strands: dict[int, Strand] = {}
    items: list[Draft] = []
    number = {id(chain): i for i, chain in enumerate(found.chains)}
    for i in range(len(found.chains) - 1, -1, -1):
        chain = found.chains[i]
        if chain.depth > DEEPEST:
            own = [v for v in chain.vertices if isinstance(found.what[v], Node)]
            deep[i] = own
            continue
        if chain.depth == DEEPEST and chain.nested:
            items = [_flattened(roles, found, chain)]
        else:
            items = _walk(roles, found, chain, {k: [strands[number[id(c)]] for c in below] for k, below in chain.nested.items()}, starts)
        tail = found.what[chain.vertices[-1]]
        strands[i] = Strand(items, tail if isinstance(tail, str) else "")
    return items


def _flattened(roles: Roles, found: Skeleton, chain: Chain) -> Draft:
    """All nodes of a chain and of everything nested in it, in topological order."""
    vertices: list[int] = []
    stack = [chain]
    while stack:
        current = stack.pop()
        vertices.extend(current.vertices)
        stack.extend(below for nested in current.nested.values() for below in nested)
    nodes = tuple(node for v in sorted(vertices) if isinstance(node := found.what[v], Node))
    return Draft("other", nodes, reason=f"nested deeper than {DEEPEST} levels")


def _walk(roles: Roles, found: Skeleton, chain: Chain, nested: Mapping[int, list[Strand]], starts: Sequence[str]) -> list[Draft]:
    """The items of one chain: single nodes, and blocks where chains are nested between two vertices."""
    items: list[Draft] = []
    for k, vertex in enumerate(chain.vertices):
        current = found.what[vertex]
        strands = nested.get(k - 1)
        before = found.what[chain.vertices[k - 1]] if k else None
        splits = isinstance(before, Node) and before.op in _FORKS
        if strands is not None and (splits or any(strand.items for strand in strands)):
            fork = None
            if isinstance(before, Node):
                entries = frozenset(name for name in before.outputs if name)
                if items and items[-1].own == (before,) and splits:
                    fork = items.pop()
            else:
                entries = frozenset({before} if before is not None else starts)
            join = current if isinstance(current, Node) else None
            items.append(block(roles, entries, strands, fork, join))
        elif isinstance(current, Node):
            items.append(_leaf(roles, current))
    return items


def _leaf(roles: Roles, node: Node) -> Draft:
    kind, reason = roles.leaf_kind(node)
    return Draft(kind, (node,), reason=reason)


# ---------------------------------------------------------------------- from drafts to regions


def finish(graph: Graph, moving: frozenset[str], root: Draft) -> Region:
    """Paths, entries and exits for a tree of drafts; children first, without recursion."""
    order = _preorder(root)
    paths = _paths(root, order)
    spans = _spans(root, order)
    place = {node.name: i for i, node in enumerate(node for draft in order for node in draft.own)}
    ends = frozenset(graph.outputs)
    reach: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys((*node.inputs, *graph.captured_by(node))):
            at = place.get(node.name)
            if name in moving and at is not None:
                low, high = reach.get(name, (at, at))
                reach[name] = (min(low, at), max(high, at))
    made: dict[int, Region] = {}
    leaving: dict[int, tuple[str, ...]] = {}
    for draft in reversed(order):
        start, stop = spans[id(draft)]
        if draft.own:
            names = tuple(node.name for node in draft.own)
            candidates = [name for node in draft.own for name in node.outputs if name]
            read = [name for node in draft.own for name in (*node.inputs, *graph.captured_by(node)) if name in moving]
        else:
            children = [made[id(child)] for child in draft.children]
            names = tuple(name for child in children for name in child.nodes)
            candidates = [name for child in draft.children for name in leaving[id(child)]]
            read = [name for child in children for name in child.entries]
        entries = tuple(dict.fromkeys(name for name in read if not _made_inside(graph, place, name, start, stop)))
        exits = tuple(name for name in candidates if name in ends or (name in reach and (reach[name][0] < start or reach[name][1] >= stop)))
        leaving[id(draft)] = exits
        facts = dict(draft.facts)
        if len(exits) > 1:
            facts["exits"] = list(exits)
        last = graph.producer[exits[-1]].outputs if exits else ()
        exit_ = next((name for name in last if name in exits), "")
        if not exit_ and draft.own:
            exit_ = next((name for name in draft.own[-1].outputs if name), "")
        elif not exit_ and draft.children:
            exit_ = made[id(draft.children[-1])].exit
        made[id(draft)] = Region(
            paths[id(draft)], draft.kind, names, entries, exit_, tuple(made[id(child)] for child in draft.children), facts, draft.reason
        )
    return made[id(root)]


def _preorder(root: Draft) -> list[Draft]:
    found: list[Draft] = []
    stack = [root]
    while stack:
        draft = stack.pop()
        found.append(draft)
        stack.extend(reversed(draft.children))
    return found


def _spans(root: Draft, order: Sequence[Draft]) -> dict[int, tuple[int, int]]:
    """Where the nodes of each draft stand in the order of the leaves."""
    spans: dict[int, tuple[int, int]] = {}
    at = 0
    for draft in order:
        if draft.own:
            spans[id(draft)] = at, at + len(draft.own)
            at += len(draft.own)
    for draft in reversed(order):
        if not draft.own:
            inner = [spans[id(child)] for child in draft.children]
            spans[id(draft)] = (inner[0][0], inner[-1][1]) if inner else (0, 0)
    return spans


def _made_inside(graph: Graph, place: Mapping[str, int], name: str, start: int, stop: int) -> bool:
    maker = graph.producer.get(name)
    return maker is not None and start <= place.get(maker.name, -1) < stop


def _paths(root: Draft, order: Sequence[Draft]) -> dict[int, str]:
    """Readable unique paths: roles where there are some, numbers by kind otherwise."""
    paths = {id(root): "model"}
    for draft in order:
        counts: dict[str, int] = {}
        total: dict[str, int] = {}
        for child in draft.children:
            stem = _stem(child)
            total[stem] = total.get(stem, 0) + 1
        for child in draft.children:
            stem = _stem(child)
            counts[stem] = counts.get(stem, 0) + 1
            single = child.role and total[stem] == 1
            name = stem if single else f"{stem}-{counts[stem]}"
            if stem == "block" or (child.role and child.kind not in ("chain", child.role, "join", "attention-core")):
                name = f"{name}:{child.kind}"
            paths[id(child)] = f"{paths[id(draft)]}/{name}"
    return paths


def _stem(draft: Draft) -> str:
    if draft.role:
        return draft.role
    if draft.kind in _COUNTED or draft.kind == "stack":
        return draft.kind
    return "block"
