"""One step of RNN, GRU and LSTM as a non-negative map of changes; weights enter by verified block norms.

kappa and lambda are the slopes of the gate function and of the candidate's function; G bounds the candidate, H the hidden
state, C the memory. Gates lie in [0, 1], so the memory grows by at most G a step: the bound of a long LSTM grows with it
unless the forget gate is bounded below 1 on the domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, combine
from lipaudit.operators.base import Site, Unknown
from lipaudit.operators.range import widen

__all__ = ["Activation", "Cell", "Step", "activations_of", "cell_of"]

Floats = NDArray[np.float64]
Norms = Callable[[Floats, Norm], Upper]


@dataclass(frozen=True, slots=True)
class Step:
    """``dh' <= hh dh + hc dc + hx dx`` and ``dc' <= ch dh + cc dc + cx dx``."""

    hh: Upper
    hx: Upper
    hc: Upper = ZERO
    ch: Upper = ZERO
    cc: Upper = ZERO
    cx: Upper = ZERO


@dataclass(frozen=True, slots=True)
class Activation:
    """A cell function: largest slope, largest absolute value (inf: unbounded), |f(0)|, and whether it lies in [0, 1]."""

    name: str
    slope: float
    bound: float
    at_zero: float = 0.0
    is_gate: bool = False


@dataclass(frozen=True)
class Cell:
    """One direction: its steps in a norm, and what its states can be."""

    steps: Callable[[Norm], list[Step]]
    state_bound: Upper
    memory_bound: Upper = ZERO


_TAKES_ALPHA = {"Affine": 1.0, "LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "ScaledTanh": 1.0, "HardSigmoid": 0.2, "Elu": 1.0}
_TAKES_BETA = {"Affine": 0.0, "ScaledTanh": 1.0, "HardSigmoid": 0.5}


def _activation(name: str, alpha: float, beta: float) -> Activation | None:
    a, b = abs(alpha), abs(beta)
    found = {
        "sigmoid": Activation("Sigmoid", 0.25, 1.0, 0.5, True),
        "tanh": Activation("Tanh", 1.0, 1.0),
        "relu": Activation("Relu", 1.0, math.inf),
        "hardsigmoid": Activation("HardSigmoid", a, 1.0, 1.0, True),
        "softsign": Activation("Softsign", 1.0, 1.0),
        "softplus": Activation("Softplus", 1.0, math.inf, math.log(2.0) * (1 + 2.0**-40)),
        "affine": Activation("Affine", a, math.inf, b),
        "leakyrelu": Activation("LeakyRelu", max(1.0, a), math.inf),
        "scaledtanh": Activation("ScaledTanh", widen(a * b, 4), a),
        "elu": Activation("Elu", max(1.0, a), math.inf),
    }
    return found.get(name.lower())


def activations_of(site: Site, direction: int, default: Sequence[str]) -> list[Activation] | Unknown:
    """The functions of one direction; alpha and beta are consumed in order by the functions that take them."""
    names = [str(name) for name in site.node.attrs.get("activations", ())] or list(default) * 2
    alphas, betas = list(site.node.attrs.get("activation_alpha", ())), list(site.node.attrs.get("activation_beta", ()))
    found: list[Activation] = []
    for k, name in enumerate(names):
        proper = next((known for known in _TAKES_ALPHA if known.lower() == name.lower()), name)
        alpha = float(alphas.pop(0)) if proper in _TAKES_ALPHA and alphas else _TAKES_ALPHA.get(proper, 1.0)
        beta = float(betas.pop(0)) if proper in _TAKES_BETA and betas else _TAKES_BETA.get(proper, 0.0)
        if proper == "Elu" and alpha < 0:
            return Unknown("Elu with a negative alpha is not monotone: no rule")
        activation = _activation(name, alpha, beta)
        if activation is None:
            return Unknown(f"the cell function {name!r} jumps or is not known")
        if len(default) * direction <= k < len(default) * (direction + 1):
            found.append(activation)
    return found if len(found) == len(default) else Unknown(f"{len(names)} cell functions given, {len(default)} needed a direction")


@dataclass(frozen=True)
class _Weights:
    """Blocks of one direction: ``w[k]``, ``r[k]`` for gate k, biases ``b[k]`` (of X and of h), peepholes."""

    w: list[Floats]
    r: list[Floats]
    b: list[Floats]
    rb: list[Floats]
    p: list[Floats]
    clip: float

    def pre(self, k: int, reach_x: float, reach_h: float, sign: float) -> float:
        """Upper bound of ``sign * preactivation`` of gate k over all units (peepholes aside)."""
        w, r = self.w[k], self.r[k]
        bias = sign * (self.b[k] + self.rb[k])
        with np.errstate(invalid="ignore", over="ignore"):
            reach = _product(np.sum(np.abs(w), axis=1), reach_x) + _product(np.sum(np.abs(r), axis=1), reach_h)
            error = (reach + np.abs(self.b[k]) + np.abs(self.rb[k])) * ((w.shape[1] + r.shape[1] + 8) * 2.0**-52)
            top = float(np.max(bias + reach + error))
        if math.isnan(top):
            return math.inf
        return min(top, self.clip) if self.clip > 0 else top


def _product(size: Floats, reach: float) -> Floats:
    """``size * reach`` with 0 for no weight at all, however far the value may reach."""
    return np.where(size > 0, size * reach, 0.0)


def _sigmoid_up(a: float) -> float:
    """At least the sigmoid of ``a``."""
    return 1e-300 if a < -700 else min(1.0, (1 + 2.0**-40) / (1 + math.exp(-a)))


def _sigmoid_down(a: float) -> float:
    """At most the sigmoid of ``a``."""
    return 0.0 if a < -700 else max(0.0, (1 - 2.0**-40) / (1 + math.exp(-a)))


def cell_of(
    op: str,
    site: Site,
    direction: int,
    w: Floats,
    r: Floats,
    bias: Floats | None,
    peepholes: Floats | None,
    steps: int,
    reach_x: float,
    reach_h: float,
    reach_c: float,
) -> Cell | Unknown:
    """The cell of one direction. ``w`` is [gates * hidden, inputs], ``r`` [gates * hidden, hidden]; reaches are largest elements."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    hidden = r.shape[1]
    stored = np.zeros(2 * gates * hidden) if bias is None else bias
    if not (np.all(np.isfinite(w)) and np.all(np.isfinite(r)) and np.all(np.isfinite(stored))):
        return Unknown("the weights are not finite")
    parts = np.split(stored, 2 * gates)
    p = [np.zeros(hidden)] * 3 if peepholes is None else np.split(peepholes, 3)
    clip = float(site.node.attrs.get("clip", 0.0) or 0.0)
    weights = _Weights(np.split(w, gates), np.split(r, gates), parts[:gates], parts[gates:], p, clip)
    defaults = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}[op]
    functions = activations_of(site, direction, defaults)
    if isinstance(functions, Unknown):
        return functions
    early = site.has(4)  # a sample may stop before its first step: its last state is then the initial one
    if op == "RNN":
        return _rnn(weights, functions[0], steps, reach_h if early else 0.0)
    if not functions[0].is_gate or not math.isfinite(functions[1].bound):
        return Unknown(
            f"gates {functions[0].name} and candidate {functions[1].name}: only gates in [0, 1] and bounded candidates have a rule"
        )
    if op == "GRU":
        return _gru(weights, functions, steps, reach_x, reach_h, bool(site.attr("linear_before_reset", 0)))
    forget = bool(site.attr("input_forget", 0))
    return _lstm(weights, functions, steps, reach_x, reach_h, reach_c, forget, peepholes is not None, early)


