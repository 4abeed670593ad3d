"""Local gains at typical inputs, and the extreme value estimate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import genextreme

from lipaudit.validate.local import extreme_end, summary
from tests.validate.small import measure, mlp


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_end_of_a_known_distribution_is_found(shape: float, scale: float) -> None:
    # scipy's shape is Hosking's k: the end is loc + scale / k.
    sample = genextreme.rvs(shape, loc=3 * scale, scale=scale, size=4000, random_state=1)
    end = 3 * scale + scale / shape
    found = extreme_end(sample)
    assert found is not None
    assert abs(found - end) < 0.1 * (end - 3 * scale)


def test_a_distribution_without_an_end_has_no_estimate() -> None:
    assert extreme_end(genextreme.rvs(-0.4, loc=3, size=4000, random_state=1)) is None
    assert extreme_end(np.array([1.0, 2.0])) is None
    assert extreme_end(np.zeros(8)) is None
    assert extreme_end(np.full(8, 2.5)) == 2.5


def test_the_estimate_is_never_below_what_was_seen() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        gains = rng.weibull(2.0, 64).tolist()
        found = summary(gains)
        assert found is not None
        assert found.quantiles["1"] == pytest.approx(max(gains), rel=5e-3)
        assert found.estimate is None or found.estimate >= 0.995 * max(gains)
    assert summary([1.0, 2.0]) is None


def test_a_linear_network_has_one_local_gain() -> None:
    matrix = np.random.default_rng(1).standard_normal((6, 5))
    found = measure(mlp([matrix]), regions=[("all", ("x",), "m0")]).local
    assert found is not None
    top = float(np.linalg.norm(matrix.astype(np.float32), 2))
    assert set(found.quantiles) == {"0.1", "0.5", "0.9", "1"}
    assert all(abs(gain - top) < 5e-3 * top for gain in found.quantiles.values())
    assert found.facts()["gain_spread"] == 0.0
    assert found.estimate == found.quantiles["1"]
    assert found.points >= 32
