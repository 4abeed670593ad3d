"""Loop and Scan with a known number of turns, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lipaudit.graph.ir import Constant, Graph
from lipaudit.graph.simplify.renaming import defines, rename_all
from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS", "MOST_NODES"]

# Of all turns together.
MOST_NODES = 5000


def _turn(e: Emitter, body: Graph, given: Sequence[str]) -> list[str]:
    """The nodes of one turn with the body's inputs being ``given``; its outputs."""
    names = {name: e.fresh(name) for name in sorted(defines(body))}
    names.update({value.name: outer for value, outer in zip(body.inputs, given, strict=True)})
    turn = rename_all(body, names)
    for node in turn.nodes:
        e.nodes.append(node.renamed(name=e.fresh(node.name), covers=(node.name,)))
    e.constants.update(turn.constants)
    return list(turn.outputs)


def _one(constant: Constant | None) -> int | None:
    return None if constant is None or constant.size != 1 else int(np.asarray(constant.array()).reshape(-1)[0])


def _goes_on(body: Graph, site: Site) -> bool:
    """Whether nothing in the body can stop the loop: the condition is passed on, or is always true."""
    name = body.outputs[0]
    node = body.producer.get(name)
    while node is not None and node.kind in {"ai.onnx::Identity", "ai.onnx::Cast"}:
        name = node.inputs[0]
        node = body.producer.get(name)
    if name == body.inputs[1].name:
        return True
    return bool(_one(body.constants.get(name)) or name == site.node.inputs[1])


def _sized(turns: int, body: Graph, site: Site) -> None:
    if turns * max(len(body.nodes), 1) > MOST_NODES:
        raise NotLowered(f"{site.node.op} with {turns} turns of {len(body.nodes)} nodes")


def _stacked(e: Emitter, pieces: Sequence[str], axis: int) -> str:
    raised = [e.add("Unsqueeze", piece, axes=(axis,)) if e.opset < 13 else e.add("Unsqueeze", piece, e.ints(axis)) for piece in pieces]
    return e.concat(raised, axis)


def _loop(e: Emitter, site: Site) -> Sequence[str]:
    body: Graph = site.node.attrs["body"]
    turns = _one(site.constant(0)) if site.has(0) else None
    start = _one(site.constant(1)) if site.has(1) else 1
    if turns is None or start is None or not _goes_on(body, site):
        raise NotLowered("Loop whose number of turns is computed")
    turns = max(turns, 0) if start else 0
    _sized(turns, body, site)
    states = list(site.node.inputs[2:])
    pieces: list[list[str]] = [[] for _ in body.outputs[1 + len(states) :]]
    if not turns and pieces:
        raise NotLowered("Loop without a turn")
    going = e.constant(np.array(True))
    for i in range(turns):
        found = _turn(e, body, [e.constant(np.array(i, dtype=np.int64)), going, *states])
        states = found[1 : 1 + len(states)]
        for kept, piece in zip(pieces, found[1 + len(states) :], strict=True):
            kept.append(piece)
    return [*states, *(_stacked(e, kept, 0) for kept in pieces)]


def _scan(e: Emitter, site: Site) -> Sequence[str]:
    if site.node.version < 9:
        raise NotLowered("Scan of opset 8")
    body: Graph = site.node.attrs["body"]
    count = int(site.attr("num_scan_inputs"))
    inputs = site.node.inputs
    first = len(inputs) - count
    outs = len(body.outputs) - first
    in_axes = [axis % len(site.shape(first + k)) for k, axis in enumerate(site.attr("scan_input_axes") or (0,) * count)]
    backwards, out_backwards = site.attr("scan_input_directions") or (0,) * count, site.attr("scan_output_directions") or (0,) * outs
    turns = {site.shape(first + k)[axis] for k, axis in enumerate(in_axes)}
    if len(turns) != 1 or not (length := turns.pop()):
        raise NotLowered("Scan without a turn")
    _sized(length, body, site)
    cut = [e.split(inputs[first + k], axis, [1] * length) for k, axis in enumerate(in_axes)]
    states = list(inputs[:first])
    pieces: list[list[str]] = [[] for _ in range(outs)]
    for i in range(length):
        parts: list[str] = []
        for k, axis in enumerate(in_axes):
            whole = site.shape(first + k)
            parts.append(e.reshape(cut[k][length - 1 - i if backwards[k] else i], *whole[:axis], *whole[axis + 1 :]))
        found = _turn(e, body, [*states, *parts])
        states = found[:first]
        for kept, piece in zip(pieces, found[first:], strict=True):
            kept.append(piece)
    axes = site.attr("scan_output_axes") or (0,) * outs
    stacks: list[str] = []
    for k, kept in enumerate(pieces):
        out = site.outputs[first + k]
        rank = len(out.shape) if out is not None and out.shape is not None else 1
        stacks.append(_stacked(e, kept[::-1] if out_backwards[k] else kept, axes[k] % rank))
    return [*states, *stacks]


LOWERINGS: Mapping[str, Lowering] = {"ai.onnx::Loop": _loop, "ai.onnx::Scan": _scan}
