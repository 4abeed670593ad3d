"""The headline pair as a file, and back: the same pair gives the same number without a search.

Items: ``x:NAME`` and ``y:NAME`` for every source (value names), ``fixed:NAME`` for the inputs that both points share, and
``error:NORM:NAME`` for every output: the relative distance of float32 and float64 that the confirmation had seen when it came to this pair
(see :mod:`lipaudit.validate.confirm`), without which a replay might be a little less cautious.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm
from lipaudit.errors import UsageError
from lipaudit.graph.dtypes import numpy_dtype
from lipaudit.graph.ir import Graph
from lipaudit.validate.arrays import pack
from lipaudit.validate.measurement import Measurements
from lipaudit.validate.problem import Part, Problem

__all__ = ["Witness", "witness_bytes"]

Array = NDArray[Any]
Floats = NDArray[np.float64]


def witness_bytes(found: Measurements, norm: Norm) -> bytes | None:
    """The .npz file of the headline pair; None if nothing was measured."""
    if not found.witness_arrays:
        return None
    errors = {f"error:{norm}:{name}": np.asarray(error) for name, error in found.witness_errors.items()}
    return pack({**found.witness_arrays, **errors})


@dataclass(frozen=True)
class Witness:
    """A pair as read from a file; ``where`` is the file's name."""

    arrays: Mapping[str, Array]
    where: str

    def fixed(self, graph: Graph) -> dict[str, Array]:
        """Values of the inputs of ``graph`` that are not sources.

        Raises
        ------
        UsageError
            An item belongs to no input, or is of the wrong shape or type.
        """
        inputs = {f"fixed:{value.name}": value for value in graph.inputs}
        found: dict[str, Array] = {}
        for item, array in self.arrays.items():
            if not item.startswith("fixed:"):
                continue
            value = inputs.get(item)
            if value is None or value.shape is None or not value.dtype or value.dtype == "string":
                raise self._complaint(f"item {item!r} belongs to no input of the model.")
            self._fits(item, value.shape)
            found[value.name] = array.astype(numpy_dtype(value.dtype))
            if not np.array_equal(found[value.name].astype(array.dtype), array):
                raise self._complaint(f"item {item!r} holds elements that do not fit into {value.dtype}.")
        return found

    def errors(self, norm: Norm) -> dict[str, float]:
        """Relative errors by output, in ``norm``."""
        prefix = f"error:{norm}:"
        found = {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}
        return {name: float(array) for name, array in found.items() if array.size == 1 and np.isfinite(array) and array >= 0}

    def points(self, problem: Problem) -> tuple[Floats, Floats]:
        """Both points, flat.

        Raises
        ------
        UsageError
            An item is missing, unknown, of the wrong shape or outside of the domain; or the points are equal.
        """
        kinds = ("x", "y")
        known = {f"{kind}:{part.name}" for kind in kinds for part in problem.parts}
        for name in self.arrays:
            if name not in known and not name.startswith("error:") and name.removeprefix("fixed:") not in problem.fixed:
                raise self._complaint(f"item {name!r} belongs to no input of the model.")
        for name, value in problem.fixed.items():
            self._fits(f"fixed:{name}", value.shape)
        x, y = (np.concatenate([self._part(kind, part, problem) for part in problem.parts]) for kind in kinds)
        if np.array_equal(x, y):
            raise self._complaint("the two points are equal.")
        return x, y

    def _part(self, kind: str, part: Part, problem: Problem) -> Floats:
        name = f"{kind}:{part.name}"
        self._fits(name, part.shape)
        value = self.arrays[name].astype(np.float64).reshape(-1)
        if not np.isfinite(value).all():
            raise self._complaint(f"item {name!r} holds elements that are not finite.")
        if (value < problem.lo[part.place]).any() or (value > problem.hi[part.place]).any():
            raise self._complaint(f"item {name!r} leaves the domain of --input.")
        return value

    def _fits(self, name: str, shape: tuple[int, ...]) -> None:
        found = self.arrays.get(name)
        if found is None:
            raise self._complaint(f"item {name!r} is missing.")
        if found.shape != shape:
            raise self._complaint(f"item {name!r} has shape {list(found.shape)}; the model takes {list(shape)}.")

    def _complaint(self, text: str) -> UsageError:
        return UsageError(text, where=self.where)
