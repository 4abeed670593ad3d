"""The half torus against matrices written out from the definition, and how much it says beside a torus along both axes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipaudit.bounds import conv, half
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.half import half_torus
from tests.bounds.test_conv import draw, truth
from tests.bounds.truth import exact, spectral_from_below

Floats = NDArray[np.float64]


def test_random_small_convolutions() -> None:
    """Strides, dilations, pads and kernels larger than the image, along the exact axis and along the other; no slack is asked."""
    rng = np.random.default_rng(70)
    count = strided = dilated = 0
    for k in range(1200):
        weight, options, image = draw(rng, k)
        options["groups"] = 1
        operator = Convolution(weight, image, **options)
        if 0 in operator.out_shape or not weight.any() or not all(axis.reachable for axis in operator.window):
            continue
        found = half_torus(operator._matrix, operator.window, 0.0)
        if found is None:
            continue
        count += 1
        strided += max(options["strides"]) > 1
        dilated += max(options["dilations"]) > 1
        assert exact(found[0]) >= Fraction(spectral_from_below(truth(operator, weight, options))), (k, options)
    assert count >= 200 and strided >= 80 and dilated >= 90, (count, strided, dilated)


def test_exact_where_the_other_axis_is_known() -> None:
    """All ones: (1 + 2 cos(pi / (H + 1)))(1 + 2 cos(pi / (W + 1))) with the twist that fits."""
    operator = Convolution(np.ones((1, 1, 3, 3)), (5, 9), pads=((1, 1), (1, 1)))
    found = half_torus(operator._matrix, operator.window, 0.0)
    assert found is not None
    true = (1 + 2 * np.cos(np.pi / 6)) * (1 + 2 * np.cos(np.pi / 10))
    assert true * (1 - 1e-14) <= float(found[0]) <= true * (1 + 1e-10)
    assert found[1]["twist"] == [1] and found[1]["exact axis"] == 0


def test_which_axis_is_exact_does_not_matter_for_soundness() -> None:
    rng = np.random.default_rng(71)
    for image in ((3, 7), (7, 3), (4, 4)):
        weight = rng.standard_normal((3, 2, 3, 2))
        operator = Convolution(weight, image, pads=((1, 1), (1, 0)))
        true = spectral_from_below(truth(operator, weight, {"strides": (1, 1), "dilations": (1, 1), "pads": ((1, 1), (1, 0)), "groups": 1}))
        for twists in (None, (0, 0), (0, 1), (1, 0), (1, 1)):
            found = half_torus(operator._matrix, operator.window, 1e-6, twists)
            assert found is not None and exact(found[0]) >= Fraction(true)


def test_rounding_of_the_symbol_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines off by all that is allowed for them: the bound stays above."""
    rng = np.random.default_rng(72)
    weight = np.abs(rng.standard_normal((2, 2, 3, 3)))
    operator = Convolution(weight, (4, 6), pads=((1, 1), (1, 1)))
    before = half_torus(operator._matrix, operator.window, 0.0, (1, 1))
    exactly = half.cosines
    monkeypatch.setattr(half, "cosines", lambda turns, size: exactly(turns, size) - 15 * 2.0**-53)
    after = half_torus(operator._matrix, operator.window, 0.0, (1, 1))
    assert before is not None and after is not None
    true = spectral_from_below(truth(operator, weight, {"strides": (1, 1), "dilations": (1, 1), "pads": ((1, 1), (1, 1)), "groups": 1}))
    assert exact(after[0]) >= Fraction(true) and after[0] < before[0]


@pytest.mark.parametrize(("c", "size"), [(40, 8), (24, 12)])
def test_small_images_are_bounded_within_a_hundredth(c: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "DENSE_SIDE", 0)
    weight = np.random.default_rng(73).standard_normal((c, c, 3, 3))
    operator = Convolution(weight, (size, size), pads=((1, 1), (1, 1)))
    found = operator.norm("l2")
    assert found.method == "half torus"
    reached = float(np.linalg.norm(operator.matrix(), 2))
    assert reached * (1 - 1e-12) <= float(found.upper) <= reached * 1.01


def test_what_costs_too_much_is_left() -> None:
    weight = np.ones((600, 600, 3, 3))
    weight[0, 0, 0, 0] = 2
    operator = Convolution(weight, (7, 7), pads=((1, 1), (1, 1)))
    assert half_torus(operator._matrix, operator.window, 1e-6) is None
    grouped = Convolution(np.ones((4, 1, 3, 3)), (7, 7), groups=4)
    assert half_torus(grouped._matrix, grouped.window, 1e-6) is None
    assert half_torus(np.zeros((1, 2, 2, 9)), Convolution(np.zeros((2, 2, 3, 3)), (7, 7)).window, 1e-6) is not None
