"""RNN, GRU and LSTM against their own float64 recurrences: Jacobians, pairs, ranges, and each constant attained."""

# ruff: noqa: B023 (the closures are used up inside their own turn of the loop)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lipaudit.operators.base import Finite, Unbounded, Unknown
from lipaudit.operators.outputs import PerOutput
from tests.operators.structured import NORMS, OneNode, attained, box, holds, inside, jacobian, norm_of, points, size_of

Function = Callable[[Any], Any]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Function] = {
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "Relu": lambda x: np.where(x.real > 0, x, 0),
    "Softsign": lambda x: x / (1 + np.where(x.real < 0, -x, x)),
    "HardSigmoid": lambda x: np.where(x.real < -2.5, 0, np.where(x.real > 2.5, 1, 0.2 * x + 0.5)),
}


class Net:
    """Random stored weights of a recurrent operator, and its float64 recurrence on ``[T, B, I]``."""

    def __init__(self, op: str, inputs: int, hidden: int, directions: int, rng: np.random.Generator, size: float) -> None:
        self.op, self.hidden, self.directions = op, hidden, directions
        gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
        self.w = size * rng.standard_normal((directions, gates * hidden, inputs))
        self.r = size * rng.standard_normal((directions, gates * hidden, hidden))
        self.b = rng.standard_normal((directions, 2 * gates * hidden))
        self.p: Any = None
        self.functions = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[op]
        self.clip = 0.0
        self.linear = self.forget = 0
        self.reverse = False
        self.lengths: Any = None

    def args(self, x: Any, h0: Any = None, c0: Any = None) -> list[Any]:
        given = [x, self.w, self.r, self.b, self.lengths, h0]
        return given if self.op != "LSTM" else [*given, c0, self.p]

    def attrs(self) -> dict[str, Any]:
        direction = "bidirectional" if self.directions == 2 else "reverse" if self.reverse else "forward"
        found: dict[str, Any] = {"hidden_size": self.hidden, "direction": direction, "activations": tuple(self.functions * self.directions)}
        if self.clip:
            found["clip"] = self.clip
        if self.linear:
            found["linear_before_reset"] = 1
        if self.forget:
            found["input_forget"] = 1
        return found

    def node(self, x: Any, outputs: tuple[bool, ...], h0: Any = None, c0: Any = None) -> OneNode:
        steps, batch, _ = x.shape
        shapes = [(steps, self.directions, batch, self.hidden), *[(self.directions, batch, self.hidden)] * 2]
        chosen = [shape if wanted else None for shape, wanted in zip(shapes, outputs, strict=False)]
        return OneNode(self.op, self.args(x, h0, c0), chosen, self.attrs(), version=14)

    def cut(self, x: Any) -> Any:
        if not self.clip:
            return x
        return np.where(x.real > self.clip, self.clip, np.where(x.real < -self.clip, -self.clip, x))

    def run(self, x: Any, h0: Any = None, c0: Any = None) -> list[Any]:
        """Y, Y_h and (LSTM) Y_c."""
        steps, batch, _ = x.shape
        kind = np.result_type(x, *(s for s in (h0, c0) if s is not None), np.float64)
        y = np.zeros((steps, self.directions, batch, self.hidden), dtype=kind)
        last = np.zeros((self.directions, batch, self.hidden), dtype=kind)
        store = np.zeros_like(last)
        lengths = np.full(batch, steps) if self.lengths is None else self.lengths
        for d in range(self.directions):
            back = self.reverse or d == 1
            for n in range(batch):
                h = np.zeros(self.hidden, dtype=kind) if h0 is None else h0[d, n].astype(kind)
                c = np.zeros(self.hidden, dtype=kind) if c0 is None else c0[d, n].astype(kind)
                order = range(lengths[n])
                for t in reversed(order) if back else order:
                    h, c = self.step(d, x[t, n], h, c)
                    y[t, d, n] = h
                last[d, n], store[d, n] = h, c
        return [y, last, store] if self.op == "LSTM" else [y, last]

    def step(self, d: int, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[self.op]
        w, r = np.split(self.w[d], gates), np.split(self.r[d], gates)
        b, rb = (np.split(part, gates) for part in np.split(self.b[d], 2))
        f = [FUNCTIONS[name] for name in self.functions]
        if self.op == "RNN":
            return f[0](self.cut(w[0] @ x + r[0] @ h + b[0] + rb[0])), c
        if self.op == "GRU":
            z, reset = (f[0](self.cut(w[k] @ x + r[k] @ h + b[k] + rb[k])) for k in (0, 1))
            inner = reset * (r[2] @ h + rb[2]) if self.linear else r[2] @ (reset * h) + rb[2]
            n = f[1](self.cut(w[2] @ x + inner + b[2]))
            return (1 - z) * n + z * h, c
        pi, po, pf = np.split(self.p[d], 3) if self.p is not None else (0.0, 0.0, 0.0)
        i = f[0](self.cut(w[0] @ x + r[0] @ h + pi * c + b[0] + rb[0]))
        forget = 1 - i if self.forget else f[0](self.cut(w[2] @ x + r[2] @ h + pf * c + b[2] + rb[2]))
        g = f[1](self.cut(w[3] @ x + r[3] @ h + b[3] + rb[3]))
        new = forget * c + i * g
        o = f[0](self.cut(w[1] @ x + r[1] @ h + po * new + b[1] + rb[1]))
        return o * f[2](new), new


def check(net: Net, x: Any, rng: np.random.Generator, h0: Any = None, c0: Any = None, count: int = 4) -> None:
    outputs = (True, True, True) if net.op == "LSTM" else (True, True)
    one = net.node(x, outputs, h0, c0)
    moving = [i for i, state in ((0, x), (5, h0), (6, c0)) if state is not None]
    certified = {(i, norm): one.gain(i, norm) for i in moving for norm in NORMS}
    claimed = one.range()
    previous: dict[int, Any] | None = None
    for k in range(count):
        at = {i: points(one.ranges[i], rng, k + 1)[k] for i in moving}  # type: ignore[arg-type]

        def f(values: dict[int, Any]) -> list[Any]:
            return net.run(values[0], values.get(5), values.get(6))

        for y, found in zip(f(at), claimed, strict=True):
            inside(y, found)
        for i in moving:
            parts = [jacobian(lambda v: f({**at, i: v})[which], at[i]) for which in range(len(outputs))]
            for norm in NORMS:
                gain = certified[i, norm]
                assert isinstance(gain, PerOutput), gain
                holds(float(gain.slope), norm_of(np.concatenate(parts), norm))
                for own, part in zip(gain.outputs, parts, strict=True):
                    holds(float(own.slope), norm_of(part, norm))
                if previous is not None:
                    moved = np.concatenate([(a - b).ravel() for a, b in zip(f(at), f({**at, i: previous[i]}), strict=True)])
                    holds(float(gain.slope) * size_of(at[i] - previous[i], norm), size_of(moved, norm) - 1e-13)
        previous = at


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("seed", range(8))
def test_random_nets(op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    directions = 1 + seed % 2
    net = Net(op, int(rng.integers(1, 4)), int(rng.integers(1, 4)), directions, rng, float(rng.choice([0.3, 1.0, 3.0])))
    batch, steps = 1 + seed % 3 // 2, int(rng.integers(1, 6))
    net.linear, net.forget = seed // 2 % 2, int(seed % 4 == 3)
    net.reverse = directions == 1 and seed % 3 == 0
    net.clip = 1.0 if seed % 5 == 2 else 0.0
    if op == "LSTM" and seed % 3 == 1:
        net.p = rng.standard_normal((directions, 3 * net.hidden))
    if seed % 4 == 1:
        net.lengths = rng.integers(1, steps + 1, batch).astype(np.int32)
    reach = [float("inf"), 0.5, 2.0][seed % 3]
    x = box((steps, batch, net.w.shape[2]), -reach, reach)
    state = (directions, batch, net.hidden)
    h0 = box(state, -1.5, 1.5) if seed % 2 else None
    c0 = box(state, -2, 2) if seed % 2 and op == "LSTM" else None
    check(net, x, rng, h0, c0)


@pytest.mark.parametrize(("op", "functions"), [
    ("RNN", ["Relu"]), ("RNN", ["Softsign"]), ("GRU", ["HardSigmoid", "Softsign"]),
    ("LSTM", ["HardSigmoid", "Tanh", "Relu"]), ("LSTM", ["Sigmoid", "Softsign", "Tanh"]),
])  # fmt: skip
def test_other_functions(op: str, functions: list[str]) -> None:
    rng = np.random.default_rng(3)
    net = Net(op, 2, 2, 1, rng, 0.8)
    net.functions = functions
    check(net, box((3, 1, 2), -2, 2), rng)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_own_recurrence_is_the_operators(op: str) -> None:
    rng = np.random.default_rng(4)
    net = Net(op, 2, 3, 1, rng, 1.0)
    net.linear = int(op == "GRU")
    x = rng.standard_normal((4, 2, 2))
    names = ["x", "w", "r", "b"]
    attrs = {key: value for key, value in net.attrs().items() if key != "activations"}
    node = helper.make_node(op, names, ["y", "h"], **attrs)
    infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in ("x", "y", "h")]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in zip(names[1:], (net.w, net.r, net.b), strict=True)]
    graph = helper.make_graph([node], "one", infos[:1], infos[1:], weights)
    expected = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])).run(None, {"x": x})
    for own, other in zip(net.run(x), expected, strict=False):
        assert np.allclose(own, other, rtol=0, atol=1e-12)


