"""A progress bar on standard error, only on a terminal, only for work longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Self

__all__ = ["Bar"]

_BEGINS = {"load": 0.0, "simplify": 0.05, "recognise": 0.15, "weights": 0.15, "certify": 0.2, "measure": 0.6, "judge": 0.97}
_AUDIT = ("load", "simplify", "recognise", "certify", "measure", "judge")
_DELAY = 1.0
_PAUSE = 0.1


class Bar:
    """Shows the stage and how far it is; silent off a terminal."""

    def __init__(self, stages: Sequence[str] = _AUDIT) -> None:
        self._stages = stages
        self._start = time.monotonic()
        self._drawn = 0.0
        self._bar: Any = None
        self._task: Any = None
        self._visible = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def update(self, stage: str, fraction: float) -> None:
        """Callback for :func:`lipaudit.audit.audit` and :func:`lipaudit.weights.weights`."""
        now = time.monotonic()
        if not self._visible or now - self._start < _DELAY or now - self._drawn < _PAUSE:
            return
        self._drawn = now
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            # No thread of its own: the measurement is forked from this process, which is safe only while it has one thread.
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
            self._bar.start()
            self._task = self._bar.add_task(stage, total=1.0)
        begin = _BEGINS[stage]
        end = [*(_BEGINS[name] for name in self._stages), 1.0][self._stages.index(stage) + 1]
        self._bar.update(self._task, description=stage, completed=begin + fraction * (end - begin), refresh=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
