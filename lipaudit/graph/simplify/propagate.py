"""One walk in topological order that types every value and folds every constant.

Law: same function (see :mod:`~lipaudit.graph.simplify.fold` and :mod:`~lipaudit.graph.simplify.branch` for what is
replaced). Types and constants belong in one walk: the target of a Reshape is often computed from the shape of a value that
stands behind an earlier Reshape, and so on through the whole network.

Ensures: every value of the result that the oracles can tell has a static type; contradictions are collected, not raised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import TypeProto

from lipaudit.errors import ModelError
from lipaudit.graph.dtypes import stored_bytes
from lipaudit.graph.ir import Constant, Graph, Node, Value
from lipaudit.graph.limits import Limits
from lipaudit.graph.order import reads
from lipaudit.graph.simplify.branch import spliced, taken_branch
from lipaudit.graph.simplify.control import infer_control
from lipaudit.graph.simplify.expand import NOTHING, Operators, expand
from lipaudit.graph.simplify.fold import Budget, fold
from lipaudit.graph.simplify.renaming import captures_of, defines
from lipaudit.graph.simplify.types import InconsistentError, infer, tensor_type, value_of

__all__ = ["Contradiction", "propagate"]

# Below this nesting the invariants of loops are searched; each level walks its body up to three times.
_EXACT_NESTING = 4


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A node whose inputs do not fit it, in the words of shape inference."""

    node: Node
    message: str


