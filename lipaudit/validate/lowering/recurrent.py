"""LSTM, GRU and RNN, one group of nodes a step: the number of steps is known, and every gate becomes a value that a derivative can use.

Equations and the order of gates are those of the operators in the ONNX specification (LSTM i, o, f, c; GRU z, r, h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS", "MOST_STEPS", "unrolled"]

Array = NDArray[Any]

# Steps times directions. onnxruntime plans the memory of a chain of nodes in time that grows with its square.
MOST_STEPS = 512

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ACTIVATIONS = {name.lower(): name for name in ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh")}


@dataclass(frozen=True)
class _Direction:
    """Weights of one direction, transposed: ``w`` [in, gates * hidden], ``r`` [hidden, gates * hidden]."""

    w: Array
    r: Array
    bias: tuple[Array, Array]
    peephole: Array
    activations: tuple[str, ...]
    hidden: int

    def bounded(self, e: Emitter, i: int, x: str) -> str:
        """Activation ``i`` of ``x``."""
        return e.add(self.activations[i], x)


# One direction: (inputs of the steps [N, in] in order, initial h, initial c) -> (h of every step, last c)
_Steps = Callable[[Emitter, Site, _Direction, Sequence[str], str, str], tuple[list[str], str]]


def _lstm(e: Emitter, site: Site, d: _Direction, outside: Sequence[str], h: str, c: str) -> tuple[list[str], str]:
    n = d.hidden
    r = e.floats(d.r)
    peepholes = [e.floats(part) for part in np.split(d.peephole, 3)] if d.peephole.any() else None

    def seen(gate: str, i: int, cell: str) -> str:
        return gate if peepholes is None else e.add("Add", gate, e.add("Mul", peepholes[i], cell))

    hs: list[str] = []
    for x in outside:
        i, o, f, g = e.split(e.add("Add", x, e.add("MatMul", h, r)), 1, [n] * 4)
        kept = e.add("Mul", d.bounded(e, 0, seen(f, 2, c)), c)
        c = e.add("Add", kept, e.add("Mul", d.bounded(e, 0, seen(i, 0, c)), d.bounded(e, 1, g)))
        h = e.add("Mul", d.bounded(e, 0, seen(o, 1, c)), d.bounded(e, 2, c))
        hs.append(h)
    return hs, c


def _gru(e: Emitter, site: Site, d: _Direction, outside: Sequence[str], h: str, c: str) -> tuple[list[str], str]:
    n = d.hidden
    gates, inner = e.floats(d.r[:, : 2 * n]), e.floats(d.r[:, 2 * n :])
    gates_bias, inner_bias = e.floats(d.bias[1][: 2 * n]), e.floats(d.bias[1][2 * n :])
    after, one = bool(site.attr("linear_before_reset", 0)), e.floats(1.0)
    hs: list[str] = []
    for x in outside:
        x_gates, x_inner = e.split(x, 1, [2 * n, n])
        both = e.add("Add", x_gates, e.add("Add", e.add("MatMul", h, gates), gates_bias))
        z, r = e.split(d.bounded(e, 0, both), 1, [n, n])
        if after:
            hidden = e.add("Mul", r, e.add("Add", e.add("MatMul", h, inner), inner_bias))
        else:
            hidden = e.add("Add", e.add("MatMul", e.add("Mul", r, h), inner), inner_bias)
        candidate = d.bounded(e, 1, e.add("Add", x_inner, hidden))
        h = e.add("Add", e.add("Mul", e.add("Sub", one, z), candidate), e.add("Mul", z, h))
        hs.append(h)
    return hs, c


def _rnn(e: Emitter, site: Site, d: _Direction, outside: Sequence[str], h: str, c: str) -> tuple[list[str], str]:
    r = e.floats(d.r)
    hs: list[str] = []
    for x in outside:
        h = d.bounded(e, 0, e.add("Add", x, e.add("MatMul", h, r)))
        hs.append(h)
    return hs, c


def _stored(site: Site, i: int, what: str) -> Array | None:
    constant = site.constant(i)
    if constant is None and site.has(i):
        raise NotLowered(f"{site.node.op} with computed {what}")
    return None if constant is None else np.asarray(constant.array())


def _recurrent(gates: int, steps: _Steps) -> Lowering:
    def lower(e: Emitter, site: Site) -> Sequence[str]:
        w, r = _stored(site, 1, "weights"), _stored(site, 2, "weights")
        if w is None or r is None:
            raise NotLowered(f"{site.node.op} without weights")
        return unrolled(e, site, gates, steps, w, r)

    return lower


def unrolled(e: Emitter, site: Site, gates: int, steps: _Steps, w: Array, r: Array, peephole_at: int = 7) -> Sequence[str]:
    """The nodes of a recurrent site with weights ``w`` [directions, gates * hidden, in] and ``r`` [directions, gates * hidden, hidden].

    Raises
    ------
    NotLowered
        For attributes that change the equations, sequences of different lengths, computed weights, or more than
        :data:`MOST_STEPS` steps.
    """
    op = site.node.op.removeprefix("DynamicQuantize")
    count, hidden = w.shape[0], r.shape[-1]
    if site.attr("clip") is not None or site.attr("input_forget", 0) or site.attr("activation_alpha") or site.attr("activation_beta"):
        raise NotLowered(f"{op} with clip, input_forget or parameters of activations")
    # Not the schema's default, which names two directions for an RNN of one.
    named = tuple(site.node.attrs.get("activations") or _DEFAULTS[op] * count)
    if len(named) != len(_DEFAULTS[op]) * count or any(name.lower() not in _ACTIVATIONS for name in named):
        raise NotLowered(f"{op} with activations {', '.join(named)}")
    first = bool(site.attr("layout", 0))
    shape = site.shape(0)
    batch, length, width = (shape[0], shape[1], shape[2]) if first else (shape[1], shape[0], shape[2])
    if length * count > MOST_STEPS:
        raise NotLowered(f"{op} with {length} steps")
    lengths = _stored(site, 4, "lengths of its sequences")
    if lengths is not None and not np.all(lengths == length):
        raise NotLowered(f"{op} with sequences of different lengths")
    bias, peephole = _stored(site, 3, "biases"), _stored(site, peephole_at, "peepholes")
    x = e.add("Transpose", site.node.inputs[0], perm=(1, 0, 2)) if first else site.node.inputs[0]
    ys: list[str] = []
    last: list[list[str]] = [[], []]
    for d in range(count):
        wb, rb = np.split(bias[d] if bias is not None else np.zeros(2 * gates * hidden), 2)
        each = len(_DEFAULTS[op])
        chosen = tuple(_ACTIVATIONS[name.lower()] for name in named[d * each : (d + 1) * each])
        direction = _Direction(w[d].T, r[d].T, (wb, rb), np.zeros(3 * hidden) if peephole is None else peephole[d], chosen, hidden)
        # The recurrent bias of a GRU acts inside its gates.
        outer = wb if op == "GRU" else wb.astype(np.float64) + rb.astype(np.float64)
        flat = e.add("Add", e.add("MatMul", e.reshape(x, length * batch, width), e.floats(direction.w)), e.floats(outer))
        outside = e.split(flat, 0, [batch] * length)
        backwards = d == 1 or site.attr("direction", "forward") == "reverse"
        h, c = (_initial(e, site, i, d, count, batch, hidden, first) for i in (5, 6))
        hs, cell = steps(e, site, direction, outside[::-1] if backwards else outside, h, c)
        last[0].append(hs[-1])
        last[1].append(cell)
        ys.append(e.reshape(e.concat(hs[::-1] if backwards else hs, 0), length, 1, batch, hidden))
    y = e.concat(ys, 1)
    finals = [e.reshape(e.concat(parts, 0), count, batch, hidden) for parts in last]
    if first:
        y = e.add("Transpose", y, perm=(2, 0, 1, 3))
        finals = [e.add("Transpose", final, perm=(1, 0, 2)) for final in finals]
    return [y, *finals][: len(site.node.outputs)]


def _initial(e: Emitter, site: Site, i: int, d: int, count: int, batch: int, hidden: int, first: bool) -> str:
    if (i == 6 and "LSTM" not in site.node.op) or not site.has(i):
        return e.floats(np.zeros((batch, hidden)))
    name = site.node.inputs[i]
    axis = 1 if first else 0
    part = name if count == 1 else e.slice(name, axis, d, d + 1)
    return e.reshape(part, batch, hidden)


def _dynamic_lstm(e: Emitter, site: Site) -> Sequence[str]:
    """``com.microsoft::DynamicQuantizeLSTM`` with its stored weights as real numbers; the steps of its inputs are left out.

    W is [directions, in, 4 * hidden] there, R [directions, hidden, 4 * hidden]; inputs 8 to 11 are their scales and zero points.
    """
    matrices: list[Array] = []
    for at, scale_at in ((1, 8), (2, 10)):
        stored, scale, zero = _stored(site, at, "weights"), _stored(site, scale_at, "scales"), _stored(site, scale_at + 1, "zero points")
        if stored is None or scale is None or zero is None:
            raise NotLowered("DynamicQuantizeLSTM without weights")
        column = (-1, 1, 1) if scale.ndim == 1 else (scale.shape[0], 1, -1)
        real = (stored.astype(np.float64) - zero.astype(np.float64).reshape(column)) * scale.astype(np.float64).reshape(column)
        matrices.append(real.swapaxes(1, 2))
    return unrolled(e, site, 4, _lstm, matrices[0], matrices[1])


LOWERINGS: Mapping[str, Lowering] = {
    "ai.onnx::GRU": _recurrent(3, _gru),
    "ai.onnx::LSTM": _recurrent(4, _lstm),
    "ai.onnx::RNN": _recurrent(1, _rnn),
    "com.microsoft::DynamicQuantizeLSTM": _dynamic_lstm,
}