def scalar(op: str, **blocks: float) -> Net:
    """A net of width 1 with named weights (``w0``, ``r2``, ``b1``, ``rb2``, ``p0``); all others are 0."""
    net = Net(op, 1, 1, 1, np.random.default_rng(0), 0.0)
    net.b[:] = 0
    gates = net.w.shape[1]
    for name, value in blocks.items():
        kind, k = name.rstrip("0123"), int(name[-1])
        if kind == "p":
            net.p = np.zeros((1, 3)) if net.p is None else net.p
            net.p[0, k] = value
        else:
            target = {"w": net.w[0, :, 0], "r": net.r[0, :, 0], "b": net.b[0, :gates], "rb": net.b[0, gates:]}[kind]
            target[k] = value
    return net


OPEN, SHUT = 60.0, -60.0
INPUT, OUTPUT, FORGET, CANDIDATE = 0, 1, 2, 3
UPDATE, RESET, HIDDEN = 0, 1, 2

# (net, outputs, which input moves, x, h0, c0) at a point where one term of the step is all there is.
TERMS: dict[str, tuple[Net, tuple[bool, ...], int, float, float | None, float | None]] = {
    "rnn input": (scalar("RNN", w0=2.0), (True,), 0, 0.0, None, None),
    "rnn state": (scalar("RNN", r0=3.0), (True,), 5, 0.0, 0.0, None),
    "gru candidate": (scalar("GRU", w2=2.0, b0=SHUT), (True,), 0, 0.0, None, None),
    "gru update of the mix": (scalar("GRU", w0=3.0, b2=OPEN), (True,), 0, 0.0, -1.0, None),
    "gru state kept": (scalar("GRU", b0=OPEN), (True,), 5, 0.0, 0.5, None),
    "gru state in the update": (scalar("GRU", r0=4000.0, b2=OPEN, b0=4000.0), (True,), 5, 0.0, -1.0, None),
    "gru reset of the input": (scalar("GRU", w1=3.0, r2=2.0, rb2=-1.0, b0=SHUT), (True,), 0, 0.0, 1.0, None),
    "gru state in the candidate": (scalar("GRU", r2=2.0, b0=SHUT, b1=OPEN), (True,), 5, 0.0, 0.0, None),
    "gru state in the reset": (scalar("GRU", r1=300.0, b1=-300.0, r2=1.0, rb2=-0.5, b0=SHUT), (True,), 5, 0.0, 1.0, None),
    "lstm candidate": (scalar("LSTM", w3=2.0, b0=OPEN, b1=OPEN), (True, False, False), 0, 0.0, None, None),
    "lstm state in the candidate": (scalar("LSTM", r3=2.0, b0=OPEN, b1=OPEN), (True, False, False), 5, 0.0, 0.0, None),
    "lstm output gate": (scalar("LSTM", w1=2.0, b0=SHUT, b2=OPEN), (True, False, False), 0, 0.0, None, 8.0),
    "lstm state in the output gate": (scalar("LSTM", r1=2.0, b0=SHUT, b2=OPEN), (True, False, False), 5, 0.0, 0.0, 8.0),
    "lstm forget gate": (scalar("LSTM", w2=2.0, b0=SHUT), (False, False, True), 0, 0.0, None, 8.0),
    "lstm input gate": (scalar("LSTM", w0=2.0, b3=OPEN), (False, False, True), 0, 0.0, None, None),
    "lstm memory": (scalar("LSTM", b2=OPEN), (False, False, True), 6, 0.0, None, 0.0),
    "lstm memory to state": (scalar("LSTM", b0=SHUT, b1=OPEN, b2=OPEN), (True, False, False), 6, 0.0, None, 0.0),
    "lstm peephole of the input": (scalar("LSTM", p0=400.0, b3=OPEN), (False, False, True), 6, 0.0, None, 0.0),
    "lstm peephole of the output": (scalar("LSTM", p1=4000.0, b0=SHUT, b2=OPEN, b1=-32000.0), (True, False, False), 6, 0.0, None, 8.0),
    "lstm peephole of the forget gate": (scalar("LSTM", p2=400.0, b2=-3200.0, b0=SHUT), (False, False, True), 6, 0.0, None, 8.0),
}  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_every_term_of_a_step_is_attained(name: str) -> None:
    net, outputs, moving, x, h0, c0 = TERMS[name]

    def state(value: float | None, i: int) -> Any:
        if value is None:
            return None
        return box((1, 1, 1), -abs(value), abs(value)) if moving == i else np.full((1, 1, 1), value)

    one = net.node(box((1, 1, 1)), outputs, state(h0, 5), state(c0, 6))
    whole = lambda v: None if v is None else np.full((1, 1, 1), v)  # noqa: E731
    values = {0: np.full((1, 1, 1), x), 5: whole(h0), 6: whole(c0)}
    which = outputs.index(True)
    matrix = jacobian(lambda v: net.run(*(v if i == moving else values[i] for i in (0, 5, 6)))[which], values[moving])
    for norm in NORMS:
        attained(one.slope(moving, norm), norm_of(matrix, norm), 0.9901)


