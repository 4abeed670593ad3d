"""Products with a matrix that is stored in 4 or 8 bits and dequantised on the fly: the data are real."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.chain import Folded
from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.linear import Dense
from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.integer_linear import shifted
from lipaudit.operators.parts import Part
from lipaudit.operators.range import Range, reals, widen

__all__ = ["DynamicQuantizeMatMul", "MatMulNBits"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A dequantised weight [K, N] and a factor that covers the rounding of its making."""

    weight: Floats
    factor: Upper = ONE


class _Dequantised(Rule):
    """``A @ W + bias`` for a real A ``[.., K]``."""

    @abstractmethod
    def matrix(self, site: Site) -> _Matrix | Unknown:
        """The dequantised weight."""

    def bias(self, site: Site) -> int:
        """Position of the bias."""
        return 4

    def offset(self, site: Site, norm: Norm, xs: Sequence[Range | None], slope: Upper) -> Upper:
        """What quantising A adds."""
        return ZERO

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """From the norms of the weight; the rounding of A is part of its range where A is rounded."""
        found, shape, x = self.matrix(site), site.out_shape(), xs[0]
        if isinstance(found, Unknown) or x is None:
            return (reals(shape),)
        bias = xs[self.bias(site)] if len(xs) > self.bias(site) else None
        more = 0.0 if bias is None else bias.magnitude()
        more_row = 0.0 if bias is None else bias.row_norm()
        w = found.weight.T
        top = dense_norm(w, "linf").upper * found.factor * Upper(x.magnitude()) * self.growth
        row = dense_norm(w, "l2").upper * found.factor * Upper(x.row_norm()) * self.growth
        end = widen(float(top) + more, 2)
        return (Range(shape, np.asarray(-end), np.asarray(end), widen(float(row) + more_row, 2) if self.growth == ONE else math.inf),)

    growth = ONE

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The dequantised matrix."""
        constant, found = site.constant(1), self.matrix(site)
        if constant is None or isinstance(found, Unknown):
            return ()
        operator = Dense(found.weight, (1, found.weight.shape[0]))
        if found.factor == ONE:
            return (Part(constant.name, "matrix", constant.shape, operator),)
        nothing: Mapping[Norm, Upper] = {"l1": ZERO, "l2": ZERO, "linf": ZERO}
        relative = Upper(max(0.0, float(found.factor) - 1))
        return (Part(constant.name, "matrix", constant.shape, Folded(operator, nothing, relative, operator.terms + 2)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The norm of the dequantised weight."""
        found = self.matrix(site)
        if isinstance(found, Unknown):
            return found
        if i == self.bias(site):
            copies = math.prod(site.out_shape()) // max(1, math.prod(site.shape(i)))
            return Finite(repeat_factor(copies, norm), method="added bias")
        if i != 0:
            return Unknown("moving weights or scales have no rule")
        slope = dense_norm(found.weight.T, norm).upper * found.factor
        offset = self.offset(site, norm, xs, slope)
        if offset == INFINITE:
            return Unbounded("the rounding step is (max x - min x)/255 and grows with the input: give the input a box")
        return Finite(slope, offset, method="norm of the dequantised matrix")


class DynamicQuantizeMatMul(_Dequantised):
    """ONNX Runtime's A quantised on the fly times stored B; inputs A, B ``[K, N]``, s_B, z_B, bias."""

    growth = Upper(2)  # the quantised A may exceed A by half a step of its spread

    def matrix(self, site: Site) -> _Matrix | Unknown:
        """``(B - z_B) s_B``."""
        weight, scales = shifted(site, (), 1, 3, True), site.constant(2)
        if not isinstance(weight, np.ndarray) or scales is None or weight.ndim != 2:
            return weight if isinstance(weight, Unknown) else Unknown("DynamicQuantizeMatMul needs a stored matrix and scale")
        weight *= scales.float64().reshape(-1 if scales.size > 1 else ())  # an array of its own
        return _Matrix(weight)

    def offset(self, site: Site, norm: Norm, xs: Sequence[Range | None], slope: Upper) -> Upper:
        """``||W||`` times one step per element of A, the step that of the largest spread."""
        x = xs[0]
        if x is None or not x.is_bounded:
            return INFINITE
        spread = Upper(max(float(np.max(x.hi, initial=0.0)), 0.0)) + Upper(max(-float(np.min(x.lo, initial=0.0)), 0.0))
        return slope * repeat_factor(x.size, norm) * spread / Lower(255)


class MatMulNBits(_Dequantised):
    """ONNX Runtime's weight-only product, 4 or 8 bits in blocks along K; inputs A, B, scales, zero points, (g_idx), bias."""

    def bias(self, site: Site) -> int:
        """After the group indices."""
        return 5

    def matrix(self, site: Site) -> _Matrix | Unknown:
        """``(q - z) s`` with z = 2^(bits - 1) where it is left out."""
        k, n = int(site.attr("K", 0)), int(site.attr("N", 0))
        bits, block = int(site.attr("bits", 4)), int(site.attr("block_size", 0))
        packed, scales = site.constant(1), site.constant(2)
        if site.has(4):
            return Unknown("MatMulNBits with group indices has no rule")
        if bits not in (4, 8) or block <= 0 or packed is None or scales is None or (site.has(3) and site.constant(3) is None):
            return Unknown("MatMulNBits has a rule for stored weights of 4 or 8 bits")
        blocks = -(-k // block)
        zeros, steps = site.constant(3), scales.float64().reshape(n, blocks, 1)
        factor = ONE
        if zeros is None:
            z: Floats = np.broadcast_to(float(2 ** (bits - 1)), (n, blocks, 1))
        elif zeros.dtype == "uint8":
            z = _unpacked(np.asarray(zeros.array()).reshape(n, -1), bits)[:, :blocks].reshape(n, blocks, 1)
        else:
            z = zeros.float64().reshape(n, blocks, 1)
            factor = Upper(1 + 2.0**-40)  # a product of two 24-bit numbers and a difference, rounded in float64
        stored = np.asarray(packed.array()).reshape(n, -1)
        weight = np.empty((n, k))
        for rows in _in_blocks(n, blocks * block):
            values = _unpacked(stored[rows], bits).reshape(-1, blocks, stored.shape[1] * 8 // bits // blocks)[:, :, :block]
            values -= z[rows]
            values *= steps[rows]
            weight[rows] = values.reshape(len(values), -1)[:, :k]
        return _Matrix(weight.T, factor)


def _in_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of so many rows that a block of them is decoded in a few times 8 MB."""
    step = max(1, (1 << 20) // max(1, width))
    yield from (slice(at, min(at + step, rows)) for at in range(0, rows, step))


def _unpacked(array: NDArray[np.generic], bits: int) -> Floats:
    """Low nibble first."""
    data = np.asarray(array, dtype=np.uint8)
    if bits == 8:
        return data.astype(np.float64)
    pair = np.stack((data & 15, data >> 4), axis=-1)
    return pair.reshape(*data.shape[:-1], -1).astype(np.float64)