def _rnn(weights: _Weights, f: Activation, steps: int, reach_h: float) -> Cell:
    def of(norm: Norm) -> list[Step]:
        slope = Upper(f.slope)
        step = Step(slope * dense_norm(weights.r[0], norm).upper, slope * dense_norm(weights.w[0], norm).upper)
        return [step] * steps

    return Cell(of, Upper(max(f.bound, reach_h)))


def _gru(weights: _Weights, functions: list[Activation], steps: int, reach_x: float, reach_h: float, linear: bool) -> Cell:
    gate, candidate = functions
    top = max(candidate.bound, reach_h)
    h, d = Upper(top), Upper(top) + Upper(candidate.bound)
    sigmoid = gate.name == "Sigmoid"
    r_hi = Upper(_sigmoid_up(weights.pre(1, reach_x, top, 1.0)) if sigmoid else 1.0)
    z_hi = Upper(_sigmoid_up(weights.pre(0, reach_x, top, 1.0)) if sigmoid else 1.0)
    keep = Upper(_sigmoid_up(weights.pre(0, reach_x, top, -1.0)) if sigmoid else 1.0)  # 1 - z at most

    def of(norm: Norm) -> list[Step]:
        kappa, lam = Upper(gate.slope), Upper(candidate.slope)
        wz, wr, wh = (dense_norm(block, norm).upper for block in weights.w)
        rz, rr, rh = (dense_norm(block, norm).upper for block in weights.r)
        if linear:
            u = h * dense_norm(weights.r[2], "linf").upper + Upper(float(np.max(np.abs(weights.rb[2]))))
            nh, nx = lam * (r_hi * rh + u * kappa * rr), lam * (wh + u * kappa * wr)
        else:
            nh, nx = lam * rh * (r_hi + h * kappa * rr), lam * (wh + rh * h * kappa * wr)
        step = Step(combine((nh, ONE), norm) + d * kappa * rz, nx + d * kappa * wz)
        local = Step(keep * nh + z_hi + d * kappa * rz, keep * nx + d * kappa * wz)
        return [local if local.hh <= step.hh else step] * steps

    return Cell(of, h)


