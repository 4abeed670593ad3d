"""How much is held at the same time where weights are looked at in parallel."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import Condition

__all__ = ["LARGE", "Gate"]

LARGE = 1 << 28
"""Bytes in float64 that the weights looked at at the same time may have together (a larger one is looked at alone)."""


class Gate:
    """Lets work through whose sizes sum to at most ``most``, and larger work alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._change = Condition()

    @contextmanager
    def of(self, size: int) -> Generator[None]:
        """Wait for room, hold it during the body."""
        with self._change:
            self._change.wait_for(lambda: self._held == 0 or self._held + size <= self._most)
            self._held += size
        try:
            yield
        finally:
            with self._change:
                self._held -= size
                self._change.notify_all()
