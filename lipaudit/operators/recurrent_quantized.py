"""ONNX Runtime's LSTM that quantises X and, step by step, the hidden state to 8 bits; its weights are stored in 8 bits.

With Q(v) = v rounded to a grid of step s, ``|Q(v) - Q(v')| <= |v - v'| + s`` per element. X and h enter the pre-activations of the
gates only, so each step is that of the real cell with ``|dx| + s_x |1|_p`` and ``|dh| + s_h |1|_p`` in their place: the gains
stay, and the offsets obey the same recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ZERO, Lower, Norm, Upper, combine, repeat_factor
from lipaudit.operators.base import Site, Unbounded, Unknown
from lipaudit.operators.parts import Part, directions
from lipaudit.operators.range import Range
from lipaudit.operators.recurrent import Recurrent, reach
from lipaudit.operators.recurrent_cells import Cell, cell_of

__all__ = ["DynamicQuantizeLSTM"]

Floats = NDArray[np.float64]


class DynamicQuantizeLSTM(Recurrent):
    """Inputs: X ``[T, B, I]``, W ``[D, I, 4H]``, R ``[D, H, 4H]``, B, lengths, initial h, initial c, peepholes, s_W, z_W, s_R, z_R."""

    def offsets(self, site: Site, cells: Sequence[Cell], norm: Norm, xs: Sequence[Range | None]) -> Sequence[Upper] | Unbounded:
        """The rounding of X and of every hidden state, carried through the steps; samples and directions are separate."""
        x = xs[0]
        if x is None or not x.is_bounded:
            return Unbounded("the rounding step of X is (max x - min x)/255 and grows with the input: give the input a box")
        _, batch, inputs = site.shape(0)
        hidden = site.shape(2)[1]
        initial = xs[5].magnitude() if len(xs) > 5 and xs[5] is not None else 0.0
        spread = Upper(max(float(np.max(x.hi, initial=0.0)), 0.0)) + Upper(max(-float(np.min(x.lo, initial=0.0)), 0.0))
        of_x = spread / Lower(255) * repeat_factor(inputs, norm)
        found: list[list[Upper]] = [[], [], []]
        for cell in cells:
            reach = max(cell.state_bound, Upper(initial))
            of_h = Upper(2) * reach / Lower(255) * repeat_factor(hidden, norm)
            h, c = ZERO, ZERO
            sequence: list[Upper] = []
            store: list[Upper] = []
            for step in cell.steps(norm):
                seen = h + of_h
                h, c = step.hh * seen + step.hc * c + step.hx * of_x, step.ch * seen + step.cc * c + step.cx * of_x
                sequence.append(h)
                store.append(c)
            found[0].append(combine(sequence, norm))
            # The largest over all steps: samples may be shorter.
            found[1].append(max(sequence, default=ZERO))
            found[2].append(max(store, default=ZERO))
        return [combine(own, norm) * repeat_factor(batch, norm) for own in found][: len(site.outputs)]

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The dequantised W and R."""
        found: list[Part] = []
        for weight, scale, zero in ((1, 8, 9), (2, 10, 11)):
            constant, real = site.constant(weight), _dequantised(site, weight, scale, zero)
            if constant is not None and not isinstance(real, Unknown):
                found += directions(constant.name, np.swapaxes(real, 1, 2), constant.shape)
        return tuple(found)

    def _cells(self, site: Site, xs: Sequence[Range | None]) -> list[Cell] | Unknown:
        w, r = _dequantised(site, 1, 8, 9), _dequantised(site, 2, 10, 11)
        if isinstance(w, Unknown) or isinstance(r, Unknown):
            return w if isinstance(w, Unknown) else r if isinstance(r, Unknown) else Unknown("")
        for i, name in {3: "B", 7: "P"}.items():
            if site.has(i) and site.constant(i) is None:
                return Unknown(f"the weights {name} of {site.node.op} must be stored constants")
        directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(str(site.attr("direction", "forward")), 0)
        if w.shape[0] != directions:
            return Unknown(f"direction {site.attr('direction', 'forward')!r} does not match weights for {w.shape[0]} directions")
        biases, peepholes = site.constant(3), site.constant(7)
        cells: list[Cell] = []
        for d in range(directions):
            rows = np.ascontiguousarray(w[d].T)
            if any(not block.any() for block in np.split(rows, 4)):
                return Unknown("a gate that does not read X has no rule here")
            made = cell_of(
                "LSTM", site, d, rows, np.ascontiguousarray(r[d].T),
                biases.float64()[d] if biases is not None else None,
                peepholes.float64()[d] if peepholes is not None else None,
                site.shape(0)[0], math.inf, reach(xs, 5), reach(xs, 6),
            )  # fmt: skip
            # The reach of X is left open: rounding may carry it beyond its range, and gates <= 1 is all that is used.
            if isinstance(made, Unknown):
                return made
            cells.append(made)
        return cells


def _dequantised(site: Site, weight: int, scale: int, zero: int) -> Floats | Unknown:
    """``(q - z) s`` for ``[D, K, 4H]``, s and z per direction or per column: exact in float64 (9 times 24 bits)."""
    stored, steps, points = site.constant(weight), site.constant(scale), site.constant(zero) if site.has(zero) else None
    if stored is None or steps is None or (site.has(zero) and points is None):
        return Unknown(f"the quantised weights of {site.node.op} and their scales must be stored constants")
    if len(stored.shape) != 3:
        return Unknown(f"weights of shape {list(stored.shape)} have no rule")
    values = stored.float64()

    def placed(array: Floats) -> Floats:
        return array.reshape(values.shape[0], 1, -1) if array.size > 1 else array.reshape(1, 1, 1)

    try:
        shifted = values - placed(points.float64()) if points is not None else values
        found = shifted * placed(steps.float64())
    except ValueError:
        return Unknown(f"scales of shape {list(steps.shape)} do not fit weights of shape {list(stored.shape)}")
    if found.shape != values.shape or not np.all(steps.float64() > 0):
        return Unknown("a quantisation scale is not positive, or does not fit")
    return found
