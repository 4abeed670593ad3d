"""How much a model file may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT", "Limits"]

_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings on what one file can make lipaudit do. Every field counts per model.

    Attributes
    ----------
    file_bytes
        Size of the protobuf, after decompression. Protobuf itself ends at 2 GiB; larger weights live in external data.
    fields
        Protobuf fields outside tensor payloads. An empty message of 2 bytes takes about 80 bytes once parsed, so this bounds
        the memory of the parsed file to roughly 80 times this number.
    nodes, tensors
        Nodes (local functions expanded, subgraphs included) and stored tensors.
    depth
        Graphs nested in attributes of control-flow nodes.
    value_bytes
        Largest single tensor that the graph may compute.
    fold_bytes, fold_total
        Largest constant that folding computes at once, and all of them together. A larger one is computed when it is read.
    """

    file_bytes: int = 2048 * _MB
    fields: int = 24_000_000
    nodes: int = 1_000_000
    tensors: int = 1_000_000
    depth: int = 30
    value_bytes: int = 64 * 1024 * _MB
    fold_bytes: int = 64 * _MB
    fold_total: int = 1024 * _MB


DEFAULT = Limits()