def test_candidate_before_reset_is_attained() -> None:
    net = scalar("GRU", w1=3.0, r2=2.0, rb2=1.5, b2=-1.75, b0=SHUT)
    net.linear = 1
    one = net.node(box((1, 1, 1)), (True,), np.ones((1, 1, 1)))
    matrix = jacobian(lambda v: net.run(v, np.ones((1, 1, 1)))[0], np.zeros((1, 1, 1)))
    attained(one.slope(), norm_of(matrix, "l2"))


def test_input_forget_is_attained() -> None:
    net = scalar("LSTM", w0=2.0, b3=OPEN)
    net.forget = 1
    one = net.node(box((1, 1, 1)), (False, False, True), None, np.full((1, 1, 1), -4.0))
    matrix = jacobian(lambda v: net.run(v, None, np.full((1, 1, 1), -4.0))[2], np.zeros((1, 1, 1)))
    attained(one.slope(), norm_of(matrix, "l2"))


def test_steps_add_up() -> None:
    net = scalar("RNN", w0=2.0, r0=0.5)
    steps = 4
    one = net.node(box((steps, 1, 1)), (True, True))
    matrix = jacobian(lambda v: net.run(v)[0], np.zeros((steps, 1, 1)))
    last = jacobian(lambda v: net.run(v)[1], np.zeros((steps, 1, 1)))
    for norm in NORMS:
        gain = one.gain(0, norm)
        assert isinstance(gain, PerOutput)
        attained(float(gain.outputs[0].slope), norm_of(matrix, norm))
        attained(float(gain.outputs[1].slope), norm_of(last, norm))
    start = net.node(box((steps, 1, 1), 0, 0), (True, True), box((1, 1, 1), -1, 1))
    matrix = jacobian(lambda v: net.run(np.zeros((steps, 1, 1)), v)[0], np.zeros((1, 1, 1)))
    for norm in NORMS:
        gain = start.gain(5, norm)
        assert isinstance(gain, PerOutput)
        attained(float(gain.outputs[0].slope), norm_of(matrix, norm))


