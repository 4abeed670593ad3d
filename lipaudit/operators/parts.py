"""Linear parts: what each stored weight of a node does to the data, as an operator whose norms can be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.linear import Dense, Diagonal
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import Norm
from lipaudit.graph.ir import Constant
from lipaudit.operators.base import Site
from lipaudit.operators.linear import constant_norm, matrix_norm, stored_values, weight_array

__all__ = ["Part", "directions", "factors", "matrix", "product", "stored", "table"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One stored weight of a node as a linear map.

    Attributes
    ----------
    weight
        Name of the tensor, or of the attribute that holds it.
    kind
        "matrix", "batched matrix", "convolution", "transposed convolution", "diagonal" or "embedding".
    shape
        Of the weight as it is stored (of one direction, where a recurrent layer has two).
    operator
        The map, or why there is none.
    norms
        How its norm is had where the audit asks for the same one: both read it from one place.
    """

    weight: str
    kind: str
    shape: tuple[int, ...]
    operator: LinearOperator | str
    norms: Callable[[Norm], VerifiedNorm] | None = None

    def norm(self, norm: Norm) -> VerifiedNorm:
        """Verified norm of the map."""
        if isinstance(self.operator, str):
            raise ValueError(self.operator)
        return self.operator.norm(norm) if self.norms is None else self.norms(norm)


def stored(constant: Constant, kind: str, operator: LinearOperator | str) -> tuple[Part, ...]:
    """A map that the stored tensor defines as it stands."""
    if isinstance(operator, str):
        return (Part(constant.name, kind, constant.shape, operator),)
    return (Part(constant.name, kind, constant.shape, operator, lambda norm: constant_norm(constant, operator, norm)),)


def product(constant: Constant, operator: LinearOperator | str, *, transposed: bool = False) -> tuple[Part, ...]:
    """A product with a stored matrix (``transposed``: with its transpose) or a batch of them."""
    if isinstance(operator, Dense) and len(constant.shape) == 2:
        acting = transposed != (operator.side == "right")
        return (Part(constant.name, "matrix", constant.shape, operator, lambda norm: matrix_norm(constant, norm, transposed=acting)),)
    return stored(constant, "batched matrix" if len(constant.shape) > 2 else "matrix", operator)


def matrix(name: str, shape: tuple[int, ...], values: Array) -> Part:
    """``x W`` with W [inputs, outputs] given by its real values (dequantised, cut, out of an attribute)."""
    return Part(name, "matrix", shape, Dense(values, (1, values.shape[0])))


def factors(site: Site, i: int) -> tuple[Part, ...]:
    """The stored scale at input ``i`` of a node that multiplies element by element."""
    constant = site.constant(i)
    if constant is None or constant.size < 2:
        return ()
    return (Part(constant.name, "diagonal", constant.shape, Diagonal(weight_array(constant), constant.shape)),)


def table(site: Site, i: int) -> tuple[Part, ...]:
    """The stored table at input ``i``, of whose rows a node looks some up: as the matrix that acts on a row of counts."""
    constant = site.constant(i)
    if constant is None or len(constant.shape) != 2 or "float" not in constant.dtype:
        return ()
    operator = Dense(stored_values(constant), (1, constant.shape[0]))
    return (Part(constant.name, "embedding", constant.shape, operator, lambda norm: matrix_norm(constant, norm, transposed=True)),)


def directions(name: str, values: Array, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """Weights [directions, outputs, inputs] of a recurrent layer: all gates of a direction stacked, one part a direction."""
    found: list[Part] = []
    for each in values:
        part = np.asarray(each)
        found.append(Part(name, "matrix", shape[1:], Dense(part, (part.shape[1], 1), side="left")))
    return tuple(found)
