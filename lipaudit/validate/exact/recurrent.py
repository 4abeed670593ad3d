"""LSTM, GRU and RNN with default activations, all sequences of full length."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lipaudit.validate.exact.call import Array, Call, NotExact, Operator
from lipaudit.validate.exact.elementwise import sigmoid

__all__ = ["OPERATORS"]

# One direction: (x [T,N,I], w, r, bias [2*gates*H], initial h, initial c, peephole) -> (y [T,N,H], h, c)
_Direction = Callable[[Call, Array, Array, Array, Array, Array, Array, Array], tuple[Array, Array, Array]]

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _lstm(call: Call, x: Array, w: Array, r: Array, b: Array, h: Array, c: Array, p: Array) -> tuple[Array, Array, Array]:
    size = h.shape[-1]
    outside = x @ w.T + (b[: 4 * size] + b[4 * size :])
    pi, po, pf = p[:size], p[size : 2 * size], p[2 * size :]
    ys = []
    for t in range(x.shape[0]):
        gates = outside[t] + h @ r.T
        i, o, f, g = (gates[:, k * size : (k + 1) * size] for k in range(4))
        i, f = sigmoid(i + pi * c), sigmoid(f + pf * c)
        c = f * c + i * np.tanh(g)
        h = sigmoid(o + po * c) * np.tanh(c)
        ys.append(h)
    return np.stack(ys), h, c


def _gru(call: Call, x: Array, w: Array, r: Array, b: Array, h: Array, c: Array, p: Array) -> tuple[Array, Array, Array]:
    size = h.shape[-1]
    wb, rb = b[: 3 * size], b[3 * size :]
    outside = x @ w.T + wb
    after = bool(call.site.attr("linear_before_reset", 0))
    ys = []
    for t in range(x.shape[0]):
        recurrent = h @ r[: 2 * size].T + rb[: 2 * size]
        z = sigmoid(outside[t, :, :size] + recurrent[:, :size])
        reset = sigmoid(outside[t, :, size : 2 * size] + recurrent[:, size:])
        rh, rbh = r[2 * size :], rb[2 * size :]
        inner = reset * (h @ rh.T + rbh) if after else (reset * h) @ rh.T + rbh
        h = (1 - z) * np.tanh(outside[t, :, 2 * size :] + inner) + z * h
        ys.append(h)
    return np.stack(ys), h, c


def _rnn(call: Call, x: Array, w: Array, r: Array, b: Array, h: Array, c: Array, p: Array) -> tuple[Array, Array, Array]:
    size = h.shape[-1]
    ys = []
    for t in range(x.shape[0]):
        h = np.tanh(x[t] @ w.T + h @ r.T + b[:size] + b[size:])
        ys.append(h)
    return np.stack(ys), h, c


def _recurrent(op: str, gates: int, direction: _Direction) -> Operator:
    def run(call: Call) -> tuple[Array, ...]:
        site = call.site
        x, w, r, bias, lengths = call.x(0), call.x(1), call.x(2), call.optional(3), call.optional(4)
        h0, c0, peephole = call.optional(5), call.optional(6), call.optional(7)
        count = w.shape[0]
        activations = tuple(a.lower() for a in site.attr("activations") or ())
        if activations and activations != tuple(a.lower() for a in _DEFAULTS[op]) * count:
            raise NotExact(f"{op} with other activations")
        if site.attr("clip") is not None or site.attr("input_forget", 0):
            raise NotExact(f"{op} with clip or input_forget")
        layout = site.attr("layout", 0)
        x = x.transpose(1, 0, 2) if layout else x
        steps, batch, _ = x.shape
        if lengths is not None and not np.all(lengths == steps):
            raise NotExact(f"{op} with sequences of different lengths")
        size = r.shape[-1]
        zero = np.zeros((count, batch, size))
        h0 = zero if h0 is None else (h0.transpose(1, 0, 2) if layout else h0)
        c0 = zero if c0 is None else (c0.transpose(1, 0, 2) if layout else c0)
        ys, hs, cs = [], [], []
        for d in range(count):
            backwards = d == 1 or site.attr("direction", "forward") == "reverse"
            b = np.zeros(2 * gates * size) if bias is None else bias[d]
            p = np.zeros(3 * size) if peephole is None else peephole[d]
            y, h, c = direction(call, x[::-1] if backwards else x, w[d], r[d], b, h0[d], c0[d], p)
            ys.append(y[::-1] if backwards else y)
            hs.append(h)
            cs.append(c)
        y, h, c = np.stack(ys, axis=1), np.stack(hs), np.stack(cs)
        if layout:
            y, h, c = y.transpose(2, 0, 1, 3), h.transpose(1, 0, 2), c.transpose(1, 0, 2)
        return (y, h, c) if op == "LSTM" else (y, h)

    return run


OPERATORS: Mapping[str, Operator] = {
    "GRU": _recurrent("GRU", 3, _gru),
    "LSTM": _recurrent("LSTM", 4, _lstm),
    "RNN": _recurrent("RNN", 1, _rnn),
}
