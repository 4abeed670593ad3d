"""Which part of a graph the spine follows: the trunk, from its main sources to its main outputs.

Key-value caches, recurrent states, time embeddings and auxiliary heads enter or leave a network at many depths. With them as
starts and ends nothing would lie on all paths, and a transformer with a cache would have no blocks. So a source or an output
whose own nodes touch the trunk at several places, or that has no weight layer of its own, is a side one: its nodes become
regions beside the trunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lipaudit.graph.ir import Node
from lipaudit.topology.nodes import Roles

__all__ = ["Trunk", "trunk"]


@dataclass(frozen=True)
class Trunk:
    """Nodes on paths from ``starts`` to ``ends``, and all other moving nodes."""

    nodes: tuple[Node, ...]
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    aside: tuple[Node, ...]


def trunk(roles: Roles, nodes: Sequence[Node], sources: Sequence[str], outputs: Sequence[str]) -> Trunk:
    """Choose the trunk among the moving ``nodes`` (in topological order)."""
    reads = {node.name: roles.reads(node) for node in nodes}
    writes = {node.name: tuple(name for name in node.outputs if name) for node in nodes}
    producer = {name: node for node in nodes for name in writes[node.name]}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in reads[node.name]:
            readers.setdefault(name, []).append(node)

    wanted = [name for name in dict.fromkeys(outputs) if name in roles.moving]
    down = _depths(nodes, lambda node: reads[node.name], lambda node: writes[node.name])
    ends, alive = _main(
        wanted,
        lambda name: down.get(name, 0),
        lambda name: [producer[name]] if name in producer else [],
        lambda node: reads[node.name],
        roles,
    )
    living = [node for node in nodes if node.name in alive]
    up = _depths(living[::-1], lambda node: writes[node.name], lambda node: reads[node.name])
    origins = [name for name in dict.fromkeys(sources) if name in up]
    starts, lit = _main(
        origins,
        lambda name: up.get(name, 0),
        lambda name: [node for node in readers.get(name, ()) if node.name in alive],
        lambda node: writes[node.name],
        roles,
        together=_twins(roles, origins, up),
    )
    inside = tuple(node for node in living if node.name in lit)
    chosen = {node.name for node in inside}
    return Trunk(inside, tuple(starts), tuple(ends), tuple(node for node in nodes if node.name not in chosen))


def _depths(nodes: Sequence[Node], before: Callable[[Node], Sequence[str]], after: Callable[[Node], Sequence[str]]) -> dict[str, int]:
    """Longest path, in nodes, to each value."""
    depth: dict[str, int] = {}
    for node in nodes:
        reached = 1 + max((depth.get(name, 0) for name in before(node)), default=0)
        for name in after(node):
            depth[name] = max(depth.get(name, 0), reached)
    return depth


def _twins(roles: Roles, origins: Sequence[str], up: dict[str, int]) -> list[str]:
    """Sources that the same node computes as the deepest one does (a fused embedding with its sum)."""
    if not origins:
        return []
    main = max(origins, key=lambda name: up.get(name, 0))
    node = roles.graph.producer.get(main)
    return [name for name in origins if node is not None and name in node.outputs]


def _main(
    values: Sequence[str],
    depth: Callable[[str], int],
    next_nodes: Callable[[str], Sequence[Node]],
    next_values: Callable[[Node], Sequence[str]],
    roles: Roles,
    together: Sequence[str] = (),
) -> tuple[list[str], set[str]]:
    """The main ones of ``values``, deepest first, and the names of the nodes that their walks reach."""
    chosen: list[str] = []
    reached: set[str] = set()
    seen: set[str] = set()
    ordered = sorted(values, key=lambda name: -depth(name))
    for name in ordered:
        own, own_values, touched = _walk(name, next_nodes, next_values, reached, seen)
        first = not chosen
        if first or name in together or (len(touched) <= 1 and any(roles.is_weight_layer(node) for node in own)):
            chosen.append(name)
            reached.update(node.name for node in own)
            seen.update(own_values)
    return [name for name in values if name in set(chosen)], reached


def _walk(
    name: str,
    next_nodes: Callable[[str], Sequence[Node]],
    next_values: Callable[[Node], Sequence[str]],
    reached: set[str],
    seen: set[str],
) -> tuple[list[Node], set[str], set[str]]:
    """Nodes and values that only ``name`` leads to, and what they touch of the part that is already reached."""
    own: dict[str, Node] = {}
    values = {name}
    touched: set[str] = {name} if name in seen else set()
    stack = [] if name in seen else [name]
    while stack:
        current = stack.pop()
        for node in next_nodes(current):
            if node.name in reached:
                touched.add(node.name)
                continue
            if node.name in own:
                continue
            own[node.name] = node
            for value in next_values(node):
                if value in seen:
                    touched.add(value)
                elif value not in values:
                    values.add(value)
                    stack.append(value)
    return list(own.values()), values, touched
