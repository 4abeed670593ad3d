"""A graph that is written node by node, as the networks of these tests write theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

__all__ = ["Writer"]


class Writer:
    """``nodes`` in order, and ``constants`` by name, to begin with the weights."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = dict(weights)

    def add(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        """Append a node with one output, whose name is returned."""
        name = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def const(self, value: Any) -> str:
        """Store a constant, whose name is returned."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name