def _lstm(
    weights: _Weights,
    functions: list[Activation],
    steps: int,
    reach_x: float,
    reach_h: float,
    reach_c: float,
    input_forget: bool,
    peepholes: bool,
    early: bool,
) -> Cell:
    gate, candidate, out = functions
    g = candidate.bound
    bounded = gate.name == "Sigmoid" and not peepholes
    state = max(out.bound, reach_h)
    i_hi = _sigmoid_up(weights.pre(0, reach_x, state, 1.0)) if bounded else 1.0
    o_hi = _sigmoid_up(weights.pre(1, reach_x, state, 1.0)) if bounded else 1.0
    f_hi, keep = 1.0, 0.0
    if bounded:
        pre = weights.pre(2, reach_x, state, 1.0)
        f_hi, keep = _sigmoid_up(pre), _sigmoid_down(-pre)
    if input_forget:
        f_hi, keep, i_hi, o_hi = 1.0, 0.0, 1.0, 1.0
    memory = [Upper(reach_c)]
    limit = max(Upper(reach_c), Upper(i_hi) * Upper(g) / Lower(keep))
    for t in range(1, steps + 1):
        grown = max(Upper(reach_c), Upper(g)) if input_forget else Upper(reach_c) + Upper(t) * Upper(i_hi) * Upper(g)
        memory.append(min(grown, limit))
    largest_p = [Upper(float(np.max(np.abs(p), initial=0.0))) for p in weights.p]

    def of(norm: Norm) -> list[Step]:
        w = [dense_norm(block, norm).upper for block in weights.w]  # i, o, f, c
        r = [dense_norm(block, norm).upper for block in weights.r]
        stacks: list[Upper] | None = None
        if norm == "l2" and not input_forget:
            stacks = [dense_norm(np.concatenate((blocks[0], blocks[2], blocks[3])), "l2").upper for blocks in (weights.w, weights.r)]
        return [_lstm_step(t, w, r, stacks) for t in range(steps)]

    kappa, lam, lam_h = Upper(gate.slope), Upper(candidate.slope), Upper(out.slope)
    big_g, top_i, top_f, top_o = Upper(g), Upper(i_hi), Upper(f_hi), Upper(o_hi)

    def _lstm_step(t: int, w: list[Upper], r: list[Upper], stacks: list[Upper] | None) -> Step:
        c = memory[t]
        if input_forget:
            mix = (c + big_g) * kappa
            ax, ah, ac = lam * w[3] + mix * w[0], lam * r[3] + mix * r[0], ONE + mix * largest_p[0]
        else:
            ax, ah = (lam * top_i * block[3] + kappa * (c * block[2] + big_g * block[0]) for block in (w, r))
            ac = top_f + kappa * (c * largest_p[2] + big_g * largest_p[0])
            if stacks is not None:
                root = combine((lam * top_i, kappa * c, kappa * big_g), "l2")
                ax, ah = min(ax, root * stacks[0]), min(ah, root * stacks[1])
        reach = _reach(out, memory[t + 1])
        e = top_o * lam_h + reach * kappa * largest_p[1]
        return Step(hh=e * ah + reach * kappa * r[1], hx=e * ax + reach * kappa * w[1], hc=e * ac, ch=ah, cc=ac, cx=ax)

    state_bound = _reach(out, memory[steps])
    for c in memory:
        state_bound = max(state_bound, _reach(out, c))
    if early:
        state_bound = max(state_bound, Upper(reach_h))
    return Cell(of, state_bound, max(memory))


def _reach(f: Activation, c: Upper) -> Upper:
    """Largest ``|f|`` on [-c, c]."""
    linear = Upper(f.slope) * c + Upper(f.at_zero)
    if f.name == "Tanh" and c.is_finite:
        return min(ONE, Upper(math.tanh(min(float(c), 40.0)) * (1 + 2.0**-40)))
    return min(linear, Upper(f.bound))
