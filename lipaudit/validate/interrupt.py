"""Ctrl-C during a search ends the search, not the audit: what is known so far is kept.

A Python signal handler waits until the interpreter runs again, which may be long when onnxruntime is at work. The wake-up pipe is
written by the C-level handler at once, and a thread that reads it terminates the run under way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from lipaudit.validate.session import Deadline

__all__ = ["Interrupts"]

# Seconds that confirming may still take after the first Ctrl-C; the second ends that too.
GRACE = 2.0


class Interrupts:
    """While entered, SIGINT ends ``search`` and leaves ``confirm`` a few seconds; a second one ends that as well, a third raises.

    Does nothing if ``active`` is False or outside the main thread, where Python does not deliver signals.
    """

    def __init__(self, search: Deadline, confirm: Deadline, *, active: bool) -> None:
        self.count = 0
        self._search = search
        self._confirm = confirm
        self._active = active and threading.current_thread() is threading.main_thread()
        self._former: Any = None
        self._former_fd = -1
        self._pipe = (-1, -1)
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Interrupts:
        if self._active:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._watcher = threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True)
            self._watcher.start()
            self._former = signal.signal(signal.SIGINT, self._handle)
            self._former_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._active:
            return
        signal.set_wakeup_fd(self._former_fd)
        signal.signal(signal.SIGINT, self._former)
        os.close(self._pipe[1])
        if self._watcher is not None:
            self._watcher.join()
        os.close(self._pipe[0])

    def _handle(self, *_: object) -> None:
        """In the main thread, when the interpreter gets there: counts what the watcher acts on, and is the way out of a third."""
        self.count += 1
        if self.count > 2:
            raise KeyboardInterrupt

    def _watch(self, pipe: int) -> None:
        seen = 0
        while True:
            with contextlib.suppress(InterruptedError):
                found = os.read(pipe, 1)
                if not found:
                    return
                if found[0] != signal.SIGINT:
                    continue
                seen += 1
                self._search.strike()
                if seen == 1:
                    self._confirm.shorten(GRACE)
                else:
                    self._confirm.strike()
