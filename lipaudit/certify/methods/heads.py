"""From layouts to the matrices of the heads: which part of which projection feeds the queries, keys and values of each head.

Heads that compute the same in other samples (or windows) form one class. The rows of all heads of a class are different rows of the
entry, so that a class acts as one block-diagonal map: for every path p of class h, ``|d p_h| <= stretch |W_h dX|`` in Frobenius norm, and
the classes together see ``X`` through the stack of their matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, ZERO, Upper
from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.layout import Layout
from lipaudit.operators.range import widen

__all__ = ["Lines", "Path", "classes", "lines_of", "path_of", "rows_read"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_MOST_ROTATION = 1 << 27


@dataclass(frozen=True, eq=False)
class Lines:
    """One operand of an attention as lines [heads and samples, tokens, width].

    Attributes
    ----------
    layout
        Of that shape.
    tokens
        [lines, tokens]: the row of the entry that each token reads.
    features
        Per term [lines, width]: the column of the projection, -1 where the term is nothing.
    static
        The factors are the same for all tokens (no rotation).
    """

    layout: Layout
    tokens: Indices
    features: tuple[Indices, ...]
    static: bool

    def key(self, line: int) -> tuple[object, ...]:
        """Equal for lines that read their tokens alike."""
        if self.static:
            return tuple((f[line].tobytes(), t.factor[line, 0].tobytes()) for f, t in zip(self.features, self.layout.terms, strict=True))
        return ("turned", *self.columns(line))

    def columns(self, line: int) -> tuple[int, ...]:
        """The columns of the projection that a line reads, in order."""
        return tuple(int(c) for c in np.unique(np.concatenate([f[line] for f in self.features])) if c >= 0)


@dataclass(frozen=True, eq=False)
class Path:
    """What one class of heads reads: ``p = stretch * (something of norm 1)(W x + constants)``.

    Attributes
    ----------
    weight
        [width, features of the entry].
    stretch
        What rotations and normalizations may add.
    constant
        Largest norm of what does not move; ``shift``: largest distance of two of them (of two tokens).
    turned
        Tokens are turned by their positions: equal rows need not stay equal.
    normalized
        Rows are normalized (or put through a function) after the projection: their size has nothing to do with W.
    before
        ``stretch`` without the slope of the function that was applied last.
    """

    weight: Enclosed
    stretch: Upper
    constant: Floats
    slack: float
    turned: bool
    normalized: bool
    before: Upper = ONE

    def sizes(self, centre: Floats, error: float) -> tuple[Upper, Upper]:
        """Largest norm of ``centre + constant`` over the tokens, and largest distance of two of these."""
        whole = self.constant + centre
        cushion = (self.slack + error + 2.0**-51 * float(np.max(np.abs(whole), initial=0.0))) * np.sqrt(whole.shape[-1]) * 1.01
        lengths = np.sqrt(np.sum(whole * whole, axis=-1))
        top = Upper(widen(float(np.max(lengths, initial=0.0)), whole.shape[-1] + 8)) + Upper(float(cushion)) + Upper(1e-150)
        if not np.any(self.constant != self.constant[:1]):
            return top, ZERO
        away = self.constant - self.constant[:1]
        far = np.sqrt(np.sum(away * away, axis=-1))
        apart = Upper(2) * (Upper(widen(float(np.max(far)), whole.shape[-1] + 8)) + Upper(float(cushion)) + Upper(1e-150))
        return top, apart


def lines_of(layout: Layout, width: int) -> Lines | None:
    """Read an operand [lines, tokens, k]; None unless each of its rows reads one row of the entry (``width`` features each)."""
    base = layout.base
    count, tokens, _ = layout.shape
    if count == 0 or tokens == 0:
        return None
    row_of = None if base.weight is None else rows_read(layout, width)
    if base.weight is not None and row_of is None:
        return None
    columns = width if base.weight is None else base.width
    places = [term.index for term in layout.terms]
    rows = np.max([(place // columns).max(axis=-1) for place in places], axis=0)
    features: list[Indices] = []
    for place in places:
        feature = np.where(place >= 0, place % columns, -1)
        if np.any((place >= 0) & (place // columns != rows[..., None])) or np.any(feature != feature[:, :1]):
            return None
        features.append(feature[:, 0])
    if np.any(rows < 0):
        return None
    static = not any(np.any(term.factor != term.factor[:, :1]) for term in layout.terms)
    return Lines(layout, rows if row_of is None else row_of[rows], tuple(features), static and not base.is_reshaped)


def rows_read(layout: Layout, width: int) -> Indices | None:
    """For each row of the product that ``layout`` is based on the row of the entry that it multiplies; None if not a whole row."""
    operand = layout.base.operand
    if operand is None or not operand.is_plain or operand.shape[1] != width:
        return None
    index = operand.terms[0].index
    if np.any(index[:, 0] % width) or np.any(index != index[:, :1] + np.arange(width)):
        return None
    return np.asarray(index[:, 0] // width)


def classes(*operands: Lines) -> list[list[int]] | None:
    """Lines that are alike in all operands; None if a row of the entry is read twice by one class."""
    found: dict[tuple[object, ...], list[int]] = {}
    for line in range(operands[0].tokens.shape[0]):
        found.setdefault(tuple(operand.key(line) for operand in operands), []).append(line)
    for members in found.values():
        for operand in operands:
            rows = operand.tokens[members].reshape(-1)
            if np.unique(rows).size != rows.size:
                return None
    return list(found.values())


def path_of(lines: Lines, members: list[int], width: int) -> Path | None:
    """The matrix of one class of heads."""
    base, line = lines.layout.base, members[0]
    columns = lines.columns(line)
    if base.groups and columns not in base.groups:
        return None
    projection = np.eye(width) if base.weight is None else base.weight
    place = {column: k for k, column in enumerate(columns)}
    constant = np.concatenate([lines.layout.constant[m] for m in members]) if np.any(lines.layout.constant) else lines.layout.constant[line]
    relative = Upper(lines.layout.relative + len(lines.features) * 2.0**-52)
    if lines.static:
        size = lines.features[0].shape[1]
        local = np.zeros((size, len(columns)))
        for feature, term in zip(lines.features, lines.layout.terms, strict=True):
            for k in range(size):
                if feature[line, k] >= 0:
                    local[k, place[int(feature[line, k])]] += term.factor[line, 0, k]
        chosen = Enclosed(projection[:, columns].T)
        exact = len(lines.features) == 1 and not np.any((local != 0) & (local != 1))
        error = ZERO if exact and lines.layout.relative == 0 else Enclosed(np.abs(local)).frobenius() * relative
        weight = Enclosed(projection[:, lines.features[0][line]].T) if exact else Enclosed(local, error).times(chosen)
        return Path(weight, base.stretch, constant, lines.layout.slack, False, base.is_reshaped)
    moves = len(lines.features) > 1 or bool(np.any(lines.layout.terms[0].factor != 1))
    stretch = _turn(lines, members, columns, float(relative)) if moves else ONE
    if stretch is None:
        return None
    return Path(
        Enclosed(projection[:, columns].T), base.stretch * stretch, constant, lines.layout.slack, moves, base.is_reshaped, base.before
    )


def _turn(lines: Lines, members: list[int], columns: tuple[int, ...], relative: float) -> Upper | None:
    """Largest norm of the matrices that act on the features of one token: ``||M||^2 <= || M M' ||_inf``, 1 for rotations.

    ``relative``: of the errors of the factors; the product of two has twice that and the rounding of the sum.
    """
    size, tokens = lines.features[0].shape[1], lines.tokens.shape[1]
    if len(members) * tokens * size * max(size, len(columns)) > _MOST_ROTATION:
        return None
    place = np.full(max(columns) + 1, -1)
    place[list(columns)] = np.arange(len(columns))
    top = 0.0
    for line in members:
        local = np.zeros((tokens, size, len(columns)))
        for feature, term in zip(lines.features, lines.layout.terms, strict=True):
            for k in range(size):
                if feature[line, k] >= 0:
                    local[:, k, place[feature[line, k]]] += term.factor[line, :, k]
        gram = np.abs(local) @ np.abs(local).transpose(0, 2, 1)
        exact = np.abs(local @ local.transpose(0, 2, 1))
        rounding = (len(columns) + len(lines.features) * 2 + 8) * 2.0**-52 + 3 * relative
        sums = np.sum(exact + rounding * gram, axis=-1)
        top = max(top, float(np.max(sums)) + 1e-290)  # squares of tiny factors underflow
    return Upper(widen(top, size + 8)).sqrt()
