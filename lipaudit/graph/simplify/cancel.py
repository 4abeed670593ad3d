"""Neighbours that undo each other, or of which one does for two.

Law: same function, value for value. Exporters differ in what stands between two operators that matter; after this pass it is the same.

Cases:

1. ``Transpose`` of a ``Transpose`` that nothing else reads: one Transpose, or nothing if they undo each other (then also if
   something else reads the first);
2. ``Reshape``, ``Flatten``, ``Squeeze``, ``Unsqueeze`` (the order of the elements is kept) that come back to a shape that the value
   had before: nothing;
3. ``Cast`` to a wider float type and back: nothing;
4. ``Where(Not(c), a, b)``: ``Where(c, b, a)``; ``Not(Not(c))``: nothing;
5. ``a + (-b)``: ``a - b``.

What becomes nothing is left as an Identity and what is read no more is left dead: :mod:`bypass` and :mod:`dead` come after. The
graph itself is walked, not the graphs nested in it.
"""

from __future__ import annotations

from lipaudit.graph.ir import Graph, Node

__all__ = ["cancel"]

_SHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_WIDER = {
    "float16": frozenset({"float32", "float64"}),
    "bfloat16": frozenset({"float32", "float64"}),
    "float32": frozenset({"float64"}),
}
"""Float types that hold every value of another one exactly."""
_LONGEST = 16


def cancel(graph: Graph) -> Graph:
    """The graph with neighbours taken together."""
    walk = _Walk(graph)
    nodes = tuple(walk.rewritten(node) for node in graph.nodes)
    return graph.with_nodes(nodes) if walk.changed else graph


class _Walk:
    """One walk in topological order: which value stands for which, what each node has become."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs = frozenset(graph.outputs)
        self.same: dict[str, str] = {}
        self.made: dict[str, Node] = dict(graph.producer)
        self.changed = False

    def rewritten(self, node: Node) -> Node:
        """What ``node`` becomes."""
        found = None if node.domain or not node.inputs or not node.inputs[0] else self._rewritten(node)
        if found is None:
            return node
        self.changed = True
        self.made.update(dict.fromkeys((name for name in found.outputs if name), found))
        if found.op == "Identity":
            self.same[found.outputs[0]] = self.same.get(found.inputs[0], found.inputs[0])
        return found

    def _rewritten(self, node: Node) -> Node | None:
        if node.op == "Transpose":
            return self._transpose(node)
        if node.op in _SHAPING:
            return self._shaping(node)
        if node.op == "Cast":
            return self._cast(node)
        if node.op == "Not":
            inner = self._behind(node.inputs[0], "Not")
            return None if inner is None else _identity(node, inner.inputs[0])
        if node.op == "Where":
            inner = self._behind(node.inputs[0], "Not")
            return None if inner is None else node.renamed(inputs=(inner.inputs[0], node.inputs[2], node.inputs[1]))
        if node.op == "Add" and node.version >= 7:
            return self._difference(node)
        return None

    def _behind(self, name: str, *ops: str) -> Node | None:
        """The node that computes ``name``, if it is one of ``ops``."""
        node = self.made.get(self.same.get(name, name))
        return node if node is not None and not node.domain and node.op in ops else None

    def _is_read_once(self, name: str, until: str) -> bool:
        """Whether ``name`` and everything between it and the value ``until`` that stands for it have one reader each."""
        names = {name, until}
        return all(len(self.graph.consumers.get(n, ())) == 1 and n not in self.outputs for n in names)

    def _transpose(self, node: Node) -> Node | None:
        inner = self._behind(node.inputs[0], "Transpose")
        if inner is None:
            return None
        rank = len(self.graph.value(inner.outputs[0]).shape or ())
        first, second = (tuple(n.attrs.get("perm") or range(rank - 1, -1, -1)) for n in (inner, node))
        if rank == 0 or len(first) != rank or len(second) != rank:
            return None
        perm = tuple(first[axis] for axis in second)
        if perm == tuple(range(rank)):
            return _identity(node, inner.inputs[0])
        if not self._is_read_once(node.inputs[0], inner.outputs[0]):
            return None
        return node.renamed(inputs=(inner.inputs[0],), attrs={**node.attrs, "perm": perm})

    def _shaping(self, node: Node) -> Node | None:
        wanted = self.graph.value(node.outputs[0]).shape
        name = node.inputs[0]
        for _ in range(_LONGEST):
            maker = self._behind(name, *_SHAPING)
            if maker is None or wanted is None:
                return None
            name = maker.inputs[0]
            if self.graph.value(name).shape == wanted:
                return _identity(node, name)
        return None

    def _difference(self, node: Node) -> Node | None:
        for i in (1, 0):
            inner = self._behind(node.inputs[i], "Neg")
            if inner is not None and node.inputs[0] != node.inputs[1] and self._is_read_once(node.inputs[i], inner.outputs[0]):
                return node.renamed(op="Sub", inputs=(node.inputs[1 - i], inner.inputs[0]))
        return None

    def _cast(self, node: Node) -> Node | None:
        inner = self._behind(node.inputs[0], "Cast")
        if inner is None:
            return None
        before, between, after = (self.graph.value(name).dtype for name in (inner.inputs[0], inner.outputs[0], node.outputs[0]))
        return _identity(node, inner.inputs[0]) if before == after and between in _WIDER.get(before, ()) else None


def _identity(node: Node, source: str) -> Node:
    return node.renamed(op="Identity", domain="", version=1, inputs=(source,), outputs=node.outputs[:1], attrs={})
