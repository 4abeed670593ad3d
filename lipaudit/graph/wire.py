"""A look at the protobuf wire format before anything is parsed.

Parsing multiplies memory: an empty message of two bytes becomes about 80. So the bytes are walked first, tensor payloads
are skipped in one step, and a file with too many fields is refused. The same walk cuts the payloads (``raw_data``) of the
top-level initializers out of the bytes, so that parsing and inlining never copy a weight: :class:`Layout` says where each
payload lies in the file, and tensors are viewed there.

References
----------
Protocol Buffers documentation, "Encoding": tag = (field number << 3) | wire type, varints are little-endian groups of 7 bits.
Field numbers are those of onnx.proto (``ModelProto.graph`` = 7 and so on).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lipaudit.errors import ModelError
from lipaudit.graph.limits import Limits

__all__ = ["Layout", "WireError", "measure_depth", "scan"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Which length-delimited fields hold messages worth descending into; every other one is a string, a payload or a small leaf.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function", 8: "leaf", 14: "leaf", 20: "leaf", 26: "leaf"},
    "graph": {1: "node", 5: "tensor", 11: "leaf", 12: "leaf", 13: "leaf", 14: "leaf", 15: "sparse", 16: "leaf"},
    "node": {5: "attribute", 9: "leaf", 10: "leaf"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 14: "leaf", 15: "leaf", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {3: "leaf", 13: "leaf", 16: "leaf"},
    "function": {7: "node", 9: "leaf", 11: "attribute", 12: "leaf", 14: "leaf"},
}

_GRAPH, _NODE, _INITIALIZER, _RAW_DATA = 7, 1, 5, 9
# Cutting a payload costs a few Python steps; below this size parsing it is cheaper.
_SMALL = 256


class WireError(Exception):
    """The bytes are not a protobuf message; ``truncated`` if they only end too early."""

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


@dataclass(frozen=True, slots=True)
class Layout:
    """What the scan found.

    Attributes
    ----------
    skeleton
        The model without the payloads of its larger top-level initializers, ready for ``ParseFromString``.
    payloads
        Index of the initializer -> (offset, length) of its payload in the scanned bytes.
    nodes, tensors
        Numbers at the top level.
    """

    skeleton: bytes
    payloads: dict[int, tuple[int, int]]
    nodes: int
    tensors: int


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The varint at ``at`` and the place behind it."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise WireError(f"number longer than 64 bits at byte {at}")
    raise WireError(f"the file ends inside a number at byte {at}", truncated=True)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Fields of one message: (number, wire type, start of the tag, start and end of the content)."""
    while at < end:
        begin = at
        tag = data[at]
        if tag < 0x80:
            at += 1
        else:
            tag, at = _varint(data, at, end)
        kind, number = tag & 7, tag >> 3
        if number == 0:
            raise WireError(f"field number 0 at byte {begin}")
        if kind == _BYTES:
            if at < end and data[at] < 0x80:
                length = data[at]
                at += 1
            else:
                length, at = _varint(data, at, end)
            stop = at + length
        elif kind == _VARINT:
            _, stop = _varint(data, at, end)
        elif kind == _FIXED64:
            stop = at + 8
        elif kind == _FIXED32:
            stop = at + 4
        else:
            raise WireError(f"wire type {kind} at byte {begin}")
        if stop > end:
            raise WireError(f"field {number} at byte {begin} needs {stop - at} bytes, {end - at} are left", truncated=True)
        yield number, kind, begin, at, stop
        at = stop


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _head(number: int, length: int) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(length)


def _cut_tensor(data: bytes, start: int, end: int) -> tuple[bytes, tuple[int, int] | None]:
    """A TensorProto without its payload, and where the payload is. The last occurrence of a field wins, as in protobuf."""
    kept = bytearray()
    payload: tuple[int, int] | None = None
    for number, kind, begin, content, stop in _fields(data, start, end):
        if number == _RAW_DATA and kind == _BYTES:
            payload = (content, stop - content)
        else:
            kept += data[begin:stop]
    return bytes(kept), payload


def scan(data: bytes, limits: Limits, where: str) -> Layout:
    """Walk the top levels of a serialised ModelProto, count, and cut out the payloads of initializers.

    Parameters
    ----------
    data
        The whole serialised model.
    limits
        What is still accepted.
    where
        File name for messages.

    Raises
    ------
    WireError
        If the bytes are not a protobuf message.
    ModelError
        If a limit is exceeded.
    """
    nodes = tensors = 0
    payloads: dict[int, tuple[int, int]] = {}
    model: list[bytes] = []
    for number, kind, begin, content, stop in _fields(data, 0, len(data)):
        if number != _GRAPH or kind != _BYTES:
            model.append(data[begin:stop])
            continue
        pieces: list[bytes] = []
        run = content  # start of the bytes not copied yet
        for inner, inner_kind, inner_begin, inner_content, inner_stop in _fields(data, content, stop):
            if inner == _NODE:
                nodes += 1
            elif inner == _INITIALIZER and inner_kind == _BYTES:
                if inner_stop - inner_content > _SMALL:
                    kept, payload = _cut_tensor(data, inner_content, inner_stop)
                    if payload is not None:
                        payloads[tensors] = payload
                        pieces += [data[run:inner_begin], _head(_INITIALIZER, len(kept)), kept]
                        run = inner_stop
                tensors += 1
        pieces.append(data[run:stop])
        graph = b"".join(pieces)
        model += [_head(_GRAPH, len(graph)), graph]
    for count, limit, what in ((nodes, limits.nodes, "nodes"), (tensors, limits.tensors, "tensors")):
        if count > limit:
            raise ModelError(f"the graph has {count:,} {what}, more than the limit of {limit:,}", where=where)
    skeleton = b"".join(model)
    # A field takes two bytes at least, so a small skeleton needs no census.
    if len(skeleton) // 2 > limits.fields:
        _census(skeleton, limits, where)
    return Layout(skeleton, payloads, nodes, tensors)


def _census(data: bytes, limits: Limits, where: str) -> None:
    """Count all fields and refuse too many."""
    total = 0
    stack: list[tuple[str, int, int]] = [("model", 0, len(data))]
    while stack:
        kind, start, end = stack.pop()
        children = _CHILDREN[kind]
        for number, wire, _, content, stop in _fields(data, start, end):
            total += 1
            child = children.get(number) if wire == _BYTES else None
            if child == "leaf":
                total += (stop - content) // 2
            elif child is not None:
                stack.append((child, content, stop))
            if total > limits.fields:
                raise ModelError(f"the file holds more than {limits.fields:,} protobuf fields", where=where)


def measure_depth(data: bytes) -> int:
    """How deeply graphs are nested (1 for a plain model); walks everything, so it is for explaining a failed parse."""
    deepest = 0
    stack: list[tuple[str, int, int, int]] = [("model", 0, len(data), 0)]
    while stack:
        kind, start, end, depth = stack.pop()
        deepest = max(deepest, depth)
        for number, wire, _, content, stop in _fields(data, start, end):
            child = _CHILDREN[kind].get(number) if wire == _BYTES else None
            if child in ("graph", "node", "attribute", "function"):
                stack.append((child, content, stop, depth + (child == "graph")))
    return deepest
