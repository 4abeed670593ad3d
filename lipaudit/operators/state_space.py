"""Layers that carry a state: CausalConvWithState and LinearAttention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.conv import Conv
from lipaudit.operators.gated import swish
from lipaudit.operators.law import Law, law_of
from lipaudit.operators.linear import weight_array
from lipaudit.operators.outputs import SeveralOutputs, jointly
from lipaudit.operators.parts import Part
from lipaudit.operators.range import Range, reals, widen

__all__ = ["CausalConvWithState", "LinearAttention"]

Floats = NDArray[np.float64]


class CausalConvWithState(SeveralOutputs):
    """A depthwise convolution of (state, input), then Swish if asked; the new state is the end of (state, input).

    input: the Conv with all padding at the begin; state: at most ``max_c sum_k |w_ck|`` in every norm (Young).
    """

    def _law(self, site: Site) -> Law | Unknown | None:
        activation = str(site.attr("activation", "none"))
        if activation == "none":
            return None
        if activation in ("silu", "swish"):
            return law_of(swish(), {"alpha": 1.0}, 0)
        return Unknown(f"activation {activation!r} has no rule")

    def _convolution(self, site: Site) -> Site:
        """The input's way to the output before the activation, as a Conv."""
        attrs = {"group": site.shape(0)[1], "pads": (site.shape(1)[2] - 1, 0)}
        node = site.node.renamed(op="Conv", inputs=site.node.inputs[:2], domain="", version=0, attrs=attrs)
        outputs = (site.outputs[0],)
        return replace(site, node=node, inputs=site.inputs[:2], outputs=outputs, constants=site.constants[:2], moving=site.moving[:2])

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The kernel on the input."""
        return Conv("ai.onnx::Conv", {}).parts(self._convolution(site))

    def _young(self, site: Site) -> Upper | Unknown:
        constant = site.constant(1)
        if constant is None:
            return Unknown(f"kernel {site.node.inputs[1]!r} is not constant")
        weight = np.asarray(weight_array(constant), dtype=np.float64).reshape(constant.shape[0], -1)
        return dense_norm(weight, "linf").upper if np.all(np.isfinite(weight)) else Unknown("the kernel holds values that are not finite")

    def _before(self, site: Site, xs: Sequence[Range | None]) -> Range:
        """Range of the convolution."""
        shape, size = site.out_shape(), self._young(site)
        reach = max((x.magnitude() for k, x in enumerate(xs) if k in (0, 3) and x is not None and x.size), default=0.0)
        if isinstance(size, Unknown):
            return reals(shape)
        end = np.asarray(float(size * Upper(reach)))
        bias = xs[2] if len(xs) > 2 else None
        if bias is None:
            return Range(shape, -end, end)
        ends = [b.reshape(-1, 1) if b.ndim else b for b in (bias.lo, bias.hi)]
        return Range(shape, *interval.add((-end, end), (ends[0], ends[1])))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The activation on the convolution; elements of state and input."""
        law, found = self._law(site), self._before(site, xs)
        if isinstance(law, Unknown):
            found = reals(found.shape)
        elif law is not None:
            found = Range(found.shape, *law.enclose(found.lo, found.hi))
        given = [x for k, x in enumerate(xs) if k in (0, 3) and x is not None and x.size]
        lo = min([0.0, *(float(np.min(x.lo)) for x in given)])
        hi = max([0.0, *(float(np.max(x.hi)) for x in given)])
        second = [Range(v.shape, np.asarray(lo), np.asarray(hi)) for v in site.outputs[1:] if v is not None and v.shape is not None]
        return (found, *second)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """To the output, and to the new state."""
        law, size, shape = self._law(site), self._young(site), site.shape(0)
        if i == 1:
            return Unknown("a kernel that depends on the source")
        if isinstance(law, Unknown):
            return law
        if isinstance(size, Unknown):
            return size
        taps = site.shape(1)[2]
        if i == 2:
            to_output: Gain = Finite(repeat_factor(math.prod(site.out_shape()) // max(1, shape[1]), norm), method="copies of the bias")
        elif i == 0:
            to_output = Conv("ai.onnx::Conv", {}).gain(self._convolution(site), 0, norm, xs[:2])
        else:
            to_output = Finite(size if taps > 1 else ZERO, method="Young's inequality")
        if law is not None and isinstance(to_output, Finite):
            before = self._before(site, xs)
            slope = law.slope_on(float(np.min(before.lo, initial=0.0)), float(np.max(before.hi, initial=0.0)))
            to_output = replace(to_output, slope=to_output.slope * slope.magnitude())
        kept = {0: taps > 1 and shape[2] > 0, 2: False, 3: shape[2] < taps - 1}[i]
        if len(site.outputs) < 2 or site.outputs[1] is None:
            return to_output
        return jointly([to_output, Finite(ONE if kept else ZERO, method="selection")], norm)


class LinearAttention(SeveralOutputs):
    """``S_t = A_t S_(t-1) + b k v'``, ``o_t = c q' S_t`` for each head; A and b by the update rule.

    With Q, K, V the largest rows, e the largest decay ``exp(g)``, B the largest ``|beta|``, s_t bounds of ``|S_t|_F``::

        linear: A = 1, b = 1;  delta: A = I - beta k k', b = beta;  gated: e^g in front
        a = e, or e max(1, |1 - beta K^2|);  s_t = a s_(t-1) + b K V
        |dS_t| <= a |dS_(t-1)| + w_t |dx_t|
        w: values b K; keys b (V + 2 e s K) [linear, gated: V]; decay a s; beta K (V + e s K)
        |do_t| <= c (s_t |dq_t| + Q |dS_t|)

    The l2 norm is that of the triangular matrix of these; heads and samples are independent, a key head is read by G query heads
    (sqrt G). l1 and linf: that times the root of the number of elements of one block.
    """

    def _rows(self, x: Range, heads: int) -> float:
        """Largest l2 norm of the part of one head of a row."""
        sizes = np.broadcast_to(x.magnitudes(), x.shape).reshape(*x.shape[:-1], heads, -1)
        with np.errstate(over="ignore"):
            parts = float(np.max(np.sqrt(np.sum(np.maximum(sizes, 1e-150) ** 2, axis=-1)), initial=0.0))
        return min(x.row, widen(parts, sizes.shape[-1] + 2))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Within the largest state times the largest query."""
        found = self._sizes(site, xs)
        shapes = [value.shape if value is not None and value.shape is not None else () for value in site.outputs]
        if isinstance(found, (Unknown, Unbounded)):
            return tuple(reals(shape) for shape in shapes)
        top, state = float(found.scale * found.query * max(found.states)), float(max(found.states))
        ends = [np.asarray(top), np.asarray(state)]
        return tuple(Range(shape, -end, end) for shape, end in zip(shapes, ends, strict=False))

    def _sizes(self, site: Site, xs: Sequence[Range | None]) -> _Sizes | Unknown | Unbounded:
        rule = str(site.attr("update_rule", "gated_delta"))
        if rule not in ("linear", "gated", "delta", "gated_delta"):
            return Unknown(f"update_rule {rule!r} has no rule")
        heads, readers = int(site.attr("kv_num_heads", 1)), int(site.attr("q_num_heads", 1))
        query, key, value = xs[0], xs[1], xs[2]
        assert query is not None and key is not None and value is not None
        if query.size == 0 or value.size == 0:
            return Unknown("a sequence without elements")
        rows = [Upper(self._rows(query, readers)), Upper(self._rows(key, heads)), Upper(self._rows(value, heads))]
        state, decay, beta = (xs[k] if k < len(xs) else None for k in (3, 4, 5))
        start = 0.0
        if state is not None:
            sizes = np.broadcast_to(np.maximum(state.magnitudes(), 1e-150), state.shape)
            with np.errstate(over="ignore"):
                start = widen(float(np.max(np.sqrt(np.sum(sizes**2, axis=(-2, -1))))), sizes.shape[-1] * sizes.shape[-2] + 2)
        fade = ONE
        if "gated" in rule:
            assert decay is not None
            top = float(np.max(decay.hi))
            fade = Upper(top).exp() if top > 0 else ONE
        write, carry = ONE, fade
        if "delta" in rule:
            assert beta is not None
            write = Upper(beta.magnitude())
            # Eigenvalues of I - beta k k' are 1 and 1 - beta |k|^2, with beta in its range and |k|^2 in [0, K^2].
            least, most = Upper(max(0.0, -float(np.min(beta.lo)))), Upper(max(0.0, float(np.max(beta.hi))))
            square = rows[1] * rows[1]
            over = most * square
            excess = Upper(max(1.0, float(over) - 1)) if over.is_finite else over
            carry = fade * max(ONE + least * square, Upper(math.nextafter(float(excess), math.inf)) if float(excess) > 1 else ONE)
        steps = site.shape(0)[1]
        states = [Upper(start)]
        for _ in range(steps):
            states.append(carry * states[-1] + write * rows[1] * rows[2])
        scale = float(site.attr("scale", 0.0)) or 1 / math.sqrt(site.shape(0)[2] // readers)
        if not (states[-1].is_finite and rows[0].is_finite):
            return Unbounded("queries, keys, values, decay or state are not bounded on the domain")
        return _Sizes(rule, rows[0], rows[1], rows[2], fade, carry, write, Upper(widen(abs(scale), 4)), tuple(states))

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        found = self._sizes(site, xs)
        if isinstance(found, (Unknown, Unbounded)):
            return found
        heads, readers = int(site.attr("kv_num_heads", 1)), int(site.attr("q_num_heads", 1))
        group = readers // heads
        steps = site.shape(0)[1]
        samples = site.shape(0)[0]
        if i == 0:
            to_output, to_state = found.scale * max(found.states[1:]), ZERO
        else:
            per_step = [found.write_gain(i, t) for t in range(steps)] if i != 3 else [ONE]
            count = len(per_step)
            matrix = np.zeros((steps, count))
            for s in range(count):
                power = per_step[s] if i != 3 else found.carry
                for t in range(s if i != 3 else 0, steps):
                    matrix[t, s] = float(power)
                    power = power * found.carry
            if not np.all(np.isfinite(matrix)):
                return Unbounded("the state grows beyond all bounds over so many steps")
            shared = Upper(heads).sqrt() if i == 5 and site.shape(5)[-1] == 1 else ONE
            read = found.scale * found.query * Upper(group).sqrt() * shared
            to_output = read * dense_norm(matrix, "l2").upper
            to_state = shared * dense_norm(matrix[-1:], "l2").upper
        blocks = samples * (1 if i == 5 and site.shape(5)[-1] == 1 else heads)
        parts: list[Gain] = []
        for k, size in enumerate((to_output, to_state)):
            value = site.outputs[k] if k < len(site.outputs) else None
            if value is None or value.shape is None:
                continue
            elements = {"l1": math.prod(value.shape), "l2": blocks, "linf": math.prod(site.shape(i))}[norm] // max(1, blocks)
            parts.append(Finite(size * Upper(max(1, elements)).sqrt(), method="recurrence of the state"))
        return jointly(parts, norm)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bounds of one site, see :class:`LinearAttention`."""

    rule: str
    query: Upper
    key: Upper
    value: Upper
    fade: Upper
    carry: Upper
    write: Upper
    scale: Upper
    states: tuple[Upper, ...]

    def write_gain(self, i: int, t: int) -> Upper:
        """w of input ``i`` at step ``t`` (the state before it is ``states[t]``)."""
        faded = self.fade * self.states[t]
        if i == 2:
            return self.write * self.key
        if i == 4:
            return self.carry * self.states[t]
        if i == 5:
            return self.key * (self.value + faded * self.key)
        correction = Upper(2) * faded * self.key if "delta" in self.rule else ZERO
        return self.write * (self.value + correction)
