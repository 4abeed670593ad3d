"""Kernels in block form: strides as phases that are stacked as channels, taps by their block offsets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.window import Axis, AxisForm

__all__ = ["block_taps"]

Floats = NDArray[np.float64]


def block_taps(matrix: Floats, window: Sequence[Axis], forms: Sequence[AxisForm]) -> Floats:
    """The kernel [groups, o, c, taps] as block taps [groups, o, n_1, .., n_d, phases * c]; taps that meet no pixel are dropped."""
    groups, o, c, _ = matrix.shape
    kernel = tuple(axis.kernel for axis in window)
    counts, phases = [form.count for form in forms], [len(form.phases) for form in forms]
    blocks = np.zeros((groups, o, *counts, *phases, c))
    for choice in itertools.product(*(range(len(form.taps)) for form in forms)):
        tap = int(np.ravel_multi_index(tuple(form.taps[k] for form, k in zip(forms, choice, strict=True)), kernel))
        places = [form.places[k] for form, k in zip(forms, choice, strict=True)]
        blocks[(slice(None), slice(None), *(tau for tau, _ in places), *(phase for _, phase in places))] = matrix[..., tap]
    return blocks.reshape(groups, o, *counts, -1)
