"""ONNX Runtime's quantised elementwise, pooling and softmax operators: dequantise, the real rule, requantise with one step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.integer_linear import quantised_range, rounding, scale_ends, shifted_reach
from lipaudit.operators.normalizing import mean_gain
from lipaudit.operators.range import Range

__all__ = ["QLinearAdd", "QLinearConcat", "QLinearMul", "QLinearPool", "QLinearReduceMean", "QLinearUnary", "QLinearWhere"]


class _Requantised(Rule):
    """``Q(f(s_1 (q_1 - z_1), ..), s_y, z_y)``: gain ``L_i s_i / s_y`` and one step per output element."""

    @abstractmethod
    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """Gain of f from the real value of operand ``i``."""

    @abstractmethod
    def operands(self, site: Site) -> dict[int, int]:
        """Position of the scale of each operand."""

    @abstractmethod
    def output_scale(self, site: Site) -> int:
        """Position of the output's scale."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """All values of the output's type."""
        return (quantised_range(site),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """With stored scales only."""
        at = self.operands(site).get(i)
        if at is None:
            return Unknown(f"a moving scale or zero point of {site.node.op} has no rule")
        own, out = scale_ends(site, at), scale_ends(site, self.output_scale(site))
        if isinstance(own, Unknown):
            return own
        if isinstance(out, Unknown):
            return out
        slope = self.real_gain(site, i, norm, xs)
        if isinstance(slope, Unknown):
            return slope
        return Finite(slope * own[1] / out[0], rounding(site, norm), method=f"{site.node.op}: real rule, then one step per element")


def _copies(site: Site, i: int, norm: Norm) -> Upper:
    return repeat_factor(math.prod(site.out_shape()) // max(1, math.prod(site.shape(i))), norm)


class QLinearAdd(_Requantised):
    """A + B; inputs A, s_A, z_A, B, s_B, z_B, s_C, z_C."""

    def operands(self, site: Site) -> dict[int, int]:
        """A and B."""
        return {0: 1, 3: 4}

    def output_scale(self, site: Site) -> int:
        """s_C."""
        return 6

    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """The copies that broadcasting makes."""
        return _copies(site, i, norm)


class QLinearMul(QLinearAdd):
    """A * B; inputs as QLinearAdd."""

    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """The copies times the largest real value of the other factor."""
        other = 3 if i == 0 else 0
        scale = scale_ends(site, other + 1)
        if isinstance(scale, Unknown):
            return scale
        return _copies(site, i, norm) * scale[1] * Upper(shifted_reach(site, xs, other, other + 2))


class QLinearConcat(_Requantised):
    """Concat of (x, s, z) triples; inputs s_Y, z_Y, then the triples."""

    def operands(self, site: Site) -> dict[int, int]:
        """Every third input from 2 on."""
        return {i: i + 1 for i in range(2, len(site.inputs), 3)}

    def output_scale(self, site: Site) -> int:
        """The first input."""
        return 0

    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """A copy."""
        return ONE


class QLinearWhere(_Requantised):
    """``c ? X : Y``; inputs c, X, s_X, z_X, Y, s_Y, z_Y, s, z. The condition must not move."""

    def operands(self, site: Site) -> dict[int, int]:
        """X and Y."""
        return {} if site.moving[0] else {1: 2, 4: 5}

    def output_scale(self, site: Site) -> int:
        """s."""
        return 7

    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """The copies that broadcasting makes."""
        return _copies(site, i, norm)


class _Single(_Requantised):
    """Inputs x, s_x, z_x, s_y, z_y."""

    def operands(self, site: Site) -> dict[int, int]:
        """x."""
        return {0: 1}

    def output_scale(self, site: Site) -> int:
        """s_y."""
        return 3


class QLinearUnary(_Single):
    """Sigmoid (1/4), LeakyRelu (max(1, |alpha|)) and Softmax (1/2); ``params["function"]`` says which."""

    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """The largest slope."""
        function = str(self.params.get("function", ""))
        if function == "sigmoid":
            return Upper(0.25)
        if function == "leaky_relu":
            return max(ONE, Upper(abs(float(site.attr("alpha", 0.01)))))
        if function == "softmax":
            return ZERO if math.prod(site.shape(0)) == 0 else Upper(0.5)
        return Unknown(f"no slope is known for {function!r}")


class QLinearReduceMean(_Single):
    """Mean over axes."""

    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """1/n, 1/sqrt(n), 1 for n elements a mean."""
        return mean_gain(math.prod(site.shape(0)) // max(1, math.prod(site.out_shape())), norm)


class QLinearPool(_Single):
    """Average pooling, global (``params["window"]`` = "global") or over windows."""

    def real_gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Upper | Unknown:
        """The averaging matrix is a Kronecker product over the axes; in l2 at most ``sqrt(l1 * linf)`` of each."""
        shape, out = site.shape(0), site.out_shape()
        if self.params.get("window") == "global":
            return mean_gain(math.prod(shape) // max(1, math.prod(out)), norm)
        last = bool(site.attr("channels_last", 0))
        image, outputs = (shape[1:-1], out[1:-1]) if last else (shape[2:], out[2:])
        rank = len(image)
        kernel = tuple(int(k) for k in site.attr("kernel_shape", ()))
        strides = tuple(int(s) for s in site.attr("strides", ()) or (1,) * rank)
        if len(kernel) != rank:
            return Unknown("a pooling window without a shape")
        mode = str(site.attr("auto_pad", "NOTSET"))
        pads = tuple(int(p) for p in site.attr("pads", ()) or (0,) * (2 * rank))
        slope = ONE
        for axis in range(rank):
            if mode in ("NOTSET", "", "VALID"):
                begin = pads[axis] if mode != "VALID" else 0
            else:
                total = max(0, (outputs[axis] - 1) * strides[axis] + kernel[axis] - image[axis])
                begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
            slope = slope * _averages(image[axis], outputs[axis], kernel[axis], strides[axis], begin, norm)
        return slope


def _averages(n: int, outputs: int, kernel: int, stride: int, begin: int, norm: Norm) -> Upper:
    """Norm of one axis of averages that count the pixels they see (counting the padding only makes it smaller)."""
    row = ZERO
    columns = [ZERO] * n
    for o in range(outputs):
        seen = [i for i in range(o * stride - begin, o * stride - begin + kernel) if 0 <= i < n]
        if not seen:
            continue
        row = ONE
        share = Upper(f"1/{len(seen)}")
        for i in seen:
            columns[i] = columns[i] + share
    column = max(columns, default=ZERO)
    return column if norm == "l1" else row if norm == "linf" else (row * column).sqrt()
