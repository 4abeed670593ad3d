"""What can go wrong, as the user sees it: each error knows its exit code.

A malformed input must become one of these, never a stray ``ValueError``. Mathematics never raises: an operator
without a finite constant is a result (:class:`lipaudit.operators.base.Unbounded`), not an error.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["InternalError", "LipauditError", "ModelError", "UsageError"]


class LipauditError(Exception):
    """Base of all errors that lipaudit raises on purpose.

    Parameters
    ----------
    message
        One sentence that names the offending item.
    where
        The file (and, after a colon, the item inside it) that the sentence is about; empty if there is none.
    hint
        What the user can do about it; empty if nothing obvious.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} {self.hint}" if self.hint else text


class UsageError(LipauditError):
    """A flag, a configuration value, a domain or a rules folder makes no sense (exit 2)."""

    exit_code = 2


class ModelError(LipauditError):
    """The model cannot be read or audited (exit 3)."""

    exit_code = 3


class InternalError(LipauditError):
    """A measured gain lies above a certified bound, or lipaudit has a bug (exit 4)."""

    exit_code = 4
