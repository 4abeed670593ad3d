"""The recognised core of sigmoid and ReLU attention: what is added to a score, and masks that move."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipaudit.bounds.scalar import Norm
from lipaudit.graph.ir import Node, Value
from lipaudit.operators.base import Finite, Site
from lipaudit.operators.range import Range
from tests.operators.structured import CATALOGUE

TOKENS, WIDTH = 3, 4


def _box(shape: tuple[int, ...], low: float, high: float, *, integral: bool = False) -> Range:
    return Range(shape, np.asarray(low), np.asarray(high), integral=integral)


def _asked(activation: str, bias: Range, dtype: str, i: int, norm: Norm) -> Finite:
    shapes = [(TOKENS, WIDTH)] * 3 + [(TOKENS, TOKENS)]
    values = tuple(Value(f"x{k}", "float32" if k < 3 else dtype, shape) for k, shape in enumerate(shapes))
    attrs = {"activation": activation, "scale": 1.0, "factor": 1.0, "k_transposed": 0}
    node = Node("n", "PairAttention", tuple(value.name for value in values), ("y",), "lipaudit", 1, attrs, ("n",))
    site = Site(node, values, (Value("y", "float32", (TOKENS, WIDTH)),), (None,) * 4, (True,) * 4)
    rule = CATALOGUE.rule(node)
    assert rule is not None
    found = rule.gain(site, i, norm, [*(_box(shape, -1, 1) for shape in shapes[:3]), bias])
    assert isinstance(found, Finite), found
    return found


@pytest.mark.parametrize("integral", [False, True])
def test_a_bias_of_whole_numbers_is_added_like_any_other(integral: bool) -> None:
    """ReLU: every weight can be 100, so the output moves by 100 times the sum over the keys in linf."""
    found = _asked("relu", _box((TOKENS, TOKENS), 0, 100, integral=integral), "float32", 2, "linf")
    assert float(found.slope) >= 100 * TOKENS


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_a_mask_that_moves_jumps(activation: str) -> None:
    """All scores at 0 and allowed, or all forbidden: the weights of the sigmoid go from 1/2 to 0 at once."""
    found = _asked(activation, _box((TOKENS, TOKENS), 0, 1, integral=True), "bool", 3, "linf")
    assert found.slope.is_zero
    assert float(found.offset) >= TOKENS * (0.5 if activation == "sigmoid" else WIDTH)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_jump_of_a_relu_is_attained(norm: Norm) -> None:
    """Every score is 4 and every value 1: without the mask each element is 12, with it 0."""
    found = _asked("relu", _box((TOKENS, TOKENS), 0, 1, integral=True), "bool", 3, norm)
    offset, power = Fraction(float(found.offset)), 2 if norm == "l2" else 1
    jump = {"l1": 12 * 12, "l2": 12**2 * 12, "linf": 12}[norm]  # in l2 the square
    assert jump <= offset**power <= jump * (1 + Fraction(1, 10**12))
