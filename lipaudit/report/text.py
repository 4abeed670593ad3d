"""Strings of strangers made safe to print, and numbers made readable without changing which side of the truth they are on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

__all__ = ["amount", "count", "facts", "paragraph", "power", "printable", "share", "shorten", "shorten_path", "value"]

# Control, format (bidi marks, zero-width), surrogate, private and unassigned characters, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_WIDE = Context(prec=1200)  # holds every double in full, so that nothing is rounded but what is meant to be
_LARGEST_WRITTEN_OUT = 7
_SMALLEST_WRITTEN_OUT = -4


def printable(text: str) -> str:
    r"""``text`` with every invisible or direction-changing character as an escape (``\x1b``, ``\u202e``, ``\n``)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shorten(text: str, limit: int) -> str:
    """``text``, printable, in at most ``limit`` characters: the middle gives way, since paths differ at both ends."""
    clean = printable(text[: limit * 4] + text[-limit * 4 :] if len(text) > limit * 8 else text)
    if len(clean) <= limit:
        return clean
    head = (limit - 3) // 2
    return f"{clean[:head]}...{clean[len(clean) - (limit - 3 - head) :]}"


def shorten_path(path: str, limit: int) -> str:
    """A path in at most ``limit`` characters: whole segments of both ends, "stack-1/layer-2/.../query"."""
    parts = printable(path).split("/") if len(path) <= 8 * limit else []
    if not parts or sum(map(len, parts)) + len(parts) - 1 <= limit:
        return shorten(path, limit)
    first, last = 0, 1  # the end says what, the beginning says where
    room = limit - len("...") - len(parts[-1]) - 1
    while first + last < len(parts):
        head, tail = len(parts[first]) + 1, len(parts[-last - 1]) + 1
        if head <= room and (first <= last or tail > room):
            first, room = first + 1, room - head
        elif tail <= room:
            last, room = last + 1, room - tail
        else:
            break
    text = "/".join([*parts[:first], "...", *parts[-last:]])
    return text if len(text) <= limit else shorten(path, limit)


def share(part: float) -> str:
    """A share as "14 %"."""
    return "<1 %" if 0 < part < 0.005 else f"{100 * part:.0f} %"


def paragraph(text: str) -> str:
    """``text`` in one line, printable; line breaks count as spaces."""
    return printable(" ".join(text.split()))


def amount(decimal: str) -> str:
    """A certified or measured decimal with the same digits, written out where that is short ("7.2501e+03" is "7250.1")."""
    try:
        number = Decimal(decimal)
    except ArithmeticError:
        return printable(decimal)
    if not number.is_finite():
        return "infinite" if number > 0 else printable(decimal)
    if number == 0 or _SMALLEST_WRITTEN_OUT <= number.adjusted() < _LARGEST_WRITTEN_OUT:
        plain = format(number, "f")
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    mantissa, _, exponent = format(number, "e").partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent):+03d}"


def power(log10: float, *, up: bool, digits: int = 2) -> str:
    """The exponent in "10^exponent", rounded up for a certified number and down for a measured one."""
    step = Decimal(1).scaleb(-digits)
    rounded = Decimal(log10).quantize(step, rounding=ROUND_CEILING if up else ROUND_FLOOR, context=_WIDE)
    return format(rounded if rounded else abs(rounded), "f")


def count(number: int, one: str, many: str = "") -> str:
    """A number of things: "1 node", "1,234 nodes"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def value(item: Any) -> str:
    """A fact, an option or a piece of evidence as short text."""
    if isinstance(item, bool):
        return "yes" if item else "no"
    if item is None:
        return "none"
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, str):
        return printable(item)
    if isinstance(item, (list, tuple)):
        return f"[{', '.join(value(part) for part in item)}]"
    if isinstance(item, Mapping):
        return f"{{{', '.join(f'{value(key)}: {value(part)}' for key, part in item.items())}}}"
    return printable(str(item))


def facts(groups: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts as ``("norm.epsilon", "1e-05")``, groups spelled out; those without a value are left out."""
    for name, item in groups.items():
        if isinstance(item, Mapping) and not prefix:
            yield from facts(item, f"{name}.")
        elif item is not None:
            yield f"{prefix}{printable(str(name))}", shorten(value(item), 200)