@dataclass
class _Walker:
    limits: Limits
    opsets: Mapping[str, int]
    where: str
    budget: Budget
    trust_hints: bool
    operators: Operators
    expanded: int = 0
    found: list[Contradiction] = field(default_factory=list)

    def walk(
        self, graph: Graph, types: dict[str, TypeProto], outer: Mapping[str, Constant], taken: set[str], nesting: int
    ) -> tuple[Graph, dict[str, TypeProto]]:
        """A graph with its values typed and its constants folded; ``types`` holds its inputs and captures."""
        constants = dict(graph.constants)
        visible: dict[str, Constant] = {**outer, **constants}
        for name, constant in constants.items():
            types[name] = tensor_type(constant.dtype, constant.shape)
        values = {name: value_of(name, kind) for name, kind in types.items()}
        names = taken | defines(graph)
        node_names = {node.name for node in graph.nodes}
        kept: list[Node] = []
        waiting = deque(graph.nodes)
        while waiting:
            node = waiting.popleft()
            replaced = self._replaced(node, types, visible, names, node_names)
            if replaced is not None:
                nodes, stored = replaced
                waiting.extendleft(reversed(nodes))
                constants |= stored
                visible |= stored
                types |= {name: tensor_type(constant.dtype, constant.shape) for name, constant in stored.items()}
                values |= {name: constant.value for name, constant in stored.items()}
                continue
            node, kinds = self._types(node, types, visible, names, nesting)
            self._hints(node, graph, kinds)
            outputs = [value_of(name, kinds.get(name)) for name in node.outputs]
            self._check_sizes(node, outputs)
            folded = fold(node, outputs, values, visible, self._opsets(node), self.budget)
            if folded is None:
                kept.append(node)
                types.update(kinds)
                values.update((value.name, value) for value in outputs if value.name in kinds)
                continue
            for constant in folded:
                constants[constant.name] = visible[constant.name] = constant
                values[constant.name] = constant.value
                types[constant.name] = tensor_type(constant.dtype, constant.shape)
        return self._finished(graph, tuple(kept), constants, values), types

    def _replaced(
        self, node: Node, types: Mapping[str, TypeProto], visible: Mapping[str, Constant], names: set[str], node_names: set[str]
    ) -> tuple[list[Node], dict[str, Constant]] | None:
        """What a node is replaced by: the branch that is taken, or the nodes that define it."""
        if node.op == "If" and not node.domain:
            return taken_branch(node, visible, names, node_names)
        body = expand(node, types, self.opsets, self.operators, self.limits, self.where)
        if body is None:
            return None
        self.expanded += len(body.nodes) + 1
        if self.expanded > self.limits.nodes:
            raise ModelError(f"the definitions of its operators expand to more than {self.limits.nodes:,} nodes", where=self.where)
        return spliced(node, body, names, node_names, node.covers or (node.name,))

    def _opsets(self, node: Node) -> Mapping[str, int]:
        """The opsets of the model, newer where a node that was put in place of another needs it."""
        newer = node.version > self.opsets.get(node.domain, 0)
        return {**self.opsets, node.domain: node.version} if newer else self.opsets

    def _types(
        self, node: Node, types: Mapping[str, TypeProto], visible: Mapping[str, Constant], names: set[str], nesting: int
    ) -> tuple[Node, dict[str, TypeProto]]:
        nested = any(isinstance(attr, Graph) for attr in node.attrs.values())
        try:
            if not nested:
                like = self.operators.like.get(node.kind, -1)
                if 0 <= like < len(node.inputs) and node.inputs[like] in types:
                    return node, {name: types[node.inputs[like]] for name in node.outputs if name}
                return node, infer(node, types, visible, self._opsets(node))
        except InconsistentError as error:
            self.found.append(Contradiction(node, str(error)))
            return node, {}
        captured = [name for name in reads(node) if name]

        def walk(body: Graph, kinds: Sequence[TypeProto | None]) -> tuple[Graph, list[TypeProto | None]]:
            inner = {name: types[name] for name in captured if name in types}
            own = defines(body)
            inner = {name: kind for name, kind in inner.items() if name not in own}
            inner |= {value.name: kind for value, kind in zip(body.inputs, kinds, strict=False) if kind is not None}
            stored = {name: visible[name] for name in captured if name in visible and name not in own}
            walked, known = self.walk(body, inner, stored, names, nesting + 1)
            return walked, [known.get(name) for name in walked.outputs]

        node, found = infer_control(node, types, visible, walk, exact=nesting < _EXACT_NESTING)
        return node, {name: kind for name, kind in zip(node.outputs, found, strict=True) if name and kind is not None}

    def _hints(self, node: Node, graph: Graph, kinds: dict[str, TypeProto]) -> None:
        """Types that the file declares for the outputs of an operator that nobody knows."""
        if node.version or not self.trust_hints:
            return
        for name in node.outputs:
            hint = graph.values.get(name)
            if name and hint is not None and name not in kinds:
                kinds[name] = tensor_type(hint.dtype, hint.shape)

    def _check_sizes(self, node: Node, outputs: Sequence[Value]) -> None:
        for value in outputs:
            if value.shape is None or not value.dtype or value.dtype == "string":
                continue
            size = stored_bytes(value.dtype, value.size)
            if size > self.limits.value_bytes:
                message = f"node {node.name!r} ({node.op}) would compute {value.name!r} of shape {list(value.shape)}, {size:,} bytes"
                raise ModelError(f"{message}; the limit is {self.limits.value_bytes:,}", where=self.where)

    @staticmethod
    def _finished(graph: Graph, nodes: tuple[Node, ...], constants: dict[str, Constant], known: Mapping[str, Value]) -> Graph:
        own = {*constants, *(value.name for value in graph.inputs), *(name for node in nodes for name in node.outputs if name)}
        values = {name: known[name] for name in own if name in known}
        inputs = tuple(values.get(value.name, value) for value in graph.inputs)
        done = graph.with_nodes(nodes, constants=constants, values=values, inputs=inputs)
        return done.with_nodes(nodes, captures=captures_of(done))


def propagate(graph: Graph, limits: Limits, operators: Operators = NOTHING) -> tuple[Graph, list[Contradiction]]:
    """Type and fold a pinned graph.

    Parameters
    ----------
    graph
        Its inputs have static shapes.
    limits
        Ceilings for single values and for folding.
    operators
        Which operators are replaced by what defines them.

    Raises
    ------
    ModelError
        If a value would be larger than ``limits.value_bytes``.
    """
    walker = _Walker(limits, graph.opsets, graph.name, Budget.of(limits), trust_hints=not graph.pinned, operators=operators)
    types = {value.name: tensor_type(value.dtype, value.shape) for value in graph.inputs}
    walked, _ = walker.walk(graph, types, {}, set(), 0)
    return walked.with_nodes(walked.nodes, captures=()), walker.found
