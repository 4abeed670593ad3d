"""BatchNormalization in inference and LRN. (Normalizations over the sample itself are in other modules.)"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Diagonal
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ONE, Lower, Norm, Upper
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.batch_moving import moving_gain, moving_range
from lipaudit.operators.flow import Flow
from lipaudit.operators.parts import Part
from lipaudit.operators.range import Range, reals, up, widen
from lipaudit.operators.training import BatchStatistics

__all__ = ["LRN", "BatchNormalization"]

Floats = NDArray[np.float64]

# v + eps, its root, the quotient: three roundings of 2^-53 each.
_ERROR = 2.0**-51


class BatchNormalization(BatchStatistics):
    """``y = g (x - m) / sqrt(v + eps) + b`` per channel with stored statistics: diagonal, gain ``max |g| / sqrt(v + eps)``, exact.

    Training mode (statistics of the batch, see :class:`BatchStatistics`) by the spelling of each version: 1, 6: ``is_test`` 0, the
    default; 7, 9: extra outputs; 14, 15: ``training_mode``. Before version 9 ``spatial=0`` has statistics per position.
    Parameters that move: see ``batch_moving``.
    """

    def _training(self, site: Site) -> bool:
        version = site.node.version
        if version and version < 7:
            return not site.attr("is_test", 0)
        if version and version < 14:
            return any(value is not None for value in site.outputs[1:])
        return bool(site.attr("training_mode", 0))

    def _scale(self, site: Site) -> tuple[Floats, list[Floats]] | str:
        """``g / sqrt(v + eps)`` (relative error at most 2^-51) and g, b, m, v, shaped to broadcast to x; or why not."""
        stored = [site.constant(i) for i in range(1, 5)]
        if any(constant is None for constant in stored):
            return "scale, bias or statistics are not constant"
        values = [constant.float64() for constant in stored if constant is not None]
        shape = site.shape(0)
        per_position = site.node.version < 9 and not site.attr("spatial", 1) and values[0].ndim > 1
        values = [v.reshape(shape[1:] if per_position else (-1, *(1,) * (len(shape) - 2))) for v in values]
        if not all(np.all(np.isfinite(v)) for v in values):
            return "scale, bias or statistics hold values that are not finite"
        with np.errstate(over="ignore"):
            variance = values[3] + float(site.attr("epsilon", 1e-5))
            if not np.all(variance > 0):
                return "a variance plus epsilon is not positive"
            scale = values[0] / np.sqrt(variance)
        if np.any((scale != 0) & (np.abs(scale) < 2.0**-1000)) or np.any((scale == 0) & (values[0] != 0)) or not np.all(np.isfinite(scale)):
            return "a factor underflows or overflows"
        return scale, values

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """``(x - m) s + b``, outward."""
        if self._training(site):
            return super().range(site, xs)
        if any(site.moving[1:5]):
            own = moving_range(site, xs)
            return (own, *(reals(value.shape) for value in site.outputs[1:] if value is not None and value.shape is not None))
        x, found = xs[0], self._scale(site)
        if x is None or isinstance(found, str):
            return tuple(reals(value.shape) for value in site.outputs if value is not None and value.shape is not None)
        scale, (_, bias, mean, _) = found
        if not np.any(np.isfinite(x.lo)) and not np.any(np.isfinite(x.hi)) and np.all(scale != 0):
            return (reals(site.out_shape()),)
        error = np.abs(scale) * (2 * _ERROR)
        centred = interval.add((x.lo, x.hi), (-mean, -mean))
        lo, hi = interval.add(interval.multiply(centred, (scale - error, scale + error)), (bias, bias))
        return (Range(site.out_shape(), lo, hi),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if self._training(site):
            return super().gain(site, i, norm, xs)
        if any(site.moving[1:5]):
            return moving_gain(site, i, norm, xs)
        found = self._scale(site)
        if isinstance(found, str):
            return Unknown(found)
        scale, (factor, _, _, variance) = found
        # The largest is found in doubles (with room for their error), then evaluated with balls from the stored values.
        top = float(np.max(np.abs(scale), initial=0.0))
        factor, variance = (np.broadcast_to(v, scale.shape).ravel() for v in (factor, variance))
        epsilon = Lower(float(site.attr("epsilon", 1e-5)))
        candidates = np.flatnonzero(np.abs(scale).ravel() >= top * (1 - 8 * _ERROR))
        if candidates.size > 64 or np.any(variance[candidates] < 0) or top == 0:
            return Finite(Upper(widen(top, 4)), method="largest |g| / sqrt(v + eps)")
        slope = max(Upper(abs(float(factor[k]))) / (Lower(float(variance[k])) + epsilon).sqrt() for k in candidates)
        return Finite(slope, method="largest |g| / sqrt(v + eps)")

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        found = "training" if self._training(site) else self._scale(site)
        if i or isinstance(found, str):
            return None
        shape = site.shape(0)
        return Diagonal(np.broadcast_to(found[0], shape[1:]) if len(shape) > 1 else found[0], shape, _ERROR)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """``g / sqrt(v + eps)`` of every channel."""
        constant, found = site.constant(1), self._scale(site)
        if constant is None:
            return ()
        operator = found if isinstance(found, str) else Diagonal(found[0].reshape(-1), (found[0].size,), _ERROR)
        return (Part(constant.name, "diagonal", constant.shape, operator),)

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """How parts move, see the class."""
        if self._training(site):
            return super().flow(site, flows, gains, norm)
        flow, gain = flows[0], gains[0]
        if flow is None or gain is None or any(other is not None for other in flows[1:]):
            return super().flow(site, flows, gains, norm)
        moved = scaled(site, flow, gain, norm, keep_parts=True)
        return tuple(moved for _ in site.outputs)


class LRN(Rule):
    """``y_i = x_i (k + (a/size) sum_{l in window(i)} x_l^2)^-beta`` with a, k, beta > 0.

    l2: ``k^-beta (1 + 2 sqrt 2 (beta/(1+beta))^(1+beta))``; l1, linf: ``sqrt(size)`` for ``sqrt 2``. The Jacobian is
    ``diag(b^-beta) - (2 a beta/size) M`` with ``M_il = x_i x_l b_i^(-beta-1)``; Schur test with weights ``|x|``, and
    ``u (k+u)^(-beta-1)`` is at most ``k^-beta beta^beta/(1+beta)^(1+beta)``; a column's window splits in two chunks whose members
    see each other. Derived for lipaudit.
    """

    def _parameters(self, site: Site) -> tuple[float, float, float, int]:
        return float(site.attr("alpha", 1e-4)), float(site.attr("beta", 0.75)), float(site.attr("bias", 1.0)), int(site.attr("size"))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Never larger than ``|x| k^-beta``."""
        x = xs[0]
        a, beta, k, _ = self._parameters(site)
        if x is None or min(a, beta, k) <= 0:
            return (reals(site.out_shape()),)
        factor = widen(k**-beta, 64)
        ends = (np.asarray(0.0), np.asarray(factor))
        lo, hi = interval.multiply((x.lo, x.hi), ends)
        return (Range(site.out_shape(), lo, hi, row=float(up(x.row * factor)) if math.isfinite(x.row) else math.inf),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        a, beta, k, size = self._parameters(site)
        if min(a, beta, k) <= 0 or size < 1:
            return Unknown("alpha, beta and bias must be positive")
        spread = Upper(2).sqrt() if norm == "l2" else Upper(size).sqrt()
        power = Upper(widen((beta / (1 + beta)) ** (1 + beta), 64))
        return Finite(Upper(widen(k**-beta, 64)) * (ONE + Upper(2) * spread * power), method="Schur test")
