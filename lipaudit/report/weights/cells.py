"""The cells of the table of linear parts, shared by all formats: short numbers that stay on the safe side of the truth."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from lipaudit.records import WeightRank, WeightRow
from lipaudit.report.text import amount

__all__ = ["HEADINGS", "NOTE", "cells", "shape"]

HEADINGS = ("l2 at most", "slack", "l1", "linf", "Frobenius", "stable rank", "sigma_min")
"""What :func:`cells` gives."""

NOTE = (
    "l2, l1, linf and Frobenius norms are rounded up. Slack: the l2 norm is smaller than its bound by at most this share. "
    "sigma_min: a verified lower bound of the smallest singular value of the smaller side; - where none was proved."
)

_NONE = "-"


def cells(row: WeightRow) -> tuple[str, ...]:
    """The numbers of a row."""
    return (
        _short(row.norm.upper, 5, up=True),
        _NONE if row.norm.slack is None else _short(repr(row.norm.slack), 2, up=True),
        _short(row.l1, 5, up=True),
        _short(row.linf, 5, up=True),
        _short(row.fro, 5, up=True),
        _rank(row.stable_rank),
        _short(row.sigma_min, 4, up=False),
    )


def shape(sizes: list[int] | None) -> str:
    """Sizes as "64x3x7x7"."""
    return "x".join(str(size) for size in sizes) if sizes else "scalar" if sizes is not None else "unknown"


def _short(decimal: str | None, digits: int, *, up: bool) -> str:
    if decimal is None:
        return _NONE
    number = Decimal(decimal)
    if not number.is_finite() or number == 0:
        return amount(decimal)
    rounded = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR).plus(number)
    return amount(format(rounded, "e"))


def _rank(rank: WeightRank | None) -> str:
    """One number where both ends agree to a hundredth, else both."""
    if rank is None:
        return _NONE
    low, high = _short(rank.lower, 3, up=False), _short(rank.upper, 3, up=True)
    return high if Decimal(rank.upper) <= Decimal(rank.lower) * Decimal("1.01") else f"{low}..{high}"
