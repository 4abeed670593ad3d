"""Linear attention whose features change by no more than themselves: the constants from what stands behind the features, attacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Lower
from lipaudit.operators.attention_core import rows_of
from lipaudit.operators.linear_attention import FeatureHeads
from lipaudit.operators.range import Range

Array = NDArray[Any]

FEATURES = {
    "exp": np.exp,
    "elu": lambda u: np.where(u.real > 0, 1 + u, np.exp(np.where(u.real > 0, 0, u))),
    "softplus": lambda u: np.log(1 + np.exp(u)),
    "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
}


def attention(phi: Any, u: Array, w: Array, v: Array, e: float) -> Array:
    """Outputs [n_q, d]."""
    weights = phi(u) @ phi(w).T
    return weights @ v / (weights.sum(axis=-1, keepdims=True) + e)


def gain(phi: Any, u: Array, w: Array, v: Array, e: float, i: int) -> float:
    """Spectral norm of the Jacobian in u (0) or w (1), by the complex step."""
    at = (u, w)[i]
    columns = []
    for k in range(at.size):
        moved = at.astype(complex).reshape(-1)
        moved[k] += 1e-30j
        moved = moved.reshape(at.shape)
        columns.append(attention(phi, moved if i == 0 else u, moved if i else w, v, e).imag.reshape(-1) / 1e-30)
    return float(np.linalg.norm(np.stack(columns, axis=1), 2))


def bounds(n_q: int, n_k: int, f: int, v: Array, e: float) -> FeatureHeads:
    """Features may be anything above 0; the values are exactly known."""
    free = [Range((1, n, f), np.asarray(0.0), np.asarray(np.inf)) for n in (n_q, n_k)]
    values = Range((1, *v.shape), v.min(axis=0)[None, None], v.max(axis=0)[None, None])
    return FeatureHeads(rows_of(free[0]), rows_of(free[1]), rows_of(values), Lower(0), Lower(0), Lower(e), e > 0)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("e", [0.0, 0.1])
@pytest.mark.parametrize("i", [0, 1])
def test_nothing_is_above(name: str, e: float, i: int) -> None:
    """Random sizes, far tails, one feature, one key, equal rows."""
    rng = np.random.default_rng(3)
    for n_q, n_k, f in ((1, 2, 2), (3, 4, 3), (4, 1, 2), (2, 3, 1), (1, 1, 1)):
        if n_k == 1 and e == 0:  # the only value, whatever the features: what the Jacobian shows is its rounding
            assert bounds(n_q, 1, f, np.ones((1, 2)), e).relative_gain(i).is_zero
            continue
        for size in (0.1, 2.0, 8.0):
            for _ in range(8):
                v = 3 * rng.standard_normal((n_k, 2))
                u, w = size * rng.standard_normal((n_q, f)), size * rng.standard_normal((n_k, f))
                if rng.random() < 0.3:
                    u[:] = u[:1]
                assert gain(FEATURES[name], u, w, v, e, i) <= float(bounds(n_q, n_k, f, v, e).relative_gain(i))


@pytest.mark.parametrize("i", [0, 1])
def test_they_are_reached(i: int) -> None:
    """Two keys on a feature each, of equal weight, with opposite values: a constant that is one percent smaller is wrong."""
    v = np.array([[1.0], [-1.0]])
    w = np.array([[0.0, -40.0], [-40.0, 0.0]])
    for n_q in (1, 3):
        known = float(bounds(n_q, 2, 2, v, 0.0).relative_gain(i))
        found = gain(np.exp, np.zeros((n_q, 2)), w, v, 0.0, i)
        assert 0.99 * known <= found <= known
