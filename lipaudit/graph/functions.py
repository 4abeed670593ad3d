"""Model-local functions are inlined before anything else looks at the graph.

Law: the inlined graph is the meaning that ONNX gives to a call of a local function (onnx.proto, FunctionProto), so it is
the same function. The size of the result is computed first, on the call graph and without expanding anything, because
forty functions that each call the next one twice ask for 2^40 nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import ModelProto, NodeProto, inliner

from lipaudit.errors import ModelError
from lipaudit.graph.limits import Limits

__all__ = ["inlined"]

_Key = tuple[str, str, str]

# Sizes are not counted beyond this: with thousands of functions the exact number has thousands of digits.
_ENOUGH = 10**15


def _key(domain: str, name: str, overload: str) -> _Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _nodes(graph.node)


def inlined(model: ModelProto, limits: Limits, where: str) -> ModelProto:
    """The model without calls of local functions.

    Raises
    ------
    ModelError
        If functions call themselves, expand to more than ``limits.nodes`` nodes, or cannot be inlined.
    """
    functions = {_key(f.domain, f.name, f.overload): f for f in model.functions}
    if not functions:
        return model
    calls = {key: [_key(node.domain, node.op_type, node.overload) for node in _nodes(function.node)] for key, function in functions.items()}
    sizes = _expanded_sizes(calls, where)
    called = [_key(node.domain, node.op_type, node.overload) for node in _nodes(model.graph.node)]
    total = sum(sizes.get(key, 1) for key in called)
    if total > limits.nodes:
        raise ModelError(f"its local functions expand to {total:,} nodes, more than the limit of {limits.nodes:,}", where=where)
    if not any(key in functions for key in called):
        return model
    try:
        return inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # the C++ side throws bare RuntimeError and its own types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"its local functions cannot be inlined: {reason}", where=where) from None


def _expanded_sizes(calls: dict[_Key, list[_Key]], where: str) -> dict[_Key, int]:
    """Nodes that one call of each function expands to; depth-first with an explicit stack."""
    sizes: dict[_Key, int] = {}
    for root in calls:
        stack = [root]
        active: set[_Key] = set()
        while stack:
            key = stack[-1]
            if key in sizes:
                stack.pop()
                active.discard(key)
                continue
            active.add(key)
            pending = [callee for callee in calls[key] if callee in calls and callee not in sizes]
            recursive = next((callee for callee in pending if callee in active), None)
            if recursive is not None:
                raise ModelError(f"the local function {recursive[1]!r} calls itself", where=where)
            if pending:
                stack.append(pending[0])
                continue
            sizes[key] = min(sum(sizes.get(callee, 1) for callee in calls[key]), _ENOUGH)
            stack.pop()
            active.discard(key)
    return sizes
