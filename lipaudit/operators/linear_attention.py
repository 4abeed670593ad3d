"""Linear attention ``o_i = sum_j (a_i.b_j) v_j / (sum_j a_i.b_j + e)`` on features a, b >= 0 (Katharopoulos et al. 2020, arXiv 2006.16236).

The weights ``p_ij = a_i.b_j / (sum + e)`` are those of a convex combination of the values (and of 0, where e > 0: D_V is then the
diameter with 0). With ``alpha <= a``, ``beta <= b`` element by element and ``delta <= sum_j a_i.b_j + e``, on a box of features (convex)::

    do_i = sum_j p_ij dv_j + sum_j p_ij t_j (v_j - o_i),    t_j = (da_i.b_j + a_i.db_j) / a_i.b_j

Along any direction the last sum is a covariance, at most ``sqrt(sum_j p_ij t_j^2) D_V/2``. From a: ``|t_j| <= |da_i|/alpha`` gives
``G_a = D_V/(2 alpha)``; from b: ``|t_j| <= |db_j|/beta`` gives ``G_b = sqrt(c) D_V/(2 beta)``, c the largest column sum of p. Without lower
ends of the features: ``G_a <= n_k R_b D_V/delta``, ``G_b <= sqrt(n_q n_k) R_a D_V/delta``.

Where the features are ``phi(u)`` with ``0 <= phi' <= phi`` (exp, 1 + elu, softplus, sigmoid), t_j is a mean of relative changes
``phi'(u_f)/phi(u_f) du_f`` of u behind a, so all t_j of one query lie within ``sqrt(2) |du_i|`` of each other and have a standard
deviation of at most ``|du_i|/sqrt(2)``: ``G_u = D_V/sqrt(8)``. From u behind b, ``|t_j| <= |du_j|``, and the bound of softmax in its
scores gives ``D_V min(sqrt(n_q/8), sqrt(c)/2)``. No lower end of the features matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipaudit.bounds.scalar import INFINITE, ONE, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.attention import copies_of
from lipaudit.operators.attention_core import Rows, output_range, rows_of
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.range import Range, reals

__all__ = ["FeatureHeads", "LinearAttention"]


@dataclass(frozen=True, slots=True)
class FeatureHeads:
    """The bounds of one head, as ``attention_core.Heads`` has them for softmax: q are the features a, k the features b.

    ``least_q``, ``least_k``: alpha and beta; ``floor``: delta; ``sink``: e > 0.
    """

    q: Rows
    k: Rows
    v: Rows
    least_q: Lower
    least_k: Lower
    floor: Lower
    sink: bool
    shared: int = 1

    def _values(self) -> tuple[Upper, Upper, Upper]:
        """l2 and l1 diameter and column spread of the values, 0 among them where there is a sink."""
        v = self.v
        if not self.sink:
            return v.diameter, v.diameter_l1, v.column
        return max(v.diameter, v.row), max(v.diameter_l1, v.row_l1), max(v.column, v.top)

    def column_sum(self) -> Upper:
        """``n_q max p``, ``p <= R_a R_b / delta``."""
        share = min(ONE, self.q.row * self.k.row / self.floor) if self.floor > Lower(0) else ONE
        return Upper(self.q.count) * share

    def query_gain(self, norm: Norm) -> Upper:
        """From a. linf ``w_V/(2 alpha)`` or ``n_k |b|_1 w_V/delta``; l1 ``D1_V/alpha`` or ``n_k max|b| D1_V/delta``."""
        d, d1, w = self._values()
        keys = Upper(self.k.count)
        two = Lower(2)
        close = {"l2": d / two, "linf": w / two, "l1": d1}[norm]
        far = {"l2": self.k.row * d, "linf": self.k.row_l1 * w, "l1": self.k.top * d1}[norm] * keys
        return min(_over(close, self.least_q), _over(far, self.floor))

    def key_gain(self, norm: Norm) -> Upper:
        """From b. linf ``w_V/(2 beta)`` or ``n_k |a|_1 w_V/delta``; l1 ``c D1_V/beta`` or ``n_q max|a| D1_V/delta``."""
        d, d1, w = self._values()
        two, column = Lower(2), self.column_sum()
        close = {"l2": column.sqrt() * d / two, "linf": w / two, "l1": column * d1}[norm]
        count = {"l2": Upper(self.q.count * self.k.count).sqrt(), "linf": Upper(self.k.count), "l1": Upper(self.q.count)}[norm]
        far = {"l2": self.q.row * d, "linf": self.q.row_l1 * w, "l1": self.q.top * d1}[norm] * count
        return repeat_factor(self.shared, norm) * min(_over(close, self.least_k), _over(far, self.floor))

    def value_gain(self, norm: Norm) -> Upper:
        """``sqrt(c)``, linf 1, l1 c."""
        column = self.column_sum()
        return repeat_factor(self.shared, norm) * {"l2": column.sqrt(), "linf": ONE, "l1": column}[norm]

    def relative_gain(self, i: int) -> Upper:
        """l2 gain from u, where the features of a (0) or b (1) are ``phi(u)`` with ``0 <= phi' <= phi``."""
        d = self._values()[0]
        if i == 0:
            return d / Lower(8).sqrt()
        share = min((Upper(self.q.count) / Lower(8)).sqrt(), self.column_sum().sqrt() / Lower(2))
        return repeat_factor(self.shared, "l2") * d * share

    def row_max_gains(self) -> tuple[Upper, Upper, Upper]:
        """In the largest-row norm, free of the number of tokens."""
        half = self._values()[0] / Lower(2)
        return _over(half, self.least_q), _over(half, self.least_k), ONE


