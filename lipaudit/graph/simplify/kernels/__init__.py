"""Operators evaluated in numpy while folding; the tables say which.

A kernel takes the node and its input arrays (None where one is left out) and returns the output arrays, or None if it
would rather leave the case to onnxruntime. Only exact work is done here: data movement, integers, comparisons, and the
float operations that IEEE 754 rounds correctly (so that numpy and the runtime agree to the last bit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from lipaudit.graph.ir import Node
from lipaudit.graph.simplify.kernels import arithmetic, movement, quantised

__all__ = ["KERNELS", "VIEWS", "Kernel"]

Kernel = Callable[[Node, Sequence[NDArray[Any] | None]], "Sequence[NDArray[Any]] | None"]

KERNELS: Mapping[str, Kernel] = {**movement.KERNELS, **arithmetic.KERNELS, **quantised.KERNELS}

# Results that are views of their input, whatever the size: they cost no memory.
VIEWS = movement.VIEWS