def test_memory_grows_with_time_unless_the_forget_gate_closes() -> None:
    net = scalar("LSTM", w2=2.0, b0=OPEN, b3=OPEN, b1=OPEN)
    free = net.node(box((40, 1, 1)), (True, True, True))
    assert float(free.range()[2].hi) == pytest.approx(40)
    held = net.node(box((40, 1, 1), -1, 1), (True, True, True))
    assert float(held.range()[2].hi) < 8.5
    assert held.slope() < free.slope()


def test_refusals_have_reasons() -> None:
    net = scalar("LSTM", w2=1.0)
    free = net.node(box((2, 1, 1)), (True, True, True), box((1, 1, 1)), box((1, 1, 1)))
    found = free.gain(0)
    assert isinstance(found, Unbounded) and "initial state" in found.reason
    kept = free.gain(5)
    assert isinstance(kept, Finite) and float(kept.slope) >= 0  # nothing but the gates reads the state here
    moving = OneNode("RNN", [box((2, 1, 1)), box((1, 1, 1)), np.zeros((1, 1, 1))], [(2, 1, 1, 1)], {}, version=14)
    assert isinstance(moving.gain(1), Unknown)
    net.functions = ["Relu", "Tanh", "Tanh"]
    assert isinstance(net.node(box((2, 1, 1)), (True,)).gain(0), Unknown)
    jumps = scalar("RNN", w0=1.0)
    jumps.functions = ["ThresholdedRelu"]
    assert isinstance(jumps.node(box((2, 1, 1)), (True,)).gain(0), Unknown)
    ok = scalar("GRU", w2=1.0).node(box((2, 1, 1)), (True,))
    assert isinstance(ok.gain(0), Finite)


def test_layout_batch_first() -> None:
    rng = np.random.default_rng(7)
    net = Net("RNN", 2, 2, 1, rng, 0.7)
    x = box((3, 4, 2))
    first = OneNode("RNN", net.args(x), [(3, 4, 1, 2)], {**net.attrs(), "layout": 1}, version=14)
    second = net.node(box((4, 3, 2)), (True,))
    assert first.slope() == second.slope()


def test_no_weight_on_an_unbounded_state_is_no_influence() -> None:
    # 0 times an infinite reach once became "the gate is closed".
    net = scalar("LSTM", w3=1.0, b0=OPEN, b1=OPEN)
    one = net.node(box((1, 1, 1)), (True, False, False), box((1, 1, 1)), np.zeros((1, 1, 1)))
    matrix = jacobian(lambda v: net.run(v, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))[0], np.zeros((1, 1, 1)))
    attained(one.slope(), norm_of(matrix, "l2"))
