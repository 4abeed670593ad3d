"""LSTM, GRU and RNN, all sequences of full length; LSTM as ONNX Runtime quantises it on the fly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lipaudit.validate.exact.call import Array, Call, NotExact, Operator
from lipaudit.validate.exact.elementwise import sigmoid

__all__ = ["OPERATORS", "dynamic_quantize_lstm"]

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "softplus": lambda x: np.logaddexp(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tanh": np.tanh,
}


def _stepped(x: Array) -> Array:
    """``x`` after DynamicQuantizeLinear and DequantizeLinear."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255 or 1.0
    zero = np.clip(np.round(-low / scale), 0, 255)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


@dataclass(frozen=True)
class _Cell:
    """One direction of a layer: ``w`` [gates * hidden, in], ``r`` [gates * hidden, hidden], ``b`` [2 * gates * hidden], peepholes ``p``.

    ``seen`` is what becomes of a left factor before it is multiplied.
    """

    w: Array
    r: Array
    b: Array
    p: Array
    functions: Sequence[Callable[[Array], Array]]
    after: bool = False
    seen: Callable[[Array], Array] = lambda x: x

    def outside(self, x: Array, bias: Array) -> Array:
        """What the inputs ``[steps, batch, in]`` contribute to the gates."""
        return self.seen(x) @ self.w.T + bias


# (cell, x [T,N,I], initial h, initial c) -> (y [T,N,H], h, c)
_Steps = Callable[[_Cell, Array, Array, Array], tuple[Array, Array, Array]]


def _lstm(cell: _Cell, x: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    size = h.shape[-1]
    f_gate, f_cell, f_out = cell.functions
    outside = cell.outside(x, cell.b[: 4 * size] + cell.b[4 * size :])
    pi, po, pf = cell.p[:size], cell.p[size : 2 * size], cell.p[2 * size :]
    ys = []
    for t in range(x.shape[0]):
        gates = outside[t] + cell.seen(h) @ cell.r.T
        i, o, f, g = (gates[:, k * size : (k + 1) * size] for k in range(4))
        i, f = f_gate(i + pi * c), f_gate(f + pf * c)
        c = f * c + i * f_cell(g)
        h = f_gate(o + po * c) * f_out(c)
        ys.append(h)
    return np.stack(ys), h, c


def _gru(cell: _Cell, x: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    size = h.shape[-1]
    f_gate, f_cell = cell.functions
    rb = cell.b[3 * size :]
    outside = cell.outside(x, cell.b[: 3 * size])
    r, rh, rbh = cell.r[: 2 * size], cell.r[2 * size :], rb[2 * size :]
    ys = []
    for t in range(x.shape[0]):
        recurrent = h @ r.T + rb[: 2 * size]
        z = f_gate(outside[t, :, :size] + recurrent[:, :size])
        reset = f_gate(outside[t, :, size : 2 * size] + recurrent[:, size:])
        inner = reset * (h @ rh.T + rbh) if cell.after else (reset * h) @ rh.T + rbh
        h = (1 - z) * f_cell(outside[t, :, 2 * size :] + inner) + z * h
        ys.append(h)
    return np.stack(ys), h, c


def _rnn(cell: _Cell, x: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    size = h.shape[-1]
    outside = cell.outside(x, cell.b[:size] + cell.b[size:])
    ys = []
    for t in range(x.shape[0]):
        h = cell.functions[0](outside[t] + h @ cell.r.T)
        ys.append(h)
    return np.stack(ys), h, c


def _functions(call: Call, op: str, count: int) -> list[list[Callable[[Array], Array]]]:
    """The activations of each direction."""
    each = _DEFAULTS[op]
    # Not the schema's default, which names two directions for an RNN of one.
    named = tuple(call.site.node.attrs.get("activations") or each * count)
    if any(name.lower() not in _ACTIVATIONS for name in named) or call.site.attr("activation_alpha") or call.site.attr("activation_beta"):
        raise NotExact(f"{op} with activations {', '.join(named)}")
    return [[_ACTIVATIONS[name.lower()] for name in named[d * len(each) : (d + 1) * len(each)]] for d in range(count)]


def _layer(call: Call, op: str, gates: int, steps: _Steps, w: Array, r: Array, seen: Callable[[Array], Array] | None) -> tuple[Array, ...]:
    site = call.site
    x, bias, lengths = call.x(0), call.optional(3), call.optional(4)
    h0, c0, peephole = call.optional(5), call.optional(6), call.optional(7)
    count = w.shape[0]
    functions = _functions(call, op, count)
    if site.attr("clip") is not None or site.attr("input_forget", 0):
        raise NotExact(f"{op} with clip or input_forget")
    layout = site.attr("layout", 0)
    x = x.transpose(1, 0, 2) if layout else x
    length, batch, _ = x.shape
    if lengths is not None and not np.all(lengths == length):
        raise NotExact(f"{op} with sequences of different lengths")
    size = r.shape[-1]
    zero = np.zeros((count, batch, size), dtype=call.floating)
    h0 = zero if h0 is None else (h0.transpose(1, 0, 2) if layout else h0)
    c0 = zero if c0 is None else (c0.transpose(1, 0, 2) if layout else c0)
    ys, hs, cs = [], [], []
    for d in range(count):
        backwards = d == 1 or site.attr("direction", "forward") == "reverse"
        b = np.zeros(2 * gates * size, dtype=call.floating) if bias is None else bias[d]
        p = np.zeros(3 * size, dtype=call.floating) if peephole is None else peephole[d]
        cell = _Cell(w[d], r[d], b, p, functions[d], bool(site.attr("linear_before_reset", 0)), seen or (lambda v: v))
        y, h, c = steps(cell, x[::-1] if backwards else x, h0[d], c0[d])
        ys.append(y[::-1] if backwards else y)
        hs.append(h)
        cs.append(c)
    y, h, c = np.stack(ys, axis=1), np.stack(hs), np.stack(cs)
    if layout:
        y, h, c = y.transpose(2, 0, 1, 3), h.transpose(1, 0, 2), c.transpose(1, 0, 2)
    return (y, h, c) if op == "LSTM" else (y, h)


def _recurrent(op: str, gates: int, steps: _Steps) -> Operator:
    return lambda call: _layer(call, op, gates, steps, call.x(1), call.x(2), None)


def dynamic_quantize_lstm(call: Call) -> tuple[Array, ...]:
    """``com.microsoft::DynamicQuantizeLSTM``: inputs and hidden states are rounded to 8 bits at every step, weights are stored so.

    W is [directions, in, 4 * hidden] there, R [directions, hidden, 4 * hidden]; inputs 8 to 11 are their scales and zero points.
    """
    matrices = []
    for at, scale_at in ((1, 8), (2, 10)):
        scale, zero = call.x(scale_at), call.x(scale_at + 1)
        column = (-1, 1, 1) if scale.ndim == 1 else (scale.shape[0], 1, -1)
        real = (call.x(at).astype(call.floating) - zero.astype(call.floating).reshape(column)) * scale.reshape(column)
        matrices.append(real.swapaxes(1, 2))
    return _layer(call, "LSTM", 4, _lstm, matrices[0], matrices[1], _stepped)


OPERATORS: Mapping[str, Operator] = {
    "GRU": _recurrent("GRU", 3, _gru),
    "LSTM": _recurrent("LSTM", 4, _lstm),
    "RNN": _recurrent("RNN", 1, _rnn),
}
