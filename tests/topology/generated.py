"""Large generated graphs, built directly as :class:`Graph`."""

from __future__ import annotations

import numpy as np

from lipaudit.graph.ir import Constant, Graph, Node, Value


class Builder:
    """Appends nodes over values of one shape."""

    def __init__(self, shape: tuple[int, ...] = (1, 4)) -> None:
        self.shape = shape
        self.nodes: list[Node] = []
        self.values = {"x": Value("x", "float32", shape)}
        weight = Constant.of("w", np.eye(shape[-1], dtype=np.float32))
        self.constants = {"w": weight}

    def add(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attrs: object) -> str:
        """One node; the name of its (first) output."""
        index = len(self.nodes)
        names = tuple(f"v{index}" if k == 0 else f"v{index}_{k}" for k in range(outputs))
        self.nodes.append(Node(f"n{index}", op, inputs, names, domain, 13, attrs, (f"n{index}",)))
        self.values.update((name, Value(name, "float32", self.shape)) for name in names)
        return names[0]

    def layer(self, value: str) -> str:
        """A weight layer and an activation."""
        return self.add("Relu", self.add("MatMul", value, "w"))

    def graph(self, *outputs: str) -> Graph:
        """The whole graph."""
        return Graph("generated", tuple(self.nodes), (self.values["x"],), outputs, self.constants, self.values, {"": 18})


def chain(nodes: int) -> Graph:
    """MatMul, Relu, MatMul, Relu, ..."""
    build, value = Builder(), "x"
    for _ in range(nodes // 2):
        value = build.layer(value)
    return build.graph(value)


def residuals(nodes: int) -> Graph:
    """Residual blocks one after another."""
    build, value = Builder(), "x"
    for _ in range(nodes // 4):
        value = build.add("Add", value, build.add("MatMul", build.layer(value), "w"))
    return build.graph(value)


def nested(nodes: int) -> Graph:
    """x + f(x + f(x + ...)): residual blocks inside each other."""
    build, value = Builder(), "x"
    below: list[str] = []
    for _ in range(nodes // 3):
        below.append(value)
        value = build.layer(value)
    for shortcut in reversed(below):
        value = build.add("Add", value, shortcut)
    return build.graph(value)


def fan_out(nodes: int) -> Graph:
    """Many branches of one value, summed at the end."""
    build = Builder()
    branches = [build.layer("x") for _ in range(nodes // 2)]
    return build.graph(build.add("Sum", *branches))


def comb(nodes: int) -> Graph:
    """A chain, then nodes that each read its end and the source."""
    build, value = Builder(), "x"
    for _ in range(nodes // 4):
        value = build.layer(value)
    total = value
    for _ in range(nodes // 4):
        total = build.add("Add", total, build.add("Add", value, "x"))
    return build.graph(total)


def dense(nodes: int) -> Graph:
    """Every layer is added to a running sum that all later layers read."""
    build, value = Builder(), "x"
    total = "x"
    for _ in range(nodes // 3):
        value = build.layer(total)
        total = build.add("Add", total, value)
    return build.graph(total)


SHAPES = {"chain": chain, "residuals": residuals, "nested": nested, "fan_out": fan_out, "comb": comb, "dense": dense}
