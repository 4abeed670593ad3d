"""One operator application, as the float64 operators see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site

__all__ = ["Array", "Call", "NotExact", "Operator", "is_float"]

Array = NDArray[Any]


class NotExact(Exception):
    """A node cannot be evaluated in float64 here; the message says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """A node with its input values.

    Attributes
    ----------
    site
        The node, its types and its constants (``site.attr`` fills in schema defaults).
    xs
        Input arrays, float ones in the working precision; None where omitted.
    floating
        The working precision (float64).
    """

    site: Site
    xs: Sequence[Array | None]
    floating: np.dtype[Any]

    @property
    def version(self) -> int:
        """Since-version of the node's schema."""
        return self.site.node.version

    def x(self, i: int = 0) -> Array:
        """Input ``i``, which must be given."""
        value = self.xs[i] if i < len(self.xs) else None
        if value is None:
            raise NotExact(f"input {i} of {self.site.node.name!r} is missing")
        return value

    def optional(self, i: int) -> Array | None:
        """Input ``i`` or None."""
        return self.xs[i] if i < len(self.xs) else None

    def ints(self, name: str, i: int | None = None) -> tuple[int, ...] | None:
        """A list of ints that is input ``i`` in newer versions and attribute ``name`` in older ones."""
        if i is not None and self.optional(i) is not None:
            return tuple(int(v) for v in np.asarray(self.x(i)).reshape(-1))
        value = self.site.attr(name)
        if value is None:
            return None
        return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)

    def fill(self, i: int) -> float | None:
        """The single value of input ``i`` if it is a uniform constant, in the working precision."""
        constant = self.site.constant(i)
        if constant is None or constant.fill is None:
            return None
        return float(self.x(i).reshape(-1)[0]) if constant.size else None


Operator = Callable[[Call], "Array | tuple[Array, ...]"]


def is_float(array: Array) -> bool:
    """True for floating-point arrays (ml_dtypes ones included)."""
    return array.dtype.kind == "f" or "float" in array.dtype.name
