"""Einsum: any equation, as one bilinear (multilinear) map.

For one operand x the output is a matrix applied to x: its entries are the einsum Y of the other operands. Indices of x and Y and the
output are batch; of x and Y only, contracted; of Y and the output only, kept of Y; of x and the output only, copied through (free);
of x only, summed; of Y only, summed inside Y. With batch b, contracted c, kept k and s elements of x summed away::

    l2: sqrt(s) max_b |Y_b[c, k]|_2,   l1: max_{b, c} sum_k |Y|,   linf: s max_{b, k} sum_c |Y|

An axis of length 1 that broadcasts carries no index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.linear import Dense
from lipaudit.bounds.scalar import ZERO, Norm, Upper
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.broadcast import precise
from lipaudit.operators.linear import weight_array
from lipaudit.operators.parts import Part
from lipaudit.operators.range import Range, reals, widen

__all__ = ["Einsum"]

Floats = NDArray[np.float64]
Letters = tuple[int, ...]

_LIMIT = 1 << 24
"""Largest number of products that are formed for the entries of Y, or of a range."""

_BLOCKS = 256
"""Up to this many batch entries their matrices are verified one by one."""


@dataclass(frozen=True, slots=True)
class _Equation:
    """Indices as numbers: per operand axis, of the output, and the length of each."""

    operands: tuple[Letters, ...]
    output: Letters
    lengths: dict[int, int]

    def live(self, axes: Letters, shape: tuple[int, ...]) -> Letters:
        """Indices that really run over the operand: not those of broadcast axes of length 1."""
        return tuple(index for index, n in zip(axes, shape, strict=True) if n == self.lengths[index])


def _parse(equation: str, shapes: Sequence[tuple[int, ...]]) -> _Equation | str:
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        return f"equation {equation!r} does not fit {len(shapes)} operands"
    extra = 0
    for term, shape in zip(terms, shapes, strict=True):
        if "..." in term:
            extra = max(extra, len(shape) - (len(term) - 3))
    dots = tuple(range(-extra, 0))
    operands: list[Letters] = []
    lengths: dict[int, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        before, has_dots, after = term.partition("...")
        own = len(shape) - len(before) - len(after)
        if own < 0 or (own and not has_dots):
            return f"equation {equation!r} does not fit the shapes of its operands"
        axes = (*map(ord, before), *dots[len(dots) - own :], *map(ord, after))
        operands.append(axes)
        for index, n in zip(axes, shape, strict=True):
            known = lengths.get(index, 1)
            if known != 1 and n not in (1, known):
                return f"equation {equation!r} does not fit the shapes of its operands"
            lengths[index] = n if known == 1 else known
    if arrow:
        before, has_dots, after = right.partition("...")
        output = (*map(ord, before), *(dots if has_dots else ()), *map(ord, after))
    else:
        letters = left.replace(",", "").replace("...", "")
        output = (*dots, *sorted(ord(letter) for letter in set(letters) if letters.count(letter) == 1))
    if not set(output) <= lengths.keys() or len(set(output)) != len(output):
        return f"equation {equation!r} has an output index that no operand has"
    return _Equation(tuple(operands), output, lengths)


def _contract(arrays: Sequence[Floats], axes: Sequence[Letters], output: Letters) -> Floats:
    """``numpy.einsum`` with numbered indices."""
    numbers = {index: k for k, index in enumerate(dict.fromkeys((*(i for own in axes for i in own), *output)))}
    arguments: list[Any] = []
    for array, own in zip(arrays, axes, strict=True):
        arguments += [array, [numbers[index] for index in own]]
    return np.asarray(np.einsum(*arguments, [numbers[index] for index in output], optimize=len(arrays) > 2), dtype=np.float64)


class Einsum(Rule):
    """See the module: exact for one stored operand, else by the magnitudes of the other operands' ranges."""

    def _equation(self, site: Site) -> _Equation | str:
        return _parse(str(site.attr("equation", "")), [site.shape(i) for i in range(len(site.inputs))])

    def _operand(self, equation: _Equation, i: int, array: Floats, shape: tuple[int, ...]) -> tuple[Floats, Letters]:
        """Operand ``i`` (or its magnitudes) without broadcast axes and with repeated indices reduced to the diagonal."""
        full = np.broadcast_to(array, shape)
        axes = equation.operands[i]
        kept = tuple(k for k, (index, n) in enumerate(zip(axes, shape, strict=True)) if n == equation.lengths[index])
        full = full.reshape(tuple(shape[k] for k in kept))
        live = tuple(axes[k] for k in kept)
        distinct = tuple(dict.fromkeys(live))
        return (full, live) if len(distinct) == len(live) else (_contract([full], [live], distinct), distinct)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """A stored operand of two as a batch of matrices [contracted, kept] on the other one."""
        places = [k for k, constant in enumerate(site.constants) if constant is not None and constant.size > 1]
        return tuple(self._part(site, k) for k in places)

    def _part(self, site: Site, k: int) -> Part:
        constant, equation = site.constant(k), self._equation(site)
        assert constant is not None
        if isinstance(equation, str) or len(site.inputs) != 2:
            return Part(constant.name, "matrix", constant.shape, "it is no matrix on one other operand")
        own, other = (frozenset(equation.live(equation.operands[j], site.shape(j))) for j in (k, 1 - k))
        output = frozenset(equation.output)
        if own - other - output or other - own - output:
            return Part(constant.name, "matrix", constant.shape, "an operand is summed before the product")
        batch, contracted, kept = (tuple(sorted(found)) for found in (own & other & output, (own & other) - output, (own & output) - other))
        array, axes = self._operand(equation, k, weight_array(constant), site.shape(k))
        ordered = array.transpose([axes.index(index) for index in (*batch, *contracted, *kept)])
        blocks, inner, width = (self._work(equation, found) for found in (batch, contracted, kept))
        operator = Dense(ordered.reshape(blocks, inner, width), (blocks, 1, inner))
        return Part(constant.name, "batched matrix" if blocks > 1 else "matrix", constant.shape, operator)

    def _work(self, equation: _Equation, indices: Sequence[int]) -> int:
        return math.prod(equation.lengths[index] for index in indices)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the module."""
        equation = self._equation(site)
        if isinstance(equation, str):
            return Unknown(equation)
        if any(math.prod(site.shape(k)) == 0 for k in range(len(site.inputs))) or math.prod(site.out_shape()) == 0:
            return Finite(ZERO, method="empty")
        own = frozenset(equation.live(equation.operands[i], site.shape(i)))
        others = [k for k in range(len(site.inputs)) if k != i]
        sizes: list[tuple[Floats, Letters]] = []
        for k in others:
            magnitudes = precise(site, k, xs[k]).magnitudes()
            if not np.all(np.isfinite(magnitudes)):
                if site.moving[k]:
                    return Unbounded(f"product with {site.node.inputs[k]!r}, which is not bounded on the domain")
                return Unknown(f"the factor {site.node.inputs[k]!r} holds values that are not finite")
            sizes.append(self._operand(equation, k, magnitudes, site.shape(k)))
        theirs = frozenset(index for _, axes in sizes for index in axes)
        output = frozenset(equation.output)
        batch = tuple(sorted(own & theirs & output))
        contracted = tuple(sorted((own & theirs) - output))
        kept = tuple(sorted((theirs & output) - own))
        summed = self._work(equation, tuple(own - theirs - output))
        inner = tuple((theirs - own) - output)
        evidence = {
            "batch": self._work(equation, batch),
            "contracted": self._work(equation, contracted),
            "kept": self._work(equation, kept),
        }
        factor = {"l1": Upper(1), "l2": Upper(summed).sqrt(), "linf": Upper(summed)}[norm]
        if self._work(equation, (*batch, *contracted, *kept, *inner)) > _LIMIT:
            size = self._coarse(equation, sizes, contracted, kept, inner, norm)
        else:
            size = self._size(site, equation, others, sizes, (batch, contracted, kept), inner, norm)
        return Finite(factor * size, method="norm of the other operands", evidence=evidence)

    def _coarse(
        self, equation: _Equation, sizes: Sequence[tuple[Floats, Letters]], contracted: Letters, kept: Letters, inner: Letters, norm: Norm
    ) -> Upper:
        """As if all entries were the largest possible."""
        top = Upper(self._work(equation, inner))
        for size, _ in sizes:
            top = top * Upper(float(np.max(size)))
        rows, columns = Upper(self._work(equation, contracted)), Upper(self._work(equation, kept))
        return top * {"l1": columns, "l2": (rows * columns).sqrt(), "linf": rows}[norm]

    def _size(
        self,
        site: Site,
        equation: _Equation,
        others: Sequence[int],
        sizes: Sequence[tuple[Floats, Letters]],
        roles: tuple[Letters, Letters, Letters],
        inner: Letters,
        norm: Norm,
    ) -> Upper:
        """Norm of Y, from its magnitudes; from its entries in l2 where they are stored."""
        shape = tuple(self._work(equation, role) for role in roles)
        order = tuple(index for role in roles for index in role)

        def formed(parts: Sequence[tuple[Floats, Letters]]) -> Floats:
            if not parts:
                return np.ones(shape)
            return _contract([array for array, _ in parts], [axes for _, axes in parts], order).reshape(shape)

        entries = formed(sizes)
        terms = self._work(equation, inner)
        error = 0.0
        if terms > 1 or len(sizes) > 1:  # sums and products were rounded, and may have underflowed
            error = (terms + len(sizes) + 2) * 2.0**-52
            entries = np.nextafter(entries * (1 + error) + terms * 1e-300, np.inf)
        with np.errstate(over="ignore"):
            columns, rows = float(entries.sum(axis=2).max()), float(entries.sum(axis=1).max())
        columns = columns if shape[2] == 1 else widen(columns, shape[2] + 1)
        rows = rows if shape[1] == 1 else widen(rows, shape[1] + 1)
        if norm != "l2":
            return Upper(columns if norm == "l1" else rows)
        mixed = (Upper(columns) * Upper(rows)).sqrt()
        lifted = np.where((entries > 0) & (entries < 1e-150), 1e-150, entries)  # squares must not underflow
        with np.errstate(over="ignore"):
            squares = widen(float(np.max(np.sum(lifted * lifted, axis=(1, 2)))), shape[1] * shape[2] + 1)
        best = min(mixed, Upper(squares).sqrt())
        if min(shape[1:]) > 1 and shape[0] <= _BLOCKS and all(site.constant(k) is not None for k in others):
            exact = formed([self._operand(equation, k, _array(site, k), site.shape(k)) for k in others])
            verified = max(dense_norm(np.ascontiguousarray(block), "l2").upper for block in exact)
            best = min(best, verified + Upper(error) * mixed)
        return best

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """About the einsum of the centres: ``|prod (c + d) - prod c| <= prod (|c| + r) - prod |c|``."""
        shape, equation = site.out_shape(), self._equation(site)
        if isinstance(equation, str):
            return (reals(shape),)
        if self._work(equation, tuple(equation.lengths)) > _LIMIT:
            return (reals(shape),)
        centres: list[tuple[Floats, Letters]] = []
        radii: list[tuple[Floats, Letters]] = []
        for i in range(len(site.inputs)):
            x = precise(site, i, xs[i])
            if not x.is_bounded:
                return (reals(shape),)
            centre = x.lo / 2 + x.hi / 2
            radius = np.maximum(x.hi - centre, centre - x.lo)
            radius = np.where(x.lo == x.hi, 0.0, np.nextafter(radius * (1 + 2.0**-51), np.inf))
            centres.append(self._operand(equation, i, centre, site.shape(i)))
            radii.append(self._operand(equation, i, radius, site.shape(i)))
        output = tuple(index for index in equation.output if any(index in axes for _, axes in centres))

        def formed(parts: Sequence[Floats]) -> Floats:
            return _contract(parts, [axes for _, axes in centres], output)

        with np.errstate(over="ignore", invalid="ignore"):
            middle = formed([c for c, _ in centres])
            least = formed([np.abs(c) for c, _ in centres])
            most = formed([np.abs(c) + r for (c, _), (r, _) in zip(centres, radii, strict=True)])
            terms = self._work(equation, tuple(set(equation.lengths) - set(equation.output))) + len(centres) + 4
            spread = (most - least) + most * (4 * terms * 2.0**-52) + 1e-300
        lo, hi = (np.nextafter(middle + sign * spread, sign * np.inf) for sign in (-1, 1))
        lo, hi = np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi)
        # An index of length 1 everywhere, or of no operand that runs over it, has length 1 in the output.
        full = tuple(equation.lengths[index] if index in output else 1 for index in equation.output)
        return (Range(shape, lo.reshape(full), hi.reshape(full)),)


def _array(site: Site, i: int) -> Floats:
    constant = site.constant(i)
    assert constant is not None
    return np.broadcast_to(np.float64(constant.fill), constant.shape) if constant.fill is not None else constant.float64()