def _over(size: Upper, floor: Lower) -> Upper:
    if size.is_zero:
        return size
    return size / floor if floor > Lower(0) else INFINITE


class LinearAttention(Rule):
    """The recognised core ``lipaudit::LinearAttention``: features ``[.., n_q, f]``, ``[.., n_k, f]``, values ``[.., n_k, d]``.

    Attribute ``epsilon``: e >= 0 of the module.
    """

    def heads(self, site: Site, xs: Sequence[Range | None]) -> FeatureHeads | Unknown:
        """The bounds of one head."""
        a, b, v = xs[0], xs[1], xs[2]
        if a is None or b is None or v is None or min(len(a.shape), len(b.shape), len(v.shape)) < 2:
            return Unknown("attention needs features and values of rank 2 or more")
        if a.size == 0 or b.size == 0:
            return Unknown("attention over no token")
        epsilon = float(site.attr("epsilon", 0.0))
        (low_a, _), (low_b, _) = a.full(), b.full()
        least_a, least_b = float(np.min(low_a)), float(np.min(low_b))
        if min(least_a, least_b) < 0:
            return Unknown("its features may be negative: the weights are no convex combination")
        sums = np.sum(low_b, axis=-2)
        products = np.sum(low_a * sums[..., None, :], axis=-1)
        size = a.shape[-1] + b.shape[-2] + 8
        floor = float(np.min(products)) * (1 - size * 2.0**-52) if np.all(np.isfinite(products)) else 0.0
        heads = FeatureHeads(rows_of(a), rows_of(b), rows_of(v), Lower(least_a), Lower(least_b), Lower(floor) + Lower(epsilon), epsilon > 0)
        return replace(heads, floor=max(heads.floor, Lower(0)))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The hull of the values (and of 0)."""
        heads, v = self.heads(site, xs), xs[2]
        if isinstance(heads, Unknown) or v is None or not heads.floor > Lower(0):
            return (reals(site.out_shape()),)
        return (output_range(site.out_shape(), v, 1, 1, empty=heads.sink),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The path of input ``i``."""
        heads = self.heads(site, xs)
        if isinstance(heads, Unknown):
            return heads
        if not heads.floor > Lower(0):
            return Unbounded("the sum that it divides by may come down to 0 on this domain")
        operand = xs[i]
        assert operand is not None
        own = (heads.query_gain, heads.key_gain, heads.value_gain)[i](norm)
        slope = own * repeat_factor(copies_of(operand.shape[:-2], site.out_shape()[:-2]), norm)
        if not slope.is_finite:
            return Unbounded("its values are unbounded on this domain, or the features may come down to 0")
        evidence = {
            "D_V": heads.v.diameter.decimal(), "least sum": heads.floor.decimal(), "column sum": heads.column_sum().decimal(),
            "least features": [heads.least_q.decimal(), heads.least_k.decimal()],
        }  # fmt: skip
        return Finite(slope, method="linear attention", evidence=evidence)
