"""L2 attention with tied queries and keys is Lipschitz on all reals: ``o_i = sum_j P_ij (q_j M + b)``.

With ``P_i = softmax_j(-tau |q_i - q_j|^2)``, ``y_j = q_j - q_i``, ``ybar = sum_j P_ij y_j``::

    do_i = M' ( 2 tau Cov_i(y) dq_i + sum_j P_ij (I - 2 tau (y_j - ybar) y_j') dq_j )

and ``tau sum_j P_ij |y_j|^2 <= k``, ``k = W0((n - 1)/e)`` (Lambert's function): for logits -w_j with w_i = 0 (each row attends itself)
``sum_j P_ij w_j <= k`` iff ``sum_{j != i} (w_j - k) exp(-w_j) <= k``, whose left side is largest at ``w_j = k + 1``. So the first term
is at most ``2 k |dq_i|``, the rows of ``P_ij ||I - ..||`` sum to at most ``2 k + 1``, and a matrix with such rows has spectral norm at
most ``sqrt(n) (2 k + 1)``: ``||M|| (2 k + sqrt(n) (2 k + 1))``, whatever tau is. Model: Kim, Papamakarios, Mnih 2021, arXiv 2006.04710.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import ONE, Norm, Upper
from lipaudit.operators import interval
from lipaudit.operators.attention_core import output_range
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.linear import weight_array
from lipaudit.operators.matmul import dense
from lipaudit.operators.range import Range, reals

__all__ = ["L2Attention", "mean_logit"]


def mean_logit(keys: int) -> float:
    """Upper bound of ``W0((keys - 1)/e)``: any k with ``k exp(k + 1) >= keys - 1``, decided with a margin that covers the rounding."""
    if keys <= 1:
        return 0.0
    k = math.log(keys)  # above the root: log(n) n e >= n - 1
    for _ in range(60):
        k -= (k * math.exp(k + 1) - (keys - 1)) / ((k + 1) * math.exp(k + 1))
    for slack in (1e-12, 1e-9, 1e-6):
        candidate = k * (1 + slack)
        if candidate * math.exp(candidate + 1) * (1 - 1e-13) >= keys - 1:
            return candidate
    return math.log(keys)


class L2Attention(Rule):
    """Inputs: the rows q [.., n, d], M [d, m] ("" for the identity), b [m] ("" for none). Attribute tau > 0."""

    def _map(self, site: Site) -> Upper | Unknown:
        """``||M||`` in l2."""
        if not site.has(1):
            return ONE
        constant = site.constant(1)
        if constant is None or any(site.moving[1:]):
            return Unknown("the values are not a stored linear map of the queries")
        q = site.shape(0)
        found = dense(constant, q, (*site.out_shape()[:-1], constant.shape[-1]), "right")
        return Unknown(found) if isinstance(found, str) else found.norm("l2").upper

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Convex combinations of the values."""
        x, shape = xs[0], site.out_shape()
        if x is None or not x.is_bounded:
            return (reals(shape),)
        values = x
        if site.has(1):
            constant = site.constant(1)
            operator = None if constant is None else dense(constant, x.shape, (*shape[:-1], constant.shape[-1]), "right")
            if operator is None or isinstance(operator, str):
                return (reals(shape),)
            lo, hi = operator.enclose(x.lo, x.hi)
            stored = site.constant(2)
            if stored is not None:
                bias = np.asarray(weight_array(stored), dtype=np.float64)
                lo, hi = interval.add((lo, hi), (bias, bias))
            values = Range(shape, lo.reshape(shape), hi.reshape(shape))
        return (output_range(shape, values, 1, 1, empty=False),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the module; in linf ``sqrt(d) (4 k + 1) ||M||`` by largest rows, in l1 ``sqrt(n m)`` times that of l2."""
        size = self._map(site)
        if i or isinstance(size, Unknown):
            return size if isinstance(size, Unknown) else Unknown("only the rows may move")
        *_, tokens, width = site.shape(0)
        k = Upper(mean_logit(tokens))
        two = Upper(2)
        if norm == "linf":
            slope = Upper(width).sqrt() * (Upper(4) * k + ONE) * size
        else:
            slope = size * (two * k + Upper(tokens).sqrt() * (two * k + ONE))
            if norm == "l1":
                slope = slope * Upper(tokens * site.out_shape()[-1]).sqrt()
        return Finite(slope, method="tied L2 attention", evidence={"keys": tokens, "k": k.decimal(), "values": size.decimal()})
